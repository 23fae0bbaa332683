"""How fast samples come back."""

import os
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np

from posterity import DefaultBackend, open_run
from posterity._format.checksum import data_sum

from . import epochs
from .measure import MB, Figure, figure, in_turns, note, quantile_figure, ratio_of_quantiles, ratios, seconds
from .rows import Bench, row


def _run(folder: Path, nbytes: int, n: int) -> np.ndarray:
    """Write a run of equal epochs; returns its samples."""
    made = epochs.plain(nbytes)
    with DefaultBackend(outdir=folder) as backend:
        for _ in range(n):
            backend.ingest(made)
    return np.concatenate([made["samples"]["p"]] * n, axis=2)


@row("all samples", without=("reading in parallel", "memory from a page on"))
def whole(bench: Bench) -> list[Figure]:
    """`get_samples()` of all of p, cached by the system, against a copy of the result."""
    found = []
    for nbytes, n in ((4 << 20, 100), (64 << 20, 8)):
        name = f"{n} epochs of {nbytes / 1e6:.0f} MB"
        note(f"  {name}")
        folder = bench.new_folder()
        whole = _run(folder, nbytes, n)
        cores = os.cpu_count() or 1
        pieces = np.array_split(whole.reshape(-1).view(np.uint8), 4 * cores)
        with open_run(folder) as run, ThreadPoolExecutor(cores) as pool:

            def sums(pool: ThreadPoolExecutor = pool, pieces: list = pieces) -> float:
                return seconds(lambda: list(pool.map(lambda piece: data_sum(piece.data), pieces)))

            def ours(run: object = run, verify: bool = False) -> float:
                return seconds(lambda: run.get_samples(verify=verify))

            mine, checked, copied, summed = in_turns(
                2 * bench.repetitions,
                ours,
                lambda ours=ours: ours(verify=True),
                lambda whole=whole: seconds(whole.copy),
                sums,
            )
        found += [
            figure(f"{name}: ours / copying the result", ratios(mine, copied), target="<= 1.6"),
            figure(
                f"{name}: verify=True / checksums alone (only to copy it takes longer than these)",
                ratios(checked, summed),
                target="<= 1.2",
            ),
            figure(
                f"{name}: verify=True / (reading + checksums alone)",
                [c / (m + s) for c, m, s in zip(checked, mine, summed, strict=True)],
                target="<= 1.2",
            ),
            figure(f"{name}: ours", [whole.nbytes / t / MB for t in mine], unit="MB/s"),
            figure(f"{name}: verify=True", [whole.nbytes / t / MB for t in checked], unit="MB/s"),
            figure(f"{name}: a copy", [whole.nbytes / t / MB for t in copied], unit="MB/s"),
            figure(f"{name}: checksums on all cores", [whole.nbytes / t / MB for t in summed], unit="MB/s"),
        ]
        shutil.rmtree(folder)
    return found


@row("parts of the samples", without=("partial reads",))
def parts(bench: Bench) -> list[Figure]:
    """650 MB in 10 epochs: selections against jexplore, and against the same selection on an array in memory."""
    import jexplore.backends

    folder = bench.new_folder()
    nchain, dim, n = 64, 8, 15_000
    rng = np.random.default_rng(0)
    made = {"samples": {"p": rng.random((nchain, dim, n)), "ll": rng.random((nchain, 1, n))}}
    with DefaultBackend(outdir=folder) as backend:
        for _ in range(10):
            backend.ingest(made)
    p = np.concatenate([made["samples"]["p"]] * 10, axis=2)
    ll = np.concatenate([made["samples"]["ll"]] * 10, axis=2)
    chains = np.zeros(nchain, bool)
    chains[[3, 17, 40, 63]] = True
    last = p.shape[2] - p.shape[2] // 100
    cases: list[tuple[str, dict, Callable[[], object], float]] = [
        ("one small parameter", {"pars": ["ll"]}, ll.copy, 15),
        ("every 10th sample", {"thin": 10}, p[:, :, ::10].copy, 3),
        ("4 of 64 chains", {"mask": chains}, lambda: p[chains], 12),
        ("the last 1%", {"burn": last}, p[:, :, last:].copy, 5),
    ]
    their_folder = bench.new_folder()
    their_folder.mkdir()
    theirs = jexplore.backends.DefaultBackend(outdir=str(their_folder), outfile_fmt="epochs_%d.h5")
    for _ in range(10):
        theirs.ingest(made)
    found = []
    with open_run(folder) as run:
        for name, selection, in_memory, target in cases:
            note(f"  {name}")
            mine, his, memory = in_turns(
                2 * bench.repetitions,
                lambda s=selection: seconds(lambda: run.get_samples(**s)),
                lambda s=selection: seconds(lambda: theirs.get_samples(**s)),
                lambda s=in_memory: seconds(s),
            )
            found.append(figure(f"{name}: jexplore / ours", ratios(his, mine), target=f">= {target}"))
            found.append(figure(f"{name}: ours / in memory", ratios(mine, memory), target="<= 2"))
            found.append(figure(f"{name}: ours", [1e3 * t for t in mine], unit="ms"))
    return found


