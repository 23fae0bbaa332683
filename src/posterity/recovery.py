"""Opening a folder: what run is there, what a crash left half done, and whose the files are.

Nothing here deletes or renames: it says what is to be done (`Chore`), and the store does it once the lock is held. So a
folder can be looked at by anybody.

Up the stream: `journal`, `epochfile`. Down the stream: `store`.
"""

import logging
import re
import time
from collections.abc import Iterable
from typing import NamedTuple

from . import journal
from .catalog import Catalog, filling_name, pack_sums, replayed, rewrite_name
from .chores import Chore
from .disk import Disk
from .epochfile import FileHead, Reader
from .errors import Damaged, ForeignFiles
from .journal import AnyRecord, Began, Burned, Described, Dropped, Grouped, Passed, Place, Published, Rewritten, Stored
from .layout import Frame
from .options import DEFAULT_FMT, Options, file_name, file_pattern

logger = logging.getLogger(__name__)
_MOST_LOST = 1_000_000


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
        catalog, unsynced, end = *_rebuilt(disk, names, options), None
    else:
        records, end = journal.decode(data)
        catalog, unsynced = replayed(records), []
    if catalog is None:
        fmt = options.outfile_fmt or DEFAULT_FMT
        _refuse_foreign(disk, fmt, _numbered(names, fmt))
        leftovers = [Chore("remove", name) for name in names if name == journal.NEW_NAME]
        return Found(None, None, leftovers, [])
    known = len(catalog.places)
    unsynced += _adopt(disk, catalog, names)
    if adopted := len(catalog.places) - known:
        logger.warning("%s: %d epochs were in files and not in the journal; they are taken in", disk.folder, adopted)
        end = None
    return Found(catalog, end, _chores(disk, catalog, names), unsynced)


def _numbered(names: Iterable[str], fmt: str) -> dict[int, str]:
    """The published names among `names`, by number."""
    pattern = file_pattern(fmt)
    found: dict[int, str] = {}
    for name in names:
        match = pattern.fullmatch(name)
        if match is not None and file_name(fmt, int(match.group(1))) == name:
            found[int(match.group(1))] = name
    return found


def _head_of(disk: Disk, name: str) -> FileHead | None:
    try:
        with Reader.open(disk, name) as reader:
            return reader.read_head()
    except OSError as error:
        logger.warning("%s can't be looked at: %s", name, error)
        return None


def _refuse_foreign(disk: Disk, fmt: str, numbered: dict[int, str]) -> None:
    if not numbered:
        return
    names = sorted(numbered.values())
    some = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    raise ForeignFiles(
        f"{disk.folder} holds {some}, which match outfile_fmt={fmt!r} and aren't this run's. Choose another outdir or "
        f"outfile_fmt, or move them; ingest(path, index) takes their epochs over"
    )


def _chores(disk: Disk, catalog: Catalog, names: list[str]) -> list[Chore]:
    """Finish what a crash interrupted: each name that isn't as the journal says."""
    fmt, began = catalog.began.outfile_fmt, catalog.began
    numbered = _numbered(names, fmt)
    live = catalog.numbers()
    chores = [
        *_temporary_chores(catalog, names),
        *(Chore("remove", name) for name in names if name == journal.NEW_NAME),
    ]
    awaited = {chore.as_name for chore in chores}
    foreign: dict[int, str] = {}
    for number, name in numbered.items():
        if number in live and name not in awaited:
            continue
        head = _head_of(disk, name)
        if head is None or head.run_id != began.run_id:
            foreign[number] = name
        elif number not in live:
            chores.append(Chore("remove", name))
    _refuse_foreign(disk, fmt, foreign)
    there = set(names)
    for number in sorted(live - set(numbered)):
        if there.isdisjoint(catalog.names_of(number, catalog.rewrites.get(number, 0))):
            logger.warning("%s: %s is missing; its epochs can't be read", disk.folder, file_name(fmt, number))
    return chores


def _temporary_chores(catalog: Catalog, names: list[str]) -> list[Chore]:
    """Hidden names are ours alone. The one that the journal means gets the name it was made for, the others go."""
    fmt = catalog.began.outfile_fmt
    hidden = re.compile(rf"\.({file_pattern(fmt).pattern})\.(filling|\d+\.new|g\d+\.old)")
    live = catalog.numbers()
    chores = []
    for name in names:
        match = hidden.fullmatch(name)
        if match is None:
            continue
        number = int(match.group(2))
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
    ends = [
        place.base + catalog.region(place).layout.size
        for place in catalog.places
        if place is not None and place.number == number
    ]
    return max(ends, default=None)


