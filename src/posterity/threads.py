"""Our threads: one for the writer's event loop, one for its I/O, and one that notices when the process ends.

The first two aren't daemons: the interpreter waits for them, so what was handed over is written although nobody called
`close`. For that they must know when nobody hands over any more: when the main thread and every other thread that
isn't a daemon has ended.

And helpers that live only as long as one call, which they share the work of.

Down the stream: `writer` runs in them; `snapshot` shares out what it reads.
"""

import atexit
import os
import queue
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import TypeVar

T = TypeVar("T")
Worker = Callable[[], AbstractContextManager[Callable[[T], None]]]
MOST_HELPERS = 7  # memory gives no more than a few cores can take
LOST_EXIT_CODE = 74  # EX_IOERR of sysexits.h


class OurThread(threading.Thread):
    """A thread of ours: the interpreter waits for it, and it doesn't wait for its like."""

    def __init__(self, name: str, target: Callable[[], None]) -> None:
        super().__init__(name=name, target=target, daemon=False)


class IoThread:
    """One thread in which all I/O is done, one thing at a time."""

    def __init__(self, name: str) -> None:
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = OurThread(name, self._run)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    async def run(self, work: Callable[[], T]) -> T:
        """Have something done there, and await its result."""
        future: Future[T] = Future()

        def do() -> None:
            try:
                result = work()
            except BaseException as error:  # noqa: BLE001  # it is raised where it is awaited
                future.set_exception(error)
            else:
                future.set_result(result)

        self.put(do)
        import asyncio  # noqa: PLC0415  # takes a tenth of the whole import, and who only reads doesn't need it

        return await asyncio.wrap_future(future)

    def put(self, work: Callable[[], None]) -> None:
        """Have something done there that raises nothing. Takes no lock that a finaliser could run into."""
        self._queue.put(work)

    def stop(self) -> None:
        """End the thread once it has done what it was given."""
        self._queue.put(None)

    def join(self) -> None:
        """Wait until the thread has ended."""
        self._thread.join()

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            work()
            del work  # it may hold the last reference to an epoch


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


class _EndWatch:
    """Tells its listeners when no thread is left that could hand anything over. One for the process, like its end.

    It has no lock, which a Ctrl-C or a fork could leave held: each change of its listeners is one step.
    """

    def __init__(self) -> None:
        self.begin_anew()

    def begin_anew(self) -> None:
        """In a forked child: who listens is the parent's, and so is what was lost."""
        self._listeners: dict[EndListener, None] = {}
        self._watches = False
        self.has_ended = False
        self.has_lost = False

    def add(self, listener: "EndListener") -> None:
        self._listeners[listener] = None
        if not self._watches:
            threading.Thread(name="posterity-end-watch", target=self._run, daemon=True).start()
            self._watches = True

    def discard(self, listener: "EndListener") -> None:
        """A listener has ended. The last one of a multiprocessing worker ends it, if samples were lost."""
        self._listeners.pop(listener, None)
        is_last = self.has_ended and not self._listeners
        if is_last and _is_worker():  # there, what atexit registered may not run
            self.exit_if_lost()

    def _run(self) -> None:
        threading.main_thread().join()
        while others := [thread for thread in threading.enumerate() if _keeps_process(thread)]:
            for thread in others:
                thread.join()
        self.has_ended = True
        self._tell()

    def _tell(self) -> None:
        for listener in list(self._listeners):
            listener.process_ends()

    def wait_for_all(self) -> None:
        """Wait for those that are still at work although the interpreter waits for no thread any more.

        It doesn't after a Ctrl-C in its wait, nor for threads that an exit handler started.
        """
        if not self._listeners:
            return
        sys.stderr.write("posterity: still writing; to be interrupted now would lose epochs\n")
        self._tell()
        for listener in list(self._listeners):
            listener.join()

    def exit_if_lost(self) -> None:
        """End the process with our exit code, if samples were lost: it can't be set in another way at its end."""
        for listener in list(self._listeners):
            listener.process_waits_no_longer()
        if self.has_lost:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(LOST_EXIT_CODE)


class EndListener:
    """Something that wants to know when the process ends."""

    def process_ends(self) -> None:
        """No thread is left that could hand anything over."""
        raise NotImplementedError

    def join(self) -> None:
        """Wait until it has ended."""
        raise NotImplementedError

    def process_waits_no_longer(self) -> None:
        """The process ends now: say what is lost."""
        raise NotImplementedError


def _keeps_process(thread: threading.Thread) -> bool:
    return not (thread.daemon or isinstance(thread, OurThread) or thread is threading.main_thread())


_end_watch = _EndWatch()


def tell_when_process_ends(listener: EndListener) -> None:
    """Have a listener told; it is kept until it has ended."""
    _end_watch.add(listener)


def tell_no_more(listener: EndListener) -> None:
    """The listener has ended."""
    _end_watch.discard(listener)


def _is_worker() -> bool:
    """Whether this process is a multiprocessing worker; one has the module imported."""
    process = sys.modules.get("multiprocessing.process")
    return process is not None and process.parent_process() is not None


def report_lost(message: str) -> None:
    """Say on stderr what was lost at the end of the process, and see to it that its exit code isn't 0."""
    sys.stderr.write(f"posterity: {message}\n")
    _end_watch.has_lost = True


# They run in the opposite order, and after what programs register: if one is interrupted, the other one sees it.
atexit.register(_end_watch.exit_if_lost)
atexit.register(_end_watch.wait_for_all)
os.register_at_fork(after_in_child=_end_watch.begin_anew)
