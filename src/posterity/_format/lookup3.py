"""The checksum that HDF5 puts on its metadata: Bob Jenkins' lookup3, `hashlittle` with an initial value of 0.

libhdf5 has it, a pure function that needs no lock: we call that one where it can be found, which takes half a
microsecond. It isn't part of HDF5's public interface, so it is tried out first, and where it isn't there or gives
another answer, the same is worked out here. (burtleburtle.net/bob/c/lookup3.c)

Down the stream: `hdf5` and `layout` put it at the end of each header.
"""

import ctypes
import struct
from collections.abc import Callable
from itertools import repeat
from typing import TYPE_CHECKING, TypeAlias

import h5py
import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

Rows: TypeAlias = "npt.NDArray[np.uint8]"  # contiguous
_MASK = 0xFFFFFFFF


def worked_out(data: bytes) -> int:
    """The checksum of some bytes, by us."""
    a = b = c = (0xDEADBEEF + len(data)) & _MASK
    if not data:
        return c
    done = (len(data) - 1) // 12 * 12  # the last block, of 1 to 12 bytes, is mixed in another way
    for x, y, z in struct.iter_unpack("<III", data[:done]):
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


def _worked_out_of_each(rows: Rows, start: int, end: int) -> list[int]:
    return [worked_out(row[start:end].tobytes()) for row in rows]


def _find() -> tuple[Callable[[bytes], int], Callable[[Rows, int, int], list[int]]]:
    """libhdf5's function, if this h5py has it, and it gives what it should; otherwise ours. And the same for rows.

    Its arguments are made ready here: `argtypes` would do that anew at each call, which takes longer than the call.
    """
    try:
        theirs = ctypes.PyDLL(h5py.h5.__file__).H5_checksum_lookup3  # with the GIL: to let go of it takes longer
    except (AttributeError, OSError):
        return worked_out, _worked_out_of_each
    theirs.restype = ctypes.c_uint32
    pointer, size, initial = ctypes.c_void_p.from_param, ctypes.c_size_t.from_param, ctypes.c_uint32.from_param(0)

    def called(data: bytes) -> int:
        found: int = theirs(data, size(len(data)), initial)
        return found

    def called_for_each(rows: Rows, start: int, end: int) -> list[int]:
        n, step = rows.shape
        address = rows.ctypes.data + start
        addresses = map(pointer, range(address, address + n * step, step))
        return list(map(theirs, addresses, repeat(size(end - start)), repeat(initial)))

    tries = [bytes(range(n)) for n in (1, 11, 12, 13, 24, 25, 200)]
    if [called(data) for data in tries] != [worked_out(data) for data in tries]:
        return worked_out, _worked_out_of_each
    return called, called_for_each


checksum, checksums = _find()  # of some bytes; and of those from one column to another, for each row
