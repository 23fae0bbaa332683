"""Arrays that live on a device: taken over without waiting for it, and fetched without keeping others from working.

A fetch holds Python's lock as long as the transfer takes: an array of 256 MB stops the sampler for a tenth of a second.
So a large array is copied on its device, as it must be anyway to be safe from donation, and in the same step cut into
slabs, which are fetched one by one. The cut is queued at the hand-over, right behind the computation of the array: one
that is queued later has to wait for whatever the sampler started since. Only the first array of its kind is cut later,
when it is fetched: that must be compiled, which takes too long for a hand-over.

JAX's arrays are meant, and what looks like them. JAX isn't imported here: who hands such an array over has done that.

Up the stream: `prepare` takes arrays over. Down the stream: `device_fetcher` has them fetched, in a thread of its own.
"""

import functools
import math
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from posterity._format.flatten import DeviceArray, Leaf
from posterity._system.arrays import Array
from posterity._system.buffer_pool import Buffers

SLAB_BYTES = 1 << 23
_compiled: set[object] = set()  # the kinds of arrays that JAX can cut at once; like its cache, for the whole process


class Slabs:
    """An array on one device, cut into slabs."""

    def __init__(self, slabs: Sequence[DeviceArray], shape: tuple[int, ...], index: tuple[slice, ...]) -> None:
        self.index = index  # where it belongs in the array of all devices
        self._shape = shape
        self._slabs: list[DeviceArray | None] = list(slabs)
        self._memory: Array | None = None

    def fetch(self, buffers: Buffers, dtype: np.dtype[np.generic]) -> Array:
        """Its numbers. Each slab is let go once it has come; who was interrupted goes on with the next one."""
        nbytes = dtype.itemsize * math.prod(self._shape)
        if self._memory is None:
            self._memory = buffers.take(nbytes)[:nbytes].view(dtype)
        for i, slab in enumerate(self._slabs):
            if slab is not None:
                start = i * _slab_length(dtype)
                self._memory[start : start + math.prod(slab.shape)] = _numbers(slab)
                self._slabs[i] = None
        return self._memory.reshape(self._shape)


class OnDevice:
    """An array that a device still has, or still computes. Nobody else changes or deletes it."""

    def __init__(self, leaf: DeviceArray, parts: Sequence[Slabs], buffers: Buffers) -> None:
        self.nbytes = leaf.nbytes
        self._shape, self._dtype = tuple(leaf.shape), leaf.dtype
        self._leaf = None if parts else leaf
        self._parts = parts
        self._buffers = buffers
        self._lock = threading.Lock()  # a reader may want it while it is being fetched
        self._array: Array | None = None

    def fetch(self) -> Array:
        """Its numbers, fetched once. Waits until they are computed; raises what kept them from being so."""
        with self._lock:
            if self._array is None:
                self._array = self._fetched()
                self._leaf, self._parts = None, ()
            return self._array

    def _fetched(self) -> Array:
        if self._leaf is not None:
            if not _is_to_be_cut(self._leaf):
                return np.ascontiguousarray(_numbers(self._leaf)).reshape(self._shape)
            self._parts, self._leaf = _cut(self._leaf), None
        if len(self._parts) == 1:
            return self._parts[0].fetch(self._buffers, self._dtype)
        whole = self._buffers.take(self.nbytes)[: self.nbytes].view(self._dtype).reshape(self._shape)
        for part in self._parts:
            whole[part.index] = part.fetch(self._buffers, self._dtype)
        return whole


def lies_on_device(leaf: Leaf) -> bool:
    """Whether its numbers must be waited for, or fetched. An array that doesn't tell is looked at without asking."""
    is_ready = getattr(leaf, "is_ready", None)
    return is_ready is not None and not (is_ready() and is_on_cpu(leaf))


def is_on_cpu(leaf: Leaf) -> bool:
    """Whether its numbers can be seen without a transfer, once they are computed."""
    devices = getattr(leaf, "devices", None)
    return devices is not None and all(device.platform == "cpu" for device in devices())


def take_over(leaf: DeviceArray, buffers: Buffers, *, copy: bool) -> Array | OnDevice:
    """An array as it will be kept: one that can be seen at once as a view, any other on its device.

    `copy`: its owner may donate or delete it afterwards; so it is copied on its device, which waits for nothing. What
    is cut is copied in any case. `buffers`: memory to fetch it into later.
    """
    if not lies_on_device(leaf):
        return np.asarray(leaf).reshape(leaf.shape)
    if _is_to_be_cut(leaf) and _kind(leaf) in _compiled:
        return OnDevice(leaf, _cut(leaf), buffers)
    return OnDevice(_copied(leaf) if copy else leaf, [], buffers)


def _is_to_be_cut(leaf: Any) -> bool:
    """Whether it is a large array of JAX's, and a transfer away. Any other is fetched as a whole."""
    if leaf.nbytes <= SLAB_BYTES or is_on_cpu(leaf):
        return False
    jax: Any = sys.modules.get("jax")
    return jax is not None and isinstance(leaf, jax.Array) and leaf.is_fully_addressable


def _kind(leaf: Any) -> object:
    """What arrays have in common that are cut by the same compiled code."""
    return leaf.shape, leaf.dtype, leaf.sharding, SLAB_BYTES


def _cut(leaf: Any) -> list[Slabs]:
    """A copy of an array on its devices, in slabs."""
    jit: Any = sys.modules["jax"].jit
    length = _slab_length(leaf.dtype)
    parts = []
    for shard in leaf.addressable_shards:
        if shard.replica_id == 0:
            there = shard.data
            slabs = _cutter(jit)(there, length) if there.size > length else [there.reshape(-1).copy()]
            parts.append(Slabs(slabs, there.shape, shard.index))
    _compiled.add(_kind(leaf))
    return parts


@functools.cache
def _cutter(jit: Any) -> Any:
    """The function that cuts, compiled once for each shape: one call, whatever the number of slabs."""

    def cut(array: Any, length: int) -> tuple[Any, ...]:
        flat = array.reshape(-1)
        return tuple(flat[start : start + length] for start in range(0, flat.size, length))

    return jit(cut, static_argnums=1)


def _slab_length(dtype: np.dtype[np.generic]) -> int:
    """How many numbers a slab has."""
    return max(1, SLAB_BYTES // dtype.itemsize)


def _copied(leaf: DeviceArray) -> DeviceArray:
    device_copy: Callable[[], DeviceArray] | None = getattr(leaf, "copy", None)
    return leaf if device_copy is None else device_copy()


def _numbers(leaf: DeviceArray) -> Array:
    """Waiting for the computation is done apart: it leaves Python's lock to others, and a transfer doesn't."""
    wait: Callable[[], object] | None = getattr(leaf, "block_until_ready", None)
    if wait is not None:
        wait()
    return np.asarray(leaf)
