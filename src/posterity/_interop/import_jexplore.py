"""A run made of a folder that jexplore's backend wrote, epoch by epoch.

Up the stream: `single_file` reads jexplore's files. Down the stream: `blocking` stores what was in them.
"""

import errno
import os
from pathlib import Path
from typing import Any

import h5py

from posterity._model.file_names import DEFAULT_FMT, file_pattern
from posterity._writing.blocking import DefaultBackend
from posterity.errors import Damaged

from .imported import Imported, Progress

_PREFIX = "epoch_"


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
