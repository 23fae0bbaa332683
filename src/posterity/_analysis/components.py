"""The single numbers that chains are made of: which there are, what they are called, and reading one after the other.

Up the stream: `snapshot` reads, `metadata` knows what they are called. Down the stream: `summaries` and `plots` work on
one at a time, so that a run larger than memory can be summed up.
"""

import difflib
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from posterity._model.metadata import Parameter
from posterity._reading.snapshot import Snapshot

Floats: TypeAlias = npt.NDArray[np.float64]
_BLOCK_BYTES = 1 << 26


class Component(msgspec.Struct, frozen=True):
    """Component `index` of the samples `of`."""

    of: str
    index: int
    parameter: Parameter


def components_of(snapshot: Snapshot[Any], pars: Sequence[str] | None = None) -> list[Component]:
    """The components of a run's samples that can be summed up: all real numbers.

    Args:
        snapshot: what to look at.
        pars: names of samples ("p": all components of it) or of parameters ("p_3", or as the run's metadata call it);
            None: all.

    Raises:
        KeyError: there is no such name; the message names the nearest one.
        TypeError: the samples of a name aren't real numbers.
    """
    shapes, metadata = snapshot.shapes, snapshot.metadata
    known: dict[str, list[Component]] = {}
    for of, (_, dim, dtype) in shapes.items():
        parameters = metadata.parameters_of(of, dim)
        known[of] = [Component(of, i, parameter) for i, parameter in enumerate(parameters) if _is_real(dtype)]
    if pars is None:
        return [component for components in known.values() for component in components]
    single = {component.parameter.name: [component] for each in known.values() for component in each}
    chosen: list[Component] = []
    for name in pars:
        if name in known and not known[name]:
            raise TypeError(f"the samples {name!r} have dtype {shapes[name][2]}: they aren't real numbers")
        found = known.get(name) or single.get(name)
        if found is None:
            raise KeyError(_unknown(name, [*known, *single]))
        chosen += [component for component in found if component not in chosen]
    return chosen


def _is_real(dtype: str) -> bool:
    try:
        return np.dtype(dtype).kind in "biuf"
    except TypeError:  # a structure, told as a list
        return False


def _unknown(name: str, names: list[str]) -> str:
    names = list(dict.fromkeys(names))
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names[:20])}"
    return f"there are no samples {name!r}; {hint}"


def read_each(
    snapshot: Snapshot[Any], components: Sequence[Component], burn: int = 0, thin: int = 1
) -> Iterator[tuple[Component, Floats]]:
    """Each component with its numbers `(nchain, n)`, as floats. Few are in memory at a time, whatever the run weighs.

    Raises:
        ValueError: `burn` and `thin` leave nothing.
    """
    at = 0
    while at < len(components):
        first = components[at]
        stop = at + _block(snapshot, components[at:], thin)
        last = components[stop - 1]
        block = snapshot.get_components(first.of, first.index, last.index + 1, burn, thin)
        if block is None:
            raise ValueError(f"nothing is left: the run has {snapshot.nsamples} samples, and burn is {burn}")
        for component in components[at:stop]:
            yield component, np.ascontiguousarray(block[:, component.index - first.index], np.float64)
        at = stop


def _block(snapshot: Snapshot[Any], components: Sequence[Component], thin: int) -> int:
    """How many components, neighbours in one name, are read at once."""
    first = components[0]
    nchain, _, dtype = snapshot.shapes[first.of]
    size = max(1, nchain * np.dtype(dtype).itemsize * snapshot.nsamples // thin)
    most = max(1, _BLOCK_BYTES // size)
    n = 1
    while n < min(most, len(components)) and components[n].of == first.of and components[n].index == first.index + n:
        n += 1
    return n
