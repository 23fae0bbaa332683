"""What all imports share: what they tell, how they open a file that another program may have open, and their options.

Up the stream: files that others wrote. Down the stream: `import_emcee`, `import_eryn`, `import_jexplore`.
"""

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import msgspec

from posterity._samplers.step_buffer import MAX_BYTES
from posterity.errors import Damaged, PosterityError

Progress = Callable[[int, int], None]
MAX_PENDING_BYTES = 16 * MAX_BYTES


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


@contextmanager
def opened(source: str | os.PathLike[str]) -> Iterator[tuple[Path, Any]]:
    """A sampler's HDF5 file, an `h5py.File`, and its path. Errors of HDF5's, while it is read too, are said as ours.

    Raises:
        FileNotFoundError: there is no such file.
        Damaged: it can't be read.
    """
    path = Path(os.fsdecode(source))
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "there is no file", str(path))
    try:
        # Without a lock: the sampler may have the file, and one that can't open it again dies.
        with h5py.File(path, "r", locking=False) as file:
            yield path, file
    except PosterityError:
        raise
    except (OSError, RuntimeError) as error:
        raise Damaged(f"{path} can't be read: {error}") from error


def options_for(source: str, told: Mapping[str, object], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the run that is made: there must be none yet, and its attributes say where it comes from."""
    attributes = {**(options["attributes"] or {}), "imported_from": source, **told}
    return {**options, "mode": "x", "attributes": attributes}
