"""Runs as files of others' formats: netCDF4 and Zarr v3, laid out as ArviZ does, written while the run is read.

Epochs pass through memory one after the other, each with its checksums looked at. A file is written beside its place,
and moved there once it is whole.

Up the stream: `draws` reads, `variables` names it. Down the stream: `netcdf_file` and `zarr_store` write.
"""

import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np

from posterity._model.metadata import Metadata
from posterity._reading.draws import Draws
from posterity._reading.pinned_view import PinnedView
from posterity._reading.reads import Reads
from posterity._reading.snapshot import Snapshot, view_of
from posterity._reading.variables import (
    CHAIN,
    DRAW,
    POSTERIOR,
    Plain,
    Variable,
    arrange,
    attributes_of,
    chain_coordinates,
    component_names,
)
from posterity._system.arrays import Array
from posterity.errors import ExportExists, NotStorable

Source: TypeAlias = "Reads[Any] | Snapshot[Any]"
Progress: TypeAlias = Callable[[int, int], object]
_READ_BYTES = 16 << 20  # epochs that are small are read several at a time
_WRITTEN_BYTES = 8 << 20  # in all variables, at a time


class Sink(Protocol):
    """A file, or what is like one, that is made."""

    chunk_bytes: int

    def group(self, name: str, attributes: Mapping[str, Plain]) -> None:
        """Make a group."""

    def define(
        self, group: str, name: str, dims: Mapping[str, int], like: Array, attributes: Mapping[str, Plain], chunk: int
    ) -> None:
        """Make a variable with axes of these names and lengths, and the dtype of `like`; `chunk`: of draws."""

    def write(self, group: str, name: str, where: tuple[slice, ...], values: Array) -> None:
        """Store some of its numbers."""


