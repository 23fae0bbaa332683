"""The border between threads: one lock, and behind it all that samplers, readers and the writer share.

A hand-over is one assignment: the registry with one more epoch takes the place of the old one. The epochs that are in
the registry and not yet written *are* the mailbox; nothing is queued in a second place, so a read never has to wait
for the writer, and nothing can be lost between two queues.

Up the stream: the faces hand over, burn, ask. Down the stream: `writer` fetches work and reports what came of it.
Every call here takes the lock for a few microseconds and does no I/O; only `wait` waits.
"""

import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from itertools import takewhile
from typing import NamedTuple

from posterity._ingest.owned import Held
from posterity._ingest.prepare import Prepared
from posterity._model.bounds import MOST, check_count
from posterity._model.metadata import begun, completed
from posterity._model.options import Options
from posterity._model.policy import (
    Action,
    Demand,
    Settled,
    done,
    is_met,
    is_settled,
    memory_floor,
    pending,
    plan,
    settled,
    write_target,
)
from posterity._model.registry import Registry, admit, describe, raise_burn, reset, start_series
from posterity._model.states import Event, State, after
from posterity._store.catalog import Catalog
from posterity._store.epoch_locations import Shelf
from posterity._store.store import Outcome
from posterity._system.disk import is_full
from posterity._system.uncopyable import Uncopyable
from posterity.errors import BurnLowered, Closed, Forked, MailboxFull, PosterityError, WriteFailed

from .admission import Room, Ticket
from .device_progress import Arrivals
from .pins import Pin, Pins
from .run_schema import Fit, Shapes
from .wakers import Bell, Bells
from .write_failures import Fault, Faults


class View(NamedTuple):
    """A moment of the run, pinned."""

    registry: Registry
    shelf: Shelf
    pin: Pin


class Work(NamedTuple):
    """What the writer is to do next."""

    actions: list[Action]
    registry: Registry
    held: dict[int, Held]
    old_is_read: bool


class Fetch(NamedTuple):
    """An epoch that is to be fetched from the device that computes it."""

    generation: int
    epoch: int
    held: Held


class Asked(NamedTuple):
    """What somebody waits for: of which generation of the run, and after how many failures."""

    generation: int
    due: Settled
    failures: int


