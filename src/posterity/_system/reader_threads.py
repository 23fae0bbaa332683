"""Threads in which an awaited call does what takes long, at most so many at a time.

Down the stream: the awaited snapshots and faces.
"""

import threading
import weakref
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import anyio
import anyio.to_thread
from anyio.lowlevel import current_token

from .event_loop import Loop
from .uncopyable import Uncopyable

T = TypeVar("T")


class Readers(Uncopyable):
    """Threads for what takes long, at most so many at a time in each event loop.

    `abandons`: a call that is cancelled returns at once, and its thread goes on for nobody, in its place. Otherwise it
    returns when the thread has ended, unless asyncio cancels the task behind anyio's back.
    """

    def __init__(self, most: int, *, abandons: bool = True) -> None:
        self._most = most
        self._abandons = abandons
        self._free: weakref.WeakKeyDictionary[object, anyio.Semaphore] = weakref.WeakKeyDictionary()

    async def run(self, call: Callable[[], T]) -> T:
        """Call something in a thread, and await its result."""
        native = current_token().native_token
        free = self._free.get(native)
        if free is None:
            free = self._free[native] = anyio.Semaphore(self._most, fast_acquire=True)
        await free.acquire()
        place = _Place(free)
        try:
            return await in_thread(partial(place.run, call), abandons=self._abandons)
        finally:
            place.leave()


class _Place:
    """A place among the readers: of a task, and of the thread that works for it. Who comes last gives it back."""

    def __init__(self, free: anyio.Semaphore) -> None:
        self._free = free
        self._loop = Loop()
        self._begun = threading.Lock()  # both are flags that one can raise: no finaliser could wait for them
        self._ended = threading.Lock()

    def run(self, call: Callable[[], T]) -> T:
        """In the thread."""
        if not self._begun.acquire(blocking=False):
            raise RuntimeError("nobody waits for this any more")
        try:
            return call()
        finally:
            if not self._ended.acquire(blocking=False):
                self._loop.call(self._free.release)

    def leave(self) -> None:
        """In the task."""
        if self._begun.acquire(blocking=False) or not self._ended.acquire(blocking=False):
            self._free.release()


async def in_thread(call: Callable[[], T], *, abandons: bool = False) -> T:
    """Call something in a thread that nobody else waits for."""
    return await anyio.to_thread.run_sync(call, abandon_on_cancel=abandons, limiter=anyio.CapacityLimiter(1))
