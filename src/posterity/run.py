"""A run that is only read: live, from any process, while or after somebody writes it. No lock is taken.

The journal says what there is and where; it is read on for each snapshot. An epoch is seen as soon as its record is
there, in a file still filling up too. The writer knows nothing of its readers, so a burn or a reset may take away what
a snapshot shows: then it raises `SnapshotExpired`, and never gives other numbers.

Up the stream: the run folder. Down the stream: whoever looks at the chain while it runs.
"""

import errno
import os
import threading
import time
import weakref
from collections.abc import AsyncIterator, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import anyio
from anyio.lowlevel import checkpoint

from .aioreads import AsyncReads
from .async_snapshot import AsyncSnapshot
from .catalog import Catalog, replayed
from .diagnosis import Diagnosis
from .disk import Disk
from .errors import Closed, PosterityError, SnapshotExpired
from .journal import Follower
from .metadata import Metadata
from .reader_threads import Readers
from .reads import Reads
from .shelf import Shelf
from .snapshot import Snapshot

EpochT = TypeVar("EpochT")
_Seen = tuple[bytes, int, int, int]
_LOOK_EVERY_S = 0.2


class _RunShelf(Shelf):
    """The shelf of one generation; it follows the run as long as that lasts."""

    def __init__(self, run: "Run[Any]", catalog: Catalog) -> None:
        super().__init__(catalog)
        self._run = run
        self._catalog = catalog

    def refresh(self) -> bool:
        catalog = self._run._latest()
        if catalog is None:
            return False
        began, mine = catalog.began, self._catalog.began
        if (began.run_id, began.generation) != (mine.run_id, mine.generation):
            return False
        self.catalog = catalog
        return True

    def gone(self, what: str) -> PosterityError:
        return SnapshotExpired(f"{what}; take a new snapshot")


