"""A run that somebody else may be writing, followed by its journal, from any process. No lock is taken.

The journal says what there is and where; it is read on for each look. An epoch is seen as soon as its record is there,
in a file still filling up too. The writer knows nothing of its readers, so a burn or a reset may take away what a view
shows: then it raises `SnapshotExpired`, and never gives other numbers.

Up the stream: `catalog` takes in what the journal says. Down the stream: `run` and `draws` read from its views.
"""

import errno
import os
import threading
import time
import weakref
from functools import partial
from pathlib import Path
from typing import NamedTuple

from posterity._store.catalog import Catalog, replayed
from posterity._store.epoch_locations import Shelf
from posterity._store.journal import Follower
from posterity._system.disk import Disk
from posterity._system.uncopyable import Uncopyable
from posterity.errors import Closed, PosterityError, SnapshotExpired

from .pinned_view import PinnedView

LOOK_EVERY_S = 0.2


class Seen(NamedTuple):
    """What of a run makes news: another run or generation, more samples, a burn."""

    run_id: bytes
    generation: int
    nsamples: int
    burn: int


class _RunShelf(Shelf):
    """The shelf of one generation; it follows the run as long as that lasts."""

    def __init__(self, run: "FollowedRun", catalog: Catalog) -> None:
        super().__init__(catalog)
        self._run = run
        self._catalog = catalog

    def refresh(self) -> bool:
        catalog = self._run.latest()
        if catalog is None:
            return False
        began, mine = catalog.began, self._catalog.began
        if (began.run_id, began.generation) != (mine.run_id, mine.generation):
            return False
        self.catalog = catalog
        return True

    def gone(self, what: str) -> PosterityError:
        return SnapshotExpired(f"{what}; take a new snapshot")


class FollowedRun(Uncopyable):
    """A run to look at. Any thread may use it, and a forked child has one of its own."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self._follower = Follower(disk)
        self._catalog: Catalog | None = None
        self._given: set[object] = set()  # one for each view that isn't released: it needs the folder
        self._guard = threading.Lock()
        self.is_closed = False
        _followed.add(self)

    @property
    def catalog(self) -> Catalog | None:
        """What the journal said at the last look; None before the first one."""
        return self._catalog

    def look(self) -> tuple[PinnedView, Seen]:
        """The run now, to be released, and what of it makes news. It costs what is new since the last look.

        Raises:
            FileNotFoundError: the run went away.
            Damaged: its journal is damaged.
            Closed: this was closed.
        """
        try:
            with self._guard:
                if self.is_closed:
                    raise Closed(f"{self.disk.folder}: the run was closed for reading; open it again")
                catalog = self._refresh()
                registry = catalog.shown()
                token = object()
                self._given.add(token)
        finally:
            self._let_go()
        end = partial(self._note_released, token)
        run_id = catalog.began.run_id
        shelf = _RunShelf(self, catalog)
        view = PinnedView(registry, shelf, self.disk, release=end, abandon=end, run_key=run_id)
        return view, Seen(run_id, registry.generation, registry.nsamples, registry.burn)

    def latest(self) -> Catalog | None:
        """What the journal says now; None if that can't be learned any more."""
        try:
            with self._guard:
                return None if self.is_closed else self._refresh()
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
            raise FileNotFoundError(errno.ENOENT, "there is no run, or it went away", str(self.disk.folder)) from error
        except BaseException:
            self._follower.close()  # not all that was read was taken in: the next time it is read anew
            raise
        return self._catalog

    def close(self) -> None:
        """Let go of the run; idempotent, and never waits. A view can be read until it is released."""
        self.is_closed = True
        self._let_go()

    def _note_released(self, token: object) -> None:
        """Called by finalisers too: it waits for nothing."""
        self._given.discard(token)
        self._let_go()

    def _let_go(self) -> None:
        """Once this is closed, give back what nobody needs; if somebody is at it just now, they call this after."""
        while self.is_closed and self._guard.acquire(blocking=False):
            try:
                self._follower.close()
                is_needed = bool(self._given)
                if not is_needed:
                    self.disk.leave()
            finally:
                self._guard.release()
            if not is_needed or self._given:
                return

    def begin_anew(self) -> None:
        """In a forked child: another thread may have been at it."""
        self._guard = threading.Lock()
        self._follower.close()


def follow_run(outdir: str | os.PathLike[str], *, wait_s: float = 0.0) -> FollowedRun:
    """The run in a folder, which was looked at once; see `open_run`."""
    folder = Path(os.fsdecode(outdir))
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return _opened(Disk(folder))
        except FileNotFoundError:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise
            time.sleep(min(left_s, LOOK_EVERY_S))


def _opened(disk: Disk) -> FollowedRun:
    if not disk.is_there():
        raise FileNotFoundError(errno.ENOENT, "there is no folder", str(disk.folder))
    disk.enter(make=False)
    run = FollowedRun(disk)
    try:
        run.look()[0].release()
    except BaseException:
        run.close()
        raise
    return run


_followed: "weakref.WeakSet[FollowedRun]" = weakref.WeakSet()


def _begin_all_anew() -> None:
    for run in list(_followed):
        run.begin_anew()


os.register_at_fork(after_in_child=_begin_all_anew)
