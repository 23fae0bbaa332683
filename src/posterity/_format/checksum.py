"""Our checksum: of bytes, and of arrays.

Down the stream: everything that is stored has one.
"""

import numpy as np
import xxhash

from posterity._system.arrays import Array

SUM_NAME = "xxh3_64"


def data_sum(data: bytes | bytearray | memoryview | Array) -> int:
    """Our checksum of some bytes, or of a contiguous array's: XXH3, 64 bits (github.com/Cyan4973/xxHash)."""
    return xxhash.xxh3_64_intdigest(data)  # type: ignore[arg-type]  # NumPy tells it from Python 3.12 on


def as_bytes(array: Array) -> memoryview:
    """The memory of a contiguous array as bytes, whatever its dtype; nothing is copied."""
    return array.reshape(-1).view(np.uint8).data
