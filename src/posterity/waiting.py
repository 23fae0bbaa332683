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
        self._is_rung = False

    def ring(self) -> None:
        if not self._is_rung:
            self._is_rung = True
            with contextlib.suppress(RuntimeError):  # the task's loop was closed: nobody is there to wake
                self._call(self._set)

    def _set(self) -> None:
        self._event.set()

    async def wait(self) -> None:
        await self._event.wait()
        self._event = anyio.Event()
        self._is_rung = False


async def until(ledger: Ledger, condition: Callable[[], bool]) -> None:
    """Wait until a condition holds. Being cancelled leaves nothing behind."""
    await anyio.lowlevel.checkpoint()
    bell = _Bell()
    ledger.listen(bell, bell.ring)
    try:
        while not ledger.holds(condition):
            await bell.wait()
    finally:
        ledger.unlisten(bell)
