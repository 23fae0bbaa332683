"""Where each part of an epoch lies in a file.

An epoch takes one region of a file: a frame, in which it describes itself to us (see `frame`); the HDF5 headers, in
which it describes itself to everybody; the small arrays; the large ones, each from a multiple of 4096 on. The region
holds addresses of the file, but nothing outside it points into it until the file is sealed. So regions are appended one
after the other.

In a packed layout the large arrays are cut into chunks and compressed. Their index has a place of its own, before the
small arrays; the chunks come last. How long the region is, and the checksum of the index, stand behind the arrays'
checksums, wherever these are kept.

`Layout` is all of that which equal epochs share. It is worked out once for each kind of epoch.

Up the stream: `schema` says what there is. Down the stream: `file_writer` writes and reads regions.
"""

import functools
import math
import struct
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from posterity._system.arrays import Array
from posterity.errors import Damaged

from . import hdf5
from .checksum import SUM_NAME
from .chunks import Grid, Index, Note, Table, chunk_shape
from .codec import LEVELS, Packing
from .dtypes import dtype_from_text
from .flatten import MAX_AXES, Item
from .frame import EMPTY_STAMP, PAGE, Stamp, align, begin_frame, complete_frame, frame_size
from .lookup3 import checksum
from .schema import PackedSpec, decode_items, decode_packed, encode_items, is_packed

FORMAT_VERSION = 1
PACKED_VERSION = 2
METADATA_VERSION = 3
MOST_PACKED = 1024  # bytes of arrays for one byte of a region: what a file can make its readers allocate is bounded
LARGE = 16384
WORTH_PACKING = LARGE
_TOO_LARGE = 1 << 60
_CHECK, _NUMBER = struct.Struct("<I"), struct.Struct("<Q")
_STAMPED = ("index", "first", "nsamples", "burned")
_MOST_TEMPLATES = 1 << 20  # bytes, of a layout


