"""Looking at every byte of a run that matters: the journal, each checksum, and what HDF5 readers go by.

Up the stream: the run folder. Down the stream: whoever doubts a disk; `repair`.
"""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from posterity._format.file_reader import Reader
from posterity._format.frame import Stamp
from posterity._model.file_names import DEFAULT_FMT, JOURNAL, candidates, file_name, numbered
from posterity._store import journal
from posterity._store.catalog import Catalog, replayed
from posterity._store.file_lookup import open_place
from posterity._store.records import Place
from posterity._system.disk import Disk
from posterity.errors import Damaged


class Problem(msgspec.Struct, frozen=True):
    """Something that isn't as it was written. `name`: the file in the run folder; `epoch`: its index, if it is one."""

    name: str
    what: str
    epoch: int | None = None

    def __str__(self) -> str:
        name = "" if self.what.startswith(self.name) else f"{self.name}: "
        epoch = "" if self.epoch is None else f"epoch {self.epoch}: "
        return f"{epoch}{name}{self.what}"


class Findings(msgspec.Struct, frozen=True):
    """What `verify` saw. `nbytes`: of arrays, each compared with its checksum."""

    folder: str
    nepochs: int
    nbytes: int
    problems: tuple[Problem, ...]

    @property
    def is_good(self) -> bool:
        """Whether all is as it was written."""
        return not self.problems

    def __str__(self) -> str:
        seen = f"{self.folder}: {self.nepochs} epochs, {self.nbytes / 1e6:.1f} MB"
        if self.is_good:
            return f"{seen}: all is as it was written"
        return "\n".join([f"{seen}: {len(self.problems)} problems", *map(str, self.problems)])


def verify(outdir: str | os.PathLike[str], *, progress: Callable[[int, int], None] | None = None) -> Findings:
    """Look at all of a run: the journal, every checksum, the headers that HDF5 reads, and whose the files are.

    No lock is taken and nothing is written. It costs reading all of the run once. What a writer changes meanwhile isn't
    a problem; nor is an epoch that the journal doesn't know yet.

    `progress`: called with the number of epochs that were looked at, and of all.

    Raises:
        FileNotFoundError: there is no such folder, or no trace of a run in it.
        NewerFormat: a later posterity wrote it.
    """
    disk = Disk(Path(os.fsdecode(outdir)))
    if not disk.is_there():
        raise FileNotFoundError(f"there is no folder {disk.folder}")
    disk.enter(make=False)
    try:
        return _Inspection(disk, progress).findings()
    finally:
        disk.leave()


class _Inspection:
    """One look at a run."""

    def __init__(self, disk: Disk, progress: Callable[[int, int], None] | None) -> None:
        self._disk = disk
        self._progress = progress
        self._problems: list[Problem] = []
        self._burn = 0
        self._nepochs = 0
        self._nbytes = 0

    def findings(self) -> Findings:
        try:
            catalog = self._read_journal()
        except Damaged as error:
            self._problems.append(Problem(JOURNAL, str(error)))
            catalog = None
        if catalog is not None:
            self._burn = catalog.registry().burn
            n = len(catalog.places)
            for index in range(n):
                self._look_at_epoch(catalog, index)
                if self._progress is not None:
                    self._progress(index + 1, n)
            self._look_at_files(catalog)
        return Findings(str(self._disk.folder), self._nepochs, self._nbytes, tuple(self._problems))

    def _read_journal(self) -> Catalog | None:
        data = journal.read(self._disk)
        if data is None:
            if not candidates(self._disk.names(), DEFAULT_FMT):
                raise FileNotFoundError(errno.ENOENT, "there is no run", str(self._disk.folder))
            self._problems.append(Problem(JOURNAL, "there is no journal"))
            return None
        return replayed(journal.decode(data)[0])

    def _look_at_epoch(self, catalog: Catalog, index: int) -> None:
        place = catalog.places[index]
        if place is None:
            if not catalog.entry(index).is_burned(self._burn):
                self._problems.append(Problem(JOURNAL, "it is in no file, and wasn't burned", index))
            return
        try:
            self._check_epoch(catalog, index, place)
        except FileNotFoundError:
            self._note(catalog, index, place, "its file is missing")
        except OSError as error:
            self._note(catalog, index, place, str(error))
        else:
            self._nepochs += 1

    def _note(self, catalog: Catalog, index: int, place: Place, what: str) -> None:
        """Note a problem, unless somebody changed the epoch's file meanwhile: then look there."""
        now = self._read_journal()
        is_same_run = now is not None and now.began == catalog.began
        if now is None or not is_same_run or now.places[index] == place:
            name = file_name(catalog.began.outfile_fmt, place.number)
            if now is None or is_same_run:
                self._problems.append(Problem(name, what, index))
        elif now.places[index] is not None:
            self._look_at_epoch(now, index)

    def _check_epoch(self, catalog: Catalog, index: int, place: Place) -> None:
        """Compare every checksum of an epoch, and its headers byte by byte."""
        region, entry, began = catalog.region(place), catalog.entry(index), catalog.began
        with open_place(self._disk, catalog, place) as reader:
            arrays = [reader.read_array(region, i, verify=True) for i in range(len(region.layout.leaves))]
            self._nbytes += sum(array.nbytes for array in arrays)
            stamp = Stamp(began.run_id, began.generation, index, entry.first, entry.nsamples, place.cut)
            if not reader.has_head(region, stamp, arrays):
                raise Damaged(f"the headers at offset {place.base} aren't those that were written")

    def _look_at_files(self, catalog: Catalog) -> None:
        """Whether each file of the run can be opened as HDF5, and whose the others are."""
        places: dict[int, list[tuple[int, Place]]] = {}
        for i, place in enumerate(catalog.places):
            if place is not None:
                places.setdefault(place.number, []).append((i, place))
        for number, name in numbered(self._disk.names(), catalog.began.outfile_fmt).items():
            try:
                if number in places:
                    self._look_at_file(catalog, name, places[number])
                else:
                    self._look_at_stranger(catalog, name)
            except FileNotFoundError:
                continue  # taken away just now
            except OSError as error:
                self._problems.append(Problem(name, str(error)))

    def _look_at_file(self, catalog: Catalog, name: str, places: list[tuple[int, Place]]) -> None:
        with Reader.open(self._disk, name) as reader:
            head = reader.read_head()
            if head is None or head.run_id != catalog.began.run_id:
                raise Damaged("it isn't a file of this run, or its first bytes are damaged")
            regions = [(i, catalog.region(place)) for i, place in places]
            if head.rewrite == places[0][1].rewrite and not reader.is_sealed(regions):
                raise Damaged("HDF5 can't read it: its superblock or its root group isn't the one that was written")

    def _look_at_stranger(self, catalog: Catalog, name: str) -> None:
        """A file that the journal doesn't know may have come just now."""
        with Reader.open(self._disk, name) as reader:
            head = reader.read_head()
        if head is None or head.run_id != catalog.began.run_id:
            raise Damaged("it isn't a file of this run")
