"""How fast epochs get to the disk, and what memory that takes."""

import os
import shutil
import time
from pathlib import Path

import h5py
import numpy as np

from posterity import DefaultBackend

from . import epochs
from .measure import MB, Figure, figure, in_turns, note, peak_memory, ratios, raw_write, resident_bytes, seconds
from .rows import Bench, row


@row("writing large epochs", without=("early write-back",))
def large(bench: Bench) -> list[Figure]:
    """Epochs of 16 MB and more, written, checksummed and synced, against raw writes of the same bytes."""
    found = []
    for nbytes, n in ((16 << 20, 8), (64 << 20, 4), (256 << 20, 2)):
        made = epochs.given(nbytes)
        data = made["samples"]["p"]
        folder = bench.new_folder()

        def ours(made: dict = made, n: int = n, folder: Path = folder) -> float:
            with DefaultBackend(outdir=folder, max_pending_bytes=4 << 30) as backend:
                start = time.perf_counter()
                for _ in range(n):
                    backend.ingest_nowait(made, copy=False)
                backend.flush()
                taken = time.perf_counter() - start
            shutil.rmtree(folder)
            return taken

        def raw(early: bool, data: np.ndarray = data, n: int = n) -> float:
            return raw_write(bench.folder, data, n, early=early)

        def plain_h5py(data: np.ndarray = data, n: int = n) -> float:
            paths = [bench.folder / f"plain-{i}.h5" for i in range(n)]
            start = time.perf_counter()
            for path in paths:
                with h5py.File(path, "w") as file:
                    file["p"] = data
                fd = os.open(path, os.O_RDONLY)
                os.fsync(fd)
                os.close(fd)
            taken = time.perf_counter() - start
            for path in paths:
                path.unlink()
            return taken

        name = f"{nbytes / 1e6:.0f} MB"
        note(f"  {name}")
        mine, late, early, theirs = in_turns(
            bench.repetitions, ours, lambda raw=raw: raw(False), lambda raw=raw: raw(True), plain_h5py
        )
        best = [min(pair) for pair in zip(late, early, strict=True)]
        found.append(figure(f"{name}: raw / ours", ratios(best, mine), target=">= 0.9"))
        found.append(figure(f"{name}: plain h5py and fsync / ours", ratios(theirs, mine)))
        found.append(figure(f"{name}: ours", [n * nbytes / t / MB for t in mine], unit="MB/s"))
        found.append(figure(f"{name}: raw", [n * nbytes / t / MB for t in best], unit="MB/s"))
    return found


@row("memory while one epoch of 256 MB is written")
def no_second_copy(bench: Bench) -> list[Figure]:
    """The epoch is given away; what is needed beside it, as a share of its size."""
    nbytes = 256 << 20
    made = epochs.given(nbytes)
    shares = []
    for _ in range(bench.repetitions):
        folder = bench.new_folder()
        with DefaultBackend(outdir=folder) as backend, peak_memory() as found:
            backend.ingest_nowait(made, copy=False)
            backend.flush()
        shares.append((found[-1] - found[0]) / nbytes)
        shutil.rmtree(folder)
    return [figure("beside the epoch / its size", shares, target="<= 0.1")]


@row("memory while ingesting faster than the disk")
def bounded(bench: Bench) -> list[Figure]:
    """`inmem_epochs=0`: at most the mailbox's bound, recycled buffers too, and two epochs, over the idle process."""
    nbytes, bound = 32 << 20, 256 << 20
    idle = resident_bytes()
    source = epochs.plain(nbytes)
    over = []
    for _ in range(3):
        folder = bench.new_folder()
        start = resident_bytes()
        with DefaultBackend(outdir=folder, max_pending_bytes=bound) as backend, peak_memory() as found:
            for i in range(48):
                backend.ingest(source)
                if i % 16 == 15:
                    backend.clean()
        over.append((found[-1] - min(start, idle + nbytes)) / (bound + 2 * nbytes))
        shutil.rmtree(folder)
    return [figure("over the idle process / (bound + two epochs)", over, target="<= 1")]


