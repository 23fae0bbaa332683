"""Waiting for the ledger from a task, on asyncio and on trio, without a task or thread of ours in the caller's loop.

Up the stream: `ledger` announces changes. Down the stream: receipts, and the awaited face.
"""

from collections.abc import Callable
from types import TracebackType

import anyio
from anyio.lowlevel import RunVar, checkpoint

from posterity._system.event_loop import Loop, is_in_loop

from .ledger import Ledger


class _Chime:
    """Wakes the tasks of one event loop that wait for one ledger.

    However many they are, and however often it rings, the loop is called once: listeners cost a sampler nothing.
    """

    def __init__(self, ledger: Ledger, chimes: "dict[Ledger, _Chime]") -> None:
        self._ledger = ledger
        self._chimes = chimes
        self._loop = Loop()
        self._ntasks = 0
        self._event: anyio.Event | None = None
        self._is_called = False

    def __enter__(self) -> None:
        self._ntasks += 1
        self._ledger.listen(self, self._ring)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ntasks -= 1
        if not self._ntasks and (kind is not GeneratorExit or is_in_loop()):
            self._ledger.unlisten(self)
            del self._chimes[self._ledger]

    def _ring(self) -> None:
        """Called at each change, in any thread, under the ledger's lock."""
        if not self._is_called:
            self._loop.call(self._wake)
            self._is_called = True  # after the call: an interrupt between the two must leave nobody asleep

    def _wake(self) -> None:
        """In the loop."""
        self._ledger.holds(self._note_heard)
        event, self._event = self._event, None
        if event is not None:
            event.set()

    def _note_heard(self) -> bool:
        self._is_called = False
        return True

    async def until(self, condition: Callable[[], bool]) -> None:
        while True:
            event = self._event = self._event or anyio.Event()  # before the look, so that no ring is missed
            if self._ledger.holds(condition):
                return
            await event.wait()


_chimes: RunVar[dict[Ledger, _Chime]] = RunVar("posterity_chimes")


async def until(ledger: Ledger, condition: Callable[[], bool]) -> None:
    """Wait until a condition holds. Being cancelled leaves nothing behind."""
    await checkpoint()
    chimes = _chimes.get(None)
    if chimes is None:
        _chimes.set(chimes := {})
    chime = chimes.get(ledger) or chimes.setdefault(ledger, _Chime(ledger, chimes))
    with chime:
        await chime.until(condition)
