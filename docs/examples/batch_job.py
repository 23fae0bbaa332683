"""A batch job that ends at its time limit, and goes on exactly there when it is queued again.

Run it from a clone of the repository:

    scripts/example batch_job

It samples with emcee until the run has `--epochs` epochs. Send it SIGTERM while it does, or kill it, and start it
again: it goes on from the last epoch that was stored. Each epoch carries the whole state of the sampler, the random
generator too, so the chain is bit for bit the one that an uninterrupted job would have made.

The exit code tells the queue what to do. 0: all epochs are there; if they were there before, nothing is done. 75, or
143 for SIGTERM: more is to be sampled, queue it again. Anything else: somebody has to look. `batch_job.sbatch` is the
job script for Slurm.

The posterior: the eight schools of Rubin (1981), as in "Bayesian Data Analysis" by Gelman et al., section 5.5.
"""

import argparse
import os
import signal
import sys
import threading
from pathlib import Path

import emcee
import numpy as np

from posterity import DefaultBackend

EFFECT = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SIGMA = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])

NWALKERS, NDIM = 40, 10  # mu, log tau and eta of each school, the effect of which is mu + tau * eta
STATE = ("coords", "log_prob", "blobs", "random_state")  # what an emcee.State consists of
QUEUE_AGAIN = 75  # EX_TEMPFAIL of sysexits.h
PATIENCE_S = 600.0  # how long a full disk is waited for, once the mailbox is full too


# --- the sampler ---


def log_posterior(theta: np.ndarray) -> np.ndarray:
    """Return the log of the posterior density, up to a constant, for each row of `theta` (nwalkers, 10)."""
    mu, log_tau, eta = theta[:, :1], theta[:, 1:2], theta[:, 2:]
    z = (EFFECT - mu - np.exp(log_tau) * eta) / SIGMA
    log_prior = log_tau - (mu / 5) ** 2 / 2 - np.log1p(np.exp(2 * log_tau) / 25)
    return log_prior[:, 0] - (z**2 + eta**2).sum(axis=1) / 2


def first_state() -> emcee.State:
    """Scatter the walkers of a new run."""
    coords = np.random.default_rng(1981).normal(size=(NWALKERS, NDIM))
    return emcee.State(coords, random_state=np.random.RandomState(1981).get_state())


def epoch_of(sampler: emcee.EnsembleSampler, state: emcee.State) -> dict:
    """Return what `ingest` takes: emcee's (nsteps, nwalkers, ndim) as (nchain, ndim, nsamples), and its whole state."""
    samples = {"p": sampler.get_chain().transpose(1, 2, 0), "lp": sampler.get_log_prob().T[:, None, :]}
    return {"samples": samples, "state": {name: getattr(state, name) for name in STATE}}


def sample(backend: DefaultBackend, nepochs: int, nsteps: int, stop: threading.Event) -> None:
    """Sample until the run has `nepochs`, or until the end of the epoch in which `stop` was set."""
    done = backend.status.epochs
    state = emcee.State(**backend.load().state) if done else first_state()
    sampler = emcee.EnsembleSampler(NWALKERS, NDIM, log_posterior, vectorize=True)
    print(f"process {os.getpid()} samples, from epoch {done}", flush=True)
    for index in range(done, nepochs):
        if stop.is_set():
            return
        state = sampler.run_mcmc(state, nsteps)
        backend.ingest(epoch_of(sampler, state), timeout_s=PATIENCE_S)  # copies; the disk works behind
        sampler.reset()
        print(f"epoch {index + 1} of {nepochs}", flush=True)


# --- the job ---


def main() -> int:
    """Sample, and return the exit code."""
    parser = argparse.ArgumentParser(description="a batch job that can be stopped, killed, and started again")
    parser.add_argument("--outdir", type=Path, default=Path("demo-output/batch_job"), help="(default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=100, help="in the end (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=200, help="in each epoch (default: %(default)s)")
    parser.add_argument("--finish-epoch", action="store_true", help="on SIGTERM go on to the end of the epoch")
    args = parser.parse_args()

    stop = threading.Event()
    if args.finish_epoch:  # ours: it only takes a note, and the job ends by itself
        signal.signal(signal.SIGTERM, lambda *_: stop.set())
    # posterity's own: writes what was ingested, and then the process dies of SIGTERM; the epoch being sampled is lost
    with DefaultBackend(outdir=args.outdir, epochs_per_file=10, flush_on_sigterm=not args.finish_epoch) as backend:
        if backend.status.epochs < args.epochs:
            sample(backend, args.epochs, args.steps, stop)
        is_done = backend.status.epochs >= args.epochs
    print(f"all of the {args.epochs} epochs are there" if is_done else "more is to be sampled", flush=True)
    return 0 if is_done else QUEUE_AGAIN


if __name__ == "__main__":
    sys.exit(main())