def _flushed(folder: Path, made: dict, n: int, **options: object) -> float:
    with DefaultBackend(outdir=folder, **options) as backend:
        start = time.perf_counter()
        for _ in range(n):
            backend.ingest(made)
        backend.flush()
        taken = time.perf_counter() - start
    shutil.rmtree(folder)
    return taken / n


def _jexplore(folder: Path, made: dict, n: int, epochs_per_file: int) -> float:
    import jexplore.backends  # only where it is installed

    folder.mkdir()
    backend = jexplore.backends.DefaultBackend(
        outdir=str(folder), outfile_fmt="epochs_%d.h5", epochs_per_file=epochs_per_file, save_stats=True
    )
    start = time.perf_counter()
    for _ in range(n):
        backend.ingest(made)
    backend.update()
    taken = time.perf_counter() - start
    shutil.rmtree(folder)
    return taken / n


@row(
    "epochs of 1 kB",
    without=("templates of headers", "epochs laid out together", "recognised epochs", "shared syncs"),
)
def tiny(bench: Bench) -> list[Figure]:
    """Sustained, flushed at the end, against jexplore; both as they come, jexplore without any sync."""
    only_p = {"samples": {"p": epochs.samples(1000, nchain=4, dim=3)}}
    found = []
    cases = [
        ("15 datasets, 1 a file", epochs.jexplore_like(), 1, ">= 5"),
        ("15 datasets, 100 a file", epochs.jexplore_like(), 100, ">= 20"),
        ("only p, 100 a file", only_p, 100, ">= 50"),
    ]
    for name, made, epochs_per_file, target in cases:
        note(f"  {name}")
        folder = bench.new_folder()
        n = 2000 if not bench.is_quick else 500
        mine, theirs = in_turns(
            2 * bench.repetitions,
            lambda: _flushed(folder, made, n, epochs_per_file=epochs_per_file),  # noqa: B023  # called at once
            lambda: _jexplore(folder, made, 100, epochs_per_file),  # noqa: B023
        )
        found.append(figure(f"{name}: jexplore / ours", ratios(theirs, mine), target=target))
        found.append(figure(f"{name}: ours, each", [1e3 * t for t in mine], unit="ms"))
        found.append(figure(f"{name}: jexplore, each", [1e3 * t for t in theirs], unit="ms"))
    return found


@row("a step of emcee")
def emcee_step(bench: Bench) -> list[Figure]:
    """32 walkers in 5 dimensions: what storing one step costs emcee's sampler, against its HDFBackend."""
    import emcee
    from emcee.state import State

    from posterity.emcee import EmceeBackend

    rng = np.random.default_rng(0)
    random_state = np.random.RandomState(0).get_state()  # emcee's own
    state = State(rng.random((32, 5)), log_prob=np.zeros(32), random_state=random_state)
    accepted = np.ones(32, bool)

    def each(backend: emcee.backends.Backend, n: int) -> float:
        backend.reset(32, 5)
        backend.grow(n, None)
        return seconds(lambda: [backend.save_step(state, accepted) for _ in range(n)]) / n

    def theirs() -> float:
        path = bench.folder / "emcee.h5"
        taken = each(emcee.backends.HDFBackend(str(path)), 100)
        path.unlink()
        return taken

    def ours() -> float:
        """Steps enough for several epochs: what their hand-over costs is shared by all of them."""
        folder = bench.new_folder()
        with EmceeBackend(folder) as backend:
            taken = each(backend, 10_000)
        shutil.rmtree(folder)
        return taken

    mine, his = in_turns(bench.repetitions, ours, theirs)
    return [
        figure("HDFBackend / ours", ratios(his, mine), target=">= 50"),
        figure("ours", [1e6 * t for t in mine], unit="us"),
        figure("HDFBackend", [1e6 * t for t in his], unit="us"),
    ]
