"""The reading calls, awaited: snapshots whose reads are made in threads, and what gives them.

Up the stream: `snapshot`. Down the stream: `aio`, `run`.
"""

import os
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Generator, Iterable, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

import anyio
import anyio.to_thread
from anyio.lowlevel import checkpoint, current_token

from .arrays import Array
from .diagnosis import LOOK_EVERY_S, Diagnosis
from .diagnostics import Diagnostics, Stop
from .epoch import EpochDict
from .errors import Closed
from .load import to_epoch
from .metadata import Metadata
from .registry import Registry
from .selection import Mask
from .selection import flatten_samples as flatten_arrays
from .singlefile import read_epoch
from .snapshot import Snapshot
from .variables import Chunks
from .waiting import Loop, is_in_loop

if TYPE_CHECKING:
    import xarray

T = TypeVar("T")
EpochT = TypeVar("EpochT")


class Readers:
    """Threads for what takes long, at most so many at a time in each event loop.

    `abandons`: a call that is cancelled returns at once, and its thread goes on for nobody, in its place. Otherwise it
    returns when the thread has ended, unless asyncio cancels the task behind anyio's back.
    """

    def __init__(self, most: int, *, abandons: bool = True) -> None:
        self._most = most
        self._abandons = abandons
        self._free: weakref.WeakKeyDictionary[object, anyio.Semaphore] = weakref.WeakKeyDictionary()

    async def run(self, call: Callable[[], T]) -> T:
        """Call something in a thread, and await its result."""
        native = current_token().native_token
        free = self._free.get(native)
        if free is None:
            free = self._free[native] = anyio.Semaphore(self._most, fast_acquire=True)
        await free.acquire()
        place = _Place(free)
        try:
            return await in_thread(partial(place.run, call), abandons=self._abandons)
        finally:
            place.leave()


class _Place:
    """A place among the readers: of a task, and of the thread that works for it. Who comes last gives it back."""

    def __init__(self, free: anyio.Semaphore) -> None:
        self._free = free
        self._loop = Loop()
        self._begun = threading.Lock()  # both are flags that one can raise: no finaliser could wait for them
        self._ended = threading.Lock()

    def run(self, call: Callable[[], T]) -> T:
        """In the thread."""
        if not self._begun.acquire(blocking=False):
            raise RuntimeError("nobody waits for this any more")
        try:
            return call()
        finally:
            if not self._ended.acquire(blocking=False):
                self._loop.call(self._free.release)

    def leave(self) -> None:
        """In the task."""
        if self._begun.acquire(blocking=False) or not self._ended.acquire(blocking=False):
            self._free.release()


async def in_thread(call: Callable[[], T], *, abandons: bool = False) -> T:
    """Call something in a thread that nobody else waits for."""
    return await anyio.to_thread.run_sync(call, abandon_on_cancel=abandons, limiter=anyio.CapacityLimiter(1))


