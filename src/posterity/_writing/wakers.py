"""Waking those who wait for a change: a thread by its bell, a task by whatever it listens with.

Up the stream: `ledger` rings at each change. Down the stream: `ledger.wait` for threads, `waiting` for tasks.
"""

import threading
from collections.abc import Callable

from posterity._system.uncopyable import Uncopyable


class Bell(Uncopyable):
    """Wakes one thread.

    A bare lock: a Ctrl-C in a `threading.Condition` can leave its lock held, or give away another's.
    """

    __slots__ = ("_silence",)

    def __init__(self) -> None:
        self._silence = threading.Lock()
        self._silence.acquire()

    def ring(self) -> None:
        """Wake who waits, or will."""
        if self._silence.locked():
            self._silence.release()

    def wait(self, timeout_s: float | None) -> None:
        """Wait for the next ring."""
        self._silence.acquire(timeout=-1 if timeout_s is None else min(timeout_s, threading.TIMEOUT_MAX))


class Bells:
    """All that is to be rung at a change. To be used under one lock."""

    def __init__(self) -> None:
        self._listeners: dict[object, Callable[[], None]] = {}

    def add(self, key: object, listener: Callable[[], None]) -> None:
        """Have a function called at each change, in the thread that made it; it must not wait, nor call back."""
        self._listeners[key] = listener

    def remove(self, key: object) -> None:
        """Have it called no more; idempotent."""
        self._listeners.pop(key, None)

    def ring(self) -> None:
        """Call all of them."""
        for listener in self._listeners.values():
            listener()