class Layout:
    """The places of an epoch's parts, relative to its region's base, and its HDF5 headers but for what differs."""

    def __init__(self, spec: bytes) -> None:
        self.spec = spec
        packed = decode_packed(spec) if is_packed(spec) else None
        self.items = decode_items(spec) if packed is None else packed.items
        self.leaves = [item for item in self.items if item.is_array]
        self.dtypes = [dtype_from_text(item.dtype) for item in self.leaves]
        for item, dtype in zip(self.leaves, self.dtypes, strict=True):
            _check_size(item, dtype)
        self.packing: Packing | None = None
        self.grids: dict[int, Grid] = {}
        if packed is not None:
            self._cut(packed)
        self._index = Index(self.grids)
        self._headers = [self._dataset_header(i) for i in range(len(self.leaves))]
        self.nsums = len(self.leaves) + (2 if self.grids else 0)
        self.frame_size = frame_size(len(spec), self.nsums)
        self._place_headers()
        self._place_data()
        self.by_path = {item.path: i for i, item in enumerate(self.leaves)}
        starts = [self._places[item.path] for item in self.leaves]
        self.spans = [(at, at + header.size) for at, header in zip(starts, self._headers, strict=True)]
        self._templates: dict[tuple[int, bytes, int], bytes] = {}

    def _cut(self, packed: PackedSpec) -> None:
        """Take in which arrays are packed, and how."""
        self.packing = Packing(packed.codec, packed.level, packed.shuffle)
        if packed.level not in LEVELS[packed.codec] or not any(packed.chunks):
            raise ValueError(f"nothing can be packed with {self.packing}")
        for i, (item, dtype, chunk) in enumerate(zip(self.leaves, self.dtypes, packed.chunks, strict=True)):
            if chunk:
                self.grids[i] = Grid(item.shape, dtype.itemsize, chunk, len(self._filters(i)))

    def _filters(self, i: int) -> list[tuple[int, int]]:
        assert self.packing is not None
        return self.packing.filters(self.dtypes[i].itemsize)

    def _dataset_header(self, i: int) -> hdf5.DatasetHeader:
        item, grid = self.leaves[i], self.grids.get(i)
        chunked = hdf5.Chunked(grid.chunk, grid.nchunks, self._filters(i)) if grid is not None else None
        dtype = _file_dtype(item, self.dtypes[i])
        return hdf5.DatasetHeader(dtype, item.shape, _item_attributes(item), SUM_NAME, chunked)

    def _place_headers(self) -> None:
        """First the datasets' headers, then the groups', the epoch's own last."""
        end = self.frame_size
        places: dict[str, int] = {}
        for item, header in zip(self.leaves, self._headers, strict=True):
            places[item.path] = end
            end += align(header.size, 8)
        self._groups = {"": Item("", "dict"), **{item.path: item for item in self.items if not item.is_array}}
        self._members: dict[str, list[str]] = {path: [] for path in self._groups}
        for item in self.items:
            self._members[item.path.rpartition("/")[0]].append(item.path)
        for path in reversed(self._groups):
            places[path] = end
            names = [member.rpartition("/")[2] for member in self._members[path]]
            end += align(hdf5.group_size(names, len(self._group_attributes(path, EMPTY_STAMP))), 8)
        self._places = places
        self.meta_size = end - self.frame_size
        self.group_at = places[""]
        names = [member.rpartition("/")[2] for member in self._members[""]]
        stamp_end = self.group_at + hdf5.group_size(names, len(self._group_attributes("", EMPTY_STAMP))) - 4
        lengths = [len(hdf5.number_attribute(name, 0)) for name in _STAMPED]
        self.stamp_at = [stamp_end - sum(lengths[i + 1 :]) - 8 for i in range(len(_STAMPED))]

    def _place_data(self) -> None:
        """The index of chunks first, then the small arrays; each array's checks of its size are done here, once."""
        self.index_at = self.frame_size + self.meta_size
        end = self.index_at + self._index.size
        self.offsets = [0] * len(self.leaves)
        self.nbytes = [header.nbytes for header in self._headers]
        is_large = [nbytes >= LARGE and not self.grids for nbytes in self.nbytes]
        self.align = PAGE if any(is_large) else 8
        for large in (False, True):
            for i, nbytes in enumerate(self.nbytes):
                if i in self.grids:
                    self.offsets[i] = self.index_at + self._index.offsets[i]
                elif is_large[i] == large:
                    self.offsets[i] = align(end, PAGE if large else 8)
                    end = self.offsets[i] + nbytes
        self.small_size = min((o for o, large in zip(self.offsets, is_large, strict=True) if large), default=end)
        self.large = [i for i, large in enumerate(is_large) if large]
        self.small = [i for i, large in enumerate(is_large) if not large and i not in self.grids]
        self.size = align(end, 8)  # without chunks; they come from here on

    def _group_attributes(self, path: str, stamp: Stamp) -> bytes:
        if path:
            return _item_attributes(self._groups[path])
        return _epoch_attributes(stamp.run_id, stamp.generation, PACKED_VERSION if self.grids else FORMAT_VERSION)

    def encode_head(
        self, base: int, stamp: Stamp, arrays: Sequence[Array], sums: Sequence[int], index: bytes = b""
    ) -> bytearray:
        """All of a region that comes before its large arrays, or its chunks: the frame, the headers, the small arrays.

        `index`: of the chunks, where there are some; of the packed `arrays` nothing is needed.
        """
        head = bytearray(self.template(base, stamp.run_id, stamp.generation))
        complete_frame(head, Region(base, self, tuple(sums)).size, stamp, self.spec, sums)
        for (at, end), array_sum in zip(self.spans, sums, strict=False):
            _NUMBER.pack_into(head, end - 12, array_sum)
            _CHECK.pack_into(head, end - 4, checksum(bytes(head[at : end - 4])))
        at, end = self.group_at, self.stamp_at[-1] + 8
        for number_at, number in zip(self.stamp_at, stamp[2:], strict=True):
            _NUMBER.pack_into(head, number_at, number)
        _CHECK.pack_into(head, end, checksum(bytes(head[at:end])))
        head[self.index_at : self.index_at + len(index)] = index
        for i in self.small:
            at = self.offsets[i]
            head[at : at + self.nbytes[i]] = arrays[i].tobytes()
        return head

    @property
    def index_size(self) -> int:
        """The size of the index of chunks."""
        return self._index.size

    def encode_index(self, base: int, chunks: Sequence[Note]) -> bytes:
        """The index of chunks that lie one behind the other."""
        return self._index.encode(base + self.index_at, self._index.tables(base + self.size, chunks))

    def decode_index(self, data: bytes) -> dict[int, Table]:
        """Of each packed array, where its chunks are."""
        return self._index.decode(data)

    def moved_index(self, data: bytes, base: int, new_base: int) -> bytes:
        """The index of an epoch that is moved, with all its chunks."""
        shift = np.uint64((new_base - base) % 2**64)
        tables = {i: t._replace(addresses=t.addresses + shift) for i, t in self._index.decode(data).items()}
        return self._index.encode(new_base + self.index_at, tables)

    def packed_size(self, nbytes: int) -> int:
        """The size of a region whose chunks take so many bytes."""
        most = sum(grid.nbytes for grid in self.grids.values()) // MOST_PACKED
        return align(self.size + max(nbytes, most), 8)

    def template(self, base: int, run_id: bytes, generation: int) -> bytes:
        """A head without what differs between equal epochs at the same place of their files. The latest are kept."""
        key = base, run_id, generation
        found = self._templates.get(key)
        if found is None:
            head = bytearray(self.small_size)
            begin_frame(head, base, run_id, generation, self.spec, self.nsums)
            for i, (item, header) in enumerate(zip(self.leaves, self._headers, strict=True)):
                at = self._places[item.path]
                head[at : at + header.size] = header.fill(base + self.offsets[i])
            for path in self._groups:
                encoded = self._encode_group(path, base, EMPTY_STAMP._replace(run_id=run_id, generation=generation))
                at = self._places[path]
                head[at : at + len(encoded)] = encoded
            found = self._templates[key] = bytes(head)
            if len(self._templates) * len(head) > _MOST_TEMPLATES:
                self._templates.pop(next(iter(self._templates)), None)
        return found

    def _encode_group(self, path: str, base: int, stamp: Stamp) -> bytes:
        links = [(member.rpartition("/")[2], base + self._places[member]) for member in self._members[path]]
        return hdf5.group(links, self._group_attributes(path, stamp))