class AsyncSnapshot(Generic[EpochT]):
    """A snapshot whose reads are awaited; see `Snapshot`. They are made in threads."""

    def __init__(self, snapshot: Snapshot[EpochT], readers: Readers) -> None:
        self._snapshot = snapshot
        self._readers = readers

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not GeneratorExit or is_in_loop():  # else the snapshot is about to be finalised too
            self.release()

    def __repr__(self) -> str:
        return repr(self._snapshot).replace("<", "<Async", 1)

    def release(self) -> None:
        """See `Snapshot.release`."""
        self._snapshot.release()

    @property
    def registry(self) -> Registry:
        """What the run consists of."""
        return self._snapshot.registry

    @property
    def burn(self) -> int:
        """See `Snapshot.burn`."""
        return self._snapshot.burn

    @property
    def nepochs(self) -> int:
        """See `Snapshot.nepochs`."""
        return self._snapshot.nepochs

    @property
    def nsamples(self) -> int:
        """See `Snapshot.nsamples`."""
        return self._snapshot.nsamples

    @property
    def epochs(self) -> range:
        """See `Snapshot.epochs`."""
        return self._snapshot.epochs

    @property
    def metadata(self) -> Metadata:
        """See `Snapshot.metadata`."""
        return self._snapshot.metadata

    @property
    def shapes(self) -> dict[str, tuple[int, int, str]]:
        """See `Snapshot.shapes`."""
        return self._snapshot.shapes

    async def get(self, ind: int = -1) -> EpochDict:
        """See `Snapshot.get`."""
        return await self._readers.run(lambda: self._snapshot.get(ind))

    async def get_samples(
        self,
        burn: int = 0,
        thin: int = 1,
        pars: Sequence[str] | None = None,
        mask: Mask = ...,
        flatten: bool = False,
        verify: bool = False,
    ) -> dict[str, Array] | None:
        """See `Snapshot.get_samples`."""
        return await self._readers.run(lambda: self._snapshot.get_samples(burn, thin, pars, mask, flatten, verify))

    async def get_components(self, name: str, start: int, stop: int, burn: int = 0, thin: int = 1) -> Array | None:
        """See `Snapshot.get_components`."""
        return await self._readers.run(lambda: self._snapshot.get_components(name, start, stop, burn, thin))

    async def get_stats(
        self, epochs: Iterable[int] | None = None, fname: str | os.PathLike[str] | None = None
    ) -> dict[str, EpochDict]:
        """See `Snapshot.get_stats`."""
        return await self._readers.run(lambda: self._snapshot.get_stats(epochs, fname))

    async def load(self, iepoch: int = -1, eclass: type | None = None, pars: Sequence[str] | None = None) -> EpochT:
        """See `Snapshot.load`."""
        return await self._readers.run(lambda: self._snapshot.load(iepoch, eclass, pars))

    @property
    def diagnostics(self) -> Diagnostics | None:
        """See `Snapshot.diagnostics`."""
        return self._snapshot.diagnostics

    async def diagnose(self, diagnosis: Diagnosis | None = None) -> Diagnostics | None:
        """See `Snapshot.diagnose`."""
        return await self._readers.run(lambda: self._snapshot.diagnose(diagnosis))

    async def to_xarray(
        self,
        burn: int = 0,
        thin: int = 1,
        pars: Sequence[str] | None = None,
        *,
        chunks: Chunks = "epoch",
    ) -> "xarray.Dataset":
        """See `Snapshot.to_xarray`."""
        return await self._readers.run(lambda: self._snapshot.to_xarray(burn, thin, pars, chunks=chunks))

    async def to_datatree(
        self,
        burn: int = 0,
        thin: int = 1,
        pars: Sequence[str] | None = None,
        *,
        chunks: Chunks = None,
        named: bool = True,
        stats: Collection[str] | None = None,
    ) -> "xarray.DataTree":
        """See `Snapshot.to_datatree`."""
        return await self._readers.run(
            lambda: self._snapshot.to_datatree(burn, thin, pars, chunks=chunks, named=named, stats=stats)
        )


class AskedSnapshot(Generic[EpochT]):
    """A snapshot that was asked for: it is awaited, or entered with `async with`."""

    def __init__(self, take: Callable[[], Awaitable[Snapshot[EpochT]]], readers: Readers) -> None:
        self._take = take
        self._readers = readers
        self._given: AsyncSnapshot[EpochT] | None = None

    def __await__(self) -> Generator[object, None, AsyncSnapshot[EpochT]]:
        return self._give().__await__()

    async def _give(self) -> AsyncSnapshot[EpochT]:
        return AsyncSnapshot(await self._take(), self._readers)

    async def __aenter__(self) -> AsyncSnapshot[EpochT]:
        self._given = await self._give()
        return self._given

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._given is not None:
            await self._given.__aexit__(kind, error, trace)