def _at_a_pace(read: Callable[[], object], is_over: Callable[[], bool], every_s: float = 0.001) -> list[float]:
    """Seconds from when each read was due to when it was done; one is due each millisecond.

    Who waits for one read before asking for the next notes a long wait once, however many would have met it: Gil Tene's
    "coordinated omission".
    """
    taken = []
    due = time.perf_counter()
    while not is_over():
        time.sleep(max(0.0, due - time.perf_counter()))
        read()
        taken.append(time.perf_counter() - due)
        due += every_s
    return taken


@row("a small read during a large write")
def small_during_large(bench: Bench) -> list[Figure]:
    """10 kB, each millisecond, while an epoch of 1 GB is written, against plain h5py with its writer in a thread."""
    nbytes = 1_000_000_000
    folder = bench.new_folder()
    large = epochs.given(nbytes)
    small = epochs.plain(10_000)
    ours: list[float] = []
    _run(folder, 10_000, 1)
    with DefaultBackend(outdir=folder, max_pending_bytes=4 << 30) as backend, open_run(folder) as run:
        for _ in range(bench.repetitions):
            backend.ingest(small)
            backend.update()  # the large file of the last time is gone then, as h5py's is
            first = backend.status.epochs - 1
            backend.ingest_nowait(large, copy=False)
            durable = backend.ingest_nowait(small).durable
            ours += _at_a_pace(lambda first=first: run.get(first), lambda durable=durable: durable.done)
            backend.clean()
    shutil.rmtree(folder)
    folder.mkdir()
    theirs: list[float] = []
    with h5py.File(folder / "small.h5", "w") as file:
        file["p"] = small["samples"]["p"]
    with h5py.File(folder / "small.h5", "r") as file:
        for i in range(bench.repetitions):

            def write(i: int = i) -> None:
                with h5py.File(folder / f"large-{i}.h5", "w") as out:
                    out["p"] = large["samples"]["p"]
                fd = os.open(folder / f"large-{i}.h5", os.O_RDONLY)
                os.fsync(fd)
                os.close(fd)

            thread = threading.Thread(target=write)
            thread.start()
            theirs += _at_a_pace(lambda: file["p"][()], lambda thread=thread: not thread.is_alive())
            thread.join()
            (folder / f"large-{i}.h5").unlink()
    return [
        ratio_of_quantiles("p99.9: h5py / ours", theirs, ours, 0.999, target=">= 100"),
        quantile_figure("ours, p99.9", [1e3 * t for t in ours], 0.999, unit="ms"),
        quantile_figure("ours, median", [1e3 * t for t in ours], 0.5, unit="ms"),
        quantile_figure("h5py in a thread, p99.9", [1e3 * t for t in theirs], 0.999, unit="ms"),
        quantile_figure("h5py in a thread, median", [1e3 * t for t in theirs], 0.5, unit="ms"),
    ]


@row("large reads while the writer is at full speed")
def both(bench: Bench) -> list[Figure]:
    """What each of the two reaches beside the other, as a share of what it does alone."""
    nbytes = 64 << 20
    folder, other = bench.new_folder(), bench.new_folder()
    _run(folder, nbytes, 4)
    made = epochs.given(nbytes)

    def write(stop: Callable[[], bool]) -> float:
        """Bytes a second, written until it is to stop."""
        with DefaultBackend(outdir=other) as backend:
            start, n = time.perf_counter(), 0
            while not stop():
                backend.ingest_nowait(made, copy=False)
                backend.flush()
                n += 1
                if n % 8 == 0:
                    backend.clean()
            taken = time.perf_counter() - start
        shutil.rmtree(other)
        return n * nbytes / taken

    def read(stop: Callable[[], bool]) -> float:
        with open_run(folder) as run:
            start, n = time.perf_counter(), 0
            while not stop():
                run.get_samples()
                n += 1
            return 4 * n * nbytes / (time.perf_counter() - start)

    def for_a_while(*calls: Callable[[Callable[[], bool]], float]) -> list[float]:
        end = time.perf_counter() + 3.0
        with ThreadPoolExecutor(2) as pool:
            return [f.result() for f in [pool.submit(call, lambda: time.perf_counter() > end) for call in calls]]

    reads, writes = [], []
    for i in range(bench.repetitions + 1):
        note(f"  {i}")
        (read_alone,), (write_alone,) = for_a_while(read), for_a_while(write)
        read_beside, write_beside = for_a_while(read, write)
        if i:
            reads.append(read_beside / read_alone)
            writes.append(write_beside / write_alone)
    return [
        figure("reading beside / alone", reads, target=">= 0.5"),
        figure("writing beside / alone", writes, target=">= 0.5"),
    ]
