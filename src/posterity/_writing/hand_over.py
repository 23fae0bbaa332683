"""The rule of a hand-over, in one place: reserve room, wait or raise, own, enter, give back what was not used.

Who hands over says only how it waits: in its thread, in a task, or not at all. What is small, or needs no copy, goes in
one step.

Up the stream: the faces, `ingest_nowait`, and steps that are gathered. Down the stream: `ledger` enters the epoch.
"""

import time
from collections.abc import Callable
from typing import NamedTuple, Self

from posterity._ingest.owned import Held
from posterity._ingest.prepare import Prepared
from posterity._system.buffer_pool import Buffers

from .admission import Ticket
from .ledger import Ledger


class HandedOver(NamedTuple):
    """An epoch that is in the run now: the generation of the run, its index, and what is in memory of it."""

    generation: int
    epoch: int
    held: Held


def at_once(ledger: Ledger, buffers: Buffers, epoch: Prepared, *, copy: bool) -> HandedOver | None:
    """Hand an epoch over without asking for room first, if that is quick and there is room; else None."""
    if not epoch.is_quick(copy=copy):
        return None
    held = epoch.own(buffers, copy=copy)
    found = ledger.try_hand_over(epoch, held)
    return None if found is None else HandedOver(*found, held)


class HandOver:
    """A hand-over of one epoch, to be used with `with`: room is asked for at its beginning, in the order of asking.

        with service.begin_hand_over(epoch) as handing:
            if handing.must_wait():
                ...  # wait until handing.may_go_on(), or some time is over
            handing.complete(epoch, copy=True)

    A block that is left early, in whatever way, gives its room back, or its place among those who wait for some.

    Args:
        ledger: of the run.
        buffers: memory to copy into.
        epoch: what is handed over, or as large as that; None: room isn't asked for, and isn't needed.
        waits: whether to wait for room, or to raise.
        is_alive: whether who waits still can, see `Ticket`.
    """

    def __init__(
        self,
        ledger: Ledger,
        buffers: Buffers,
        epoch: Prepared | None,
        *,
        waits: bool,
        is_alive: Callable[[], bool] | None = None,
    ) -> None:
        self._ledger = ledger
        self._buffers = buffers
        self._epoch = epoch
        self._waits = waits
        self._is_alive = is_alive
        self._ticket = Ticket(0)
        self._waits_since: float | None = None
        self._waited_s = 0.0

    def __enter__(self) -> Self:
        if self._epoch is not None:
            self._ticket = self._ledger.ask_room(self._epoch, self._is_alive)
        return self

    def __exit__(self, *_: object) -> None:
        if self._epoch is not None:
            self._ledger.give_up(self._ticket)

    def may_go_on(self) -> bool:
        """Whether there is room, or no sense in waiting longer: a condition to wait for."""
        return self._epoch is None or self._ledger.has_room(self._ticket)

    def must_wait(self) -> bool:
        """Whether to wait until `may_go_on`.

        Raises:
            MailboxFull: there is no room, and who hands over doesn't wait.
        """
        if self.may_go_on():
            return False
        if not self._waits:
            raise self._ledger.full_error()
        self._waits_since = time.monotonic()
        return True

    def end_wait(self) -> None:
        """Note how long was waited; there is room now, or there never was in time.

        Raises:
            MailboxFull: there was no room in time.
        """
        if self._waits_since is not None:
            self._waited_s += time.monotonic() - self._waits_since
            self._waits_since = None
        if not self.may_go_on():
            raise self._ledger.full_error()

    def own(self, epoch: Prepared, *, copy: bool) -> Held:
        """Take the epoch over: what takes time in a hand-over is the copy made here. Any thread may do it.

        Raises:
            MailboxFull: there was no room in time.
        """
        self.end_wait()
        return epoch.own(self._buffers, copy=copy)

    def enter(self, epoch: Prepared, held: Held) -> HandedOver:
        """Make it part of the run. From now on every read sees it.

        Raises:
            Closed, EpochMismatch: see `Ledger.hand_over`.
        """
        return HandedOver(*self._ledger.hand_over(self._ticket, epoch, held, self._waited_s), held)

    def complete(self, epoch: Prepared, *, copy: bool) -> HandedOver:
        """Own the epoch and enter it.

        Raises:
            MailboxFull, Closed, EpochMismatch: see `own` and `enter`.
        """
        return self.enter(epoch, self.own(epoch, copy=copy))
