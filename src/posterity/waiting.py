"""Waiting for the ledger from a task, on asyncio and on trio, without a task or thread of ours in the caller's loop.

Up the stream: `ledger` announces changes. Down the stream: receipts, and the awaited face.
"""

import contextlib
from collections.abc import Callable

import anyio
from anyio.lowlevel import current_token

from .ledger import Ledger


class _Bell:
    """Wakes one task; rung from any thread."""

    def __init__(self) -> None:
        native = current_token().native_token
        self._call: Callable[[Callable[[], None]], object] = getattr(native, "call_soon_threadsafe", None) or (
            native.run_sync_soon  # type: ignore[attr-defined]  # trio's token
        )
        self._event = anyio.Event()
        self._waits = False  # changed by the task alone, so that no interrupted ring can leave it asleep

    def ring(self) -> None:
        if self._waits:
            with contextlib.suppress(RuntimeError):  # the task's loop was closed: nobody is there to wake
                self._call(self._set)

    def _set(self) -> None:
        self._waits = False
        self._event.set()

    def arm(self) -> None:
        self._event = anyio.Event()
        self._waits = True

    async def wait(self) -> None:
        await self._event.wait()


async def until(ledger: Ledger, condition: Callable[[], bool]) -> None:
    """Wait until a condition holds. Being cancelled leaves nothing behind."""
    await anyio.lowlevel.checkpoint()
    bell = _Bell()
    ledger.listen(bell, bell.ring)
    try:
        while True:
            bell.arm()
            if ledger.holds(condition):
                return
            await bell.wait()
    finally:
        ledger.unlisten(bell)
