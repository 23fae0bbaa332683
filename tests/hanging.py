"""Calls that hang until they are let go, and waiting for what threads do: for tests in an event loop."""

import threading
from contextlib import contextmanager

import anyio

from posterity._system.reader_threads import in_thread


class Hanging:
    """A call that hangs in its thread until it is let go.

    `inside`: how many are in it now; `most`: ever at once. `where`: of which calls, by their arguments; all by default.
    """

    def __init__(self, function, where=lambda *args: True):
        self._function = function
        self._where = where
        self._guard = threading.Lock()
        self._goes_on = threading.Event()
        self.inside = self.most = 0

    def __call__(self, *args, **kwargs):
        if not self._goes_on.is_set() and self._where(*args):
            with self._guard:
                self.inside += 1
                self.most = max(self.most, self.inside)
            self._goes_on.wait()
            with self._guard:
                self.inside -= 1
        return self._function(*args, **kwargs)

    def let_go(self):
        self._goes_on.set()

    def hang(self):
        self._goes_on.clear()


@contextmanager
def made_to_hang(monkeypatch, owner, name, where=lambda *args: True):
    """A method of a class hangs until the end of the block, or until it is let go."""
    call = Hanging(getattr(owner, name), where)

    def hang(*args, **kwargs):
        return call(*args, **kwargs)

    monkeypatch.setattr(owner, name, hang)
    try:
        yield call
    finally:
        call.let_go()


async def seen(condition):
    """Wait until something can be seen that a thread does: there is no event to wait for."""
    with anyio.fail_after(30):
        while not condition():
            await in_thread(threading.Event().is_set)
