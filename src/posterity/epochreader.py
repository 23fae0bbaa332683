"""Reading one file of epochs: whose it is, which epochs are in it, and their arrays, at known offsets.

No HDF5 and no lock: what HDF5 would need to know was worked out when the file was written. What doesn't fit together is
`Damaged`, and nothing is trusted that wasn't checked.

Up the stream: `epochfile` writes what is read here. Down the stream: `snapshot` reads from it, `recovery` walks it.
"""

import functools
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Self

import numpy as np
import xxhash

from . import hdf5
from .disk import Disk
from .errors import Damaged, NewerFormat
from .layout import (
    FORMAT_VERSION,
    FRAME_HEAD,
    FRAME_MAGIC,
    METADATA_VERSION,
    PAGE,
    SUM_NAME,
    Frame,
    Region,
    Stamp,
    align,
    as_bytes,
    data_sum,
    decode_frame,
    layout_of,
    read_frame_size,
)
from .packed import PackedReader
from .pages import empty_bytes
from .rows import Rows, overlap, pieces_of
from .tree import Array

_HEAD_AT = 64
_HEAD = struct.Struct("<8sIIIIQ16sQ")
_HEAD_MAGIC = b"POSTfile"
_METADATA_AT = 128
_SUM = struct.Struct("<Q")
_METADATA_NAME = "posterity_metadata"
_WORTH_SPLITTING = 15_000  # characters; an attribute has at most 64 KiB
_MAX_FRAME = 1 << 28
_MAX_SEARCH = 1 << 24
_SLAB = 1 << 20
_WORTH_SKIPPING = 1 << 15  # bytes that take longer to copy than a call to the system
LONG_ROW = 1 << 15  # bytes that the system may as well put where they belong


class FileHead(NamedTuple):
    """Whose file it is. `rewrite`: how often its content was written anew. `version`: of its format.

    `metadata_size`: the bytes of the metadata that follow on the head; 0: there are none.
    """

    run_id: bytes
    generation: int
    number: int
    rewrite: int
    version: int = FORMAT_VERSION
    metadata_size: int = 0

    @property
    def first_region(self) -> int:
        """Where the first epoch may begin."""
        return _METADATA_AT + align(_SUM.size + self.metadata_size, 8) if self.metadata_size else _METADATA_AT

    def is_same(self, other: "FileHead | None") -> bool:
        """Whether it is the head of the same file, whatever its format."""
        return other is not None and self[:4] == other[:4]


class Scratch:
    """Memory that what is read passes through, again and again. One for each thread."""

    def __init__(self) -> None:
        self._memory: Array = np.empty(0, np.uint8)

    def take(self, nbytes: int) -> Array:
        """So many bytes; what was taken before is gone."""
        if self._memory.nbytes < nbytes:
            self._memory = empty_bytes(max(nbytes, _SLAB))
        return self._memory[:nbytes]


