"""The one owner of the run folder: it does what the policy decided.

Of its own it decides one thing: that a file or a journal can't go on, after a failure or by its format, and is
replaced.

The order of steps is what keeps a run whole, whenever the power goes (`_commit`): numbers are in their file and synced,
and the file's name is, before the journal says so; the journal says so, synced, before anybody is told, and before a
name is changed or taken away. What was journaled and not yet done to the names is a chore, done again after a crash.

Up the stream: `writer` calls it, in the I/O thread only. Down the stream: `data_files`, `journal`, `name_changes`.
"""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from posterity._format.codec import check_codec
from posterity._format.layout import layout_of
from posterity._ingest.owned import Held
from posterity._model import metadata
from posterity._model.file_names import DEFAULT_FMT, JOURNAL, aside_name, file_name, filling_name
from posterity._model.metadata import Metadata
from posterity._model.options import Options
from posterity._model.policy import Action, DropFiles, PublishFile, RewriteFile, StoreBurn, StoreMetadata, WriteEpochs
from posterity._model.registry import Registry, Series, describe, reset
from posterity._system.disk import Disk
from posterity._system.uncopyable import Uncopyable
from posterity.errors import Damaged, ForeignFiles, RunExists

from .catalog import Catalog
from .data_files import Change, Files
from .journal import Journal
from .lock import Lock
from .name_changes import Chore, Chores
from .records import Annotated, Began, Burned, Grouped
from .recovery import Found, find_run

logger = logging.getLogger("posterity.store")


class Outcome(NamedTuple):
    """What came of some work: `done` of the actions, in order, and what stopped the rest.

    `is_tidy`: journal and names are as they should be. `has_asides`: files from before a reset are kept for a reader.
    """

    done: list[Action]
    error: OSError | None
    is_tidy: bool
    has_asides: bool


