"""The steps of a run, read as Eryn asks for them: which ones, and their samples.

Up the stream: `step_run` has them at one moment. Down the stream: `reads` gives them back.
"""

from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from posterity._reading.snapshot import samples_at
from posterity._samplers.step_run import StepsView
from posterity._system.arrays import Array
from posterity.errors import Burned

from .epochs import Counted, Dtype, Ensemble

if TYPE_CHECKING:
    import numpy.typing as npt

BranchesView: TypeAlias = StepsView[Ensemble, Counted]
Pick: TypeAlias = "int | slice | Array"


def chosen_steps(
    nsteps: int, burn: int, *, discard: int, thin: int, slice_vals: "int | slice | npt.ArrayLike | None"
) -> tuple[range, Pick]:
    """Which steps to read, a range that goes up, and which of those are wanted.

    Raises:
        ValueError: `thin` is 0.
        IndexError: there is no such step.
        Burned: a step that is named was burned (a `ValueError`).
    """
    if slice_vals is None:
        slice_vals = slice(discard + thin - 1, nsteps, thin)
    if isinstance(slice_vals, slice):
        wanted = range(nsteps)[slice_vals]
        pick = slice(None) if wanted.step > 0 else slice(None, None, -1)
        wanted = wanted[pick]
        return wanted[bisect_left(wanted, burn) :], pick
    index = np.asarray(slice_vals)
    steps = np.arange(nsteps)[index if index.size else index.astype(np.intp)]
    if steps.ndim > 1:
        raise IndexError(f"slice_vals must be a number, a slice, or a list of numbers or bools; got {slice_vals!r}")
    if not steps.size:
        return range(0), slice(None)
    first, last = int(steps.min()), int(steps.max())
    if first < burn:
        raise Burned(f"step {first} was burned: burn is {burn}")
    return range(first, last + 1), 0 if steps.ndim == 0 else steps - first


def read_samples(view: BranchesView, names: Sequence[str], wanted: range, chains: slice) -> dict[str, Array]:
    """Samples of some steps that aren't burned, name -> `(nchain, dim, n)`; `chains`: which."""
    stored, gathered = view.split(wanted)
    parts: dict[str, list[Array]] = {name: [] for name in names}
    if stored:
        samples = samples_at(view.snapshot, names, stored, chains)
        for name, part in parts.items():
            part.append(samples[name])
    if gathered is not None:
        for name, part in parts.items():
            part.append(view.tail[name][gathered][:, chains].transpose(1, 2, 0))
    return {name: _joined(part, *view.ensemble.samples[name], chains) for name, part in parts.items()}


def _joined(parts: list[Array], shape: tuple[int, ...], dtype: Dtype, chains: slice) -> Array:
    if not parts:
        return np.empty((*shape, 0), dtype)[chains]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)
