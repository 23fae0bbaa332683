"""Single steps gathered into epochs, for samplers that hand over one step at a time.

An epoch of one step would be mostly headers, and a sync for each would cost more than most likelihoods. So steps are
copied into one block of memory, and handed over as one epoch when the block is full, or when its oldest step has
waited long enough, also if no further step comes: then a thread does it that sleeps until then. Reads see the steps
that are gathered as well. When the run takes no more epochs, by `close` or at the end of the process, it asks for what
is gathered first.

Up the stream: `emcee/backend` and its like hand over steps. Down the stream: `service` takes epochs.
"""

import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

import numpy as np

from posterity._reading.snapshot import Snapshot
from posterity._system.arrays import Array
from posterity._system.process_end import report_lost
from posterity._writing.hand_over import HandOver
from posterity._writing.service import Service
from posterity.epoch import EpochDict
from posterity.errors import Closed, WriteFailed

if TYPE_CHECKING:
    import numpy.typing as npt

logger = logging.getLogger("posterity.steps")

StateT = TypeVar("StateT")
Shapes = Mapping[str, tuple[tuple[int, ...], np.dtype[np.generic]]]

MAX_BYTES = 4 << 20
MAX_AGE_S = 5.0
_GATHERED_SHARE = 0.8  # of its age a step may be gathered; the rest is for writing it


class View(NamedTuple, Generic[StateT]):
    """All steps of a run at one moment: those in a snapshot, to be released, and behind them those gathered since.

    `tail`: name -> array (nsteps, ...), the caller's own. `state`: what came with the newest step.
    """

    snapshot: Snapshot[object]
    tail: dict[str, Array]
    state: StateT | None


class _Gathered(NamedTuple, Generic[StateT]):
    """The steps in the block: `n` from position `first` of the run on, in one generation of it.

    Which of them were handed over already, only the run's registry says: nothing is counted in two places.
    """

    generation: int
    first: int
    n: int
    state: StateT | None


