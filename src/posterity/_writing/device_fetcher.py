"""Fetches epochs from the devices that compute them, in their order, in a thread of its own; and makes memory ready.

A thread of its own, because neither may wait for the other: an epoch that is still being computed doesn't keep those
before it from being written, and a disk that fails or hangs doesn't keep the memory of a device. Nor does it keep a
sampler from having memory to copy its next epoch into.

Up the stream: `ledger` tells which epoch is next. Down the stream: `writer` writes those that were fetched.
"""

from posterity._system.buffer_pool import Buffers
from posterity._system.threads import OurThread

from .ledger import Fetch, Ledger
from .wakers import Bell


class Fetcher:
    """Fetches what a ledger has on devices, and makes buffers ready, until it is stopped."""

    def __init__(self, ledger: Ledger, buffers: Buffers, name: str) -> None:
        self._ledger = ledger
        self._buffers = buffers
        self._bell = Bell()
        self._stops = False
        self._thread = OurThread(f"posterity-fetch {name}", self._run)

    def start(self) -> None:
        """Start the thread."""
        self._ledger.listen(self, self._nudge)
        self._thread.start()

    def stop(self) -> None:
        """End the thread, once it is done with the epoch that it has."""
        self._stops = True
        self._ledger.announce()

    def _nudge(self) -> None:
        """Called at each change, under the ledger's lock; wakes nobody as long as there is nothing to do."""
        if self._stops or self._buffers.is_short or self._ledger.has_unfetched:
            self._bell.ring()

    def _run(self) -> None:
        while not self._stops:
            fetch = self._ledger.next_fetch()
            if fetch is not None:
                self._fetch(fetch)
            elif self._buffers.is_short:
                self._buffers.make_ready()
            else:
                self._bell.wait(None)
        self._ledger.unlisten(self)

    def _fetch(self, fetch: Fetch) -> None:
        try:
            fetch.held.fetch()
        except Exception as error:  # noqa: BLE001  # whatever a device may raise
            self._ledger.note_never_comes(fetch, error)
        else:
            self._ledger.note_fetched()
