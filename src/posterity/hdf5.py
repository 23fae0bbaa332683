"""Just enough of the HDF5 file format to lay out groups and contiguous datasets by ourselves.

libhdf5 can't append an epoch to a file without rewriting metadata in place, and holds one lock while it works. What a
file needs around the numbers is little: an object header for each group and dataset, and a superblock. They are
encoded here into bytes; nothing here does I/O. Readers are libhdf5 1.10 and later, h5py, h5dump.

The format is "HDF5 File Format Specification Version 3.0" (The HDF Group): superblock version 2 (II.A), object headers
version 2 (IV.A.1.b), links as messages (IV.A.2.g), contiguous layout version 3 (IV.A.2.i). Datatype messages are what
libhdf5 itself makes (H5Tencode). Checksums are Bob Jenkins' lookup3, `hashlittle` (burtleburtle.net/bob/c/lookup3.c).

Up the stream: `layout` for one epoch, `epochfile` for a whole file.
"""

import functools
import struct
from collections.abc import Iterable

import h5py
import numpy as np

UNDEFINED = 2**64 - 1
SUPERBLOCK_SIZE = 48
SIGNATURE = b"\x89HDF\r\n\x1a\n"

_DATASPACE, _LINK_INFO, _DATATYPE, _FILL, _LINK, _LAYOUT, _GROUP_INFO, _ATTRIBUTE = 1, 2, 3, 5, 6, 8, 10, 12
_PREFIX = struct.Struct("<4sBBI")
_MASK = 0xFFFFFFFF
_State = tuple[int, int, int]


def superblock(root: int, end: int) -> bytes:
    """The first bytes of a file: `root` is the address of its root group's header, `end` the file's size."""
    body = SIGNATURE + struct.pack("<BBBB4Q", 2, 8, 8, 0, 0, UNDEFINED, end, root)
    return body + struct.pack("<I", checksum(body))


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
        *(_message(_LINK, _link(name, address)) for name, address in links),
        attributes,
    ]
    body = b"".join(messages)
    header = _PREFIX.pack(b"OHDR", 2, 2, len(body)) + body
    return header + struct.pack("<I", checksum(header))


def group_size(names: Iterable[str], attributes: int = 0) -> int:
    """The size of `group`'s result, known before the addresses are."""
    return _PREFIX.size + 22 + 6 + sum(4 + len(_link(name, 0)) for name in names) + attributes + 4


def text_attribute(name: str, text: str) -> bytes:
    """An attribute that holds fixed-length UTF-8 text."""
    data = text.encode() or b"\0"
    kind = type_message(utf8_dtype(len(data)))
    return _attribute(name, kind, data)


def number_attribute(name: str, number: int) -> bytes:
    """An attribute that holds an unsigned 64-bit number. It is the last 8 bytes of the result."""
    return _attribute(name, type_message(np.dtype("<u8")), struct.pack("<Q", number))


class DatasetHeader:
    """The object header of a contiguous dataset, encoded once and filled in with address and checksum.

    The constant part comes first, and the checksum of the header is kept for it: filling in costs a few microseconds.
    """

    def __init__(self, dtype: np.dtype[np.generic], shape: tuple[int, ...], attributes: bytes, sum_name: str) -> None:
        nbytes = dtype.itemsize
        for length in shape:
            nbytes *= length
        self.nbytes = nbytes
        constant = b"".join(
            [
                _message(_DATASPACE, _dataspace(shape)),
                _message(_DATATYPE, type_message(dtype), flags=1),
                _message(_FILL, struct.pack("<BB", 3, 0x09)),
                attributes,
                struct.pack("<BHBBB", _LAYOUT, 18, 0, 3, 1),
            ]
        )
        self._sum_message = number_attribute(sum_name, 0)[:-8]
        varying = 16 + len(self._sum_message) + 8
        header = _PREFIX.pack(b"OHDR", 2, 2, len(constant) + varying) + constant
        self.size = len(header) + varying + 4
        done = len(header) // 12 * 12
        self._header, self._rest = header, header[done:]
        self._state = _mix_blocks(_start(len(header) + varying), header[:done])

    def fill(self, address: int, data_sum: int) -> bytes:
        """The header for data that start at `address` and have the checksum `data_sum`."""
        where = struct.pack("<QQ", address if self.nbytes else UNDEFINED, self.nbytes)
        varying = where + self._sum_message + struct.pack("<Q", data_sum)
        return self._header + varying + struct.pack("<I", _finish(self._state, self._rest + varying))


