"""A few threads for a short while: work that needs all cores, and neither Python's lock nor the disk's thread.

They are started for one job and end with it: none is left behind in a fork, at the end of the process, or idle.

Down the stream: `packed` has chunks compressed and brought back.
"""

import threading
from collections.abc import Callable, Generator, Sequence
from typing import Generic, TypeVar

from .threads import count_cores

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
_AHEAD = 4  # results for each thread that may wait for the one who takes them


def in_order(
    make: Callable[[], Callable[[ItemT], ResultT]], items: Sequence[ItemT], nthreads: int | None = None
) -> Generator[ResultT, None, None]:
    """`work(item)` for each item, in their order, worked out by threads, a few ahead of who takes the results.

    `make`: makes a `work` for each thread, which so may have what threads can't share. When the generator is closed,
    or an item fails, what was begun is finished, and the threads end.
    """
    n = min(count_cores() if nthreads is None else nthreads, len(items))
    if n > 1:
        yield from _Crew(make, items, n).results()
    elif items:
        yield from map(make(), items)


class _Crew(Generic[ItemT, ResultT]):
    """The threads of one job."""

    def __init__(self, make: Callable[[], Callable[[ItemT], ResultT]], items: Sequence[ItemT], nthreads: int) -> None:
        self._make = make
        self._items = items
        self._ahead = _AHEAD * nthreads
        self._changed = threading.Condition()
        self._results: dict[int, ResultT] = {}
        self._begun = 0
        self._taken = 0
        self._error: BaseException | None = None
        self._threads = [
            threading.Thread(name=f"posterity-crew-{i}", target=self._run, daemon=True) for i in range(nthreads)
        ]

    def results(self) -> Generator[ResultT, None, None]:
        started = 0
        try:
            for thread in self._threads:
                try:
                    thread.start()
                except RuntimeError:  # no more threads, of the user or at the end of the interpreter
                    break
                started += 1
            if not started:
                yield from map(self._make(), self._items)
                return
            for i in range(len(self._items)):
                yield self._result(i)
        finally:
            with self._changed:
                self._begun = len(self._items)
                self._changed.notify_all()
            for thread in self._threads[:started]:
                thread.join()

    def _result(self, i: int) -> ResultT:
        with self._changed:
            self._changed.wait_for(lambda: i in self._results or self._error is not None)
            if self._error is not None:
                raise self._error
            self._taken = i + 1
            self._changed.notify_all()
            return self._results.pop(i)

    def _run(self) -> None:
        try:
            work = self._make()
            while (i := self._next()) is not None:
                result = work(self._items[i])
                with self._changed:
                    self._results[i] = result
                    self._changed.notify_all()
        except BaseException as error:  # noqa: BLE001  # it is raised where the results are taken
            with self._changed:
                self._error = error
                self._begun = len(self._items)
                self._changed.notify_all()

    def _next(self) -> int | None:
        """The next item that nobody has begun; waits while enough results are there."""
        n = len(self._items)
        with self._changed:
            self._changed.wait_for(lambda: self._begun >= n or self._begun < self._taken + self._ahead)
            if self._begun >= n:
                return None
            self._begun += 1
            return self._begun - 1
