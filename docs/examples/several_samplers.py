"""Several samplers at once: in threads, in processes and as async generators, until they agree.

Run it from a clone of the repository:

    scripts/example several_samplers

All of them sample one posterior, each into a run folder of its own. While they are at work, one task reads all the
runs, and stops the samplers when R-hat and ESS over all chains are good enough. Ctrl-C stops them too, and a rerun
goes on where they ended. It works on asyncio and on trio (`--loop trio`).

The posterior: a straight line through the 20 points of table 1 of Hogg, Bovy & Lang (2010), arXiv:1008.4686. Some are
outliers, so the errors have Student's t distribution, with three degrees of freedom.
"""

import argparse
import itertools
import logging
import select
import signal
import subprocess
import sys
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from functools import partial
from pathlib import Path

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import emcee
import numpy as np
from anyio.abc import TaskStatus

from posterity import AsyncBackend, AsyncSnapshot, DefaultBackend, open_run

X = np.array([201, 244, 47, 287, 203, 58, 210, 202, 198, 158, 165, 201, 157, 131, 166, 160, 186, 125, 218, 146])
Y = np.array([592, 401, 583, 402, 495, 173, 479, 504, 510, 416, 393, 442, 317, 311, 400, 337, 423, 334, 533, 344])
SIGMA = np.array([61, 25, 38, 15, 21, 15, 27, 14, 30, 16, 14, 25, 52, 16, 34, 31, 42, 26, 16, 22])

NAMES = ("slope", "height at the mean of x", "log of the scale of the errors")
GUESS = np.array([2.0, 400.0, 0.5])
SCALE = np.array([0.35, 12.0, 0.3])  # about as wide as the posterior
NWALKERS = 8
NSTEPS = 200  # in an epoch; a sampler in a thread or a process can be stopped after each
EPOCHS_PER_FILE = 10
LOOK_AFTER = 600  # steps that each run must have grown by before the next look at all of them
THIN = 5

logger = logging.getLogger("several_samplers")
Updates = AsyncIterator[AsyncSnapshot]


def log_posterior(theta: np.ndarray) -> np.ndarray:
    """Return the log of the posterior density, up to a constant, for each row of `theta` (nwalkers, 3)."""
    slope, height, log_scale = theta.T[:, :, None]
    z = (Y - height - slope * (X - X.mean())) / (SIGMA * np.exp(log_scale))
    log_likelihood = -2 * np.log1p(z**2 / 3) - log_scale
    return log_likelihood.sum(axis=1) - 0.5 * theta[:, 2] ** 2


def seed(name: str, epoch: int) -> list[int]:
    """Return the seed of an epoch. Each has its own: a run that goes on is the one that was never stopped."""
    return [zlib.crc32(name.encode()), epoch]


def first_walkers(name: str) -> np.ndarray:
    """Scatter the walkers of a new run round a rough guess."""
    return np.random.default_rng(seed(name, 0)).normal(GUESS, 3 * SCALE, size=(NWALKERS, len(NAMES)))


# --- the samplers ---


def sample_with_emcee(backend: DefaultBackend, name: str, check: Callable[[], None]) -> None:
    """Sample epoch by epoch, from where the run ended, until `check` raises."""
    done = backend.status.epochs
    walkers = backend.load().samples["p"][:, :, -1] if done else first_walkers(name)
    sampler = emcee.EnsembleSampler(NWALKERS, len(NAMES), log_posterior, vectorize=True, moves=emcee.moves.DEMove())
    for epoch in itertools.count(done):
        check()
        rng = np.random.RandomState(seed(name, epoch))
        walkers = sampler.run_mcmc(emcee.State(walkers, random_state=rng.get_state()), NSTEPS).coords
        backend.ingest({"samples": {"p": sampler.get_chain().transpose(1, 2, 0)}})
        logger.info("%s: epoch %d handed over", name, epoch)
        sampler.reset()


