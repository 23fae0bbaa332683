"""The writer task: fetches work from the ledger, has the store do it in the I/O thread, reports, and tries again.

It runs on an event loop of its own, in a thread of its own: a caller who blocks or closes its loop neither starves nor
kills it. It contains no rule about what to write: that is the policy's.

Up the stream: `ledger`. Down the stream: `store`.
"""

import contextlib
import logging
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import anyio

from posterity._model.states import State
from posterity._store.lock import HEARTBEAT_S
from posterity._store.store import Outcome, Store
from posterity._system.buffer_pool import Buffers
from posterity._system.process_end import EndListener, report_lost, tell_no_more, tell_when_process_ends
from posterity._system.threads import IoThread, OurThread
from posterity._system.uncopyable import Uncopyable

from .device_fetcher import Fetcher
from .ledger import Ledger, Work

if TYPE_CHECKING:
    import asyncio

logger = logging.getLogger("posterity.writer")


class Writer(EndListener, Uncopyable):
    """Writes what is in a ledger to a store, until the ledger is closed and all is written."""

    def __init__(self, ledger: Ledger, store: Store, buffers: Buffers, name: str) -> None:
        self._ledger = ledger
        self._store = store
        self._io = IoThread(f"posterity-io {name}")
        self._fetcher = Fetcher(ledger, buffers, name)
        self._thread = OurThread(f"posterity-writer {name}", self._run)
        self._runs = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake: asyncio.Event | None = None
        self._sleeps = False
        self._deadline: float | None = None

    def start(self) -> None:
        """Start the threads. Returns when the loop runs: a fork, or a Ctrl-C, must not fall into what it imports."""
        self._io.start()
        try:
            tell_when_process_ends(self)
            self._fetcher.start()
            self._thread.start()
        except BaseException:  # the system has no thread left; those that run mustn't wait for ever, and we for them
            tell_no_more(self)
            self._fetcher.stop()
            self._io.stop()
            raise
        self._runs.wait()

    @property
    def has_started(self) -> bool:
        """Whether the thread was started that closes the store at its end."""
        return self._thread.ident is not None

    def join(self) -> None:
        """Wait until the threads have ended."""
        if self.has_started:
            self._thread.join()

    def later(self, call: Callable[[], None]) -> None:
        """Have something called in the I/O thread. Safe in a finaliser."""
        self._io.put(call)

    def process_ends(self) -> None:
        """Nobody hands over any more: write all, then let the process go."""
        if self._deadline is None:
            self._deadline = time.monotonic() + self._ledger.options.exit_timeout_s
        self._ledger.ask_close()

    def process_waits_no_longer(self) -> None:
        """It was interrupted once more: what isn't written now never will be."""
        self._report_if_lost("the process was interrupted before they were written")

    def _run(self) -> None:
        try:
            anyio.run(self._main, backend="asyncio")
        except BaseException as error:  # the loop itself broke, or the interpreter did
            self._report_if_lost(error)
            self._ledger.note_broken(error)
            raise
        finally:
            self._runs.set()
            self._io.stop()
            self._fetcher.stop()
            tell_no_more(self)

    async def _main(self) -> None:
        import asyncio  # noqa: PLC0415  # it is imported by now; before the first writer nobody needs it

        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._ledger.listen(self, self._nudge)
        self._runs.set()
        try:
            await self._write_all()
            await self._io.run(self._store.close)
            self._ledger.note_closed()
        except Exception as error:  # noqa: BLE001  # the top of the writer: whatever it is, somebody must hear of it
            is_foreseen = isinstance(error, OSError)  # the disk failed to the end; a traceback would say no more
            what = "gave up" if is_foreseen else "broke"
            # As text: a handler may keep what it gets, and with an error all that its frames refer to.
            told = str(error) if is_foreseen else "".join(traceback.format_exception(error))
            logger.critical("the writer of %s %s: %s", self._store.disk.folder, what, told)
            self._report_if_lost(error)
            self._ledger.note_broken(error)
            await self._io.run(self._store.close)
        finally:
            self._ledger.unlisten(self)

    def _nudge(self) -> None:
        """Called at each change, in any thread, under the ledger's lock; costs nothing while the writer is at work."""
        if self._sleeps:
            self._io.put(self._rouse)
            self._sleeps = False  # once is enough; and after the call: an interrupt between the two loses nothing

    def _note_asleep(self) -> bool:
        """Under the ledger's lock, so that no nudge is half done."""
        self._sleeps = True
        return True

    def _rouse(self) -> None:
        """In the I/O thread, idle then: to wake a loop is to let go of the GIL, and a sampler waits to have it back."""
        assert self._loop is not None
        assert self._wake is not None
        with contextlib.suppress(RuntimeError):  # the loop is closed: it has ended by itself
            self._loop.call_soon_threadsafe(self._wake.set)

    async def _write_all(self) -> None:
        pause = self._ledger.options.retry_after_s
        while True:
            asked = self._ledger.asked
            work = self._ledger.next_work()
            if work is None:
                if self._ledger.never_comes is not None:
                    raise self._ledger.never_comes
                if self._is_done():
                    return
                await self._sleep(HEARTBEAT_S)
                continue
            outcome = await self._io.run(partial(self._work, work))
            self._ledger.report(work, outcome, self._store.catalog)
            if outcome.error is None:
                pause = self._ledger.options.retry_after_s
            elif self._has_given_up():
                raise outcome.error
            else:
                await self._retry_later(pause, asked)
                pause = min(2 * pause, self._ledger.options.retry_at_most_s)
            del work

    def _is_done(self) -> bool:
        """Whether nothing more will come, if there is no work now."""
        return self._ledger.state is State.CLOSING and not self._ledger.waits_for_device

    def _work(self, work: Work) -> Outcome:
        """In the I/O thread: do some work, and write off nothing that went wrong."""
        outcome = self._store.work(work.actions, work.registry, work.held, old_is_read=work.old_is_read)
        fault = self._ledger.fault
        if outcome.error is not None and (fault is None or str(fault.error) != str(outcome.error)):
            told = str(outcome.error)  # not the error itself: a handler may keep it, and with it epochs and descriptors
            logger.error("%s: writing failed, it is tried again: %s", self._store.disk.folder, told)
        if outcome.error is None and fault is not None:
            logger.warning("%s: writing works again after %d attempts", self._store.disk.folder, fault.attempts)
        return outcome

    async def _sleep(self, seconds: float) -> None:
        """Until something changes, or for a while; in between, show that the writer lives."""
        assert self._wake is not None
        self._wake.clear()
        self._ledger.holds(self._note_asleep)
        if self._ledger.next_work() is None and self._ledger.never_comes is None and not self._is_done():
            with anyio.move_on_after(seconds):
                await self._wake.wait()
        self._sleeps = False
        if not self._wake.is_set():
            await self._io.run(self._store.beat)

    async def _retry_later(self, pause: float, asked: int) -> None:
        """After a pause, or at once if somebody asks for it, who may know that there is room again."""
        assert self._wake is not None
        left = pause if self._deadline is None else min(pause, max(0.0, self._deadline - time.monotonic()))
        with anyio.move_on_after(left):
            while True:
                self._wake.clear()
                self._ledger.holds(self._note_asleep)
                if self._ledger.asked > asked:
                    break
                await self._wake.wait()
        self._sleeps = False

    def _has_given_up(self) -> bool:
        return self._deadline is not None and time.monotonic() >= self._deadline

    def _report_if_lost(self, why: object) -> None:
        missing = self._ledger.missing()
        if missing:
            report_lost(
                f"{len(missing)} epochs of {self._store.disk.folder} were lost, {missing[0]} to {missing[-1]}: {why}"
            )
