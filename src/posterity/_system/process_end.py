"""Tells listeners that no thread is left which could hand anything over: they write the rest, then the process ends.

The interpreter waits for our threads, which aren't daemons. For that they must know when the main thread and every
other thread that isn't a daemon has ended.

Up the stream: `threads`. Down the stream: `writer` listens.
"""

import atexit
import os
import sys
import threading

from .threads import OurThread

LOST_EXIT_CODE = 74  # EX_IOERR of sysexits.h


class _EndWatch:
    """Tells its listeners when no thread is left that could hand anything over. One for the process, like its end.

    It has no lock, which a Ctrl-C or a fork could leave held: each change of its listeners is one step.
    """

    def __init__(self) -> None:
        self.begin_anew()

    def begin_anew(self) -> None:
        """In a forked child: who listens is the parent's, and so is what was lost."""
        self._listeners: dict[EndListener, None] = {}
        self._watches = False
        self.has_ended = False
        self.has_lost = False

    def add(self, listener: "EndListener") -> None:
        self._listeners[listener] = None
        if not self._watches:
            threading.Thread(name="posterity-end-watch", target=self._run, daemon=True).start()
            self._watches = True

    def discard(self, listener: "EndListener") -> None:
        """A listener has ended. The last one of a multiprocessing worker ends it, if samples were lost."""
        self._listeners.pop(listener, None)
        is_last = self.has_ended and not self._listeners
        if is_last and _is_worker():  # there, what atexit registered may not run
            self.exit_if_lost()

    def _run(self) -> None:
        threading.main_thread().join()
        while others := [thread for thread in threading.enumerate() if _keeps_process(thread)]:
            for thread in others:
                thread.join()
        self.has_ended = True
        self._tell()

    def _tell(self) -> None:
        for listener in list(self._listeners):
            listener.process_ends()

    def wait_for_all(self) -> None:
        """Wait for those that are still at work although the interpreter waits for no thread any more.

        It doesn't after a Ctrl-C in its wait, nor for threads that an exit handler started.
        """
        if not self._listeners:
            return
        sys.stderr.write("posterity: still writing; to be interrupted now would lose epochs\n")
        self._tell()
        for listener in list(self._listeners):
            listener.join()

    def exit_if_lost(self) -> None:
        """End the process with our exit code, if samples were lost: it can't be set in another way at its end."""
        for listener in list(self._listeners):
            listener.process_waits_no_longer()
        if self.has_lost:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(LOST_EXIT_CODE)


class EndListener:
    """Something that wants to know when the process ends."""

    def process_ends(self) -> None:
        """No thread is left that could hand anything over."""
        raise NotImplementedError

    def join(self) -> None:
        """Wait until it has ended."""
        raise NotImplementedError

    def process_waits_no_longer(self) -> None:
        """The process ends now: say what is lost."""
        raise NotImplementedError


def _keeps_process(thread: threading.Thread) -> bool:
    return not (thread.daemon or isinstance(thread, OurThread) or thread is threading.main_thread())


_end_watch = _EndWatch()


def tell_when_process_ends(listener: EndListener) -> None:
    """Have a listener told; it is kept until it has ended."""
    _end_watch.add(listener)


def tell_no_more(listener: EndListener) -> None:
    """The listener has ended."""
    _end_watch.discard(listener)


def _is_worker() -> bool:
    """Whether this process is a multiprocessing worker; one has the module imported."""
    process = sys.modules.get("multiprocessing.process")
    return process is not None and process.parent_process() is not None


def report_lost(message: str) -> None:
    """Say on stderr what was lost at the end of the process, and see to it that its exit code isn't 0."""
    sys.stderr.write(f"posterity: {message}\n")
    _end_watch.has_lost = True


# They run in the opposite order, and after what programs register: if one is interrupted, the other one sees it.
atexit.register(_end_watch.exit_if_lost)
atexit.register(_end_watch.wait_for_all)
os.register_at_fork(after_in_child=_end_watch.begin_anew)
