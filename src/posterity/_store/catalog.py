"""What the journal says: which epoch is where. Replayed from records when a run is opened, kept up while it is written.

Also the names that the run's files have. Both the writer and every reader use them, in this process and in others.

Up the stream: `recovery` and `store` apply records. Down the stream: `snapshot` looks epochs up.
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import cast

import msgspec

from posterity._format.layout import Region, layout_of
from posterity._format.schema import is_packed
from posterity._model.file_names import aside_name, check_format, file_name, filling_name, rewrite_name
from posterity._model.metadata import Metadata, decode, encode
from posterity._model.registry import Entry, Log, Registry, Series, next_entry
from posterity.errors import Damaged

from .file_table import Claims
from .records import (
    Annotated,
    AnyRecord,
    Began,
    Burned,
    Described,
    Dropped,
    Grouped,
    Passed,
    Place,
    Published,
    Record,
    Rewritten,
    Stored,
)


class Catalog:
    """Where each epoch that was written is. Applied to by one thread; looking up is safe from any thread.

    What is looked up never changes its meaning: `places` and `specs` are only appended to, or, when a file was written
    anew, an item is replaced by one with the same numbers. A reset makes a new catalog.
    """

    def __init__(self, began: Began) -> None:
        self.began = began
        self.annotation = ""
        self.metadata = Metadata(started_at=began.began_at)
        self.places: list[Place | None] = []
        self.specs: list[bytes] = []
        self.spec_ids: dict[bytes, int] = {}
        self._claims = Claims()
        self.filling: set[int] = set()
        self._entries: Log[Entry] = Log()
        self._cuts: list[int] = []
        self._shown_cuts: Log[int] | None = Log()
        self._burn = (0, 0)
        self._npublished = 0
        self._ndropped = 0
        self.nrecords = 0
        self._raise_burn(began.burn, began.asked_burn)

    def apply(self, *records: AnyRecord) -> None:
        """Take in records that came one after the other. Of epochs that follow each other it costs little.

        Raises:
            Damaged: they contradict each other, or what came before.
        """
        for are_epochs, group in groupby(records, lambda record: isinstance(record, (Stored, Passed))):
            if are_epochs:
                self._add(cast("list[Stored | Passed]", list(group)))
            else:
                for record in group:
                    self._apply(record)
        self.nrecords += len(records)

    def _apply(self, record: AnyRecord) -> None:
        match record:
            case Described():
                self.spec_ids[record.spec] = len(self.specs)
                self.specs.append(record.spec)
            case Grouped():
                self._claims.group(record, len(self._entries))
            case Burned():
                self._raise_burn(record.burn, record.asked_burn)
            case Published():
                self._publish(record)
            case Rewritten():
                self._rewrite(record)
            case Dropped():
                self._drop(record.stop)
            case Annotated():
                self.metadata = decode(record.text)
                self.annotation = record.text
            case Began():
                raise Damaged("the journal starts a run within a run")

    def _add(self, records: Sequence[Stored | Passed]) -> None:
        """Take in epochs that follow each other."""
        start = len(self._entries)
        last = self._entries[-1] if start else None
        entries: list[Entry] = []
        places: list[Place | None] = []
        for index, record in enumerate(records, start):
            if record.index != index or record.first != (0 if last is None else last.stop):
                raise Damaged(
                    f"the journal has epoch {record.index} at sample {record.first} where epoch {index} belongs"
                )
            place, nbytes = (record.place, record.nbytes) if isinstance(record, Stored) else (None, 0)
            if place is not None:
                self._check(place, record.nsamples)
            last = next_entry(last, record.nsamples, nbytes)
            entries.append(last)
            places.append(place)
        self._claims.add(start, places)
        cuts = [entry.nsamples if place is None else place.cut for entry, place in zip(entries, places, strict=True)]
        self.filling |= {place.number for place in places if place is not None}
        self.places += places
        self._entries = self._entries.extended(entries)
        self._cuts += cuts
        if self._shown_cuts is not None:
            self._shown_cuts = self._shown_cuts.extended(cuts)

    def _check(self, place: Place, nsamples: int) -> None:
        if place.layout >= len(self.specs) or len(place.sums) % 8 or place.cut >= nsamples:
            raise Damaged(f"the journal has a place in file {place.number} that makes no sense: {place}")

    def _raise_burn(self, burn: int, asked_burn: int) -> None:
        if asked_burn > burn:
            raise Damaged(f"the journal has a burn of {burn}, and {asked_burn} of it were asked for")
        self._burn = (max(burn, self._burn[0]), max(asked_burn, self._burn[1]))

    def _rewrite(self, record: Rewritten) -> None:
        stop = record.start + len(record.places)
        self._claims.rewrite(record, self.places[record.start : stop])
        for i, place in enumerate(record.places, record.start):
            if place is not None:
                self._check(place, self._entries[i].nsamples)
            self._move(i, place)
        if record.filling:
            self.filling.add(record.number)
            if record.places:  # it was published, and will be again
                self._npublished = min(self._npublished, record.start)

    def _move(self, index: int, place: Place | None) -> None:
        self.places[index] = place
        self._cuts[index] = self._entries[index].nsamples if place is None else place.cut
        self._shown_cuts = None

    def _publish(self, record: Published) -> None:
        self._check_stop(record.stop, self._npublished)
        self._claims.publish(record)
        self._npublished = record.stop
        if record.number:
            self.filling.discard(record.number)
        else:
            self.filling.clear()

    def _check_stop(self, stop: int, before: int) -> None:
        if not before <= stop <= len(self._entries):
            n = len(self._entries)
            raise Damaged(f"the journal speaks of epochs before {stop}, and there are {n}; it was at {before} already")

    def _drop(self, stop: int) -> None:
        self._check_stop(stop, self._ndropped)
        if stop and not self._entries[stop - 1].is_burned(self._burn[0]):
            raise Damaged(f"the journal drops epoch {stop - 1}, and the burn of {self._burn[0]} doesn't take it")
        self._claims.drop(self.places[self._ndropped : stop])
        for i in range(self._ndropped, stop):
            self._move(i, None)
        self._ndropped = stop

    def check_whole(self) -> None:
        """Look at what can be said only once all records are there that came together.

        Raises:
            Damaged: it isn't known which file each epoch belongs to.
        """
        self._claims.check_whole(len(self._entries))

    def registry(self) -> Registry:
        """The registry that the records make, to go on from: everything in it survives a power cut."""
        return msgspec.structs.replace(self.shown(), entries=Log(self._entries), cuts=Log(self._cuts))

    def shown(self) -> Registry:
        """As `registry`, to look at only: it shares our memory, and costs the same however long the run is.

        After a file was written anew or dropped the cuts are copied, once.
        """
        if self._shown_cuts is None:
            self._shown_cuts = Log(self._cuts)
        return Registry(
            generation=self.began.generation,
            entries=self._entries,
            series=tuple(self._claims.series),
            burn=self._burn[0],
            asked_burn=self._burn[1],
            stored_burn=self._burn[0],
            stored_asked_burn=self._burn[1],
            cuts=self._shown_cuts,
            npublished=self._npublished,
            ndropped=self._ndropped,
            metadata=self.metadata,
        )

    def says(self, metadata: Metadata) -> bool:
        """Whether these are the metadata by now. Compared as text: a NaN isn't equal to itself."""
        return encode(metadata) == encode(self.metadata)

    @property
    def rewrites(self) -> dict[int, int]:
        """How often files were written anew, by their numbers; only those are there that were."""
        return self._claims.rewrites

    @property
    def nsamples(self) -> int:
        """The samples of all epochs that were written."""
        return self._entries[-1].stop if self._entries else 0

    def series(self) -> list[Series]:
        """How epochs are grouped into files."""
        return self._claims.series

    def entry(self, index: int) -> Entry:
        """The registry's entry of an epoch that was written."""
        return self._entries[index]

    def has_file(self, number: int) -> bool:
        """Whether a file with this number was ever written."""
        return self._claims.has_file(number)

    def region(self, place: Place) -> Region:
        """Where the arrays of an epoch are in its file."""
        layout, sums = layout_of(self.specs[place.layout]), unpack_sums(place.sums)
        if len(sums) != layout.nsums:
            raise Damaged(f"the journal has {len(sums)} checksums for {len(layout.leaves)} arrays")
        return Region(place.base, layout, sums)

    def packed_specs(self) -> list[bytes]:
        """The packed layouts that epochs have, in the order in which they came."""
        used = self._used_layouts()
        return [spec for i, spec in enumerate(self.specs) if i in used and is_packed(spec)]

    def numbers(self) -> set[int]:
        """The numbers of the files that hold an epoch."""
        return self._claims.numbers()

    def names_of(self, number: int, rewrite: int) -> tuple[str, str, str, str]:
        """The names that a file may have, in the order in which it gets them.

        Who looks for it in this order can't be overtaken by a rename.
        """
        fmt = self.began.outfile_fmt
        return (
            rewrite_name(fmt, number, rewrite),
            filling_name(fmt, number),
            file_name(fmt, number),
            aside_name(fmt, number, self.began.generation),
        )

    def records(self) -> Iterator[Record]:
        """The shortest journal that says the same."""
        yield Began(
            self.began.run_id,
            self.began.generation,
            self.began.outfile_fmt,
            *self._burn,
            self.began.began_at,
        )
        if self.annotation:
            yield Annotated(self.annotation)
        for series in self._claims.series:
            yield Grouped(series.start, series.number, series.epochs_per_file)
        used = self._used_layouts()
        for i, spec in enumerate(self.specs):
            yield Described(spec if i in used else b"")
        for entry, place in zip(self._entries, self.places, strict=True):
            if place is None:
                yield Passed(entry.index, entry.first, entry.nsamples)
            else:
                yield Stored(entry.index, entry.first, entry.nsamples, entry.nbytes, place)
        yield from self._last_records()

    def forget_unused_layouts(self) -> None:
        """Layouts that no epoch has any more aren't in `records`: the next epoch that has one describes it anew."""
        used = self._used_layouts()
        self.spec_ids = {spec: i for spec, i in self.spec_ids.items() if i in used}

    def _used_layouts(self) -> set[int]:
        return {place.layout for place in self.places if place is not None}

    def _last_records(self) -> Iterator[Record]:
        if self._npublished:
            yield Published(0, self._npublished)
        if self._ndropped:
            yield Dropped(self._ndropped)
        for number in sorted(self.filling | (self.numbers() & set(self.rewrites))):
            yield Rewritten(number, self.rewrites.get(number, 0), 0, number in self.filling, [])


