"""The one owner of the run folder: it does what the policy decided, and decides nothing.

The order of steps is what keeps a run whole, whenever the power goes: numbers are in their file and synced, and the
file's name is, before the journal says so; the journal says so, synced, before anybody is told, and before a name is
changed or taken away. Whatever was journaled and not yet done to the names is a chore, done again after a crash.

A file on which anything but a full disk failed is never written again: the next attempt writes a new one.

Up the stream: `writer` calls it, in the I/O thread only. Down the stream: `epochfile`, `journal`, `disk`.
"""

import errno
import logging
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from . import journal
from .catalog import Catalog, aside_name, filling_name, open_place, pack_sums, rewrite_name
from .disk import Disk
from .epoch import Held, cut_samples
from .epochfile import EpochFile, FileHead, Reader
from .errors import Damaged, ForeignFiles, RunExists
from .journal import (
    AnyRecord,
    Began,
    Burned,
    Described,
    Dropped,
    Grouped,
    Journal,
    Passed,
    Place,
    Published,
    Rewritten,
    Stored,
)
from .layout import Layout, Stamp
from .lock import Lock
from .options import DEFAULT_FMT, Options, file_name
from .policy import Action, DropFiles, Part, PublishFile, RewriteFile, StoreBurn, WriteEpochs
from .recovery import Chore, find_run
from .registry import FileSpan, Registry, Series, reset
from .tree import Array

logger = logging.getLogger(__name__)

_FULL = (errno.ENOSPC, errno.EDQUOT)


class Outcome(NamedTuple):
    """What came of some work: `done` of the actions, in order, and what stopped the rest.

    `is_tidy`: the names are as the journal says. `has_asides`: files from before a reset are kept for a reader.
    """

    done: list[Action]
    error: OSError | None
    is_tidy: bool
    has_asides: bool


