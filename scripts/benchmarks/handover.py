"""What a sampler waits for when it hands an epoch over."""

import random
import shutil
import time
from functools import partial
from pathlib import Path

import anyio
import numpy as np

from posterity import AsyncBackend, DefaultBackend
from posterity._system.disk import Disk

from . import epochs
from .measure import (
    Figure,
    disk_rate,
    figure,
    in_turns,
    note,
    quantile,
    quantile_figure,
    ratio_of_quantiles,
    ratios,
    seconds,
)
from .rows import Bench, row

SIZES = [1 << 20, 16 << 20, 64 << 20, 250_000_000]


def _cycles(nbytes: int, bench: Bench) -> int:
    most = {1 << 20: 400, 16 << 20: 150, 64 << 20: 80}.get(nbytes, 40)
    return most // 4 if bench.is_quick else most


def _moments(period: float) -> tuple[float, float, bool]:
    """Two random moments of a period, and which of two things comes first."""
    first, second = sorted((random.random() * period, random.random() * period))
    return first, second, random.random() < 0.5


class _Sampler:
    """What is handed over, and what that is compared with: a plain copy, or without one a look at some memory.

    That is a byte in each of 400 pages: a hand-over without a copy looks at about as many, and does little else.
    """

    _PAGE = 4096

    def __init__(self, nbytes: int, *, copy: bool) -> None:
        self.epochs = [(epochs.plain if copy else epochs.given)(nbytes, seed) for seed in range(3)]
        self._sources = [epoch["samples"]["p"] for epoch in self.epochs]
        self._mine = self._sources[0].copy()
        self._copy = copy
        self._pages = np.ones((400, self._PAGE), np.uint8)

    def compute(self, i: int) -> float:
        """Seconds of what is compared. Before the look there is a copy, as a sampler doesn't leave caches warm."""
        found = seconds(lambda: np.copyto(self._mine, self._sources[i % 3]))
        return found if self._copy else seconds(self._pages[:, 0].sum)


def _blocking(folder: Path, nbytes: int, ncycles: int, period: float, *, copy: bool) -> tuple[list[float], list[float]]:
    """Seconds of the hand-overs, and of what is compared at other random moments of the same writing."""
    sampler = _Sampler(nbytes, copy=copy)
    taken: list[float] = []
    others: list[float] = []
    with DefaultBackend(outdir=folder, burn=0) as backend:
        for i in range(-4, ncycles):
            begin = time.perf_counter()
            moments = _moments(period)
            for k, moment in enumerate(moments[:2]):
                time.sleep(max(0.0, begin + moment - time.perf_counter()))
                epoch = sampler.epochs[i % 3]
                if (k == 0) == moments[2]:
                    found = seconds(lambda epoch=epoch: backend.ingest_nowait(epoch, copy=copy))
                    if i >= 0:
                        taken.append(found)
                else:
                    found = sampler.compute(i)
                    if i >= 0:
                        others.append(found)
            time.sleep(max(0.0, begin + period - time.perf_counter()))
            while backend.status.queued_epochs > 2:  # the disk is slower than it was
                time.sleep(period / 4)
            if i % 8 == 7:
                backend.clean()  # so that the disk doesn't fill up
    return taken, others


async def _awaited(
    folder: Path, nbytes: int, ncycles: int, period: float, *, copy: bool
) -> tuple[list[float], list[float], list[float]]:
    """The same, and the gaps of the caller's loop during the hand-overs, each with its like during nothing."""
    sampler = _Sampler(nbytes, copy=copy)
    taken: list[float] = []
    others: list[float] = []
    gaps: list[float] = []
    last = [0.0]

    async def tick() -> None:
        while True:
            last[0] = time.perf_counter()
            await anyio.sleep(0.0005)
            gap.append(time.perf_counter() - last[0])

    async with AsyncBackend(outdir=folder) as backend, anyio.create_task_group() as tasks:
        gap: list[float] = []
        tasks.start_soon(tick)
        for i in range(-4, ncycles):
            begin = time.perf_counter()
            moments = _moments(period)
            for k, moment in enumerate(moments[:2]):
                await anyio.sleep(max(0.0, begin + moment - time.perf_counter()))
                if (k == 0) == moments[2]:
                    gap.clear()
                    start = time.perf_counter()
                    await backend.ingest_dict(sampler.epochs[i % 3], copy=copy)
                    found = time.perf_counter() - start
                    await anyio.sleep(0.001)
                    if i >= 0:
                        taken.append(found)
                        gaps.append(max(gap, default=0.0))
                else:
                    found = sampler.compute(i)
                    if i >= 0:
                        others.append(found)
            await anyio.sleep(max(0.0, begin + period - time.perf_counter()))
            while backend.status.queued_epochs > 2:
                await anyio.sleep(period / 4)
            if i % 8 == 7:
                await backend.clean()
        tasks.cancel_scope.cancel()
    return taken, others, gaps


