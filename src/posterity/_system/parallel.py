"""A few threads for a short while: work that needs all cores, and neither Python's lock nor the disk's thread.

They are started for one job and end with it: none is left behind in a fork, at the end of the process, or idle.

Down the stream: `compressed` has chunks compressed and brought back; `gather` shares out what it reads.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Generic, TypeVar

from .threads import OurThread

T = TypeVar("T")
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


Worker = Callable[[], AbstractContextManager[Callable[[T], None]]]


MOST_HELPERS = 7  # memory gives no more than a few cores can take


def count_cores() -> int:
    """On how many cores this process may run."""
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # not on every system
        return os.cpu_count() or 1


def share_out(jobs: Iterable[T], worker: Worker[T], nthreads: int) -> None:
    """Have each of the jobs done, in so many threads: the caller's, and others that have ended when this returns.

    `worker`: called in each thread; in its context it gives what does one job. Jobs are begun in their order.

    Raises:
        BaseException: what a job raised; of several, the one that comes first among the jobs, but Ctrl-C before all.
            No job is begun after it.
    """
    todo = deque(enumerate(jobs))
    failed: list[tuple[int, BaseException]] = []

    def work() -> None:
        at = -1
        try:
            with worker() as do:
                while todo:
                    try:
                        at, job = todo.popleft()
                    except IndexError:  # another one took the last
                        return
                    do(job)
        except BaseException as error:  # noqa: BLE001  # it is raised in the caller's thread
            failed.append((at, error))
            todo.clear()

    helpers: list[OurThread] = []
    try:
        for _ in range(min(nthreads, len(todo)) - 1):
            helper = OurThread("posterity-reader", work)
            helper.start()
            helpers.append(helper)
    except RuntimeError:
        pass  # the system has no thread left, or the interpreter is at its end: there is no need of one
    try:
        work()
    finally:
        todo.clear()
        for helper in helpers:
            helper.join()
    if failed:
        raise min(failed, key=lambda failure: (isinstance(failure[1], Exception), failure[0]))[1]
