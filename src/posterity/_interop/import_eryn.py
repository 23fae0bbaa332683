"""A run made of a file that Eryn's `HDFBackend` wrote, some steps at a time. Eryn isn't needed.

Up the stream: such a file. Down the stream: `eryn/epochs` says how its steps lie in epochs, `blocking` stores them.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Never

import h5py
import numpy as np

from posterity._model.metadata import Parameters
from posterity._model.options import Compression, OnFull, options_in
from posterity._samplers.eryn.epochs import (
    BETA,
    BLOBS,
    LOG_LIKE,
    LOG_PRIOR,
    Counted,
    Ensemble,
    ensemble_of,
)
from posterity._samplers.step_buffer import MAX_BYTES
from posterity._samplers.step_run import EPOCHS_PER_FILE
from posterity._system.arrays import Array
from posterity._writing.blocking import DefaultBackend
from posterity.epoch import EpochDict
from posterity.errors import Damaged

from .imported import MAX_PENDING_BYTES, Imported, Progress, opened, options_for

_ARRAYS = {"log_like": LOG_LIKE, "log_prior": LOG_PRIOR, "betas": BETA, "blobs": BLOBS}
_NUMBERS = {"nwalkers", "ntemps", "branch_names", "iteration", "rj", "has_blobs"}


def eryn_chains(file: Any) -> list[str]:  # an h5py.File
    """The names of the chains in a file of Eryn's `HDFBackend`."""
    return [name for name, group in file.items() if isinstance(group, h5py.Group) and _is_eryns(group)]


def _is_eryns(group: Any) -> bool:
    groups = all(isinstance(group.get(name), h5py.Group) for name in ("chain", "inds", "ndims", "nleaves_max"))
    return groups and set(group.attrs) >= _NUMBERS


