"""What a run consists of, and each way in which that can change. Pure: no I/O, no lock, no clock.

The registry counts. Epochs are written in the order in which they came and burned from the beginning, so a few numbers
that only grow say where every epoch is:

    0 ... burned wholly | burned in part | left ... | written ... | in memory only ... next

Up the stream: `ledger` applies the transitions. Down the stream: `policy` reads the numbers, `snapshot` shows them.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Generic, TypeVar, overload

import msgspec

from .metadata import Metadata

T = TypeVar("T")


class Log(Sequence[T], Generic[T]):
    """An immutable sequence that is cheap to append to: the new one shares the memory of the old one.

    `appended` costs the same however long the log is, as long as it is called on the longest log of its family, and a
    copy otherwise. Readers of the older ones see what they always saw.
    """

    __slots__ = ("_items", "_length")

    def __init__(self, items: Sequence[T] = ()) -> None:
        self._items = list(items)
        self._length = len(self._items)

    def appended(self, item: T) -> "Log[T]":
        """This log and one more item."""
        return self.extended((item,))

    def extended(self, items: Iterable[T]) -> "Log[T]":
        """This log and more items."""
        longer: Log[T] = Log.__new__(Log)
        longer._items = self._items if len(self._items) == self._length else self._items[: self._length]
        longer._items.extend(items)
        longer._length = len(longer._items)
        return longer

    def replaced(self, start: int, items: Sequence[T]) -> "Log[T]":
        """A copy with other items from `start` on, as many as are given."""
        return Log([*self[:start], *items, *self[start + len(items) :]])

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            start, stop, step = index.indices(self._length)
            return self._items[start:stop] if step == 1 else [self._items[i] for i in range(start, stop, step)]
        if not -self._length <= index < self._length:
            raise IndexError(index)
        return self._items[index % self._length]

    def __iter__(self) -> Iterator[T]:
        return (self._items[i] for i in range(self._length))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Log) and list(self) == list(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"Log({list(self)!r})"


class Entry(msgspec.Struct, frozen=True):
    """One ingested epoch.

    `first`: position of its first sample in the run. `nbytes`: of all its arrays; `before`: of all epochs before it.
    `on_device`: the bytes of it and of all epochs before it that lay on a device when they were handed over.
    """

    index: int
    first: int
    nsamples: int
    nbytes: int = 0
    before: int = 0
    on_device: int = 0

    @property
    def stop(self) -> int:
        """Position after its last sample."""
        return self.first + self.nsamples

    def burned(self, burn: int) -> int:
        """How many of its samples a burn takes."""
        return min(max(burn - self.first, 0), self.nsamples)

    def is_burned(self, burn: int) -> bool:
        """Whether a burn takes all of it."""
        return self.stop <= burn


class Series(msgspec.Struct, frozen=True, array_like=True):
    """From epoch `start` on, each file takes `epochs_per_file` epochs, the first of them going to file `number`."""

    start: int
    number: int
    epochs_per_file: int


class FileSpan(msgspec.Struct, frozen=True):
    """The epochs that belong to one file: `start` to `stop`, without `stop`."""

    number: int
    start: int
    stop: int


class Registry(msgspec.Struct, frozen=True, kw_only=True):
    """The whole of a run at one moment.

    `generation`: how often the run was reset. `burn`: samples discarded, from the first ever ingested; `asked_burn`:
    the part of it that was asked for by number, which a reset keeps; `stored_burn`, `stored_asked_burn`: as much of the
    two as survives a power cut.
    `cuts`: for each epoch that was written, how many of its first samples aren't in its file; where that is all of
    them, there is no file. `npublished`: epochs before this one are in files that are published. `ndropped`: epochs
    before this one have no file any more. `metadata`: what the numbers mean; `is_metadata_stored`: whether that
    survives a power cut.
    """

    generation: int = 0
    entries: Log[Entry] = msgspec.field(default_factory=Log)
    series: tuple[Series, ...] = ()
    burn: int = 0
    asked_burn: int = 0
    stored_burn: int = 0
    stored_asked_burn: int = 0
    cuts: Log[int] = msgspec.field(default_factory=Log)
    npublished: int = 0
    ndropped: int = 0
    metadata: Metadata = Metadata()
    is_metadata_stored: bool = True

    @property
    def nwritten(self) -> int:
        """Epochs before this one survive a power cut."""
        return len(self.cuts)

    @property
    def next_index(self) -> int:
        """The index that the next epoch gets."""
        return len(self.entries)

    def bytes_before(self, index: int) -> int:
        """The bytes of all epochs before one."""
        if index < len(self.entries):
            return self.entries[index].before
        return self.entries[-1].before + self.entries[-1].nbytes if self.entries else 0

    def device_bytes(self, start: int) -> int:
        """The bytes of the epochs from `start` on that lay on a device when they were handed over."""
        if start >= len(self.entries):
            return 0
        return self.entries[-1].on_device - (self.entries[start - 1].on_device if start else 0)

    @property
    def nsamples(self) -> int:
        """Samples ever ingested, burned ones too."""
        return self.entries[-1].stop if self.entries else 0

    @property
    def nsamples_left(self) -> int:
        """Samples that aren't burned."""
        return max(0, self.nsamples - self.burn)

    @property
    def first_left(self) -> int:
        """The index of the first epoch of which a sample is left; `next_index` if there is none."""
        return bisect_right(self.entries, self.burn, key=lambda entry: entry.stop)

    def epoch_at(self, sample: int) -> int:
        """The index of the epoch that the sample at a position belongs to."""
        return bisect_right(self.entries, sample, key=lambda entry: entry.stop)

    def file_of(self, index: int) -> FileSpan:
        """The file that an epoch belongs to, written or not."""
        return span_of(self.series, index)


