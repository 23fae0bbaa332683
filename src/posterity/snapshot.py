"""Reading: an immutable picture of the run, and all that can be asked of it.

A snapshot knows the registry as it was and where the numbers are: in memory, or in files, which it reads at known
offsets without HDF5. Later ingests, burns and resets don't change it, and what it needs is kept until it is released.

Up the stream: `service` and `run` make them. Down the stream: the faces hand it out, and read from one in each call.
"""

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Generic, Self, TypeVar, cast

import numpy as np

from .catalog import Catalog, open_place
from .disk import Disk
from .epoch import EpochDict, Held, to_epoch
from .epochfile import EpochFile, FileHead, Reader
from .errors import Burned, Closed, Damaged
from .foreign import choose_epoch, read_foreign_epoch
from .journal import Place
from .layout import Layout, Region, Stamp, encode_items, layout_of
from .registry import Entry, Registry
from .selection import Mask, Piece, check_thin, chosen_chains, count_samples, flatten_samples, pieces
from .shelf import Shelf
from .tree import Array, flatten, restore

E_co = TypeVar("E_co", covariant=True)
_WORTH_CHECKING = 1 << 26


def _nothing() -> None:
    pass


class Snapshot(Generic[E_co]):
    """The run as it was when it was asked for. Any thread may read from it; `release` it when done."""

    def __init__(
        self,
        registry: Registry,
        shelf: Shelf,
        disk: Disk,
        *,
        release: Callable[[], None] = _nothing,
        abandon: Callable[[], None] = _nothing,
        trusted: Sequence[str] = (),
    ) -> None:
        self.registry = registry
        self._shelf: Shelf | None = shelf
        self._disk = disk
        self._release = release
        self._abandon = abandon
        self._trusted = trusted

    def release(self) -> None:
        """Let go of the files that it needs; idempotent."""
        shelf, self._shelf = self._shelf, None
        if shelf is not None:
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __del__(self) -> None:
        if getattr(self, "_shelf", None) is not None:
            self._abandon()

    def __repr__(self) -> str:
        registry = self.registry
        return f"<Snapshot: {registry.next_index} epochs, {registry.nsamples_left} samples left, burn {registry.burn}>"

    @property
    def burn(self) -> int:
        """Samples discarded, counted from the first ever ingested."""
        return self.registry.burn

    @property
    def nepochs(self) -> int:
        """Epochs ever ingested, burned ones too."""
        return self.registry.next_index

    @property
    def nsamples(self) -> int:
        """Samples that are left in each chain."""
        return self.registry.nsamples_left

    @property
    def epochs(self) -> range:
        """The indices of the epochs that aren't wholly burned."""
        return range(self.registry.first_left, self.registry.next_index)

    # ---- epochs --------------------------------------------------------------------------------------------------

    def get(self, ind: int = -1) -> EpochDict:
        """An epoch as the dict that was ingested, without its burned samples; the arrays are the caller's own.

        `ind`: its index in the run, or counted from the last if negative.

        Raises:
            IndexError: there never was such an epoch.
            Burned: all its samples are burned (a `ValueError`).
            Damaged: its file is damaged; every checksum is looked at.
        """
        entry = self._entry(ind)
        if entry.is_burned(self.burn):
            raise Burned(f"epoch {entry.index} was burned: burn is {self.burn}, and it ended at sample {entry.stop}")
        return self._read_epoch(entry, entry.burned(self.burn))

    def load(self, iepoch: int = -1, eclass: type | None = None, pars: Sequence[str] | None = None) -> E_co:
        """An epoch as an object, ready to continue sampling from.

        The newest epoch can always be loaded; when burn took all its samples, with its last one.

        Args:
            iepoch: its index in the run, or counted from the last if negative.
            eclass: its class; by default the one that the epoch names, if that is ours, imported already, or trusted.
            pars: names of the samples to load; by default all.

        Raises:
            IndexError, Burned, Damaged: see `get`.
            UntrustedClass: the class that the epoch names isn't imported (a `LookupError`).
        """
        entry = self._entry(iepoch)
        burned = entry.burned(self.burn)
        if burned == entry.nsamples and entry.index < self.nepochs - 1:
            raise Burned(f"epoch {entry.index} was burned: burn is {self.burn}, and it ended at sample {entry.stop}")
        data = self._read_epoch(entry, min(burned, entry.nsamples - 1))
        return cast("E_co", to_epoch(data, eclass, pars, self._trusted))

    def _entry(self, ind: int) -> Entry:
        n = self.registry.next_index
        if not -n <= ind < n:
            raise IndexError(f"there is no epoch {ind}: the run has {n} epochs" + (f", 0 to {n - 1}" if n else ""))
        return self.registry.entries[ind]

    def _read_epoch(self, entry: Entry, burned: int) -> EpochDict:
        with _Shelves(self._disk, self._there()) as shelves:
            layout, arrays, cut = shelves.read(entry.index, _all_leaves, burned)
        data = restore(layout.items, arrays)
        samples = data["samples"]
        if burned > cut and isinstance(samples, dict):
            data["samples"] = {name: array[:, :, burned - cut :].copy() for name, array in samples.items()}
        return data

    def _there(self) -> Shelf:
        if self._shelf is None:
            raise Closed("the snapshot was released")
        return self._shelf

    # ---- samples -------------------------------------------------------------------------------------------------

    def get_samples(
        self,
        burn: int = 0,
        thin: int = 1,
        pars: Sequence[str] | None = None,
        mask: Mask = ...,
        flatten: bool = False,
        verify: bool = False,
    ) -> dict[str, Array] | None:
        """The samples of the whole run: `concatenate(what is left, axis=2)[mask][:, :, burn::thin]` for each name.

        Args:
            burn: samples to leave out, on top of the run's own burn.
            thin: take every `thin`-th sample, counted across the borders of epochs.
            pars: names of the samples; by default only "p".
            mask: which chains: a boolean for each, a list of their numbers, or a slice.
            flatten: give `(n * nchain, dim)`, chain by chain, in place of `(nchain, dim, n)`.
            verify: look at the checksum of all that is read.

        Returns:
            name -> array, the caller's own; None if nothing is left.

        Raises:
            ValueError: `thin` is below 1, or `burn` below 0.
            KeyError: a name isn't in every epoch read; the message names those there are.
            IndexError: the mask doesn't fit the chains.
            Damaged: a file ends too early, or with `verify` a checksum is another one.
        """
        check_thin(burn, thin)
        names = ["p"] if pars is None else [pars] if isinstance(pars, str) else list(pars)
        n = count_samples(self.registry, burn, thin)
        if n == 0:
            return None
        with _Shelves(self._disk, self._there()) as shelves:
            found = self._gather(shelves, names, mask, n, list(pieces(self.registry, burn, thin)), thin, verify)
        return flatten_samples(found) if flatten else found

    def _gather(
        self, shelves: "_Shelves", names: list[str], mask: Mask, n: int, parts: list[Piece], thin: int, verify: bool
    ) -> dict[str, Array]:
        results: dict[str, Array] = {}
        chains: list[int] | None = None
        for part in parts:
            source = shelves.find(part.epoch, part.start)
            _check_names(names, source.layout, part.epoch)
            for name in names:
                leaf = source.layout.by_path[f"samples/{name}"]
                nchain, dim = self._check_shape(source, part.epoch, leaf)
                if name not in results:
                    chains = chosen_chains(mask, nchain)
                    shape = (nchain if chains is None else len(chains), dim, n)
                    if math.prod(shape) * source.layout.dtypes[leaf].itemsize > _WORTH_CHECKING:
                        self._check_claims(shelves, names, parts)
                    results[name] = np.empty(shape, source.layout.dtypes[leaf])
                rows = results[name].reshape(-1, n)[:, part.at : part.at + part.n]
                source.copy_samples(leaf, chains, rows, start=part.start, thin=thin, verify=verify)
        return results

    def _check_shape(self, source: "_Source", index: int, leaf: int) -> tuple[int, int]:
        """The number of chains and the dim of an array of samples, if it is as long as the journal says."""
        item, nsamples = source.layout.leaves[leaf], self.registry.entries[index].nsamples - source.cut
        if len(item.shape) != 3 or item.shape[2] != nsamples:
            raise Damaged(f"epoch {index} has {item.path} of shape {item.shape}, and {nsamples} samples by the journal")
        return item.shape[0], item.shape[1]

    def _check_claims(self, shelves: "_Shelves", names: list[str], parts: list[Piece]) -> None:
        """Before much memory is asked for: whether the files can hold what the journal says that they do.

        Raises:
            Damaged: they can't.
        """
        claimed: Counter[str] = Counter()
        for part in parts:
            source = shelves.find(part.epoch, part.start)
            _check_names(names, source.layout, part.epoch)
            for name in names:
                self._check_shape(source, part.epoch, source.layout.by_path[f"samples/{name}"])
            if (reader := source.reader) is not None:
                claimed[reader.name] += source.layout.size
                if claimed[reader.name] > reader.current_size():
                    raise Damaged(f"{reader.name} is damaged: the journal has more in it than it can hold")

    # ---- stats ---------------------------------------------------------------------------------------------------

    def get_stats(
        self, epochs: Iterable[int] | None = None, fname: str | os.PathLike[str] | None = None
    ) -> dict[str, EpochDict]:
        """The `stats` of the epochs, `{"epoch_3": {...}}`; burn never cuts them, and an epoch without is left out.

        Args:
            epochs: indices of epochs; by default all that aren't wholly burned.
            fname: an HDF5 file to save them to as well, in one step, in the place of one that is there.

        Raises:
            IndexError, Burned: an index that is listed isn't there; see `get`.
        """
        entries = [self._entry(i) for i in (self.epochs if epochs is None else epochs)]
        stats: dict[str, EpochDict] = {}
        with _Shelves(self._disk, self._there()) as shelves:
            for entry in entries:
                if entry.is_burned(self.burn):
                    raise Burned(f"epoch {entry.index} was burned; its stats are gone with it")
                layout, arrays, _ = shelves.read(entry.index, _stats_leaves, entry.nsamples)
                items = [item for item in layout.items if item.path == "stats" or item.path.startswith("stats/")]
                if items:
                    found = restore(items, arrays)["stats"]
                    stats[f"epoch_{entry.index}"] = found if isinstance(found, dict) else {"stats": found}
        if fname is not None:
            save_epochs(Path(os.fsdecode(fname)), stats)
        return stats


