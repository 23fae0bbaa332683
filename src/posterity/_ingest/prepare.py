"""Epochs checked, and then owned: what a sampler handed over becomes the writer's. `Prepared.own` makes the copy.

Up the stream: `epoch`, and dicts. Down the stream: `hand_over` owns what was checked, `ledger` enters it.
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np

from posterity._format.flatten import Leaf, flatten
from posterity._format.samples import is_sample
from posterity._model.metadata import Metadata
from posterity._system.arrays import Array
from posterity._system.buffer_pool import Buffers
from posterity.epoch import EpochDict, ToBackend
from posterity.errors import EpochMismatch, NotStorable

from .cost import SMALL_BYTES, is_quicker_than_asking, must_copy
from .device import lies_on_device, take_over
from .jexplore import described, unfetched
from .owned import Held
from .template import Kind, Kinds


class Prepared(NamedTuple):
    """An epoch that was checked and not yet copied. Its arrays are the caller's."""

    kind: Kind
    leaves: Sequence[Leaf]

    @property
    def device_nbytes(self) -> int:
        """The bytes that will stay on a device for now."""
        return 0 if self.kind.is_in_memory else sum(leaf.nbytes for leaf in self.leaves if lies_on_device(leaf))

    def is_quick(self, *, copy: bool) -> bool:
        """Whether to take it over takes no longer than to ask for room first: it is small, or needs no copy."""
        if not self.kind.is_in_memory:
            return False
        return is_quicker_than_asking(self.kind.nbytes, cast("Sequence[Array]", self.leaves), copy=copy)

    def described(self) -> Metadata | None:
        """What the epoch says of the meaning of its numbers; None if it says nothing."""
        paths = [item.path for item in self.kind.items if item.is_array]
        return described(dict(zip(paths, self.leaves, strict=True)), self.kind.nchain)

    def own(self, buffers: Buffers, *, copy: bool) -> Held:
        """Take the epoch over: NumPy arrays are copied, arrays of a device in a way that lets them be donated.

        `copy=False`: the arrays are given away. They are kept by reference where they lie as they will on disk.
        """
        kind = self.kind
        if copy and kind.is_in_memory and kind.nbytes <= SMALL_BYTES:
            return Held(kind, [leaf.copy() for leaf in cast("Sequence[Array]", self.leaves)])
        layout = kind.layout
        leaves = [leaf if isinstance(leaf, np.ndarray) else take_over(leaf, buffers, copy=copy) for leaf in self.leaves]
        to_copy = [i for i, leaf in enumerate(leaves) if isinstance(leaf, np.ndarray) and must_copy(leaf, copy=copy)]
        if not to_copy:
            return Held(kind, leaves)
        offsets, end = [], 0
        for i in to_copy:
            offsets.append(end)
            end += -(-layout.nbytes[i] // 64) * 64
        memory = buffers.take(end)
        for i, offset in zip(to_copy, offsets, strict=True):
            leaf = cast("Array", leaves[i])
            mine = memory[offset : offset + layout.nbytes[i]].view(layout.dtypes[i]).reshape(leaf.shape)
            np.copyto(mine, leaf, casting="no")
            leaves[i] = mine
        return Held(kind, leaves)


def prepare(epoch: object, *, save_stats: bool, kinds: Kinds | None = None) -> Prepared:
    """Check an epoch, given as an object with `to_backend` or as a dict. `kinds`: those that needn't be checked again.

    Raises:
        NotStorable: an item can't be stored; the message gives its path.
        EpochMismatch: it isn't an epoch: there is no "p", or its arrays disagree.
    """
    if isinstance(epoch, dict):
        data: EpochDict | None = epoch
    elif isinstance(epoch, ToBackend) and not isinstance(epoch, type):
        data = unfetched(epoch, stats=save_stats)
        if data is None:
            _, _, data = epoch.to_backend(0, save_stats)
    else:
        raise NotStorable(f"an epoch is a dict, or has to_backend(burn, stats); got {_kind(epoch)}")
    if data is None:
        raise EpochMismatch("the epoch's to_backend(0, stats) gave no samples; an epoch needs at least one")
    if not save_stats and "stats" in data:
        data = {name: value for name, value in data.items() if name != "stats"}
    found = kinds.recognise(data) if kinds is not None else None
    if found is None:
        kind, leaves = found = _check(data)
        if kinds is not None:
            kinds.note(kind, data, leaves)
    return Prepared(*found)


def _kind(epoch: object) -> str:
    return f"the class {epoch.__qualname__}" if isinstance(epoch, type) else f"a {type(epoch).__qualname__}"


def _check(data: EpochDict) -> tuple[Kind, list[Leaf]]:
    samples = data.get("samples")
    if not isinstance(samples, dict) or "p" not in samples:
        names = sorted(map(str, samples)) if isinstance(samples, dict) else type(samples).__name__
        raise EpochMismatch(f"an epoch needs data['samples']['p'], an array (nchain, dim, nsamples); got {names}")
    items, leaves = flatten(data)
    arrays = (item for item in items if item.is_array)
    pairs = [(item, leaf) for item, leaf in zip(arrays, leaves, strict=True) if is_sample(item)]
    if len(pairs) < len(samples):
        raise EpochMismatch("each of data['samples'] must be an array (nchain, dim, nsamples)")
    first = pairs[0][0]
    for item, _ in pairs:
        if len(item.shape) != 3 or item.kind != "array":
            raise EpochMismatch(f"{item.path} must be an array (nchain, dim, nsamples); its shape is {item.shape}")
        if (item.shape[0], item.shape[2]) != (first.shape[0], first.shape[2]):
            raise EpochMismatch(
                f"{item.path} has shape {item.shape} and {first.path} has {first.shape}: "
                f"the first axis (chains) and the last one (samples) must agree"
            )
    if first.shape[0] < 1 or first.shape[2] < 1:
        raise EpochMismatch(f"an epoch needs a chain and a sample at least; {first.path} has shape {first.shape}")
    shapes = {item.path.partition("/")[2]: (item.shape[1], item.dtype) for item, _ in pairs}
    return Kind(items, leaves, first.shape[0], first.shape[2], shapes), leaves
