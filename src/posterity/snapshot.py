"""Reading: an immutable picture of the run, and all that can be asked of it.

A snapshot knows the registry as it was and where the numbers are: in memory, or in files, which it reads at known
offsets without HDF5. Later ingests, burns and resets don't change it, and what it needs is kept until it is released.

Up the stream: `service` and `run` make them. Down the stream: the faces hand it out, and read from one in each call.
"""

import math
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Generic, NamedTuple, Self, TypeAlias, TypeVar, cast

import numpy as np

from .catalog import Catalog, open_place
from .disk import Disk
from .epoch import EpochDict, Held, to_epoch
from .epochfile import EpochFile
from .epochreader import FileHead, Reader, Scratch
from .errors import Burned, Closed, Damaged
from .foreign import choose_epoch, read_foreign_epoch
from .journal import Place
from .layout import Layout, Region, Stamp, encode_items, layout_of
from .registry import Entry, Registry
from .rows import Rows, rows_of, shares_of
from .selection import Mask, Piece, check_thin, chosen_chains, count_samples, flatten_samples, pieces
from .shelf import Shelf
from .threads import MOST_HELPERS, count_cores, share_out
from .tree import Array, flatten, restore

E_co = TypeVar("E_co", covariant=True)
Dtype: TypeAlias = np.dtype[np.generic]
_WORTH_CHECKING = 1 << 26
_JOB_BYTES = 8 << 20
_WORTH_A_THREAD = 4 << 20
_WORTH_A_CALL = 1 << 16


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
        names = ["p"] if pars is None else [pars] if isinstance(pars, str) else list(dict.fromkeys(pars))
        n = count_samples(self.registry, burn, thin)
        if n == 0:
            return None
        gathering = _Gathering(self._disk, self._there(), self.registry, names, mask, n, thin, verify)
        gathering.gather(list(pieces(self.registry, burn, thin)))
        return flatten_samples(gathering.results) if flatten else gathering.results

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
        self, i: int, rows: Sequence[Rows], into: Array, *, start: int, thin: int, verify: bool, scratch: Scratch
    ) -> None:
        """`start::thin` of some rows, one for each dimension of each chain."""
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
            into[at : at + count] = array[first : first + count, start::thin]


class _Wanted(NamedTuple):
    """Some rows of one name's samples, and the rows of the result that they go to."""

    path: str
    rows: Sequence[Rows]
    into: Array


class _Job(NamedTuple):
    """What one thread reads at a time: of one epoch, some rows."""

    piece: Piece
    wanted: Sequence[_Wanted]