class _Place(NamedTuple):
    """Where an array's rows are in the file, and which samples of each row are wanted: `n` of `start::thin`."""

    offset: int
    dtype: "np.dtype[np.generic]"
    nsamples: int
    start: int
    thin: int
    n: int

    @property
    def stop(self) -> int:
        """The sample after the last one that is wanted."""
        return self.start + (self.n - 1) * self.thin + 1

    @property
    def row_bytes(self) -> int:
        return self.nsamples * self.dtype.itemsize

    @property
    def skipped_bytes(self) -> int:
        """What nobody asked for at the head and at the end of each row."""
        return self.row_bytes - (self.stop - self.start) * self.dtype.itemsize

    @property
    def is_worth_a_call(self) -> bool:
        """Whether each row is read by itself: much of it is left out, or it is long and goes where it belongs."""
        if self.row_bytes > _SLAB or self.skipped_bytes >= _WORTH_SKIPPING:
            return True
        return self.thin == 1 and self.row_bytes - self.skipped_bytes >= LONG_ROW

    def chosen(self, values: Array, column: int) -> tuple[Array, int]:
        """What is wanted of the samples from `column` on, and which column of the result comes first in it."""
        done = max(0, -(-(column - self.start) // self.thin))
        return values[:, self.start + done * self.thin - column : max(0, self.stop - column) : self.thin], done


class Reader:
    """An open file of epochs, read at known offsets: no HDF5, no lock. Any thread may have one of its own."""

    def __init__(self, disk: Disk, fd: int, name: str) -> None:
        self._disk = disk
        self._fd = fd
        self.name = name
        self.size = disk.size(fd)
        self._worth_searching = 8 * self.size + _MAX_SEARCH
        self._packed: tuple[Region, PackedReader] | None = None

    @classmethod
    def open(cls, disk: Disk, name: str) -> "Reader":
        """Open a file to read it."""
        fd = disk.open(name)
        try:
            return cls(disk, fd, name)
        except OSError:
            disk.close(fd)
            raise

    def close(self) -> None:
        """Give the descriptor back."""
        self._disk.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read_head(self) -> FileHead | None:
        """Whose file it is; None if it isn't one of ours, or its head is damaged.

        Raises:
            NewerFormat: a later version wrote it.
        """
        data = self._read(_HEAD_AT, _HEAD.size)
        if data[:8] != _HEAD_MAGIC or len(data) < _HEAD.size:
            return None
        _, version, generation, rewrite, metadata_size, number, run_id, digest = _HEAD.unpack(data)
        if digest != data_sum(data[:-8]):
            return None
        if version > METADATA_VERSION:
            raise NewerFormat(f"{self.name} has format {version}, and this posterity knows {METADATA_VERSION}")
        return FileHead(run_id, generation, number, rewrite, version, metadata_size)

    def read_metadata(self) -> str | None:
        """The run's metadata as this file has them: as of its sealing, else of its beginning; None: it has none."""
        root = self._read_root()
        if root is not None:
            return _metadata_in(root)
        head = self.read_head()
        if head is None or not 0 < head.metadata_size <= self.size - _METADATA_AT - _SUM.size:
            return None
        data = self._read(_METADATA_AT, _SUM.size + head.metadata_size)
        text = data[_SUM.size :]
        return text.decode(errors="replace") if _SUM.unpack_from(data)[0] == data_sum(text) else None

    def _read_root(self) -> bytes | None:
        """The root group of a sealed file; None if it isn't sealed, or damaged."""
        at = self._root_address()
        return hdf5.read_group(self._read(at, self.size - at)) if at is not None and at < self.size else None

    def _first_region(self) -> int:
        head = self.read_head()
        return _METADATA_AT if head is None else head.first_region

    def walk(self, start: int | None = None) -> Iterator[tuple[int, Frame]]:
        """The frames from an offset on, by default all, each with its base, until one isn't whole."""
        start = self._first_region() if start is None else start
        while (found := self._frame_from(start)) is not None:
            yield found
            start = found[0] + found[1].region_size

    def scan(self) -> tuple[list[tuple[int, Frame]], list[int]]:
        """All frames that are whole, and where others must have been: damage between whole ones, or before the end.

        What isn't whole at the end of a file that was never sealed isn't damage: it was being written.
        """
        frames: list[tuple[int, Frame]] = []
        damaged: list[int] = []
        start = first = self._first_region()
        sealed_at = self._root_address()
        while True:
            frames += self.walk(start)
            end = frames[-1][0] + frames[-1][1].region_size if frames else first
            start = max(end, start)
            if sealed_at is not None and start >= sealed_at:
                return frames, damaged
            following = self._next_frame(start + 8)
            if following is None:
                return frames, damaged if sealed_at is None else [*damaged, start]
            damaged.append(start)
            start = following

    def _root_address(self) -> int | None:
        """Where the root group of a sealed file is, which follows the last epoch; None if it isn't sealed."""
        data = self._read(0, hdf5.SUPERBLOCK_SIZE)
        return hdf5.root_address(data)

    def _next_frame(self, start: int) -> int | None:
        """Where the next whole frame begins.

        Raises:
            Damaged: so much of the file looks like frames and isn't that looking at it all would take too long.
        """
        for offset in range(start, self.size, _SLAB):
            data = self._read(offset, _SLAB + len(FRAME_MAGIC))
            at = data.find(FRAME_MAGIC)
            while at != -1:
                self._worth_searching -= read_frame_size(self._read(offset + at, FRAME_HEAD)) or 0
                if self._worth_searching < 0:
                    raise Damaged(f"{self.name} is full of what looks like epochs and isn't")
                if self.frame_at(offset + at) is not None:
                    return offset + at
                at = data.find(FRAME_MAGIC, at + 1)
        return None

    def _frame_from(self, start: int) -> tuple[int, Frame] | None:
        for base in sorted({align(start, 8), align(start, PAGE)}):
            frame = self.frame_at(base)
            if frame is not None:
                return base, frame
        return None

    def frame_at(self, base: int) -> Frame | None:
        """The frame that begins at an offset; None if there is no whole one."""
        size = read_frame_size(self._read(base, FRAME_HEAD))
        if size is None or size > min(self.size - base, _MAX_FRAME):
            return None
        frame = decode_frame(self._read(base, size), base)
        return frame if frame is not None and frame.region_size <= self.size - base else None

    def region(self, base: int, frame: Frame) -> Region:
        """Where the arrays of a frame's epoch are.

        Raises:
            Damaged: the frame contradicts itself.
        """
        region = Region(base, layout_of(frame.spec), frame.sums)
        if len(frame.sums) != region.layout.nsums or region.size != frame.region_size:
            raise Damaged(f"{self.name}: the epoch at offset {base} contradicts itself")
        return region

    def is_whole(self, base: int, frame: Frame) -> bool:
        """Whether every byte that matters of a frame's epoch is there: its arrays, and the headers that HDF5 reads."""
        stamp = Stamp(frame.run_id, frame.generation, frame.epoch, frame.first, frame.nsamples, frame.cut)
        try:
            region = self.region(base, frame)
            arrays = self.check_stored(region)
        except Damaged:
            return False
        return self.has_head(region, stamp, arrays)

    def check_stored(self, region: Region) -> list[Array]:
        """Compare the checksums of all that is stored of an epoch's arrays; returns those that aren't packed.

        Raises:
            Damaged: one is another; the message names the array.
        """
        if region.layout.grids:
            self.packed(region).check_stored()
        return self.read_plain(region, verify=True)

    def read_plain(self, region: Region, *, verify: bool) -> list[Array]:
        """The arrays that aren't packed; nothing in the place of those that are."""
        grids, n = region.layout.grids, len(region.layout.leaves)
        return [_NOTHING if i in grids else self.read_array(region, i, verify=verify) for i in range(n)]

    def has_head(self, region: Region, stamp: Stamp, arrays: Sequence[Array]) -> bool:
        """Whether all that comes before an epoch's large arrays is as it was written, byte by byte.

        `arrays`: all, or those that aren't packed.
        """
        index = self.packed(region).index if region.layout.grids else b""
        head = region.layout.encode_head(region.base, stamp, arrays, region.sums, index)
        return self._read(region.base, len(head)) == head

    def packed(self, region: Region) -> PackedReader:
        """What reads the packed arrays of an epoch.

        Raises:
            Damaged: it can't be all there.
        """
        known = self._packed
        if known is None or known[0] != region:
            self._check_within(region, 0, region.end)
            known = self._packed = (region, PackedReader(region, self.name, self._fill))
        return known[1]

    def is_sealed(self, regions: Sequence[tuple[int, Region]]) -> bool:
        """Whether the superblock and the root group are those of a file with these epochs."""
        head = self.read_head()
        if head is None:
            return False
        there = self._read_root()
        metadata = "" if there is None else _metadata_in(there) or ""
        root = encode_root(head, {index: region.base + region.layout.group_at for index, region in regions}, metadata)
        at = align(max((region.end for _, region in regions), default=head.first_region), 8)
        superblock = hdf5.superblock(at, at + len(root))
        return self._read(0, len(superblock)) == superblock and self._read(at, len(root)) == root

    def read_array(self, region: Region, i: int, *, verify: bool) -> Array:
        """Array number `i` of an epoch, in memory of its own.

        Raises:
            Damaged: the file ends before it, or with `verify` its checksum is another one.
        """
        layout = region.layout
        if i in layout.grids:
            array = self.packed(region).read_array(i)
            if verify:
                self._check_sum(region, i, array)
            return array
        self._check_there(region, i)
        memory = empty_bytes(layout.nbytes[i])
        offset = region.base + layout.offsets[i]
        if not verify:
            self._fill(offset, memory)
        elif self._fill_checked(offset, memory) != region.sums[i]:
            raise self._damaged(region, i, f"its {SUM_NAME} is another one")
        return memory.view(layout.dtypes[i]).reshape(layout.leaves[i].shape)

    def check_sums(self, region: Region, arrays: Sequence[Array]) -> None:
        """Compare the checksums of all arrays of an epoch.

        Raises:
            Damaged: one is another; the message names the array.
        """
        for i, array in enumerate(arrays):
            self._check_sum(region, i, array)

    def _check_sum(self, region: Region, i: int, array: Array) -> None:
        if data_sum(array) != region.sums[i]:
            raise self._damaged(region, i, f"its {SUM_NAME} is another one")

    def read_samples(
        self,
        region: Region,
        i: int,
        rows: Sequence[Rows],
        into: Array,
        *,
        start: int,
        thin: int,
        scratch: "Scratch",
        verify: bool = False,
    ) -> None:
        """Some samples of an array `(nchain, dim, nsamples)`: `array.reshape(-1, nsamples)[:, start::thin]`.

        They are stored in `into`, at the rows that `rows` says, as many as it has columns. Only the rows asked for are
        read, piece by piece; with `verify` all of the array is, and its checksum is made on the way.

        Raises:
            Damaged: the file ends before it, or with `verify` its checksum is another one.
        """
        layout = region.layout
        if i in layout.grids:
            self._read_packed(region, i, rows, into, start=start, thin=thin, verify=verify)
            return
        self._check_there(region, i)
        nsamples = layout.leaves[i].shape[-1]
        place = _Place(region.base + layout.offsets[i], layout.dtypes[i], nsamples, start, thin, into.shape[1])
        if verify:
            nrows = layout.nbytes[i] // place.row_bytes
            if self._copy_checked(place, nrows, rows, into, scratch) != region.sums[i]:
                raise self._damaged(region, i, f"its {SUM_NAME} is another one")
        elif place.is_worth_a_call:
            self._copy_rows(place, rows, into, scratch)
        else:
            self._copy_slabs(place, rows, into, scratch)

    def _read_packed(
        self, region: Region, i: int, rows: Sequence[Rows], into: Array, *, start: int, thin: int, verify: bool
    ) -> None:
        """As `read_samples`: chunks hold chains, so whole ones are brought back."""
        _, dim, nsamples = region.layout.leaves[i].shape
        if not rows:
            return
        if not verify and all(run.first % dim == 0 and run.n % dim == 0 for run in rows):
            chains = [first // dim + k for _, first, n in rows for k in range(n // dim)]
            self.packed(region).read_samples(i, chains, into[rows[0].at : rows[-1].at + rows[-1].n], start, thin)
            return
        array = self.read_array(region, i, verify=verify).reshape(-1, nsamples)
        for at, first, n in rows:
            into[at : at + n] = array[first : first + n, start::thin][:, : into.shape[1]]

    def _copy_slabs(self, place: "_Place", rows: Sequence[Rows], into: Array, scratch: "Scratch") -> None:
        """Many short rows at a time. The way through memory that is in the CPU's cache costs nothing."""
        for at, first, count in pieces_of(rows, max(1, _SLAB // place.row_bytes)):
            values = self._values(place.offset + first * place.row_bytes, count, place, scratch)
            into[at : at + count] = values[:, place.start : place.stop : place.thin]

    def _copy_rows(self, place: "_Place", rows: Sequence[Rows], into: Array, scratch: "Scratch") -> None:
        """One row after the other, without what comes before the first sample and after the last."""
        offset, row_bytes = place.offset + place.start * place.dtype.itemsize, place.row_bytes
        if place.thin == 1 and into.dtype == place.dtype:
            for at, first, count in rows:
                begin = offset + first * row_bytes
                mine = [row.data for row in into[at : at + count].view(np.uint8)]
                if not self._disk.read_rows(self._fd, begin, row_bytes, mine):
                    raise Damaged(f"{self.name} ended while it was read, at offset {begin}")
            return
        step = max(1, _SLAB // (place.thin * place.dtype.itemsize)) * place.thin
        for at, first, count in rows:
            for k in range(count):
                for column in range(place.start, place.stop, step):
                    n = min(step, place.stop - column)
                    begin = place.offset + (first + k) * row_bytes + column * place.dtype.itemsize
                    values = self._values(begin, 1, place, scratch, n)[:, :: place.thin]
                    done = (column - place.start) // place.thin
                    into[at + k : at + k + 1, done : done + values.shape[1]] = values

    def _copy_checked(self, place: "_Place", nrows: int, rows: Sequence[Rows], into: Array, scratch: "Scratch") -> int:
        """All rows in their order, through the checksum, while they are in the CPU's cache; returns that."""
        digest = xxhash.xxh3_64()
        most = max(1, _SLAB // place.row_bytes)
        step = max(1, _SLAB // place.dtype.itemsize)
        for first in range(0, nrows, most):
            count = min(most, nrows - first)
            for column in range(0, place.nsamples, step):
                n = min(step, place.nsamples - column)
                begin = place.offset + first * place.row_bytes + column * place.dtype.itemsize
                values = self._values(begin, count, place, scratch, n)
                digest.update(as_bytes(values))
                chosen, done = place.chosen(values, column)
                if chosen.shape[1]:
                    for run in overlap(rows, first, count):
                        mine = chosen[run.first - first : run.first - first + run.n]
                        into[run.at : run.at + run.n, done : done + mine.shape[1]] = mine
        return digest.intdigest()

    def _values(
        self, offset: int, nrows: int, place: "_Place", scratch: "Scratch", nsamples: int | None = None
    ) -> Array:
        """Whole rows, or a part of one, in memory that is used again."""
        n = place.nsamples if nsamples is None else nsamples
        memory = scratch.take(nrows * n * place.dtype.itemsize)
        self._fill(offset, memory)
        return memory.view(place.dtype).reshape(nrows, n)

    def current_size(self) -> int:
        """Its size in bytes: a file that is filling up may have grown since it was opened."""
        self.size = self._disk.size(self._fd)
        return self.size

    def _check_there(self, region: Region, i: int) -> None:
        self._check_within(region, i, region.base + region.layout.offsets[i] + region.layout.nbytes[i])

    def _check_within(self, region: Region, i: int, end: int) -> None:
        if end > self.size and end > self.current_size():
            raise self._damaged(region, i, "the file ends before it")

    def _damaged(self, region: Region, i: int, what: str) -> Damaged:
        path = region.layout.leaves[i].path
        return Damaged(f"{self.name} is damaged: {path!r} of the epoch at offset {region.base}: {what}")

    def _fill(self, offset: int, memory: Array) -> None:
        if self._disk.read_at(self._fd, offset, memory.data) < memory.nbytes:
            raise Damaged(f"{self.name} ended while it was read, at offset {offset}")

    def _fill_checked(self, offset: int, memory: Array) -> int:
        """Read piece by piece, each of which passes through the checksum while it is in the CPU's cache."""
        if memory.nbytes <= _SLAB:
            self._fill(offset, memory)
            return data_sum(memory.data)
        digest = xxhash.xxh3_64()
        for done in range(0, memory.nbytes, _SLAB):
            piece = memory[done : done + _SLAB]
            self._fill(offset + done, piece)
            digest.update(piece.data)
        return digest.intdigest()

    def _read(self, offset: int, nbytes: int) -> bytes:
        data = bytearray(nbytes)
        return bytes(data[: self._disk.read_at(self._fd, offset, memoryview(data))])


_NOTHING: Array = np.empty(0, np.uint8)


def encode_root(head: FileHead, groups: Mapping[int, int], metadata: str = "") -> bytes:
    """The root group; `groups`: where each epoch's group is."""
    links = [(f"epoch_{index}", address) for index, address in groups.items()]
    attributes = b"".join(
        [
            hdf5.text_attribute("posterity_run", head.run_id.hex()),
            hdf5.number_attribute("posterity_format", head.version),
            hdf5.number_attribute("generation", head.generation),
            hdf5.number_attribute("number", head.number),
            hdf5.number_attribute("rewrite", head.rewrite),
            _metadata_attributes(metadata),
        ]
    )
    return hdf5.group(links, attributes)


@functools.lru_cache(maxsize=16)
def _metadata_attributes(metadata: str) -> bytes:
    """Metadata as attributes: one, and more of them if it is long."""
    parts = [metadata[i : i + _WORTH_SPLITTING] for i in range(0, len(metadata), _WORTH_SPLITTING)]
    return b"".join(hdf5.text_attribute(_part_name(i), part) for i, part in enumerate(parts))


def _part_name(i: int) -> str:
    return f"{_METADATA_NAME}_{i}" if i else _METADATA_NAME


def _metadata_in(root: bytes) -> str | None:
    """The metadata that a root group has."""
    texts = hdf5.text_attributes(root)
    parts = [texts[name] for i in range(len(texts)) if (name := _part_name(i)) in texts]
    return "".join(parts) or None


def encode_head(head: FileHead, metadata: bytes = b"") -> bytes:
    """The first bytes of a file: room for HDF5's superblock, whose file it is, and the run's metadata."""
    fields = (_HEAD_MAGIC, head.version, head.generation, head.rewrite, head.metadata_size, head.number, head.run_id)
    body = _HEAD.pack(*fields, 0)[:-8]
    first = (bytes(_HEAD_AT) + body + _SUM.pack(data_sum(body))).ljust(_METADATA_AT, b"\0")
    return (first + _SUM.pack(data_sum(metadata)) + metadata).ljust(head.first_region, b"\0") if metadata else first
