"""The HDF5 files of a run: epochs are added to them, they are sealed, and written anew without what burn took.

What is returned is synced, and nobody knows of it yet: a `Change` says what the journal is to say, and which names are
to be changed after that. A file on which anything but a full disk failed is never written again: `must_copy`.

Up the stream: `store`, in the I/O thread only. Down the stream: `file_writer`, `disk`.
"""

import contextlib
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import NamedTuple

from posterity._format.batch_encoder import WORTH_IT, most_together
from posterity._format.codec_trial import can_choose, choose
from posterity._format.file_header import FileHead
from posterity._format.file_reader import Reader
from posterity._format.file_writer import EpochFile
from posterity._format.frame import Stamp
from posterity._format.layout import PACKED_VERSION, Layout, Region, layout_of, packed_layout
from posterity._format.samples import cut_samples
from posterity._ingest.owned import Held
from posterity._model.file_names import file_name, filling_name, rewrite_name
from posterity._model.options import Options
from posterity._model.policy import DropFiles, Part, PublishFile, WriteEpochs
from posterity._model.registry import Entry, FileSpan
from posterity._system.arrays import Array
from posterity._system.disk import Disk, is_full
from posterity.errors import Damaged

from .catalog import Catalog, pack_sums
from .file_lookup import is_there, open_place
from .name_changes import Chore
from .records import AnyRecord, Described, Dropped, Passed, Place, Published, Rewritten, Stored

logger = logging.getLogger("posterity.files")
_MOST_OPEN = 32  # files that wait for a sync together


class Change(NamedTuple):
    """What was done to files: `records` tell of it, and once they are synced the `chores` are due."""

    records: list[AnyRecord]
    chores: list[Chore]