class Run(Reads[EpochT]):
    """A run to read from; see `open_run`. Any thread may use it, and a forked child has one of its own."""

    def __init__(self, disk: Disk, trusted_classes: Sequence[str]) -> None:
        self._disk = disk
        self._trusted = trusted_classes
        self._follower = Follower(disk)
        self._catalog: Catalog | None = None
        self._given: set[object] = set()  # one for each snapshot that isn't released: it needs the folder
        self._guard = threading.Lock()
        self._is_closed = False
        _runs.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Run in {self._disk.folder}{self.metadata.brief if self._catalog is not None else ''}>"

    @property
    def asynchronous(self) -> "AsyncRun[EpochT]":
        """The awaited face of the same run."""
        return AsyncRun(self)

    @property
    def metadata(self) -> Metadata:
        """See `Snapshot.metadata`; it is that of the latest snapshot, and nothing is waited for."""
        assert self._catalog is not None  # opening took a snapshot
        return self._catalog.metadata

    def snapshot(self) -> "Snapshot[EpochT]":
        """The run as its journal has it now; use it with `with`, or `release` it.

        It costs what is new since the last one, however long the run is.

        Raises:
            FileNotFoundError: the run went away.
            Damaged: its journal is damaged.
            Closed: this was closed.
        """
        return self._look()[0]

    def updates(
        self, min_samples: int = 1, *, diagnosis: Diagnosis | None = None, every_s: float = _LOOK_EVERY_S
    ) -> "Iterator[Snapshot[EpochT]]":
        """The newest snapshot each time something changed, and at least `min_samples` came or a burn took some.

        The journal is looked at every `every_s` seconds. None queue up; each snapshot is released when the next one is
        asked for, or the iterator goes. It ends when this is closed, whatever becomes of the writer. With a `diagnosis`
        each has `diagnostics`.

        Raises:
            FileNotFoundError, Damaged: see `snapshot`.
            KeyError, TypeError: see `Snapshot.diagnose`.
        """
        watch = _Watch(self, min_samples, every_s, diagnosis)
        while not self._is_closed:
            pause_s = watch.pause_s()
            time.sleep(min(pause_s, _LOOK_EVERY_S))  # in parts: this may be closed meanwhile
            found = watch.look() if pause_s <= _LOOK_EVERY_S else None
            if found is not None:
                snapshot, watch.seen = found
                with snapshot:
                    yield snapshot

    def close(self) -> None:
        """Let go of the run; idempotent, and never waits. A snapshot can be read until it is released."""
        self._is_closed = True
        self._let_go()

    def _look(self) -> "tuple[Snapshot[EpochT], _Seen]":
        """The run now, and what of it makes news."""
        try:
            with self._guard:
                if self._is_closed:
                    raise Closed(f"{self!r} was closed")
                catalog = self._refresh()
                registry = catalog.shown()
                token = object()
                self._given.add(token)
        finally:
            self._let_go()
        end = partial(self._note_released, token)
        shelf = _RunShelf(self, catalog)
        run_id = catalog.began.run_id
        snapshot: Snapshot[EpochT] = Snapshot(
            registry, shelf, self._disk, release=end, abandon=end, trusted=self._trusted, run_key=run_id
        )
        return snapshot, (run_id, registry.generation, registry.nsamples, registry.burn)

    def _latest(self) -> Catalog | None:
        """What the journal says now; None if that can't be learned any more."""
        try:
            with self._guard:
                return None if self._is_closed else self._refresh()
        except FileNotFoundError:
            return None
        finally:
            self._let_go()

    def _refresh(self) -> Catalog:
        """Read the journal on. The catalog is kept up in place, until another journal or a reset makes a new one."""
        try:
            is_new, records = self._follower.read_new()
            self._catalog = replayed(records, None if is_new else self._catalog)
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, "there is no run, or it went away", str(self._disk.folder)) from error
        except BaseException:
            self._follower.close()  # not all that was read was taken in: the next time it is read anew
            raise
        return self._catalog

    def _note_released(self, token: object) -> None:
        """Called by finalisers too: it waits for nothing."""
        self._given.discard(token)
        self._let_go()

    def _let_go(self) -> None:
        """Once this is closed, give back what nobody needs; if somebody is at it just now, they call this after."""
        while self._is_closed and self._guard.acquire(blocking=False):
            try:
                self._follower.close()
                is_needed = bool(self._given)
                if not is_needed:
                    self._disk.leave()
            finally:
                self._guard.release()
            if not is_needed or self._given:
                return

    def _begin_anew(self) -> None:
        """In a forked child: another thread may have been at it."""
        self._guard = threading.Lock()
        self._follower.close()


class _Watch(Generic[EpochT]):
    """When to look at a run again, and whether what is there is news."""

    def __init__(self, run: Run[EpochT], min_samples: int, every_s: float, diagnosis: Diagnosis | None = None) -> None:
        self._run = run
        self._min_samples = min_samples
        self._every_s = every_s
        self._diagnosis = diagnosis
        self._due: float | None = None
        self.seen: _Seen | None = None  # what was handed on last

    def pause_s(self) -> float:
        """How long to wait before the next look: who took long over the last news doesn't wait."""
        return 0.0 if self._due is None else max(0.0, self._due - time.monotonic())

    def look(self) -> tuple[Snapshot[EpochT], _Seen] | None:
        """What is new; None if nothing is, or the run was closed."""
        self._due = time.monotonic() + self._every_s
        try:
            snapshot, now = self._run._look()
        except Closed:
            return None
        if _is_news(self.seen, now, self._min_samples) and self._could_diagnose(snapshot):
            return snapshot, now
        snapshot.release()
        return None

    def _could_diagnose(self, snapshot: Snapshot[EpochT]) -> bool:
        """Diagnose it, if that was asked for; False if a burn or a reset came between: another one will do."""
        try:
            if self._diagnosis is not None:
                snapshot.diagnose(self._diagnosis)
        except SnapshotExpired:
            return False
        except BaseException:
            snapshot.release()
            raise
        return True


