"""What the backend costs a sampler that runs beside it."""

import resource
import shutil
import statistics
import threading
import time

import numpy as np

from posterity import DefaultBackend

from . import epochs
from .handover import SlowDisk
from .measure import MB, Figure, Ticker, figure, note, seconds
from .rows import Bench, row

RATE = 50e6  # bytes a second that the sampler produces


class Sampler:
    """Computes for a while and gives an epoch; how much it computes is fixed, and how long that takes is measured."""

    def __init__(self, nbytes: int, ncores: int, *, holds_gil: bool) -> None:
        self.epoch = epochs.plain(nbytes)
        self.ncores = ncores
        self.holds_gil = holds_gil
        rng = np.random.default_rng(0)
        self._x = [rng.random(40_000) for _ in range(ncores)]
        self._per_epoch = 1
        busy = nbytes / RATE
        once = min(seconds(lambda: self._compute(20)) for _ in range(5)) / 20
        self._per_epoch = max(1, int(busy / once))

    def _compute(self, n: int) -> None:
        threads = [threading.Thread(target=self._one, args=(x, n)) for x in self._x[1:]]
        for thread in threads:
            thread.start()
        self._one(self._x[0], n)
        for thread in threads:
            thread.join()

    def _one(self, x: np.ndarray, n: int) -> None:
        for _ in range(n):
            if self.holds_gil:
                sum(range(2000))
            else:
                np.exp(np.sin(x))  # NumPy lets go of the GIL in it

    def run(self, backend: DefaultBackend | None, nepochs: int) -> float:
        """Seconds for some epochs."""
        start = time.perf_counter()
        for _ in range(nepochs):
            self._compute(self._per_epoch)
            if backend is not None:
                backend.ingest_nowait(self.epoch)
        return time.perf_counter() - start


@row("what the backend costs a sampler")
def cost(bench: Bench) -> list[Figure]:
    """A sampler that gives 50 MB/s in epochs of 16 MB: the CPU time of our threads, and the wall time."""
    found = []
    nbytes, nepochs = 16 << 20, 8
    for name, ncores, holds_gil, target in [
        ("both cores busy, without the GIL", 2, False, "<= 1.05"),
        ("one core busy, without the GIL", 1, False, "<= 1.02"),
        ("one core busy, holding the GIL", 1, True, None),
    ]:
        note(f"  {name}")
        sampler = Sampler(nbytes, ncores, holds_gil=holds_gil)
        folder = bench.new_folder()
        ratios_, cpu = [], []
        with DefaultBackend(outdir=folder) as backend:
            for i in range(2 * bench.repetitions + 1):
                order = [None, backend] if i % 2 else [backend, None]
                taken = {}
                for which in order:
                    before = _other_cpu()
                    taken[which is not None] = sampler.run(which, nepochs)
                    if which is not None:
                        cpu.append((_other_cpu() - before) / (nepochs * nbytes / MB))
                        backend.flush()
                        backend.clean()
                        backend.flush()
                if i:
                    ratios_.append(taken[True] / taken[False])
        shutil.rmtree(folder)
        found.append(figure(f"{name}: wall time against none", ratios_, target=target, judged="low"))
        if ncores == 1:
            found.append(figure(f"{name}: CPU of our threads", [1e3 * c for c in cpu[1:]], unit="ms/MB", target="<= 2"))
    return found


def _other_cpu() -> float:
    """CPU seconds of all threads but this one."""
    mine = resource.getrusage(resource.RUSAGE_THREAD)
    return time.process_time() - mine.ru_utime - mine.ru_stime


@row("longest gap of a sampling thread")
def gap(bench: Bench) -> list[Figure]:
    """A Python thread while epochs of 256 MB are written and each I/O call takes 100 ms longer, as a share of that."""
    nbytes = (256 << 20) if not bench.is_quick else (64 << 20)
    delay = 0.1
    made = epochs.given(nbytes)
    with_us, idle = [], []
    for _ in range(bench.repetitions):
        folder = bench.new_folder()
        disk = SlowDisk(folder)
        with Ticker() as ticker:
            time.sleep(1.0)
        idle.append(ticker.longest / delay)
        disk.delay_s = delay
        with bench.backend_on(disk) as backend:
            with Ticker() as ticker:
                backend.ingest_nowait(made, copy=False)
                backend.flush()
            with_us.append(ticker.longest / delay)
        shutil.rmtree(folder)
    return [
        figure("longest gap / delay", with_us, target="<= 0.1"),
        figure("the same, with nothing being written", idle),
    ]


@row("set_burn during a large write")
def burning(bench: Bench) -> list[Figure]:
    """How long `set_burn` takes while the writer is inside a large write."""
    nbytes = (256 << 20) if not bench.is_quick else (64 << 20)
    made = epochs.given(nbytes)
    taken = []
    folder = bench.new_folder()
    with DefaultBackend(outdir=folder) as backend:
        for _ in range(3 * bench.repetitions):
            receipt = backend.ingest_nowait(made, copy=False)
            while not receipt.durable.done:
                time.sleep(0.002)
                burn = backend.burn + 1
                taken.append(1e3 * seconds(lambda burn=burn: backend.set_burn(burn)))
            backend.clean()
            backend.flush()
    note(f"  {len(taken)} of them")
    found = figure("median", taken, unit="ms", target="<= 2")
    p99 = statistics.quantiles(taken, n=100)[98]
    return [found, figure("p99", [p99], unit="ms", target="<= 2"), figure("longest", [max(taken)], unit="ms")]
