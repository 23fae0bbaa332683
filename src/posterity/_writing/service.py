"""One open run: its ledger, its writer, its store, and the rules of opening, handing over and closing.

Both faces, the blocking and the awaited one, are thin shells over it: they differ in how they wait.

Up the stream: `blocking`. Down the stream: `ledger`, `writer`, `snapshot`.
"""

import inspect
import logging
import operator
import os
import sys
import threading
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType

from posterity._format.layout import layout_of
from posterity._format.samples import sample_shapes
from posterity._format.single_file import read_epoch
from posterity._ingest.prepare import Prepared, prepare
from posterity._ingest.template import Kinds
from posterity._model.metadata import Metadata
from posterity._model.options import Options
from posterity._model.states import State
from posterity._reading.pinned_view import PinnedView
from posterity._reading.snapshot import Snapshot
from posterity._store.catalog import Catalog
from posterity._store.store import Store
from posterity._system.buffer_pool import Buffers
from posterity._system.disk import Disk
from posterity._system.uncopyable import Uncopyable
from posterity.errors import Closed, Forked, NotWritten

from .hand_over import HandedOver, HandOver, at_once
from .ledger import Ledger
from .monitor import Monitor
from .pins import Pin
from .receipts import Receipt
from .run_schema import Shapes, check_described
from .sigterm import flush_on_sigterm
from .status import Meter, Status
from .writer import Writer

logger = logging.getLogger("posterity.service")
_PACKAGE = str(Path(str(sys.modules["posterity"].__file__)).parent) + os.sep  # whatever folder this module is in