def _all_leaves(layout: Layout) -> list[int]:
    return list(range(len(layout.leaves)))


def _stats_leaves(layout: Layout) -> list[int]:
    return [i for i, item in enumerate(layout.leaves) if item.path == "stats" or item.path.startswith("stats/")]


def _check_names(names: list[str], layout: Layout, index: int) -> None:
    missing = [name for name in names if f"samples/{name}" not in layout.by_path]
    if missing:
        there = [path.partition("/")[2] for path in layout.by_path if path.startswith("samples/")]
        raise KeyError(f"epoch {index} has no samples {', '.join(map(repr, missing))}; it has {', '.join(there)}")


class _Source:
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
        self, i: int, chains: list[int] | None, rows: Array, *, start: int, thin: int, verify: bool
    ) -> None:
        """`array[chains, :, start::thin]` into `rows`, one row for each dimension of each chain."""
        if self._held is None and not verify:
            assert self._reader is not None
            assert self._region is not None
            self._reader.read_samples(self._region, i, chains, rows, start=start - self.cut, thin=thin)
            return
        array = self._held.array(i) if self._held is not None else self.array(i)
        chosen = array if chains is None else array[chains]
        rows[...] = chosen.reshape(-1, array.shape[2])[:, start - self.cut :: thin]


class _Shelves:
    """Finds epochs, and keeps the file open that was read last: neighbours are often in the same one."""

    def __init__(self, disk: Disk, shelf: Shelf) -> None:
        self._disk = disk
        self._shelf = shelf
        self._open: tuple[tuple[int, int], Reader] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def find(self, index: int, start: int) -> _Source:
        """An epoch, wherever it is now, to read its samples from `start` on.

        Raises:
            SnapshotExpired: burned or reset since, behind the back of a reader in another process.
            Damaged: its file is missing.
        """
        shelf = self._shelf
        held = shelf.held.get(index)
        if held is not None:
            return _Source(held, None, None, 0)
        while True:
            catalog = shelf.catalog
            assert catalog is not None
            place = catalog.places[index] if index < len(catalog.places) else None
            if place is None or place.cut > start:
                raise shelf.gone(f"epoch {index} was burned since, or is in no file")
            try:
                return _Source(None, catalog.region(place), self._reader(catalog, place), place.cut)
            except FileNotFoundError as error:
                is_now = shelf.refresh()  # the file may have been written anew just now
                if shelf.catalog is catalog and catalog.places[index] is place:
                    what = f"{error.filename} is missing, with epoch {index} in it"
                    raise (Damaged(what) if is_now else shelf.gone(what)) from error

    def _reader(self, catalog: Catalog, place: Place) -> Reader:
        key = (place.number, place.rewrite)
        if self._open is None or self._open[0] != key:
            self._close()
            self._open = (key, open_place(self._disk, catalog, place))
        return self._open[1]

    def read(self, index: int, leaves: Callable[[Layout], list[int]], start: int) -> tuple[Layout, list[Array], int]:
        """Some arrays of an epoch, the caller's own, and how many of its first samples aren't in them."""
        source = self.find(index, start)
        return source.layout, [source.array(i) for i in leaves(source.layout)], source.cut


