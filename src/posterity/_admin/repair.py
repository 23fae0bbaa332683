"""Making a damaged run one that opens again: the journal is written anew from the files, nothing is deleted.

Up the stream: `rebuild`, `lock`. Down the stream: who was told by an error, or by `verify`, that a run is damaged.
"""

import os
from collections import Counter
from pathlib import Path

import msgspec

from posterity._model.file_names import DEFAULT_FMT, JOURNAL, candidates, numbered, set_aside_name
from posterity._store import journal
from posterity._store.catalog import Catalog, replayed
from posterity._store.journal import Journal
from posterity._store.lock import Lock
from posterity._store.rebuild import Source, catalog_from_files, head_of, newest
from posterity._store.records import Began, Burned
from posterity._system.disk import Disk
from posterity.errors import Damaged


class Repairs(msgspec.Struct, frozen=True):
    """What `repair` did, and what it found lost; a sentence each."""

    done: tuple[str, ...]
    lost: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join([*self.done, *self.lost]) or "there was nothing to repair"


def repair(outdir: str | os.PathLike[str], *, outfile_fmt: str | None = None) -> Repairs:
    """Have a run open again: rebuild a journal that is damaged or lost, and set aside what isn't the run's.

    What is set aside gets `.aside` behind its name; nothing is deleted, and no file of epochs is changed. An epoch
    whose file is missing, or whose place in it is destroyed, stays in the run, and reading it raises `Damaged`; all
    others can be read. Damaged numbers stay as they are: `verify` names them.

    Args:
        outdir: the run folder.
        outfile_fmt: the names of its files, where the journal doesn't say.

    Returns:
        What was done. The new journal survives a power cut.

    Raises:
        FileNotFoundError: the folder holds no run.
        RunLocked: somebody writes it.
        NewerFormat: a later posterity wrote it.
    """
    disk = Disk(Path(os.fsdecode(outdir)))
    if not disk.is_there():
        raise FileNotFoundError(f"there is no folder {disk.folder}")
    disk.enter(make=False)
    lock = Lock(disk, "")
    held = None
    try:
        lock.acquire()
        held = Journal.held(disk)
        return _Workshop(disk, outfile_fmt).repair()
    finally:
        if held is not None:
            held.close()
        lock.release()
        disk.leave()


class _Workshop:
    """One repair."""

    def __init__(self, disk: Disk, fmt: str | None) -> None:
        self._disk = disk
        self._fmt = fmt
        self._done: list[str] = []
        self._lost: list[str] = []

    def repair(self) -> Repairs:
        data = journal.read(self._disk)
        known, is_good = _known(data)
        fmt = known.began.outfile_fmt if known is not None else self._fmt or DEFAULT_FMT
        names = self._disk.names()
        sources = [Source(name, head) for name in candidates(names, fmt) if (head := head_of(self._disk, name))]
        if known is not None and is_good:
            mine = {source.name for source in sources if source.head.run_id == known.began.run_id}
            mine |= {name for number, name in numbered(names, fmt).items() if known.has_file(number)}
        else:
            mine = self._rebuild(data is not None, known, sources, fmt)
        for name in candidates(names, fmt):
            if name not in mine:
                self._set_aside(name, "it isn't a file of this run, or its first bytes are damaged")
                self._disk.sync_names()
                self._disk.remove(name)
        return Repairs(tuple(self._done), tuple(self._lost))

    def _rebuild(self, has_journal: bool, known: Catalog | None, sources: list[Source], fmt: str) -> set[str]:
        """Write a new journal; returns the files that it takes for the run's."""
        began = _began(known, sources, fmt)
        if began is None:
            raise FileNotFoundError(f"{self._disk.folder} holds no file of a run that is named like {fmt!r}")
        mine = newest(sources, began.run_id, began.generation)
        is_known = known is not None and known.began.generation == began.generation
        catalog = catalog_from_files(self._disk, began, mine, known if is_known else None, self._lost)
        if known is not None and is_known:
            registry = known.registry()
            catalog.apply(Burned(registry.burn, registry.asked_burn))
            self._note_lost_end(catalog, known)
        if has_journal:
            self._set_aside(JOURNAL, "it was damaged")
        self._disk.sync_names()
        Journal.create(self._disk, list(catalog.records())).close()
        self._done.append(f"the journal was written anew: {len(catalog.places)} epochs in {len(mine)} files")
        return {source.name for source in sources if source.head.run_id == began.run_id}

    def _note_lost_end(self, catalog: Catalog, known: Catalog) -> None:
        if len(known.places) > len(catalog.places):
            self._lost.append(
                f"epochs {len(catalog.places)} to {len(known.places) - 1} were in the journal and are in no file"
            )

    def _set_aside(self, name: str, why: str) -> None:
        """Give a file another name beside its own, one that nobody has."""
        aside = set_aside_name(name, self._disk.names())
        self._disk.publish(name, aside)
        self._done.append(f"{name} was set aside as {aside}: {why}")


def _known(data: bytes | None) -> tuple[Catalog | None, bool]:
    """What a journal says up to where it is damaged, and whether it is good."""
    if data is None:
        return None, False
    try:
        records, end = journal.decode(data)
        return replayed(records), end == len(data)
    except Damaged:
        pass
    try:
        return replayed(journal.salvage(data)), False
    except Damaged:
        return None, False


def _began(known: Catalog | None, sources: list[Source], fmt: str) -> Began | None:
    """The run and its generation: those of the journal, or of most files."""
    if known is not None:
        run_id = known.began.run_id
    elif sources:
        run_id = Counter(source.head.run_id for source in sources).most_common(1)[0][0]
    else:
        return None
    generations = [source.head.generation for source in sources if source.head.run_id == run_id]
    if known is not None:
        generations.append(known.began.generation)
    began_at = known.began.began_at if known is not None else 0.0
    return Began(run_id, max(generations), fmt, 0, 0, began_at)
