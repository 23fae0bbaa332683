"""How large arrays are cut into chunks, and the index that says where each chunk is.

A chunk holds whole chains if it can, else a stretch of the samples of one chain, so that reading a few chains, or the
last samples, stays cheap. The index of an epoch is HDF5's own, and a checksum for each chunk behind it.

Up the stream: `codec`, `hdf5`. Down the stream: `layout` knows where the index is, `compressed` uses it.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from posterity._system.arrays import Array

from . import hdf5
from .codec import Bytes

if TYPE_CHECKING:
    import numpy.typing as npt

MOST_CHUNK = 1 << 24  # bytes: who reads a chunk takes so much memory, whatever a file says
TARGET = 1 << 19  # bytes of a chunk, at most
_LEAST_RUN = 64


def chunk_shape(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """The shape of the chunks of an array, of half a megabyte or less; none if it can't be cut so."""
    if not shape or itemsize > TARGET:
        return ()
    behind = itemsize * math.prod(shape[1:])
    if behind <= TARGET:
        return (_even(shape[0], TARGET // behind), *shape[1:])
    inner = itemsize * math.prod(shape[1:-1])
    if inner * _LEAST_RUN <= TARGET:  # one chain is more than a chunk: a stretch of its samples, each whole
        return (1, *shape[1:-1], _even(shape[-1], TARGET // inner))
    return (1, *chunk_shape(shape[1:], itemsize))


def _even(length: int, most: int) -> int:
    """The length of pieces of about the same length, of which none is longer than `most`."""
    return -(-length // -(-length // most))


class Grid:
    """An array of `shape` in chunks of `chunk`, numbered in C order. The last ones may stick out of it.

    `nfilters`: how many of HDF5's filters a compressed chunk went through.
    """

    def __init__(self, shape: tuple[int, ...], itemsize: int, chunk: tuple[int, ...], nfilters: int = 1) -> None:
        if len(chunk) != len(shape) or not all(0 < part <= length for part, length in zip(chunk, shape, strict=True)):
            raise ValueError(f"an array of shape {shape} can't be cut into chunks of {chunk}")
        self.shape = shape
        self.chunk = chunk
        self.itemsize = itemsize
        self.raw_mask = (1 << nfilters) - 1  # of a chunk that went through none
        self.counts = tuple(-(-length // part) for length, part in zip(shape, chunk, strict=True))
        self.nchunks = math.prod(self.counts)
        self.chunk_nbytes = itemsize * math.prod(chunk)
        self.nbytes = itemsize * math.prod(shape)
        # Elements are copied as bare bytes: NumPy leaves out what lies between the fields of a structure.
        self._dtype = np.dtype(f"u{itemsize}") if itemsize in (1, 2, 4, 8) else np.dtype((np.void, itemsize))
        if self.chunk_nbytes > MOST_CHUNK:
            raise ValueError(f"chunks of {chunk} are larger than {MOST_CHUNK} bytes")

    def place(self, k: int) -> tuple[slice, ...]:
        """What of the array chunk `k` holds."""
        at = np.unravel_index(k, self.counts)
        starts = [int(i) * part for i, part in zip(at, self.chunk, strict=True)]
        stops = [min(start + part, n) for start, part, n in zip(starts, self.chunk, self.shape, strict=True)]
        return tuple(map(slice, starts, stops))

    def take(self, array: Array, k: int) -> Bytes:
        """The bytes of a chunk; zeros for what sticks out."""
        part = array.view(self._dtype)[self.place(k)]
        if part.shape != self.chunk:
            whole = np.zeros(self.chunk, self._dtype)
            whole[tuple(map(slice, part.shape))] = part
            part = whole
        return np.ascontiguousarray(part).reshape(-1).view(np.uint8)

    def put(self, array: Array, k: int, raw: Bytes) -> None:
        """Store the bytes of a chunk in the array."""
        place = self.place(k)
        block = self._block(raw)
        array.view(self._dtype)[place] = block[tuple(slice(part.stop - part.start) for part in place)]

    def _block(self, raw: Bytes) -> Array:
        return raw.view(self._dtype).reshape(self.chunk)

    def put_samples(self, into: Array, k: int, raw: Bytes, chains: Sequence[int], start: int, thin: int) -> None:
        """Store what a chunk has of `array[chains, :, start::thin]` in `into`, which takes the first of these."""
        of_chains, of_dims, of_samples = self.place(k)
        first = following(of_samples.start, start, thin)
        at = (first - start) // thin
        end = min(of_samples.stop, start + into.shape[2] * thin)
        n = -(-(end - first) // thin)
        rows = [row for row, chain in enumerate(chains) if of_chains.start <= chain < of_chains.stop]
        inside = [chains[row] - of_chains.start for row in rows]
        block = self._block(raw)[inside, : of_dims.stop - of_dims.start]
        samples = slice(first - of_samples.start, end - of_samples.start, thin)
        into.view(self._dtype)[rows, of_dims, at : at + n] = block[:, :, samples]

    def with_samples(self, chains: Sequence[int], start: int, thin: int, n: int) -> Iterator[int]:
        """The chunks that hold some of the first `n` of `array[chains, :, start::thin]`."""
        rows = sorted({chain // self.chunk[0] for chain in chains})
        length, nsamples = self.chunk[2], min(self.shape[2], start + n * thin)
        columns = []
        for column in range(start // length, self.counts[2]):
            first = column * length
            if following(first, start, thin) < min(first + length, nsamples):
                columns.append(column)
        for row in rows:
            for middle in range(self.counts[1]):
                for column in columns:
                    yield (row * self.counts[1] + middle) * self.counts[2] + column


def following(at: int, start: int, thin: int) -> int:
    """The first of `start`, `start + thin`, ... that isn't before `at`."""
    return start if at <= start else start - (start - at) // thin * thin


class Note(NamedTuple):
    """What the index says of a chunk as it is stored. `is_raw`: it isn't compressed."""

    nbytes: int
    is_raw: bool
    sum: int


class Table(NamedTuple):
    """Where the chunks of one array are in the file, and what is known of each."""

    addresses: "npt.NDArray[np.uint64]"
    sizes: "npt.NDArray[np.uint64]"
    masks: "npt.NDArray[np.uint32]"
    sums: "npt.NDArray[np.uint64]"


class Index:
    """The indexes of an epoch's arrays, one behind the other, and then the checksum of each chunk."""

    def __init__(self, grids: Mapping[int, Grid]) -> None:
        self._grids = grids
        self._arrays = {i: hdf5.FixedArray(grid.nchunks, grid.chunk_nbytes) for i, grid in grids.items()}
        self.offsets: dict[int, int] = {}
        end = 0
        for i, array in self._arrays.items():
            self.offsets[i] = end
            end = -(-(end + array.size) // 8) * 8
        self._sums_at = end
        self.nchunks = sum(grid.nchunks for grid in grids.values())
        self.size = end + 8 * self.nchunks

    def encode(self, address: int, tables: Mapping[int, Table]) -> bytes:
        """The index, which lies at `address`."""
        data = bytearray(self._sums_at)
        for i, table in tables.items():
            at = self.offsets[i]
            part = self._arrays[i].encode(address + at, hdf5.ChunkTable(*table[:3]))
            data[at : at + len(part)] = part
        sums = [np.ascontiguousarray(table.sums, "<u8").tobytes() for table in tables.values()]
        return b"".join([bytes(data), *sums])

    def decode(self, data: bytes) -> dict[int, Table]:
        """What `encode` was given."""
        tables, at = {}, self._sums_at
        for i, grid in self._grids.items():
            part = self._arrays[i].decode(data[self.offsets[i] :])
            tables[i] = Table(*part, np.frombuffer(data, "<u8", grid.nchunks, at))
            at += 8 * grid.nchunks
        return tables

    def tables(self, address: int, chunks: Sequence[Note]) -> dict[int, Table]:
        """The tables of chunks that lie from `address` on, one behind the other."""
        sizes = np.array([chunk.nbytes for chunk in chunks], np.uint64)
        addresses = address + np.cumsum(sizes, dtype=np.uint64) - sizes
        is_raw = np.array([chunk.is_raw for chunk in chunks], bool)
        sums = np.array([chunk.sum for chunk in chunks], np.uint64)
        tables, first = {}, 0
        for i, grid in self._grids.items():
            mine = slice(first, first + grid.nchunks)
            masks = np.where(is_raw[mine], grid.raw_mask, 0).astype(np.uint32)
            tables[i] = Table(addresses[mine], sizes[mine], masks, sums[mine])
            first += grid.nchunks
        return tables
