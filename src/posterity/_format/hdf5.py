"""Just enough of the HDF5 file format to lay out groups and datasets, contiguous or in chunks, by ourselves.

libhdf5 can't append an epoch to a file without rewriting metadata in place, and holds one lock while it works. What a
file needs around the numbers is little: an object header for each group and dataset, and a superblock. They are
encoded here into bytes; nothing here does I/O. Readers are libhdf5 1.10 and later, h5py, h5dump.

The format is "HDF5 File Format Specification Version 3.0" (The HDF Group): superblock version 2 (II.A), object headers
version 2 (IV.A.1.b), links as messages (IV.A.2.g), contiguous layout version 3 and chunked layout version 4 (IV.A.2.i),
with a fixed array that isn't paged as the index of chunks (VII.C). Datatype messages are what libhdf5 itself makes
(H5Tencode).

Up the stream: `layout` for one epoch, `file_writer` for a whole file.
"""

import functools
import struct
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import h5py
import numpy as np

from .lookup3 import checksum

if TYPE_CHECKING:
    import numpy.typing as npt

UNDEFINED = 2**64 - 1
SUPERBLOCK_SIZE = 48
SIGNATURE = b"\x89HDF\r\n\x1a\n"

_DATASPACE, _LINK_INFO, _DATATYPE, _FILL, _LINK, _LAYOUT, _GROUP_INFO = 1, 2, 3, 5, 6, 8, 10
_FILTERS, _ATTRIBUTE = 11, 12
_PREFIX = struct.Struct("<4sBBI")
_MESSAGE = struct.Struct("<BHB")
_LINK_HEAD, _ADDRESS = struct.Struct("<BHBBBBH"), struct.Struct("<Q")
_ATTRIBUTE_HEAD = struct.Struct("<BBHHHB")
_INDEX_HEADER = struct.Struct("<4sBBBBQQ")
_INDEX_BLOCK = struct.Struct("<4sBBQ")
_FIXED_ARRAY = 3


def superblock(root: int, end: int) -> bytes:
    """The first bytes of a file: `root` is the address of its root group's header, `end` the file's size."""
    return with_checksum(SIGNATURE + struct.pack("<BBBB4Q", 2, 8, 8, 0, 0, UNDEFINED, end, root))


def root_address(data: bytes) -> int | None:
    """The address of the root group that a superblock names; None if these bytes aren't one of ours."""
    if len(data) < SUPERBLOCK_SIZE or data[:8] != SIGNATURE:
        return None
    (address,) = struct.unpack_from("<Q", data, 36)
    return int(address) if data == superblock(address, struct.unpack_from("<Q", data, 28)[0]) else None


def group(links: Iterable[tuple[str, int]], attributes: bytes = b"") -> bytes:
    """The object header of a group: its members, each with the address of its own header."""
    messages = [
        _message(_LINK_INFO, struct.pack("<BBQQ", 0, 0, UNDEFINED, UNDEFINED)),
        _message(_GROUP_INFO, b"\0\0"),
        *(_link(name, address) for name, address in links),
        attributes,
    ]
    body = b"".join(messages)
    return with_checksum(_PREFIX.pack(b"OHDR", 2, 2, len(body)) + body)


def read_group(data: bytes) -> bytes | None:
    """The object header of a group that `data` begins with; None if it isn't one of ours, or a bit of it is wrong."""
    if len(data) < _PREFIX.size or data[:6] != b"OHDR\2\2":
        return None
    end = _PREFIX.size + _PREFIX.unpack_from(data)[3]
    return data[: end + 4] if data[: end + 4] == with_checksum(data[:end]) else None


def text_attributes(header: bytes) -> dict[str, str]:
    """The attributes in a group's object header that `text_attribute` made."""
    found: dict[str, str] = {}
    at, end = _PREFIX.size, len(header) - 4
    while at + _MESSAGE.size <= end:
        kind, size, _ = _MESSAGE.unpack_from(header, at)
        message = header[at + _MESSAGE.size : at + _MESSAGE.size + size]
        at += _MESSAGE.size + size
        if kind == _ATTRIBUTE and size >= _ATTRIBUTE_HEAD.size:
            _, _, name_size, type_size, space_size, _ = _ATTRIBUTE_HEAD.unpack_from(message)
            name_at, type_at = _ATTRIBUTE_HEAD.size, _ATTRIBUTE_HEAD.size + name_size
            data = message[type_at + type_size + space_size :]
            if data and message[type_at : type_at + type_size] == _utf8_type(len(data)):
                name = message[name_at : type_at - 1].decode(errors="replace")
                found[name] = data.decode(errors="replace")
    return found


