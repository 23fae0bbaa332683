"""A flow on Dask: some workers sample, another one watches and stops them when they agree, a last task sums up.

Run it from a clone of the repository:

    scripts/example dask_flow

It starts a cluster of processes on this machine. Each sampling task writes a run of its own. The watching task reads
all the runs while they are written, works out R-hat and ESS over their chains, and sets a Dask event that the samplers
look at after each epoch. Kill a worker while it samples (it says which process it is): Dask gives its task to another
one, which opens the same run folder and goes on. The run is bit for bit the one that it would have been. Start the flow
again when it is done: the runs go on where they ended.

The posterior: the eight schools of Rubin (1981), as in "Bayesian Data Analysis" by Gelman et al., section 5.5.
"""

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import numpy as np
from distributed import Client, Event, LocalCluster, Worker, WorkerPlugin, wait

from posterity import DefaultBackend, open_run

EFFECT = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SIGMA = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
NAMES = ("mu", "log tau", *(f"eta {school}" for school in "ABCDEFGH"))  # the effect of a school is mu + tau * eta

NCHAIN = 16  # in each run
NDRAWS = 50  # in each epoch
THIN = 20  # steps from one draw to the next
STEP = 0.35 * np.array([5.0, *[1.0] * 9])
LOOK_EVERY_S = 0.5


# --- the sampler: random-walk Metropolis, all chains of a run at once ---


def log_posterior(theta: np.ndarray) -> np.ndarray:
    """Return the log of the posterior density, up to a constant, for each row of `theta` (nchain, 10)."""
    mu, log_tau, eta = theta[:, :1], theta[:, 1:2], theta[:, 2:]
    z = (EFFECT - mu - np.exp(log_tau) * eta) / SIGMA
    log_prior = log_tau - (mu / 5) ** 2 / 2 - np.log1p(np.exp(2 * log_tau) / 25)
    return log_prior[:, 0] - (z**2 + eta**2).sum(axis=1) / 2


def first_state(seed: int) -> dict:
    """Scatter the chains of a new run. The state of the random generator is part of the sampler's."""
    rng = np.random.default_rng(seed)
    theta = 4 * STEP * rng.normal(size=(NCHAIN, len(NAMES)))
    return {"theta": theta, "log_p": log_posterior(theta), "rng": rng.bit_generator.state}


def sample_epoch(state: dict) -> dict:
    """Go on from `state`. Returns what `ingest` takes: the draws, and the state that sampling goes on from."""
    rng = np.random.default_rng()
    rng.bit_generator.state = state["rng"]
    theta, log_p = state["theta"], state["log_p"]
    draws = np.empty((NCHAIN, len(NAMES), NDRAWS))
    for draw in range(NDRAWS):
        for _ in range(THIN):
            proposed = theta + STEP * rng.normal(size=theta.shape)
            log_p_there = log_posterior(proposed)
            is_taken = np.log(rng.random(NCHAIN)) < log_p_there - log_p
            theta = np.where(is_taken[:, None], proposed, theta)
            log_p = np.where(is_taken, log_p_there, log_p)
        draws[:, :, draw] = theta
    return {"samples": {"p": draws}, "state": {"theta": theta, "log_p": log_p, "rng": rng.bit_generator.state}}


# --- the tasks: these run on the workers ---


def sample(outdir: Path, seed: int, nepochs: int, stop: Event) -> Path:
    """Sample one run until it has `nepochs` or somebody says stop. Started again by Dask or by you, it goes on."""
    with DefaultBackend(outdir=outdir, epochs_per_file=50) as backend:
        done = backend.status.epochs
        state = backend.load().state if done else first_state(seed)
        print(f"{outdir.name}: process {os.getpid()} samples, from epoch {done}", flush=True)
        while backend.status.epochs < nepochs and not stop.is_set():
            epoch = sample_epoch(state)
            backend.ingest(epoch)  # copies the draws; the disk works behind
            state = epoch["state"]
        print(f"{outdir.name}: process {os.getpid()} stops, after epoch {backend.status.epochs}", flush=True)
    return outdir


async def watch(outdirs: Sequence[Path], max_rhat: float, min_ess: float, stop: Event) -> None:
    """Read the runs while they are written, and say stop when they agree. It runs in its worker's event loop."""
    while not await stop.is_set():
        await asyncio.sleep(LOOK_EVERY_S)
        chains = await merged(outdirs)
        if chains is None:
            continue
        rhat, ess = await asyncio.to_thread(diagnose, chains)
        print(f"{len(chains)} chains, {chains.shape[2]} draws in each: R-hat {rhat:.3f}, ESS {ess:.0f}", flush=True)
        if rhat <= max_rhat and ess >= min_ess:
            await stop.set()


