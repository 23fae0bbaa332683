"""`AsyncBackend` as a driver of the contract suite, on whichever event loop the test runs."""

import inspect
from contextlib import asynccontextmanager
from functools import partial

import anyio.to_thread
from drivers import AWAITED, Handle

from posterity import AsyncBackend


class AsyncDriver:
    """`AsyncBackend`: what the handles await is awaited in the test's own loop."""

    def __init__(self):
        self._opened = []
        self.on_failure = []

    async def call(self, function, *args, **kwargs):
        if inspect.iscoroutinefunction(function):
            return await function(*args, **kwargs)
        return await anyio.to_thread.run_sync(partial(function, *args, **kwargs))

    async def open(self, *args, **options):
        backend = await AsyncBackend(*args, **options).__aenter__()
        self._opened.append(backend)
        return AsyncHandle(self, backend)

    async def read_epoch(self, *args):
        return await AsyncBackend.read_epoch(*args)

    @asynccontextmanager
    async def snapshot(self, backend):
        async with backend.snapshot() as snapshot:
            yield AsyncHandle(self, snapshot)

    def updates(self, backend, min_samples):
        return Updates(self, backend.updates(min_samples))

    async def enter(self, backend):
        await backend.__aenter__()

    async def leave(self, backend, *error):
        await backend.__aexit__(*error)

    def forget(self, handle):
        """Don't close this one at the end: it can't be."""
        self._opened.remove(handle.target)

    def end(self):
        while self._opened:
            self._opened.pop().blocking.close()


class Updates:
    """No generator: trio wants those closed by hand."""

    def __init__(self, driver, updates):
        self._driver = driver
        self._updates = updates

    def __aiter__(self):
        return self

    async def __anext__(self):
        return AsyncHandle(self._driver, await anext(self._updates))


class AsyncHandle(Handle):
    """The same names; what is `close` in the twin is `aclose` here."""

    def __getattr__(self, name):
        found = getattr(self.target, "aclose" if name == "close" else name)
        return partial(self._call, found) if name in AWAITED else found
