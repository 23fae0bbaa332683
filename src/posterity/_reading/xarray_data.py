"""Runs as xarray's datasets and trees: lazy, and in the form that ArviZ knows. Needs the extra `xarray`.

`PosterityBackend` is what `xarray.open_dataset(RUN, engine="posterity")` finds. It gives arrays that read from the
run's files when they are asked, and only what they are asked for.

Up the stream: `draws` reads, `variables` says what is called how. Down the stream: xarray, ArviZ, Dask.
"""

import os
from collections.abc import Collection, Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, TypeAlias, cast

import numpy as np

from posterity._model.file_names import JOURNAL
from posterity._model.metadata import Metadata
from posterity._system.arrays import Array
from posterity.errors import MissingExtra

from .draws import Draws
from .followed_run import follow_run
from .pinned_view import PinnedView
from .variables import (
    CHAIN,
    DRAW,
    POSTERIOR,
    Chunks,
    Variable,
    arrange,
    attributes_of,
    chain_coordinates,
    component_names,
)

try:
    import pandas as pd
    import xarray as xr
    from xarray.backends import BackendArray, BackendEntrypoint
    from xarray.core import indexing
except ImportError as error:
    raise MissingExtra("this needs the package xarray: pip install 'posterity[xarray]'") from error

_NAMED_AFTER = "posterity_draws"
Key: TypeAlias = "tuple[int | slice | np.ndarray[Any, np.dtype[np.intp]], ...]"


class PosterityBackend(BackendEntrypoint):
    """Opens a run folder with xarray, lazily: `xarray.open_dataset("my_run", engine="posterity", chunks={})`.

    Each name of samples is a variable `(chain, draw)` or `(chain, draw, NAME_dim_0)`. With `chunks={}` one chunk of
    Dask's is one epoch.
    """

    description = "Runs of posterity: the samples of a sampler"
    open_dataset_parameters: ClassVar[tuple[str, ...]] = ("filename_or_obj", "drop_variables", "burn", "thin", "pars")

    def open_dataset(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        burn: int = 0,
        thin: int = 1,
        pars: Sequence[str] | None = None,
    ) -> xr.Dataset:
        """See `Snapshot.to_xarray` for burn, thin and pars."""
        if isinstance(filename_or_obj, _Source):
            source = filename_or_obj
        else:
            view, _ = follow_run(filename_or_obj).look()  # which keeps the run open
            source = _Source(Draws.of(view, burn, thin, pars), view.registry.metadata)
        dropped = {drop_variables} if isinstance(drop_variables, str) else set(drop_variables or ())
        dataset = _lazy_dataset(source).drop_vars(dropped, errors="ignore")
        dataset.set_close(source.draws.close)
        return dataset

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Whether it is a folder with a run in it."""
        return isinstance(filename_or_obj, (str, os.PathLike)) and (Path(filename_or_obj) / JOURNAL).is_file()


class _Source:
    """What a dataset is made of, when it isn't a folder."""

    def __init__(self, draws: Draws, metadata: Metadata, *, prefers_epochs: bool = True) -> None:
        self.draws = draws
        self.metadata = metadata
        self.prefers_epochs = prefers_epochs

    def __dask_tokenize__(self) -> str:
        return self.draws.token


class _Samples(BackendArray):
    """All draws of some samples, `(chain, draw, dim)`, or `(chain, draw)` if they are numbers. Reads when indexed."""

    def __init__(self, draws: Draws, variable: Variable) -> None:
        kind = draws.samples[variable.source]
        self._draws = draws
        self._name = variable.source
        self._is_scalar = variable.component is not None
        self.shape: tuple[int, ...] = (draws.nchain, draws.n) if self._is_scalar else (draws.nchain, draws.n, kind.dim)
        self.dtype = kind.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Array:
        return cast(
            "Array",
            indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read),
        )

    def _read(self, key: Key) -> Array:
        chosen = [_chosen(each, n) for each, n in zip(key, self.shape, strict=True)]
        chains, draws = _but_for_all(chosen[0], self.shape[0]), chosen[1]
        components = None if self._is_scalar else _but_for_all(chosen[2], self.shape[2])
        array = np.moveaxis(self._read_draws(draws, chains, components), 2, 1)
        if self._is_scalar:
            array = array[:, :, 0]
        return array[tuple(0 if isinstance(each, (int, np.integer)) else slice(None) for each in key)]

    def _read_draws(
        self,
        draws: "range | np.ndarray[Any, np.dtype[np.intp]]",
        chains: list[int] | None,
        components: list[int] | None,
    ) -> Array:
        """`array[chains][:, components, draws]`, wherever the draws are."""
        if isinstance(draws, range):
            return self._read_range(draws, chains, components)
        parts = []
        for part in self._draws.within_epochs(draws):
            some = draws[part]
            first = int(some[0])
            parts.append(self._read_range(range(first, int(some[-1]) + 1), chains, components)[:, :, some - first])
        return np.concatenate(parts or [self._read_range(range(0), chains, components)], axis=2)

    def _read_range(self, draws: range, chains: list[int] | None, components: list[int] | None) -> Array:
        return self._draws.read([self._name], draws, chains, components)[self._name]


