"""What compression does to real chains: how much smaller, how fast it is written and read, for each way.

The posterior is that of the demo: a straight line with outliers through published data, five parameters. Two samplers
explore it, many chains at once. Metropolis accepts a quarter of its steps, so most samples repeat the one before.
Hamiltonian Monte Carlo accepts nearly all, so no number is there twice. Each chain goes through a backend, in epochs.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from demo import LOWER, NAMES, UPPER, log_posterior, read_table
from posterity import DefaultBackend, open_run

Density = Callable[[np.ndarray], np.ndarray]
START = (2.24, 34.0, 0.2, 400.0, 10.0)
NADAPT = 600
NLEAPFROG = 8
WAYS = [
    {},
    {"compression": "gzip"},
    {"compression": "gzip", "shuffle": True},
    {"compression": "gzip", "compression_level": 6},
    {"compression": "zstd"},
    {"compression": "zstd", "shuffle": True},
    {"compression": "zstd", "compression_level": 9},
]


# --- the chains ---


def to_theta(u: np.ndarray) -> np.ndarray:
    """Map unbounded coordinates to the parameters, which have limits."""
    return LOWER + (UPPER - LOWER) / (1 + np.exp(-u))


def density_of(table: np.ndarray) -> Density:
    """Return the log of the posterior density in unbounded coordinates, with the transformation's determinant."""

    def density(u: np.ndarray) -> np.ndarray:
        part = 1 / (1 + np.exp(-u))
        return log_posterior(to_theta(u), table) + np.log(part * (1 - part)).sum(axis=1)

    return density


def metropolis(
    density: Density, u: np.ndarray, root: np.ndarray, nsteps: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, float]:
    """Random walks of many chains; gives all points `(nchain, dim, nsteps)`, their densities, and the acceptance."""
    nchain, dim = u.shape
    points, densities, value, naccepted = np.empty((nchain, dim, nsteps)), np.empty((nchain, 1, nsteps)), density(u), 0
    for i in range(nsteps):
        proposed = u + rng.normal(size=u.shape) @ root.T
        found = density(proposed)
        accepted = np.log(rng.random(nchain)) < found - value
        u = np.where(accepted[:, None], proposed, u)
        value = np.where(accepted, found, value)
        points[:, :, i], densities[:, 0, i] = u, value
        naccepted += int(accepted.sum())
    return points, densities, naccepted / nsteps / nchain


def gradient(density: Density, u: np.ndarray) -> np.ndarray:
    """The gradient at each point, by differences: all of them are worked out in one call."""
    nchain, dim = u.shape
    width = 1e-5
    around = u[None] + width * np.concatenate([np.eye(dim), -np.eye(dim)])[:, None]
    values = density(around.reshape(-1, dim)).reshape(2, dim, nchain)
    return (values[0] - values[1]).T / (2 * width)


def hamiltonian(
    density: Density, u: np.ndarray, root: np.ndarray, nsteps: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, float]:
    """The same by Hamiltonian Monte Carlo (Neal 2011, arXiv:1206.1901, section 5.2), in the coordinates of `root`."""
    nchain, dim = u.shape
    points, densities, value, naccepted = np.empty((nchain, dim, nsteps)), np.empty((nchain, 1, nsteps)), density(u), 0
    slope = gradient(density, u) @ root
    for i in range(nsteps):
        size = 0.25 * rng.uniform(0.8, 1.2)
        moment = rng.normal(size=u.shape)
        start = (moment**2).sum(axis=1) / 2 - value
        proposed, push = u, slope
        for _ in range(NLEAPFROG):
            moment = moment + size / 2 * push
            proposed = proposed + size * moment @ root.T
            push = gradient(density, proposed) @ root
            moment = moment + size / 2 * push
        found = density(proposed)
        accepted = np.log(rng.random(nchain)) < start - (moment**2).sum(axis=1) / 2 + found
        u, slope = np.where(accepted[:, None], proposed, u), np.where(accepted[:, None], push, slope)
        value = np.where(accepted, found, value)
        points[:, :, i], densities[:, 0, i] = u, value
        naccepted += int(accepted.sum())
    return points, densities, naccepted / nsteps / nchain


