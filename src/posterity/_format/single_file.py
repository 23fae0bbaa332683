"""Files of epochs by themselves, without a run around them: one that somebody names is read, `get_stats` writes one.

Up the stream: `file_reader` for our files, `foreign_hdf5` for others'. Down the stream: the faces' `read_epoch`.
"""

import os
from pathlib import Path

import numpy as np

from posterity._system.disk import Disk
from posterity.epoch import EpochDict
from posterity.errors import Damaged

from .file_header import FileHead
from .file_reader import Reader
from .file_writer import EpochFile
from .flatten import flatten, restore
from .foreign_hdf5 import choose_epoch, read_foreign_epoch
from .frame import Stamp
from .layout import layout_of
from .schema import encode_items


def read_epoch(fn: str | os.PathLike[str], iepoch: int = -1) -> EpochDict:
    """An epoch from a backend's file, ours or jexplore's, as a dict of arrays that are the caller's own.

    No run is opened, and nothing else in the folder is looked at.

    Args:
        fn: the file.
        iepoch: the epoch's index in the run; if negative, counted from the last *by index*.

    Raises:
        FileNotFoundError: there is no such file.
        IndexError: the file has no such epoch; the message names those it has.
        Damaged: the file is damaged, or isn't to be trusted.
    """
    path = Path(os.fsdecode(fn))
    disk = Disk(path.parent)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    disk.enter(make=False)
    try:
        with Reader.open(disk, path.resolve().name if path.is_symlink() else path.name) as reader:
            if reader.read_head() is not None:
                return _read_ours(reader, iepoch, str(path))
    finally:
        disk.leave()
    return read_foreign_epoch(path, iepoch)


def _read_ours(reader: Reader, iepoch: int, where: str) -> EpochDict:
    whole, damaged = reader.scan()
    frames = {frame.epoch: (base, frame) for base, frame in whole}
    if damaged and iepoch not in frames:
        raise Damaged(f"{where} is damaged at offset {damaged[0]}; the epochs {sorted(frames)} can be read by index")
    base, frame = frames[choose_epoch(list(frames), iepoch, where)]
    region = reader.region(base, frame)
    arrays = [reader.read_array(region, i, verify=True) for i in range(len(region.layout.leaves))]
    return restore(region.layout.items, arrays)


def save_epochs(path: Path, epochs: dict[str, EpochDict]) -> None:
    """Save dicts to an HDF5 file, each as the group of its name, in one step: whole, or not at all."""
    disk = Disk(path.parent)
    disk.enter()
    temporary = f".{path.name}.{os.getpid()}.new"
    try:
        file = EpochFile.create(disk, temporary, FileHead(bytes(16), 0, 0, 0))
        try:
            for name, data in epochs.items():
                items, leaves = flatten(data)
                arrays = [np.ascontiguousarray(leaf).reshape(leaf.shape) for leaf in leaves]
                index = int(name.partition("_")[2])
                file.append(Stamp(bytes(16), 0, index, 0, 1, 0), layout_of(encode_items(items)), arrays)
            file.seal()
            file.sync()
        finally:
            file.close()
        disk.replace(temporary, path.name)
        disk.sync_names()
    finally:
        disk.leave()
