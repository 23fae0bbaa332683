"""What is wrong with the disk, and how often attempts to write failed.

Up the stream: `ledger` notes what came of each attempt, under its lock. Down the stream: who waits for the disk hears
of it; `status` tells it.
"""

import time

import msgspec

from posterity.errors import WriteFailed


class Fault(msgspec.Struct, frozen=True):
    """What is wrong with the disk. `since`, `at`: seconds since 1970, of the first and of the last failure."""

    error: OSError
    since: float
    at: float
    attempts: int


class Faults:
    """`now`: what is wrong, None if nothing is. `count`: the attempts that failed so far."""

    def __init__(self) -> None:
        self.now: Fault | None = None
        self.count = 0
        self._last: OSError | None = None

    def note(self, error: OSError | None) -> None:
        """An attempt failed, or worked."""
        if error is None:
            self.now = None
            return
        at = time.time()
        first = self.now or Fault(error, at, at, 0)
        self.now = Fault(error, first.since, at, first.attempts + 1)
        self.count += 1
        self._last = error

    def raise_since(self, count: int) -> None:
        """Raise the last failure, if there was one since there were so many; it may be over by now, and counts.

        Raises:
            WriteFailed: an attempt failed.
        """
        if self.count > count and self._last is not None:
            raise WriteFailed(f"writing failed: {self._last}; it is tried again") from self._last
