"""Runs made from what other stores wrote, epoch by epoch.

Up the stream: `singlefile` reads others' files, `backend` stores what was in them. Down the stream: `posterity import`.
"""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import msgspec
import numpy as np

from .backend import DefaultBackend
from .ensemble import Blobs, Ensemble, WalkersState
from .errors import Damaged, PosterityError
from .erynfile import ErynChain, eryn_chains
from .file_names import DEFAULT_FMT, file_pattern
from .steps import MAX_BYTES
from .walkers import EPOCHS_PER_FILE

Progress = Callable[[int, int], None]
_MAX_PENDING_BYTES = 16 * MAX_BYTES
_PREFIX = "epoch_"


class Imported(msgspec.Struct, frozen=True):
    """What an import made. `first_index`: the index that its first epoch had in the source."""

    source: str
    outdir: str
    epochs: int
    samples: int
    first_index: int = 0

    def __str__(self) -> str:
        epochs = "1 epoch" if self.epochs == 1 else f"{self.epochs} epochs"
        return f"{self.outdir}: {epochs}, {self.samples} samples, from {self.source}"


def import_jexplore(
    source: str | os.PathLike[str],
    outdir: str | os.PathLike[str],
    *,
    outfile_fmt: str = DEFAULT_FMT,
    progress: Progress | None = None,
    **options: Any,
) -> Imported:
    """Make a run of a folder that jexplore's backend wrote. The folder stays as it is.

    Epochs keep their order, and all that is in them. What jexplore burned is gone: then the run's epoch 0 is the
    first one that is left, and its burn is 0; `metadata.attributes["first_epoch"]` is the index that it had. An epoch
    that was in jexplore's memory only is in no file.

    Args:
        source: the folder.
        outdir: the folder of the new run; there must be none in it.
        outfile_fmt: how jexplore named its files.
        progress: called with the number of epochs that were taken over, and of all.
        options: of the new run, as `DefaultBackend` takes them.

    Raises:
        FileNotFoundError: there is no file with epochs in the folder.
        RunExists: there is a run in `outdir` already.
        Damaged: a file can't be read, or an epoch between others is missing.
        WriteFailed, NotWritten: the disk is full, or broken. The unfinished run is there and can be removed.
    """
    folder = Path(os.fsdecode(source))
    where = _find_epochs(folder, outfile_fmt)
    backend: DefaultBackend[Any]
    attributes = {**options.pop("attributes", {}), "imported_from": "jexplore", "first_epoch": min(where)}
    with DefaultBackend(outdir=outdir, **options, mode="x", attributes=attributes) as backend:
        for done, (index, path) in enumerate(sorted(where.items()), 1):
            backend.ingest(path, index)
            if progress is not None:
                progress(done, len(where))
        backend.flush(publish=True)
        samples = backend.status.samples
    return Imported(str(folder), os.fsdecode(outdir), len(where), samples, min(where))


def import_emcee(
    source: str | os.PathLike[str],
    outdir: str | os.PathLike[str],
    *,
    name: str = "mcmc",
    progress: Progress | None = None,
    **options: Any,
) -> Imported:
    """Make a run of a file that emcee's `HDFBackend` wrote. The file stays as it is; it may be larger than the memory.

    An `EmceeBackend` of the run gives what the file's backend gives: chain, log-probabilities, blobs, accepted counts,
    random state. A sampler goes on from it as from the file. emcee needn't be installed.

    Args:
        source: the HDF5 file.
        outdir: the folder of the new run; there must be none in it.
        name: of the chain in the file, a group.
        progress: called with the number of steps that were taken over, and of all.
        options: of the new run, as `DefaultBackend` takes them.

    Raises:
        FileNotFoundError: there is no such file.
        KeyError: it has no chain of that name; the message has those there are.
        ValueError: the chain has no steps.
        NotStorable: its blobs can't be stored (a `TypeError`).
        RunExists: there is a run in `outdir` already.
        Damaged: the file can't be read, or contradicts itself.
        WriteFailed, NotWritten: the disk is full, or broken.

    What fails half-way leaves an unfinished run, which can be removed; no `EmceeBackend` takes it for a whole one.
    """
    path = Path(os.fsdecode(source))
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "there is no file", str(path))
    options = {"epochs_per_file": EPOCHS_PER_FILE, "max_pending_bytes": _MAX_PENDING_BYTES, **options}
    try:
        # Without a lock: emcee's sampler may have the file, and one that can't open it again dies.
        with h5py.File(path, "r", locking=False) as file:
            chain = _EmceeChain(path, file, name)
            options["attributes"] = {**options.pop("attributes", {}), "imported_from": "emcee", **chain.version}
            nepochs = chain.store(outdir, options, progress)
    except PosterityError:
        raise
    except (OSError, RuntimeError) as error:
        raise Damaged(f"{path} can't be read: {error}") from error
    return Imported(str(path), os.fsdecode(outdir), nepochs, chain.nsteps)


