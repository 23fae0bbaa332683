"""A run at one moment, pinned: its registry, and where its epochs are, kept until it is released.

Several may share what is pinned, a snapshot and the lazy dataset made of it for example; who lets go last unpins it.

Up the stream: `service` pins views of a run that is written, `followed_run` of one that is only read. Down the stream:
`snapshot` and `draws` read from them.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Self

from posterity._model.registry import Registry
from posterity._store.epoch_locations import Shelf
from posterity._system.arrays import Array
from posterity._system.disk import Disk
from posterity._system.uncopyable import Uncopyable
from posterity.errors import Closed

from .epoch_sources import Shelves
from .gather import Gathering
from .selection import Mask, pieces_from


def _nothing() -> None:
    pass


class PinnedView(Uncopyable):
    """A run as it was when it was pinned. Any thread may read from it; `release` it when done.

    Args:
        registry: what the run consists of.
        shelf: where its epochs are, just now.
        disk: the run folder.
        release: unpins it; called once, by whoever lets go last.
        abandon: the same, from a finaliser.
        run_key: which run it is, and which session of its writer; a diagnosis goes on with no other one.
    """

    def __init__(
        self,
        registry: Registry,
        shelf: Shelf,
        disk: Disk,
        *,
        release: Callable[[], None] = _nothing,
        abandon: Callable[[], None] = _nothing,
        run_key: bytes = b"",
    ) -> None:
        self.registry = registry
        self.disk = disk
        self.run_key = run_key
        self._shelf: Shelf | None = shelf
        self._release = release
        self._abandon = abandon
        self._others: list[None] = []  # one for each other view that needs what this one does

    def shared(self) -> "PinnedView":
        """A view of the same, to be released on its own."""
        other = PinnedView(
            self.registry,
            self.shelf,
            self.disk,
            release=self._release,
            abandon=self._abandon,
            run_key=self.run_key,
        )
        self._others.append(None)
        other._others = self._others
        return other

    def _is_last(self) -> bool:
        """Whether nobody else needs what this one does; to be asked once. Takes no lock: a finaliser may ask."""
        try:
            self._others.pop()
        except IndexError:
            return True
        return False

    def release(self) -> None:
        """Let go of the files that it needs; idempotent."""
        shelf, self._shelf = self._shelf, None
        if shelf is not None and self._is_last():
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __del__(self) -> None:
        if getattr(self, "_shelf", None) is not None and self._is_last():
            self._abandon()

    @property
    def shelf(self) -> Shelf:
        """Where the epochs are.

        Raises:
            Closed: it was released.
        """
        if self._shelf is None:
            raise Closed("the snapshot was released")
        return self._shelf

    def sources(self) -> Shelves:
        """What finds epochs and reads from them, for one call: to be used with `with`."""
        return Shelves(self.disk, self.shelf)

    def read(
        self,
        names: Sequence[str],
        first: int,
        thin: int,
        n: int,
        *,
        mask: Mask = ...,
        verify: bool = False,
        dims: Mapping[str, Sequence[int]] = MappingProxyType({}),
    ) -> dict[str, Array]:
        """Samples of some names: `n`, from position `first` of the run on, every `thin`-th; at least one.

        Args:
            names: of the samples.
            first: the position of the first one; it isn't burned.
            thin: from each to the next one.
            n: how many.
            mask: which chains.
            verify: whether to look at the checksum of all that is read.
            dims: of which names only some dimensions are wanted, and which.

        Returns:
            name -> array `(nchain, dim, n)`, the caller's own. All cores take part.

        Raises:
            KeyError, IndexError, SnapshotExpired, Damaged: see `Snapshot.get_samples`.
        """
        gathering = Gathering(self.disk, self.shelf, self.registry, list(names), mask, n, thin, verify, dims)
        gathering.gather(list(pieces_from(self.registry, first, thin, n)))
        return gathering.results

    def end_of_fetched(self) -> int:
        """The position after the last sample that is in memory or in a file, and not on a device."""
        held, entries = self.shelf.held, self.registry.entries
        n = len(entries)
        while n and (last := held.get(n - 1)) is not None and not last.is_fetched:
            n -= 1
        return entries[n - 1].stop if n else 0
