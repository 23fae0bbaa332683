"""Our threads: for the writer's event loop, for its I/O, and some that help it.

They aren't daemons: the interpreter waits for them, so what was handed over is written although nobody called `close`.

Down the stream: `process_end` tells them when nobody hands over any more; `writer` runs in them.
"""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from .uncopyable import Uncopyable

T = TypeVar("T")


class OurThread(threading.Thread):
    """A thread of ours: the interpreter waits for it, and it doesn't wait for its like."""

    def __init__(self, name: str, target: Callable[[], None]) -> None:
        super().__init__(name=name, target=target, daemon=False)


class IoThread(Uncopyable):
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