def import_eryn(
    source: str | os.PathLike[str],
    outdir: str | os.PathLike[str],
    *,
    name: str = "mcmc",
    progress: Progress | None = None,
    **options: Any,
) -> Imported:
    """Make a run of a file that Eryn's `HDFBackend` wrote. The file stays as it is; it may be larger than the memory.

    An `ErynBackend` of the run gives what the file's backend gives: chain, leaves, log-likelihoods, log-priors, betas,
    blobs, counts, moves, random state. Eryn needn't be installed.

    Args:
        source: the HDF5 file.
        outdir: the folder of the new run; there must be none in it.
        name: of the chain in the file, a group.
        progress: called with the number of steps that were taken over, and of all.
        options: of the new run, as `DefaultBackend` takes them.

    Raises:
        FileNotFoundError: there is no such file.
        KeyError: it has no chain of that name; the message has those there are.
        ValueError: the chain has no steps.
        RunExists: there is a run in `outdir` already.
        Damaged: the file can't be read, or contradicts itself.
        WriteFailed, NotWritten: the disk is full, or broken.

    What fails half-way leaves an unfinished run, which can be removed; no `ErynBackend` takes it for a whole one.
    """
    path = Path(os.fsdecode(source))
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "there is no file", str(path))
    options = {"epochs_per_file": EPOCHS_PER_FILE, "max_pending_bytes": _MAX_PENDING_BYTES, **options}
    try:
        with h5py.File(path, "r", locking=False) as file:  # without a lock: Eryn's sampler may have the file
            chain = ErynChain(path, file, name)
            options["attributes"] = {**options.pop("attributes", {}), "imported_from": "eryn", **chain.version}
            named = {"chains": chain.ensemble.chains, "parameters": chain.ensemble.parameters({})}
            backend: DefaultBackend[Any]
            with DefaultBackend(outdir=outdir, **{**named, **options}, mode="x") as backend:
                for done, epoch in chain.epochs(MAX_BYTES):
                    backend.ingest_dict(epoch, copy=False)
                    if progress is not None:
                        progress(done, chain.nsteps)
                backend.flush(publish=True)
                nepochs = backend.status.epochs
    except PosterityError:
        raise
    except (OSError, RuntimeError) as error:
        raise Damaged(f"{path} can't be read: {error}") from error
    return Imported(str(path), os.fsdecode(outdir), nepochs, chain.nsteps)