class Ledger(Uncopyable):
    """All that threads share. Its methods may be called from any thread."""

    def __init__(
        self, options: Options, registry: Registry, catalog: Catalog | None, shapes: tuple[int, Shapes]
    ) -> None:
        self.options = options
        self._lock = threading.RLock()  # one knows whose it is: a finaliser may run while its thread has it
        self._bells = Bells()
        self._registry = start_series(raise_burn(registry, options.burn, asked=True), options.epochs_per_file)
        self._shelf = Shelf(catalog)
        self._fit = Fit(*shapes)
        self._is_told = False
        self._demand = Demand()
        self._room = Room(options)
        self._pins = Pins()
        self._state = State.RUNNING
        self._faults = Faults()
        self._is_tidy = True
        self._has_asides = False
        self._is_on_disk = catalog is not None
        self._is_silent = False
        self._before_closing: list[Callable[[], None]] = []
        self._arrivals = Arrivals()
        self.waited_s = 0.0
        self.asked = 0  # how often somebody asked for something to be written, and waits for it
        self.lost: BaseException | None = None
        _ledgers.add(self)

    def disarm(self) -> None:
        """In a forked child: the copy of this ledger has no writer, and perhaps a lock that nobody will give back."""
        self._lock = threading.RLock()
        self._bells = Bells()
        self._state = State.FAILED
        self.lost = Forked("this is a forked child; only the process that opened a run may use it")

    # ---- waiting -------------------------------------------------------------------------------------------------

    def wait(self, condition: Callable[[], bool], timeout_s: float | None = None) -> bool:
        """Wait in this thread until a condition holds; False if the time is over first."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        bell = Bell()
        self.listen(bell, bell.ring)
        try:
            while not self.holds(condition):
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return False
                bell.wait(left)
            return True
        finally:
            self.unlisten(bell)

    def holds(self, condition: Callable[[], bool]) -> bool:
        """Whether a condition holds now."""
        with self._lock:
            return condition()

    def listen(self, key: object, listener: Callable[[], None]) -> None:
        """Have a function called at each change, in the thread that made it; it must not wait, nor call back."""
        with self._lock:
            self._bells.add(key, listener)

    def unlisten(self, key: object) -> None:
        """Have it called no more."""
        with self._lock:
            self._bells.remove(key)

    def announce(self) -> None:
        """Have every condition looked at again."""
        with self._lock:
            self._bells.ring()

    # ---- looking -------------------------------------------------------------------------------------------------

    @property
    def registry(self) -> Registry:
        """The run at this moment."""
        return self._registry

    @property
    def state(self) -> State:
        """What the writer is doing."""
        return self._state

    @property
    def fault(self) -> Fault | None:
        """What is wrong with the disk, if anything is."""
        return self._faults.now

    @property
    def pending(self) -> tuple[int, int]:
        """Epochs and bytes that wait to be written."""
        return pending(self._registry, self.options.inmem_epochs)

    @property
    def on_device(self) -> int:
        """The bytes of epochs that weren't fetched yet from their device."""
        with self._lock:
            return self._registry.device_bytes(self._count_fetched())

    def view(self) -> View:
        """The run at this moment; what it needs is kept until `unpin`."""
        with self._lock:
            return View(self._registry, self._shelf, self._pins.add(self._registry))

    def unpin(self, pin: Pin) -> None:
        """Let go of what a view needed."""
        self._pins.drop(pin)
        if self._lock._is_owned():  # type: ignore[attr-defined]  # noqa: SLF001  # as threading.Condition asks it
            return  # a finaliser; who has the lock, or comes next, settles it
        with self._lock:
            self._pins.settle()
            self._let_go()
            self._bells.ring()

    def unpin_later(self, pin: Pin) -> None:
        """As `unpin`, from a finaliser: that may run while this very thread has the lock."""
        self._pins.drop(pin)

    # ---- handing over --------------------------------------------------------------------------------------------

    def check_fits(self, epoch: Prepared) -> None:
        """Refuse an epoch that doesn't fit the run; see `Fit.check`."""
        self._fit.check(epoch.kind, self._registry)

    def ask_room(self, epoch: Prepared, is_alive: Callable[[], bool] | None = None) -> Ticket:
        """Ask for room for an epoch; whoever asked first gets it first. `is_alive`: see `Ticket`.

        Raises:
            Closed: no epochs are taken any more.
        """
        size = epoch.kind.nbytes, epoch.device_nbytes
        ticket = Ticket(*size) if is_alive is None else Ticket(*size, is_alive)
        with self._lock:
            if not self._is_silent:
                self._refuse_if_closed()
            self._room.ask(ticket)
            self._grant()
        return ticket

    def has_room(self, ticket: Ticket) -> bool:
        """Whether the room is there: a condition to wait for. Also true when there is no sense in waiting longer."""
        return self._room.is_for(ticket) or not (self._state.takes_epochs or self._is_silent)

    def give_up(self, ticket: Ticket) -> None:
        """Give room back, or the question for it; idempotent."""
        with self._lock:
            self._room.give_up(ticket)
            self._grant()
            self._bells.ring()

    def hand_over(self, ticket: Ticket, epoch: Prepared, held: Held, waited_s: float = 0.0) -> tuple[int, int]:
        """Make an epoch part of the run; returns its generation and index. From now on every read sees it.

        `waited_s`: how long it waited for room.

        Raises:
            Closed: no epochs are taken any more.
            EpochMismatch: an epoch that came first made the run another one.
        """
        with self._lock:
            self._refuse_if_closed()
            found = self._admit(epoch, held)
            self._room.give_up(ticket)
            self.waited_s += waited_s
            self._bells.ring()
            return found

    def try_hand_over(self, epoch: Prepared, held: Held) -> tuple[int, int] | None:
        """As `hand_over`, without having asked for room; None if there is none, or somebody waits for it."""
        with self._lock:
            if not (self._state.takes_epochs and self._room.has_for(epoch.kind.nbytes, self.pending)):
                return None
            found = self._admit(epoch, held)
            self._bells.ring()
            return found

    def _admit(self, epoch: Prepared, held: Held) -> tuple[int, int]:
        self.check_fits(epoch)
        kind, index = epoch.kind, self._registry.next_index
        known = self._registry if self._is_told else self._described(epoch)
        registry = admit(known, kind.nsamples, kind.nbytes, held.device_nbytes)
        self._shelf.held[index] = held
        self._arrivals.expect(held)
        self._is_told = True
        self._fit.take(kind)
        self._registry = registry  # the one step: a Ctrl-C before it changes nothing, one after it loses nothing
        return registry.generation, index

    def _described(self, epoch: Prepared) -> Registry:
        """The registry, with what the first epoch of a session says of its numbers."""
        learned = epoch.described()
        if learned is None:
            return self._registry
        metadata = completed(self._registry.metadata, learned)
        return self._registry if metadata == self._registry.metadata else describe(self._registry, metadata)

    def _grant(self) -> bool:
        return self._state.takes_epochs and self._room.grant(self.pending, self.on_device)

    def _refuse_if_closed(self) -> None:
        if not self._state.takes_epochs:
            error = Closed(f"the backend is {self._state}: it takes no more epochs")
            raise error from self._cause()

    def full_error(self) -> MailboxFull:
        """The error of who doesn't wait for room."""
        epochs, nbytes = self.pending
        why = f": {self.fault.error}" if self.fault else ""
        there = f", {on_device / 1e6:.1f} MB of them on a device" if (on_device := self.on_device) else ""
        error = MailboxFull(
            f"{epochs} epochs of {nbytes / 1e6:.1f} MB wait to be written{there}; there is no room{why}"
        )
        error.__cause__ = self._cause()
        return error

    def _cause(self) -> BaseException | None:
        return self.fault.error if self.fault else self.lost

    @property
    def is_unused(self) -> bool:
        """Whether the run is closed and no snapshot is left that reads from it."""
        return self._state is State.CLOSED and not self._pins

    # ---- asking --------------------------------------------------------------------------------------------------

    def set_burn(self, burn: int) -> None:
        """Discard the samples before position `burn`: every later read sees it.

        Raises:
            BurnLowered: it would be lower than it was.
            ValueError: it is beyond what a run can have.
        """
        if burn > MOST:
            check_count("burn", burn)
        with self._lock:
            self._refuse_if_closed()
            if burn < self._registry.burn:
                raise BurnLowered(
                    f"burn is {self._registry.burn} and can't be lowered to {burn}: what was burned is gone"
                )
            self._registry = raise_burn(self._registry, burn, asked=True)
            self._bells.ring()

    def clean(self) -> None:
        """Discard all that was ingested so far."""
        with self._lock:
            self._refuse_if_closed()
            self._registry = raise_burn(self._registry, self._registry.nsamples, asked=False)
            self._bells.ring()

    def reset(self) -> None:
        """Start empty, with the metadata given at opening; what was there goes when the writer gets to it."""
        metadata = begun(self.options.given)
        with self._lock:
            self._refuse_if_closed()
            self._registry = describe(reset(self._registry, self.options.epochs_per_file), metadata)
            self._shelf = Shelf(None)
            self._fit, self._is_told = Fit(), False
            self._demand = Demand()
            self._arrivals = Arrivals()
            self._is_tidy = not self._is_on_disk
            self._grant()
            self._bells.ring()

    def demand(self, *, publish: bool = False) -> tuple[int, Demand, int]:
        """Ask that all that is there now be written; returns what `is_done` takes."""
        with self._lock:
            registry = self._registry
            n = registry.next_index
            demand = Demand(n, n if publish else 0, registry.burn if n or self._is_on_disk else 0)
            self._ask(demand)
            return registry.generation, demand, self._faults.count

    def demand_epoch(self, generation: int, index: int) -> None:
        """Ask that an epoch be written, with those before it."""
        with self._lock:
            if generation == self._registry.generation:
                self._ask(Demand(write_to=index + 1))

    def _ask(self, demand: Demand) -> None:
        self._demand = self._demand.joined(demand)
        self.asked += 1
        self._bells.ring()

    def is_done(self, asked: tuple[int, Demand, int]) -> bool:
        """Whether a demand is met, or there is no sense in waiting: a condition to wait for."""
        return self._state.is_over or self._faults.count > asked[2] or self._is_met(asked)

    def _is_met(self, asked: tuple[int, Demand, int]) -> bool:
        generation, demand, _ = asked
        if generation != self._registry.generation:
            return self._is_tidy  # a reset took all of it away
        return is_met(self._registry, demand, self._pinned_burn()) and (self._is_tidy or not demand.publish_to)

    def check_done(self, asked: tuple[int, Demand, int]) -> None:
        """Raise what kept a demand from being met.

        Raises:
            WriteFailed: an attempt made since failed; the attempts go on.
            Closed: the backend was closed before.
        """
        self._check_state()
        if not self.holds(partial(self._is_met, asked)):
            self._faults.raise_since(asked[2])
            raise Closed("the backend was closed before all was written")

    @property
    def failures(self) -> int:
        """How many attempts to write failed so far."""
        return self._faults.count

    def has_failed(self, failures: int) -> bool:
        """Whether an attempt failed since there were `failures`: a condition to wait for."""
        return self._faults.count > failures

    def ask_settled(self, failures: int | None = None) -> Asked:
        """What the policy asks for now; returns what `is_settled` takes. What comes later delays nobody.

        `failures`: how many there were when it began to be waited for, by default those until now.
        """
        with self._lock:
            registry = self._registry
            asked = settled(registry, self.options.inmem_epochs, self._demand)
            return Asked(registry.generation, asked, self._faults.count if failures is None else failures)

    def check_settled(self, asked: Asked) -> None:
        """Raise what kept memory and disk from being as the policy asked.

        Raises:
            WriteFailed: an attempt to write; the attempts go on.
        """
        self._check_state()
        if not self.holds(partial(self._is_settled, asked)):
            self._faults.raise_since(asked.failures)

    def _check_state(self) -> None:
        if self._state is State.FAILED:
            raise WriteFailed(f"the writer broke: {self.lost}") from self.lost

    def has_news(self, seen: tuple[int, int, int] | None, min_samples: int) -> bool:
        """Whether enough changed since a generation, samples and burn that were seen: a condition to wait for."""
        if self._state.is_over:
            return True
        registry = self._registry
        if seen is None or registry.generation != seen[0] or registry.burn != seen[2]:
            return seen is not None or registry.nsamples > 0
        return registry.nsamples - seen[1] >= min_samples

    def is_settled(self, asked: Asked) -> bool:
        """Whether memory and disk are as the policy asked, or there is no sense in waiting: a condition to wait for."""
        return self._state.is_over or self._faults.count > asked.failures or self._is_settled(asked)

    def _is_settled(self, asked: Asked) -> bool:
        if self._state.is_over:
            return True
        if not self._is_tidy or self._has_due_asides():
            return False
        if asked.generation != self._registry.generation:
            return True  # a reset took all of it away
        return is_settled(self._registry, asked.due, self._demand, self._pinned_burn())

    def is_durable(self, generation: int, index: int) -> bool:
        """Whether an epoch survives a power cut, or there is no sense in waiting: a condition to wait for."""
        registry = self._registry
        return registry.generation != generation or registry.nwritten > index or self._state.is_over

    # ---- the writer's side ---------------------------------------------------------------------------------------

    def next_work(self) -> Work | None:
        """What to do next, or None."""
        with self._lock:
            self._pins.settle()
            self._let_go()
            if self._grant():
                self._bells.ring()
            actions = self._plan()
            if not actions and self._is_tidy and not self._has_due_asides():
                return None
            self._is_on_disk = True
            return Work(actions, self._registry, self._shelf.held, self._pins.show_before(self._registry.generation))

    def _has_due_asides(self) -> bool:
        """Whether files from before a reset are still there, and nobody reads them any more."""
        return self._has_asides and not self._pins.show_before(self._registry.generation)

    def _plan(self) -> list[Action]:
        return plan(
            self._registry,
            inmem_epochs=self.options.inmem_epochs,
            demand=self._demand,
            pinned_burn=self._pinned_burn(),
            nfetched=self._count_fetched(),
            is_in_doubt=self.fault is not None and not is_full(self.fault.error),
        )

    def _pinned_burn(self) -> int | None:
        return self._pins.burn(self._registry.generation)

    def report(self, work: Work, outcome: Outcome, catalog: Catalog | None) -> None:
        """Take in what came of some work."""
        with self._lock:
            if work.registry.generation == self._registry.generation:
                self._shelf.catalog = catalog
                for action in outcome.done:
                    self._registry = done(self._registry, action)
                self._is_tidy = outcome.is_tidy
                self._let_go()
            self._has_asides = outcome.has_asides
            self._faults.note(outcome.error)
            self._state = after(self._state, Event.WRITE_FAILED if outcome.error else Event.WRITE_WORKED)
            self._grant()
            self._bells.ring()

    # ---- the device's side ---------------------------------------------------------------------------------------

    def _count_fetched(self) -> int:
        """Epochs before this one are in memory or on disk."""
        return self._arrivals.count(self._registry, self._shelf.held)

    @property
    def has_unfetched(self) -> bool:
        """Whether an epoch is to be fetched from its device."""
        if self._arrivals.are_all:
            return False
        with self._lock:
            return self.never_comes is None and self._count_fetched() < self._registry.next_index

    @property
    def waits_for_device(self) -> bool:
        """Whether what is to be written next is to be fetched first."""
        with self._lock:
            target = write_target(self._registry, self.options.inmem_epochs, self._demand)
            return self.never_comes is None and self._count_fetched() < target

    @property
    def never_comes(self) -> Exception | None:
        """Why an epoch can't be fetched; then neither it nor those behind it can be written."""
        return self._arrivals.never_comes

    def next_fetch(self) -> Fetch | None:
        """The first epoch that is still on a device."""
        with self._lock:
            if not self.has_unfetched:
                return None
            index = self._count_fetched()
            return Fetch(self._registry.generation, index, self._shelf.held[index])

    def note_fetched(self) -> None:
        """An epoch was fetched: its place on the device is free."""
        with self._lock:
            self._grant()
            self._bells.ring()

    def note_never_comes(self, fetch: Fetch, error: Exception) -> None:
        """An epoch can't be fetched: those before it are to be written."""
        with self._lock:
            if fetch.generation == self._registry.generation:
                self._arrivals.never_comes = error
                self._ask(Demand(write_to=fetch.epoch))

    def _let_go(self) -> None:
        """Forget the epochs that needn't stay in memory: those on disk, unless a snapshot shows more than is there."""
        floor = memory_floor(self._registry, self.options.inmem_epochs)
        held = self._shelf.held
        is_read = bool(self._pins)
        for index in list(takewhile(floor.__gt__, held)):
            if not (is_read and self._pins.show_cut(self._registry, index)):
                del held[index]

    def call_before_closing(self, call: Callable[[], None]) -> None:
        """Have something called that hands over what it holds, before no more epochs are taken. It must not raise."""
        with self._lock:
            self._before_closing.append(call)

    @property
    def is_silent(self) -> bool:
        """Whether the process is about to end: who hands over waits for that, in place of an error."""
        return self._is_silent

    def ask_close(self, *, silently: bool = False) -> None:
        """Take no more epochs, and write and publish all that is there. `silently`: see `is_silent`."""
        self._is_silent |= silently and not self._state.is_over
        for call in self._before_closing:
            call()  # without the lock: it has one of its own
        with self._lock:
            if self._state.is_over:
                return
            self._state = after(self._state, Event.CLOSE_ASKED)
            registry = self._registry
            n = registry.next_index
            self._ask(Demand(n, n, registry.burn if n or self._is_on_disk else 0))

    def note_closed(self) -> None:
        """The folder was let go."""
        with self._lock:
            self._state = after(self._state, Event.ALL_RELEASED)
            self._let_go()
            self._bells.ring()

    def note_broken(self, error: BaseException) -> None:
        """The writer ended in a way that wasn't foreseen."""
        with self._lock:
            self.lost = error
            self._state = after(self._state, Event.BROKE)
            self._bells.ring()

    def missing(self) -> Sequence[int]:
        """The epochs that aren't on disk."""
        return range(self._registry.nwritten, self._registry.next_index)


def not_stored(error: BaseException | None) -> PosterityError:
    """The error of an epoch that will never be written."""
    failed = WriteFailed(f"the epoch was not written: {error}")
    failed.__cause__ = error
    return failed


_ledgers: "weakref.WeakSet[Ledger]" = weakref.WeakSet()


def _disarm_all() -> None:
    for ledger in list(_ledgers):
        ledger.disarm()


os.register_at_fork(after_in_child=_disarm_all)
