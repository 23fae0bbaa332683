"""How far the epochs of a run have come from the devices that compute them.

They come in the order in which they were handed over. Once one can't come, neither do those behind it: to store them
would make a hole.

Down the stream: `ledger` asks, under its lock.
"""

from collections.abc import Mapping

from posterity._ingest.owned import Held
from posterity._model.registry import Registry


class Arrivals:
    """Of one generation of a run. To be used under one lock, but for `are_all`."""

    def __init__(self) -> None:
        self.are_all = True  # nothing is on a device; also read without the lock
        self.never_comes: Exception | None = None
        self._nfetched = 0

    def expect(self, held: Held) -> None:
        """Take note of an epoch that was handed over."""
        self.are_all &= held.is_fetched

    def count(self, registry: Registry, held: Mapping[int, Held]) -> int:
        """Epochs before this one are in memory or on disk."""
        if self.are_all:
            return registry.next_index
        n = max(self._nfetched, registry.nwritten)
        while n < registry.next_index and held[n].is_fetched:
            n += 1
        self._nfetched, self.are_all = n, n == registry.next_index
        return n