def span_of(series: Sequence[Series], index: int) -> FileSpan:
    """The file that an epoch belongs to, of files that are grouped like this; not one before all of them."""
    at = bisect_right(series, index, key=lambda one: one.start) - 1
    mine = series[at]
    skip = (index - mine.start) // mine.epochs_per_file
    start = mine.start + skip * mine.epochs_per_file
    stop = start + mine.epochs_per_file
    if at + 1 < len(series):
        stop = min(stop, series[at + 1].start)
    return FileSpan(mine.number + skip, start, stop)


def next_entry(last: Entry | None, nsamples: int, nbytes: int, device_nbytes: int = 0) -> Entry:
    """The entry that follows another one. `device_nbytes`: how many of its bytes are still on a device."""
    if last is None:
        return Entry(0, 0, nsamples, nbytes, 0, device_nbytes)
    before, on_device = last.before + last.nbytes, last.on_device + device_nbytes
    return Entry(last.index + 1, last.stop, nsamples, nbytes, before, on_device)


def admit(registry: Registry, nsamples: int, nbytes: int, device_nbytes: int = 0) -> Registry:
    """Take in one more epoch."""
    entry = next_entry(registry.entries[-1] if registry.entries else None, nsamples, nbytes, device_nbytes)
    return msgspec.structs.replace(registry, entries=registry.entries.appended(entry))


def raise_burn(registry: Registry, burn: int, *, asked: bool) -> Registry:
    """Discard the samples before position `burn`; `asked`: it was named as a number."""
    asked_burn = max(burn, registry.asked_burn) if asked else registry.asked_burn
    return msgspec.structs.replace(registry, burn=max(burn, registry.burn), asked_burn=asked_burn)


def start_series(registry: Registry, epochs_per_file: int) -> Registry:
    """Group the epochs that aren't written yet into files of this many; files that are there keep what they have."""
    if registry.series and registry.series[-1].epochs_per_file == epochs_per_file:
        return registry
    start = registry.nwritten
    number = registry.file_of(start - 1).number + 1 if registry.series and start else 1
    kept = tuple(series for series in registry.series if series.start < start)
    return msgspec.structs.replace(registry, series=(*kept, Series(start, number, epochs_per_file)))


def describe(registry: Registry, metadata: Metadata) -> Registry:
    """From now on this is what the numbers mean."""
    return msgspec.structs.replace(registry, metadata=metadata, is_metadata_stored=False)


def reset(registry: Registry, epochs_per_file: int) -> Registry:
    """Start empty, with nothing known; the burn that was asked for goes on to be owed."""
    return Registry(
        generation=registry.generation + 1,
        series=(Series(0, 1, epochs_per_file),),
        burn=registry.asked_burn,
        asked_burn=registry.asked_burn,
    )


def mark_written(registry: Registry, cuts: Sequence[int]) -> Registry:
    """The next epochs survive a power cut, each without its first `cut` samples."""
    return msgspec.structs.replace(registry, cuts=registry.cuts.extended(cuts))


def mark_published(registry: Registry, npublished: int) -> Registry:
    """The files of the epochs before `npublished` have their names."""
    return msgspec.structs.replace(registry, npublished=max(npublished, registry.npublished))


def mark_dropped(registry: Registry, ndropped: int) -> Registry:
    """The files of the epochs before `ndropped` are gone."""
    return msgspec.structs.replace(registry, ndropped=max(ndropped, registry.ndropped))


def mark_rewritten(registry: Registry, start: int, cuts: Sequence[int]) -> Registry:
    """The epochs from `start` on were written anew, each without its first `cut` samples."""
    return msgspec.structs.replace(registry, cuts=registry.cuts.replaced(start, cuts))


def mark_burn_stored(registry: Registry, burn: int, asked_burn: int = 0) -> Registry:
    """A burn up to `burn` survives a power cut, `asked_burn` of it asked for."""
    return msgspec.structs.replace(
        registry,
        stored_burn=max(burn, registry.stored_burn),
        stored_asked_burn=max(asked_burn, registry.stored_asked_burn),
    )


def mark_metadata_stored(registry: Registry, metadata: Metadata) -> Registry:
    """These metadata survive a power cut; there may be others by now."""
    return msgspec.structs.replace(registry, is_metadata_stored=registry.metadata is metadata)