@row("hand-over with a copy", without=("recycled buffers",))
def with_a_copy(bench: Bench) -> list[Figure]:
    """`ingest` of 1 MB to 250 MB, while the writer is busy at half the disk's rate."""
    found = []
    rate = disk_rate(bench.folder)
    for nbytes in SIZES:
        ncycles, period = _cycles(nbytes, bench), nbytes / (rate / 2)
        name = f"{nbytes / 1e6:.0f} MB"
        note(f"  {name}, {ncycles} hand-overs, one every {period * 1e3:.0f} ms")
        taken, copies = _blocking(bench.new_folder(), nbytes, ncycles, period, copy=True)
        found += [
            ratio_of_quantiles(f"{name}, median", taken, copies, 0.5, plus=0.0002, target="<= 1.3"),
            ratio_of_quantiles(f"{name}, p99", taken, copies, 0.99, plus=0.0002, target="<= 2"),
        ]
        taken, copies, gaps = anyio.run(partial(_awaited, bench.new_folder(), nbytes, ncycles, period, copy=True))
        found += [
            ratio_of_quantiles(f"{name}, awaited, median", taken, copies, 0.5, plus=0.0005, target="<= 1.3"),
            ratio_of_quantiles(f"{name}, awaited, p99", taken, copies, 0.99, plus=0.0005, target="<= 2"),
        ]
        if nbytes > 8e6:
            ms = [1e3 * gap for gap in gaps]
            found.append(quantile_figure(f"{name}, awaited, gap of the loop, p95", ms, 0.95, unit="ms", target="<= 10"))
            found.append(quantile_figure(f"{name}, awaited, longest gap", ms, 1.0, unit="ms"))
    return found


@row("hand-over without a copy", without=("references",))
def without_a_copy(bench: Bench) -> list[Figure]:
    """`copy=False` of arrays that can't change, while the writer is busy at half the disk's rate.

    Beside it, how long a look at a byte in each of 400 pages takes meanwhile: that is the machine's.
    """
    found = []
    rate = disk_rate(bench.folder)
    for nbytes in SIZES:
        ncycles, period = max(100, _cycles(nbytes, bench)), nbytes / (rate / 2)
        name = f"{nbytes / 1e6:.0f} MB"
        note(f"  {name}, {ncycles} hand-overs, one every {period * 1e3:.0f} ms")
        taken, looks = _blocking(bench.new_folder(), nbytes, ncycles, period, copy=False)
        waited, more, _ = anyio.run(partial(_awaited, bench.new_folder(), nbytes, ncycles, period, copy=False))
        for face, values in (("", taken), (", awaited", waited)):
            ms = [1e3 * value for value in values]
            found.append(quantile_figure(f"{name}{face}, median", ms, 0.5, unit="ms", target="<= 0.3"))
            found.append(quantile_figure(f"{name}{face}, p99", ms, 0.99, unit="ms", target="<= 2"))
        ms = [1e3 * value for value in looks + more]
        found.append(quantile_figure(f"{name}, a look at 400 pages, median", ms, 0.5, unit="ms"))
        found.append(quantile_figure(f"{name}, a look at 400 pages, p99", ms, 0.99, unit="ms"))
    return found


def _compute(for_s: float) -> None:
    """What a sampler does between two epochs: a thread that only slept would begin each of them with cold caches."""
    x = np.linspace(0, 1, 20_000)
    end = time.perf_counter() + for_s
    while time.perf_counter() < end:
        np.sin(x)


class SlowDisk(Disk):
    """A disk on which each write and sync takes longer."""

    delay_s = 0.0

    def write_at(self, fd, offset, buffers):
        time.sleep(self.delay_s)
        super().write_at(fd, offset, buffers)

    def sync(self, fd):
        time.sleep(self.delay_s)
        super().sync(fd)

    def sync_data(self, fd):
        time.sleep(self.delay_s)
        super().sync_data(fd)

    def sync_names(self):
        time.sleep(self.delay_s)
        super().sync_names()


