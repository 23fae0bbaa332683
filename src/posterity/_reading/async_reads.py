"""The reading calls of everything that gives snapshots, awaited.

Up the stream: `async_snapshot`. Down the stream: `awaited`, `run`.
"""

import os
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import anyio
import anyio.to_thread
from anyio.lowlevel import checkpoint

from posterity._convergence.diagnosis import LOOK_EVERY_S, Diagnosis
from posterity._convergence.diagnostics import Diagnostics, Stop
from posterity._format.single_file import read_epoch
from posterity._model.metadata import Metadata
from posterity._system.arrays import Array
from posterity._system.reader_threads import Readers
from posterity.epoch import EpochDict, EpochT
from posterity.errors import Closed

from .async_snapshot import AskedSnapshot, AsyncSnapshot
from .load import to_epoch
from .selection import Mask, Samples
from .selection import flatten_samples as flatten_arrays
from .snapshot import Snapshot
from .variables import Chunks

if TYPE_CHECKING:
    import xarray

T = TypeVar("T")


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
    ) -> Samples:
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