class Region(NamedTuple):
    """Where an epoch's arrays are, as the journal or a frame has it.

    `sums`: of each array; in a packed layout the checksum of the index and the region's size follow.
    """

    base: int
    layout: Layout
    sums: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many bytes it takes."""
        return self.sums[-1] if self.layout.grids else self.layout.size

    @property
    def end(self) -> int:
        """Where it ends in the file."""
        return self.base + self.size


def encode_packed(layout: Layout, packing: Packing) -> bytes:
    """The bytes that stand for a layout in which the large arrays are packed; its own if there are none."""
    chunks = [
        chunk_shape(item.shape, dtype.itemsize) if nbytes >= WORTH_PACKING else ()
        for item, dtype, nbytes in zip(layout.leaves, layout.dtypes, layout.nbytes, strict=True)
    ]
    if not any(chunks):
        return encode_items(layout.items)
    return msgspec.msgpack.encode(PackedSpec(*packing, chunks, layout.items))


@functools.lru_cache(maxsize=1024)
def packed_layout(layout: Layout, packing: Packing) -> Layout:
    """The layout in which an epoch is packed that has this one."""
    return layout_of(encode_packed(layout, packing))


@functools.lru_cache(maxsize=4096)
def layout_of(spec: bytes) -> Layout:
    """The layout for encoded items; worked out once.

    Raises:
        Damaged: the bytes don't describe an epoch.
    """
    try:
        return Layout(spec)
    except (ValueError, TypeError, OverflowError, struct.error) as error:
        raise Damaged(f"an epoch's description can't be used: {error}") from error


def _check_size(item: Item, dtype: np.dtype[np.generic]) -> None:
    """Refuse an array that no file can hold, or NumPy: also one without elements has lengths."""
    nbytes = math.prod(length or 1 for length in item.shape) * dtype.itemsize
    if not 0 < nbytes < _TOO_LARGE or len(item.shape) > MAX_AXES:
        raise ValueError(f"{item.path[:80]!r} has shape {item.shape[:MAX_AXES]} and dtype {dtype}")


def _file_dtype(item: Item, dtype: np.dtype[np.generic]) -> np.dtype[np.generic]:
    """The dtype that HDF5 is told of: text is UTF-8 there."""
    is_text = item.kind in ("str", "empty", "bigint") or item.kind.endswith((":str", ":text"))
    return hdf5.utf8_dtype(dtype.itemsize) if is_text else dtype


@functools.lru_cache(maxsize=16)
def _epoch_attributes(run_id: bytes, generation: int, version: int) -> bytes:
    """What the group of an epoch says of it."""
    return b"".join(
        [
            hdf5.text_attribute("posterity_run", run_id.hex()),
            hdf5.number_attribute("posterity_format", version),
            hdf5.number_attribute("generation", generation),
            *(hdf5.number_attribute(name, 0) for name in _STAMPED),  # they are filled in, the last of them
        ]
    )


def _item_attributes(item: Item) -> bytes:
    """What an HDF5 reader is told of an item: nothing, for a plain array or a dict."""
    plain = item.kind in ("array", "dict")
    kind = b"" if plain else hdf5.text_attribute("kind", item.kind)
    return kind + (hdf5.text_attribute("dtype", item.was) if item.was else b"")
