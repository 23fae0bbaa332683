"""What a journal says of files, held against what it said before: a forged one must be refused when it is opened.

It may be damaged on purpose, with good checksums. What contradicts itself would have the writer try for ever, or a
reader look where nothing is.

Up the stream: `journal` decodes records, and looks at each number. Down the stream: `catalog` replays them.
"""

from collections.abc import Sequence

from posterity._model.registry import FileSpan, Series, span_of
from posterity.errors import Damaged

from .records import Grouped, Place, Published, Rewritten


class _Filed:
    """What a file holds: after how many rewrites, how many epochs, the last of them, and where that begins."""

    __slots__ = ("base", "last", "nepochs", "rewrite")

    def __init__(self, rewrite: int) -> None:
        self.rewrite = rewrite
        self.nepochs = 0
        self.last = self.base = -1


class Claims:
    """Which files epochs belong to, and which they are in. Each method raises `Damaged` where that can't be."""

    def __init__(self) -> None:
        self.series: list[Series] = []
        self.rewrites: dict[int, int] = {}
        self._files: dict[int, _Filed] = {}
        self._owed: set[int] = set()  # files of which it is yet to be said how often they were written anew

    def has_file(self, number: int) -> bool:
        """Whether a file with this number was ever written, and not dropped."""
        return number in self._files

    def numbers(self) -> set[int]:
        """The numbers of these files."""
        return set(self._files)

    def group(self, record: Grouped, nepochs: int) -> None:
        """Epochs that aren't there yet are grouped into files with numbers of their own."""
        if record.number < 1 or record.epochs_per_file < 1:
            raise Damaged(f"the journal groups epochs in a way that makes no sense: {record}")
        kept = [series for series in self.series if series.start < record.start]
        is_used = bool(kept) and record.number <= span_of(kept, record.start - 1).number
        if record.start < nepochs or is_used:
            raise Damaged(f"the journal groups epochs anew that have their files already: {record}")
        self.series = [*kept, Series(record.start, record.number, record.epochs_per_file)]

    def add(self, start: int, places: Sequence[Place | None]) -> None:
        """Epochs from `start` on are in the files that they belong to, behind the others there; or in none."""
        span: FileSpan | None = None
        for index, place in enumerate(places, start):
            if place is None:
                continue
            number = place.number
            if span is None or index >= span.stop:
                span = self._span_of(index)
            if span is None or span.number != number:
                raise Damaged(f"the journal has epoch {index} in file {number}, which it doesn't belong to")
            file = self._files.get(number)
            if file is None or not file.nepochs:
                file = self._begun(place)
            if place.rewrite != file.rewrite or place.base <= file.base:
                raise Damaged(f"the journal has epoch {index} in file {number} where it can't be: {place}")
            file.nepochs, file.last, file.base = file.nepochs + 1, index, place.base

    def _begun(self, place: Place) -> _Filed:
        """A file that gets its first epoch."""
        rewrite = self.rewrites.get(place.number, 0)
        file = self._files[place.number] = _Filed(max(place.rewrite, rewrite))
        if file.rewrite > rewrite:
            self._owed.add(place.number)
        return file

    def _span_of(self, index: int) -> FileSpan | None:
        """The file that an epoch belongs to; None if nothing was said of it."""
        is_grouped = bool(self.series) and self.series[0].start <= index
        return span_of(self.series, index) if is_grouped else None

    def rewrite(self, record: Rewritten, old: Sequence[Place | None]) -> None:
        """A file was written anew, with no more than it had. `old`: the places of the record's epochs until now."""
        number, file = record.number, self._files.get(record.number)
        if record.places:
            self._move(record, old)
        elif record.rewrite < self.rewrites.get(number, 0) or (
            file is not None and file.nepochs and record.rewrite != file.rewrite
        ):
            raise Damaged(f"the journal has file {number} after {record.rewrite} rewrites, which it never was")
        self.rewrites[number] = record.rewrite

    def _move(self, record: Rewritten, old: Sequence[Place | None]) -> None:
        number, file = record.number, self._files.get(record.number)
        there = [place.number for place in old if place is not None]
        if file is None or len(old) != len(record.places) or there != file.nepochs * [number]:
            raise Damaged(f"the journal has file {number} written anew with epochs that aren't those it had")
        if record.rewrite <= max(file.rewrite, self.rewrites.get(number, 0)):
            raise Damaged(f"the journal has file {number} after {record.rewrite} rewrites, and it had as many")
        file.rewrite, file.nepochs, file.base = record.rewrite, 0, -1
        for index, (place, before) in enumerate(zip(record.places, old, strict=True), record.start):
            if place is None:
                continue
            if before is None or place.cut < before.cut or place.rewrite != record.rewrite:
                raise Damaged(f"the journal has more of epoch {index} in file {number} than there was, or elsewhere")
            self.add(index, [place])

    def publish(self, record: Published) -> None:
        """A file is complete, with all that it has."""
        number, stop = record.number, record.stop
        span = self._span_of(stop - 1) if stop else None
        if number and (span is None or span.number != number):
            raise Damaged(f"the journal has file {number} end before epoch {stop}, which is in another one")
        file = self._files.get(number)
        if file is not None and file.nepochs and file.last >= stop:
            raise Damaged(f"the journal has file {number} end before epoch {stop}, and it has more")

    def drop(self, places: Sequence[Place | None]) -> None:
        """All epochs of some files are gone."""
        numbers = [place.number for place in places if place is not None]
        for number in numbers:
            self._files[number].nepochs -= 1
        for number in set(numbers):
            if self._files.pop(number).nepochs:
                raise Damaged(f"the journal drops a part of file {number}")

    def check_whole(self, nepochs: int) -> None:
        """All is said of each file and of each epoch: to be asked when all records that came together were taken in."""
        for number in self._owed:
            if number in self._files and self._files[number].rewrite != self.rewrites.get(number, 0):
                raise Damaged(f"the journal doesn't say that file {number} was written anew, and has epochs in it then")
        self._owed.clear()
        starts = [series.start for series in self.series]
        if (starts and (starts[0] or starts[-1] > nepochs)) or (nepochs and not starts):
            raise Damaged(f"the journal doesn't say which files {nepochs} epochs belong to: {self.series}")
