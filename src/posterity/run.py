"""A run that is only read: live, from any process, while or after somebody writes it. No lock is taken.

The journal says what there is and where; it is read on for each snapshot. An epoch is seen as soon as its record is
there, in a file still filling up too. The writer knows nothing of its readers, so a burn or a reset may take away what
a snapshot shows: then it raises `SnapshotExpired`, and never gives other numbers.

Up the stream: the run folder. Down the stream: whoever looks at the chain while it runs.
"""

import os
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import anyio

from .aioreads import AsyncReads, AsyncSnapshot, Readers
from .catalog import Catalog, replayed
from .disk import Disk
from .errors import Closed, PosterityError, SnapshotExpired
from .journal import Follower
from .reads import Reads
from .registry import Registry
from .shelf import Shelf
from .snapshot import Snapshot

EpochT = TypeVar("EpochT")
_Seen = tuple[bytes, int, int, int]


class _RunShelf(Shelf):
    """The shelf of one generation; it follows the run as long as that lasts."""

    def __init__(self, run: "Run[Any]", catalog: Catalog) -> None:
        super().__init__(catalog)
        self._run = run
        self._catalog = catalog

    def refresh(self) -> None:
        catalog = self._run._refreshed()
        began, mine = catalog.began, self._catalog.began
        if (began.run_id, began.generation) == (mine.run_id, mine.generation):
            self.catalog = catalog

    def gone(self, what: str) -> PosterityError:
        return SnapshotExpired(f"{what}; take a new snapshot")


class Run(Reads[EpochT]):
    """A run to read from; see `open_run`. Any thread may use it."""

    def __init__(self, disk: Disk, trusted_classes: Sequence[str]) -> None:
        self._disk = disk
        self._trusted = trusted_classes
        self._follower = Follower(disk)
        self._catalog: Catalog | None = None
        self._registry = Registry()
        self._guard = threading.Lock()
        self._closing = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Run in {self._disk.folder}>"

    @property
    def asynchronous(self) -> "AsyncRun[EpochT]":
        """The awaited face of the same run."""
        return AsyncRun(self)

    def snapshot(self) -> "Snapshot[EpochT]":
        """The run as its journal has it now; use it with `with`, or `release` it.

        Raises:
            FileNotFoundError: the run went away.
            Damaged: its journal is damaged.
            Closed: this was closed.
        """
        with self._guard:
            catalog = self._refresh()
            return Snapshot(self._registry, _RunShelf(self, catalog), self._disk, trusted=self._trusted)

    def updates(self, min_samples: int = 1, *, every_s: float = 0.2) -> "Iterator[Snapshot[EpochT]]":
        """The newest snapshot each time something changed, and at least `min_samples` came or a burn took some.

        The journal is looked at every `every_s` seconds. It ends when this is closed, whatever becomes of the writer.
        """
        seen: _Seen | None = None
        while not self._closing.is_set():
            with self.snapshot() as snapshot:
                now = self._seen(snapshot.registry)
                if _is_news(seen, now, min_samples):
                    seen = now
                    yield snapshot
            self._closing.wait(every_s)

    def close(self) -> None:
        """Let go of the run; idempotent. Snapshots that were taken can be read no more."""
        self._closing.set()
        with self._guard:
            self._follower.close()
        self._disk.leave()

    def _seen(self, registry: Registry) -> _Seen:
        assert self._catalog is not None
        return self._catalog.began.run_id, registry.generation, registry.nsamples, registry.burn

    def _refreshed(self) -> Catalog:
        with self._guard:
            return self._refresh()

    def _refresh(self) -> Catalog:
        """Read the journal on. The catalog is kept up in place, until another journal or a reset makes a new one."""
        if self._closing.is_set():
            raise Closed(f"{self!r} was closed")
        is_new, records = self._follower.read_new()
        if is_new or self._catalog is None:
            self._catalog = replayed(records)
            self._registry = self._catalog.registry()
        elif records:
            for record in records:
                self._catalog.apply(record)
            self._registry = self._catalog.registry()
        return self._catalog


class AsyncRun(AsyncReads[EpochT]):
    """The awaited face of a `Run`, on asyncio and on trio."""

    def __init__(self, run: Run[EpochT], reader_threads: int = 4) -> None:
        self._run = run
        self._readers = Readers(reader_threads)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return repr(self._run).replace("<", "<Async", 1)

    @property
    def blocking(self) -> Run[EpochT]:
        """The blocking face of the same run."""
        return self._run

    def _snapshot(self) -> Snapshot[Any]:
        return self._run.snapshot()

    def updates(self, min_samples: int = 1, *, every_s: float = 0.2) -> "AsyncIterator[AsyncSnapshot[EpochT]]":
        """See `Run.updates`."""
        return _RunUpdates(self._run, self._readers, min_samples, every_s)

    async def aclose(self) -> None:
        """See `Run.close`."""
        await self._readers.run(self._run.close)


class _RunUpdates(Generic[EpochT]):
    """The newest snapshot each time something changed."""

    def __init__(self, run: Run[EpochT], readers: Readers, min_samples: int, every_s: float) -> None:
        self._run = run
        self._readers = readers
        self._min_samples = min_samples
        self._every_s = every_s
        self._seen: _Seen | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> AsyncSnapshot[EpochT]:
        if self._seen is not None:
            await anyio.sleep(self._every_s)
        while not self._run._closing.is_set():
            snapshot = await self._readers.run(self._run.snapshot)
            now = self._run._seen(snapshot.registry)
            if _is_news(self._seen, now, self._min_samples):
                self._seen = now
                return AsyncSnapshot(snapshot, self._readers)
            await anyio.sleep(self._every_s)
        raise StopAsyncIteration


def open_run(outdir: str | os.PathLike[str], *, trusted_classes: Sequence[str] = ()) -> Run[Any]:
    """Open a run to read it, while or after it is written, from any process. Nobody is disturbed, nothing is written.

    Args:
        outdir: the run folder.
        trusted_classes: dotted names of epoch classes that `load` may import.

    Returns:
        What gives snapshots, and has all the reading calls. For the awaited ones: `open_run(outdir).asynchronous`.

    Raises:
        FileNotFoundError: there is no run in the folder.
        Damaged: its journal is damaged.
        NewerFormat: a later posterity wrote it.
    """
    disk = Disk(Path(os.fsdecode(outdir)))
    if not disk.is_there():
        raise FileNotFoundError(f"there is no folder {disk.folder}")
    disk.enter()
    run: Run[Any] = Run(disk, trusted_classes)
    try:
        run.snapshot().release()
    except FileNotFoundError as error:
        run.close()
        raise FileNotFoundError(f"{disk.folder} holds no run: there is no journal in it") from error
    except PosterityError:
        run.close()
        raise
    return run


def _is_news(seen: _Seen | None, now: _Seen, min_samples: int) -> bool:
    if seen is None:
        return now[2] > 0
    return seen[:2] != now[:2] or seen[3] != now[3] or now[2] - seen[2] >= min_samples
