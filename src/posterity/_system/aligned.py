"""Memory that the system copies into quickly: it begins with a page, as what is in a file's pages does.

What `malloc` gives begins 16 bytes behind one. To copy from a page to such an address takes an AMD processor with
"fast short rep mov" several times as long: 64 MB of a file took 40 ms in place of 6, measured on one of them; 64 bytes
behind a page it was 6 again. See https://lunnova.dev/articles/ryzen-slow-short-rep-mov.

Down the stream: `file_reader`, `compressed` and `gather` have files read into it.
"""

import math
from typing import Any, TypeAlias

import numpy as np

from .arrays import Array

Bytes: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]

_PAGE = 4096
_WORTH_ALIGNING = 1 << 15  # bytes


def empty(shape: tuple[int, ...], dtype: "np.dtype[np.generic]") -> Array:
    """As `numpy.empty`, from the beginning of a page on, unless it is small."""
    return empty_bytes(math.prod(shape) * dtype.itemsize).view(dtype).reshape(shape)


def empty_bytes(nbytes: int) -> Bytes:
    """So many bytes of such memory."""
    if nbytes < _WORTH_ALIGNING:
        return np.empty(nbytes, np.uint8)
    memory = np.empty(nbytes + _PAGE, np.uint8)
    start = -memory.__array_interface__["data"][0] % _PAGE
    return memory[start : start + nbytes]