class Store(Uncopyable):
    """A run folder and the right to write it."""

    def __init__(self, options: Options, where: str, disk: Disk) -> None:
        self.options = options
        self.disk = disk
        self._lock = Lock(disk, where)
        self._new_run_id = os.urandom(16)
        self._journal: Journal | None = None
        self._files: Files | None = None
        self._chores = Chores(disk)
        self._written_before = 0  # bytes, in files of earlier generations
        self.catalog: Catalog | None = None
        self.free_bytes: int | None = None

    @property
    def bytes_written(self) -> int:
        """The bytes of all epochs that were written to files."""
        return self._written_before + (self._files.bytes_written if self._files is not None else 0)

    @property
    def _may_pack(self) -> bool:
        """Whether epochs may be compressed from now on."""
        return self.options.compression is not None

    def open(self) -> Registry:
        """Look at the folder; a run in it is locked, and what a crash left behind is cleared up.

        Raises:
            RunExists: it holds a run, and the mode is "x".
            RunLocked: somebody else writes it.
            ForeignFiles, Damaged: see `recovery.find_run`.
        """
        try:
            self._lock.claim(self.options.exit_timeout_s)
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
        if JOURNAL not in self.disk.names():
            found = find_run(self.disk, self.options)
            if found.catalog is None:
                self._clear_up(found.chores)
                return self._nothing()
        if self.options.mode == "x":
            raise RunExists(f"{self.disk.folder} holds a run; use mode='a' to continue it or 'w' to replace it")
        registry = self._take_over()
        return self._nothing(registry.generation) if self.options.mode == "w" else registry

    def _clear_up(self, chores: list[Chore]) -> None:
        """Remove what is left of a run that ended before it began."""
        if chores:
            self._lock.acquire()
            self._chores.add(chores)
            self._chores.do(b"")

    def _nothing(self, after: int = -1) -> Registry:
        """A run that begins now, after a generation."""
        registry = reset(Registry(generation=after), self.options.epochs_per_file)
        return describe(registry, metadata.begun(self.options.given))

    def _take_over(self) -> Registry:
        self._lock.acquire()
        self._journal = Journal.held(self.disk)  # who removed the lock's file has got in no further than this
        found = find_run(self.disk, self.options)
        if found.catalog is None:
            raise Damaged(f"{self.disk.folder}: the run went away while it was opened")
        self._check_format(found.catalog)
        given = self._described(found.catalog)
        if self.options.mode != "w":
            _check_codecs(found.catalog)
        self._sync_found(found)
        self._take(found.catalog)
        self._chores.add(found.chores)
        if found.end is None or self._journal is None:
            self._start_journal(found.catalog)
        else:
            self._journal.go_on(found.end)
        self._chores.do(found.catalog.began.run_id)
        registry = found.catalog.registry()
        return registry if given is None else describe(registry, given)

    def _described(self, catalog: Catalog) -> Metadata | None:
        """What the numbers of a run mean that is there, with what was given now; None if that says nothing new.

        Raises:
            ValueError: it is another run's.
        """
        if self.options.mode == "w":
            return None
        given = metadata.continued(catalog.metadata, self.options.given)
        return None if catalog.says(given) else given

    def _sync_found(self, found: Found) -> None:
        """A process that was killed may have left what nobody synced; from now on it counts."""
        for name in found.unsynced:
            fd = self.disk.open(name)
            try:
                self.disk.sync(fd)
            finally:
                self.disk.close(fd)
        self.disk.sync_names()

    def _take(self, catalog: Catalog) -> None:
        """From now on this is what the run consists of."""
        if self._files is not None:
            self._files.close()
            self._chores.add(self._files.clear_up())
        self._written_before = self.bytes_written
        self.catalog = catalog
        self._files = Files(self.disk, catalog, self.options)

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
            self._do_chores(old_is_read=old_is_read)
            for group in _grouped(actions):
                self._do(group, held)
                done += group
                self._do_chores(old_is_read=old_is_read)
        except OSError as failure:
            error = failure
        self._look_at_room()
        is_tidy = error is None and not self._chores
        return Outcome(done, error, is_tidy, bool(self._chores.asides))

    def _look_at_room(self) -> None:
        """Warn before the disk is full, once each time."""
        was = self.free_bytes
        try:
            self.free_bytes = self.disk.free_bytes()
        except OSError:  # nothing depends on it
            self.free_bytes = None
            return
        least = self.options.warn_free_bytes
        if self.free_bytes < least and (was is None or was >= least):
            logger.warning("%s: only %.0f MB are free on its disk", self.disk.folder, self.free_bytes / 1e6)

    def _do(self, group: list[Action], held: Mapping[int, Held]) -> None:
        """Do an action, or some writes that belong together. It survives a power cut on return."""
        files, catalog = self._files, self.catalog
        assert files is not None
        assert catalog is not None
        match group[0]:
            case StoreBurn(burn=burn, asked_burn=asked_burn):
                self._commit(Change([Burned(burn, asked_burn)], []))
            case StoreMetadata():
                self._annotate(catalog, group[0].metadata)
            case WriteEpochs():
                self._make_fit(group[0])
                self._commit_files(files.write([action for action in group if isinstance(action, WriteEpochs)], held))
            case PublishFile():
                self._make_fit(group[0])
                self._commit_files(files.publish(group[0]))
            case RewriteFile(file=file) if not files.is_there(file):
                name = file_name(catalog.began.outfile_fmt, file.number)
                logger.critical("%s: burn can't cut %s, which is missing or too short", self.disk.folder, name)
            case RewriteFile(file=file, parts=parts):
                self._commit_files(files.copy(file, parts, filling=file.number in catalog.filling))
            case DropFiles():
                self._commit(files.drop(group[0]))

    def _annotate(self, catalog: Catalog, given: Metadata) -> None:
        """Journal what the numbers mean, if that is new. A journal of an earlier version has no place for it."""
        assert self._journal is not None
        if catalog.says(given):
            return
        record = Annotated(metadata.encode(given))
        if self._journal.takes_metadata:
            self._commit(Change([record], []))
            return
        catalog.apply(record)
        self._start_journal(catalog)

    def _make_fit(self, action: WriteEpochs | PublishFile) -> None:
        """Write the file of an action anew, if nothing can be added to it."""
        assert self._files is not None
        if self._files.must_copy(action):
            self._commit_files(self._files.copy_whole(action.file))
            self._do_chores()

    def _commit(self, change: Change) -> None:
        """Journal what was done to files; it holds from then on, and the names are due."""
        assert self._journal is not None
        assert self._files is not None
        assert self.catalog is not None
        try:
            self._journal.append(change.records)
        except OSError:
            self._files.distrust(change)
            raise
        self.catalog.apply(*change.records)
        self._chores.add(change.chores)

    def _commit_files(self, change: Change) -> None:
        """As `_commit`, for what was written to files: that worked, so what failed before can go."""
        assert self._files is not None
        self._commit(change)
        self._chores.add(self._files.clear_up(change))

    def _do_chores(self, *, old_is_read: bool = True) -> None:
        if self.catalog is not None:
            self._chores.do(self.catalog.began.run_id, old_is_read=old_is_read)

    def _ensure_journal(self, registry: Registry) -> None:
        """The first write makes the folder, takes the lock and starts the journal."""
        if self.catalog is None:
            self.disk.enter()
            self._lock.acquire()
            found = find_run(self.disk, self.options)
            if found.catalog is not None and found.catalog.began.run_id != self._new_run_id:
                self._lock.release()
                raise ForeignFiles(f"{self.disk.folder} was empty when it was opened; a run was started there since")
            self._chores.add(found.chores)
            self._begin(registry, self._new_run_id)
        elif self.catalog.began.generation < registry.generation:
            self._restart(self.catalog, registry)
        elif self._journal is None or self._journal.is_broken or _is_long(self.catalog) or self._is_too_old():
            self._start_journal(self.catalog)
        assert self.catalog is not None
        self._group(self.catalog, registry.series[-1])

    def _begin(self, registry: Registry, run_id: bytes) -> None:
        options = self.options
        generation = registry.generation
        fmt = options.outfile_fmt or DEFAULT_FMT
        began_at = registry.metadata.started_at or time.time()
        catalog = Catalog(Began(run_id, generation, fmt, registry.burn, registry.asked_burn, began_at))
        if not catalog.says(registry.metadata):
            catalog.apply(Annotated(metadata.encode(registry.metadata)))
        catalog.apply(Grouped(0, 1, registry.series[0].epochs_per_file))
        old = self._journal
        self._journal = Journal.create(self.disk, list(catalog.records()), takes_packed=self._may_pack)
        if old is not None:
            old.close()
        self._take(catalog)

    def _restart(self, old: Catalog, registry: Registry) -> None:
        """A reset: one record makes the run empty; its files are taken away after that."""
        numbers = old.numbers()
        run_id = old.began.run_id
        self._begin(registry, run_id)
        fmt = old.began.outfile_fmt
        for number in sorted(numbers):
            aside = aside_name(fmt, number, old.began.generation)
            names = (file_name(fmt, number), filling_name(fmt, number))
            self._chores.add(Chore("aside", name, aside) for name in names)
            self._chores.asides.append(aside)
        logger.warning(
            "%s: reset removed a run of %d epochs in %d files", self.disk.folder, len(old.places), len(numbers)
        )

    def _group(self, catalog: Catalog, series: Series) -> None:
        """Journal a grouping of epochs into files that is new."""
        known = catalog.series()
        if not known or known[-1] != series:
            self._commit(Change([Grouped(series.start, series.number, series.epochs_per_file)], []))

    def _start_journal(self, catalog: Catalog) -> None:
        """A new journal that says the same as the old one: when that is long, broken, or lost."""
        old = self._journal
        if old is not None:
            old.is_broken = True  # its name may mean the new one by now, if what follows fails; it stays locked
        catalog.forget_unused_layouts()
        records = list(catalog.records())
        self._journal = Journal.create(self.disk, records, takes_packed=self._may_pack)
        if old is not None:
            old.close()
        catalog.nrecords = len(records)

    def _is_too_old(self) -> bool:
        """Whether the journal's version says that there are no packed layouts in it, and there will be."""
        return self._may_pack and self._journal is not None and not self._journal.takes_packed

    def mark_closing(self) -> None:
        """Tell who opens the folder next that it is worth waiting. Takes no lock."""
        self._lock.is_closing = True

    def beat(self) -> None:
        """Show that the writer lives, where only a file's time can tell."""
        self._lock.beat()

    def close(self) -> None:
        """Let go of the folder; idempotent. Nothing is written."""
        if self._files is not None:
            self._files.close()
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


def _check_codecs(catalog: Catalog) -> None:
    """Refuse to go on with a run that couldn't be read: burn, for one, needs that.

    Raises:
        MissingExtra: an epoch is compressed in a way that needs a package that isn't installed.
    """
    for packing in {layout_of(spec).packing for spec in catalog.packed_specs()}:
        if packing is not None:
            check_codec(packing.codec)


def _is_long(catalog: Catalog) -> bool:
    return catalog.nrecords > 1000 + 3 * len(catalog.places)
