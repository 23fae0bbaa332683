"""What snapshots that are being read need to be kept, on disk and in memory.

Up the stream: `ledger` pins what it shows, under its lock. Down the stream: the policy is told the lowest burn.
"""

from collections import Counter, deque
from typing import NamedTuple

from posterity._model.registry import Registry


class Pin(NamedTuple):
    """What a snapshot needs to be kept: the samples of one generation from `burn` on, of the epochs before `stop`."""

    generation: int
    burn: int
    stop: int


class Pins:
    """The pins of all snapshots. To be used under one lock, but for `drop`."""

    def __init__(self) -> None:
        self._counts: Counter[Pin] = Counter()
        self._dropped: deque[Pin] = deque()

    def __bool__(self) -> bool:
        return bool(self._counts)

    def add(self, registry: Registry) -> Pin:
        """Keep what a snapshot of the run at this moment needs."""
        last = max(0, registry.nsamples - 1)  # what sampling continues from, although it is burned
        pin = Pin(registry.generation, min(registry.burn, last), registry.next_index)
        self._counts[pin] += 1
        return pin

    def drop(self, pin: Pin) -> None:
        """Keep it no longer, from the next `settle` on. Takes no lock: a finaliser may call it."""
        self._dropped.append(pin)

    def settle(self) -> None:
        """Take in what was dropped."""
        while self._dropped:
            pin = self._dropped.popleft()
            self._counts[pin] -= 1
            if self._counts[pin] <= 0:
                del self._counts[pin]

    def burn(self, generation: int) -> int | None:
        """The lowest burn that a snapshot of a generation shows; None if there is no snapshot of it."""
        return min((pin.burn for pin in self._counts if pin.generation == generation), default=None)

    def show_before(self, generation: int) -> bool:
        """Whether a snapshot shows what was there before a reset."""
        return any(pin.generation < generation for pin in self._counts)

    def show_cut(self, registry: Registry, index: int) -> bool:
        """Whether a snapshot shows samples of a written epoch that a burn kept from being written."""
        cut, entry = registry.cuts[index], registry.entries[index]
        return any(
            pin.generation == registry.generation and index < pin.stop and cut > entry.burned(pin.burn)
            for pin in self._counts
        )
