"""Opening a folder: what run is there, what a crash left half done, and whose the files are.

Nothing here deletes or renames: it says what is to be done (`Chore`), and the store does it once the lock is held. So a
folder can be looked at by anybody.

Up the stream: `journal`, `file_reader`. Down the stream: `store`.
"""

import logging
from typing import NamedTuple

from posterity._format.file_header import FileHead
from posterity._format.file_reader import Reader
from posterity._model.file_names import (
    DEFAULT_FMT,
    NEW_JOURNAL,
    file_name,
    filling_name,
    hidden,
    numbered,
    rewrite_name,
)
from posterity._model.options import Options
from posterity._system.disk import Disk
from posterity.errors import ForeignFiles

from . import journal
from .catalog import Catalog, replayed
from .file_lookup import is_there
from .name_changes import Chore
from .rebuild import head_of, rebuilt, stored_records, take_in_rewritten
from .records import Grouped, Published

logger = logging.getLogger("posterity.recovery")


class Found(NamedTuple):
    """What is in a folder. `end`: where the journal's good records end; None: it must be made anew.

    `unsynced`: files with epochs that the journal doesn't know; perhaps nobody ever synced them.
    """

    catalog: Catalog | None
    end: int | None
    chores: list[Chore]
    unsynced: list[str]


def find_run(disk: Disk, options: Options) -> Found:
    """Look at a folder, which is there and entered.

    Raises:
        ForeignFiles: files match `outfile_fmt` and aren't the run's.
        Damaged: the journal or the files contradict themselves.
    """
    data = journal.read(disk)
    names = disk.names()
    if data is None:
        catalog, unsynced, end = *rebuilt(disk, names, options.outfile_fmt or DEFAULT_FMT), None
    else:
        records, end = journal.decode(data)
        catalog, unsynced = replayed(records), []
        if end < len(data) and take_in_rewritten(disk, catalog, names):
            logger.warning("%s: the journal's last record is damaged; files say what was in it", disk.folder)
            end = None
    if catalog is None:
        fmt = options.outfile_fmt or DEFAULT_FMT
        _refuse_foreign(disk, fmt, numbered(names, fmt))
        leftovers = [Chore("remove", name) for name in names if name == NEW_JOURNAL]
        return Found(None, None, leftovers, [])
    known = len(catalog.places)
    unsynced += _adopt(disk, catalog, names)
    if adopted := len(catalog.places) - known:
        logger.warning("%s: %d epochs were in files and not in the journal; they are taken in", disk.folder, adopted)
        end = None
    if _note_published(disk, catalog, set(names)) | _leave_behind(disk, catalog):
        end = None
    return Found(catalog, end, _chores(disk, catalog, names), unsynced)


def _refuse_foreign(disk: Disk, fmt: str, foreign: dict[int, str]) -> None:
    if not foreign:
        return
    names = sorted(foreign.values())
    some = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    raise ForeignFiles(
        f"{disk.folder} holds {some}, which match outfile_fmt={fmt!r} and aren't this run's. Choose another outdir or "
        f"outfile_fmt, or move them; ingest(path, index) takes their epochs over"
    )


def _chores(disk: Disk, catalog: Catalog, names: list[str]) -> list[Chore]:
    """Finish what a crash interrupted: each name that isn't as the journal says."""
    fmt, began = catalog.began.outfile_fmt, catalog.began
    named = numbered(names, fmt)
    live = catalog.numbers()
    chores = [
        *_temporary_chores(catalog, names),
        *(Chore("remove", name) for name in names if name == NEW_JOURNAL),
    ]
    awaited = {chore.as_name for chore in chores}
    foreign: dict[int, str] = {}
    for number, name in named.items():
        if number in live and name not in awaited:
            continue
        head = head_of(disk, name)
        if head is None or head.run_id != began.run_id:
            foreign[number] = name
        elif number not in live:
            chores.append(Chore("remove", name))
    _refuse_foreign(disk, fmt, foreign)
    there = set(names)
    for number in sorted(live - set(named)):
        if there.isdisjoint(catalog.names_of(number, catalog.rewrites.get(number, 0))):
            logger.warning("%s: %s is missing; its epochs can't be read", disk.folder, file_name(fmt, number))
    return chores


