"""Which variables a run becomes for ArviZ, xarray, netCDF and Zarr: names, groups, axes, what is written beside them.

Pure. Samples go to the group `posterior`; what samplers tell about each of them goes to `sample_stats`, under ArviZ's
names.

Up the stream: `metadata` has the names. Down the stream: `xarray_data` and `export` fill the variables with numbers.
"""

import json
from collections import Counter
from collections.abc import Collection, Mapping
from typing import TypeAlias

import msgspec
import numpy as np

from posterity._model.metadata import Metadata, Parameter
from posterity._system.arrays import Array

Dtype: TypeAlias = np.dtype[np.generic]
Plain: TypeAlias = str | int | float
Chunks: TypeAlias = int | str | Mapping[str, object] | None
POSTERIOR, SAMPLE_STATS = "posterior", "sample_stats"
CHAIN, DRAW = "chain", "draw"
# Names of samples that aren't parameters, as samplers give them, and the names that ArviZ has for the same numbers.
STATS = {
    "ll": "ll",
    "lp": "lp",
    "acceptance_rate": "acceptance_rate",
    "accept_prob": "acceptance_rate",
    "accepted": "accepted",
    "is_accepted": "accepted",
    "diverging": "diverging",
    "is_divergent": "diverging",
    "is_turning": "turning",
    "energy": "energy",
    "energy_error": "energy_error",
    "n_steps": "n_steps",
    "num_steps": "n_steps",
    "num_integration_steps": "n_steps",
    "step_size": "step_size",
    "tree_depth": "tree_depth",
}


class Variable(msgspec.Struct, frozen=True):
    """One variable: some samples, or one component of them.

    `source`: name of the samples. `component`: which one of them along dim; None: all. `dims`: names of its axes, the
    chains and the draws first.
    """

    group: str
    name: str
    source: str
    component: int | None
    dims: tuple[str, ...]
    attributes: dict[str, Plain]


class Samples(msgspec.Struct, frozen=True):
    """Of what some samples consist: the length along dim, and the dtype."""

    dim: int
    dtype: Dtype

    @property
    def nbytes(self) -> int:
        """The bytes of one of them, in one chain."""
        return self.dim * self.dtype.itemsize


def arrange(
    samples: Mapping[str, Samples], metadata: Metadata, *, named: bool, stats: Collection[str] | None = None
) -> list[Variable]:
    """The variables that samples become.

    Args:
        samples: name -> what there is.
        metadata: of the run.
        named: samples whose components have names become a variable for each of them.
        stats: names of the samples that go to `sample_stats`; by default those that are known to.

    Raises:
        KeyError: one of `stats` isn't there.
        ValueError: two variables would have the same name.
    """
    if missing := [name for name in stats or () if name not in samples]:
        raise KeyError(
            f"there are no samples {', '.join(map(repr, missing))} for {SAMPLE_STATS}; there are {[*samples]}"
        )
    found: list[Variable] = []
    for name, kind in samples.items():
        is_stat = name in (STATS if stats is None else stats)
        given = metadata.parameters.get(name, ())
        if named and len(given) == kind.dim and not is_stat:
            found += [_component(name, i, parameter) for i, parameter in enumerate(given)]
        else:
            found.append(_whole(name, kind, given, is_stat=is_stat))
    return _without_clashes(found, {CHAIN, DRAW, *metadata.chains})


def _component(source: str, i: int, parameter: Parameter) -> Variable:
    return Variable(POSTERIOR, _plain_name(parameter.name), source, i, (CHAIN, DRAW), _attributes_of(parameter))


def _whole(name: str, kind: Samples, given: tuple[Parameter, ...], *, is_stat: bool) -> Variable:
    """`p` keeps its axis when it has but one component: who asks for it counts on that."""
    group = SAMPLE_STATS if is_stat else POSTERIOR
    has_axis = kind.dim != 1 or name == "p"
    dims = (CHAIN, DRAW, component_dim(name)) if has_axis else (CHAIN, DRAW)
    attributes = _attributes_of(given[0]) if len(given) == 1 and not has_axis else {}
    shown = STATS.get(name, name) if is_stat else name
    return Variable(group, _plain_name(shown), name, None if has_axis else 0, dims, attributes)


def component_dim(name: str) -> str:
    """The axis of the components of some samples, named as ArviZ does."""
    return f"{_plain_name(name)}_dim_0"


def _plain_name(name: str) -> str:
    """A name that netCDF, Zarr and xarray's trees can have."""
    return name.replace("/", "_")


def _attributes_of(parameter: Parameter) -> dict[str, Plain]:
    """What xarray writes beside axes (`long_name`, `units`), and the LaTeX."""
    known = {"long_name": parameter.label, "units": parameter.unit, "latex": parameter.latex}
    return {name: text for name, text in known.items() if text}


def _without_clashes(variables: list[Variable], taken: Collection[str]) -> list[Variable]:
    """A name that something else has too is written with the name of its samples before it."""
    counts = Counter((each.group, each.name) for each in variables)
    clear = [
        msgspec.structs.replace(each, name=f"{_plain_name(each.source)}_{each.name}")
        if counts[each.group, each.name] > 1 or each.name in taken
        else each
        for each in variables
    ]
    counts = Counter((each.group, each.name) for each in clear)
    if twice := [name for (_, name), n in counts.items() if n > 1]:
        raise ValueError(f"there would be several variables {twice[0]!r}; give pars, or named=False")
    return clear


def component_names(name: str, dim: int, metadata: Metadata) -> Array:
    """The coordinate along the components of some samples: their names, or else numbers."""
    given = metadata.parameters.get(name, ())
    return np.array([parameter.name for parameter in given]) if len(given) == dim else np.arange(dim)


def chain_coordinates(nchain: int, metadata: Metadata) -> dict[str, Array]:
    """The coordinates along the axis of chains: their numbers, and where each is in the layout that was given.

    Those of the layout are no indices: ArviZ and netCDF know no axis of several.
    """
    found: dict[str, Array] = {CHAIN: np.arange(nchain)}
    axes = metadata.chain_axes(nchain)
    if len(axes) > 1 or CHAIN not in axes:
        places = np.unravel_index(np.arange(nchain), tuple(axes.values()))
        for axis, at in zip(axes, places, strict=True):
            found[f"{axis}_number" if axis in (CHAIN, DRAW) else _plain_name(axis)] = np.asarray(at)
    return found


def attributes_of(metadata: Metadata) -> dict[str, Plain]:
    """What is known of the run, as attributes that netCDF can have; what isn't text or a number is JSON."""
    found: dict[str, Plain] = {_plain_name(name): _plain(value) for name, value in metadata.attributes.items()}
    found["creation_library"] = "posterity"
    if version := metadata.versions.get("posterity"):
        found["creation_library_version"] = version
    if metadata.started_at:
        found["started_at"] = metadata.started_at
    if metadata.host:
        found["host"] = metadata.host
    return found


def _plain(value: object) -> Plain:
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return value
    return json.dumps(value)
