"""What it costs to take an epoch over, estimated in bytes to copy: the one place where hand-overs learn it.

Twice it must be known: before the epoch is checked, by who holds an event loop up meanwhile, and must not take it apart
to learn it; and after, by who could hand it over in one go.

Up the stream: epochs that samplers hand over. Down the stream: `prepare` copies them, the faces choose where.
"""

from collections.abc import Mapping, Sequence
from types import NoneType

import numpy as np

from posterity._system.arrays import Array

SMALL_BYTES = 1 << 16  # they are copied in less time than it takes to ask for room
_QUICK_BYTES = 1 << 22  # about a millisecond's copy
_OBJECT_BYTES = 1 << 14  # what a Python object costs when it is taken apart, as bytes to copy


def is_quick(epoch: Mapping[str, object], *, copy: bool) -> bool:
    """Whether to check and own an epoch, given as a dict, takes no more than about a millisecond."""
    left = _QUICK_BYTES
    found: list[object] = [epoch]
    while found and left > 0:
        value = found.pop()
        left -= _OBJECT_BYTES
        if isinstance(value, np.ndarray):
            left -= _copied_bytes(value, copy=copy)
        elif isinstance(value, (dict, list, tuple)):
            if len(value) * _OBJECT_BYTES > left:
                return False
            found += value.values() if isinstance(value, dict) else value
        elif isinstance(value, (str, bytes)):
            left -= len(value)
        elif not isinstance(value, (bool, int, float, complex, np.generic, NoneType)):
            return False  # an array of a device, which may have to be waited for
    return left > 0


def _copied_bytes(array: Array, *, copy: bool) -> int:
    """What an array costs: text is encoded, and what isn't contiguous is slow to read."""
    if array.dtype.kind == "U":
        return array.size * _OBJECT_BYTES // 8
    if not array.flags.c_contiguous:
        return 4 * array.nbytes
    return array.nbytes if copy else 0


def is_quicker_than_asking(nbytes: int, leaves: Sequence[Array], *, copy: bool) -> bool:
    """Whether to own an epoch that was checked, all of it in memory, is quicker than to ask for room first."""
    return nbytes <= SMALL_BYTES or not any(must_copy(leaf, copy=copy) for leaf in leaves)


def must_copy(leaf: Array, *, copy: bool) -> bool:
    """What can't change needs no copy: a view of a device's array is read-only to the end of its memory."""
    if not leaf.flags.c_contiguous:
        return True
    return copy and not _is_immutable(leaf)


def _is_immutable(leaf: Array) -> bool:
    """Whether nobody can change the memory: it is bytes, or belongs to an array of a device."""
    base: object = leaf
    while isinstance(base, np.ndarray):
        if base.flags.writeable:
            return False
        base = base.base
    return isinstance(base, bytes) or (base is not None and hasattr(base, "is_deleted"))
