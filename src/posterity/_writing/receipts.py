"""Receipts: what `ingest_nowait` gives back at once, and what can be waited for later."""

import weakref
from collections.abc import Callable, Generator
from functools import partial

from posterity._ingest.owned import Held
from posterity._system.uncopyable import Uncopyable
from posterity.errors import Closed

from .ledger import Ledger, not_stored


class Promise(Uncopyable):
    """Something that will have happened. It can be awaited, waited for, or asked."""

    _INSTEAD = "it is waited for in the process that handed the epoch over"

    __slots__ = ("_ask", "_check", "_condition", "_ledger")

    def __init__(
        self, ledger: Ledger, condition: Callable[[], bool], ask: Callable[[], None], check: Callable[[], None]
    ) -> None:
        self._ledger = ledger
        self._condition = condition
        self._ask = ask
        self._check = check

    @property
    def done(self) -> bool:
        """Whether it has happened, or never will."""
        return self._ledger.holds(self._condition)

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait for it in this thread.

        Raises:
            TimeoutError: it hasn't happened in time.
            PosterityError: it never will.
        """
        self._ask()
        if not self._ledger.wait(self._condition, timeout_s):
            raise TimeoutError(f"it has not happened within {timeout_s} s")
        self._check()

    def __await__(self) -> Generator[object, None, None]:
        self._ask()
        from .waiting import until  # noqa: PLC0415  # with anyio, which a blocking caller needs nothing of

        yield from until(self._ledger, self._condition).__await__()
        self._check()


class Receipt(Uncopyable):
    """For an epoch that was handed over. `index`: its number in the run.

    `released`: its arrays are free again. `durable`: it survives a power cut; raises the epoch's error if it never
    will.
    """

    _INSTEAD = "it is waited for in the process that handed the epoch over; send its index"

    __slots__ = ("_generation", "_held", "_ledger", "index")

    def __init__(self, ledger: Ledger, generation: int, index: int, held: "weakref.ref[Held] | None" = None) -> None:
        self.index = index
        self._ledger = ledger
        self._generation = generation
        self._held = held

    @property
    def durable(self) -> Promise:
        """That it survives a power cut; raises the epoch's error if it never will."""
        ledger, place = self._ledger, (self._generation, self.index)
        return Promise(
            ledger,
            partial(ledger.is_durable, *place),
            partial(ledger.demand_epoch, *place),
            partial(_check_durable, ledger, *place),
        )

    @property
    def released(self) -> Promise:
        """That its arrays are free again."""
        held = self._held
        return Promise(
            self._ledger, partial(_is_released, self._ledger, held), _nothing, partial(_check_released, held)
        )

    def __repr__(self) -> str:
        return f"<Receipt of epoch {self.index}, {'durable' if self.durable.done else 'not yet durable'}>"


def _check_durable(ledger: Ledger, generation: int, index: int) -> None:
    registry = ledger.registry
    if registry.generation == generation and registry.nwritten <= index:
        raise not_stored(ledger.lost)


def _is_released(ledger: Ledger, held: "weakref.ref[Held] | None") -> bool:
    """Whether nobody has the arrays any more: not the writer, no read under way, no older snapshot."""
    return held is None or held() is None or ledger.state.is_over


def _check_released(held: "weakref.ref[Held] | None") -> None:
    if held is not None and held() is not None:
        raise Closed("the backend is closed, and a snapshot that isn't released still reads the arrays")


def _nothing() -> None:
    pass
