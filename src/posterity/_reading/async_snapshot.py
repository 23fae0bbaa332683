"""Snapshots whose reads are awaited: they are made in threads.

Up the stream: `snapshot`. Down the stream: `async_reads`, and all that gives snapshots to tasks.
"""

import os
from collections.abc import Awaitable, Callable, Collection, Generator, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Self

from posterity._convergence.diagnosis import Diagnosis
from posterity._convergence.diagnostics import Diagnostics
from posterity._model.metadata import Metadata
from posterity._model.registry import Registry
from posterity._system.arrays import Array
from posterity._system.event_loop import is_in_loop
from posterity._system.reader_threads import Readers
from posterity._system.uncopyable import Uncopyable
from posterity.epoch import EpochDict, EpochT

from .selection import Mask, Samples
from .snapshot import Snapshot
from .variables import Chunks

if TYPE_CHECKING:
    import xarray


class AsyncSnapshot(Uncopyable, Generic[EpochT]):
    """A snapshot whose reads are awaited; see `Snapshot`. They are made in threads."""

    _INSTEAD = "send what you read from it, or the path of the run's folder, and take a snapshot of `open_run` there"

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
    ) -> Samples:
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


class AskedSnapshot(Uncopyable, Generic[EpochT]):
    """A snapshot that was asked for: it is awaited, or entered with `async with`."""

    _INSTEAD = "send what you read from it, or the path of the run's folder, and take a snapshot of `open_run` there"

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
