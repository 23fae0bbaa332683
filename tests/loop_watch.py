"""Notices when the awaited face holds up the event loop that its caller runs in.

Three ways to see it. Calls that wait, or touch a disk, must not be made there at all: that needs no clock. What the
service does there must take little of the processor's time, which a busy machine changes less than the clock's: the
host of a virtual one added 0.4 s to a step of microseconds. And whatever else may be slow, a lock that somebody has for
instance, is found by a thread that calls on the loop and looks at its stack when no answer comes.

What a test does in its own loop is its own affair: only what the awaited face is on the stack of counts.
"""

import asyncio
import functools
import gc
import inspect
import sys
import threading
import time
import traceback
from contextlib import contextmanager
from pathlib import Path

import trio
from anyio.lowlevel import current_token

import posterity
from posterity._system.disk import Disk
from posterity._writing.ledger import Ledger
from posterity._writing.service import Service
from posterity._writing.wakers import Bell

PACKAGE = str(Path(posterity.__file__).parent)
FACE_MODULES = (
    "_reading/async_reads",
    "_reading/async_snapshot",
    "_system/event_loop",
    "_system/reader_threads",
    "_writing/awaited",
    "_writing/waiting",
)
FACE = {f"{PACKAGE}/{name}.py" for name in FACE_MODULES}

# Giving a descriptor back that was only read from waits for nothing, and finalisers do it.
HARMLESS = {"close", "leave"}
ON_DISK = [name for name, found in vars(Disk).items() if inspect.isfunction(found) and name[0] != "_"]
ON_DISK = [name for name in ON_DISK if name not in HARMLESS]
WAITING = [(Ledger, "wait"), (Bell, "wait"), (threading.Thread, "join"), (threading.Event, "wait"), (time, "sleep")]
WORKING = [name for name, found in vars(Service).items() if inspect.isfunction(found) and name[0] != "_"]


def runs_loop():
    """Whether an event loop runs in this thread."""
    return asyncio._get_running_loop() is not None or trio.lowlevel.in_trio_run()


def is_of_face(frame):
    """Whether the awaited face is on a stack: one of its modules, or any coroutine of ours."""
    while frame is not None:
        code = frame.f_code
        if code.co_filename in FACE or (code.co_flags & inspect.CO_COROUTINE and code.co_filename.startswith(PACKAGE)):
            return True
        frame = frame.f_back
    return False


class LoopWatch:
    """Watches the loops of one test. `found`: what held one up, each with its stack."""

    def __init__(self, *, every_s=0.1, samples=30, most_cpu_s=1.0):
        self.found = []
        self._every_s = every_s
        self._samples = samples
        self._most_cpu_s = most_cpu_s

    def install(self, monkeypatch):
        """Have every call noticed that mustn't be made in a loop."""
        for name in ON_DISK:
            monkeypatch.setattr(Disk, name, self._noticed(getattr(Disk, name)))
        for owner, name in WAITING:
            monkeypatch.setattr(owner, name, self._noticed(getattr(owner, name), by=PACKAGE))
        for name in WORKING:
            monkeypatch.setattr(Service, name, self._timed(getattr(Service, name)))

    def _note(self, what, frame):
        self.found.append(f"{what}\n{''.join(traceback.format_stack(frame, limit=12))}")

    def _noticed(self, function, by=""):
        """`by`: where the call itself is made; starting a thread waits a moment, and may."""

        @functools.wraps(function)
        def call(*args, **kwargs):
            frame = sys._getframe(1)
            if runs_loop() and frame.f_code.co_filename.startswith(by) and is_of_face(frame):
                self._note(f"{function.__qualname__} was called in the caller's loop", frame)
            return function(*args, **kwargs)

        return call

    def _timed(self, function):
        @functools.wraps(function)
        def call(*args, **kwargs):
            frame = sys._getframe(1)
            if not (runs_loop() and is_of_face(frame)):
                return function(*args, **kwargs)
            gc.disable()  # whose turn it is to collect a test process's garbage is chance
            start = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                took_s = time.thread_time() - start
                gc.enable()
                if took_s > self._most_cpu_s:
                    self._note(f"{function.__qualname__} took {took_s:.2f} s of the processor in the loop", frame)

        return call

    def around(self, function):
        """An async function whose loop is called on as long as it runs."""

        @functools.wraps(function)
        async def run(*args, **kwargs):
            with self.calling():
                return await function(*args, **kwargs)

        return run

    @contextmanager
    def calling(self):
        """Call on the loop of this thread until the end of the block."""
        native = current_token().native_token
        post = getattr(native, "call_soon_threadsafe", None) or native.run_sync_soon
        is_over = threading.Event()
        caller = threading.Thread(
            name="loop-watch", target=self._call, args=(post, threading.get_ident(), is_over), daemon=True
        )
        caller.start()
        try:
            yield
        finally:
            is_over.set()
            caller.join()

    def _call(self, post, thread, is_over):
        while not is_over.is_set():
            answered = threading.Event()
            try:
                post(answered.set)
            except RuntimeError:  # the loop was closed
                return
            self._wait_for(answered, thread, is_over)
            is_over.wait(self._every_s)

    def _wait_for(self, answered, thread, is_over):
        samples = 0
        while not answered.wait(self._every_s) and not is_over.is_set():
            frame = sys._current_frames().get(thread)
            samples = samples + 1 if is_of_face(frame) else 0
            if samples == self._samples:
                self._note(f"the loop stood still for {samples} samples of its stack, the last of them", frame)
                sys.stderr.write(self.found[-1])