def utf8_dtype(nbytes: int) -> np.dtype[np.generic]:
    """The dtype of fixed-length UTF-8 text, which NumPy doesn't tell from bytes."""
    dtype: np.dtype[np.generic] = h5py.string_dtype("utf-8", nbytes)
    return dtype


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


def checksum(data: bytes) -> int:
    """The checksum that HDF5 puts on its metadata: lookup3's `hashlittle` with an initial value of 0."""
    done = max(0, (len(data) - 1) // 12 * 12)
    return _finish(_mix_blocks(_start(len(data)), data[:done]), data[done:])


def _start(length: int) -> _State:
    value = (0xDEADBEEF + length) & _MASK
    return value, value, value


def _mix_blocks(state: _State, data: bytes) -> _State:
    """Take in whole blocks of 12 bytes."""
    a, b, c = state
    for x, y, z in struct.iter_unpack("<III", data):
        a, b, c = (a + x) & _MASK, (b + y) & _MASK, (c + z) & _MASK
        a = (a - c) & _MASK ^ (c << 4 & _MASK | c >> 28)
        c = (c + b) & _MASK
        b = (b - a) & _MASK ^ (a << 6 & _MASK | a >> 26)
        a = (a + c) & _MASK
        c = (c - b) & _MASK ^ (b << 8 & _MASK | b >> 24)
        b = (b + a) & _MASK
        a = (a - c) & _MASK ^ (c << 16 & _MASK | c >> 16)
        c = (c + b) & _MASK
        b = (b - a) & _MASK ^ (a << 19 & _MASK | a >> 13)
        a = (a + c) & _MASK
        c = (c - b) & _MASK ^ (b << 4 & _MASK | b >> 28)
        b = (b + a) & _MASK
    return a, b, c


def _finish(state: _State, data: bytes) -> int:
    """Take in what is left, and give the checksum; the last block, of 1 to 12 bytes, is mixed in another way."""
    done = max(0, (len(data) - 1) // 12 * 12)
    a, b, c = _mix_blocks(state, data[:done])
    if not data:
        return c
    block: tuple[int, int, int] = struct.unpack("<III", data[done:].ljust(12, b"\0"))
    x, y, z = block
    a, b, c = (a + x) & _MASK, (b + y) & _MASK, (c + z) & _MASK
    c = ((c ^ b) - (b << 14 & _MASK | b >> 18)) & _MASK
    a = ((a ^ c) - (c << 11 & _MASK | c >> 21)) & _MASK
    b = ((b ^ a) - (a << 25 & _MASK | a >> 7)) & _MASK
    c = ((c ^ b) - (b << 16 & _MASK | b >> 16)) & _MASK
    a = ((a ^ c) - (c << 4 & _MASK | c >> 28)) & _MASK
    b = ((b ^ a) - (a << 14 & _MASK | a >> 18)) & _MASK
    return ((c ^ b) - (b << 24 & _MASK | b >> 8)) & _MASK


def _message(kind: int, data: bytes, flags: int = 0) -> bytes:
    return struct.pack("<BHB", kind, len(data), flags) + data


def _dataspace(shape: tuple[int, ...]) -> bytes:
    if not shape:
        return struct.pack("<BBBB", 2, 0, 0, 0)
    return struct.pack(f"<BBBB{len(shape)}Q", 2, len(shape), 0, 1, *shape)


def _link(name: str, address: int) -> bytes:
    """A hard link: two bytes for the name's length, and the name is UTF-8."""
    encoded = name.encode()
    return struct.pack("<BBBH", 1, 0x11, 1, len(encoded)) + encoded + struct.pack("<Q", address)


def _attribute(name: str, kind: bytes, data: bytes) -> bytes:
    encoded, space = name.encode() + b"\0", _dataspace(())
    head = struct.pack("<BBHHHB", 3, 0, len(encoded), len(kind), len(space), 1)
    return _message(_ATTRIBUTE, head + encoded + kind + space + data)