def export_netcdf(
    source: Source,
    path: str | os.PathLike[str],
    *,
    burn: int = 0,
    thin: int = 1,
    pars: Sequence[str] | None = None,
    named: bool = True,
    stats: Collection[str] | None = None,
    compression: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write a run to a netCDF4 file, which `arviz.from_netcdf` and `xarray.open_datatree` open.

    No more than about an epoch is in memory at a time. A full disk is an `OSError`, raised before anything is written
    where that can be known. When this returns the file survives a power cut.

    Args:
        source: a backend, a run or a snapshot.
        path: the file; it has this name once it is whole.
        burn: samples to leave out, on top of the run's own burn.
        thin: take every `thin`-th sample, counted across the borders of epochs.
        pars: names of the samples; by default all that each epoch has.
        named: see `Snapshot.to_datatree`.
        stats: see `Snapshot.to_datatree`.
        compression: gzip's level, 1 to 9; None: not at all.
        overwrite: whether a file that is there may be replaced.
        progress: called with the bytes done and all bytes, again and again.

    Raises:
        ExportExists: there is something already (a `FileExistsError`).
        ValueError, KeyError: see `Snapshot.to_datatree`.
        NotStorable: samples aren't numbers (a `TypeError`).
        MissingExtra: h5netcdf isn't installed (an `ImportError`).
        SnapshotExpired, Damaged: see `Snapshot.get`. Nothing is left of the file.
    """
    from .netcdf_file import NetcdfFile  # noqa: PLC0415  # an extra

    with _exported(source, burn, thin, pars) as (draws, metadata):
        plan = arrange(draws.samples, metadata, named=named, stats=stats)
        with _beside(Path(os.fsdecode(path)), overwrite=overwrite, is_alike=Path.is_file) as beside:
            nbytes = None if compression else draws.nbytes + 8 * draws.n * len({each.group for each in plan})
            with NetcdfFile(beside, compression, nbytes) as file:
                _write(file, draws, metadata, plan, progress)


def export_zarr(
    source: Source,
    path: str | os.PathLike[str],
    *,
    burn: int = 0,
    thin: int = 1,
    pars: Sequence[str] | None = None,
    named: bool = True,
    stats: Collection[str] | None = None,
    compression: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write a run to a Zarr v3 group in a folder, which `xarray.open_datatree(path, engine="zarr")` opens.

    See `export_netcdf`, but: `compression` is zstd's level, 1 to 22; a folder is replaced only if it holds Zarr; and
    its many files aren't synced one by one.

    Raises:
        MissingExtra: zarr isn't installed (an `ImportError`).
        ExportExists, ValueError, KeyError, NotStorable, SnapshotExpired, Damaged: see `export_netcdf`.
    """
    from .zarr_store import ZarrFolder, is_zarr  # noqa: PLC0415  # an extra

    with _exported(source, burn, thin, pars) as (draws, metadata):
        plan = arrange(draws.samples, metadata, named=named, stats=stats)
        with _beside(Path(os.fsdecode(path)), overwrite=overwrite, is_alike=is_zarr) as beside:
            _write(ZarrFolder(beside, compression), draws, metadata, plan, progress)


def _view_of(source: Source) -> PinnedView:
    if isinstance(source, Snapshot):
        return view_of(source)
    with source.snapshot() as snapshot:
        return view_of(snapshot)


@contextmanager
def _exported(source: Source, burn: int, thin: int, pars: Sequence[str] | None) -> Iterator[tuple[Draws, Metadata]]:
    view = _view_of(source)
    draws, metadata = Draws.of(view, burn, thin, pars), view.registry.metadata
    with closing(draws):
        for name, kind in draws.samples.items():
            if kind.dtype.kind not in "?biufc":
                raise NotStorable(f"samples {name!r} are of dtype {kind.dtype}, no numbers; leave them out with pars")
        yield draws, metadata


@contextmanager
def _beside(path: Path, *, overwrite: bool, is_alike: Callable[[Path], bool]) -> Iterator[Path]:
    """A path to write to, in the same folder; what is there afterwards gets its name, or is removed after an error.

    `is_alike`: whether something that is there is of the kind that may be overwritten.
    """
    path = path.absolute()
    if os.path.lexists(path) and not (overwrite and is_alike(path)):
        why = "and isn't what it would be replaced by" if overwrite else "give overwrite=True to replace it"
        raise ExportExists(f"{path} is there already, {why}")
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    _remove(beside)
    try:
        yield beside
        _put(beside, path, overwrite=overwrite)
    finally:
        _remove(beside)


def _put(beside: Path, path: Path, *, overwrite: bool) -> None:
    if not overwrite:
        if os.path.lexists(path):  # it came while we were writing
            raise ExportExists(f"{path} is there already, since just now")
        beside.rename(path)
    elif path.is_dir():
        aside = path.with_name(f"{beside.name}.old")
        path.rename(aside)
        beside.rename(path)
        _remove(aside)
    else:
        beside.replace(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _write(sink: Sink, draws: Draws, metadata: Metadata, plan: list[Variable], progress: Progress | None) -> None:
    chunk = _chunk_draws(sink, draws, plan)
    groups = {variable.group for variable in plan} | {POSTERIOR}
    for group in sorted(groups):
        sink.group(group, {**attributes_of(metadata), **_listed_coordinates(draws, metadata)})
        _write_coordinates(sink, group, draws, metadata, [each for each in plan if each.group == group])
    for variable in plan:
        kind = draws.samples[variable.source]
        dims = dict(zip(variable.dims, (draws.nchain, draws.n, kind.dim), strict=False))
        sink.define(variable.group, variable.name, dims, np.empty(0, kind.dtype), variable.attributes, chunk)
    sample_bytes = draws.nchain * sum(kind.nbytes for kind in draws.samples.values())
    step = chunk * max(1, _WRITTEN_BYTES // max(1, chunk * sample_bytes))
    for at, samples in _aligned(_blocks(draws, sample_bytes), step):
        n = next(iter(samples.values())).shape[2]
        positions = draws.positions[at : at + n]
        for group in groups:
            sink.write(group, DRAW, (slice(at, at + n),), np.arange(positions.start, positions.stop, positions.step))
        for variable in plan:
            values = _values(samples[variable.source], variable)
            sink.write(variable.group, variable.name, (slice(None), slice(at, at + n)), values)
        if progress is not None:
            progress((at + n) * sample_bytes, draws.nbytes)


def _listed_coordinates(draws: Draws, metadata: Metadata) -> dict[str, Plain]:
    """How xarray and others know the coordinates that aren't named as an axis."""
    names = [name for name in chain_coordinates(draws.nchain, metadata) if name != CHAIN]
    return {"coordinates": " ".join(names)} if names else {}


def _chunk_draws(sink: Sink, draws: Draws, plan: list[Variable]) -> int:
    """How many draws of all chains make a chunk of the largest variable."""
    most = 1
    for variable in plan:
        kind = draws.samples[variable.source]
        most = max(most, draws.nchain * (kind.nbytes if len(variable.dims) == 3 else kind.dtype.itemsize))
    return max(1, min(sink.chunk_bytes // most, draws.n))


def _write_coordinates(sink: Sink, group: str, draws: Draws, metadata: Metadata, plan: list[Variable]) -> None:
    """All but the positions of the draws, which come with them."""
    attributes = {"long_name": "position in the run"}
    sink.define(group, DRAW, {DRAW: draws.n}, np.empty(0, np.int64), attributes, max(1, min(draws.n, 1 << 17)))
    coordinates = {name: (CHAIN, numbers) for name, numbers in chain_coordinates(draws.nchain, metadata).items()}
    for variable in plan:
        for dim in variable.dims[2:]:
            coordinates[dim] = (dim, component_names(variable.source, draws.samples[variable.source].dim, metadata))
    for name, (dim, numbers) in coordinates.items():
        sink.define(group, name, {dim: len(numbers)}, numbers, {}, max(1, len(numbers)))
        sink.write(group, name, (slice(None),), numbers)


def _values(samples: Array, variable: Variable) -> Array:
    """`(nchain, n)` or `(nchain, n, dim)`."""
    if variable.component is not None:
        return samples[:, variable.component]
    return samples.swapaxes(1, 2)


def _blocks(draws: Draws, sample_bytes: int) -> Iterator[dict[str, Array]]:
    """All draws in their order: whole epochs, several if they are small. Each epoch is read once, and checked."""
    names = list(draws.samples)
    first = stop = 0
    for size in draws.sizes if names else ():
        if stop > first and (stop - first + size) * sample_bytes > _READ_BYTES:
            yield draws.read(names, range(first, stop), verify=True)
            first = stop
        stop += size
    if stop > first:
        yield draws.read(names, range(first, stop), verify=True)


def _aligned(blocks: Iterator[dict[str, Array]], step: int) -> Iterator[tuple[int, dict[str, Array]]]:
    """The same draws, `step` at a time but for the last ones, with the number of the first."""
    at, rest = 0, dict[str, Array]()
    for block in blocks:
        n = _count(block)
        begin = min(n, step - _count(rest)) if rest else 0
        if rest:
            rest = {name: np.concatenate([rest[name], array[:, :, :begin]], axis=2) for name, array in block.items()}
            if _count(rest) < step:
                continue
            yield at, rest
            at += step
        end = begin + (n - begin) // step * step
        for first in range(begin, end, step):
            yield at, _cut(block, first, first + step)
            at += step
        rest = {name: array.copy() for name, array in _cut(block, end, n).items()} if end < n else {}
        del block
    if rest:
        yield at, rest


def _cut(block: dict[str, Array], first: int, stop: int) -> dict[str, Array]:
    return {name: array[:, :, first:stop] for name, array in block.items()}


def _count(block: dict[str, Array]) -> int:
    return next(iter(block.values())).shape[2] if block else 0
