"""The rows of the table: each is a function, run in a process of its own, that gives some figures."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from posterity import DefaultBackend
from posterity._model.options import parse_options
from posterity._system.disk import Disk
from posterity._writing.service import Service

from .measure import Figure


class Bench:
    """Where a row is measured, and how thoroughly."""

    def __init__(self, folder: Path, *, is_quick: bool) -> None:
        self.folder = folder
        self.is_quick = is_quick
        self.repetitions = 5 if is_quick else 9
        self._nfolders = 0

    def new_folder(self) -> Path:
        """A place where nothing is yet."""
        self._nfolders += 1
        return self.folder / f"run-{self._nfolders}"

    @staticmethod
    def backend_on(disk: Disk, **options: object) -> DefaultBackend:
        """A backend that writes to a given disk."""
        return DefaultBackend._of(Service(parse_options(0, disk.folder, options), disk))


class Row(msgspec.Struct, frozen=True):
    """`without`: the optimisations that the row measures; with one of them switched off it must fall short."""

    name: str
    what: str
    run: Callable[[Bench], list[Figure]]
    without: tuple[str, ...]


ROWS: dict[str, Row] = {}


def row(name: str, *, without: tuple[str, ...] = ()) -> Callable[..., Callable[..., list[Figure]]]:
    """Make a function a row of the table."""

    def note(function: Callable[[Bench], list[Figure]]) -> Callable[[Bench], list[Figure]]:
        assert function.__doc__
        ROWS[name] = Row(name, function.__doc__, function, without)
        return function

    return note


def run(name: str, folder: Path | None, *, is_quick: bool) -> list[Figure]:
    """Run one row, in a folder that is gone after it."""
    where = Path(tempfile.mkdtemp(prefix="posterity-bench-", dir=folder))
    try:
        return ROWS[name].run(Bench(where, is_quick=is_quick))
    finally:
        shutil.rmtree(where, ignore_errors=True)
