"""The packed arrays of an epoch: compressed by all cores while they are written, and brought back by all.

Up the stream: `layout` says where everything is, `chunks` what is in which chunk. Down the stream: `file_writer`.
"""

from collections.abc import Callable, Generator, Iterator, Sequence

import numpy as np

from posterity._system.aligned import empty_bytes
from posterity._system.arrays import Array
from posterity._system.disk import Buffer
from posterity._system.parallel import in_order
from posterity.errors import Damaged

from .checksum import data_sum
from .chunks import Note, Table
from .codec import Bytes
from .layout import MOST_PACKED, Layout, Region

_SLAB = 1 << 20
_Job = tuple[int, int]


def pack(layout: Layout, arrays: Sequence[Array]) -> Generator[tuple[Buffer, Note], None, None]:
    """The chunks of an epoch's packed arrays, in the order in which they are stored; close it when done with it."""

    def packer() -> Callable[[_Job], tuple[Buffer, Note]]:
        assert layout.packing is not None
        packers = {size: layout.packing.packer(size) for size in {grid.itemsize for grid in layout.grids.values()}}

        def pack_one(job: _Job) -> tuple[Buffer, Note]:
            grid = layout.grids[job[0]]
            raw = grid.take(arrays[job[0]], job[1])
            data = packers[grid.itemsize](raw)
            stored = memoryview(data) if isinstance(data, bytes) else data.data
            return stored, Note(len(stored), data is raw, data_sum(stored))

        return pack_one

    return in_order(packer, _jobs(layout))


def _jobs(layout: Layout) -> list[_Job]:
    return [(i, k) for i, grid in layout.grids.items() for k in range(grid.nchunks)]


class PackedReader:
    """The packed arrays of an epoch in a file. Any thread may read from it.

    `fill(offset, memory)` reads from the file.
    """

    def __init__(self, region: Region, name: str, fill: Callable[[int, Bytes], None]) -> None:
        """Read the index of the chunks.

        Raises:
            Damaged: it isn't what was written, or promises more than the file can hold.
        """
        self._region = region
        self._name = name
        self._fill = fill
        layout = region.layout
        nbytes = sum(grid.nbytes for grid in layout.grids.values())
        if layout.size > region.size or nbytes > MOST_PACKED * region.size:
            raise self._damaged(None, "it claims more than the file can hold")
        self._data = np.empty(layout.index_size, np.uint8)
        fill(region.base + layout.index_at, self._data)
        self._is_good = data_sum(self._data.data) == region.sums[-2]
        self._tables = layout.decode_index(self._data.tobytes())

    @property
    def index(self) -> bytes:
        """The index as it is in the file."""
        return self._data.tobytes()

    def read_array(self, i: int) -> Array:
        """Array number `i`.

        Raises:
            Damaged: the index, or a chunk, isn't what was written.
        """
        layout = self._region.layout
        grid = layout.grids[i]
        array = np.empty(grid.shape, layout.dtypes[i])
        self._each_chunk([(i, k) for k in range(grid.nchunks)], lambda job, raw: grid.put(array, job[1], raw))
        return array

    def read_samples(self, i: int, chains: Sequence[int] | None, into: Array, start: int, thin: int) -> None:
        """Some samples of an array `(nchain, dim, nsamples)`; see `epochfile.Reader.read_samples`."""
        grid = self._region.layout.grids[i]
        nchain, dim, _ = grid.shape
        chosen = range(nchain) if chains is None else chains
        cube = into.reshape(len(chosen), dim, into.shape[1])
        jobs = [(i, k) for k in grid.with_samples(chosen, start, thin, into.shape[1])]
        self._each_chunk(jobs, lambda job, raw: grid.put_samples(cube, job[1], raw, chosen, start, thin))

    def check_stored(self) -> None:
        """Compare the checksum of the index and of each chunk, without bringing anything back.

        Raises:
            Damaged: one is another.
        """
        self._check_index()
        for _ in in_order(lambda: lambda job: self._read_stored(*job), _jobs(self._region.layout)):
            pass

    def slabs(self) -> Iterator[Bytes]:
        """All bytes from the first chunk to the end of the region, as they are."""
        start, end = self._region.base + self._region.layout.size, self._region.end
        for at in range(start, end, _SLAB):
            slab = empty_bytes(min(_SLAB, end - at))
            self._fill(at, slab)
            yield slab

    def _each_chunk(self, jobs: Sequence[_Job], use: Callable[[_Job, Bytes], None]) -> None:
        """Bring chunks back and have each used, in several threads."""
        self._check_index()

        def unpacker() -> Callable[[_Job], None]:
            layout = self._region.layout
            assert layout.packing is not None
            unpackers = {i: layout.packing.unpacker(layout.grids[i].itemsize) for i in {i for i, _ in jobs}}

            def unpack_one(job: _Job) -> None:
                stored, is_raw = self._read_stored(*job)
                nbytes = layout.grids[job[0]].chunk_nbytes
                try:
                    raw = stored if is_raw else unpackers[job[0]](stored, nbytes)
                except Damaged as error:
                    raise self._damaged(job[0], str(error)) from error
                use(job, raw)

            return unpack_one

        for _ in in_order(unpacker, jobs):
            pass

    def _check_index(self) -> None:
        if not self._is_good:
            raise self._damaged(None, "the index of its chunks isn't what was written")

    def _read_stored(self, i: int, k: int) -> tuple[Bytes, bool]:
        """A chunk as it is stored, and whether it isn't compressed."""
        region, table = self._region, self._tables[i]
        address, size, mask, digest = _entry(table, k)
        grid = region.layout.grids[i]
        is_inside = region.base + region.layout.size <= address <= region.end - size
        is_raw = size == grid.chunk_nbytes  # what is compressed takes less
        if not is_inside or size > grid.chunk_nbytes or mask != (grid.raw_mask if is_raw else 0):
            raise self._damaged(i, "the index of its chunks contradicts itself")
        stored = empty_bytes(size)
        self._fill(address, stored)
        if data_sum(stored.data) != digest:
            raise self._damaged(i, f"chunk {k} isn't what was written")
        return stored, is_raw

    def _damaged(self, i: int | None, what: str) -> Damaged:
        path = "" if i is None else f"{self._region.layout.leaves[i].path!r} of "
        return Damaged(f"{self._name} is damaged: {path}the epoch at offset {self._region.base}: {what}")


def _entry(table: Table, k: int) -> tuple[int, int, int, int]:
    return int(table.addresses[k]), int(table.sizes[k]), int(table.masks[k]), int(table.sums[k])