@row("hand-over to a slow disk")
def to_a_slow_disk(bench: Bench) -> list[Figure]:
    """Each write and sync takes 50 ms longer: the hand-over doesn't, until the mailbox is full."""
    found = []
    for nbytes in (1 << 20, 16 << 20):
        for copy in (True, False):
            made = [epochs.given(nbytes, seed) if not copy else epochs.plain(nbytes, seed) for seed in range(3)]

            def median(delay_s: float, made: list = made, copy: bool = copy) -> float:
                folder = bench.new_folder()
                disk = SlowDisk(folder)
                disk.delay_s = delay_s
                taken = []
                with bench.backend_on(disk, epochs_per_file=4) as backend:
                    for i in range(16):
                        taken.append(seconds(lambda i=i: backend.ingest_nowait(made[i % 3], copy=copy)))
                        if i < 8:
                            backend.flush()  # memory that was used before; the same for both
                        else:
                            _compute(0.01)
                return quantile(taken[8:], 0.5)

            slow, quick = in_turns(bench.repetitions, partial(median, 0.05), partial(median, 0.0))
            name = f"{nbytes / 1e6:.0f} MB, {'with' if copy else 'without'} a copy"
            found.append(figure(name, ratios(slow, quick), target="<= 1.2", judged="low"))
    return found


@row("blocked at each hand-over of 64 MB", without=("references",))
def against_checkpointers(bench: Bench) -> list[Figure]:
    """`copy=False`, against the time for which orbax's AsyncCheckpointer and TensorStore block their caller."""
    import jax  # only here: it takes long
    import orbax.checkpoint as ocp
    import tensorstore as ts

    nbytes = 64 << 20
    epoch = epochs.given(nbytes)
    p = epoch["samples"]["p"]
    on_device = jax.device_put(p)
    jax.block_until_ready(on_device)
    with (
        DefaultBackend(outdir=bench.new_folder()) as backend,
        ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler()) as checkpointer,
    ):

        def ours() -> float:
            taken = seconds(lambda: backend.ingest_nowait(epoch, copy=False))
            backend.flush()
            backend.clean()
            backend.flush()
            return taken

        def orbax(array: object) -> float:
            where = bench.new_folder()
            taken = seconds(lambda: checkpointer.save(where, args=ocp.args.StandardSave({"p": array})))
            checkpointer.wait_until_finished()
            shutil.rmtree(where)
            return taken

        def tensorstore() -> float:
            where = bench.new_folder()
            spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(where)}}
            store = ts.open(spec, create=True, dtype=ts.float64, shape=p.shape).result()
            start = time.perf_counter()
            writing = store.write(p)
            writing.copy.result()
            taken = time.perf_counter() - start
            writing.result()
            shutil.rmtree(where)
            return taken

        mine, numpys, jaxs, stores = in_turns(
            2 * bench.repetitions, ours, lambda: orbax(p), lambda: orbax(on_device), tensorstore
        )
    return [
        figure("orbax AsyncCheckpointer / ours", ratios(numpys, mine), target=">= 500"),
        figure("TensorStore / ours", ratios(stores, mine), target=">= 20"),
        figure("orbax, of a JAX array on the CPU / ours", ratios(jaxs, mine)),
        figure("ours", [1e3 * t for t in mine], unit="ms"),
        figure("orbax", [1e3 * t for t in numpys], unit="ms"),
        figure("TensorStore", [1e3 * t for t in stores], unit="ms"),
    ]


@row("profile of an ingest")
def profile(bench: Bench) -> list[Figure]:
    """One hand-over call by call: 16 MB with a copy, and a jexplore-like epoch of a kilobyte."""
    found = []
    for name, epoch in (("16 MB", epochs.plain(16 << 20)), ("15 datasets", epochs.jexplore_like())):
        parts: dict[str, list[float]] = {"check": [], "ask for room": [], "own": [], "hand over": []}
        with DefaultBackend(outdir=bench.new_folder(), epochs_per_file=100) as backend:
            service = backend._service  # its steps are what is looked at
            for i in range(60):
                times = [time.perf_counter()]
                prepared = service.prepare(epoch)
                times.append(time.perf_counter())
                with service.begin_hand_over(prepared) as handing:
                    times.append(time.perf_counter())
                    held = handing.own(prepared, copy=True)
                    times.append(time.perf_counter())
                    handing.enter(prepared, held)
                    times.append(time.perf_counter())
                del held, prepared
                backend.flush()
                if i >= 10:
                    for part, start, stop in zip(parts, times, times[1:], strict=False):
                        parts[part].append(1e6 * (stop - start))
                if i % 8 == 7:
                    backend.clean()
        found += [figure(f"{name}: {part}", values, unit="us") for part, values in parts.items()]
    return found