def with_checksum(header: bytes) -> bytes:
    """A header and its checksum, which are its last four bytes."""
    return header + struct.pack("<I", checksum(header))


def group_size(names: Iterable[str], attributes: int = 0) -> int:
    """The size of `group`'s result, known before the addresses are."""
    return _PREFIX.size + 22 + 6 + sum(len(_link(name, 0)) for name in names) + attributes + 4


def text_attribute(name: str, text: str) -> bytes:
    """An attribute that holds fixed-length UTF-8 text."""
    data = text.encode() or b"\0"
    return _attribute(name, _utf8_type(len(data)), data)


def number_attribute(name: str, number: int) -> bytes:
    """An attribute that holds an unsigned 64-bit number. It is the last 8 bytes of the result."""
    return _attribute(name, type_message(np.dtype("<u8")), struct.pack("<Q", number))


class Chunked(NamedTuple):
    """A dataset in chunks: the shape of each, how many there are, and the filters, each with its one parameter."""

    chunk: tuple[int, ...]
    nchunks: int
    filters: Sequence[tuple[int, int]]


class DatasetHeader:
    """The object header of a dataset, encoded once and filled in with address and checksum."""

    def __init__(
        self,
        dtype: np.dtype[np.generic],
        shape: tuple[int, ...],
        attributes: bytes,
        sum_name: str,
        chunked: Chunked | None = None,
    ) -> None:
        nbytes = dtype.itemsize
        for length in shape:
            nbytes *= length
        self.nbytes = nbytes
        self._length = b"" if chunked is not None else struct.pack("<Q", nbytes)
        constant = b"".join(
            [
                _message(_DATASPACE, _dataspace(shape)),
                _message(_DATATYPE, type_message(dtype), flags=1),
                _message(_FILL, struct.pack("<BB", 3, 0x09 if chunked is None else 0x0B)),
                attributes,
                b"" if chunked is None else _message(_FILTERS, _pipeline(chunked.filters)),
                _contiguous() if chunked is None else _in_chunks(chunked, dtype.itemsize),
            ]
        )
        self._sum_message = number_attribute(sum_name, 0)[:-8]
        varying = 8 + len(self._length) + len(self._sum_message) + 8
        self._header = _PREFIX.pack(b"OHDR", 2, 2, len(constant) + varying) + constant
        self.size = len(self._header) + varying + 4

    def fill(self, address: int, data_sum: int = 0) -> bytes:
        """The header for data that start at `address`, or the index of chunks, and have the checksum `data_sum`.

        The last 12 bytes are the data's checksum and the header's own.
        """
        where = struct.pack("<Q", address if self.nbytes else UNDEFINED) + self._length
        return with_checksum(self._header + where + self._sum_message + struct.pack("<Q", data_sum))


class ChunkTable(NamedTuple):
    """Where chunks are in the file, how many bytes each takes, and which of its filters were left out, as bits."""

    addresses: "npt.NDArray[np.uint64]"
    sizes: "npt.NDArray[np.uint64]"
    masks: "npt.NDArray[np.uint32]"