class _EmceeChain:
    """One chain in a file of `HDFBackend`'s, checked."""

    def __init__(self, path: Path, file: Any, name: str) -> None:
        names = emcee_chains(file)
        if name not in names:
            raise KeyError(f"{path} has no chain {name!r} of emcee's; it has {', '.join(map(repr, names)) or 'none'}")
        group = file[name]
        self._arrays = {"p": group["chain"], "lp": group["log_prob"]}
        self.nsteps = int(group.attrs["iteration"])
        self.version = {"emcee_version": str(group.attrs["version"])} if "version" in group.attrs else {}
        nwalkers, ndim = int(group.attrs["nwalkers"]), int(group.attrs["ndim"])
        if self.nsteps < 1:
            raise ValueError(f"{path}: the chain {name!r} has no steps")
        blobs = None
        if group.attrs["has_blobs"]:
            self._arrays["blobs"] = group["blobs"]
            blobs = Blobs.like(group["blobs"][:1][0])
        self.ensemble = Ensemble(nwalkers, ndim, self._arrays["p"].dtype, blobs)
        for array, (shape, _) in self.ensemble.shapes.items():
            if array in self._arrays:
                self._check(f"{path}: {name}/{array}", self._arrays[array].shape, shape[: 1 if array == "blobs" else 2])
        accepted = np.asarray(group["accepted"][...], float)
        if accepted.shape != (nwalkers,):
            raise Damaged(f"{path}: {name}/accepted has shape {accepted.shape} and there are {nwalkers} walkers")
        self._state = WalkersState(_random_state(group.attrs), accepted)

    def _check(self, what: str, found: tuple[int, ...], step: tuple[int, ...]) -> None:
        if len(found) != 1 + len(step) or found[0] < self.nsteps or found[1:] != step:
            raise Damaged(f"{what} has shape {found}; {self.nsteps} steps of {step} are expected")

    def store(self, outdir: str | os.PathLike[str], options: dict[str, Any], progress: Progress | None) -> int:
        """Make a run of it; returns how many epochs that has."""
        nbytes = sum(array.dtype.itemsize * int(np.prod(array.shape[1:])) for array in self._arrays.values())
        at_once = max(1, MAX_BYTES // max(1, nbytes))
        backend: DefaultBackend[Any]
        with DefaultBackend(outdir=outdir, **options, mode="x") as backend:
            for start in range(0, self.nsteps, at_once):
                stop = min(start + at_once, self.nsteps)
                steps = {name: array[start:stop] for name, array in self._arrays.items()}
                backend.ingest_dict(
                    self.ensemble.epoch(steps, self._state if stop == self.nsteps else None), copy=False
                )
                if progress is not None:
                    progress(stop, self.nsteps)
            backend.flush(publish=True)
            return backend.status.epochs


def _random_state(attributes: Any) -> tuple[object, ...] | None:
    """As emcee's generator gave it; h5py makes NumPy's numbers of Python's."""
    names = sorted(name for name in attributes if name.startswith("random_state_"))
    state = tuple(attributes[name] for name in names)
    return tuple(part.item() if isinstance(part, np.generic) else part for part in state) or None


def emcee_chains(file: Any) -> list[str]:  # an h5py.File
    """The names of the chains in a file of `HDFBackend`'s."""
    return [name for name, group in file.items() if isinstance(group, h5py.Group) and _is_emcees(group)]


def _is_emcees(group: Any) -> bool:
    arrays = all(isinstance(group.get(name), h5py.Dataset) for name in ("chain", "log_prob", "accepted"))
    return arrays and {"iteration", "nwalkers", "ndim", "has_blobs"} <= set(group.attrs)


def importer_of(source: str | os.PathLike[str]) -> Callable[..., Imported]:
    """What makes a run of a source, by what that is: a folder of jexplore's, a file of emcee's or Eryn's.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: it is nothing that is known.
    """
    path = Path(os.fsdecode(source))
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, "there is nothing to import", str(path))
    if path.is_dir():
        return import_jexplore
    if h5py.is_hdf5(path):
        with h5py.File(path, "r", locking=False) as file:
            if emcee_chains(file):
                return import_emcee
            if eryn_chains(file):
                return import_eryn
    raise ValueError(f"{path} is neither a folder of jexplore's nor a file of emcee's or Eryn's")


def _find_epochs(folder: Path, fmt: str) -> dict[int, Path]:
    """Which epoch is in which file."""
    if not folder.is_dir():
        raise FileNotFoundError(errno.ENOENT, "there is no folder", str(folder))
    pattern = file_pattern(fmt)
    where: dict[int, Path] = {}
    for path in sorted(path for path in folder.iterdir() if pattern.fullmatch(path.name)):
        for index in epoch_indices(path):
            if index in where:
                raise Damaged(f"epoch {index} is both in {where[index]} and in {path}; take one of them away")
            where[index] = path
    if not where:
        raise FileNotFoundError(errno.ENOENT, f"no file named like {fmt!r} holds an epoch", str(folder))
    missing = sorted(set(range(min(where), max(where))) - set(where))
    if missing:
        some = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
        raise Damaged(f"{folder} lacks the epochs {some}, which are between others; import files of a whole run")
    return where


def epoch_indices(path: Path) -> list[int]:
    """The indices of the epochs in an HDF5 file; empty if it has none.

    Raises:
        Damaged: it isn't an HDF5 file, or can't be read.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            numbers = [name[len(_PREFIX) :] for name in file if name.startswith(_PREFIX)]
    except (OSError, RuntimeError) as error:
        raise Damaged(f"{path} can't be read as HDF5: {error}") from error
    return sorted(int(number) for number in numbers if number.isascii() and number.isdigit())
