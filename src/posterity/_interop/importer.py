"""Which import a source is for.

Up the stream: a path that a user gives. Down the stream: the imports.
"""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import h5py

from .import_emcee import emcee_chains, import_emcee
from .import_eryn import eryn_chains, import_eryn
from .import_jexplore import import_jexplore
from .imported import Imported


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