async def metropolis(walkers: np.ndarray, name: str, done: int) -> AsyncGenerator[dict]:
    """Random-walk Metropolis, all walkers at once; yields one epoch after the other."""
    log_p = log_posterior(walkers)
    for epoch in itertools.count(done):
        rng = np.random.default_rng(seed(name, epoch))
        p = np.empty((*walkers.shape, NSTEPS))
        for step in range(NSTEPS):
            if step % 25 == 0:
                await anyio.lowlevel.checkpoint()  # others get their turn, and it can be cancelled
            proposed = walkers + rng.normal(scale=2.38 / np.sqrt(len(SCALE)) * SCALE, size=walkers.shape)
            log_p_proposed = log_posterior(proposed)
            is_taken = np.log(rng.random(len(walkers))) < log_p_proposed - log_p
            walkers = np.where(is_taken[:, None], proposed, walkers)
            log_p = np.where(is_taken, log_p_proposed, log_p)
            p[:, :, step] = walkers
        yield {"samples": {"p": p}}


# --- each kind as a task: it says how its run is read, and samples until it is cancelled ---


async def in_thread(folder: Path, *, task_status: TaskStatus[Updates]) -> None:
    """Sample with emcee in a thread, which asks between two epochs whether this task was cancelled."""
    async with AsyncBackend(outdir=folder, epochs_per_file=EPOCHS_PER_FILE) as backend:
        task_status.started(backend.updates(LOOK_AFTER))
        sample = partial(sample_with_emcee, backend.blocking, folder.name, anyio.from_thread.check_cancelled)
        await anyio.to_thread.run_sync(sample, limiter=anyio.CapacityLimiter(1))  # it keeps its thread: no shared one


async def as_generator(folder: Path, *, task_status: TaskStatus[Updates]) -> None:
    """Sample with an async generator, in this task."""
    async with AsyncBackend(outdir=folder, epochs_per_file=EPOCHS_PER_FILE) as backend:
        task_status.started(backend.updates(LOOK_AFTER))
        done = backend.status.epochs
        walkers = (await backend.load()).samples["p"][:, :, -1] if done else first_walkers(folder.name)
        async with aclosing(metropolis(walkers, folder.name, done)) as epochs:
            async for epoch in epochs:
                await backend.ingest(epoch)
                logger.info("%s: epoch %d handed over", folder.name, backend.status.epochs - 1)


async def in_process(folder: Path, *, task_status: TaskStatus[Updates]) -> None:
    """Sample with emcee in a process of its own. The end of its standard input tells it to stop."""
    verbose = ["--verbose"] if logger.isEnabledFor(logging.INFO) else []
    process = await anyio.open_process(
        [sys.executable, __file__, "--worker", folder, *verbose],
        stdin=subprocess.PIPE,
        stdout=None,
        stderr=None,
        start_new_session=True,  # Ctrl-C in a terminal is for this process alone
    )
    try:
        task_status.started(updates_from_elsewhere(folder))
        await process.wait()
    finally:
        with anyio.CancelScope(shield=True):  # a cancelled wait would kill it
            await process.aclose()  # ends its input, and waits
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, f"the sampler of {folder.name}")


