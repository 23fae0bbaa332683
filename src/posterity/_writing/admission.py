"""Room in the mailbox: who asked first gets it first.

Up the stream: `ledger` asks for the samplers, under its lock, and says what is in the mailbox.
"""

import weakref
from collections import deque
from collections.abc import Callable

from posterity._model.options import Options


def _always() -> bool:
    return True


class Ticket:
    """A place in the queue of those who wait for room; it is theirs as long as somebody has it.

    `nbytes`, `device_nbytes`: of their epoch, and of what is on a device of it. `is_alive`: whether they still can; a
    task whose event loop was closed is never finalised, and never goes on.
    """

    __slots__ = ("__weakref__", "device_nbytes", "is_alive", "nbytes")

    def __init__(self, nbytes: int, device_nbytes: int = 0, is_alive: Callable[[], bool] = _always) -> None:
        self.nbytes = nbytes
        self.device_nbytes = device_nbytes
        self.is_alive = is_alive


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

    def has_for(self, nbytes: int, pending: tuple[int, int]) -> bool:
        """Whether an epoch finds room at once, without taking it from who asked first; it is on no device."""
        return not self._waiting and self._fits(nbytes, *pending)

    def is_for(self, ticket: Ticket) -> bool:
        """Whether somebody has room."""
        return ticket in self._granted

    def give_up(self, ticket: Ticket) -> None:
        """Give room back, or the place in the queue; idempotent."""
        self._granted.discard(ticket)
        if (place := weakref.ref(ticket)) in self._waiting:
            self._waiting.remove(place)

    def grant(self, pending: tuple[int, int], on_device: int) -> bool:
        """Give room to those in the queue, in their order; returns whether anybody got it.

        `pending`: epochs and bytes that are in the mailbox. `on_device`: bytes that wait to be fetched from a device.
        """
        found = False
        for orphan in [ticket for ticket in self._granted if not ticket.is_alive()]:
            self._granted.discard(orphan)
        while self._waiting:
            ticket = self._waiting[0]()
            if ticket is not None and ticket.is_alive():
                if not (self._fits(ticket.nbytes, *pending) and self._fits_on_device(ticket.device_nbytes, on_device)):
                    break
                self._granted.add(ticket)
                found = True
            self._waiting.popleft()
        return found

    def _fits(self, nbytes: int, epochs: int, waiting: int) -> bool:
        """Whether an epoch finds room; a larger one than the whole mailbox does when it is empty."""
        if self._granted:
            epochs += len(self._granted)
            waiting += sum(ticket.nbytes for ticket in self._granted)
        if epochs == 0:
            return True
        return waiting + nbytes <= self._options.max_pending_bytes and epochs < self._options.max_pending_epochs

    def _fits_on_device(self, nbytes: int, waiting: int) -> bool:
        """The same for what is on a device; what isn't finds room there always."""
        waiting += sum(ticket.device_nbytes for ticket in self._granted)
        return nbytes == 0 or waiting == 0 or waiting + nbytes <= self._options.max_device_bytes
