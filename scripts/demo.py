"""A real sampler on real data: sampled, killed half-way, continued, and read by a fresh process.

The data are table 1 of Hogg, Bovy & Lang (2010), "Data analysis recipes: Fitting a model to data",
arXiv:1008.4686: 20 points, four of which don't lie on the line. The model is the paper's mixture of a straight
line and outliers (section 3). The sampler is emcee. All samples go through `posterity.DefaultBackend`.

Three processes work on one run folder, one after the other:

1. samples the first half, calls `flush()`, and is killed with SIGKILL;
2. opens the same folder, continues from the last sample that was stored, and closes the run;
3. opens the run to read, prints the posterior beside the published value, and saves two pictures.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import emcee
import numpy as np

from figures import save_pairs, save_trace
from posterity import DefaultBackend, Epoch

TABLE = Path(__file__).parent / "data" / "hogg2010_table1.csv"
PUBLISHED = {"m": ("2.24", "0.11"), "b": ("34", "18")}
"""Exercise 1 of the paper: weighted least squares on the 16 points that are no outliers (ID 5 to 20)."""

NAMES = ("m", "b", "P_b", "Y_b", "log V_b")
LOWER = np.array([-5.0, -500.0, 0.0, 0.0, np.log(10.0**2)])
UPPER = np.array([5.0, 500.0, 0.5, 1000.0, np.log(500.0**2)])
"""The priors are flat between these limits. P_b < 1/2 says that outliers are the minority."""

NSTEPS = 500
"""Steps in an epoch."""
NEPOCHS = 24
NWALKERS = 1000
NBURN = 2 * NSTEPS
"""Steps that the walkers need to forget where they started: over ten autocorrelation times."""


# --- the data and the model ---


def read_table() -> np.ndarray:
    """Read the published table: a structured array with the fields ID, x, y, sigma_y, sigma_x and rho_xy."""
    return np.genfromtxt(TABLE, delimiter=",", names=True, skip_header=2)


def least_squares(table: np.ndarray) -> dict[str, tuple[float, float]]:
    """Fit y = m x + b by weighted least squares (section 1): each parameter's value and error."""
    design = np.column_stack([table["x"], np.ones(len(table))])
    weight = table["sigma_y"] ** -2.0
    covariance = np.linalg.inv(design.T @ (weight[:, None] * design))
    values = covariance @ (design.T @ (weight * table["y"]))
    errors = np.sqrt(np.diag(covariance))
    return {"m": (values[0], errors[0]), "b": (values[1], errors[1])}