class Files:
    """The files of one generation of a run, of which one may be open to be added to."""

    def __init__(self, disk: Disk, catalog: Catalog, options: Options) -> None:
        self._disk = disk
        self._catalog = catalog
        self._takes_packed = options.compression is not None
        self._packing = options.packing
        self._must_choose = options.compression == "auto"
        packed = catalog.packed_specs() if self._must_choose else []
        if packed:  # what was chosen once holds for the run
            self._packing, self._must_choose = layout_of(packed[-1]).packing, False
        self._file: EpochFile | None = None
        self._complete: list[EpochFile] = []  # sealed, and not yet synced
        self._broken: set[int] = set()
        self._spoiled: Counter[int] = Counter()
        self._made: dict[str, int] = {}  # names of files that were begun, with their number; 0: they replace another
        self.bytes_written = 0

    # ---- filling -------------------------------------------------------------------------------------------------

    def write(self, actions: Sequence[WriteEpochs], held: Mapping[int, Held]) -> Change:
        """Add epochs to their files; they share the sync of the folder. `held`: the epochs, by index."""
        change = Change([], [])
        specs: dict[bytes, int] = {}
        makes_names = False
        with self._doubting():
            for action in actions:
                makes_names |= self._write_file(action, held, change.records, specs)
                if action.publishes:
                    self._complete += self._publishing(action.file, action.file.stop, change)
                if len(self._complete) >= _MOST_OPEN or action is actions[-1]:
                    self._sync()
            if makes_names:
                self._disk.sync_names()
        return change

    def _sync(self) -> None:
        """Wait for what was added to files. The disk was told of all of them before: it waits for them together."""
        for file in self._open():
            if not file.is_synced:
                file.sync()
        self._close_complete()

    def _open(self) -> list[EpochFile]:
        return self._complete if self._file is None else [*self._complete, self._file]

    def _close_complete(self) -> None:
        complete, self._complete = self._complete, []
        for file in complete:
            file.close()

    def _write_file(
        self, action: WriteEpochs, held: Mapping[int, Held], records: list[AnyRecord], specs: dict[bytes, int]
    ) -> bool:
        """Add epochs to one file; returns whether the file is new. Nothing is synced."""
        needs_file = self._needs_file(action)
        is_new = needs_file and self._open_file(action.file)
        if is_new and self._file is not None and self._file.head.rewrite:
            records.append(Rewritten(self._file.head.number, self._file.head.rewrite, 0, True, []))
        for layout, parts in _batches(action.parts, held):
            if layout is not None:
                self._add_alike(layout, parts, held, records, specs)
            else:
                for part in parts:
                    self._add(part, held, records, specs)
        if needs_file and action.publishes and self._file is not None:
            self._file.seal(self._catalog.annotation)
            self._file.push()
        return is_new

    def _add(self, part: Part, held: Mapping[int, Held], records: list[AnyRecord], specs: dict[bytes, int]) -> None:
        """Add an epoch to the file that is open, if any of it is left."""
        entry = part.entry
        if part.is_empty:
            records.append(Passed(entry.index, entry.first, entry.nsamples))
            return
        epoch = held[entry.index]
        layout, arrays = cut_samples(epoch.layout, epoch.arrays(), part.cut)
        assert self._file is not None
        if self._file.takes_packed:
            layout = self._packed(layout, arrays)
        stamp = self._stamp(entry, part.cut)
        region = self._file.append(stamp, layout, arrays)
        place = self._place(self._file, part.cut, region, records, specs)
        records.append(Stored(entry.index, entry.first, entry.nsamples, region.size, place))

    def _add_alike(
        self,
        layout: Layout,
        parts: Sequence[Part],
        held: Mapping[int, Held],
        records: list[AnyRecord],
        specs: dict[bytes, int],
    ) -> None:
        """As `_add`, for whole epochs of one layout that follow each other."""
        assert self._file is not None
        head, first = self._file.head, parts[0].entry
        epochs = [held[part.entry.index].arrays() for part in parts]
        bases, sums = self._file.append_alike(self._stamp(first, 0), layout, epochs)
        spec_id = self._spec_id(layout.spec, records, specs)
        packed = sums.tobytes()
        width, size = len(packed) // len(parts), layout.size
        for i, (part, base) in enumerate(zip(parts, bases, strict=True)):
            entry = part.entry
            place = Place(head.number, head.rewrite, base, 0, spec_id, packed[i * width : (i + 1) * width])
            records.append(Stored(entry.index, entry.first, entry.nsamples, size, place))
        self.bytes_written += size * len(parts)

    def _needs_file(self, action: WriteEpochs) -> bool:
        """Whether something is to be added to the file, or it is to be sealed."""
        return not all(part.is_empty for part in action.parts) or (
            action.publishes and bool(self._regions(action.file))
        )

    def _packed(self, layout: Layout, arrays: Sequence[Array]) -> Layout:
        """The layout of an epoch that may be packed. The first one that can be says how, if nobody else did."""
        if self._must_choose and can_choose(layout):
            self._packing, self._must_choose = choose(layout, arrays), False
        return layout if self._packing is None else packed_layout(layout, self._packing)

    def _stamp(self, entry: Entry, cut: int) -> Stamp:
        began = self._catalog.began
        return Stamp(began.run_id, began.generation, entry.index, entry.first, entry.nsamples, cut)

    def _place(
        self, file: EpochFile, cut: int, region: Region, records: list[AnyRecord], specs: dict[bytes, int]
    ) -> Place:
        """The place of an epoch that was added to a file. `specs`: layouts not yet journaled."""
        self.bytes_written += region.size
        spec_id = self._spec_id(region.layout.spec, records, specs)
        return Place(file.head.number, file.head.rewrite, region.base, cut, spec_id, pack_sums(region.sums))

    def _spec_id(self, spec: bytes, records: list[AnyRecord], specs: dict[bytes, int]) -> int:
        """The number of a layout; it is described if the journal doesn't know it."""
        spec_id = self._catalog.spec_ids.get(spec, specs.get(spec))
        if spec_id is None:
            spec_id = specs[spec] = len(self._catalog.specs) + len(specs)
            records.append(Described(spec))
        return spec_id

    def _open_file(self, span: FileSpan) -> bool:
        """Have the file open that epochs of `span` go to; returns whether its name is new in the folder."""
        if self._file is not None and self._file.head.number == span.number:
            return False
        self._close_current()
        catalog = self._catalog
        began = catalog.began
        name = filling_name(began.outfile_fmt, span.number)
        known = self._regions(span)
        if not known:
            rewrite = catalog.rewrites.get(span.number, 0) + self._spoiled[span.number]
            head = self._head(span.number, rewrite, [])
            self._broken.discard(span.number)
            self._made[name] = span.number
            self._file = EpochFile.create(self._disk, name, head, self._catalog.annotation)
            return True
        head = self._head(span.number, known[0][1].rewrite, [])
        regions = [(i, catalog.region(place)) for i, place in known]
        try:
            self._file = EpochFile.reopen(self._disk, name, head, regions)
        except OSError:
            self._broken.add(span.number)
            raise
        return False

    def _head(self, number: int, rewrite: int, packed: Sequence[Place]) -> FileHead:
        """The head of a new file. `packed`: epochs that it will have; is one of them packed, it needs the version."""
        began = self._catalog.began
        head = FileHead(began.run_id, began.generation, number, rewrite)
        has_packed = any(self._catalog.region(place).layout.grids for place in packed)
        return head._replace(version=PACKED_VERSION) if self._takes_packed or has_packed else head

    def _regions(self, span: FileSpan) -> list[tuple[int, Place]]:
        """The epochs that are in a file already."""
        stored = enumerate(self._catalog.places[span.start : span.stop], span.start)
        return [(i, place) for i, place in stored if place is not None]

    # ---- publishing ----------------------------------------------------------------------------------------------

    def publish(self, action: PublishFile) -> Change:
        """Seal a file that was filling up."""
        change = Change([], [])
        if action.file.number in self._catalog.filling and self._regions(action.file):
            with self._doubting():
                self._open_file(action.file)
                assert self._file is not None
                self._file.seal(self._catalog.annotation)
                self._file.sync()
        for file in self._publishing(action.file, action.stop, change):
            file.close()
        return change

    def _publishing(self, span: FileSpan, stop: int, change: Change) -> list[EpochFile]:
        """Have a sealed file get its name; returns it, if it was open, to be closed."""
        change.records.append(Published(span.number, stop))
        file = self._file
        if file is None or file.head.number != span.number:
            return []
        change.chores.append(Chore("publish", file.name, file_name(self._catalog.began.outfile_fmt, span.number)))
        self._file = None
        return [file]

    # ---- writing anew --------------------------------------------------------------------------------------------

    def must_copy(self, action: WriteEpochs | PublishFile) -> bool:
        """Whether the file of an action can't be added to: it is published already, or something failed on it."""
        number = action.file.number
        if self._file is not None and self._file.head.number == number:
            return False
        is_filling = number in self._catalog.filling
        needs_file = self._needs_file(action) if isinstance(action, WriteEpochs) else is_filling
        is_fit = is_filling and number not in self._broken
        return needs_file and not is_fit and bool(self._regions(action.file))

    def is_there(self, span: FileSpan) -> bool:
        """Whether a file has all bytes that its epochs should be in, right or wrong."""
        return is_there(self._disk, self._catalog, span)

    def copy_whole(self, span: FileSpan) -> Change:
        """Write a file anew with all that it has, to be added to."""
        catalog = self._catalog
        known = self._regions(span)
        indices = range(known[0][0], known[-1][0] + 1)
        places = [(catalog.entry(i), catalog.places[i]) for i in indices]
        parts = [Part(entry, entry.nsamples if place is None else place.cut) for entry, place in places]
        return self.copy(span, parts, filling=True)

    def copy(self, span: FileSpan, parts: Sequence[Part], *, filling: bool) -> Change:
        """Write a file anew with what is left of its epochs, beside the old one.

        Every checksum is looked at on the way. `filling`: more epochs will be added to it.
        """
        catalog = self._catalog
        self.close()
        fmt = catalog.began.outfile_fmt
        rewrite = catalog.rewrites.get(span.number, 0) + 1 + self._spoiled[span.number]
        name = rewrite_name(fmt, span.number, rewrite)
        records: list[AnyRecord] = []
        specs: dict[bytes, int] = {}
        places: list[Place | None] = []
        head = self._head(span.number, rewrite, [place for _, place in self._regions(span)])
        self._made[name] = 0
        file = EpochFile.create(self._disk, name, head, self._catalog.annotation)
        try:
            for part in parts:
                place = None
                if not part.is_empty:
                    region, cut = self._copy_part(file, part)
                    place = self._place(file, cut, region, records, specs)
                places.append(place)
            if not filling:
                file.seal(self._catalog.annotation)
            file.sync()
        finally:
            file.close()
        self._disk.sync_names()
        self._broken.discard(span.number)
        records.append(Rewritten(span.number, rewrite, parts[0].entry.index, filling, places))
        target = filling_name(fmt, span.number) if filling else file_name(fmt, span.number)
        return Change(records, [Chore("replace", name, target)])

    def _copy_part(self, file: EpochFile, part: Part) -> tuple[Region, int]:
        """Add to a file what is left of an epoch that another one has; returns where, and how much of it is cut.

        A damaged epoch is taken over as it is, with the checksums that it had: it stays damaged, and is seen to be.
        One that is packed stays so, and isn't brought back for it if nothing is cut.
        """
        catalog = self._catalog
        place = catalog.places[part.entry.index]
        assert place is not None
        region = catalog.region(place)
        with open_place(self._disk, catalog, place) as reader:
            if region.layout.grids:
                return self._copy_packed(file, part, place, reader)
            arrays = [reader.read_array(region, i, verify=False) for i in range(len(region.layout.leaves))]
            try:
                reader.check_sums(region, arrays)
            except Damaged as error:
                logger.critical("%s", str(error))
                stamp = self._stamp(part.entry, place.cut)
                return file.append(stamp, region.layout, arrays, region.sums), place.cut
        layout, arrays = cut_samples(region.layout, arrays, part.cut - place.cut)
        return file.append(self._stamp(part.entry, part.cut), layout, arrays), part.cut

    def _copy_packed(self, file: EpochFile, part: Part, place: Place, reader: Reader) -> tuple[Region, int]:
        region = self._catalog.region(place)
        packing = region.layout.packing
        assert packing is not None
        try:
            if part.cut > place.cut:
                arrays = [reader.read_array(region, i, verify=True) for i in range(len(region.layout.leaves))]
                layout, arrays = cut_samples(region.layout, arrays, part.cut - place.cut)
                stamp = self._stamp(part.entry, part.cut)
                return file.append(stamp, packed_layout(layout, packing), arrays), part.cut
            reader.check_stored(region)
        except Damaged as error:
            logger.critical("%s", str(error))
        return file.copy(self._stamp(part.entry, place.cut), region, reader), place.cut

    # ---- going ---------------------------------------------------------------------------------------------------

    def clear_up(self, change: Change | None = None) -> list[Chore]:
        """After a change that worked, or at a reset: have what failed attempts left removed."""
        made, self._made = self._made, {}
        used = {chore.name for chore in change.chores} if change is not None else set()
        left = [name for name, number in made.items() if name not in used and not self._catalog.has_file(number)]
        return [Chore("remove", name) for name in left]

    def drop(self, action: DropFiles) -> Change:
        """Have whole files removed."""
        fmt = self._catalog.began.outfile_fmt
        there = [number for number in action.numbers if self._catalog.has_file(number)]
        names = [name for number in there for name in (file_name(fmt, number), filling_name(fmt, number))]
        return Change([Dropped(action.stop)], [Chore("remove", name) for name in names])

    @contextlib.contextmanager
    def _doubting(self) -> Iterator[None]:
        """After a failure what was added since the last sync isn't there, and the file may be trusted no more."""
        try:
            yield
        except OSError as error:
            for file in self._open():
                if file.sync_failed or not is_full(error):
                    self._broken.add(file.head.number)
            self.close()
            raise

    def distrust(self, change: Change) -> None:
        """After a failure to journal a change: it may be seen all the same, until the journal is written anew.

        So nothing else may ever be found at the places of which its records tell: the files get other heads.
        """
        numbers = {record.place.number for record in change.records if isinstance(record, Stored)}
        numbers |= {record.number for record in change.records if isinstance(record, Rewritten)}
        self._spoiled.update(numbers)
        self._broken |= numbers
        self.close()

    def close(self) -> None:
        """Close the files that are open."""
        self._close_complete()
        self._close_current()

    def _close_current(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            file.close()


def _batches(parts: Sequence[Part], held: Mapping[int, Held]) -> Iterator[tuple[Layout | None, list[Part]]]:
    """Neighbouring parts that are to be added together, with their layout; or, with none, one by one."""
    for layout, neighbours in groupby(parts, partial(_layout_of_whole, held)):
        alike = list(neighbours)
        if layout is None or len(alike) < WORTH_IT:
            yield None, alike
            continue
        most = most_together(layout)
        for start in range(0, len(alike), most):
            yield layout, alike[start : start + most]


def _layout_of_whole(held: Mapping[int, Held], part: Part) -> Layout | None:
    """The layout of an epoch that may be added together with others like it: nothing of it is cut, or packed."""
    if part.cut:
        return None
    layout = held[part.entry.index].layout
    return layout if most_together(layout) else None
