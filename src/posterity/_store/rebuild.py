"""The catalog of a run from its files alone, when the journal is lost or damaged: each epoch says where it belongs.

Up the stream: `file_reader` walks the files. Down the stream: `recovery` refuses what is lost, `repair` goes on.
"""

import logging
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from posterity._format.file_header import FileHead
from posterity._format.file_reader import Reader
from posterity._format.frame import Frame
from posterity._model.file_names import candidates
from posterity._system.disk import Disk
from posterity.errors import Damaged, ForeignFiles

from .catalog import Catalog, pack_sums
from .records import (
    Annotated,
    AnyRecord,
    Began,
    Burned,
    Described,
    Dropped,
    Grouped,
    Passed,
    Place,
    Published,
    Rewritten,
    Stored,
)

logger = logging.getLogger("posterity.rebuild")
_MOST_LOST = 1_000_000


class Source(NamedTuple):
    """A file to take epochs from."""

    name: str
    head: FileHead


def head_of(disk: Disk, name: str) -> FileHead | None:
    """Whose file it is; None if it isn't ours, or can't be read."""
    try:
        with Reader.open(disk, name) as reader:
            return reader.read_head()
    except OSError as error:
        logger.warning("%s can't be looked at: %s", name, error)
        return None


def rebuilt(disk: Disk, names: list[str], fmt: str) -> tuple[Catalog | None, list[str]]:
    """The catalog from the files alone, and the names of these files; None if there are none of ours.

    Raises:
        ForeignFiles: files of several runs are mixed.
        Damaged: a file is damaged, or one is missing.
    """
    heads = [Source(name, head) for name in candidates(names, fmt) if (head := head_of(disk, name)) is not None]
    if not heads:
        return None, []
    runs = {source.head.run_id for source in heads}
    if len(runs) > 1:
        raise ForeignFiles(f"{disk.folder} holds files of {len(runs)} runs and no journal; keep those of one")
    generation = max(source.head.generation for source in heads)
    sources = newest(heads, runs.pop(), generation)
    logger.warning("%s has no journal; it is rebuilt from %d files", disk.folder, len(sources))
    began = Began(sources[0].head.run_id, generation, fmt, 0, 0, time.time())
    return catalog_from_files(disk, began, sources, None, None), [source.name for source in sources]


def newest(sources: Iterable[Source], run_id: bytes, generation: int) -> list[Source]:
    """Of each file of a generation the state that was written last, by number."""
    chosen: dict[int, Source] = {}
    for source in sources:
        number = source.head.number
        if (source.head.run_id, source.head.generation) != (run_id, generation):
            continue
        if number not in chosen or (chosen[number].head.rewrite, chosen[number].name) < (
            source.head.rewrite,
            source.name,
        ):
            chosen[number] = source
    return [chosen[number] for number in sorted(chosen)]


def catalog_from_files(
    disk: Disk, began: Began, sources: Sequence[Source], known: Catalog | None, losses: list[str] | None
) -> Catalog:
    """The catalog of the epochs in some files.

    `known`: what a journal says of epochs that are in no file. `losses`: told what is lost; None: that is an error.

    Raises:
        Damaged: something is lost, and nobody wants to be told.
    """
    catalog = Catalog(began)
    if known is not None and known.annotation:
        catalog.apply(Annotated(known.annotation))
    else:
        _annotate(disk, catalog, sources)
    files: list[tuple[Source, list[tuple[int, Frame]]]] = []
    for source in sources:
        frames, damaged = _frames(disk, began, source)
        for offset in damaged:
            _lose(losses, f"{source.name} is damaged at offset {offset}, and no journal says what was there")
        if frames:
            files.append((source, frames))
    stops = [frames[0][1].epoch for _, frames in files[1:]] + [frames[-1][1].epoch + 1 for _, frames in files[-1:]]
    for (source, frames), stop in zip(files, stops, strict=True):
        _take_in_file(catalog, source, frames, stop, known, losses)
    return catalog


def _annotate(disk: Disk, catalog: Catalog, sources: Sequence[Source]) -> None:
    """Take in what the newest of the files that say so say of the meaning of the numbers."""
    for source in reversed(sources):
        try:
            with Reader.open(disk, source.name) as reader:
                text = reader.read_metadata()
            if text is not None:
                catalog.apply(Annotated(text))
                return
        except OSError as error:
            logger.warning("%s: its metadata can't be read: %s", source.name, error)


