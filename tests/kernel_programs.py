"""Kernels of BlackJAX and NumPyro for the tests, and a program that runs them, to be stopped, killed and continued.

kernel_programs.py begin FOLDER            two runs of each kernel: one of 2 epochs, one that goes on until it is killed
kernel_programs.py continue FOLDER EPOCHS  the same runs until they have so many epochs, and one that never stopped
"""

import os
import sys
import threading
import time
from functools import partial
from pathlib import Path

# What is compiled is small and short-lived: to optimize it would take longer than all its runs.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from posterity import DefaultBackend, open_run
from posterity.kernels import ChainKernel, NumpyroKernel, Tuned, run_kernel

NSAMPLES = 10
NWARMUP = 25  # of NumPyro's, which is stored: two epochs and a half
DATA = np.array([1.2, 0.3, 2.1, 1.7, 0.8], np.float32)


def log_density(x):
    """Of a dict with a number, a vector and a list with a tuple of a matrix and None."""
    matrix = x["more"][0][0]
    return -0.5 * (x["slope"] ** 2 + jnp.sum((x["offset"] - 1.0) ** 2) + jnp.sum((matrix - x["slope"]) ** 2))


def somewhere(key):
    """Where a chain may begin."""
    normal = jax.random.normal(key, (7,))
    return {"slope": normal[0], "offset": normal[1:3], "more": [(normal[3:].reshape(2, 2), None)]}


def tuned(key):
    """The first state of a chain, and the size of its steps: another one for each."""
    state = blackjax.mala.init(somewhere(key), log_density)
    return Tuned(state, {"step_size": jax.random.uniform(key, minval=0.05, maxval=0.2)})


def mala():
    """BlackJAX's MALA, tuned."""
    return ChainKernel(partial(blackjax.mala.build_kernel(), logdensity_fn=log_density), tuned, nchain=3)


def model(data):
    """A normal distribution, and what follows from its width."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(3.0).expand([2]))
    numpyro.deterministic("ratio", sigma[0] / sigma[1])
    numpyro.sample("y", dist.Normal(mu, sigma[0]), obs=data)


def numpyro_nuts():
    """NumPyro's NUTS, its warm-up a part of the run."""
    return NumpyroKernel(numpyro.infer.NUTS(model), (DATA,), nchain=2, num_warmup=NWARMUP, keep_warmup=True)


# With a raw key and with a typed one.
KERNELS = {"mala": (mala, lambda: jax.random.PRNGKey(2)), "numpyro": (numpyro_nuts, lambda: jax.random.key(3))}


def numpyro_itself(nsamples):
    """What NumPyro's own loop gives after the warm-up, site -> `(nchain, nsamples, *shape)`."""
    mcmc = numpyro.infer.MCMC(
        numpyro.infer.NUTS(model), num_warmup=NWARMUP, num_samples=nsamples, num_chains=2,
        chain_method="vectorized", progress_bar=False,
    )  # fmt: skip
    mcmc.run(jax.random.split(jax.random.key(3), 2), DATA)
    return mcmc.get_samples(group_by_chain=True)


def sample(outdir, kernel, key, epochs, until=None):
    """Begin a run, or continue it."""
    with DefaultBackend(outdir=outdir, max_pending_epochs=1) as backend:
        run_kernel(backend, kernel, key, epochs=epochs, samples_per_epoch=NSAMPLES, until=until)


def begin(folder, name):
    """Stop a run after two epochs, and have another one go on."""

    def say(nepochs):
        sys.stdout.write(f"{name} {nepochs}\n")
        sys.stdout.flush()
        time.sleep(0.02)  # so that the kill comes after a few epochs; nothing waits for this
        return False

    make, key = KERNELS[name]
    kernel = make()
    if name == "mala":
        sample(folder / f"{name}-stopped", kernel, key(), 2)
    sample(folder / f"{name}-killed", kernel, key(), 10_000, say)


def go_on(folder, name):
    """Continue each run, and sample another one in one go."""
    make, key = KERNELS[name]
    kernel, epochs = make(), some_more(folder / f"{name}-killed")
    for fate in ("stopped", "killed", "whole") if name == "mala" else ("killed", "whole"):
        sample(folder / f"{name}-{fate}", kernel, key(), epochs)
    if name == "numpyro":
        np.savez(folder / "numpyro.npz", **numpyro_itself(epochs * NSAMPLES - NWARMUP))


def some_more(outdir):
    """How many epochs a run is to have: three more than it has now, and enough for NumPyro's warm-up."""
    try:
        with open_run(outdir) as run, run.snapshot() as snapshot:
            return max(3, snapshot.nepochs) + 3
    except FileNotFoundError:  # it was killed before the first one was written
        return 6


def main(what, folder):
    """Do the same for all kernels at once."""
    work = begin if what == "begin" else go_on
    threads = [threading.Thread(target=work, args=(Path(folder), name)) for name in KERNELS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