def _temporary_chores(catalog: Catalog, names: list[str]) -> list[Chore]:
    """Hidden names are ours alone. The one that the journal means gets the name it was made for, the others go."""
    fmt = catalog.began.outfile_fmt
    live = catalog.numbers()
    chores = []
    for number, name in hidden(names, fmt):
        target = filling_name(fmt, number) if number in catalog.filling else file_name(fmt, number)
        renames = (filling_name(fmt, number), rewrite_name(fmt, number, catalog.rewrites.get(number, 0)))
        if name == target:
            continue
        if number not in live or name not in renames or _is_superseded(catalog, name, names, number):
            chores.append(Chore("remove", name))
        else:
            chores.append(Chore("replace" if target in names else "publish", name, target))
    return chores


def _is_superseded(catalog: Catalog, name: str, names: list[str], number: int) -> bool:
    """Whether a filling file is an older state of one that was written anew since."""
    fmt = catalog.began.outfile_fmt
    newer = rewrite_name(fmt, number, catalog.rewrites.get(number, 0))
    return name == filling_name(fmt, number) and newer in names


def _note_published(disk: Disk, catalog: Catalog, names: set[str]) -> bool:
    """Take in that a file was published, if it has that name and no other: the record that said so was damaged.

    Returns whether there was such a file.
    """
    fmt, began = catalog.began.outfile_fmt, catalog.began
    last = {place.number: i for i, place in enumerate(catalog.places) if place and place.number in catalog.filling}
    found = False
    for number, index in last.items():
        rewrite = catalog.rewrites.get(number, 0)
        name, *others = file_name(fmt, number), filling_name(fmt, number), rewrite_name(fmt, number, rewrite)
        head = head_of(disk, name) if name in names and names.isdisjoint(others) else None
        if head is not None and (head.run_id, head.rewrite) == (began.run_id, rewrite):
            catalog.apply(Published(number, index + 1))
            found = True
    return found


def _leave_behind(disk: Disk, catalog: Catalog) -> bool:
    """Have a run go on in another file, if the one that it should go on in is missing, too short, or somebody else's.

    Returns whether that had to be.
    """
    registry = catalog.registry()
    if not registry.series:
        return False
    file = registry.file_of(registry.next_index)
    if is_there(disk, catalog, file):
        return False
    name, n = file_name(catalog.began.outfile_fmt, file.number), registry.next_index
    logger.critical("%s: %s is missing or too short; the run goes on in another file", disk.folder, name)
    if file.number in catalog.filling:
        catalog.apply(Published(file.number, n))
    catalog.apply(Grouped(n, file.number + 1, registry.series[-1].epochs_per_file))
    return True


def _adopt(disk: Disk, catalog: Catalog, names: list[str]) -> list[str]:
    """Take in whole epochs that are in files and that the journal doesn't know: a crash came between the two.

    Returns the files that have them.
    """
    adopted: list[str] = []
    fmt = catalog.began.outfile_fmt
    while True:
        registry = catalog.registry()
        if not registry.series:
            return adopted
        number = registry.file_of(registry.next_index).number
        start = _known_end(catalog, number)
        for name in (filling_name(fmt, number), file_name(fmt, number)):
            if name in names and _adopt_from(disk, catalog, name, number, start):
                adopted.append(name)
                break
        else:
            return adopted


def _known_end(catalog: Catalog, number: int) -> int | None:
    """Where the known epochs of a file end; None if it has none."""
    ends = [catalog.region(place).end for place in catalog.places if place is not None and place.number == number]
    return max(ends, default=None)


def _adopt_from(disk: Disk, catalog: Catalog, name: str, number: int, start: int | None) -> int:
    began, found = catalog.began, 0
    expected = FileHead(began.run_id, began.generation, number, catalog.rewrites.get(number, 0))
    try:
        with Reader.open(disk, name) as reader:
            if not expected.is_same(reader.read_head()):
                return 0
            for base, frame in reader.walk() if start is None else reader.walk(start):
                is_next = (frame.epoch, frame.first) == (len(catalog.places), catalog.nsamples)
                if not is_next or frame.generation != began.generation or not reader.is_whole(base, frame):
                    break
                for record in stored_records(catalog, number, expected.rewrite, base, frame):
                    catalog.apply(record)
                found += 1
            if found and name == file_name(began.outfile_fmt, number):
                catalog.apply(Published(number, len(catalog.places)))
    except OSError as error:
        logger.warning("%s can't be looked at: %s", name, error)
    return found