def _chosen(key: "int | slice | np.ndarray[Any, np.dtype[np.intp]]", n: int) -> Any:
    """What a part of an indexer chooses of `n`: a range, or an array of numbers; xarray sees to it that they go up."""
    if isinstance(key, slice):
        return range(*key.indices(n))
    return key if isinstance(key, np.ndarray) else range(int(key), int(key) + 1)


def _but_for_all(chosen: "range | np.ndarray[Any, np.dtype[np.intp]]", n: int) -> list[int] | None:
    return None if isinstance(chosen, range) and chosen == range(n) else [int(each) for each in chosen]


class _Named(xr.Variable):
    """A variable that gives Dask a name which says whose numbers it has.

    xarray makes that name from the path of what was opened. But a run grows, and is burned, while its path stays: the
    chunks of two datasets would have the same names, and one's numbers could be taken for the other's.
    """

    __slots__ = ()

    def chunk(self, chunks: Any, **options: Any) -> Any:  # type: ignore[override]  # its options change
        """See `xarray.Variable.chunk`."""
        given = options.get("from_array_kwargs") or {}
        if "name" in given and _NAMED_AFTER in self.encoding:
            options["from_array_kwargs"] = {**given, "name": f"{given['name']}-{self.encoding[_NAMED_AFTER]}"}
        return super().chunk(chunks, **options)


def _lazy_dataset(source: _Source) -> xr.Dataset:
    """Each name of samples is a variable."""
    draws, metadata = source.draws, source.metadata
    found: dict[str, xr.Variable] = {}
    for variable in _whole_variables(draws, metadata):
        lazy = indexing.LazilyIndexedArray(_Samples(draws, variable))
        encoding: dict[str, Any] = {_NAMED_AFTER: draws.token}
        if source.prefers_epochs:
            encoding["preferred_chunks"] = {DRAW: draws.sizes}
        found[variable.name] = _Named(variable.dims, lazy, variable.attributes, encoding)
    return xr.Dataset(found, _coordinates(draws, metadata), attributes_of(metadata))


def _whole_variables(draws: Draws, metadata: Metadata) -> list[Variable]:
    return arrange(draws.samples, metadata, named=False, stats=())


def _coordinates(draws: Draws, metadata: Metadata) -> dict[str, Any]:
    positions = draws.positions
    index = pd.RangeIndex(positions.start, positions.stop, positions.step)  # takes no memory, however long it is
    found: dict[str, Any] = {DRAW: (DRAW, index, {"long_name": "position in the run"})}
    for name, numbers in chain_coordinates(draws.nchain, metadata).items():
        found[name] = (CHAIN, numbers)
    for variable in _whole_variables(draws, metadata):
        for dim in variable.dims[2:]:
            found[dim] = (dim, component_names(variable.source, draws.samples[variable.source].dim, metadata))
    return found


def to_dataset(view: PinnedView, burn: int, thin: int, pars: Sequence[str] | None, *, chunks: Chunks) -> xr.Dataset:
    """See `Snapshot.to_xarray`; the view belongs to the dataset from now on."""
    return _opened(Draws.of(view, burn, thin, pars), view.registry.metadata, chunks)


def _opened(draws: Draws, metadata: Metadata, chunks: Chunks) -> xr.Dataset:
    prefers_epochs = not isinstance(chunks, int)  # else xarray warns of each border that isn't one of epochs
    if chunks == "epoch":
        chunks = {}
    elif isinstance(chunks, int):
        chunks = {DRAW: chunks}
    if chunks is not None and find_spec("dask") is None:
        raise MissingExtra("chunks need the package dask: pip install 'posterity[xarray]', or give chunks=None")
    source: Any = _Source(draws, metadata, prefers_epochs=prefers_epochs)
    return xr.open_dataset(source, engine=PosterityBackend, chunks=cast("Any", chunks))


def to_datatree(
    view: PinnedView,
    burn: int,
    thin: int,
    pars: Sequence[str] | None,
    *,
    chunks: Chunks,
    named: bool,
    stats: Collection[str] | None,
) -> xr.DataTree:
    """See `Snapshot.to_datatree`; the view belongs to the tree from now on."""
    draws, metadata = Draws.of(view, burn, thin, pars), view.registry.metadata
    plan = arrange(draws.samples, metadata, named=named, stats=stats)
    dataset = _opened(draws, metadata, chunks)
    if chunks is None:
        dataset.load()
        dataset.close()
    whole = {variable.source: variable.name for variable in _whole_variables(draws, metadata)}
    groups: dict[str, dict[str, xr.DataArray]] = {POSTERIOR: {}}
    for variable in plan:
        array = dataset[whole[variable.source]]
        if variable.component is not None and array.ndim == 3:
            array = array.isel({array.dims[2]: variable.component}, drop=True)
        array.attrs = dict(variable.attributes)
        groups.setdefault(variable.group, {})[variable.name] = array
    bare = {} if plan else dataset.coords
    return xr.DataTree.from_dict({group: xr.Dataset(arrays, bare, dataset.attrs) for group, arrays in groups.items()})
