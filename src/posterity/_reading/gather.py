"""One call of `get_samples`: the results, and how the reading of them is shared out among all cores.

Up the stream: `snapshot` asks. Down the stream: `epoch_sources` has the numbers.
"""

import math
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

import numpy as np

from posterity._format.layout import Layout
from posterity._format.row_reader import LONG_ROW, Scratch
from posterity._format.rows import Rows, rows_of, shares_of
from posterity._model.registry import Registry
from posterity._store.epoch_locations import Shelf
from posterity._system import aligned
from posterity._system.arrays import Array
from posterity._system.disk import Disk
from posterity._system.parallel import MOST_HELPERS, count_cores, share_out
from posterity.errors import Damaged

from .epoch_sources import MOST_OPEN, Shelves, Source
from .selection import Mask, Piece, chosen_chains

Dtype: TypeAlias = np.dtype[np.generic]
_WORTH_CHECKING = 1 << 26
_JOB_BYTES = 8 << 20
_WORTH_A_THREAD = 4 << 20
_WORTH_A_CALL = 1 << 16
_READ_BYTES = 1 << 19  # of one epoch, at least, where it has as much


class _Wanted(NamedTuple):
    """Some rows of one name's samples, and the rows of the result that they go to. `unit`: rows read best together."""

    path: str
    rows: Sequence[Rows]
    into: Array
    unit: int


class _Job(NamedTuple):
    """What one thread reads at a time: of some epochs, some rows."""

    pieces: Sequence[Piece]
    wanted: Sequence[_Wanted]


class Gathering:
    """One call of `get_samples`: the results, and how the reading of them is shared out among all cores.

    `n`: samples in all. `dims`: of which names only some dimensions are wanted, and which.
    """

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
        dims: Mapping[str, Sequence[int]] = MappingProxyType({}),
    ) -> None:
        self._disk = disk
        self._shelf = shelf
        self._registry = registry
        self._names = names
        self._mask = mask
        self._n = n
        self._thin = thin
        self._verify = verify
        self._dims = dims
        self._shapes: dict[str, tuple[int, int, object]] = {}
        self._first: deque[Shelves] = deque()  # what was opened at the beginning, for whoever comes first
        self.results: dict[str, Array] = {}

    def gather(self, parts: list[Piece]) -> None:
        """Read them."""
        with Shelves(self._disk, self._shelf) as shelves:
            source = shelves.find(parts[0].epoch, parts[0].start)
            _check_names(self._names, source.layout, parts[0].epoch)
            shapes = [self._shape_of(name, source, parts[0].epoch) for name in self._names]
            if sum(math.prod(shape) * dtype.itemsize for _, shape, dtype in shapes) > _WORTH_CHECKING:
                self._check_claims(shelves, parts)
            units = [self._unit_of(name, source.layout) for name in self._names]
            wanted = [
                self._begin(name, *shape, unit) for name, shape, unit in zip(self._names, shapes, units, strict=True)
            ]
            self._first.append(shelves)
            share_out(list(self._jobs(parts, wanted)), self._worker, self._count_threads(parts, wanted))

    def _shape_of(self, name: str, source: Source, index: int) -> tuple[list[Rows], tuple[int, int, int], Dtype]:
        """Which rows are wanted of the samples of a name, and the shape and dtype of its result."""
        path = f"samples/{name}"
        leaf = source.layout.by_path[path]
        self._check_length(source, index, leaf)
        nchain, dim, _ = source.layout.leaves[leaf].shape
        chains = chosen_chains(self._mask, nchain)
        dtype = source.layout.dtypes[leaf]
        self._shapes[path] = (nchain, dim, dtype)
        dims = self._dims.get(name)
        shape = (nchain if chains is None else len(chains), dim if dims is None else len(dims), self._n)
        return rows_of(chains, nchain, dim, dims), shape, dtype

    def _unit_of(self, name: str, layout: Layout) -> int:
        """How many rows are read best together: one, or those of a chunk, which comes back as a whole."""
        leaf = layout.by_path[f"samples/{name}"]
        grid = layout.grids.get(leaf)
        return 1 if grid is None or name in self._dims else grid.chunk[0] * grid.shape[1]

    def _begin(self, name: str, rows: list[Rows], shape: tuple[int, int, int], dtype: Dtype, unit: int) -> _Wanted:
        """Make room for the samples of a name."""
        result = self.results[name] = aligned.empty(shape, dtype)
        return _Wanted(f"samples/{name}", rows, result.reshape(shape[0] * shape[1], self._n), unit)

    def _check_length(self, source: Source, index: int, leaf: int) -> None:
        """Whether an array of samples is as long as the journal says."""
        item, nsamples = source.layout.leaves[leaf], self._registry.entries[index].nsamples - source.cut
        if len(item.shape) != 3 or item.shape[2] != nsamples:
            raise Damaged(f"epoch {index} has {item.path} of shape {item.shape}, and {nsamples} samples by the journal")

    def _check_claims(self, shelves: Shelves, parts: list[Piece]) -> None:
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
        """An epoch is one job, but for large ones: of those, some rows are.

        Long rows come from several epochs at a time, one row behind the other: the system clears fresh memory by pages
        of megabytes, and what is stored there next finds them in the CPU's cache.
        """
        sizes = [self._nbytes(one) for one in wanted]
        together = MOST_OPEN if self._has_long_rows(parts, wanted) else 1
        for run in (parts[i : i + together] for i in range(0, len(parts), together)):
            n = sum(part.n for part in run)
            if n * sum(sizes) <= _JOB_BYTES:
                yield _Job(run, wanted)
                continue
            least = max(_JOB_BYTES, len(run) * _READ_BYTES)
            for one, size in zip(wanted, sizes, strict=True):
                nshares = 1 if self._verify else -(-n * size // least)  # a checksum is of all
                for rows in shares_of(one.rows, nshares, one.unit):
                    yield _Job(run, [one._replace(rows=rows)])

    def _has_long_rows(self, parts: list[Piece], wanted: list[_Wanted]) -> bool:
        """Whether the rows of epochs are so long that the system may put each where it belongs."""
        row_bytes = self._n // len(parts) * min(one.into.itemsize for one in wanted)
        return self._thin == 1 and not self._verify and row_bytes >= LONG_ROW

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
        """What does the jobs of one thread: it has open files and memory of its own."""
        scratch = Scratch()
        layout: Layout | None = None
        try:
            opened = self._first.pop()
        except IndexError:
            opened = Shelves(self._disk, self._shelf)
        with opened as shelves:

            def do(job: _Job) -> None:
                nonlocal layout
                for piece in job.pieces:
                    source = shelves.find(piece.epoch, piece.start)
                    if source.layout is not layout:
                        self._check(source.layout, piece.epoch)
                        layout = source.layout
                    for one in job.wanted:
                        self._copy(piece, source, one, scratch)

            yield do

    def _copy(self, piece: Piece, source: Source, wanted: _Wanted, scratch: Scratch) -> None:
        leaf = source.layout.by_path[wanted.path]
        self._check_length(source, piece.epoch, leaf)
        into = wanted.into[:, piece.at : piece.at + piece.n]
        source.copy_samples(
            leaf, wanted.rows, into, start=piece.start, thin=self._thin, verify=self._verify, scratch=scratch
        )

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


def _check_names(names: list[str], layout: Layout, index: int) -> None:
    missing = [name for name in names if f"samples/{name}" not in layout.by_path]
    if missing:
        there = [path.partition("/")[2] for path in layout.by_path if path.startswith("samples/")]
        raise KeyError(f"epoch {index} has no samples {', '.join(map(repr, missing))}; it has {', '.join(there)}")
