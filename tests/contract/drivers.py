"""The faces of a run, made alike for the contract suite: everything that may wait is awaited.

A driver opens backends and hands out `Handle`s. The suite is written against these two and never names a face, so a new
face needs a driver, an entry in `conftest.DRIVERS`, and not one line in a test.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial

from posterity import DefaultBackend, WriteFailed, read_epoch

AWAITED = frozenset(
    [
        "ingest",
        "ingest_dict",
        "get",
        "set_burn",
        "clean",
        "update",
        "reset",
        "get_samples",
        "get_stats",
        "load",
        "flush",
        "close",
        "read_epoch",
        "load_epoch",
    ]
)
_END = object()


class BlockingDriver:
    """`DefaultBackend`. Each call is made in a thread that isn't the loop's, so tasks may wait for each other."""

    def __init__(self):
        self._callers = ThreadPoolExecutor(16, "test-caller")
        self._opened = []
        self.on_failure = []  # called when a test fails, so that closing doesn't wait for what was broken

    async def call(self, function, *args, **kwargs):
        return await asyncio.get_running_loop().run_in_executor(self._callers, partial(function, *args, **kwargs))

    async def open(self, *args, **options):
        backend = await self.call(lambda: DefaultBackend(*args, **options))
        self._opened.append(backend)
        return Handle(self, backend)

    async def read_epoch(self, *args):
        return await self.call(read_epoch, *args)

    @asynccontextmanager
    async def snapshot(self, backend):
        snapshot = await self.call(backend.snapshot)
        with snapshot:
            yield Handle(self, snapshot)

    async def updates(self, backend, min_samples):
        updates = backend.updates(min_samples)
        while (snapshot := await self.call(next, updates, _END)) is not _END:
            yield Handle(self, snapshot)

    async def enter(self, backend):
        await self.call(backend.__enter__)

    async def leave(self, backend, *error):
        await self.call(backend.__exit__, *error)

    def forget(self, handle):
        """Don't close this one at the end: it can't be."""
        self._opened.remove(handle.target)

    def end(self):
        while self._opened:
            self._opened.pop().close()
        self._callers.shutdown()


class Handle:
    """A backend or a snapshot of any face: methods are awaited, `status` and the like are not."""

    def __init__(self, driver, target):
        self.driver = driver
        self.target = target

    def __getattr__(self, name):
        found = getattr(self.target, name)
        return partial(self._call, found) if name in AWAITED else found

    async def _call(self, method, *args, **kwargs):
        result = await self.driver.call(method, *args, **kwargs)
        return self if result is self.target else result

    def __repr__(self):
        return repr(self.target)

    def snapshot(self):
        return self.driver.snapshot(self.target)

    def updates(self, min_samples=1):
        return self.driver.updates(self.target, min_samples)

    async def __aenter__(self):
        await self.driver.enter(self.target)
        return self

    async def __aexit__(self, kind, error, trace):
        if kind is not None:
            for heal in self.driver.on_failure:
                heal()
        await self.driver.leave(self.target, kind, error, trace)


async def flushed(backend, **how):
    """Flush, over and over, until the disk takes it: each failure is one more attempt of the writer's."""
    while True:
        try:
            return await backend.flush(**how)
        except WriteFailed:
            continue