def read_epoch(fn: str | os.PathLike[str], iepoch: int = -1) -> EpochDict:
    """An epoch from a backend's file, ours or jexplore's, as a dict of arrays that are the caller's own.

    No run is opened, and nothing else in the folder is looked at.

    Args:
        fn: the file.
        iepoch: the epoch's index in the run; if negative, counted from the last *by index*.

    Raises:
        FileNotFoundError: there is no such file.
        IndexError: the file has no such epoch; the message names those it has.
        Damaged: the file is damaged, or isn't to be trusted.
    """
    path = Path(os.fsdecode(fn))
    disk = Disk(path.parent)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    disk.enter(make=False)
    try:
        with Reader.open(disk, path.resolve().name if path.is_symlink() else path.name) as reader:
            if reader.read_head() is not None:
                return _read_ours(reader, iepoch, str(path))
    finally:
        disk.leave()
    return read_foreign_epoch(path, iepoch)


def _read_ours(reader: Reader, iepoch: int, where: str) -> EpochDict:
    whole, damaged = reader.scan()
    frames = {frame.epoch: (base, frame) for base, frame in whole}
    if damaged and iepoch not in frames:
        raise Damaged(f"{where} is damaged at offset {damaged[0]}; the epochs {sorted(frames)} can be read by index")
    base, frame = frames[choose_epoch(list(frames), iepoch, where)]
    region = reader.region(base, frame)
    arrays = [reader.read_array(region, i, verify=True) for i in range(len(region.layout.leaves))]
    return restore(region.layout.items, arrays)


def save_epochs(path: Path, epochs: dict[str, EpochDict]) -> None:
    """Save dicts to an HDF5 file, each as the group of its name, in one step: whole, or not at all."""
    disk = Disk(path.parent)
    disk.enter()
    temporary = f".{path.name}.{os.getpid()}.new"
    try:
        file = EpochFile.create(disk, temporary, FileHead(bytes(16), 0, 0, 0))
        try:
            for name, data in epochs.items():
                items, leaves = flatten(data)
                arrays = [np.ascontiguousarray(leaf).reshape(leaf.shape) for leaf in leaves]
                index = int(name.partition("_")[2])
                file.append(Stamp(bytes(16), 0, index, 0, 1, 0), layout_of(encode_items(items)), arrays)
            file.seal()
            file.sync()
        finally:
            file.close()
        disk.replace(temporary, path.name)
        disk.sync_names()
    finally:
        disk.leave()