class Steps(Generic[StateT]):
    """Gathers the steps of one run. Any thread may read; one thread at a time adds.

    Args:
        service: the run.
        make_epoch: makes an epoch of some steps, name -> array (nsteps, ...), and the state that came with the last of
            them. It may use views of the arrays: they are copied when it is handed over.
        state: what came with the last step that the run has already.
        max_bytes: of steps in an epoch. A larger step is an epoch by itself.
        max_age_s: how long after it was added a step is on disk at the latest, if the disk can follow.
        clock: tells the time in seconds.

    Raises:
        ValueError: `max_bytes` is below 1, or `max_age_s` below 0.
    """

    def __init__(
        self,
        service: Service,
        make_epoch: Callable[[Mapping[str, Array], StateT], EpochDict],
        *,
        state: StateT | None = None,
        max_bytes: int = MAX_BYTES,
        max_age_s: float = MAX_AGE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not max_bytes >= 1:
            raise ValueError(f"max_bytes must be at least 1, got {max_bytes!r}")
        if not max_age_s >= 0:
            raise ValueError(f"max_age_s must be at least 0, got {max_age_s!r}")
        self._service = service
        self._ledger = service.ledger
        self._make_epoch = make_epoch
        self._max_bytes = max_bytes
        self._gather_s = _GATHERED_SHARE * max_age_s
        self._clock = clock
        # Not the ledger's: a step is copied under it. Who has it may take the ledger's, and never the other way round.
        self._lock = threading.Lock()
        self._shapes: Shapes = {}
        self._rows: dict[str, Array] = {}
        self._capacity = 0
        self._began = 0.0
        registry = self._ledger.registry
        self._gathered = _Gathered(registry.generation, registry.nsamples, 0, state)
        self._failed: Exception | None = None
        self._is_closed = False
        self._timer = _Timer(f"posterity-steps {service.disk.folder}", self._keep_time)
        self._ledger.call_before_closing(self.close)
        self._ledger.listen(self, self._note_change)

    # ---- adding --------------------------------------------------------------------------------------------------

    def declare(self, shapes: Shapes) -> None:
        """Say what each step has: name -> its shape and dtype. What is gathered with another one is handed over.

        Raises:
            MailboxFull, Closed: see `hand_over`.
        """
        if dict(shapes) != dict(self._shapes):
            self.hand_over()
            with self._lock:
                self._shapes, self._rows = dict(shapes), {}

    def add(self, step: "Mapping[str, npt.ArrayLike]", state: StateT) -> None:
        """Copy one step: name -> what fits into its declared shape. Every later read sees it.

        It waits only when the block is full and the mailbox, too. `state` is kept by reference: don't change it.

        Raises:
            NotStorable, EpochMismatch: it can't be part of the run. The first step of each epoch is tried.
            MailboxFull: there is no room, and the run is opened with `on_full="raise"` (a `BlockingIOError`).
            WriteFailed: steps that were gathered could not be handed over (an `OSError`).
            Closed: the backend was closed (a `ValueError`).
            Forked: this is a forked child (a `RuntimeError`).

        In each case the step wasn't added.
        """
        self._service.check_process()
        while not self._has_added(step, state):
            if self._is_closed:
                self._refuse()
            self.hand_over()

    def _has_added(self, step: "Mapping[str, npt.ArrayLike]", state: StateT) -> bool:
        """Add a step, if there is room in the block and the run takes steps."""
        with self._lock:
            if self._failed is not None:
                raise WriteFailed(f"steps could not be handed over: {self._failed}") from self._failed
            if self._is_closed:
                return False
            at = self._gathered
            rows = self._rows
            if not self._count():
                registry = self._ledger.registry
                at = _Gathered(registry.generation, registry.nsamples, 0, at.state)
                rows = self._rows = rows or self._new_block()
            elif at.n == self._capacity:
                return False
            for name, row in rows.items():
                row[at.n] = step[name]
            if at.n == 0:
                self._try(state)
                self._began = self._clock()
            self._gathered = at._replace(n=at.n + 1, state=state)  # the one step: before it nothing has happened
            if at.n == 0 and self._gather_s < math.inf:
                self._timer.start()
                self._timer.wake()
            return True

    def _new_block(self) -> dict[str, Array]:
        nbytes = sum(math.prod(shape) * dtype.itemsize for shape, dtype in self._shapes.values())
        self._capacity = max(1, self._max_bytes // max(1, nbytes))
        return {name: np.empty((self._capacity, *shape), dtype) for name, (shape, dtype) in self._shapes.items()}

    def _try(self, state: StateT) -> None:
        """Make an epoch of the first step alone: what is wrong with it is to be heard now, not by who hands it over."""
        self._service.prepare(self._make_epoch(self._cut(0, 1), state))

    def _refuse(self) -> None:
        """Raise `Closed`. When SIGTERM has closed the run, wait for the process to die of it."""
        ledger = self._ledger
        ledger.wait(lambda: not ledger.is_silent)
        raise Closed(f"the backend of {self._service.disk.folder} is {ledger.state}: it takes no more steps")

    # ---- looking -------------------------------------------------------------------------------------------------

    @property
    def total(self) -> int:
        """Steps of the run, those that are gathered included. Takes no lock."""
        at, registry = self._gathered, self._ledger.registry
        if at.generation != registry.generation:
            return registry.nsamples
        return max(registry.nsamples, at.first + at.n)

    @property
    def state(self) -> StateT | None:
        """What came with the newest step; None after a reset. Takes no lock."""
        at = self._gathered
        return at.state if at.generation == self._ledger.registry.generation else None

    @property
    def is_closed(self) -> bool:
        """Whether no more steps are taken."""
        return self._is_closed

    def view(self) -> View[StateT]:
        """All steps at this moment. Waits for no disk; release its snapshot.

        Raises:
            Closed: the backend was closed; open the run again to read it.
        """
        self._service.check_process()
        with self._lock:
            snapshot = self._service.snapshot()
            n = self._count()
            tail = self._cut(self._gathered.n - n, self._gathered.n)
            return View(snapshot, {name: rows.copy() for name, rows in tail.items()}, self.state)

    def _count(self) -> int:
        """How many of the block's steps weren't handed over, its last ones."""
        at, registry = self._gathered, self._ledger.registry
        if at.generation != registry.generation:  # the run was reset: they were part of what is gone
            return 0
        return max(0, at.first + at.n - registry.nsamples)

    def _cut(self, start: int, stop: int) -> dict[str, Array]:
        return {name: rows[start:stop] for name, rows in self._rows.items()}

    # ---- handing over --------------------------------------------------------------------------------------------

    def hand_over(self) -> None:
        """Make what is gathered an epoch of the run; nothing happens if nothing is. Waits for room in the mailbox.

        Raises:
            MailboxFull: there is no room, and the run is opened with `on_full="raise"` (a `BlockingIOError`).
            Closed: the backend was closed (a `ValueError`).
        """
        self._service.check_process()
        self._hand_over()

    def _hand_over(self, *, waits: bool | None = None) -> None:
        with self._lock:
            epoch = self._epoch()
        if epoch is None:
            return
        with self._service.begin_hand_over(self._service.prepare(epoch), waits=waits) as handing:
            if handing.must_wait():
                self._ledger.wait(handing.may_go_on)  # without our lock: reads go on
            self._put(handing)

    def _epoch(self) -> EpochDict | None:
        n, at = self._count(), self._gathered
        if not n or at.state is None:
            return None
        return self._make_epoch(self._cut(at.n - n, at.n), at.state)

    def _put(self, handing: HandOver) -> None:
        """Hand over all that is gathered by now: it may be nothing, if another thread came first."""
        with self._lock:
            epoch = self._epoch()
            if epoch is not None:
                handing.complete(self._service.prepare(epoch), copy=True)

    def close(self) -> None:
        """Hand over what is gathered, whether or not there is room, and take no more. Waits for nothing; idempotent.

        It is called before the run takes no more epochs, whoever closes it. It raises nothing: what is lost is
        reported, and the process then ends with our exit code.
        """
        self._timer.stop()
        try:
            with self._lock:
                self._is_closed = True
            if self._count():
                self._put(self._service.hand_over_unasked())
        except Exception as error:  # noqa: BLE001  # the run must be closed all the same, and somebody hear of it
            self._note_lost(error)
        finally:
            self._ledger.unlisten(self)

    def _note_lost(self, error: Exception) -> None:
        """Say that what is gathered can't be handed over."""
        if self._failed is None:
            self._failed = error
            told = f"{self._count()} steps of {self._service.disk.folder} could not be handed over: {error}"
            logger.critical("%s", told)
            report_lost(told)

    # ---- the time ------------------------------------------------------------------------------------------------

    def hand_over_if_due(self) -> float | None:
        """Hand over what has waited long enough; returns in how many seconds to look again, None if nothing waits.

        Waits for room, and raises as `hand_over`.
        """
        with self._lock:
            if not self._count():
                return None
            left_s = self._began + self._gather_s - self._clock()
        if left_s > 0 and not self._ledger.state.is_over:
            return left_s
        self._hand_over(waits=True)
        return None

    def _keep_time(self) -> float | None:
        """In the timer's thread."""
        try:
            return self.hand_over_if_due()
        except Exception as error:  # noqa: BLE001  # the top of a thread: who adds the next step gets it
            self._note_lost(error)
            return None
        finally:
            if self._ledger.state.is_over:
                self._timer.stop()

    def _note_change(self) -> None:
        """Called at each change of the run, under the ledger's lock: when the writer broke, nobody closes us."""
        if self._ledger.state.is_over:
            self._timer.wake()


class _Timer:
    """A thread that does something at its time. It starts with the first step, and never keeps the process alive.

    At the end of the process the writer asks for what is gathered, so nothing depends on this thread then.
    """

    def __init__(self, name: str, work: Callable[[], float | None]) -> None:
        self._name = name
        self._work = work
        self._thread: threading.Thread | None = None
        self._orders: queue.SimpleQueue[bool] = queue.SimpleQueue()  # takes no lock that a Ctrl-C could leave held

    def start(self) -> None:
        """Start the thread; idempotent. To be used under one lock."""
        if self._thread is None:
            thread = threading.Thread(name=self._name, target=self._run, daemon=True)
            thread.start()
            self._thread = thread

    def wake(self) -> None:
        """Have it look what there is to do; waits for nothing."""
        self._orders.put(True)

    def stop(self) -> None:
        """End the thread; doesn't wait."""
        self._orders.put(False)

    def _run(self) -> None:
        wait_s: float | None = None
        while True:
            try:
                if not self._orders.get(timeout=None if wait_s is None else min(wait_s, threading.TIMEOUT_MAX)):
                    return
            except queue.Empty:
                pass
            wait_s = self._work()
