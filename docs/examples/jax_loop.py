"""NUTS in JAX, stored epoch by epoch: killed at any moment, it goes on bit for bit as if it had never stopped.

Run it from a clone of the repository:

    scripts/example jax_loop

Kill it, run it again, and it continues. `--loop asyncio` and `--loop trio` do the same in an event loop.

`run_kernel` does the work: an epoch is one call of a jitted function that moves all chains by many steps. With the
samples it holds all that the next epoch depends on: the random keys, the chains' states, and what the warm-up found.

The blocking loop waits neither for the device nor for the disk. The others have JAX compile and compute in a worker
thread, so that the event loop is free for other tasks: here for one that tells how far the run is.

The data and the model are those of `scripts/demo`: a straight line with outliers, Hogg, Bovy & Lang (2010).
"""

import argparse
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import blackjax
import jax
import jax.numpy as jnp
import numpy as np
from blackjax.mcmc.hmc import HMCState

from posterity import AsyncBackend, DefaultBackend, open_run
from posterity.kernels import ChainKernel, Kernel, Tuned, get_info, get_positions, run_kernel, run_kernel_async

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


def warmed_up(key: jax.Array, nwarmup: int) -> Tuned:
    """Warm one chain up. What was found, its step size and inverse mass matrix, is stored with its state."""
    warmup = blackjax.window_adaptation(blackjax.nuts, log_density, is_mass_matrix_diagonal=False)
    (state, found), _ = warmup.run(key, jnp.log((GUESS - LOWER) / (UPPER - GUESS)), nwarmup)
    return Tuned(state, {name: found[name] for name in ("step_size", "inverse_mass_matrix")})


def named(state: HMCState) -> dict[str, jax.Array]:
    """Return where a chain is, as it is stored: any pytree will do."""
    return dict(zip(NAMES, constrained(state.position), strict=True))


def nuts(args: argparse.Namespace) -> Kernel:
    """Return NUTS for many chains. All functions are those of one chain."""
    step = partial(blackjax.nuts.build_kernel(), logdensity_fn=log_density)
    return ChainKernel(step, partial(warmed_up, nwarmup=args.nwarmup), nchain=args.nchain, position=named)


# --- the loops ---


def sample_blocking(args: argparse.Namespace) -> None:
    """Sample until the run has `args.epochs` epochs. At most four wait to be computed and written."""
    kernel, key = nuts(args), jax.random.key(args.seed)
    with DefaultBackend(
        outdir=args.outdir, epochs_per_file=10, max_pending_epochs=4, parameters=kernel.parameters()
    ) as backend:
        say_start(backend.status.epochs)

        def until(_: int) -> bool:  # asked after each epoch; true would end the sampling
            say_progress(backend)
            return False

        run_kernel(backend, kernel, key, epochs=args.epochs, samples_per_epoch=args.nsteps, until=until)


async def sample_async(args: argparse.Namespace) -> None:
    """Do the same in an event loop, which isn't held up."""
    kernel, key = nuts(args), jax.random.key(args.seed)
    parameters = await anyio.to_thread.run_sync(kernel.parameters)  # JAX traces the warm-up
    async with (
        anyio.create_task_group() as tasks,
        AsyncBackend(outdir=args.outdir, epochs_per_file=10, parameters=parameters) as backend,
    ):
        tasks.start_soon(watch, backend)
        say_start(backend.status.epochs)
        await run_kernel_async(backend, kernel, key, epochs=args.epochs, samples_per_epoch=args.nsteps)


async def watch(backend: AsyncBackend) -> None:
    """Tell how far the run is, each time an epoch was handed over, until the backend is closed."""
    async for _ in backend.updates():
        say_progress(backend)


def say_start(done: int) -> None:
    """Tell whether the run is a new one."""
    print(f"continuing after {done} epochs" if done else "a new run: warming up", flush=True)


def say_progress(backend: DefaultBackend | AsyncBackend) -> None:
    """Tell how far the run is."""
    status = backend.status
    print(f"handed over {status.epochs} epochs, {status.epochs_on_disk} on disk", flush=True)


# --- the result ---


def report(outdir: Path) -> None:
    """Read the run, as any other process could, and print the posterior."""
    with open_run(outdir) as run, run.snapshot() as snapshot:
        x = get_positions(snapshot)  # as `named` gave them, each an array (nchain, nsamples)
        divergences = get_info(snapshot)["is_divergent"]
        print(f"{snapshot.nepochs} epochs, {x['m'].size:,} samples, {divergences.sum()} divergences")
    for name in NAMES:
        print(f"{name:8s} {x[name].mean():8.2f} +/- {x[name].std():.2f}")


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