class AsyncRun(AsyncReads[EpochT]):
    """The awaited face of a `Run`, on asyncio and on trio."""

    def __init__(self, run: Run[EpochT], reader_threads: int = 4) -> None:
        self._run = run
        self._readers = Readers(reader_threads)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run.close()

    def __repr__(self) -> str:
        return repr(self._run).replace("<", "<Async", 1)

    @property
    def blocking(self) -> Run[EpochT]:
        """The blocking face of the same run."""
        return self._run

    @property
    def metadata(self) -> Metadata:
        """See `Snapshot.metadata`; it is that of the latest snapshot, and nothing is waited for."""
        return self._run.metadata

    def _snapshot(self) -> Snapshot[Any]:
        return self._run.snapshot()

    def updates(
        self, min_samples: int = 1, *, diagnosis: Diagnosis | None = None, every_s: float = _LOOK_EVERY_S
    ) -> "AsyncIterator[AsyncSnapshot[EpochT]]":
        """See `Run.updates`."""
        return _RunUpdates(self._run, self._readers, _Watch(self._run, min_samples, every_s, diagnosis))

    async def aclose(self) -> None:
        """See `Run.close`."""
        self._run.close()
        await checkpoint()


class _RunUpdates(Generic[EpochT]):
    """The newest snapshot each time something changed. Each one is let go when the next is asked for."""

    def __init__(self, run: Run[EpochT], readers: Readers, watch: _Watch[EpochT]) -> None:
        self._run = run
        self._readers = readers
        self._watch = watch
        self._given: AsyncSnapshot[EpochT] | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> AsyncSnapshot[EpochT]:
        self._let_go()
        while not self._run._is_closed:
            pause_s = self._watch.pause_s()
            await anyio.sleep(min(pause_s, _LOOK_EVERY_S))
            found = await self._readers.run(self._watch.look) if pause_s <= _LOOK_EVERY_S else None
            if found is not None:
                snapshot, self._watch.seen = found
                self._given = AsyncSnapshot(snapshot, self._readers)
                return self._given
        raise StopAsyncIteration

    def _let_go(self) -> None:
        if self._given is not None:
            self._given.release()
            self._given = None

    async def aclose(self) -> None:
        """Let the last snapshot go."""
        self._let_go()


def open_run(outdir: str | os.PathLike[str], *, trusted_classes: Sequence[str] = (), wait_s: float = 0.0) -> Run[Any]:
    """Open a run to read it, while or after it is written, from any process. Nobody is disturbed, nothing is written.

    Args:
        outdir: the run folder.
        trusted_classes: dotted names of epoch classes that `load` may import.
        wait_s: how long to wait for a run that isn't there yet: its journal comes with the first epoch that is written.

    Returns:
        What gives snapshots, and has all the reading calls. For the awaited ones: `open_run(outdir).asynchronous`.

    Raises:
        FileNotFoundError: there is no run in the folder.
        Damaged: its journal is damaged.
        NewerFormat: a later posterity wrote it.
    """
    folder = Path(os.fsdecode(outdir))
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return _opened(Disk(folder), trusted_classes)
        except FileNotFoundError:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise
            time.sleep(min(left_s, _LOOK_EVERY_S))


def _opened(disk: Disk, trusted_classes: Sequence[str]) -> Run[Any]:
    if not disk.is_there():
        raise FileNotFoundError(errno.ENOENT, "there is no folder", str(disk.folder))
    disk.enter(make=False)
    run: Run[Any] = Run(disk, trusted_classes)
    try:
        run.snapshot().release()
    except BaseException:
        run.close()
        raise
    return run


def _is_news(seen: _Seen | None, now: _Seen, min_samples: int) -> bool:
    if seen is None:
        return now[2] > 0
    return seen[:2] != now[:2] or seen[3] != now[3] or now[2] - seen[2] >= min_samples


_runs: "weakref.WeakSet[Run[Any]]" = weakref.WeakSet()


def _begin_all_anew() -> None:
    for run in list(_runs):
        run._begin_anew()


os.register_at_fork(after_in_child=_begin_all_anew)
