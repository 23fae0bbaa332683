"""SIGTERM, as batch systems send it: everything is written first, and then the process dies as it would have.

Up the stream: `service`, if that was asked for. Down the stream: `ledger` takes no more epochs, and says when all is
written.
"""

import os
import queue
import signal
import threading
import weakref
from collections.abc import Callable
from types import FrameType
from typing import TypeAlias

from posterity._system.process_end import report_lost
from posterity._system.threads import OurThread

from .ledger import Ledger

Handler: TypeAlias = Callable[[int, FrameType | None], object] | int | None


def flush_on_sigterm(ledger: Ledger, timeout_s: float) -> None:
    """On SIGTERM have a run written and closed, then give the signal on. To be called in the main thread.

    `timeout_s`: how long to wait for a disk that fails; what isn't written then is reported as lost.
    """
    pid = os.getpid()
    before = signal.getsignal(signal.SIGTERM)
    orders: queue.SimpleQueue[bool] = queue.SimpleQueue()
    is_written = threading.Event()

    def write_all() -> None:
        if not orders.get():
            return
        ledger.ask_close(silently=True)
        ledger.wait(lambda: ledger.state.is_over, timeout_s)
        if missing := ledger.missing():
            report_lost(f"SIGTERM came, and epochs {missing[0]} to {missing[-1]} could not be written")
        is_written.set()
        os.kill(os.getpid(), signal.SIGTERM)

    def end_with_the_run() -> None:
        if ledger.state.is_over:
            orders.put(False)

    def on_sigterm(_number: int, _frame: FrameType | None) -> None:
        if is_written.is_set() or os.getpid() != pid or ledger.state.is_over:
            signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            orders.put(True)  # it isn't done here: the main thread may have the ledger's lock just now

    # Started now: when SIGTERM comes the interpreter may be waiting for our threads, and start no more.
    OurThread("posterity-sigterm", write_all).start()
    ledger.listen(orders, end_with_the_run)
    _sigterm_before[on_sigterm] = before
    signal.signal(signal.SIGTERM, on_sigterm)


_sigterm_before: "weakref.WeakKeyDictionary[Callable[..., object], Handler]" = weakref.WeakKeyDictionary()


def _restore_sigterm() -> None:
    """In a forked child: it dies of SIGTERM as its parent did before, at once. A pool waits for its workers to.

    Python might overlook a signal that it has to handle itself, if it comes just before the worker waits.
    """
    ours = handler = signal.getsignal(signal.SIGTERM)
    while callable(handler) and handler in _sigterm_before:
        handler = _sigterm_before[handler]
    if handler is not ours:
        signal.signal(signal.SIGTERM, handler if handler is not None else signal.SIG_DFL)


os.register_at_fork(after_in_child=_restore_sigterm)
