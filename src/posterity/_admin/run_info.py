"""What a run is, told from its folder alone: how long, how large, whose, and who writes it. Nobody is disturbed.

Up the stream: the journal, the lock, the names in the folder. Down the stream: `posterity info`, `ls` and `epochs`.
"""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from posterity._format.layout import layout_of
from posterity._format.samples import sample_shapes
from posterity._model.file_names import JOURNAL, file_name
from posterity._model.metadata import Metadata
from posterity._store import journal
from posterity._store.catalog import Catalog, replayed
from posterity._store.lock import writer_of
from posterity._system.disk import Disk


class Name(msgspec.Struct, frozen=True):
    """One name of a run's samples, arrays `(nchain, dim, nsamples)`."""

    name: str
    dim: int
    dtype: str


class RunWriter(msgspec.Struct, frozen=True):
    """Who writes a run. `since`: seconds since 1970."""

    host: str
    pid: int
    since: float

    def __str__(self) -> str:
        who = f"process {self.pid}" if self.pid else "a process that doesn't say its number"
        return f"{who} on {self.host}"


class RunInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a run is, at one moment. Times in seconds since 1970, sizes in bytes.

    `epochs`, `samples`: all that are on disk or were, burned ones too; `samples` of each chain. `epochs_left`,
    `samples_left`: without what the burn took. `array_bytes`: the arrays of the epochs that are left, as they were
    ingested. `file_bytes`: the HDF5 files; `dead_bytes`: about how much of these the burn took and `compact` gives
    back. `began_at` None: nobody knows any more, the journal was lost once. `changed_at`: the last write.
    `samples_per_s`, `bytes_per_s`: on average from the first to the last write. `writer` None: nobody writes it now.
    """

    folder: str
    run_id: str
    format_version: int
    generation: int
    began_at: float | None
    changed_at: float
    epochs: int
    epochs_left: int
    samples: int
    samples_left: int
    burn: int
    nchain: int
    names: tuple[Name, ...]
    outfile_fmt: str
    epochs_per_file: int
    files: int
    file_bytes: int
    journal_bytes: int
    array_bytes: int
    dead_bytes: int
    compression: tuple[str, ...]
    samples_per_s: float | None
    bytes_per_s: float | None
    free_bytes: int
    metadata: Metadata
    writer: RunWriter | None


class EpochInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One epoch of a run. `first`: the position of its first sample in the run; `burned`: how many samples of it.

    `nbytes`: of its arrays, as they were ingested. `file` None: the burn took it, and no file has it any more.
    """

    index: int
    first: int
    nsamples: int
    burned: int
    nbytes: int
    file: str | None


def run_info(outdir: str | os.PathLike[str]) -> RunInfo:
    """Tell what a run is, from its journal and the sizes of its files. No lock is taken, no sample is read.

    Raises:
        FileNotFoundError: there is no run in the folder.
        Damaged: its journal is damaged.
        NewerFormat: a later posterity wrote it.
    """
    disk = _entered(outdir)
    try:
        return _told(disk)
    finally:
        disk.leave()


def run_epochs(outdir: str | os.PathLike[str]) -> list[EpochInfo]:
    """Tell of each epoch of a run, in their order; see `run_info`."""
    disk = _entered(outdir)
    try:
        catalog = replayed(journal.decode(_journal_of(disk))[0])
    finally:
        disk.leave()
    burn, fmt = catalog.registry().burn, catalog.began.outfile_fmt
    found = []
    for index, place in enumerate(catalog.places):
        entry = catalog.entry(index)
        name = None if place is None else file_name(fmt, place.number)
        burned = entry.burned(burn)
        found.append(
            EpochInfo(
                index=index,
                first=entry.first,
                nsamples=entry.nsamples,
                burned=burned,
                nbytes=entry.nbytes,
                file=name,
            )
        )
    return found


