"""Whether compression pays, and which: a few chunks of an epoch are tried with all that there is.

Up the stream: `codec`, `chunks`. Down the stream: `data_files` asks once in a run's life.
"""

import logging
import time
from collections.abc import Sequence
from typing import NamedTuple

from posterity._system.arrays import Array

from .codec import DEFAULT_LEVEL, Bytes, Packing, known_codecs
from .layout import Layout, packed_layout

logger = logging.getLogger("posterity.auto")
_MOST_CHUNKS = 8
_WORTH_IT = 0.8  # at most this part of the bytes may be left
_AS_GOOD = 1.1


class _Trial(NamedTuple):
    """What came of one way to compress the sample. `part`: what is left of its bytes."""

    packing: Packing
    part: float
    seconds: float


_ANY = Packing("gzip", DEFAULT_LEVEL["gzip"], shuffle=False)


def can_choose(layout: Layout) -> bool:
    """Whether an epoch has arrays that would be packed."""
    return bool(packed_layout(layout, _ANY).grids)


def choose(layout: Layout, arrays: Sequence[Array]) -> Packing | None:
    """How to compress a run whose first epoch this is; None: not at all, because a fifth isn't saved.

    The fastest way wins among those that leave hardly more bytes than the best one.
    """
    sample = _sample(layout, arrays)
    nbytes = sum(len(raw) for _, raw in sample)
    trials = [
        _try(Packing(codec, DEFAULT_LEVEL[codec], shuffle), sample, nbytes)
        for codec in known_codecs()
        for shuffle in (False, True)
    ]
    least = min(trial.part for trial in trials)
    best = min((trial for trial in trials if trial.part <= least * _AS_GOOD), key=lambda trial: trial.seconds)
    found = ", ".join(
        f"{trial.packing}: {1 / trial.part:.2f} x at {nbytes / trial.seconds / 1e6:.0f} MB/s" for trial in trials
    )
    if least > _WORTH_IT:
        logger.info("compression='auto': it isn't worth it (on one core: %s)", found)
        return None
    logger.info("compression='auto': %s it is (on one core: %s)", best.packing, found)
    return best.packing


def _sample(layout: Layout, arrays: Sequence[Array]) -> list[tuple[int, Bytes]]:
    """Some chunks from all over the arrays that would be packed, each with the size of its numbers."""
    grids = packed_layout(layout, _ANY).grids
    chunks = [(arrays[i], grid, k) for i, grid in grids.items() for k in range(grid.nchunks)]
    step = -(-len(chunks) // _MOST_CHUNKS)
    return [(grid.itemsize, grid.take(array, k)) for array, grid, k in chunks[step // 2 :: step]]


def _try(packing: Packing, sample: Sequence[tuple[int, Bytes]], nbytes: int) -> _Trial:
    start = time.perf_counter()
    left = sum(len(packing.packer(itemsize)(raw)) for itemsize, raw in sample)
    return _Trial(packing, left / nbytes, time.perf_counter() - start)