def chains(nchain: int, nsteps: int) -> dict[str, tuple[np.ndarray, np.ndarray, float]]:
    """Both chains, from points of the posterior on."""
    rng = np.random.default_rng(2010)
    density = density_of(read_table())
    part = (np.array(START) - LOWER) / (UPPER - LOWER)
    u = np.log(part / (1 - part)) + 0.01 * rng.normal(size=(nchain, len(NAMES)))
    root = np.eye(len(NAMES)) * 0.1
    for _ in range(3):
        points, _, _ = metropolis(density, u, root, NADAPT, rng)
        u = points[:, :, -1]
        late = points[:, :, NADAPT // 2 :].transpose(0, 2, 1).reshape(-1, len(NAMES))
        root = np.linalg.cholesky(np.cov(late.T))
    scale = 2.38 / np.sqrt(len(NAMES))
    for _ in range(8):  # until a quarter is accepted
        _, _, acceptance = metropolis(density, u, scale * root, 200, rng)
        scale *= np.exp(acceptance - 0.25)
    return {
        "Metropolis": metropolis(density, u, scale * root, nsteps, rng),
        "Hamiltonian": hamiltonian(density, u, root, nsteps, rng),
    }


# --- the measurement ---


def measure(
    epoch: dict[str, object], nbytes: int, options: dict[str, object], folder: Path, nepochs: int
) -> tuple[float, float, float]:
    """Write some epochs and read them: the ratio, and MB of samples for each second of a core, written and read.

    Seconds of the processor and not of the clock: so neither the disk nor who else is at work matters.
    """
    shutil.rmtree(folder, ignore_errors=True)
    start = time.process_time()
    with DefaultBackend(outdir=folder, **options) as backend:
        for _ in range(nepochs):
            backend.ingest(epoch)
        backend.flush()
        write_s = time.process_time() - start
    stored = sum(path.stat().st_size for path in folder.glob("*.h5"))
    with open_run(folder) as run:
        run.get_samples(pars=["p", "ll"])
        start = time.process_time()
        run.get_samples(pars=["p", "ll"])
        read_s = time.process_time() - start
    shutil.rmtree(folder)
    return nepochs * nbytes / stored, nepochs * nbytes / write_s / 1e6, nepochs * nbytes / read_s / 1e6


def name_of(options: dict[str, object]) -> str:
    """What a way is called in the table."""
    if not options:
        return "none"
    level = f", level {options['compression_level']}" if "compression_level" in options else ""
    return f"{options['compression']}{level}{', shuffle' if options.get('shuffle') else ''}"


def main() -> None:
    """Make the chains, try each way, print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chains", type=int, default=200, help="how many chains at once (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=4000, help="samples of each in an epoch (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=4, help="how often the epoch is written (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="the median of so many is taken (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder)")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="compression-", dir=args.folder))
    try:
        print("| chain | acceptance | compression | ratio | write, MB/s of a core | read, MB/s of a core |")
        print("|---|---|---|---|---|---|")
        for name, (points, densities, acceptance) in chains(args.chains, args.steps).items():
            theta = np.ascontiguousarray(to_theta(points.transpose(0, 2, 1)).transpose(0, 2, 1))
            epoch = {"samples": {"p": theta, "ll": densities}}
            nbytes = theta.nbytes + densities.nbytes
            for options in WAYS:
                found = [measure(epoch, nbytes, options, folder / "run", args.epochs) for _ in range(args.repeats)]
                ratio, write, read = (statistics.median(each) for each in zip(*found, strict=True))
                print(
                    f"| {name} | {acceptance:.0%} | {name_of(options)} | {ratio:.2f} | {write:.0f} | {read:.0f} |",
                    flush=True,
                )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
