"""What a sampler on an accelerator pays for keeping its samples, measured on JAX's default device.

The sampler is Hamiltonian Monte Carlo on many chains: a step is one compiled call, and the loop waits for each, as
samplers do that look at what they get. Some steps make an epoch. The same loop is run with nothing that keeps the
epochs, with posterity, with an `np.asarray` and an HDF5 file in the loop, and with a thread that does just that behind
the loop's back. The runs take turns; medians are told.

On a CPU the numbers say nothing about posterity: the sampler takes every core that the disk would need.
"""

import argparse
import gc
import json
import os
import platform
import queue
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import h5py
import jax
import jax.numpy as jnp
import numpy as np

from posterity import DefaultBackend

STEP_SIZE = 0.05
MOST_WALL = 1.02  # times the wall time without a backend
MOST_P99 = 2.0  # times the idle sampler's


class Settings(NamedTuple):
    """One measurement. `epoch_s`: how long the sampler shall need for an epoch."""

    nchain: int
    dim: int
    nsteps: int
    step_samples: int
    nepochs: int
    epoch_s: float
    nleaps: int = 1

    @property
    def epoch_bytes(self) -> int:
        """The bytes of an epoch."""
        return self.nchain * self.dim * self.nsteps * self.step_samples * 4


class Timing(NamedTuple):
    """What one run took, in seconds. `wall_s`: the sampler; `done_s`: until all is kept."""

    wall_s: float
    done_s: float
    step_p50_s: float
    step_p99_s: float
    step_max_s: float
    hand_over_p50_s: float
    hand_over_max_s: float


# ---- the sampler -----------------------------------------------------------------------------------------------------


