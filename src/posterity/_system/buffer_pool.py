"""Memory that is used again: a fresh one of 64 MB costs more in page faults than the copy into it.

A buffer comes back by itself once the last array that looks into it is gone, be it the writer's or a reader's. When the
last one is taken, another one is made ready behind the sampler's back: the disk may be slower for once.

Down the stream: `prepare` copies what a sampler hands over into such memory; `device_fetcher` makes some ready.
"""

import weakref
from collections import deque

import numpy as np

from .arrays import Array
from .uncopyable import Uncopyable

_SMALL = 1 << 16
_PAGE = 4096
_LONG = 1024  # so many items NumPy assigns without the GIL


class Buffers(Uncopyable):
    """Buffers to copy into, at most `most_bytes` of them kept for later."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        # Filled from finalisers, which run at any moment in any thread: a deque's appends need no lock.
        self._free: deque[Array] = deque()
        self._lent: set[int] = set()  # which ones aren't back
        self._is_first = True
        self._wanted = 0

    def take(self, nbytes: int) -> Array:
        """Memory of at least `nbytes` bytes, uninitialised, as an array of bytes."""
        if nbytes <= _SMALL:
            return np.empty(nbytes, np.uint8)
        memory = self._reuse(nbytes)
        if memory is None:
            memory = np.empty(_rounded(nbytes), np.uint8)  # NumPy asks for huge pages: far fewer page faults
        self._lent.add(id(memory))
        has_room = (len(self._lent) + 1) * len(memory) <= self._most_bytes
        self._wanted = len(memory) if has_room and not self._is_first else 0
        self._is_first = False  # the first time says nothing: it may be the only epoch
        carrier = np.frombuffer(memory.data, np.uint8)  # the base of all views into it, which memory itself would be
        weakref.finalize(carrier, self._take_back, memory).atexit = False
        return carrier

    def _take_back(self, memory: Array) -> None:
        self._lent.discard(id(memory))
        self._free.append(memory)

    def _reuse(self, nbytes: int) -> Array | None:
        """A free buffer that fits and isn't more than twice too large; what is too much goes back to the system."""
        found = None
        kept = 0
        for _ in range(len(self._free)):
            try:
                memory = self._free.popleft()
            except IndexError:
                break
            if found is None and nbytes <= len(memory) <= max(2 * nbytes, _rounded(nbytes)):
                found = memory
            elif kept + len(memory) <= self._most_bytes:
                kept += len(memory)
                self._free.append(memory)
        return found

    @property
    def is_short(self) -> bool:
        """Whether a buffer should be made ready: there is none, and no more are out than there may be."""
        return self._wanted > 0 and not self._free

    def make_ready(self) -> None:
        """Make one buffer ready, of the size that was asked for last. The pages are there then, not only promised."""
        memory = np.empty(self._wanted, np.uint8)
        memory[:: max(1, min(_PAGE, len(memory) // _LONG))] = 0
        if len(memory):
            self._free.append(memory)

    def clear(self) -> None:
        """Give all free buffers back to the system."""
        self._free.clear()


def _rounded(nbytes: int) -> int:
    """Up to an eighth more, so that epochs of almost the same size fit."""
    step = 1 << max(12, nbytes.bit_length() - 4)
    return -(-nbytes // step) * step