def find_runs(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Give the run folders at and below a folder, in the order of their names. Links and hidden folders are left out.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    top = Path(os.fsdecode(folder))
    if not top.is_dir():
        raise FileNotFoundError(errno.ENOENT, "there is no folder", str(top))
    for path, folders, files in os.walk(top):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if JOURNAL in files:
            yield Path(path)


def _entered(outdir: str | os.PathLike[str]) -> Disk:
    disk = Disk(Path(os.fsdecode(outdir)))
    if not disk.is_there():
        raise FileNotFoundError(errno.ENOENT, "there is no folder", str(disk.folder))
    disk.enter(make=False)
    return disk


def _journal_of(disk: Disk) -> bytes:
    data = journal.read(disk)
    if data is None:
        raise FileNotFoundError(errno.ENOENT, "there is no run", str(disk.folder))
    return data


def _told(disk: Disk) -> RunInfo:
    data = _journal_of(disk)
    changed_at = last_change(disk)
    catalog = replayed(journal.decode(data)[0])
    began, registry = catalog.began, catalog.registry()
    nchain, names = _names_of(catalog)
    left = registry.entries[registry.first_left :]
    seconds = changed_at - began.began_at if began.began_at else 0.0
    last = registry.entries[-1] if registry.entries else None
    nbytes = last.before + last.nbytes if last is not None else 0
    sizes = _file_sizes(disk, catalog)
    return RunInfo(
        folder=str(disk.folder),
        run_id=began.run_id.hex(),
        format_version=journal.version_of(data),
        generation=began.generation,
        began_at=began.began_at or None,
        changed_at=changed_at,
        epochs=registry.next_index,
        epochs_left=len(left),
        samples=registry.nsamples,
        samples_left=registry.nsamples_left,
        burn=registry.burn,
        nchain=nchain,
        names=names,
        outfile_fmt=began.outfile_fmt,
        epochs_per_file=registry.series[-1].epochs_per_file if registry.series else 1,
        files=len(sizes),
        file_bytes=sum(sizes),
        journal_bytes=len(data),
        array_bytes=sum(entry.nbytes for entry in left),
        dead_bytes=_dead_bytes(catalog),
        compression=_compression_of(catalog),
        samples_per_s=registry.nsamples / seconds if seconds > 0 else None,
        bytes_per_s=nbytes / seconds if seconds > 0 else None,
        free_bytes=disk.free_bytes(),
        metadata=registry.metadata,
        writer=run_writer(disk),
    )


def run_writer(disk: Disk) -> RunWriter | None:
    """Who writes the run in a folder, which is entered; None if nobody does."""
    holder = writer_of(disk)
    return None if holder is None else RunWriter(holder.host, holder.pid, holder.since)


def last_change(disk: Disk) -> float:
    """When the run in a folder, which is entered, was written last, in seconds since 1970."""
    fd = disk.open(JOURNAL)
    try:
        return disk.changed_at(fd)
    finally:
        disk.close(fd)


def _names_of(catalog: Catalog) -> tuple[int, tuple[Name, ...]]:
    """The number of chains, and the names of the newest epoch that is in a file."""
    for place in reversed(catalog.places):
        if place is not None:
            nchain, shapes = sample_shapes(layout_of(catalog.specs[place.layout]))
            return nchain, tuple(Name(name, dim, dtype) for name, (dim, dtype) in shapes.items())
    return 0, ()


def _file_sizes(disk: Disk, catalog: Catalog) -> list[int]:
    """The sizes of the run's files, whatever their names are just now; one that is missing isn't counted."""
    there = set(disk.names())
    sizes = []
    for number in catalog.numbers():
        for name in catalog.names_of(number, catalog.rewrites.get(number, 0)):
            if name in there:
                try:
                    sizes.append(disk.size_of(name))
                except FileNotFoundError:
                    continue  # renamed just now
                break
    return sizes


def _dead_bytes(catalog: Catalog) -> int:
    """About how much of the files is of samples that were burned; the newest epoch keeps one sample, to go on from."""
    burn, dead = catalog.registry().burn, 0
    for index, place in enumerate(catalog.places):
        entry = catalog.entry(index)
        if entry.first >= burn:
            break
        if place is not None:
            keeps = index == len(catalog.places) - 1 and entry.is_burned(burn)
            burned = entry.burned(burn) - (1 if keeps else 0)
            dead += entry.nbytes * max(0, burned - place.cut) // max(1, entry.nsamples)
    return dead


def _compression_of(catalog: Catalog) -> tuple[str, ...]:
    packings = [layout_of(spec).packing for spec in catalog.packed_specs()]
    return tuple(dict.fromkeys(str(packing) for packing in packings if packing is not None))
