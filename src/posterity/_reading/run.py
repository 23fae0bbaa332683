"""A run that is only read: live, from any process, while or after somebody writes it. No lock is taken.

Up the stream: `followed_run` reads its journal on. Down the stream: whoever looks at the chain while it runs.
"""

import os
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Never, Self, cast

from posterity._convergence.diagnosis import Diagnosis
from posterity._model.metadata import Metadata
from posterity._model.options import check_unknown
from posterity.epoch import EpochT
from posterity.errors import Closed, SnapshotExpired

from .followed_run import LOOK_EVERY_S, FollowedRun, Seen, follow_run
from .reads import Reads
from .snapshot import Snapshot

if TYPE_CHECKING:
    from .async_run import AsyncRun


class Run(Reads[EpochT]):
    """A run to read from; see `open_run`. Any thread may use it, and a forked child has one of its own."""

    def __init__(self, followed: FollowedRun, trusted_classes: Sequence[str] = ()) -> None:
        self._followed = followed
        self._trusted = trusted_classes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        known = self._followed.catalog
        return f"<Run in {self._followed.disk.folder}{known.metadata.brief if known is not None else ''}>"

    def __reduce__(self) -> tuple[object, ...]:
        """A copy, in another process for example, follows the run in the same folder."""
        return partial(cast("Any", open_run), trusted_classes=self._trusted), (self._followed.disk.folder,)

    @property
    def asynchronous(self) -> "AsyncRun[EpochT]":
        """The awaited face of the same run."""
        from .async_run import AsyncRun  # noqa: PLC0415  # each of the twins knows the other

        return AsyncRun(self)

    @property
    def metadata(self) -> Metadata:
        """See `Snapshot.metadata`; it is that of the latest snapshot, and nothing is waited for."""
        assert self._followed.catalog is not None  # it was looked at once
        return self._followed.catalog.metadata

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
        self, min_samples: int = 1, *, diagnosis: Diagnosis | None = None, every_s: float = LOOK_EVERY_S
    ) -> "Iterator[Snapshot[EpochT]]":
        """The newest snapshot each time something changed, and at least `min_samples` came or a burn took some.

        The journal is looked at every `every_s` seconds. None queue up; each snapshot is released when the next one is
        asked for, or the iterator goes. It ends when this is closed, whatever becomes of the writer. With a `diagnosis`
        each has `diagnostics`.

        Raises:
            FileNotFoundError, Damaged: see `snapshot`.
            KeyError, TypeError: see `Snapshot.diagnose`.
        """
        watch = Watch(self, min_samples, every_s, diagnosis)
        while not self._followed.is_closed:
            pause_s = watch.pause_s()
            time.sleep(min(pause_s, LOOK_EVERY_S))  # in parts: this may be closed meanwhile
            found = watch.look() if pause_s <= LOOK_EVERY_S else None
            if found is not None:
                snapshot, watch.seen = found
                with snapshot:
                    yield snapshot

    def close(self) -> None:
        """Let go of the run; idempotent, and never waits. A snapshot can be read until it is released."""
        self._followed.close()

    def _look(self) -> "tuple[Snapshot[EpochT], Seen]":
        """The run now, and what of it makes news."""
        view, seen = self._followed.look()
        return Snapshot(view, trusted=self._trusted), seen


class Watch(Generic[EpochT]):
    """When to look at a run again, and whether what is there is news."""

    def __init__(self, run: Run[EpochT], min_samples: int, every_s: float, diagnosis: Diagnosis | None = None) -> None:
        self._run = run
        self._min_samples = min_samples
        self._every_s = every_s
        self._diagnosis = diagnosis
        self._due: float | None = None
        self.seen: Seen | None = None  # what was handed on last

    def pause_s(self) -> float:
        """How long to wait before the next look: who took long over the last news doesn't wait."""
        return 0.0 if self._due is None else max(0.0, self._due - time.monotonic())

    def look(self) -> tuple[Snapshot[EpochT], Seen] | None:
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


def open_run(  # noqa: D417  # nothing that is unknown can be described
    outdir: str | os.PathLike[str], *, trusted_classes: Sequence[str] = (), wait_s: float = 0.0, **unknown: Never
) -> Run[EpochT]:
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
        UnknownOption: a keyword that there isn't (a `TypeError`); the nearest one is named.
    """
    check_unknown(locals())
    return Run(follow_run(outdir, wait_s=wait_s), trusted_classes)


def _is_news(seen: Seen | None, now: Seen, min_samples: int) -> bool:
    if seen is None:
        return now.nsamples > 0
    is_another = (seen.run_id, seen.generation, seen.burn) != (now.run_id, now.generation, now.burn)
    return is_another or now.nsamples - seen.nsamples >= min_samples