class Sampler:
    """Hamiltonian Monte Carlo on a Gaussian with a dense precision matrix, compiled once."""

    def __init__(self, settings: Settings) -> None:
        shape = settings.nchain, settings.dim
        noise = jax.random.normal(jax.random.key(0), (settings.dim, settings.dim)) / settings.dim
        precision = jnp.eye(settings.dim) + noise @ noise.T
        self._start = jax.random.key(1), jax.random.normal(jax.random.key(2), shape)
        self.assemble = jax.jit(lambda chunks: jnp.moveaxis(jnp.concatenate(chunks), 0, 2))

        def energy(x: jax.Array, v: jax.Array) -> jax.Array:
            return 0.5 * jnp.sum(x * (x @ precision), axis=1) + 0.5 * jnp.sum(v * v, axis=1)

        def leap(_: int, point: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            x, v = point
            v = v - STEP_SIZE * (x @ precision)
            return x + STEP_SIZE * v, v

        @jax.jit
        def step(state: tuple[jax.Array, jax.Array], nleaps: int) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
            def move(state: tuple[jax.Array, jax.Array], _: None) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
                key, x = state
                key, for_v, for_u = jax.random.split(key, 3)
                v = jax.random.normal(for_v, x.shape)
                y, w = jax.lax.fori_loop(0, nleaps, leap, (x, v))
                is_taken = jnp.log(jax.random.uniform(for_u, x.shape[:1])) < energy(x, v) - energy(y, w)
                x = jnp.where(is_taken[:, None], y, x)
                return (key, x), x

            return jax.lax.scan(move, state, length=settings.step_samples)

        self._step = step

    def run(self, settings: Settings, hand_over: Callable[[jax.Array], None]) -> tuple[float, list[float], list[float]]:
        """All epochs; returns the wall time, and that of each step and of each hand-over."""
        state = self._start
        steps, hand_overs = [], []
        start = time.perf_counter()
        for _ in range(settings.nepochs):
            chunks = []
            for _ in range(settings.nsteps):
                before = time.perf_counter()
                state, chunk = jax.block_until_ready(self._step(state, settings.nleaps))
                steps.append(time.perf_counter() - before)
                chunks.append(chunk)
            p = self.assemble(chunks)
            del chunks, chunk
            before = time.perf_counter()
            hand_over(p)
            hand_overs.append(time.perf_counter() - before)
            del p
        return time.perf_counter() - start, steps, hand_overs

    def calibrated(self, settings: Settings) -> Settings:
        """The settings with as many leapfrog steps as an epoch of that length needs."""
        small = settings._replace(nepochs=1)
        nleaps = 1
        while True:
            self.run(small._replace(nleaps=nleaps), lambda _: None)
            wall_s, _, _ = self.run(small._replace(nleaps=nleaps), lambda _: None)
            if wall_s >= settings.epoch_s / 4 or nleaps >= 1 << 20:
                return settings._replace(nleaps=max(1, round(nleaps * settings.epoch_s / wall_s)))
            nleaps *= 2


# ---- what becomes of the epochs --------------------------------------------------------------------------------------


class Nothing:
    """Nobody keeps them."""

    def __init__(self, folder: Path) -> None:
        pass

    def hand_over(self, p: jax.Array) -> None:
        """Drop it; it is computed all the same."""

    def close(self) -> None:
        """Nothing to wait for."""


class Posterity:
    """Our backend, as it is by default: an epoch may be donated as soon as it was handed over."""

    def __init__(self, folder: Path) -> None:
        self._backend: DefaultBackend[object] = DefaultBackend(outdir=folder)

    def hand_over(self, p: jax.Array) -> None:
        """Hand it over."""
        self._backend.ingest_dict({"samples": {"p": p}})

    def close(self) -> None:
        """Wait until all is synced."""
        self._backend.close(None)


def write(folder: Path, number: int, p: jax.Array) -> None:
    """Fetch an epoch and write it to a file of its own, as jexplore's backend does."""
    with h5py.File(folder / f"epochs_{number}.h5", "w") as file:
        file.create_dataset(f"epoch_{number}/samples/p", data=np.asarray(p))


class InTheLoop:
    """The sampler fetches and writes."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._number = 0

    def hand_over(self, p: jax.Array) -> None:
        """Write it."""
        write(self._folder, self._number, p)
        self._number += 1

    def close(self) -> None:
        """All is written; nothing is synced."""


class NaiveThread:
    """A thread fetches and writes what is in a queue."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._queue: queue.Queue[jax.Array | None] = queue.Queue(4)
        self._thread = threading.Thread(target=self._write_all, args=[folder])
        self._thread.start()

    def _write_all(self, folder: Path) -> None:
        number = 0
        while (p := self._queue.get()) is not None:
            write(folder, number, p)
            number += 1

    def hand_over(self, p: jax.Array) -> None:
        """Queue it."""
        self._queue.put(p)

    def close(self) -> None:
        """Wait until all is written; nothing is synced."""
        self._queue.put(None)
        self._thread.join()


WAYS = {"nothing": Nothing, "posterity": Posterity, "in the loop": InTheLoop, "naive thread": NaiveThread}


# ---- measuring -------------------------------------------------------------------------------------------------------


def measure(sampler: Sampler, settings: Settings, way: str, parent: Path) -> Timing:
    """One run, in a new folder, which is removed afterwards."""
    folder = Path(tempfile.mkdtemp(dir=parent)) / "run"
    os.sync()  # what was written before must not be written now
    gc.collect()
    keeper = WAYS[way](folder)
    start = time.perf_counter()
    try:
        wall_s, steps, hand_overs = sampler.run(settings, keeper.hand_over)
    finally:
        keeper.close()
    done_s = time.perf_counter() - start
    shutil.rmtree(folder.parent)
    p50, p99 = np.percentile(steps, [50, 99])
    return Timing(wall_s, done_s, p50, p99, max(steps), float(np.median(hand_overs)), max(hand_overs))


def measure_all(
    sampler: Sampler, settings: Settings, ways: Sequence[str], nrepetitions: int, parent: Path
) -> dict[str, list[Timing]]:
    """All ways, taking turns, each repetition beginning with another one."""
    for way in ways:
        measure(sampler, settings._replace(nepochs=2), way, parent)  # compiles, and touches memory for the first time
    timings: dict[str, list[Timing]] = {way: [] for way in ways}
    for i in range(nrepetitions):
        for k in range(len(ways)):
            way = ways[(i + k) % len(ways)]
            timings[way].append(measure(sampler, settings, way, parent))
    return timings


def median(timings: Sequence[Timing]) -> Timing:
    """The median of each figure."""
    return Timing(*(float(value) for value in np.median(timings, axis=0)))


def verdicts(medians: dict[str, Timing]) -> list[dict[str, object]]:
    """What posterity promises, and whether it was kept."""
    idle, ours = medians["nothing"], medians["posterity"]
    ratios = {
        "wall time against no backend": (ours.wall_s / idle.wall_s, MOST_WALL),
        "p99 of the sampler's step against idle": (ours.step_p99_s / idle.step_p99_s, MOST_P99),
    }
    return [{"what": what, "ratio": r, "at_most": most, "is_met": r <= most} for what, (r, most) in ratios.items()]


# ---- telling ---------------------------------------------------------------------------------------------------------


def machine() -> dict[str, object]:
    """What it was measured on."""
    device = jax.devices()[0]
    return {
        "platform": device.platform,
        "device": device.device_kind,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "numpy": np.__version__,
        "system": platform.platform(),
    }


def tell(
    there: dict[str, object], settings: Settings, medians: dict[str, Timing], results: list[dict[str, object]]
) -> None:
    """Print a table."""
    print(f"{there['platform']}: {there['device']}, {there['cores']} cores, JAX {there['jax']}")
    print(
        f"{settings.nepochs} epochs of {settings.epoch_bytes / 1e6:.0f} MB, {settings.nsteps} steps each: "
        f"{settings.nchain} chains, {settings.nleaps} leapfrog steps a sample\n"
    )
    idle = medians["nothing"]
    heads = ("wall", "x", "all kept", "step p50", "p99", "x", "max", "hand-over p50", "max")
    print(f"{'':14}{heads[0]:>8}{heads[1]:>6}{heads[2]:>10}" + "".join(f"{head:>14}" for head in heads[3:]))
    for way, found in medians.items():
        print(
            f"{way:14}{found.wall_s:>6.2f} s{found.wall_s / idle.wall_s:>6.2f}{found.done_s:>8.2f} s"
            f"{found.step_p50_s * 1e3:>11.2f} ms{found.step_p99_s * 1e3:>11.2f} ms"
            f"{found.step_p99_s / idle.step_p99_s:>14.2f}{found.step_max_s * 1e3:>11.2f} ms"
            f"{found.hand_over_p50_s * 1e3:>11.2f} ms{found.hand_over_max_s * 1e3:>11.2f} ms"
        )
    print()
    for result in results:
        print(f"{result['what']}: {result['ratio']:.3f} x, at most {result['at_most']}: {_word(there, result)}")


def _word(there: dict[str, object], result: dict[str, object]) -> str:
    if there["platform"] == "cpu":
        return "no verdict, this isn't an accelerator"
    return "met" if result["is_met"] else "MISSED"


def parse() -> argparse.Namespace:
    """The command line. What isn't given depends on the device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="a file for all that was measured")
    parser.add_argument("--folder", type=Path, default=Path(), help="where epochs are written to (default: here)")
    parser.add_argument("--epochs", type=int, help="epochs of a run")
    parser.add_argument("--megabytes", type=int, help="size of an epoch")
    parser.add_argument("--epoch-s", type=float, help="how long the sampler needs for an epoch")
    parser.add_argument("--repetitions", type=int, help="runs of each way")
    return parser.parse_args()


def main() -> None:
    """Measure, tell, and save."""
    given = parse()
    there = machine()
    is_cpu = there["platform"] == "cpu"
    mega = given.megabytes or (8 if is_cpu else 128)
    nchain, dim, nsteps = (128, 32, 32) if is_cpu else (1024, 64, 32)
    settings = Settings(
        nchain=nchain,
        dim=dim,
        nsteps=nsteps,
        step_samples=max(1, round(mega * 1e6 / (4 * nchain * dim * nsteps))),
        nepochs=given.epochs or (6 if is_cpu else 12),
        epoch_s=given.epoch_s or (0.5 if is_cpu else 1.0),
    )
    sampler = Sampler(settings)
    settings = sampler.calibrated(settings)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=given.folder) as parent:
        timings = measure_all(sampler, settings, list(WAYS), given.repetitions or (3 if is_cpu else 5), Path(parent))
    medians = {way: median(found) for way, found in timings.items()}
    results = verdicts(medians)
    tell(there, settings, medians, results)
    if given.json is not None:
        found = {
            "machine": there,
            "is_accelerator": not is_cpu,
            "settings": settings._asdict() | {"epoch_bytes": settings.epoch_bytes},
            "runs": {way: [timing._asdict() for timing in runs] for way, runs in timings.items()},
            "medians": {way: timing._asdict() for way, timing in medians.items()},
            "verdicts": results,
        }
        given.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
