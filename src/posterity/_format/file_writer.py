"""One HDF5 file of epochs: how it is begun, added to and sealed.

A file begins with room for HDF5's superblock and with our own head (see `file_header`); the run's metadata may follow
on it. Then come regions of epochs (see `layout`). Sealing appends the root group and fills in the superblock: only
then is it an HDF5 file. Nothing that was written is ever changed, but for the superblock.

Up the stream: `layout`. Down the stream: `data_files` writes them; `file_reader` reads what is written here.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import xxhash

from posterity._system.arrays import Array
from posterity._system.disk import Buffer, Disk, is_full
from posterity._system.uncopyable import Uncopyable

from . import hdf5
from .batch_encoder import Numbers, encode_alike
from .checksum import as_bytes, data_sum
from .chunks import Note
from .compressed import pack
from .file_header import FileHead, encode_head, encode_root
from .file_reader import Reader
from .frame import Stamp, align
from .layout import METADATA_VERSION, PACKED_VERSION, Layout, Region

_WORTH_WRITING = 1 << 22
_WORTH_PUSHING = 1 << 23


class EpochFile(Uncopyable):
    """A file that is filling up. Its owner is the one I/O thread."""

    def __init__(self, disk: Disk, name: str, fd: int, head: FileHead) -> None:
        self.disk = disk
        self.name = name
        self.head = head
        self.end = head.first_region
        self.groups: dict[int, int] = {}
        self.sync_failed = False
        self._fd = fd
        self._synced = 0
        self._written = 0  # up to here; what waits to be written comes next, and ends at `end`
        self._waiting: list[Buffer] = []

    @classmethod
    def create(cls, disk: Disk, name: str, head: FileHead, metadata: str = "") -> "EpochFile":
        """A new file with nothing but its head, and the run's metadata."""
        data = metadata.encode()
        if data:
            head = head._replace(version=METADATA_VERSION, metadata_size=len(data))
        file = cls(disk, name, disk.create(name), head)
        file._waiting.append(encode_head(head, data))
        return file

    @classmethod
    def reopen(cls, disk: Disk, name: str, head: FileHead, regions: Sequence[tuple[int, Region]]) -> "EpochFile":
        """Go on with a file in which some epochs are, given by index.

        What a crash left behind them is cut off. That needs no sync of its own: what is added is checked as a whole, so
        it can't be taken for a mixture of old and new.
        """
        file = cls(disk, name, disk.open(name, write=True), head)
        try:
            found = Reader(disk, file._fd, name).read_head()
            if found is not None:
                file.head = head._replace(version=found.version, metadata_size=found.metadata_size)
            for index, region in regions:
                file._note(index, region)
            if disk.size(file._fd) > file.end:
                disk.truncate(file._fd, file.end)
        except OSError:
            file.close()
            raise
        file._synced = file._written = file.end
        return file

    def _note(self, index: int, region: Region) -> None:
        self.groups[index] = region.base + region.layout.group_at
        self.end = region.end

    @property
    def takes_packed(self) -> bool:
        """Whether packed epochs may be added: who knows the first format only must not take the file for one of it."""
        return self.head.version >= PACKED_VERSION

    def append(
        self, stamp: Stamp, layout: Layout, arrays: Sequence[Array], sums: tuple[int, ...] | None = None
    ) -> Region:
        """Add an epoch; returns its region. Nothing is synced, and small epochs wait to be written until then.

        `sums`: checksums that the arrays had once, kept so that damage done since stays to be seen.

        Raises:
            OSError: nothing that was added since the last sync is there: the file is to be opened again.
        """
        base = align(self.end, layout.align)
        if not layout.grids and sums is None and layout.size >= _WORTH_PUSHING:
            return self._append_large(base, stamp, layout, arrays)
        if sums is None:
            sums = tuple(data_sum(array) for array in arrays)
        if layout.grids:
            return self._append_packed(base, stamp, layout, arrays, sums)
        self._waiting += [bytes(base - self.end), layout.encode_head(base, stamp, arrays, sums)]
        at = base + layout.small_size
        for i in layout.large:
            start = base + layout.offsets[i]
            self._waiting += [bytes(start - at), as_bytes(arrays[i])]
            at = start + layout.nbytes[i]
        region = Region(base, layout, sums)
        self._waiting.append(bytes(region.end - at))
        self._note(stamp.epoch, region)
        if self.end - self._written >= _WORTH_WRITING:
            self.flush()
        return region

    def append_alike(self, first: Stamp, layout: Layout, epochs: Sequence[Sequence[Array]]) -> tuple[range, Numbers]:
        """Add epochs of one layout that follow each other, as `append` does; see `alike`. `first`: the first's stamp.

        Returns:
            Where the region of each begins, and the checksums of its arrays.
        """
        base, n, size = align(self.end, layout.align), len(epochs), layout.size
        memory, sums = encode_alike(layout, base, first, epochs)
        self._waiting += [bytes(base - self.end), memory]
        bases = range(base, base + n * size, size)
        groups = range(base + layout.group_at, bases.stop + layout.group_at, size)
        self.groups.update(zip(range(first.epoch, first.epoch + n), groups, strict=True))
        self.end = bases.stop
        if self.end - self._written >= _WORTH_WRITING:
            self.flush()
        return bases, sums

    def _append_large(self, base: int, stamp: Stamp, layout: Layout, arrays: Sequence[Array]) -> Region:
        """Add an epoch slab by slab, its head at last: while the disk takes one slab, the next one is checked.

        What its checksum was just made of is in the CPU's cache when a slab is written.
        """
        self.flush()
        self.disk.reserve(self._fd, self.end, base + layout.size - self.end)
        sums = [0 if i in layout.large else data_sum(array) for i, array in enumerate(arrays)]
        at = base + layout.small_size
        for i in layout.large:
            start, data, digest = base + layout.offsets[i], as_bytes(arrays[i]), xxhash.xxh3_64()
            gap = bytes(start - at)
            for offset in range(0, len(data), _WORTH_PUSHING):
                slab = data[offset : offset + _WORTH_PUSHING]
                digest.update(slab)
                self.disk.write_at(self._fd, start + offset - len(gap), [gap, slab])
                self.disk.push(self._fd, start + offset, len(slab))
                gap = b""
            sums[i], at = digest.intdigest(), start + len(data)
        region = Region(base, layout, tuple(sums))
        self.disk.write_at(self._fd, at, [bytes(region.end - at)])
        self._write_head(stamp, region, arrays)
        return region

    def flush(self) -> None:
        """Write what waits, in one piece. Nothing is synced."""
        if self._waiting:
            self._put(self._written, self._waiting, self.end - self._written)
        self._written, self._waiting = self.end, []

    def _append_packed(
        self, base: int, stamp: Stamp, layout: Layout, arrays: Sequence[Array], sums: tuple[int, ...]
    ) -> Region:
        """Add an epoch whose large arrays are packed: the chunks as they come, and what says where they are at last."""
        self.flush()
        notes: list[Note] = []
        start = base + layout.size
        with self._clearing_up(), contextlib.closing(pack(layout, arrays)) as packed:
            self.disk.reserve(self._fd, self.end, start - self.end)
            nbytes = self._write_on(start, _noting(packed, notes))
            index = layout.encode_index(base, notes)
            region = Region(base, layout, (*sums, data_sum(index), layout.packed_size(nbytes)))
            self._write_on(start + nbytes, [bytes(region.end - start - nbytes)])
            self._write_head(stamp, region, arrays, index)
        return region

    def copy(self, stamp: Stamp, region: Region, reader: "Reader") -> Region:
        """Add a packed epoch of another file as it is there, damaged or not; returns its region here."""
        self.flush()
        base, layout = align(self.end, region.layout.align), region.layout
        packed = reader.packed(region)
        arrays = reader.read_plain(region, verify=False)
        index = layout.moved_index(packed.index, region.base, base)
        # A damaged index gets a good checksum, and hides nothing: the checksums of chunks and arrays are the old ones.
        moved = Region(base, layout, (*region.sums[:-2], data_sum(index), region.size))
        with self._clearing_up():
            self.disk.reserve(self._fd, self.end, moved.end - self.end)
            self._write_on(base + layout.size, (slab.data for slab in packed.slabs()))
            self._write_head(stamp, moved, arrays, index)
        return moved

    def _write_on(self, at: int, parts: Iterable[Buffer]) -> int:
        """Write parts one behind the other, in not too small pieces; returns how many bytes."""
        start, waiting, nbytes = at, list[Buffer](), 0
        for part in parts:
            waiting.append(part)
            nbytes += len(part)
            if nbytes >= _WORTH_WRITING:
                at, waiting, nbytes = self._put(at, waiting, nbytes), [], 0
        return self._put(at, waiting, nbytes) - start

    def _put(self, at: int, parts: Sequence[Buffer], nbytes: int) -> int:
        self.disk.reserve(self._fd, at, nbytes)
        self.disk.write_at(self._fd, at, parts)
        return at + nbytes

    def _write_head(self, stamp: Stamp, region: Region, arrays: Sequence[Array], index: bytes = b"") -> None:
        head = region.layout.encode_head(region.base, stamp, arrays, region.sums, index)
        self.disk.write_at(self._fd, self.end, [bytes(region.base - self.end), head])
        self._note(stamp.epoch, region)
        self._written = self.end

    @contextlib.contextmanager
    def _clearing_up(self) -> Iterator[None]:
        """Give the room back of an epoch for which there was too little: how much it needs is known too late."""
        try:
            yield
        except OSError as error:
            if is_full(error):
                with contextlib.suppress(OSError):
                    self.disk.truncate(self._fd, self.end)
            raise

    def seal(self, metadata: str = "") -> None:
        """Make it an HDF5 file: append the root group, fill in the superblock. Nothing is synced.

        `metadata`: of the run, as they are by now; a file of an earlier version can't have them.
        """
        root = encode_root(self.head, self.groups, metadata if self.head.version >= METADATA_VERSION else "")
        at = align(self.end, 8)
        superblock = hdf5.superblock(at, at + len(root))
        self._waiting += [bytes(at - self.end), root]
        self.end = at + len(root)
        if self._written == 0:  # all of the file waits, its head first
            self._waiting[0] = superblock + bytes(self._waiting[0])[len(superblock) :]
        else:
            self.flush()
            self.disk.write_at(self._fd, 0, [superblock])

    @property
    def is_synced(self) -> bool:
        """Whether all that was added survives a power cut."""
        return self._synced == self.end

    def push(self) -> None:
        """Write what waits, and have the disk begin to take it: a sync has less to wait for. It promises nothing."""
        start = self._written
        self.flush()
        self.disk.push(self._fd, start, self.end - start)

    def sync(self) -> None:
        """Write what waits, and wait until all survives a power cut, but for the file's name.

        Raises:
            OSError: `sync_failed`: what was written since the last sync is lost, and a later one wouldn't say so.
        """
        self.flush()
        try:
            self.disk.sync(self._fd)
        except OSError:
            self.sync_failed = True
            raise
        self._synced = self.end

    def close(self) -> None:
        """Give the descriptor back."""
        self.disk.close(self._fd)


def _noting(chunks: Iterable[tuple[Buffer, Note]], notes: list[Note]) -> Iterator[Buffer]:
    """The bytes of chunks; what the index will say of them is noted."""
    for data, note in chunks:
        notes.append(note)
        yield data