class FixedArray:
    """The index of a dataset's chunks: a header, and right behind it one block with an entry for each chunk."""

    def __init__(self, nchunks: int, chunk_nbytes: int) -> None:
        self._nchunks = nchunks
        self._width = min(8, 1 + (chunk_nbytes.bit_length() + 7) // 8)  # of a chunk's size, as H5D__farray has it
        self._entry = 8 + self._width + 4
        self.size = _INDEX_HEADER.size + 4 + _INDEX_BLOCK.size + nchunks * self._entry + 4

    def encode(self, address: int, table: ChunkTable) -> bytes:
        """The index, which lies at `address`."""
        behind = address + _INDEX_HEADER.size + 4
        header = _INDEX_HEADER.pack(b"FAHD", 0, 1, self._entry, _page_bits(self._nchunks), self._nchunks, behind)
        entries = np.zeros((self._nchunks, self._entry), np.uint8)
        entries[:, :8] = _bytes_of(table.addresses, "<u8")
        entries[:, 8:-4] = _bytes_of(table.sizes, "<u8")[:, : self._width]
        entries[:, -4:] = _bytes_of(table.masks, "<u4")
        block = _INDEX_BLOCK.pack(b"FADB", 0, 1, address) + entries.tobytes()
        return with_checksum(header) + with_checksum(block)

    def decode(self, data: bytes) -> ChunkTable:
        """What `encode` was given; the checksums aren't looked at."""
        at = _INDEX_HEADER.size + 4 + _INDEX_BLOCK.size
        entries = np.frombuffer(data, np.uint8, self._nchunks * self._entry, at).reshape(self._nchunks, self._entry)
        sizes = np.zeros((self._nchunks, 8), np.uint8)
        sizes[:, : self._width] = entries[:, 8:-4]
        addresses, masks = np.ascontiguousarray(entries[:, :8]), np.ascontiguousarray(entries[:, -4:])
        return ChunkTable(addresses.view("<u8")[:, 0], sizes.view("<u8")[:, 0], masks.view("<u4")[:, 0])


def _bytes_of(numbers: "npt.NDArray[np.integer]", dtype: str) -> "npt.NDArray[np.uint8]":
    return np.ascontiguousarray(numbers, dtype).view(np.uint8).reshape(len(numbers), -1)


def utf8_dtype(nbytes: int) -> np.dtype[np.generic]:
    """The dtype of fixed-length UTF-8 text, which NumPy doesn't tell from bytes."""
    dtype: np.dtype[np.generic] = h5py.string_dtype("utf-8", nbytes)
    return dtype


@functools.lru_cache(maxsize=512)
def _utf8_type(nbytes: int) -> bytes:
    return type_message(utf8_dtype(nbytes))


@functools.lru_cache(maxsize=512)
def _encoded_type(dtype: np.dtype[np.generic]) -> bytes:
    encoded: bytes = h5py.h5t.py_create(dtype, logical=True).encode()
    return encoded[2:]


def type_message(dtype: np.dtype[np.generic]) -> bytes:
    """The datatype message for a dtype, as libhdf5 encodes it; H5Tencode puts two bytes of its own in front."""
    if dtype.metadata:  # equal dtypes may differ in what h5py keeps there
        encoded: bytes = h5py.h5t.py_create(dtype, logical=True).encode()
        return encoded[2:]
    return _encoded_type(dtype)


def _message(kind: int, data: bytes, flags: int = 0) -> bytes:
    return _MESSAGE.pack(kind, len(data), flags) + data


def _dataspace(shape: tuple[int, ...]) -> bytes:
    if not shape:
        return struct.pack("<BBBB", 2, 0, 0, 0)
    return struct.pack(f"<BBBB{len(shape)}Q", 2, len(shape), 0, 1, *shape)


def _contiguous() -> bytes:
    """A layout message up to the address of the data."""
    return struct.pack("<BHBBB", _LAYOUT, 18, 0, 3, 1)


def _in_chunks(chunked: Chunked, itemsize: int) -> bytes:
    """A layout message up to the address of the index."""
    dims = (*chunked.chunk, itemsize)
    width = (max(dims).bit_length() + 7) // 8  # as narrow as can be: HDF5 2.0 refuses another one
    data = struct.pack("<BBBBB", 4, 2, 0, len(dims), width) + b"".join(dim.to_bytes(width, "little") for dim in dims)
    data += bytes([_FIXED_ARRAY, _page_bits(chunked.nchunks)])
    return struct.pack("<BHB", _LAYOUT, len(data) + 8, 0) + data


def _page_bits(nchunks: int) -> int:
    """So many that the index is never paged; HDF5's own number at least."""
    return max(10, (nchunks - 1).bit_length())


def _pipeline(filters: Sequence[tuple[int, int]]) -> bytes:
    """A filter pipeline, version 2. Those of numbers from 256 on could have a name."""
    parts = [
        struct.pack("<H", number) + (struct.pack("<H", 0) if number >= 256 else b"") + struct.pack("<HHI", 1, 1, value)
        for number, value in filters
    ]
    return bytes([2, len(filters)]) + b"".join(parts)


def _link(name: str, address: int) -> bytes:
    """The message of a hard link: two bytes for the name's length, and the name is UTF-8."""
    encoded = name.encode()
    n = len(encoded)
    return _LINK_HEAD.pack(_LINK, n + 13, 0, 1, 0x11, 1, n) + encoded + _ADDRESS.pack(address)


def _attribute(name: str, kind: bytes, data: bytes) -> bytes:
    encoded, space = name.encode() + b"\0", _dataspace(())
    head = _ATTRIBUTE_HEAD.pack(3, 0, len(encoded), len(kind), len(space), 1)
    return _message(_ATTRIBUTE, head + encoded + kind + space + data)
