"""Giving back what a run takes on disk and needs no more: burned samples in files, history in the journal.

The writer does nearly all of that by itself when a run is flushed or closed. What is left to do here is what a process
that was killed left undone, and a journal that isn't long enough yet for the writer to write it anew.

Up the stream: `blocking` opens the run and closes it. Down the stream: `posterity compact`.
"""

import os
from pathlib import Path
from typing import Any

import msgspec

from posterity._store import journal
from posterity._store.catalog import replayed
from posterity._store.journal import Journal
from posterity._store.lock import Lock
from posterity._system.disk import Disk
from posterity._writing.blocking import DefaultBackend

from .run_info import run_info


class Compaction(msgspec.Struct, frozen=True):
    """What `compact` gave back: the sizes in bytes of all HDF5 files and of the journal, before and after."""

    folder: str
    file_bytes_before: int
    file_bytes: int
    journal_bytes_before: int
    journal_bytes: int

    @property
    def saved_bytes(self) -> int:
        """How many bytes were given back; below 0 if a file that was filling up was published and had none to spare."""
        return self.file_bytes_before + self.journal_bytes_before - self.file_bytes - self.journal_bytes

    def __str__(self) -> str:
        return f"{self.folder}: {self.saved_bytes / 1e6:.3f} MB saved, {self.file_bytes / 1e6:.3f} MB in files now"


def compact(outdir: str | os.PathLike[str]) -> Compaction:
    """Write files anew without what the burn took, publish one that was filling up, and shorten the journal.

    What is in the run stays as it is. The cost is reading and writing the one file that the burn ends in.

    Returns:
        The sizes before and after; the new state survives a power cut.

    Raises:
        FileNotFoundError: there is no run in the folder.
        RunLocked: somebody writes it.
        Damaged: the journal is damaged; see `repair`.
        WriteFailed, NotWritten: the disk is full, or broken.
    """
    before = run_info(outdir)
    backend: DefaultBackend[Any]
    with DefaultBackend(outdir=outdir, epochs_per_file=before.epochs_per_file) as backend:
        backend.flush(publish=True)
    _shorten(Disk(Path(os.fsdecode(outdir))))
    after = run_info(outdir)
    return Compaction(before.folder, before.file_bytes, after.file_bytes, before.journal_bytes, after.journal_bytes)


def _shorten(disk: Disk) -> None:
    """Write the journal anew, if it says anything twice."""
    disk.enter(make=False)
    lock = Lock(disk, "")
    held = None
    try:
        lock.acquire()
        held = Journal.held(disk)
        data = journal.read(disk)
        catalog = replayed(journal.decode(data)[0]) if data is not None else None
        if data is None or catalog is None:
            return
        records = list(catalog.records())
        header = journal.encode_header()
        if len(header) + len(journal.encode_batch(records, len(header))) < len(data):
            Journal.create(disk, records, takes_packed=journal.version_of(data) == journal.VERSION).close()
    finally:
        if held is not None:
            held.close()
        lock.release()
        disk.leave()
