"""Reading one file of epochs: which epochs are in it, and their arrays, at known offsets.

No HDF5 and no lock: what HDF5 would need to know was worked out when the file was written. What doesn't fit together is
`Damaged`, and nothing is trusted that wasn't checked.

Up the stream: `file_writer` writes what is read here. Down the stream: `epoch_sources` reads, `recovery` walks it.
"""

from collections.abc import Iterator, Sequence
from typing import Self

import numpy as np

from posterity._system.aligned import empty_bytes
from posterity._system.arrays import Array
from posterity._system.disk import Disk
from posterity._system.uncopyable import Uncopyable
from posterity.errors import Damaged

from . import hdf5
from .checksum import SUM_NAME, data_sum
from .compressed import PackedReader
from .file_header import (
    HEAD_AT,
    HEAD_SIZE,
    METADATA_AT,
    FileHead,
    decode_head,
    decode_metadata,
    encode_root,
    metadata_in,
)
from .frame import FRAME_HEAD, FRAME_MAGIC, PAGE, Frame, Stamp, align, decode_frame, read_frame_size
from .layout import Region, layout_of
from .row_reader import Place, RowReader, Scratch
from .rows import Rows

_MAX_FRAME = 1 << 28
_MAX_SEARCH = 1 << 24
_SLAB = 1 << 20  # bytes that are looked through at a time
_NOTHING: Array = np.empty(0, np.uint8)


class Reader(Uncopyable):
    """An open file of epochs, read at known offsets: no HDF5, no lock. Any thread may have one of its own."""

    def __init__(self, disk: Disk, fd: int, name: str) -> None:
        self._disk = disk
        self._fd = fd
        self.name = name
        self.size = disk.size(fd)
        self._worth_searching = 8 * self.size + _MAX_SEARCH
        self._rows = RowReader(disk, fd, name)
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
        return decode_head(self._read(HEAD_AT, HEAD_SIZE), self.name)

    def read_metadata(self) -> str | None:
        """The run's metadata as this file has them: as of its sealing, else of its beginning; None: it has none."""
        root = self._read_root()
        if root is not None:
            return metadata_in(root)
        head = self.read_head()
        if head is None or not 0 < head.metadata_bytes <= self.size - METADATA_AT:
            return None
        return decode_metadata(self._read(METADATA_AT, head.metadata_bytes))

    def _read_root(self) -> bytes | None:
        """The root group of a sealed file; None if it isn't sealed, or damaged."""
        at = self._root_address()
        return hdf5.read_group(self._read(at, self.size - at)) if at is not None and at < self.size else None

    def _first_region(self) -> int:
        head = self.read_head()
        return METADATA_AT if head is None else head.first_region

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
            known = self._packed = (region, PackedReader(region, self.name, self._rows.fill))
        return known[1]

    def is_sealed(self, regions: Sequence[tuple[int, Region]]) -> bool:
        """Whether the superblock and the root group are those of a file with these epochs."""
        head = self.read_head()
        if head is None:
            return False
        there = self._read_root()
        metadata = "" if there is None else metadata_in(there) or ""
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
            self._rows.fill(offset, memory)
        elif self._rows.fill_checked(offset, memory) != region.sums[i]:
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
        scratch: Scratch,
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
        place = Place(region.base + layout.offsets[i], layout.dtypes[i], nsamples, start, thin, into.shape[1])
        if verify:
            nrows = layout.nbytes[i] // place.row_bytes
            if self._rows.copy_checked(place, nrows, rows, into, scratch) != region.sums[i]:
                raise self._damaged(region, i, f"its {SUM_NAME} is another one")
        else:
            self._rows.copy(place, rows, into, scratch)

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

    def _read(self, offset: int, nbytes: int) -> bytes:
        data = bytearray(nbytes)
        return bytes(data[: self._disk.read_at(self._fd, offset, memoryview(data))])
