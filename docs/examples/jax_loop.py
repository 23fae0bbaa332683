"""NUTS in JAX, stored epoch by epoch: killed at any moment, it goes on bit for bit as if it had never stopped.

Run it from a clone of the repository:

    scripts/example jax_loop

Kill it, run it again, and it continues. `--loop asyncio` and `--loop trio` do the same in an event loop.

An epoch is one call of a jitted function: BlackJAX's NUTS, several chains by `vmap`, many steps by `scan`. With the
samples it holds all that the next epoch depends on: the random key, the chains' states, and what the warm-up found.

The blocking loop waits neither for the device nor for the disk. The others wait for the device in a worker thread, so
that the event loop is free for other tasks: here for one that tells how far the run is.

The data and the model are those of `scripts/demo`: a straight line with outliers, Hogg, Bovy & Lang (2010).
"""

import argparse
from functools import partial
from pathlib import Path
from typing import NamedTuple

import anyio
import anyio.to_thread
import blackjax
import jax
import jax.numpy as jnp
import numpy as np
from blackjax.mcmc.hmc import HMCState

from posterity import AsyncBackend, DefaultBackend, Epoch, open_run

jax.config.update("jax_enable_x64", True)  # before the first array, and the same each time the run is continued

TABLE = np.genfromtxt(
    Path(__file__).parents[2] / "scripts" / "data" / "hogg2010_table1.csv", delimiter=",", names=True, skip_header=2
)
NAMES = ("m", "b", "P_b", "Y_b", "log V_b")
LOWER = np.array([-5.0, -500.0, 0.0, 0.0, np.log(10.0**2)])
UPPER = np.array([5.0, 500.0, 0.5, 1000.0, np.log(500.0**2)])
GUESS = np.array([2.0, 50.0, 0.2, 400.0, 9.0])


# --- the model ---


def constrained(u: jax.Array) -> jax.Array:
    """Map any real numbers to parameters between LOWER and UPPER; NUTS moves in the former."""
    return LOWER + (UPPER - LOWER) * jax.nn.sigmoid(u)


def log_density(u: jax.Array) -> jax.Array:
    """Return the log posterior: each point is from the line with probability 1 - P_b, else from N(Y_b, V_b)."""
    m, b, p_bad, y_bad, log_v_bad = constrained(u)
    variance = TABLE["sigma_y"] ** 2
    variance_bad = variance + jnp.exp(log_v_bad)
    good = -0.5 * ((TABLE["y"] - m * TABLE["x"] - b) ** 2 / variance + jnp.log(variance))
    bad = -0.5 * ((TABLE["y"] - y_bad) ** 2 / variance_bad + jnp.log(variance_bad))
    log_likelihood = jnp.logaddexp(jnp.log1p(-p_bad) + good, jnp.log(p_bad) + bad).sum()
    log_jacobian = jnp.sum(jax.nn.log_sigmoid(u) + jax.nn.log_sigmoid(-u))
    return log_likelihood + log_jacobian


# --- the sampler ---


class Chains(NamedTuple):
    """All that the next epoch depends on. `tuning`: each chain's step size and inverse mass matrix."""

    key: jax.Array
    state: HMCState
    tuning: dict[str, jax.Array]


@partial(jax.jit, static_argnums=(1, 2))
def first_chains(seed: int, nchain: int, nwarmup: int) -> Chains:
    """Warm the chains up, each by itself."""
    key, warmup_key = jax.random.split(jax.random.key(seed))
    warmup = blackjax.window_adaptation(blackjax.nuts, log_density, is_mass_matrix_diagonal=False)
    guess = jnp.log((GUESS - LOWER) / (UPPER - GUESS))

    def warmed_up(chain_key: jax.Array) -> tuple[HMCState, dict[str, jax.Array]]:
        (state, found), _ = warmup.run(chain_key, guess, nwarmup)
        return state, {name: found[name] for name in ("step_size", "inverse_mass_matrix")}

    return Chains(key, *jax.vmap(warmed_up)(jax.random.split(warmup_key, nchain)))


@partial(jax.jit, static_argnums=1)
def sample_epoch(chains: Chains, nsteps: int) -> tuple[Chains, dict]:
    """Take `nsteps` steps with each chain. Returns where they are then, and the epoch that goes to the backend."""
    kernel = blackjax.nuts.build_kernel()

    def move_one(key: jax.Array, state: HMCState, tuning: dict[str, jax.Array]) -> tuple:
        return kernel(key, state, log_density, **tuning)

    def move_all(state: HMCState, key: jax.Array) -> tuple:
        keys = jax.random.split(key, len(state.position))
        state, info = jax.vmap(move_one)(keys, state, chains.tuning)
        return state, (constrained(state.position), state.logdensity, info)

    key, epoch_key = jax.random.split(chains.key)
    state, (p, lp, info) = jax.lax.scan(move_all, chains.state, jax.random.split(epoch_key, nsteps))
    epoch = {
        "samples": {
            "p": p.transpose(1, 2, 0),  # scan's (nsteps, nchain, dim) becomes (nchain, dim, nsamples), on the device
            "lp": lp.T[:, None, :],
        },
        "stats": {
            "divergent": info.is_divergent.T,
            "acceptance_rate": info.acceptance_rate.T,
            "energy": info.energy.T,
            "leapfrog_steps": info.num_integration_steps.T,
        },
        "state": {"key": jax.random.key_data(key), "chains": state._asdict(), "tuning": chains.tuning},
    }
    return Chains(key, state, chains.tuning), epoch