def _frames(disk: Disk, began: Began, source: Source) -> tuple[list[tuple[int, Frame]], list[int]]:
    """The epochs in a file, each with its base, and where others were that are damaged."""
    with Reader.open(disk, source.name) as reader:
        whole, damaged = reader.scan()
        mine = (began.generation, began.run_id)
        frames = [found for found in whole if (found[1].generation, found[1].run_id) == mine]
        while source.name.startswith(".") and frames and not reader.is_whole(*frames[-1]):
            frames.pop()  # it was being written
    return frames, damaged


def _lose(losses: list[str] | None, what: str) -> None:
    if losses is None:
        raise Damaged(what)
    losses.append(what)


def _take_in_file(
    catalog: Catalog,
    source: Source,
    frames: list[tuple[int, Frame]],
    stop: int,
    known: Catalog | None,
    losses: list[str] | None,
) -> None:
    """`stop`: where the next file begins; what is lost before it is grouped into this one."""
    number, rewrite = source.head.number, source.head.rewrite
    is_first = not catalog.places
    if not is_first and frames[0][1].epoch > len(catalog.places):
        what = f"{source.name} has epoch {frames[0][1].epoch} where epoch {len(catalog.places)} belongs"
        _lose(losses, f"{what}; a file is missing")
        _pass_lost(catalog, frames[0][1], known)
    catalog.apply(Grouped(len(catalog.places), number, stop - len(catalog.places)))
    if is_first:
        _pass_burned(catalog, frames[0][1], known)
        catalog.apply(Dropped(len(catalog.places)))
    for i, (base, frame) in enumerate(frames):
        if i > 0 and frame.epoch > len(catalog.places):
            if losses is None:
                _pass_burned(catalog, frame, known)
            else:
                _pass_lost(catalog, frame, known)
        if (frame.epoch, frame.first) != (len(catalog.places), catalog.nsamples):
            raise Damaged(f"{source.name} has epoch {frame.epoch} where epoch {len(catalog.places)} belongs")
        for record in stored_records(catalog, number, rewrite, base, frame):
            catalog.apply(record)
    if not source.name.startswith("."):
        catalog.apply(Published(number, len(catalog.places)))
    if rewrite:
        catalog.apply(Rewritten(number, rewrite, 0, number in catalog.filling, []))


def _pass_burned(catalog: Catalog, frame: Frame, known: Catalog | None) -> None:
    """The epochs before one that is there were burned: how long all of them were is known, at least."""
    _pass_lost(catalog, frame, known)
    if frame.first:
        catalog.apply(Burned(frame.first, 0))


def _pass_lost(catalog: Catalog, frame: Frame, known: Catalog | None) -> None:
    """The epochs before one that is there are in no file; without a journal the first one gets all their samples."""
    start, stop = len(catalog.places), frame.epoch
    if stop - start > _MOST_LOST:
        raise Damaged(f"a file begins with epoch {stop}, and only {start} are known before it")
    for index in range(start, stop):
        nsamples = frame.first - catalog.nsamples
        if known is not None and index < len(known.places):
            nsamples = min(nsamples, known.entry(index).nsamples)
        catalog.apply(Passed(index, catalog.nsamples, nsamples))


def take_in_rewritten(disk: Disk, catalog: Catalog, names: list[str]) -> bool:
    """Learn from files that were written anew when; returns whether there are any that the journal doesn't know.

    Such a file got its name after the record of it was synced. So a record that isn't there was damaged since.
    """
    began, found = catalog.began, False
    for name in candidates(names, began.outfile_fmt):
        head = head_of(disk, name)
        if head is None or (head.run_id, head.generation) != (began.run_id, began.generation):
            continue
        indices = [i for i, place in enumerate(catalog.places) if place is not None and place.number == head.number]
        if not indices or head.rewrite <= catalog.rewrites.get(head.number, 0):
            continue
        frames, _ = _frames(disk, began, Source(name, head))
        _rewrite(catalog, Source(name, head), {frame.epoch: (base, frame) for base, frame in frames}, indices)
        found = True
    return found


def _rewrite(catalog: Catalog, source: Source, frames: dict[int, tuple[int, Frame]], indices: list[int]) -> None:
    places: list[Place | None] = []
    for index in range(indices[0], indices[-1] + 1):
        place = None
        if index in frames:
            for record in stored_records(catalog, source.head.number, source.head.rewrite, *frames[index]):
                if isinstance(record, Stored):
                    place = record.place
                else:
                    catalog.apply(record)
        places.append(place)
    catalog.apply(Rewritten(source.head.number, source.head.rewrite, indices[0], source.name.startswith("."), places))


def stored_records(catalog: Catalog, number: int, rewrite: int, base: int, frame: Frame) -> list[AnyRecord]:
    """What the journal should have said of an epoch that was found in a file."""
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