async def summarise(outdirs: Sequence[Path]) -> str:
    """Mean and standard deviation of each parameter, over all the runs, as a table."""
    chains = await merged(outdirs)
    if chains is None:
        return "no draws"
    mean, sd = chains.mean(axis=(0, 2)), chains.std(axis=(0, 2))
    return "\n".join(f"{name:8s} {m:6.2f} +- {s:.2f}" for name, m, s in zip(NAMES, mean, sd, strict=True))


# --- reading several runs as one ---


async def merged(outdirs: Sequence[Path]) -> np.ndarray | None:
    """All runs as one, without the first half of each: (nruns * nchain, 10, ndraws), as long as the shortest run.

    None as long as one of them has no draws.
    """
    async with AsyncExitStack() as stack:
        try:
            runs = [await stack.enter_async_context(open_run(outdir).asynchronous) for outdir in outdirs]
        except FileNotFoundError:  # its sampler hasn't written anything yet
            return None
        snapshots = [await stack.enter_async_context(run.snapshot()) for run in runs]
        n = min(snapshot.nsamples for snapshot in snapshots)
        if n == 0:
            return None
        parts = [await snapshot.get_samples(burn=n // 2) for snapshot in snapshots]
        return np.concatenate([part["p"][:, :, : n - n // 2] for part in parts])


def diagnose(chains: np.ndarray) -> tuple[float, float]:
    """The worst R-hat and the smallest ESS (bulk and tail) of all parameters."""
    from arviz_stats.base import array_stats  # noqa: PLC0415  # it takes seconds, and only one task needs it

    theta = np.moveaxis(chains, 1, 0)  # (parameter, chain, draw)
    axes = {"chain_axis": 1, "draw_axis": 2}
    bulk, tail = array_stats.ess(theta, **axes), array_stats.ess(theta, method="tail", prob=(0.05, 0.95), **axes)
    return float(array_stats.rhat(theta, **axes).max()), float(min(bulk.min(), tail.min()))


# --- the flow ---


async def flow(client: Client, outdirs: Sequence[Path], *, nepochs: int, max_rhat: float, min_ess: float) -> str:
    """Sample the runs and watch them; returns the summary."""
    stop = Event(client=client)
    sampling = [client.submit(sample, outdir, i, nepochs, stop, pure=False) for i, outdir in enumerate(outdirs)]
    watching = client.submit(watch, outdirs, max_rhat, min_ess, stop, pure=False)
    try:
        await client.gather(sampling)  # raises what a task raised
    finally:  # whatever happened: let the tasks end, or their workers are killed when the cluster is closed
        await stop.set()
        await wait([*sampling, watching])
    await watching
    return await client.submit(summarise, sampling, pure=False)  # the futures become the folders that they return


class OnlyTheFlowIsInterrupted(WorkerPlugin):
    """A Ctrl-C in a terminal reaches the workers too: they go on, until the flow says stop."""

    def setup(self, worker: Worker) -> None:  # noqa: ARG002  # Dask's signature
        """Runs in the main thread of each worker's process."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)


async def run(args: argparse.Namespace) -> None:
    """Start a cluster on this machine, and run the flow on it."""
    outdirs = [args.outdir.absolute() / f"run_{i}" for i in range(args.runs)]
    async with (
        LocalCluster(
            n_workers=args.runs + 1,
            threads_per_worker=2,  # each task that lasts needs one, and the second takes the task of a dead worker
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",  # None would listen as well, on port 8787
            asynchronous=True,
        ) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        await client.register_plugin(OnlyTheFlowIsInterrupted())
        summary = await flow(client, outdirs, nepochs=args.epochs, max_rhat=args.max_rhat, min_ess=args.min_ess)
    print(f"\n{summary}")


def main() -> None:
    """Read the command line, and run the flow."""
    parser = argparse.ArgumentParser(description="sample on some Dask workers, watch and stop from another")
    parser.add_argument("--outdir", type=Path, default=Path("demo-output/dask_flow"), help="(default: %(default)s)")
    parser.add_argument("--runs", type=int, default=2, help="runs to sample at once (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=400, help="in each run, at most (default: %(default)s)")
    parser.add_argument("--max-rhat", type=float, default=1.01, help="stop at this R-hat (default: %(default)s)")
    parser.add_argument("--min-ess", type=float, default=5000.0, help="and at this ESS (default: %(default)s)")
    try:
        asyncio.run(run(parser.parse_args()))
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on where the runs ended")


if __name__ == "__main__":
    main()
