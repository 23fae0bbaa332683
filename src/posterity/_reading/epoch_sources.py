"""Epochs to read from, wherever they are just now: in memory, or in files, of which some are kept open.

Up the stream: `epoch_locations` says where they are. Down the stream: `gather` and `snapshot` read from them.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Self

from posterity._format.file_reader import Reader
from posterity._format.layout import Layout, Region, layout_of
from posterity._format.row_reader import Scratch
from posterity._format.rows import Rows
from posterity._ingest.owned import Held
from posterity._store.catalog import Catalog
from posterity._store.epoch_locations import Shelf
from posterity._store.file_lookup import open_place
from posterity._store.records import Place
from posterity._system.arrays import Array
from posterity._system.disk import Disk
from posterity.errors import Damaged


class Source:
    """An epoch to read from: in memory, or in a file that is open."""

    def __init__(self, held: Held | None, region: Region | None, reader: Reader | None, cut: int) -> None:
        self._held = held
        self._region = region
        self._reader = reader
        self.cut = cut
        if held is not None:
            self.layout = held.layout
        else:
            assert region is not None
            self.layout = region.layout

    @property
    def reader(self) -> Reader | None:
        """The file that it is in; None if it is in memory."""
        return self._reader

    def array(self, i: int) -> Array:
        """One of its arrays, the caller's own."""
        if self._held is not None:
            return self._held.array(i).copy()
        assert self._reader is not None
        assert self._region is not None
        return self._reader.read_array(self._region, i, verify=True)

    def copy_samples(
        self, i: int, rows: Sequence[Rows], into: Array, *, start: int, thin: int, verify: bool, scratch: Scratch
    ) -> None:
        """`start::thin` of some rows, one for each dimension of each chain; as many samples as `into` has columns."""
        if self._held is None:
            assert self._reader is not None
            assert self._region is not None
            start -= self.cut
            self._reader.read_samples(
                self._region, i, rows, into, start=start, thin=thin, scratch=scratch, verify=verify
            )
            return
        array = self._held.array(i)
        array = array.reshape(-1, array.shape[2])
        for at, first, count in rows:
            into[at : at + count] = array[first : first + count, start::thin][:, : into.shape[1]]


MOST_OPEN = 16


class Shelves:
    """Finds epochs, and keeps the files open that were read last: neighbours are often in the same one."""

    def __init__(self, disk: Disk, shelf: Shelf) -> None:
        self._disk = disk
        self._shelf = shelf
        self._open: OrderedDict[tuple[int, int], Reader] = OrderedDict()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        while self._open:
            self._close_oldest()

    def _close_oldest(self) -> None:
        self._open.popitem(last=False)[1].close()

    def find(self, index: int, start: int) -> Source:
        """An epoch, wherever it is now, to read its samples from `start` on.

        Raises:
            SnapshotExpired: burned or reset since, behind the back of a reader in another process.
            Damaged: its file is missing.
        """
        shelf = self._shelf
        held = shelf.held.get(index)
        if held is not None:
            return Source(held, None, None, 0)
        while True:
            catalog = shelf.catalog
            assert catalog is not None
            place = catalog.places[index] if index < len(catalog.places) else None
            if place is None or place.cut > start:
                raise shelf.gone(f"epoch {index} was burned since, or is in no file")
            try:
                return Source(None, catalog.region(place), self._reader(catalog, place), place.cut)
            except FileNotFoundError as error:
                is_now = shelf.refresh()  # the file may have been written anew just now
                if shelf.catalog is catalog and catalog.places[index] is place:
                    what = f"{error.filename} is missing, with epoch {index} in it"
                    raise (Damaged(what) if is_now else shelf.gone(what)) from error

    def layouts(self, indices: Iterable[int]) -> list[Layout]:
        """The layouts that some epochs have, each once; no file is looked at.

        Raises:
            SnapshotExpired: see `find`.
        """
        found: dict[int, Layout] = {}
        for index in indices:
            held = self._shelf.held.get(index)
            layout = held.layout if held is not None else self._stored_layout(index)
            found.setdefault(id(layout), layout)
        return list(found.values())

    def _stored_layout(self, index: int) -> Layout:
        catalog = self._shelf.catalog
        assert catalog is not None
        place = catalog.places[index]
        if place is None:
            raise self._shelf.gone(f"epoch {index} was burned since")
        return layout_of(catalog.specs[place.layout])

    def _reader(self, catalog: Catalog, place: Place) -> Reader:
        key = (place.number, place.rewrite)
        reader = self._open.get(key)
        if reader is None:
            if len(self._open) >= MOST_OPEN:
                self._close_oldest()
            reader = self._open[key] = open_place(self._disk, catalog, place)
        self._open.move_to_end(key)
        return reader

    def read(self, index: int, leaves: Callable[[Layout], list[int]], start: int) -> tuple[Layout, list[Array], int]:
        """Some arrays of an epoch, the caller's own, and how many of its first samples aren't in them."""
        source = self.find(index, start)
        return source.layout, [source.array(i) for i in leaves(source.layout)], source.cut
