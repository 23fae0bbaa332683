"""A run made of a folder that jexplore's backend wrote, epoch by epoch.

Up the stream: `single_file` reads jexplore's files. Down the stream: `blocking` stores what was in them.
"""

import errno
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Never

import h5py

from posterity._model.file_names import DEFAULT_FMT, file_pattern
from posterity._model.metadata import Parameters
from posterity._model.options import Compression, OnFull, options_in
from posterity._writing.blocking import DefaultBackend
from posterity.errors import Damaged

from .imported import Imported, Progress, options_for

_PREFIX = "epoch_"


def import_jexplore(  # noqa: D417  # the options are described where `DefaultBackend` is
    source: str | os.PathLike[str],
    outdir: str | os.PathLike[str],
    *,
    outfile_fmt: str = DEFAULT_FMT,
    progress: Progress | None = None,
    burn: int = 0,
    epochs_per_file: int = 1,
    inmem_epochs: int = 0,
    save_stats: bool = True,
    compression: Compression | None = None,
    compression_level: int | None = None,
    shuffle: bool = False,
    max_pending_bytes: int = 1 << 30,
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
    """Make a run of a folder that jexplore's backend wrote. The folder stays as it is.

    Epochs keep their order, and all that is in them. What jexplore burned is gone: then the run's epoch 0 is the
    first one that is left, and its burn is 0; `metadata.attributes["first_epoch"]` is the index that it had. An epoch
    that was in jexplore's memory only is in no file.

    Args:
        source: the folder.
        outdir: the folder of the new run; there must be none in it.
        outfile_fmt: how jexplore named its files.
        progress: called with the number of epochs that were taken over, and of all.

    All others are options of the new run, whose files have the default names: see `DefaultBackend`.

    Raises:
        UnknownOption, TypeError, ValueError: see `DefaultBackend`.
        FileNotFoundError: there is no file with epochs in the folder.
        RunExists: there is a run in `outdir` already.
        Damaged: a file can't be read, or an epoch between others is missing.
        WriteFailed, NotWritten: the disk is full, or broken. The unfinished run is there and can be removed.
    """
    options = {**options_in(locals()), "outfile_fmt": None}  # the one that was given is jexplore's
    folder = Path(os.fsdecode(source))
    where = _find_epochs(folder, outfile_fmt)
    backend: DefaultBackend[Any]
    with DefaultBackend(**options_for("jexplore", {"first_epoch": min(where)}, options)) as backend:
        for done, (index, path) in enumerate(sorted(where.items()), 1):
            backend.ingest(path, index)
            if progress is not None:
                progress(done, len(where))
        backend.flush(publish=True)
        samples = backend.status.samples
    return Imported(str(folder), os.fsdecode(outdir), len(where), samples, min(where))


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