def replayed(records: Iterable[AnyRecord], catalog: Catalog | None = None) -> Catalog:
    """The catalog of the run's last generation.

    `catalog`: what came before these records; it is kept up in place, until one of them begins the run anew.

    Raises:
        Damaged: the records contradict each other.
    """
    for begins, group in groupby(records, lambda record: isinstance(record, Began)):
        if begins:
            for record in group:
                catalog = _begun(cast("Began", record), catalog)
        elif catalog is None:
            raise Damaged("the journal doesn't begin with the beginning of a run")
        else:
            catalog.apply(*group)
    if catalog is None:
        raise Damaged("the journal is empty")
    catalog.check_whole()
    return catalog


def _begun(record: Began, before: Catalog | None) -> Catalog:
    if before is not None:
        was = before.began
        if record.run_id != was.run_id or record.generation <= was.generation:
            raise Damaged(
                f"the journal goes from generation {was.generation} to {record.generation}, or to another run"
            )
    try:
        check_format(record.outfile_fmt)
    except ValueError as error:
        raise Damaged(f"the journal names files in a way that no run does: {error}") from error
    return Catalog(record)


def pack_sums(sums: tuple[int, ...]) -> bytes:
    """Checksums as a record keeps them."""
    return struct.pack(f"<{len(sums)}Q", *sums)


def unpack_sums(sums: bytes) -> tuple[int, ...]:
    """The checksums that `pack_sums` packed."""
    return struct.unpack(f"<{len(sums) // 8}Q", sums)
