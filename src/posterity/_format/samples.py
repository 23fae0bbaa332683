"""The samples among the arrays of an epoch, as its layout has them.

Up the stream: `layout`. Down the stream: whoever asks what a run has, or writes an epoch without its first samples.
"""

from collections.abc import Sequence

import numpy as np

from posterity._system.arrays import Array

from .flatten import Item
from .layout import Layout, layout_of
from .schema import encode_items


def is_sample(item: Item) -> bool:
    """Whether an item is the array of a name of samples."""
    return item.path.startswith("samples/") and item.path.count("/") == 1


def sample_shapes(layout: Layout) -> tuple[int, dict[str, tuple[int, str]]]:
    """The number of chains, and of each name the dim and the dtype."""
    samples = [item for item in layout.leaves if is_sample(item)]
    nchain = samples[0].shape[0] if samples else 0
    return nchain, {item.path.partition("/")[2]: (item.shape[1], item.dtype) for item in samples}


def cut_samples(layout: Layout, arrays: Sequence[Array], cut: int) -> tuple[Layout, list[Array]]:
    """An epoch without its first `cut` samples; everything else in it stays as it is."""
    if cut == 0:
        return layout, list(arrays)
    at = [i for i, item in enumerate(layout.leaves) if is_sample(item)]
    kept = list(arrays)
    for i in at:
        kept[i] = np.ascontiguousarray(arrays[i][:, :, cut:])
    shapes = {layout.leaves[i].path: kept[i].shape for i in at}
    items = [_reshaped(item, shapes.get(item.path, item.shape)) for item in layout.items]
    return layout_of(encode_items(items)), kept


def _reshaped(item: Item, shape: tuple[int, ...]) -> Item:
    return item if shape == item.shape else Item(item.path, item.kind, item.dtype, shape, item.was)
