"""A backend without threads: the ledger, the store and what the writer does between them, one step at a time.

What it does is what `Service` and `Writer` do; only nobody waits. So a test can say what comes when, and record it.
"""

import numpy as np

from posterity._ingest.prepare import prepare
from posterity._model.options import parse_options
from posterity._model.states import State
from posterity._reading.pinned_view import PinnedView
from posterity._reading.snapshot import Snapshot
from posterity._store.store import Store
from posterity._system.buffer_pool import Buffers
from posterity._writing.ledger import Ledger
from posterity._writing.service import _shapes_of


class SynchronousRun:
    """A run that is open for writing."""

    def __init__(self, disk, **options):
        self.options = parse_options(0, disk.folder, options)
        self.disk = disk
        self.store = Store(self.options, "", disk)
        registry = self.store.open()
        goes_on = self.store.catalog if self.options.mode != "w" else None
        self.ledger = Ledger(self.options, registry, goes_on, _shapes_of(goes_on))
        self._buffers = Buffers(self.options.max_pending_bytes)

    @property
    def registry(self):
        return self.ledger.registry

    def ingest(self, epoch):
        prepared = prepare(epoch, save_stats=True)
        self.ledger.check_fits(prepared)
        ticket = self.ledger.ask_room(prepared)
        assert self.ledger.has_room(ticket)
        self.ledger.hand_over(ticket, prepared, prepared.own(self._buffers, copy=True))

    def step(self):
        """One round of the writer; returns whether there was anything to do. What failed is tried again in the next."""
        work = self.ledger.next_work()
        if work is None:
            return False
        outcome = self.store.work(work.actions, work.registry, work.held, old_is_read=work.old_is_read)
        self.ledger.report(work, outcome, self.store.catalog)
        return True

    def settle(self):
        for _ in range(1000):
            if not self.step():
                return
        raise AssertionError("the writer finds no end")

    def flush(self, *, publish=False):
        asked = self.ledger.demand(publish=publish)
        self.settle()
        assert self.ledger.is_done(asked)

    def close(self):
        self.ledger.ask_close()
        self.settle()
        self.store.close()
        self.ledger.note_closed()
        assert self.ledger.state is State.CLOSED

    def die(self):
        """The process is gone; what it held of the system is given back."""
        self.store._lock.release()

    def snapshot(self):
        view = self.ledger.view()
        return Snapshot(PinnedView(view.registry, view.shelf, self.disk, release=lambda: self.ledger.unpin(view.pin)))


def run_of(generation, index, start, nsamples):
    """Epoch `index` of a generation: every value tells where it belongs."""
    at = np.arange(start, start + nsamples, dtype=float) + 1e6 * generation
    p = np.stack([at, -at])[:, None, :]
    return {
        "samples": {"p": p, "ll": p[:, 0, :].astype(np.float32)[:, None, :]},
        "stats": {"accepted": float(index)},
        "state": {"index": index, "name": f"epoch {index}"},
    }