class Store:
    """A run folder and the right to write it."""

    def __init__(self, options: Options, where: str, disk: Disk) -> None:
        self.options = options
        self.disk = disk
        self._lock = Lock(disk, where)
        self._new_run_id = secrets.token_bytes(16)
        self._journal: Journal | None = None
        self._file: EpochFile | None = None
        self._broken: set[int] = set()
        self._chores: list[Chore] = []
        self._asides: list[str] = []
        self.catalog: Catalog | None = None
        self.bytes_written = 0
        self.free_bytes: int | None = None

    def open(self) -> Registry:
        """Look at the folder; a run in it is locked, and what a crash left behind is cleared up.

        Raises:
            RunExists: it holds a run, and the mode is "x".
            RunLocked: somebody else writes it.
            ForeignFiles, Damaged: see `recovery.find_run`.
        """
        self._lock.claim(self.options.exit_timeout_s)
        try:
            registry = self._look()
        except BaseException:
            self.close()
            self.disk.leave()
            raise
        return registry

    def _look(self) -> Registry:
        if not self.disk.is_there():
            return self._nothing()
        self.disk.enter()
        if journal.NAME not in self.disk.names():
            found = find_run(self.disk, self.options)
            if found.catalog is None:
                self._clear_up(found.chores)
                return self._nothing()
        if self.options.mode == "x":
            raise RunExists(f"{self.disk.folder} holds a run; use mode='a' to continue it or 'w' to replace it")
        registry = self._take_over()
        return reset(Registry(generation=registry.generation), 1) if self.options.mode == "w" else registry

    def _clear_up(self, chores: list[Chore]) -> None:
        """Remove what is left of a run that ended before it began."""
        if chores:
            self._lock.acquire()
            self._chores = chores
            self._tidy()

    def _nothing(self) -> Registry:
        return reset(Registry(generation=-1), self.options.epochs_per_file)

    def _take_over(self) -> Registry:
        self._lock.acquire()
        found = find_run(self.disk, self.options)
        if found.catalog is None:
            raise Damaged(f"{self.disk.folder}: the run went away while it was opened")
        self._check_format(found.catalog)
        self.catalog = found.catalog
        self._chores = found.chores
        if found.end is None:
            self._start_journal()
        else:
            self._journal = Journal.open(self.disk, found.end)
        self._tidy()
        return self.catalog.registry()

    def _check_format(self, catalog: Catalog) -> None:
        fmt = catalog.began.outfile_fmt
        given = self.options.outfile_fmt
        if given not in (None, fmt) and self.options.mode != "w":
            raise ValueError(
                f"the run in {self.disk.folder} has outfile_fmt={fmt!r}, and {given!r} was given; leave it out: the "
                f"names of its files belong to the run"
            )

    def work(
        self, actions: Sequence[Action], registry: Registry, held: Mapping[int, Held], *, old_is_read: bool = False
    ) -> Outcome:
        """Do some actions, as far as it goes.

        `registry`: what they were planned from. `held`: the epochs to be written, by index. `old_is_read`: somebody
        still reads what was there before the last reset.
        """
        done: list[Action] = []
        error: OSError | None = None
        try:
            if actions or self.catalog is not None:  # else nothing was ever written, and nothing is to be
                self._ensure_journal(registry)
            self._tidy(old_is_read=old_is_read)
            for group in _grouped(actions):
                self._do(group, held)
                done += group
                self._tidy(old_is_read=old_is_read)
        except OSError as failure:
            error = failure
        self._look_at_room()
        return Outcome(done, error, is_tidy=not self._chores, has_asides=bool(self._asides))

    def _look_at_room(self) -> None:
        """Warn before the disk is full, once each time."""
        was, self.free_bytes = self.free_bytes, self.disk.free_bytes()
        least = self.options.warn_free_bytes
        if self.free_bytes < least and (was is None or was >= least):
            logger.warning("%s: only %.0f MB are free on its disk", self.disk.folder, self.free_bytes / 1e6)

    def _do(self, group: list[Action], held: Mapping[int, Held]) -> None:
        match group[0]:
            case StoreBurn(burn=burn, asked_burn=asked_burn):
                self._append([Burned(burn, asked_burn)])
            case WriteEpochs():
                self._write([action for action in group if isinstance(action, WriteEpochs)], held)
            case PublishFile():
                self._publish(group[0])
            case RewriteFile(file=file, parts=parts):
                is_filling = file.number in self._catalog.filling
                self._copy(file, parts, filling=is_filling)
            case DropFiles():
                self._drop(group[0])

    @property
    def _catalog(self) -> Catalog:
        assert self.catalog is not None
        return self.catalog

    def _ensure_journal(self, registry: Registry) -> None:
        """The first write makes the folder, takes the lock and starts the journal."""
        if self.catalog is None:
            self.disk.enter()
            self._lock.acquire()
            found = find_run(self.disk, self.options)
            if found.catalog is not None and found.catalog.began.run_id != self._new_run_id:
                self._lock.release()
                raise ForeignFiles(f"{self.disk.folder} was empty when it was opened; a run was started there since")
            self._chores = found.chores
            self._begin(registry, self._new_run_id)
        elif self._catalog.began.generation < registry.generation:
            self._restart(registry)
        elif self._journal is None or self._journal.is_broken or self._is_long():
            self._start_journal()
        self._group(registry.series[-1])

    def _begin(self, registry: Registry, run_id: bytes) -> None:
        options = self.options
        generation = registry.generation
        fmt = options.outfile_fmt or DEFAULT_FMT
        began = Began(run_id, generation, fmt, registry.burn, registry.asked_burn, time.time())
        catalog = Catalog(began)
        catalog.apply(Grouped(0, 1, registry.series[0].epochs_per_file))
        old, self._journal = self._journal, Journal.create(self.disk, list(catalog.records()))
        if old is not None:
            old.close()
        self.catalog = catalog

    def _restart(self, registry: Registry) -> None:
        """A reset: one record makes the run empty; its files are taken away after that."""
        old = self._catalog
        self._close_file()
        numbers = old.numbers()
        run_id = old.began.run_id
        self._begin(registry, run_id)
        fmt = old.began.outfile_fmt
        for number in sorted(numbers):
            aside = aside_name(fmt, number, old.began.generation)
            self._chores += [
                Chore("aside", name, aside) for name in (file_name(fmt, number), filling_name(fmt, number))
            ]
            self._asides.append(aside)
        self._broken.clear()
        logger.warning(
            "%s: reset removed a run of %d epochs in %d files", self.disk.folder, len(old.places), len(numbers)
        )

    def _group(self, series: Series) -> None:
        """Journal a grouping of epochs into files that is new."""
        known = self._catalog.series()
        if not known or known[-1] != series:
            self._append([Grouped(series.start, series.number, series.epochs_per_file)])

    def _is_long(self) -> bool:
        return self._catalog.nrecords > 1000 + 3 * len(self._catalog.places)

    def _start_journal(self) -> None:
        """A new journal that says the same as the old one: when that is long, broken, or lost."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        self._catalog.forget_unused_layouts()
        records = list(self._catalog.records())
        self._journal = Journal.create(self.disk, records)
        self._catalog.nrecords = len(records)

    def _append(self, records: list[AnyRecord]) -> None:
        """Journal some records; they hold from then on."""
        assert self._journal is not None
        self._journal.append(records)
        for record in records:
            self._catalog.apply(record)

    def _write(self, actions: list[WriteEpochs], held: Mapping[int, Held]) -> None:
        """Add epochs to their files; those written together share the syncs of the folder and of the journal."""
        records: list[AnyRecord] = []
        chores: list[Chore] = []
        specs: dict[bytes, int] = {}
        try:
            makes_names = self._needs_file(actions[0]) and self._open_file(actions[0].file)
            for action in actions:
                makes_names |= self._write_file(action, held, records, specs)
                if action.publishes:
                    chores += self._publishing(action.file, action.file.stop, records)
            if makes_names:
                self.disk.sync_names()
            self._append(records)
        except OSError as error:
            self._give_up_file(error)
            raise
        self._chores += chores

    def _needs_file(self, action: WriteEpochs) -> bool:
        """Whether something is to be added to the file, or it is to be sealed."""
        return not all(part.is_empty for part in action.parts) or (
            action.publishes and bool(self._regions(action.file))
        )

    def _write_file(
        self, action: WriteEpochs, held: Mapping[int, Held], records: list[AnyRecord], specs: dict[bytes, int]
    ) -> bool:
        """Add epochs to one file and sync it; returns whether the file is new."""
        needs_file = self._needs_file(action)
        is_new = needs_file and self._open_file(action.file)
        for part in action.parts:
            entry = part.entry
            if part.is_empty:
                records.append(Passed(entry.index, entry.first, entry.nsamples))
                continue
            epoch = held[entry.index]
            layout, arrays = cut_samples(epoch.layout, epoch.arrays(), part.cut)
            place = self._append_epoch(part, layout, arrays, None, records, specs)
            records.append(Stored(entry.index, entry.first, entry.nsamples, layout.size, place))
        if needs_file and self._file is not None:
            if action.publishes:
                self._file.seal()
            self._file.sync()
        return is_new

    def _append_epoch(
        self,
        part: Part,
        layout: Layout,
        arrays: list[Array],
        sums: tuple[int, ...] | None,
        records: list[AnyRecord],
        specs: dict[bytes, int],
    ) -> Place:
        """Add an epoch to the open file; `sums` None: they are worked out. `specs`: layouts not yet journaled."""
        assert self._file is not None
        file, began, entry = self._file, self._catalog.began, part.entry
        stamp = Stamp(began.run_id, began.generation, entry.index, entry.first, entry.nsamples, part.cut)
        base, sums = file.append(stamp, layout, arrays, sums)
        self.bytes_written += layout.size
        spec_id = self._catalog.spec_ids.get(layout.spec, specs.get(layout.spec))
        if spec_id is None:
            spec_id = specs[layout.spec] = len(self._catalog.specs) + len(specs)
            records.append(Described(layout.spec))
        return Place(file.head.number, file.head.rewrite, base, part.cut, spec_id, pack_sums(sums))

    def _open_file(self, span: FileSpan) -> bool:
        """Have the file open that epochs of `span` go to; returns whether its name is new in the folder."""
        if self._file is not None and self._file.head.number == span.number:
            return False
        self._close_file()
        catalog = self._catalog
        known = self._regions(span)
        if not known:
            head = FileHead(
                catalog.began.run_id, catalog.began.generation, span.number, catalog.rewrites.get(span.number, 0)
            )
            self._broken.discard(span.number)
            self._file = EpochFile.create(self.disk, filling_name(catalog.began.outfile_fmt, span.number), head)
            return True
        if span.number not in catalog.filling or span.number in self._broken:
            self._copy(span, self._parts(range(known[0][0], known[-1][0] + 1)), filling=True)
            self._tidy()
        name = filling_name(catalog.began.outfile_fmt, span.number)
        known = self._regions(span)
        head = FileHead(catalog.began.run_id, catalog.began.generation, span.number, known[0][1].rewrite)
        regions = [(i, place.base, catalog.region(place).layout) for i, place in known]
        self._file = EpochFile.reopen(self.disk, name, head, regions)
        return False

    def _parts(self, indices: range) -> list[Part]:
        """What the files have of some epochs."""
        places = [(self._catalog.entry(i), self._catalog.places[i]) for i in indices]
        return [Part(entry, entry.nsamples if place is None else place.cut) for entry, place in places]

    def _regions(self, span: FileSpan) -> list[tuple[int, Place]]:
        """The epochs that are in a file already."""
        stored = enumerate(self._catalog.places[span.start : span.stop], span.start)
        return [(i, place) for i, place in stored if place is not None]

    def _publishing(self, span: FileSpan, stop: int, records: list[AnyRecord]) -> list[Chore]:
        """Journal that a sealed file gets its name, and the chore to give it."""
        records.append(Published(span.number, stop))
        if self._file is None or self._file.head.number != span.number:
            return []
        name = file_name(self._catalog.began.outfile_fmt, span.number)
        chore = Chore("publish", self._file.name, name)
        self._close_file()
        return [chore]

    def _publish(self, action: PublishFile) -> None:
        records: list[AnyRecord] = []
        try:
            if action.file.number in self._catalog.filling and self._regions(action.file):
                self._open_file(action.file)
                assert self._file is not None
                self._file.seal()
                self._file.sync()
            chores = self._publishing(action.file, action.stop, records)
            self._append(records)
        except OSError as error:
            self._give_up_file(error)
            raise
        self._chores += chores

    def _copy(self, span: FileSpan, parts: Sequence[Part], *, filling: bool) -> None:
        """Write a file anew with what is left of its epochs, beside the old one; then it takes its place.

        Every checksum is looked at on the way.
        """
        catalog = self._catalog
        self._close_file()
        rewrite = catalog.rewrites.get(span.number, 0) + 1
        head = FileHead(catalog.began.run_id, catalog.began.generation, span.number, rewrite)
        fmt = catalog.began.outfile_fmt
        name = rewrite_name(fmt, span.number, rewrite)
        records: list[AnyRecord] = []
        specs: dict[bytes, int] = {}
        places: list[Place | None] = []
        self._file = EpochFile.create(self.disk, name, head)
        try:
            for part in parts:
                place = None
                if not part.is_empty:
                    place = self._append_epoch(*self._read_part(part), records, specs)
                places.append(place)
            if not filling:
                self._file.seal()
            self._file.sync()
            self.disk.sync_names()
            start = parts[0].entry.index
            self._append([*records, Rewritten(span.number, rewrite, start, filling, places)])
        finally:
            self._close_file()
        self._broken.discard(span.number)
        target = filling_name(fmt, span.number) if filling else file_name(fmt, span.number)
        self._chores.append(Chore("replace", name, target))

    def _read_part(self, part: Part) -> tuple[Part, Layout, list[Array], tuple[int, ...] | None]:
        """What is in a file of an epoch, without a few more of its first samples.

        A damaged epoch is taken over as it is, with the checksums that it had: it stays damaged, and is seen to be.
        """
        catalog = self._catalog
        place = catalog.places[part.entry.index]
        assert place is not None
        region = catalog.region(place)
        with open_place(self.disk, catalog, place) as reader:
            arrays = [reader.read_array(region, i, verify=False) for i in range(len(region.layout.leaves))]
            try:
                reader.check_sums(region, arrays)
            except Damaged as error:
                logger.critical("%s", error)
                return Part(part.entry, place.cut), region.layout, arrays, region.sums
        return (part, *cut_samples(region.layout, arrays, part.cut - place.cut), None)

    def _drop(self, action: DropFiles) -> None:
        catalog = self._catalog
        fmt = catalog.began.outfile_fmt
        there = [number for number in action.numbers if catalog.has_file(number)]
        self._append([Dropped(action.stop)])
        for number in there:
            self._chores += [Chore("remove", name) for name in (file_name(fmt, number), filling_name(fmt, number))]

    def _tidy(self, *, old_is_read: bool = True) -> None:
        """Do the chores; one that fails stays, with those after it."""
        did_some = bool(self._chores)
        while self._chores:
            self._do_chore(self._chores[0])
            del self._chores[0]
        if self._asides and not old_is_read:
            while self._asides:
                self.disk.remove(self._asides[0], missing_ok=True)
                del self._asides[0]
            did_some = True
        if did_some:
            self.disk.sync_names()

    def _do_chore(self, chore: Chore) -> None:
        if chore.what == "remove":
            self.disk.remove(chore.name, missing_ok=True)
            return
        try:
            if chore.what in ("replace", "aside") or self._is_ours(chore.as_name):
                self.disk.replace(chore.name, chore.as_name)
            else:
                self.disk.publish(chore.name, chore.as_name)
        except FileExistsError as error:
            raise ForeignFiles(
                f"{self.disk.folder / chore.as_name} was put there by somebody else: move it, and the run goes on by "
                f"itself; until then its epochs are safe in {chore.name}"
            ) from error
        except FileNotFoundError:
            if chore.what != "aside" and chore.as_name not in self.disk.names():
                raise

    def _is_ours(self, name: str) -> bool:
        """Whether a published name is an older state of a file of this run."""
        try:
            with Reader.open(self.disk, name) as reader:
                head = reader.read_head()
        except FileNotFoundError:
            return False
        return head is not None and head.run_id == self._catalog.began.run_id

    def _give_up_file(self, error: OSError) -> None:
        """After a failure: what was added since the last sync isn't there; the file itself may be trusted no more."""
        if self._file is not None and error.errno not in _FULL:
            self._broken.add(self._file.head.number)
        self._close_file()

    def _close_file(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            file.close()

    def mark_closing(self) -> None:
        """Tell who opens the folder next that it is worth waiting. Takes no lock."""
        self._lock.is_closing = True

    def beat(self) -> None:
        """Show that the writer lives, where only a file's time can tell."""
        self._lock.beat()

    def close(self) -> None:
        """Let go of the folder; idempotent. Nothing is written."""
        self._close_file()
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        self._lock.release()


def _grouped(actions: Sequence[Action]) -> list[list[Action]]:
    """Neighbouring writes belong together, everything else stands alone."""
    groups: list[list[Action]] = []
    for action in actions:
        if isinstance(action, WriteEpochs) and groups and isinstance(groups[-1][0], WriteEpochs):
            groups[-1].append(action)
        else:
            groups.append([action])
    return groups
