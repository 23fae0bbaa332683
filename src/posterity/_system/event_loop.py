"""The event loop that runs in a thread, asyncio's or trio's, as other threads see it.

Down the stream: `waiting` wakes tasks through it; the awaited reads give their places back there.
"""

import contextlib
import weakref
from collections.abc import Callable

from anyio.lowlevel import current_token


class Loop:
    """The event loop that runs in this thread, to be called from any other."""

    def __init__(self) -> None:
        self._native = weakref.ref(current_token().native_token)

    def is_open(self) -> bool:
        """Whether it can still run; trio's ends only when all its tasks have."""
        native = self._native()
        return native is not None and not getattr(native, "is_closed", bool)()

    def call(self, function: Callable[[], object]) -> None:
        """Have something called there soon; nothing happens if the loop was closed."""
        native = self._native()
        post = getattr(native, "call_soon_threadsafe", None) or getattr(native, "run_sync_soon", None)  # trio's token
        if post is not None:
            with contextlib.suppress(RuntimeError):
                post(function)


def is_in_loop() -> bool:
    """Whether an event loop runs in this thread. If not, a coroutine that leaves a block is being finalised.

    That may happen at any moment, also while this very thread has the ledger's lock.
    """
    try:
        current_token()
    except RuntimeError:
        return False
    return True