def work(folder: Path) -> None:
    """Sample in a process of its own, until the parent says so or is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):  # who sends them to each process of a job means the parent too
        signal.signal(number, signal.SIG_IGN)

    def check() -> None:
        if select.select([sys.stdin], [], [], 0)[0]:
            sys.exit()

    with DefaultBackend(outdir=folder, epochs_per_file=EPOCHS_PER_FILE) as backend:
        sample_with_emcee(backend, folder.name, check)


async def updates_from_elsewhere(folder: Path) -> AsyncGenerator[AsyncSnapshot]:
    """Read a run that another process writes, or will soon."""
    while True:
        try:
            run = open_run(folder)
        except FileNotFoundError:
            await anyio.sleep(0.1)
        else:
            break
    async with run.asynchronous as reader:
        async for snapshot in reader.updates(LOOK_AFTER):
            yield snapshot


KINDS = {"threads": in_thread, "processes": in_process, "generators": as_generator}


# --- all of them together ---


async def sample_until_converged(folders: list[Path], args: argparse.Namespace) -> int:
    """Start a sampler for each run, and stop them all when the chains have converged. Returns the exit code."""
    async with AsyncExitStack() as stack, anyio.create_task_group() as samplers:
        feeds = []
        for folder in folders:
            updates = await samplers.start(KINDS[folder.name.partition("_")[0]], folder)
            feeds.append(await stack.enter_async_context(aclosing(updates)))
        has_converged = await watch(feeds, args)
        samplers.cancel_scope.cancel()
    return 0 if has_converged else 1


async def watch(feeds: list[Updates], args: argparse.Namespace) -> bool:
    """Look at all runs whenever each has grown, until they have converged (True) or are too long (False)."""
    while True:
        snapshots = [await anext(feed) for feed in feeds]
        n = min(snapshot.nsamples for snapshot in snapshots)  # the same steps of each run, the second half of them
        samples = [await snapshot.get_samples(burn=n // 2, thin=THIN) for snapshot in snapshots]
        p = np.concatenate([each["p"][:, :, : len(range(n // 2, n, THIN))] for each in samples])
        rhat, ess = await anyio.to_thread.run_sync(diagnose, p)
        print(f"{n} steps, {len(p)} chains: R-hat {rhat:.4f}, ESS {ess:.0f}, slope {p[:, 0].mean():.3f}", flush=True)
        if rhat <= args.rhat and ess >= args.ess:
            print("converged")
            return True
        if n >= args.max_steps:
            print(f"not converged after {n} steps")
            return False


def diagnose(p: np.ndarray) -> tuple[float, float]:
    """Return the largest R-hat and the smallest bulk ESS of all parameters, of `p` (nchain, dim, n).

    Each walker counts as a chain, as in emcee's own autocorrelation time.
    """
    from arviz_stats.base import array_stats  # noqa: PLC0415  # takes a second or more, and no worker needs it

    rhat = array_stats.rhat(p, chain_axis=0, draw_axis=2)
    ess = array_stats.ess(p, chain_axis=0, draw_axis=2)
    return rhat.max(), ess.min()


async def until_signal(sample: Callable[[], Awaitable[int]]) -> int:
    """Await `sample`, which Ctrl-C or SIGTERM cancels, and return its exit code, or that of the signal."""
    code = 0
    sampling = anyio.CancelScope()

    async def cancel_at_signal(*, task_status: TaskStatus[None]) -> None:
        nonlocal code
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            async for number in signals:  # the second one of an impatient user finds somebody who listens, too
                print(f"{number.name}: stopping the samplers", flush=True)
                code = 128 + number
                sampling.cancel()

    async with anyio.create_task_group() as tasks:
        await tasks.start(cancel_at_signal)
        with sampling:
            code = await sample()
        tasks.cancel_scope.cancel()
    return code


def report(folders: list[Path]) -> None:
    """Print what is in the run folders, and the posterior."""
    halves = []
    for folder in filter(Path.exists, folders):
        with open_run(folder) as run, run.snapshot() as snapshot:
            print(f"{folder}: {snapshot.nepochs} epochs, {snapshot.nsamples} steps of {NWALKERS} walkers")
            halves.append(snapshot.get_samples(burn=snapshot.nsamples // 2, thin=THIN, flatten=True)["p"])
    if halves:
        for name, values in zip(NAMES, np.concatenate(halves).T, strict=True):
            print(f"{name}: {values.mean():.3f} +/- {values.std():.3f}")


def main() -> int:
    """Sample, and tell what is on disk."""
    parser = argparse.ArgumentParser(description="several samplers at once, until they agree")
    add = parser.add_argument
    add("--outdir", type=Path, default=Path("demo-output/several_samplers"), help="default: %(default)s")
    add("--loop", choices=["asyncio", "trio"], default="asyncio", help="default: %(default)s")
    for kind in KINDS:
        add(f"--{kind}", type=int, default=2, metavar="N", help="how many samplers of this kind (default: %(default)s)")
    add("--rhat", type=float, default=1.01, help="stop when R-hat is at most this (default: %(default)s)")
    add("--ess", type=float, default=2000, help="and ESS is at least this (default: %(default)s)")
    add("--max-steps", type=int, default=100_000, help="give up after so many (default: %(default)s)")
    add("--verbose", action="store_true", help="log each epoch that was handed over")
    add("--worker", type=Path, help=argparse.SUPPRESS)  # the run folder of a sampler in a process
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO if args.verbose else logging.WARNING, format="%(message)s")
    if args.worker:
        work(args.worker)
        return 0
    folders = [args.outdir / f"{kind}_{i}" for kind in KINDS for i in range(getattr(args, kind))]
    sample = partial(sample_until_converged, folders, args)
    code = anyio.run(until_signal, sample, backend=args.loop)
    report(folders)
    return code


if __name__ == "__main__":
    sys.exit(main())