def continued(epoch: Epoch) -> Chains:
    """Return the chains as they were at the end of an epoch: the opposite of its "state"."""
    state = epoch.state
    return Chains(jax.random.wrap_key_data(state["key"]), HMCState(**state["chains"]), state["tuning"])


# --- the loops ---
# `copy=False` gives JAX arrays away without copying them, not even on the device. It is safe because they never
# change, and because nothing here donates them.


def sample_blocking(args: argparse.Namespace) -> None:
    """Sample until the run has `args.epochs` epochs. At most four wait to be computed and written."""
    with DefaultBackend(outdir=args.outdir, epochs_per_file=10, max_pending_epochs=4) as backend:
        done = backend.status.epochs
        say_start(done)
        chains = continued(backend.load()) if done else first_chains(args.seed, args.nchain, args.nwarmup)
        for _ in range(done, args.epochs):
            chains, epoch = sample_epoch(chains, args.nsteps)  # returns before the device has computed it
            backend.ingest_dict(epoch, copy=False)  # waits only if four epochs wait already
            print(f"handed over {backend.status.epochs} epochs, {backend.status.epochs_on_disk} on disk", flush=True)


async def sample_async(args: argparse.Namespace) -> None:
    """Do the same in an event loop, which isn't held up: JAX compiles and computes in a worker thread."""
    async with (
        anyio.create_task_group() as tasks,
        AsyncBackend(outdir=args.outdir, epochs_per_file=10) as backend,
    ):
        tasks.start_soon(watch, backend)
        done = backend.status.epochs
        say_start(done)
        if done:
            chains = continued(await backend.load())
        else:
            chains = await anyio.to_thread.run_sync(first_chains, args.seed, args.nchain, args.nwarmup)
        for _ in range(done, args.epochs):
            chains, epoch = await anyio.to_thread.run_sync(sample_and_wait, chains, args.nsteps)
            await backend.ingest_dict(epoch, copy=False)


def sample_and_wait(chains: Chains, nsteps: int) -> tuple[Chains, dict]:
    """Return once the device has computed it."""
    return jax.block_until_ready(sample_epoch(chains, nsteps))


async def watch(backend: AsyncBackend) -> None:
    """Tell how far the run is, each time an epoch was handed over, until the backend is closed."""
    async for snapshot in backend.updates():
        print(f"handed over {snapshot.nepochs} epochs, {backend.status.epochs_on_disk} on disk", flush=True)


def say_start(done: int) -> None:
    """Tell whether the run is a new one."""
    print(f"continuing after {done} epochs" if done else "a new run: warming up", flush=True)


# --- the result ---


def report(outdir: Path) -> None:
    """Read the run, as any other process could, and print the posterior."""
    with open_run(outdir) as run, run.snapshot() as snapshot:
        p = snapshot.get_samples(flatten=True)["p"]
        stats = snapshot.get_stats().values()
        print(f"{snapshot.nepochs} epochs, {len(p):,} samples, {sum(s['divergent'].sum() for s in stats)} divergences")
    for name, mean, error in zip(NAMES, p.mean(axis=0), p.std(axis=0), strict=True):
        print(f"{name:8s} {mean:8.2f} +/- {error:.2f}")


def main() -> None:
    """Sample, then report."""
    parser = argparse.ArgumentParser(description="NUTS of BlackJAX, stored epoch by epoch by posterity")
    parser.add_argument("--loop", choices=["blocking", "asyncio", "trio"], default="blocking")
    outdir_help = "the run folder; a run that is there is continued (default: %(default)s)"
    parser.add_argument("--outdir", type=Path, default=Path("demo-output/jax_loop"), help=outdir_help)
    parser.add_argument("--epochs", type=int, default=20, help="sample until there are so many (default: %(default)s)")
    parser.add_argument("--nsteps", type=int, default=500, help="steps in an epoch (default: %(default)s)")
    parser.add_argument("--nchain", type=int, default=4, help="chains of a new run (default: %(default)s)")
    parser.add_argument("--nwarmup", type=int, default=300, help="warm-up steps of a new run (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of a new run (default: %(default)s)")
    args = parser.parse_args()
    if args.loop == "blocking":
        sample_blocking(args)
    else:
        anyio.run(sample_async, args, backend=args.loop)
    report(args.outdir)


if __name__ == "__main__":
    main()
