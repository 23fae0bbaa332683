"""Comparing two things in one run on a noisy machine: in turns, again and again, as a ratio, with its interval."""

import contextlib
import math
import os
import random
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Self

import msgspec
import numpy as np

MB = 1_000_000


class Figure(msgspec.Struct, kw_only=True):
    """One line of the table. `low`, `high`: the interval of `value`, 95% where there are values enough.

    `target`: a sign and a number, "<= 1.3"; None: it is only told, for comparison.
    """

    what: str
    value: float
    low: float
    high: float
    unit: str = "x"
    target: str | None = None
    judged: str = "value"  # or "low", "high": only this end of the interval is held against the target
    values: list[float] = []

    @property
    def verdict(self) -> str:
        """Whether the target is "met" or missed ("short"); "open": the interval holds it, so this run can't tell."""
        if self.target is None:
            return ""
        ends = [self.judged] if self.judged != "value" else ["low", "high"]
        found = {self.meets(getattr(self, end)) for end in ends}
        return "open" if len(found) == 2 else "met" if found.pop() else "short"

    def meets(self, value: float) -> bool:
        """Whether a value is on the good side of the target."""
        assert self.target is not None
        sign, number = self.target.split()
        return value <= float(number) if sign == "<=" else value >= float(number)

    def is_worse_than(self, other: "Figure") -> bool:
        """Whether it is farther from the target than another one, beyond doubt."""
        assert self.target is not None
        return self.low > other.high if self.target.startswith("<") else self.high < other.low


def quantile(values: Sequence[float], q: float) -> float:
    return float(np.quantile(values, q))


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """What the median is in, with 95%, whatever the distribution: two of the values, counted from both ends.

    Of fewer than six values it is the smallest and the largest. (Conover, Practical Nonparametric Statistics, 3.2.)
    """
    n = len(values)
    ordered = sorted(values)
    outside, k = 0.0, 0
    while True:
        outside += math.comb(n, k) / 2**n
        if 2 * outside > 0.05 or k >= (n - 1) // 2:
            break
        k += 1
    k = max(k - 1, 0) if 2 * outside > 0.05 and k else k
    return ordered[k], ordered[n - 1 - k]


def figure(what: str, values: Sequence[float], **more: object) -> Figure:
    """The median of some repetitions."""
    low, high = median_interval(values)
    return Figure(
        what=what, value=statistics.median(values), low=low, high=high, values=[float(v) for v in values], **more
    )


def in_turns(repetitions: int, *things: Callable[[], float]) -> list[list[float]]:
    """Do each thing once in each repetition, in another order each time; returns what each one gave."""
    found: list[list[float]] = [[] for _ in things]
    order = list(range(len(things)))
    for i in range(repetitions + 1):
        random.shuffle(order)
        for k in order:
            value = things[k]()
            if i:  # the first round warms up
                found[k].append(value)
    return found


def ratios(values: Sequence[float], others: Sequence[float]) -> list[float]:
    return [value / other for value, other in zip(values, others, strict=True)]


def ratio_of_quantiles(
    what: str, values: Sequence[float], others: Sequence[float], q: float, *, plus: float = 0.0, **more: object
) -> Figure:
    """`(quantile of values - plus) / quantile of others`, with an interval by the bootstrap."""
    rng = np.random.default_rng(0)

    def ratio(these: Sequence[float], those: Sequence[float]) -> float:
        return max(0.0, quantile(these, q) - plus) / quantile(those, q)

    drawn = [ratio(rng.choice(values, len(values)), rng.choice(others, len(others))) for _ in range(400)]
    return Figure(
        what=what, value=ratio(values, others), low=quantile(drawn, 0.025), high=quantile(drawn, 0.975), **more
    )


def quantile_figure(what: str, values: Sequence[float], q: float, **more: object) -> Figure:
    rng = np.random.default_rng(0)
    drawn = [quantile(rng.choice(values, len(values)), q) for _ in range(400)]
    low, high = quantile(drawn, 0.025), quantile(drawn, 0.975)
    return Figure(what=what, value=quantile(values, q), low=low, high=high, **more)


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def raw_write(folder: Path, data: np.ndarray, nfiles: int = 1, *, early: bool) -> float:
    """Seconds to write some bytes to new files and sync each; `early`: the disk is told to begin after each 8 MB."""
    view = data.reshape(-1).view(np.uint8).data
    slab = 8 << 20 if early else len(view)
    paths = [folder / f"raw-{i}" for i in range(nfiles)]
    start = time.perf_counter()
    for path in paths:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            done = 0
            while done < len(view):
                begin = done
                done += os.pwrite(fd, view[done : done + slab], done)
                if early:
                    start_writeback(fd, begin, done - begin)
            os.fsync(fd)
        finally:
            os.close(fd)
    taken = time.perf_counter() - start
    for path in paths:
        path.unlink()
    return taken


def start_writeback(fd: int, offset: int, nbytes: int) -> None:
    import ctypes  # only here, and not on every system

    libc = ctypes.CDLL(None, use_errno=True)
    libc.sync_file_range(fd, ctypes.c_int64(offset), ctypes.c_int64(nbytes), 2)


def disk_rate(folder: Path, nbytes: int = 256 << 20) -> float:
    """Bytes a second that go to this disk and are synced."""
    data = np.random.default_rng(0).random(nbytes // 8)
    return nbytes / statistics.median(raw_write(folder, data, early=True) for _ in range(3))


class Ticker:
    """A thread that does nothing but Python, and notes how long it was held up: what a sampler would feel."""

    def __init__(self) -> None:
        self.gaps: list[float] = []
        self._stops = False
        self._thread = threading.Thread(target=self._tick)

    def _tick(self) -> None:
        last = time.perf_counter()
        while not self._stops:
            now = time.perf_counter()
            if now - last > 1e-3:
                self.gaps.append(now - last)
            last = now

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stops = True
        self._thread.join()

    @property
    def longest(self) -> float:
        return max(self.gaps, default=0.0)


def resident_bytes() -> int:
    """The memory of this process, all of it that is its own."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise OSError("the system doesn't tell the memory of a process")


@contextlib.contextmanager
def peak_memory() -> Iterator[list[int]]:
    """The most memory within the block, looked at every millisecond, as the last item."""
    found = [resident_bytes()]
    stops = threading.Event()

    def look() -> None:
        while not stops.wait(0.001):
            found.append(max(found[-1], resident_bytes()))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        stops.set()
        thread.join()


def thread_seconds(is_ours: Callable[[str], bool]) -> float:
    """CPU seconds of this process's threads whose names are chosen (Linux: /proc/self/task)."""
    tick = os.sysconf("SC_CLK_TCK")
    total = 0.0
    names = {thread.native_id: thread.name for thread in threading.enumerate()}
    for task in Path("/proc/self/task").iterdir():
        if is_ours(names.get(int(task.name), "")):
            fields = (task / "stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / tick
    return total


def note(*words: object) -> None:
    """Progress, for who watches."""
    print(*words, file=sys.stderr, flush=True)
