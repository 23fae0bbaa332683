"""The frame of an epoch's region: how the epoch describes itself to us.

It says all that must be known to read the epoch, with a checksum of that. So what is in a file can be found by walking
from frame to frame, with no journal and no HDF5.

Down the stream: `layout` puts it at the head of a region; `file_reader` walks.
"""

import struct
from collections.abc import Sequence
from typing import NamedTuple

from .checksum import data_sum

PAGE = 4096
FRAME_MAGIC = b"POSTepch"
_FRAME = struct.Struct("<8sIIIIQQQQQQ16s")
FRAME_HEAD = _FRAME.size
COUNTS_AT = 24  # where in a frame that begins which differs between equal epochs
_COUNTS = struct.Struct("<QQQQQ")
_HASH = struct.Struct("<Q")
_MOST_SUMS = 1_000_000


def align(offset: int, to: int) -> int:
    """The first multiple of `to` that is not before `offset`."""
    return -(-offset // to) * to


class Frame(NamedTuple):
    """How an epoch describes itself at the head of its region. Lengths in bytes, the others in samples."""

    size: int
    region_size: int
    epoch: int
    first: int
    nsamples: int
    cut: int
    generation: int
    run_id: bytes
    spec: bytes
    sums: tuple[int, ...]


class Stamp(NamedTuple):
    """What a region says of its epoch: whose it is and which of its samples are in it.

    `first`: position of its first sample in the run. `cut`: how many samples at its beginning were left out.
    """

    run_id: bytes
    generation: int
    epoch: int
    first: int
    nsamples: int
    cut: int


EMPTY_STAMP = Stamp(bytes(16), 0, 0, 0, 0, 0)


def frame_size(spec_size: int, nsums: int) -> int:
    """How long a frame is with a description of such a size and so many checksums."""
    return align(_FRAME.size + spec_size + 8 * nsums + _HASH.size, 8)


def begin_frame(head: bytearray, base: int, run_id: bytes, generation: int, spec: bytes, nsums: int) -> None:
    """Put a frame into the head of a region, but for what differs between equal epochs."""
    size = frame_size(len(spec), nsums)
    _FRAME.pack_into(head, 0, FRAME_MAGIC, size, len(spec), nsums, generation, 0, 0, 0, 0, 0, base, run_id)
    head[_FRAME.size : _FRAME.size + len(spec)] = spec


def complete_frame(head: bytearray, region_size: int, stamp: Stamp, spec: bytes, sums: Sequence[int]) -> None:
    """Put the rest of it there."""
    _COUNTS.pack_into(head, COUNTS_AT, region_size, stamp.epoch, stamp.first, stamp.nsamples, stamp.cut)
    struct.pack_into(f"<{len(sums)}Q", head, _FRAME.size + len(spec), *sums)
    end = frame_size(len(spec), len(sums)) - _HASH.size
    with memoryview(head) as view:
        _HASH.pack_into(head, end, data_sum(view[:end]))


def read_frame_size(head: bytes) -> int | None:
    """How long the frame is that begins with these `FRAME_HEAD` bytes, or None if no frame begins so."""
    if len(head) < _FRAME.size or head[:8] != FRAME_MAGIC:
        return None
    _, size, spec_size, nsums, *_ = _FRAME.unpack_from(head)
    if size != frame_size(spec_size, nsums) or nsums > _MOST_SUMS:
        return None
    return int(size)


def decode_frame(data: bytes, base: int) -> Frame | None:
    """The frame in `data`, which was read from offset `base`; None if a bit of it is wrong."""
    size = read_frame_size(data)
    if size is None or size > len(data) or _HASH.unpack_from(data, size - 8)[0] != data_sum(data[: size - 8]):
        return None
    (_, _, spec_size, nsums, generation, region_size, index, first, nsamples, cut, own_base, run_id) = (
        _FRAME.unpack_from(data)
    )
    if own_base != base or not cut < nsamples or region_size < size:
        return None
    spec = data[_FRAME.size : _FRAME.size + spec_size]
    sums = struct.unpack_from(f"<{nsums}Q", data, _FRAME.size + spec_size)
    return Frame(size, region_size, index, first, nsamples, cut, generation, run_id, spec, sums)
