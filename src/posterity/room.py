"""Room in the mailbox: who asked first gets it first.

Up the stream: `ledger` asks for the samplers, under its lock, and says what is in the mailbox.
"""

import weakref
from collections import deque

from .options import Options


class Ticket:
    """A place in the queue of those who wait for room; it is theirs as long as somebody has it."""

    __slots__ = ("__weakref__", "nbytes")

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes


class Room:
    """Who waits for room, and who has it. To be used under one lock, but for `is_for`."""

    def __init__(self, options: Options) -> None:
        self._options = options
        # By weak references: a Ctrl-C may fall between asking for room and the block that gives it back.
        self._waiting: deque[weakref.ref[Ticket]] = deque()
        self._granted: weakref.WeakSet[Ticket] = weakref.WeakSet()

    def ask(self, ticket: Ticket) -> None:
        """Join the queue."""
        self._waiting.append(weakref.ref(ticket))

    def is_for(self, ticket: Ticket) -> bool:
        """Whether somebody has room."""
        return ticket in self._granted

    def give_up(self, ticket: Ticket) -> None:
        """Give room back, or the place in the queue; idempotent."""
        self._granted.discard(ticket)
        if (place := weakref.ref(ticket)) in self._waiting:
            self._waiting.remove(place)

    def grant(self, pending: tuple[int, int]) -> None:
        """Give room to those in the queue, in their order; `pending`: epochs and bytes that are in the mailbox."""
        while self._waiting:
            ticket = self._waiting[0]()
            if ticket is not None:
                if not self._fits(ticket.nbytes, *pending):
                    return
                self._granted.add(ticket)
            self._waiting.popleft()

    def _fits(self, nbytes: int, epochs: int, waiting: int) -> bool:
        """Whether an epoch finds room; a larger one than the whole mailbox does when it is empty."""
        epochs += len(self._granted)
        if epochs == 0:
            return True
        waiting += sum(ticket.nbytes for ticket in self._granted)
        return waiting + nbytes <= self._options.max_pending_bytes and epochs < self._options.max_pending_epochs
