"""Small epochs of one layout that follow each other, encoded together.

They differ in a few numbers and in their arrays. For an epoch of a kilobyte it takes longer to ask for each of these to
be filled in than to do it; so here each is filled in for all epochs at once. The bytes are those that
`Layout.encode_head` makes one by one.

Up the stream: `layout`. Down the stream: `file_writer` writes them in one piece.
"""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from posterity._system.arrays import Array

from .checksum import data_sum
from .frame import COUNTS_AT, FRAME_HEAD, Stamp
from .layout import Layout
from .lookup3 import checksums

if TYPE_CHECKING:
    import numpy.typing as npt

Regions: TypeAlias = "npt.NDArray[np.uint8]"  # (nepochs, bytes of each)
Numbers: TypeAlias = "npt.NDArray[np.uint64]"
_MOST_BYTES = 1 << 20
_LARGEST = 1 << 16  # bytes, of an epoch; with a larger one the calls are a small part of the work
WORTH_IT = 4  # so many epochs are encoded sooner together than one by one


def most_together(layout: Layout) -> int:
    """How many epochs may be encoded together; 0 if those of this layout are better encoded one by one."""
    is_small = layout.size <= _LARGEST and not layout.large and not layout.grids
    return _MOST_BYTES // layout.size if is_small else 0


def encode_alike(
    layout: Layout, base: int, first: Stamp, epochs: Sequence[Sequence[Array]]
) -> tuple[bytearray, Numbers]:
    """The regions of whole epochs, one behind the other from `base` on. `first`: the stamp of the first of them.

    Returns:
        All their bytes, and the checksums of their arrays, `(nepochs, narrays)`.
    """
    n = len(epochs)
    memory = bytearray(_templates(layout, base, n, first.run_id, first.generation))
    regions = np.frombuffer(memory, np.uint8).reshape(n, layout.size)
    columns = list(zip(*epochs, strict=True))
    sums = np.array([[data_sum(array) for array in column] for column in columns], "<u8").reshape(-1, n)
    counts = _counts(layout, first, n)
    _fill_frames(layout, regions, counts, sums)
    _fill_headers(layout, regions, counts, sums)
    for at, nbytes, column in zip(layout.offsets, layout.nbytes, columns, strict=True):
        regions[:, at : at + nbytes] = np.frombuffer(b"".join(column), np.uint8).reshape(n, nbytes)
    return memory, sums.T


@functools.lru_cache(maxsize=4)
def _templates(layout: Layout, base: int, n: int, run_id: bytes, generation: int) -> bytes:
    """Regions without what differs between equal epochs at the same place of their files."""
    bases = range(base, base + n * layout.size, layout.size)
    return b"".join(layout.template(at, run_id, generation).ljust(layout.size, b"\0") for at in bases)


def _counts(layout: Layout, first: Stamp, n: int) -> Numbers:
    """What the frames say of their epochs in numbers, `(n, 5)`."""
    counts = np.empty((n, 5), "<u8")
    counts[:] = layout.size, first.epoch, first.first, first.nsamples, first.cut
    before = np.arange(n, dtype="<u8")
    counts[:, 1] += before
    counts[:, 2] += before * np.uint64(first.nsamples)
    return counts


def _fill_frames(layout: Layout, regions: Regions, counts: Numbers, sums: Numbers) -> None:
    _numbers(regions, COUNTS_AT, 5)[:] = counts
    _numbers(regions, FRAME_HEAD + len(layout.spec), len(sums))[:] = sums.T
    end, all_bytes = layout.frame_size - 8, regions.reshape(-1).data
    _numbers(regions, end)[:, 0] = [data_sum(all_bytes[at : at + end]) for at in range(0, regions.size, layout.size)]


def _fill_headers(layout: Layout, regions: Regions, counts: Numbers, sums: Numbers) -> None:
    for (at, end), column in zip(layout.spans, sums, strict=True):
        _numbers(regions, end - 12)[:, 0] = column
        _add_checksums(regions, at, end - 4)
    for at, column in zip(layout.stamp_at, counts.T[1:], strict=True):
        _numbers(regions, at)[:, 0] = column
    _add_checksums(regions, layout.group_at, layout.stamp_at[-1] + 8)


def _numbers(regions: Regions, at: int, n: int = 1) -> Numbers:
    """A view of the numbers of 8 bytes that lie one behind the other in each of the regions."""
    return regions[:, at : at + 8 * n].view("<u8")


def _add_checksums(regions: Regions, at: int, end: int) -> None:
    """Put the checksum of a header behind it, in each of the regions."""
    regions[:, end : end + 4].view("<u4")[:, 0] = checksums(regions, at, end)