class ErynChain:
    """One chain in a file.

    Raises:
        KeyError: there is no such chain; the message has those there are.
        ValueError: the chain has no steps.
        Damaged: it contradicts itself.
    """

    def __init__(self, path: Path, file: Any, name: str) -> None:
        names = eryn_chains(file)
        if name not in names:
            raise KeyError(f"{path} has no chain {name!r} of Eryn's; it has {', '.join(map(repr, names)) or 'none'}")
        group = self._group = file[name]
        self._where = f"{path}: {name}"
        self.nsteps = int(group.attrs["iteration"])
        self.version = {"eryn_version": str(group.attrs["version"])} if "version" in group.attrs else {}
        if self.nsteps < 1:
            raise ValueError(f"{path}: the chain {name!r} has no steps")
        self.ensemble = self._ensemble()
        self._arrays = self._found()
        self._check()
        self._state = self._counted()

    def _ensemble(self) -> Ensemble:
        group, attributes = self._group, self._group.attrs
        names = [str(name) for name in attributes["branch_names"]]
        first = group["chain"][names[0]]
        order = {key: _plain(value) for key, value in group["key_order"].attrs.items()} if "key_order" in group else {}
        info = {key: _plain(value) for key, value in group["info"].attrs.items()} if "info" in group else {}
        ensemble = ensemble_of(
            attributes["nwalkers"], dict(group["ndims"].attrs), dict(group["nleaves_max"].attrs), attributes["ntemps"],
            names, rj=bool(attributes["rj"]), moves=list(group["moves"]) if "moves" in group else None,
            key_order=order or None, dtype=first.dtype, info=info,
        )  # fmt: skip
        return (
            ensemble.with_blobs(np.empty(group["blobs"].shape[1:], group["blobs"].dtype))
            if self._has_blobs
            else ensemble
        )

    @property
    def _has_blobs(self) -> bool:
        return bool(self._group.attrs["has_blobs"])

    def _found(self) -> dict[str, Any]:
        """Name of samples -> the dataset, `(nsteps, ntemps, ...)`."""
        group = self._group
        arrays = {ours: group[theirs] for theirs, ours in _ARRAYS.items() if theirs != "blobs" or self._has_blobs}
        for branch in self.ensemble.branches:
            arrays[branch.points] = group["chain"][branch.name]
            arrays[branch.inds] = group["inds"][branch.name]
        return arrays

    def _check(self) -> None:
        ensemble = self.ensemble
        for name, ((nchain, dim), _) in ensemble.samples.items():
            found = self._arrays[name].shape
            size = ensemble.ntemps if name == BETA else nchain * dim
            if found[0] < self.nsteps or found[1] != ensemble.ntemps or int(np.prod(found[1:])) != size:
                raise Damaged(
                    f"{self._where}: {name!r} has shape {found}; {self.nsteps} steps of {nchain} chains are expected"
                )

    def _counted(self) -> Counted:
        group = self._group
        moves = {
            name: np.asarray(group["moves"][name]["acceptance_fraction"], float) for name in self.ensemble.moves or ()
        }
        each = self.ensemble.ntemps, self.ensemble.nwalkers
        jumps = np.zeros(each) if self.ensemble.rj else None
        if self.ensemble.rj and "rj_accepted" in group:
            jumps = np.asarray(group["rj_accepted"], float)
        names = sorted(name for name in group.attrs if name.startswith("random_state_"))
        state = tuple(_plain_number(group.attrs[name]) for name in names)
        return Counted(
            np.asarray(group["accepted"], float),
            np.asarray(group["swaps_accepted"], float),
            jumps,
            None if self.ensemble.moves is None else moves,
            state or None,
        )

    def epochs(self, max_bytes: int) -> Iterator[tuple[int, EpochDict]]:
        """Its steps as epochs of about so many bytes, each with the number of steps up to its end."""
        nbytes = sum(array.dtype.itemsize * int(np.prod(array.shape[1:])) for array in self._arrays.values())
        at_once = max(1, max_bytes // max(1, nbytes))
        for start in range(0, self.nsteps, at_once):
            stop = min(start + at_once, self.nsteps)
            steps = {name: self._rows(name, array[start:stop]) for name, array in self._arrays.items()}
            yield stop, self.ensemble.epoch(steps, self._state if stop == self.nsteps else None)

    def _rows(self, name: str, steps: Array) -> Array:
        """`(nsteps, ntemps, ...)` as `(nsteps, nchain, dim)`."""
        if name == BETA:
            if self.ensemble.ntemps == 1 and not steps.any():  # the sampler had none, and none were written
                steps = np.full(steps.shape, np.nan, steps.dtype)
            steps = np.repeat(steps, self.ensemble.nwalkers, axis=1)
        return steps.reshape(len(steps), self.ensemble.nchain, -1)


def _plain(value: Any) -> Any:
    """An attribute as it was before HDF5 had it: lists of text or numbers are arrays there."""
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


def _plain_number(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def import_eryn(  # noqa: D417  # the options are described where `DefaultBackend` is
    source: str | os.PathLike[str],
    outdir: str | os.PathLike[str],
    *,
    name: str = "mcmc",
    progress: Progress | None = None,
    burn: int = 0,
    outfile_fmt: str | None = None,
    epochs_per_file: int = EPOCHS_PER_FILE,
    inmem_epochs: int = 0,
    save_stats: bool = True,
    compression: Compression | None = None,
    compression_level: int | None = None,
    shuffle: bool = False,
    max_pending_bytes: int = MAX_PENDING_BYTES,
    max_pending_epochs: int = 10_000,
    max_device_bytes: int = 1 << 30,
    on_full: OnFull = "wait",
    retry_after_s: float = 0.1,
    retry_at_most_s: float = 30.0,
    warn_free_bytes: int = 1 << 30,
    exit_timeout_s: float = 60.0,
    flush_on_sigterm: bool = False,
    reader_threads: int = 4,
    diagnose: bool | Sequence[str] = False,
    trusted_classes: Sequence[str] = (),
    parameters: Parameters | None = None,
    chains: Mapping[str, int] | None = None,
    attributes: Mapping[str, object] | None = None,
    **unknown: Never,
) -> Imported:
    """Make a run of a file that Eryn's `HDFBackend` wrote. The file stays as it is; it may be larger than the memory.

    An `ErynBackend` of the run gives what the file's backend gives: chain, leaves, log-likelihoods, log-priors, betas,
    blobs, counts, moves, random state. Eryn needn't be installed.

    Args:
        source: the HDF5 file.
        outdir: the folder of the new run; there must be none in it.
        name: of the chain in the file, a group.
        progress: called with the number of steps that were taken over, and of all.

    All others are options of the new run: see `DefaultBackend`. Without `chains` or `parameters` it has those of the
    file.

    Raises:
        UnknownOption, TypeError, ValueError: see `DefaultBackend`.
        FileNotFoundError: there is no such file.
        KeyError: it has no chain of that name; the message has those there are.
        ValueError: the chain has no steps.
        RunExists: there is a run in `outdir` already.
        Damaged: the file can't be read, or contradicts itself.
        WriteFailed, NotWritten: the disk is full, or broken.

    What fails half-way leaves an unfinished run, which can be removed; no `ErynBackend` takes it for a whole one.
    """
    options = options_in(locals())
    with opened(source) as (path, file):
        chain = ErynChain(path, file, name)
        if chains is None:
            options["chains"] = chain.ensemble.chains
        if parameters is None:
            options["parameters"] = chain.ensemble.parameters({})
        backend: DefaultBackend[Any]
        with DefaultBackend(**options_for("eryn", chain.version, options)) as backend:
            for done, epoch in chain.epochs(MAX_BYTES):
                backend.ingest_dict(epoch, copy=False)
                if progress is not None:
                    progress(done, chain.nsteps)
            backend.flush(publish=True)
            nepochs = backend.status.epochs
    return Imported(str(path), os.fsdecode(outdir), nepochs, chain.nsteps)
