"""What a run says about each parameter: mean, sd, quantiles, and how far it can be believed.

Needs arviz-stats, from the extra `stats`: it is imported when it is needed, as that takes a second.

Up the stream: `components` reads. Down the stream: `posterity summary`.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import msgspec
import numpy as np

from posterity._model.metadata import Parameter
from posterity._reading.snapshot import Snapshot
from posterity.errors import MissingExtra

from .components import Floats, components_of, read_each

_FEWEST = 4  # samples in a chain, of which arviz-stats says nothing


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One parameter: component `index` of the samples `of`.

    `mcse`: the Monte Carlo standard error of the mean. `quantiles`: those that were asked for. `ess_bulk`, `ess_tail`,
    `rhat`: of Vehtari et al. (2021); NaN where nothing can be said, of one chain or of a constant for example.
    """

    name: str
    unit: str
    of: str
    index: int
    mean: float
    sd: float
    mcse: float
    quantiles: tuple[float, ...]
    ess_bulk: float
    ess_tail: float
    rhat: float


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What `summarize` saw: `samples` of each of `nchain` chains, after `burn` and `thin`."""

    nchain: int
    samples: int
    burn: int
    thin: int
    quantiles: tuple[float, ...]
    rows: tuple[Row, ...]

    @property
    def max_rhat(self) -> float:
        """The largest R-hat; NaN if one of them is."""
        return float(np.max([row.rhat for row in self.rows])) if self.rows else math.nan

    @property
    def min_ess(self) -> float:
        """The smallest of all ESS, bulk and tail; NaN if one of them is."""
        found = [ess for row in self.rows for ess in (row.ess_bulk, row.ess_tail)]
        return float(np.min(found)) if found else math.nan


def summarize(
    snapshot: Snapshot[Any],
    *,
    burn: int = 0,
    thin: int = 1,
    pars: Sequence[str] | None = None,
    chains: slice = slice(None),
    quantiles: Sequence[float] = (0.05, 0.5, 0.95),
    progress: Callable[[int, int], None] | None = None,
) -> Summary:
    """Sum up each parameter of a run, one after the other: memory is needed for a few of them at a time.

    Args:
        snapshot: the run.
        burn: samples to leave out, on top of the run's own burn.
        thin: take every `thin`-th sample.
        pars: names of samples or of parameters; None: all.
        chains: which chains; those of one temperature, for example.
        quantiles: between 0 and 1.
        progress: called with the number of parameters that are done, and of all.

    Raises:
        MissingExtra: arviz-stats isn't installed.
        KeyError, TypeError: a name isn't there, or its samples aren't real numbers.
        ValueError: nothing is left.
    """
    stats = _arviz_stats()
    components = components_of(snapshot, pars)
    rows: list[Row] = []
    shape = (0, 0)
    for component, array in read_each(snapshot, components, burn, thin):
        chosen = array[chains]
        shape = chosen.shape
        if not len(chosen):
            raise ValueError(f"the run has {len(array)} chains, and none of them was chosen")
        rows.append(_row(stats, component.parameter, component.of, component.index, chosen, quantiles))
        if progress is not None:
            progress(len(rows), len(components))
    return Summary(
        nchain=shape[0], samples=shape[1], burn=burn, thin=thin, quantiles=tuple(quantiles), rows=tuple(rows)
    )


def _row(stats: Any, parameter: Parameter, of: str, index: int, array: Floats, quantiles: Sequence[float]) -> Row:
    axes = {"chain_axis": 0, "draw_axis": 1}
    is_enough = array.shape[1] >= _FEWEST and bool(np.isfinite(array).all())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a constant chain: the result is NaN, as it should be
        return Row(
            name=parameter.name,
            unit=parameter.unit,
            of=of,
            index=index,
            mean=float(array.mean()),
            sd=float(array.std(ddof=1)) if array.size > 1 else math.nan,
            mcse=float(stats.mcse(array, **axes)) if is_enough else math.nan,
            quantiles=tuple(float(each) for each in np.quantile(array, quantiles)),
            ess_bulk=float(stats.ess(array, method="bulk", **axes)) if is_enough else math.nan,
            ess_tail=float(stats.ess(array, method="tail", prob=(0.05, 0.95), **axes)) if is_enough else math.nan,
            rhat=float(stats.rhat(array, **axes)) if is_enough else math.nan,
        )


def _arviz_stats() -> Any:  # an object with the functions
    try:
        return import_module("arviz_stats.base").array_stats
    except ImportError as error:
        raise MissingExtra("a summary needs the package arviz-stats: pip install 'posterity[stats]'") from error