class AsyncReads(Generic[EpochT]):
    """Each call reads from a snapshot of its own, in a thread."""

    _readers: Readers

    def _snapshot(self) -> Snapshot[Any]:
        raise NotImplementedError

    @property
    def metadata(self) -> Metadata:
        """See `Snapshot.metadata`; it is that of the latest snapshot, and nothing is waited for."""
        raise NotImplementedError

    async def _take_snapshot(self) -> Snapshot[Any]:
        """Take a snapshot where that may wait for a disk: in a thread."""
        return await self._readers.run(self._snapshot)

    def snapshot(self) -> "AskedSnapshot[EpochT]":
        """The run at this moment: `async with backend.snapshot() as snapshot`, or await it and `release` it.

        Every ingest that returned before is in it.
        """
        return AskedSnapshot(self._take_snapshot, self._readers)

    async def _read(self, call: Callable[[Snapshot[Any]], T]) -> T:
        """Read from the run as it is now; the snapshot is let go in the thread, whatever becomes of the caller."""
        await checkpoint()

        def read() -> T:
            with self._snapshot() as snapshot:
                return call(snapshot)

        return await self._readers.run(read)

    async def get(self, ind: int = -1) -> EpochDict:
        """See `Snapshot.get`."""
        return await self._read(lambda snapshot: snapshot.get(ind))

    async def get_samples(
        self,
        burn: int = 0,
        thin: int = 1,
        pars: Sequence[str] | None = None,
        mask: Mask = ...,
        flatten: bool = False,
        verify: bool = False,
    ) -> dict[str, Array] | None:
        """See `Snapshot.get_samples`."""
        return await self._read(lambda snapshot: snapshot.get_samples(burn, thin, pars, mask, flatten, verify))

    @staticmethod
    def flatten_samples(samples: dict[str, Array] | None) -> dict[str, Array] | None:
        """See `DefaultBackend.flatten_samples`."""
        return flatten_arrays(samples)

    async def get_stats(
        self, epochs: Iterable[int] | None = None, fname: str | os.PathLike[str] | None = None
    ) -> dict[str, EpochDict]:
        """See `Snapshot.get_stats`."""
        return await self._read(lambda snapshot: snapshot.get_stats(epochs, fname))

    async def load(self, iepoch: int = -1, eclass: type | None = None, pars: Sequence[str] | None = None) -> EpochT:
        """See `Snapshot.load`."""
        return await self._read(lambda snapshot: snapshot.load(iepoch, eclass, pars))

    async def to_xarray(
        self,
        burn: int = 0,
        thin: int = 1,
        pars: Sequence[str] | None = None,
        *,
        chunks: Chunks = "epoch",
    ) -> "xarray.Dataset":
        """See `Snapshot.to_xarray`."""
        return await self._read(lambda snapshot: snapshot.to_xarray(burn, thin, pars, chunks=chunks))

    async def to_datatree(
        self,
        burn: int = 0,
        thin: int = 1,
        pars: Sequence[str] | None = None,
        *,
        chunks: Chunks = None,
        named: bool = True,
        stats: Collection[str] | None = None,
    ) -> "xarray.DataTree":
        """See `Snapshot.to_datatree`."""
        return await self._read(
            lambda snapshot: snapshot.to_datatree(burn, thin, pars, chunks=chunks, named=named, stats=stats)
        )

    async def diagnose(self, diagnosis: Diagnosis | None = None) -> Diagnostics | None:
        """See `Snapshot.diagnose`."""
        return await self._read(lambda snapshot: snapshot.diagnose(diagnosis))

    def updates(
        self, min_samples: int = 1, *, diagnosis: Diagnosis | None = None
    ) -> "AsyncIterator[AsyncSnapshot[EpochT]]":
        """The newest snapshot each time something changed."""
        raise NotImplementedError

    async def until(
        self, stop: Stop, *, diagnosis: Diagnosis | None = None, every_s: float = LOOK_EVERY_S
    ) -> Diagnostics:
        """See `DefaultBackend.until`."""
        async for snapshot in self.updates(diagnosis=diagnosis or Diagnosis()):
            snapshot.release()
            found = snapshot.diagnostics
            if found is not None and stop.is_met(found):
                return found
            await anyio.sleep(every_s)
        raise Closed(f"the run was closed before it met {stop}")

    @classmethod
    async def read_epoch(cls, fn: str | os.PathLike[str], iepoch: int = -1) -> EpochDict:
        """See `posterity.read_epoch`."""
        return await anyio.to_thread.run_sync(read_epoch, fn, iepoch)

    @classmethod
    async def load_epoch(
        cls,
        fn: str | os.PathLike[str],
        iepoch: int = -1,
        eclass: type | None = None,
        pars: Sequence[str] | None = None,
    ) -> EpochT:
        """See `DefaultBackend.load_epoch`."""

        def load() -> object:
            return to_epoch(read_epoch(fn, iepoch), eclass, pars, ())

        return await anyio.to_thread.run_sync(load)  # type: ignore[arg-type]  # the caller's word
