"""A run made of a file that emcee's `HDFBackend` wrote, some steps at a time.

Up the stream: such a file. Down the stream: `emcee/epochs` says how its steps lie in epochs, `blocking` stores them.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Never

import h5py
import numpy as np

from posterity._model.metadata import Parameters
from posterity._model.options import Compression, OnFull, options_in
from posterity._samplers.emcee.epochs import Blobs, Ensemble, WalkersState
from posterity._samplers.step_buffer import MAX_BYTES
from posterity._samplers.step_run import EPOCHS_PER_FILE
from posterity._writing.blocking import DefaultBackend
from posterity.errors import Damaged

from .imported import MAX_PENDING_BYTES, Imported, Progress, opened, options_for


def import_emcee(  # noqa: D417  # the options are described where `DefaultBackend` is
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
    """Make a run of a file that emcee's `HDFBackend` wrote. The file stays as it is; it may be larger than the memory.

    An `EmceeBackend` of the run gives what the file's backend gives: chain, log-probabilities, blobs, accepted counts,
    random state. A sampler goes on from it as from the file. emcee needn't be installed.

    Args:
        source: the HDF5 file.
        outdir: the folder of the new run; there must be none in it.
        name: of the chain in the file, a group.
        progress: called with the number of steps that were taken over, and of all.

    All others are options of the new run: see `DefaultBackend`.

    Raises:
        UnknownOption, TypeError, ValueError: see `DefaultBackend`.
        FileNotFoundError: there is no such file.
        KeyError: it has no chain of that name; the message has those there are.
        ValueError: the chain has no steps.
        NotStorable: its blobs can't be stored (a `TypeError`).
        RunExists: there is a run in `outdir` already.
        Damaged: the file can't be read, or contradicts itself.
        WriteFailed, NotWritten: the disk is full, or broken.

    What fails half-way leaves an unfinished run, which can be removed; no `EmceeBackend` takes it for a whole one.
    """
    options = options_in(locals())
    with opened(source) as (path, file):
        chain = _EmceeChain(path, file, name)
        nepochs = chain.store(options_for("emcee", chain.version, options), progress)
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

    def store(self, options: dict[str, Any], progress: Progress | None) -> int:
        """Make a run of it; returns how many epochs that has."""
        nbytes = sum(array.dtype.itemsize * int(np.prod(array.shape[1:])) for array in self._arrays.values())
        at_once = max(1, MAX_BYTES // max(1, nbytes))
        backend: DefaultBackend[Any]
        with DefaultBackend(**options) as backend:
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