def _adopt_from(disk: Disk, catalog: Catalog, name: str, number: int, start: int | None) -> int:
    began, found = catalog.began, 0
    expected = FileHead(began.run_id, began.generation, number, catalog.rewrites.get(number, 0))
    try:
        with Reader.open(disk, name) as reader:
            if reader.read_head() != expected:
                return 0
            for base, frame in reader.walk() if start is None else reader.walk(start):
                is_next = (frame.epoch, frame.first) == (len(catalog.places), catalog.nsamples)
                if not is_next or frame.generation != began.generation or not reader.is_whole(base, frame):
                    break
                for record in _stored_records(catalog, number, expected.rewrite, base, frame):
                    catalog.apply(record)
                found += 1
            if found and name == file_name(began.outfile_fmt, number):
                catalog.apply(Published(number, len(catalog.places)))
    except OSError as error:
        logger.warning("%s can't be looked at: %s", name, error)
    return found


def _stored_records(catalog: Catalog, number: int, rewrite: int, base: int, frame: Frame) -> list[AnyRecord]:
    records: list[AnyRecord] = []
    layout = catalog.spec_ids.get(frame.spec)
    if layout is None:
        layout = len(catalog.specs)
        records.append(Described(frame.spec))
    if frame.cut:
        records.append(Burned(frame.first + frame.cut, 0))
    place = Place(number, rewrite, base, frame.cut, layout, pack_sums(frame.sums))
    records.append(Stored(frame.epoch, frame.first, frame.nsamples, frame.region_size, place))
    return records


def _rebuilt(disk: Disk, names: list[str], options: Options) -> tuple[Catalog | None, list[str]]:
    """The catalog from the files alone, when the journal is lost; and these files.

    Raises:
        ForeignFiles: files of several runs, or of nobody we know, are mixed.
    """
    fmt = options.outfile_fmt or DEFAULT_FMT
    heads = {name: head for name in _candidates(names, fmt) if (head := _head_of(disk, name)) is not None}
    if not heads:
        return None, []
    runs = {head.run_id for head in heads.values()}
    if len(runs) > 1:
        raise ForeignFiles(f"{disk.folder} holds files of {len(runs)} runs and no journal; keep those of one")
    generation = max(head.generation for head in heads.values())
    chosen: dict[int, tuple[int, str]] = {}
    for name, head in heads.items():
        if head.generation == generation:
            chosen[head.number] = max(chosen.get(head.number, (-1, "")), (head.rewrite, name))
    logger.warning("%s has no journal; it is rebuilt from %d files", disk.folder, len(chosen))
    began = Began(runs.pop(), generation, fmt, 0, 0, time.time())
    return _catalog_from_files(disk, began, chosen), [name for _, name in chosen.values()]


def _candidates(names: list[str], fmt: str) -> list[str]:
    hidden = re.compile(rf"\.({file_pattern(fmt).pattern})\.filling")
    return [*_numbered(names, fmt).values(), *(name for name in names if hidden.fullmatch(name))]


def _catalog_from_files(disk: Disk, began: Began, chosen: dict[int, tuple[int, str]]) -> Catalog:
    catalog = Catalog(began)
    for number in sorted(chosen):
        rewrite, name = chosen[number]
        with Reader.open(disk, name) as reader:
            whole, damaged = reader.scan()
            mine = (began.generation, began.run_id)
            frames = [found for found in whole if (found[1].generation, found[1].run_id) == mine]
            while name.startswith(".") and frames and not reader.is_whole(*frames[-1]):
                frames.pop()  # it was being written
        if damaged:
            raise Damaged(f"{name} is damaged at offset {damaged[0]}, and there is no journal to say what was there")
        if frames:
            _take_in_file(catalog, number, rewrite, name, frames)
    return catalog


def _take_in_file(catalog: Catalog, number: int, rewrite: int, name: str, frames: list[tuple[int, Frame]]) -> None:
    if not catalog.places:
        _pass_lost(catalog, frames[0][1])
        catalog.apply(Dropped(len(catalog.places)))
    catalog.apply(Grouped(len(catalog.places), number, frames[-1][1].epoch - len(catalog.places) + 1))
    for i, (base, frame) in enumerate(frames):
        if i > 0 and frame.epoch > len(catalog.places):
            _pass_lost(catalog, frame)
        if frame.epoch != len(catalog.places):
            raise Damaged(
                f"{name} has epoch {frame.epoch} where epoch {len(catalog.places)} belongs; a file is missing"
            )
        for record in _stored_records(catalog, number, rewrite, base, frame):
            catalog.apply(record)
    if not name.startswith("."):
        catalog.apply(Published(number, len(catalog.places)))
    if rewrite:
        catalog.apply(Rewritten(number, rewrite, 0, number in catalog.filling, []))


def _pass_lost(catalog: Catalog, frame: Frame) -> None:
    """The epochs before one that is there were burned: how long each was is lost, how long all were is not."""
    if frame.epoch - len(catalog.places) > _MOST_LOST:
        raise Damaged(f"a file begins with epoch {frame.epoch}, and only {len(catalog.places)} are known before it")
    for index in range(len(catalog.places), frame.epoch):
        catalog.apply(Passed(index, catalog.nsamples, frame.first - catalog.nsamples))
    if frame.first:
        catalog.apply(Burned(frame.first, 0))
