"""Which chains and samples a reader asked for. Pure: numbers in, numbers out.

Down the stream: `snapshot` reads what comes out.
"""

from collections.abc import Iterator
from types import EllipsisType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from posterity._model.registry import Registry
from posterity._system.arrays import Array

if TYPE_CHECKING:
    import numpy.typing as npt

Mask: TypeAlias = "EllipsisType | slice | npt.ArrayLike"
if TYPE_CHECKING:
    # Name -> array, or None if nothing is left. Who has just ingested knows that something is: a type checker asks for
    # no check in each line that reads.
    Samples: TypeAlias = dict[str, Array] | Any
else:
    Samples = dict[str, Array] | None


class Piece(NamedTuple):
    """The samples `start::thin` of an epoch, counted from its first ingested one, go to `at:at + n`."""

    epoch: int
    start: int
    at: int
    n: int


def chosen_chains(mask: Mask, nchain: int) -> list[int] | None:
    """The chains that `array[mask]` selects on its first axis, in order; None for all.

    Raises:
        IndexError: the mask doesn't fit `nchain` chains, or selects something else than chains.
    """
    if mask is Ellipsis:
        return None
    index: Any = mask if isinstance(mask, slice) else np.asarray(mask)
    if not isinstance(mask, slice) and index.size == 0:
        index = index.astype(np.intp)
    try:
        chosen = np.arange(nchain)[index]
    except IndexError as error:
        raise IndexError(f"mask doesn't fit {nchain} chains: {error}") from error
    if chosen.ndim != 1:
        raise IndexError(f"mask must select chains: a boolean for each of the {nchain}, or a list of their numbers")
    return [int(chain) for chain in chosen]


def check_thin(burn: int, thin: int) -> None:
    """Refuse what isn't a burn and a thinning factor.

    Raises:
        ValueError: `thin` is below 1, or `burn` below 0.
    """
    if thin < 1:
        raise ValueError(f"thin must be at least 1, got {thin}")
    if burn < 0:
        raise ValueError(f"burn must be at least 0, got {burn}")


def count_samples(registry: Registry, burn: int, thin: int) -> int:
    """How many samples `[burn::thin]` of what is left are."""
    return max(0, -(-(registry.nsamples_left - burn) // thin))


def pieces(registry: Registry, burn: int, thin: int) -> Iterator[Piece]:
    """What to read of which epoch: thinning goes on across the borders of epochs."""
    return pieces_from(registry, registry.burn + burn, thin, count_samples(registry, burn, thin))


def pieces_from(registry: Registry, start: int, thin: int, n: int) -> Iterator[Piece]:
    """What to read of which epoch for `n` samples, each `thin` after the one before, from a position in the run on."""
    at = 0
    for i in range(registry.epoch_at(start), registry.next_index):
        entry = registry.entries[i]
        first = start + at * thin
        count = min(n - at, max(0, -(-(entry.stop - first) // thin)))
        if count:
            yield Piece(entry.index, first - entry.first, at, count)
            at += count
        if at == n:
            return


def flatten_samples(samples: dict[str, Array] | None) -> dict[str, Array] | None:
    """Put the samples of all chains one behind the other: `(nchain, dim, n)` becomes `(nchain * n, dim)`.

    Chain by chain. None stays None.
    """
    if samples is None:
        return None
    return {name: _flattened(array) for name, array in samples.items()}


def _flattened(array: Array) -> Array:
    nchain, dim, n = array.shape
    return np.swapaxes(array, 1, 2).reshape(nchain * n, dim)