def log_posterior(theta: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Return the log of the posterior density, up to a constant, for each row of `theta` (nwalkers, 5).

    Each point is from the line with probability 1 - P_b, else from a Gaussian with mean Y_b and variance V_b
    (section 3). Priors: flat in all five parameters between LOWER and UPPER.
    """
    m, b, p_bad, y_bad, log_v_bad = theta.T[:, :, None]
    allowed = np.all((theta > LOWER) & (theta < UPPER), axis=1)
    variance = table["sigma_y"] ** 2
    variance_bad = variance + np.exp(log_v_bad)
    good = -0.5 * ((table["y"] - m * table["x"] - b) ** 2 / variance + np.log(variance))
    bad = -0.5 * ((table["y"] - y_bad) ** 2 / variance_bad + np.log(variance_bad))
    with np.errstate(divide="ignore", invalid="ignore"):  # P_b outside of (0, 1) is cut away in the last line
        points = np.logaddexp(np.log1p(-p_bad) + good, np.log(p_bad) + bad)
    return np.where(allowed, points.sum(axis=1), -np.inf)


# --- between emcee and posterity ---


def first_state(nwalkers: int) -> emcee.State:
    """Scatter the walkers round a rough guess."""
    rng = np.random.default_rng(2010)
    coords = rng.normal([2.0, 50.0, 0.2, 400.0, 9.0], [0.2, 20.0, 0.02, 50.0, 0.5], size=(nwalkers, 5))
    return emcee.State(coords, random_state=np.random.RandomState(2010).get_state())


def continued_state(epoch: Epoch) -> emcee.State:
    """Return where the newest stored epoch ended: emcee goes on as if it had never stopped."""
    return emcee.State(
        epoch.samples["p"][:, :, -1],
        log_prob=epoch.samples["lp"][:, 0, -1],
        random_state=epoch.state["random_state"],
    )


def epoch_of(sampler: emcee.EnsembleSampler, state: emcee.State) -> dict:
    """Return what `ingest` takes: emcee's (nsteps, nwalkers, ndim) as (nchain, ndim, nsamples)."""
    return {
        "samples": {
            "p": sampler.get_chain().transpose(1, 2, 0),
            "lp": sampler.get_log_prob().T[:, None, :],
        },
        "state": {"random_state": state.random_state},
    }


def sample(outdir: Path, *, stop_at: int, fresh: bool) -> None:
    """Sample epoch by epoch until the run has `stop_at` of them."""
    table = read_table()
    with DefaultBackend(outdir=outdir, epochs_per_file=4, mode="w" if fresh else "a") as backend:
        done = 0 if fresh else backend.status.epochs
        state = first_state(NWALKERS) if fresh else continued_state(backend.load())
        say("a new run" if fresh else f"continuing after {done} epochs")
        sampler = emcee.EnsembleSampler(NWALKERS, len(NAMES), log_posterior, args=[table], vectorize=True)
        progress = Progress(backend, stop_at)
        for _ in range(done, stop_at):
            state = sampler.run_mcmc(state, NSTEPS)
            backend.ingest(epoch_of(sampler, state))  # copies the samples; doesn't wait for the disk
            sampler.reset()  # posterity has them: emcee's own memory can go
            progress.show()
        backend.flush()  # all that was ingested now survives a power cut
        progress.end()
        if stop_at < NEPOCHS:
            say(f"flush() returned after {stop_at} epochs; now it kills itself (SIGKILL)")
            os.kill(os.getpid(), signal.SIGKILL)
        backend.set_burn(NBURN)
    say("the run is closed")


# --- what the screen shows ---


def say(what: str) -> None:
    """Print a line that tells which process it is from."""
    print(f"process {os.getpid()}: {what}", flush=True)


def effective_samples(backend: DefaultBackend, *, burn: int = 0) -> tuple[float, float]:
    """Return ESS and autocorrelation time in steps of the slowest parameter so far.

    Reads every tenth walker and every fifth step: enough for the time, and cheap enough to do while sampling.
    """
    thin = 5
    p = backend.get_samples(burn=burn, thin=thin, mask=np.arange(0, NWALKERS, 10))["p"]
    tau = thin * emcee.autocorr.integrated_time(p.transpose(2, 0, 1), tol=0).max()
    return NWALKERS * thin * p.shape[2] / tau, tau


class Progress:
    """A live line: rewritten on a terminal, else a new line every few seconds."""

    def __init__(self, backend: DefaultBackend, stop_at: int) -> None:
        self._backend = backend
        self._stop_at = stop_at
        self._live = sys.stdout.isatty()
        self._ess = "..."
        self._next = 0.0

    def show(self) -> None:
        """Show the line, if it is time to."""
        if time.monotonic() >= self._next:
            self._write()
            self._next = time.monotonic() + (0.5 if self._live else 3.0)

    def end(self) -> None:
        """Show the line for the last time."""
        self._write()
        if self._live:
            print()

    def _write(self) -> None:
        status = self._backend.status
        if status.samples > 2 * NBURN:
            self._ess = f"{effective_samples(self._backend, burn=NBURN)[0]:,.0f}"
        line = (
            f"epoch {status.epochs:2d}/{self._stop_at}"
            f" | queue {status.queued_epochs}, {status.queued_bytes / 1e6:.0f} MB"
            f" | written {status.bytes_written / 1e6:.0f} MB, {status.bytes_per_s / 1e6:.1f} MB/s"
            f" | ESS {self._ess} of {NWALKERS * status.samples:,}"
        )
        if self._live:
            print("\r" + line[: shutil.get_terminal_size().columns - 1] + "\x1b[K", end="", flush=True)
        else:
            print(line, flush=True)


# --- reading the run ---


def report(outdir: Path) -> None:
    """Print the posterior beside the published value, and save the trace and the pair picture."""
    with DefaultBackend(outdir=outdir) as backend:
        ess, tau = effective_samples(backend)
        chain = backend.get_samples(thin=10)["p"]
        status = backend.status
    flat = DefaultBackend.flatten_samples({"p": chain})["p"]
    say(f"read {status.epochs} epochs, {status.samples:,} samples for each of {len(chain)} walkers")
    print(f"autocorrelation time {tau:.0f} steps, effective samples {ess:,.0f}\n")
    print(f"{'':8s} {'posterior, all 20 points':28s} published, points 5 to 20")
    for name, (low, median, high) in zip(NAMES, np.percentile(flat, [16, 50, 84], axis=0).T, strict=True):
        ours = f"{median:.2f} +{high - median:.2f} -{median - low:.2f}"
        print(f"{name:8s} {ours:28s} {' +/- '.join(PUBLISHED.get(name, ()))}".rstrip())
    save_trace(outdir / "trace.png", chain, NAMES)
    save_pairs(outdir / "pairs.png", flat, NAMES, {name: float(value) for name, (value, _) in PUBLISHED.items()})
    print(f"saved {outdir / 'trace.png'} and {outdir / 'pairs.png'}")


# --- the three processes ---


def check_table() -> None:
    """Stop unless the data file reproduces the paper's exercise 1, digit by digit."""
    table = read_table()
    fit = least_squares(table[table["ID"] >= 5])
    (m, m_error), (b, b_error) = fit["m"], fit["b"]
    ours = f"y = ({m:.2f} +/- {m_error:.2f}) x + ({b:.0f} +/- {b_error:.0f})"
    published = "y = (2.24 +/- 0.11) x + (34 +/- 18)"
    print(f"least squares on points 5 to 20: {ours}\npublished:                       {published}")
    if ours != published:
        sys.exit(f"{TABLE} is not the published table")


def run_process(task: str, outdir: Path, *, expect: int) -> None:
    """Run one of the tasks in a process of its own, and stop if it doesn't end as expected."""
    print(flush=True)
    code = subprocess.run([sys.executable, __file__, task, "--outdir", outdir], check=False).returncode
    if code != expect:
        sys.exit(f"the {task!r} process ended with {code}, not with {expect}")


def main() -> None:
    """Run the whole demo, or one of its processes."""
    parser = argparse.ArgumentParser(description="a real sampler on real data, stored by posterity")
    parser.add_argument("task", nargs="?", choices=["all", "start", "continue", "report"], default="all")
    outdir_help = "the run folder; an older run in it is replaced (default: %(default)s)"
    parser.add_argument("--outdir", type=Path, default=Path("demo-output"), help=outdir_help)
    args = parser.parse_args()
    match args.task:
        case "start":
            sample(args.outdir, stop_at=NEPOCHS // 2, fresh=True)
        case "continue":
            sample(args.outdir, stop_at=NEPOCHS, fresh=False)
        case "report":
            report(args.outdir)
        case "all":
            began = time.monotonic()
            check_table()
            run_process("start", args.outdir, expect=-signal.SIGKILL)
            run_process("continue", args.outdir, expect=0)
            run_process("report", args.outdir, expect=0)
            print(f"\nall done in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