class Service(Uncopyable):
    """A run that is open for writing."""

    def __init__(self, options: Options, disk: Disk | None = None, *, where: str | None = None) -> None:
        if options.flush_on_sigterm and threading.current_thread() is not threading.main_thread():
            raise ValueError("flush_on_sigterm needs the backend to be opened in the main thread")
        self.options = options
        self.disk = disk or Disk(options.outdir)
        self.where = caller() if where is None else where
        self._pid = os.getpid()
        self.store = Store(options, self.where, self.disk)
        self._buffers = Buffers(options.max_pending_bytes)
        self._kinds = Kinds()
        self._meter = Meter()
        self._faces: set[int] = set()
        self._session = os.urandom(16)  # a diagnosis trusts no other one: its last epochs may have been lost
        self._writer: Writer | None = None
        try:
            self._begin()
        except BaseException:  # nobody has it yet, so nobody else could close it
            self._give_up()
            raise

    def _begin(self) -> None:
        """Open the store, and start what works behind the sampler."""
        options = self.options
        registry = self.store.open()
        goes_on = self.store.catalog if options.mode != "w" else None
        nchain, shapes = _shapes_of(goes_on)
        self.ledger = Ledger(options, registry, goes_on, (nchain, shapes))
        if goes_on is not None and nchain:
            given = Metadata(parameters=options.parameters or {}, chains=options.chains or {})
            check_described(given, nchain, shapes, goes_on.metadata.parameters)
        self._writer = Writer(self.ledger, self.store, self._buffers, str(self.disk.folder))
        self._writer.start()
        self._monitor = self._start_monitor()
        self._tell_what_is_there()
        if options.flush_on_sigterm:
            self.flush_on_sigterm()

    @property
    def _running(self) -> Writer:
        assert self._writer is not None  # it was opened
        return self._writer

    def _give_up(self) -> None:
        """Free the folder after an opening that failed, or was interrupted, at whatever statement."""
        if self._writer is not None and self._writer.has_started:
            self.ask_close()  # it has the store now
        else:
            self.store.close()
            self.disk.leave()

    def _start_monitor(self) -> Monitor | None:
        if not self.options.diagnosed:
            return None
        monitor = Monitor(self.ledger, self.snapshot, self.options.diagnosed, str(self.disk.folder))
        monitor.start()
        return monitor

    def _tell_what_is_there(self) -> None:
        if self.store.catalog is None:
            return
        verb = "will be replaced" if self.options.mode == "w" else "is continued"
        there = self.store.catalog.registry()
        logger.warning(
            "%s holds a run of %d epochs and %d samples, %d of them burned; it %s",
            self.disk.folder, there.next_index, there.nsamples, min(there.burn, there.nsamples), verb,
        )  # fmt: skip

    def add_face(self, face: object) -> None:
        """Note a face of the run. When the last one is gone and nobody closed the run, it is closed."""
        self._faces.add(id(face))
        weakref.finalize(face, self._face_is_gone, id(face)).atexit = False

    def _face_is_gone(self, face: int) -> None:
        self._faces.discard(face)
        if not self._faces:
            self.ask_close_later()

    @property
    def is_of_this_process(self) -> bool:
        """Whether this process opened the run, and not the one that it was forked from."""
        return os.getpid() == self._pid

    def check_process(self) -> None:
        """Refuse to work in a forked child.

        Raises:
            Forked: this isn't the process that opened the run.
        """
        if not self.is_of_this_process:
            raise Forked(
                f"this backend was opened by process {self._pid} and this is its child {os.getpid()}: only the process "
                f"that opened a run may use it"
            )

    # ---- handing over --------------------------------------------------------------------------------------------

    def prepare(self, epoch: object, eind: int = -1) -> Prepared:
        """Check an epoch: an object with `to_backend`, a dict, or a file and the epoch's index in it."""
        self.check_process()
        if not isinstance(epoch, dict) and isinstance(epoch, (str, os.PathLike)):
            epoch = read_epoch(epoch, eind)
        prepared = prepare(epoch, save_stats=self.options.save_stats, kinds=self._kinds)
        self.ledger.check_fits(prepared)
        return prepared

    def try_hand_over(self, epoch: Prepared, *, copy: bool) -> HandedOver | None:
        """Hand an epoch over in one go, if that is quick and there is room; None: it is to be asked for first."""
        return at_once(self.ledger, self._buffers, epoch, copy=copy)

    def begin_hand_over(
        self, epoch: Prepared, *, waits: bool | None = None, is_alive: Callable[[], bool] | None = None
    ) -> HandOver:
        """Begin to hand an epoch over, in the order of asking. By default it waits for room if the options say so."""
        waits = self.options.on_full == "wait" if waits is None else waits
        return HandOver(self.ledger, self._buffers, epoch, waits=waits, is_alive=is_alive)

    def hand_over_unasked(self) -> HandOver:
        """Hand over what the run must take, whether or not there is room: it was part of it already."""
        return HandOver(self.ledger, self._buffers, None, waits=False)

    def _receipt(self, handed_over: HandedOver, *, copy: bool) -> Receipt:
        """For an epoch that was handed over. One that was given away: its owner wants to know when it is free."""
        kept = None if copy else weakref.ref(handed_over.held, lambda _: self._running.later(self.ledger.announce))
        return Receipt(self.ledger, handed_over.generation, handed_over.epoch, kept)

    def ingest_nowait(self, epoch: object, *, copy: bool) -> Receipt:
        """Hand an epoch over, or raise `MailboxFull`."""
        prepared = self.prepare(epoch)
        found = self.try_hand_over(prepared, copy=copy)
        if found is not None:
            return self._receipt(found, copy=copy)
        with self.begin_hand_over(prepared, waits=False) as handing:
            return self._receipt(handing.complete(prepared, copy=copy), copy=copy)

    # ---- burning -------------------------------------------------------------------------------------------------

    def set_burn(self, burn: int) -> None:
        """Discard the samples before position `burn`: every later read sees it."""
        self.check_process()
        self.ledger.set_burn(operator.index(burn))

    def clean(self) -> None:
        """Discard all that was ingested so far."""
        self.check_process()
        self.ledger.clean()

    def reset(self) -> None:
        """Start empty; what was there goes when the writer gets to it."""
        self.check_process()
        self.ledger.reset()

    # ---- the rest ------------------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot[object]:
        """The run at this moment. Every ingest that returned before is in it.

        Raises:
            Closed: the backend was closed; somebody else may write the run now.
        """
        self.check_process()
        if self.ledger.state is State.CLOSED:
            raise Closed(f"the backend of {self.disk.folder} was closed; open the run again to read it")
        ledger = self.ledger
        view = ledger.view()
        pinned = PinnedView(
            view.registry,
            view.shelf,
            self.disk,
            release=partial(self._unpin, view.pin),
            abandon=partial(ledger.unpin_later, view.pin),
            run_key=self._session,
        )
        return Snapshot(pinned, trusted=self.options.trusted_classes)

    def _unpin(self, pin: Pin) -> None:
        self.ledger.unpin(pin)
        if self.ledger.is_unused:
            self.disk.leave()

    def status(self) -> Status:
        """The backend at this moment."""
        ledger = self.ledger
        registry, fault, free = ledger.registry, ledger.fault, self.store.free_bytes
        epochs, nbytes = ledger.pending
        bytes_per_s, samples_per_s = self._meter.read(self.store.bytes_written, registry.nsamples)
        return Status(
            state=ledger.state,
            queued_epochs=epochs,
            queued_bytes=nbytes,
            device_bytes=ledger.on_device,
            epochs=registry.next_index,
            epochs_on_disk=registry.nwritten,
            samples=registry.nsamples_left,
            burn=registry.burn,
            bytes_written=self.store.bytes_written,
            bytes_per_s=bytes_per_s,
            samples_per_s=samples_per_s,
            ingest_waited_s=ledger.waited_s,
            free_bytes=free,
            full_in_s=free / bytes_per_s if free is not None and bytes_per_s > 0 else None,
            last_error=str(fault.error) if fault else str(ledger.lost) if ledger.lost else None,
            last_error_at=fault.at if fault else None,
            diagnostics=self._monitor.diagnostics if self._monitor is not None else None,
        )

    def ask_close(self) -> None:
        """Take no more epochs, write all, and let the folder go; doesn't wait."""
        if os.getpid() == self._pid:
            self.store.mark_closing()
            self.ledger.ask_close()

    def ask_close_later(self) -> None:
        """As `ask_close`, from a finaliser: that may run while this very thread has the ledger's lock."""
        if os.getpid() == self._pid and not self.ledger.state.is_over:  # else no thread is left to do it
            self.store.mark_closing()
            self._running.later(self.ledger.ask_close)

    def flush_on_sigterm(self) -> None:
        """On SIGTERM write everything, then let the process die of it as it would have."""
        flush_on_sigterm(self.ledger, self.options.exit_timeout_s)

    def check_closed(self, timeout_s: float | None) -> None:
        """Raise what kept the run from being closed.

        Raises:
            NotWritten: the time was over first, or the writer broke; the message names the epochs.
        """
        state = self.ledger.state
        if state.is_over and self.ledger.lost is None:
            self._running.join()
            if self._monitor is not None:
                self._monitor.join()
            if self.ledger.is_unused:
                self.disk.leave()
            return
        missing = self.ledger.missing()
        fault = self.ledger.fault
        cause = fault.error if fault else self.ledger.lost
        epochs = f"epochs {missing[0]} to {missing[-1]} aren't on disk" if missing else "all epochs are on disk"
        ends = "the writer broke" if state.is_over else f"not closed within {timeout_s} s, it goes on trying"
        raise NotWritten(f"{self.disk.folder}: {ends}; {epochs}" + (f": {cause}" if cause else "")) from cause


def _shapes_of(catalog: Catalog | None) -> tuple[int, Shapes]:
    """The number of chains of a run, and of each name the dim and the dtype."""
    nchain, shapes = 0, {}
    for spec in catalog.specs if catalog is not None else []:
        if spec:
            nchain, found = sample_shapes(layout_of(spec))
            shapes.update(found)
    return nchain, shapes


def caller() -> str:
    """The first line of code outside this package on the stack: where the backend was opened."""
    frame: FrameType | None = inspect.currentframe()
    while frame is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame is not None else ""