class _Gathering:
    """One call of `get_samples`: the results, and how the reading of them is shared out among all cores."""

    def __init__(
        self,
        disk: Disk,
        shelf: Shelf,
        registry: Registry,
        names: list[str],
        mask: Mask,
        n: int,
        thin: int,
        verify: bool,
    ) -> None:
        self._disk = disk
        self._shelf = shelf
        self._registry = registry
        self._names = names
        self._mask = mask
        self._n = n
        self._thin = thin
        self._verify = verify
        self._shapes: dict[str, tuple[int, int, object]] = {}
        self._first: deque[_Shelves] = deque()  # what was opened at the beginning, for whoever comes first
        self.results: dict[str, Array] = {}

    def gather(self, parts: list[Piece]) -> None:
        """Read them."""
        with _Shelves(self._disk, self._shelf) as shelves:
            source = shelves.find(parts[0].epoch, parts[0].start)
            _check_names(self._names, source.layout, parts[0].epoch)
            shapes = [self._shape_of(name, source, parts[0].epoch) for name in self._names]
            if sum(math.prod(shape) * dtype.itemsize for _, shape, dtype in shapes) > _WORTH_CHECKING:
                self._check_claims(shelves, parts)
            wanted = [self._begin(name, *shape) for name, shape in zip(self._names, shapes, strict=True)]
            self._first.append(shelves)
            share_out(list(self._jobs(parts, wanted)), self._worker, self._count_threads(parts, wanted))

    def _shape_of(self, name: str, source: "_Source", index: int) -> tuple[list[Rows], tuple[int, int, int], Dtype]:
        """Which rows are wanted of the samples of a name, and the shape and dtype of its result."""
        path = f"samples/{name}"
        leaf = source.layout.by_path[path]
        self._check_length(source, index, leaf)
        nchain, dim, _ = source.layout.leaves[leaf].shape
        chains = chosen_chains(self._mask, nchain)
        dtype = source.layout.dtypes[leaf]
        self._shapes[path] = (nchain, dim, dtype)
        shape = (nchain if chains is None else len(chains), dim, self._n)
        return rows_of(chains, nchain, dim), shape, dtype

    def _begin(self, name: str, rows: list[Rows], shape: tuple[int, int, int], dtype: Dtype) -> _Wanted:
        """Make room for the samples of a name."""
        result = self.results[name] = np.empty(shape, dtype)
        return _Wanted(f"samples/{name}", rows, result.reshape(shape[0] * shape[1], self._n))

    def _check_length(self, source: "_Source", index: int, leaf: int) -> None:
        """Whether an array of samples is as long as the journal says."""
        item, nsamples = source.layout.leaves[leaf], self._registry.entries[index].nsamples - source.cut
        if len(item.shape) != 3 or item.shape[2] != nsamples:
            raise Damaged(f"epoch {index} has {item.path} of shape {item.shape}, and {nsamples} samples by the journal")

    def _check_claims(self, shelves: "_Shelves", parts: list[Piece]) -> None:
        """Before much memory is asked for: whether the files can hold what the journal says that they do.

        Raises:
            Damaged: they can't.
        """
        claimed: Counter[str] = Counter()
        for part in parts:
            source = shelves.find(part.epoch, part.start)
            self._check(source.layout, part.epoch)
            for path in self._shapes:
                self._check_length(source, part.epoch, source.layout.by_path[path])
            if (reader := source.reader) is not None:
                claimed[reader.name] += source.layout.size
                if claimed[reader.name] > reader.current_size():
                    raise Damaged(f"{reader.name} is damaged: the journal has more in it than it can hold")

    def _jobs(self, parts: list[Piece], wanted: list[_Wanted]) -> Iterator[_Job]:
        """An epoch is one job, but for large ones: of those, so many rows are."""
        sizes = [self._nbytes(one) for one in wanted]
        most = _JOB_BYTES // max(1, sum(sizes))
        for part in parts:
            if part.n <= most:
                yield _Job(part, wanted)
                continue
            for one, size in zip(wanted, sizes, strict=True):
                nshares = 1 if self._verify else -(-part.n * size // _JOB_BYTES)  # a checksum is of all
                for rows in shares_of(one.rows, max(1, nshares)):
                    yield _Job(part, [one._replace(rows=rows)])

    def _nbytes(self, wanted: _Wanted) -> int:
        """About how much is read for one sample of its result."""
        nchain, dim, _ = self._shapes[wanted.path]
        nrows = nchain * dim if self._verify else sum(run.n for run in wanted.rows)
        return nrows * self._thin * wanted.into.itemsize

    def _count_threads(self, parts: list[Piece], wanted: list[_Wanted]) -> int:
        """One for each core, if there is enough to read, and each call to the disk brings enough.

        Between two calls a thread needs the interpreter, which the others have: short calls are quicker in one thread.
        """
        nbytes = self._n * sum(self._nbytes(one) for one in wanted)
        ncalls = len(parts) * sum(1 if self._verify else len(one.rows) for one in wanted)
        if len(parts) == 1 and parts[0].start and not self._verify:
            ncalls = sum(run.n for one in wanted for run in one.rows)
        if nbytes < _WORTH_A_THREAD or nbytes < ncalls * _WORTH_A_CALL:
            return 1
        return min(count_cores(), 1 + MOST_HELPERS, nbytes // _WORTH_A_THREAD + 1)

    @contextmanager
    def _worker(self) -> Iterator[Callable[[_Job], None]]:
        """What does the jobs of one thread: it has an open file and memory of its own."""
        scratch = Scratch()
        layout: Layout | None = None
        try:
            opened = self._first.pop()
        except IndexError:
            opened = _Shelves(self._disk, self._shelf)
        with opened as shelves:

            def do(job: _Job) -> None:
                nonlocal layout
                piece = job.piece
                source = shelves.find(piece.epoch, piece.start)
                if source.layout is not layout:
                    self._check(source.layout, piece.epoch)
                    layout = source.layout
                for one in job.wanted:
                    leaf = layout.by_path[one.path]
                    self._check_length(source, piece.epoch, leaf)
                    into = one.into[:, piece.at : piece.at + piece.n]
                    source.copy_samples(
                        leaf, one.rows, into, start=piece.start, thin=self._thin, verify=self._verify, scratch=scratch
                    )

            yield do

    def _check(self, layout: Layout, index: int) -> None:
        """Whether an epoch has what the first one has, in the same shape.

        Raises:
            KeyError: it lacks a name.
            Damaged: it has another shape; one run's epochs are all alike.
        """
        _check_names(self._names, layout, index)
        for path, expected in self._shapes.items():
            leaf = layout.by_path[path]
            if (*layout.leaves[leaf].shape[:-1], layout.dtypes[leaf]) != expected:
                raise Damaged(f"{path!r} of epoch {index} has another shape or dtype than in the epochs before it")


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
