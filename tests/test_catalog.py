"""What the journal says: which epoch is where."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posterity._format.file_header import FileHead
from posterity._format.file_writer import EpochFile
from posterity._format.flatten import flatten
from posterity._format.schema import encode_items
from posterity._model.file_names import aside_name, filling_name, rewrite_name
from posterity._model.metadata import Metadata
from posterity._model.registry import Registry, Series, span_of
from posterity._store.catalog import Catalog, pack_sums, replayed, unpack_sums
from posterity._store.file_lookup import open_place
from posterity._store.journal import decode, encode_batch, encode_header
from posterity._store.records import (
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
from posterity._system.disk import Disk
from posterity.errors import Damaged

RUN = b"0123456789abcdef"
BEGAN = Began(RUN, 3, "epochs_%d.h5", 5, 4, 1e9)
SPECS = [encode_items(flatten({"x": 0.0, "n": n * [0.0]})[0]) for n in range(3)]
SUMS = pack_sums((1, 2**64 - 1))


def place(number=1, rewrite=0, base=128, cut=0, layout=0, sums=SUMS):
    return Place(number, rewrite, base, cut, layout, sums)


def catalog_of(*records, began=BEGAN):
    return replayed([began, *records])


START = [Grouped(0, 1, 2), Described(SPECS[0])]
TWO = [*START, Stored(0, 0, 10, 800, place()), Stored(1, 10, 20, 1600, place(base=1000, cut=3))]


# ---- replaying -------------------------------------------------------------------------------------------------------


def test_a_run_that_began_is_empty():
    """The first record says who the run is and what it owes."""
    registry = catalog_of().registry()
    metadata = Metadata(started_at=BEGAN.began_at)
    assert registry == Registry(
        generation=3, burn=5, asked_burn=4, stored_burn=5, stored_asked_burn=4, metadata=metadata
    )


def test_the_records_make_the_registry():
    """Epochs, burns, groupings, publications and drops are counted."""
    catalog = catalog_of(*TWO, Passed(2, 30, 5), Published(1, 2), Burned(32, 31), Dropped(2), Grouped(3, 5, 4))
    registry = catalog.registry()
    assert [(entry.first, entry.nsamples, entry.nbytes) for entry in registry.entries] == [
        (0, 10, 800),
        (10, 20, 1600),
        (30, 5, 0),
    ]
    assert list(registry.cuts) == [10, 20, 5]
    assert registry.series == (Series(0, 1, 2), Series(3, 5, 4))
    assert (registry.burn, registry.asked_burn, registry.stored_burn) == (32, 31, 32)
    assert (registry.npublished, registry.ndropped, registry.generation) == (2, 2, 3)


def test_a_burn_is_never_lowered():
    """A smaller burn that comes later changes nothing."""
    registry = catalog_of(Burned(9, 8), Burned(7, 6)).registry()
    assert (registry.burn, registry.asked_burn) == (9, 8)


def test_a_reset_forgets_what_was_before():
    """The last beginning counts."""
    catalog = replayed([BEGAN, *TWO, Began(RUN, 4, "epochs_%d.h5", 0, 0, 2e9), Grouped(0, 1, 7)])
    assert catalog.registry() == Registry(generation=4, series=(Series(0, 1, 7),), metadata=Metadata(started_at=2e9))
    assert (catalog.places, catalog.specs, catalog.numbers()) == ([], [], set())


def test_a_grouping_that_nothing_was_written_with_is_replaced():
    """Of two groupings from the same epoch on, the later one holds."""
    assert catalog_of(Grouped(0, 1, 2), Grouped(0, 1, 5)).series() == [Series(0, 1, 5)]


def test_a_rewrite_moves_epochs():
    """After a rewrite, epochs are at their new places, or nowhere."""
    catalog = catalog_of(*TWO, Published(1, 2), Rewritten(1, 1, 0, False, [None, place(rewrite=1, cut=7)]))
    assert catalog.places == [None, place(rewrite=1, cut=7)]
    assert list(catalog.registry().cuts) == [10, 7]
    assert catalog.rewrites == {1: 1}


@pytest.mark.parametrize(
    ("records", "filling"),
    [
        (TWO, {1}),
        ([*TWO, Published(1, 2)], set()),
        ([*TWO, Published(1, 2), Stored(2, 30, 1, 8, place(number=2))], {2}),
        ([*TWO, Published(1, 2), Rewritten(1, 1, 0, True, [None, place(rewrite=1, cut=3)])], {1}),
        ([*TWO, Published(1, 2), Rewritten(1, 1, 0, False, [None, place(rewrite=1, cut=3)])], set()),
    ],
)
def test_a_file_is_filling_until_it_is_published(records, filling):
    """The records say which file gets the next epochs."""
    assert catalog_of(*records).filling == filling


# Two files: the first is published, and the second one is filling up. The first two epochs are burned.
FILES = [
    *TWO,
    Published(1, 2),
    Stored(2, 30, 10, 800, place(number=2)),
    Burned(30, 0),
]
MOVED = Rewritten(2, 2, 2, True, [place(number=2, rewrite=2, cut=1)])


@pytest.mark.parametrize(
    "records",
    [
        pytest.param([Stored(4, 40, 10, 800, place(2, base=1000))], id="an epoch too far"),
        pytest.param([Stored(2, 40, 10, 800, place(2, base=1000))], id="an epoch again"),
        pytest.param([Stored(3, 45, 10, 800, place(2, base=1000))], id="a gap between samples"),
        pytest.param([Passed(3, 35, 5)], id="samples again"),
        pytest.param([Stored(3, 40, 10, 800, place(2, base=1000, layout=1))], id="a layout that isn't there"),
        pytest.param([Stored(3, 40, 10, 800, place(2, base=1000, sums=b"odd"))], id="a piece of a checksum"),
        pytest.param([Stored(3, 40, 10, 800, place(2, base=1000, cut=10))], id="no sample"),
        pytest.param([Stored(3, 40, 10, 800, place(1, base=9000))], id="a file that is full"),
        pytest.param([Stored(3, 40, 10, 800, place(3))], id="a file too far"),
        pytest.param([Stored(3, 40, 10, 800, place(2))], id="two epochs at one place"),
        pytest.param([Stored(3, 40, 10, 800, place(2, base=120))], id="an epoch before one that came before it"),
        pytest.param([Stored(3, 40, 10, 800, place(2, rewrite=1, base=1000))], id="one file after two rewrites"),
        pytest.param([Grouped(2, 3, 1)], id="a grouping of epochs that are there"),
        pytest.param([Grouped(3, 2, 1)], id="a grouping into a file that is there"),
        pytest.param([Grouped(3, 0, 1)], id="a grouping into no file"),
        pytest.param([Grouped(3, 3, 0)], id="no epochs a file"),
        pytest.param([Grouped(9, 9, 1)], id="a grouping of epochs to come"),
        pytest.param([Rewritten(2, 1, 2, True, [])], id="a file that was rewritten, and its epochs weren't"),
        pytest.param([MOVED, Rewritten(2, 2, 2, True, MOVED.places)], id="the same rewrite twice"),
        pytest.param([MOVED, Rewritten(2, 1, 2, True, [place(2, 1, cut=1)])], id="a rewrite before the last one"),
        pytest.param([MOVED, Rewritten(2, 3, 2, True, [place(2, 3)])], id="samples that were gone"),
        pytest.param([Rewritten(2, 1, 2, True, [place(2, 2)])], id="a rewrite in a file after another one"),
        pytest.param([Rewritten(2, 1, 2, True, [place(2, 1, layout=9)])], id="a rewrite to a wrong layout"),
        pytest.param([Rewritten(2, 1, 2, True, [place(2, 1), None])], id="a rewrite of epochs to come"),
        pytest.param([Rewritten(2, 1, 1, True, [None, place(2, 1)])], id="a rewrite of two files at once"),
        pytest.param([Rewritten(1, 1, 1, False, [place(1, 1, cut=3)])], id="a rewrite of a part of a file"),
        pytest.param([Rewritten(1, 1, 0, False, [place(1, 1), place(1, 1, cut=3)])], id="a rewrite to one place"),
        pytest.param([Rewritten(5, 1, 2, True, [place(5, 1)])], id="a rewrite of no file"),
        pytest.param(
            [Rewritten(1, 1, 0, False, [None, place(1, 1, cut=3)]), Rewritten(1, 2, 0, False, [place(1, 2), None])],
            id="an epoch that was gone",
        ),
        pytest.param([Published(2, 4)], id="publishing epochs to come"),
        pytest.param([Published(1, 1)], id="publishing less than before"),
        pytest.param([Published(1, 3)], id="publishing a file with the epoch of another one"),
        pytest.param([Published(3, 3)], id="publishing a file too far"),
        pytest.param([Stored(3, 40, 1, 80, place(2, base=1000)), Published(2, 3)], id="publishing a part of a file"),
        pytest.param([Dropped(4)], id="dropping epochs to come"),
        pytest.param([Dropped(2), Dropped(1)], id="dropping less than before"),
        pytest.param([Dropped(1)], id="dropping a part of a file"),
        pytest.param([Published(2, 3), Dropped(3)], id="dropping what isn't burned"),
        pytest.param([Burned(31, 32)], id="asking for more than was burned"),
        pytest.param([Began(RUN, 3, "epochs_%d.h5", 0, 0, 2e9), Grouped(0, 1, 1)], id="a generation again"),
        pytest.param([Began(bytes(16), 4, "epochs_%d.h5", 0, 0, 2e9), Grouped(0, 1, 1)], id="another run"),
        pytest.param([Began(RUN, 4, "epochs_%d.h5", 0, 1, 2e9)], id="owing more than was burned"),
    ],
)
def test_records_that_contradict_each_other_are_damage(records):
    """A journal that can't be a run's raises `Damaged`; without what is wrong in it, it is one."""
    catalog_of(*FILES)
    with pytest.raises(Damaged, match="the journal"):
        catalog_of(*FILES, *records)


@pytest.mark.parametrize("records", [[Passed(0, 0, 1)], [Grouped(1, 1, 1), Passed(0, 0, 1)]], ids=["all", "the first"])
def test_epochs_that_belong_to_no_file_are_damage(records):
    """Each epoch, also one that was never written, belongs to a file."""
    with pytest.raises(Damaged, match="which files 1 epochs belong to"):
        catalog_of(*records)


def test_a_rewrite_that_nothing_is_said_of_is_damage():
    """A file that epochs are in after some rewrites was written anew as often."""
    records = [*TWO, Stored(2, 30, 10, 800, place(number=2, rewrite=3))]
    assert catalog_of(*records, Rewritten(2, 3, 0, True, [])).rewrites == {2: 3}
    with pytest.raises(Damaged, match="that file 2 was written anew"):
        catalog_of(*records)


def test_a_run_within_a_run_is_damage():
    """A beginning is not a change of a run."""
    with pytest.raises(Damaged, match="run within a run"):
        Catalog(BEGAN).apply(BEGAN)


@pytest.mark.parametrize("records", [[], [Passed(0, 0, 1)], [Grouped(0, 1, 1), BEGAN]])
def test_a_journal_begins_with_a_beginning(records):
    """A journal without a beginning raises `Damaged`."""
    with pytest.raises(Damaged, match=r"empty|doesn't begin"):
        replayed(records)


@pytest.mark.parametrize("fmt", ["../../%d", "/tmp/%d", "%s", "%d%d", "plain", "%999999999d", ".%d"])
def test_a_journal_whose_files_have_no_names_is_damage(fmt):
    """A hostile journal can't name files outside of the folder, or in a way that costs memory."""
    with pytest.raises(Damaged, match="journal names files"):
        catalog_of(began=Began(RUN, 0, fmt, 0, 0, 0.0))


# ---- the shortest journal that says the same -------------------------------------------------------------------------


class Author:
    """Writes a journal that could be a run's, for a catalog to follow."""

    def __init__(self):
        self.catalog = Catalog(BEGAN)
        self.journal = []
        self.journal = list(self.catalog.records())
        self.base = 0
        self.published = set()
        self.write(Grouped(0, 1, 3))

    def write(self, *records):
        for record in records:
            self.catalog.apply(record)
        self.journal += records

    @property
    def n(self):
        return len(self.catalog.places)

    @property
    def number(self):
        """The file that the next epoch goes to."""
        return span_of(self.catalog.series(), self.n).number

    def _first(self):
        return self.catalog.entry(self.n - 1).stop if self.n else 0

    def _place(self, number, layout, cut):
        self.base += 1000
        return place(number, self.catalog.rewrites.get(number, 0), self.base, cut, layout)

    def store(self, n):
        spec = SPECS[n % 3]
        if self.number in self.published:
            self._rewrite(self.number, 0, filling=True)
        if spec not in self.catalog.spec_ids:
            self.write(Described(spec))
        layout = self.catalog.spec_ids[spec]
        self.write(Stored(self.n, self._first(), 10, 100 + n, self._place(self.number, layout, n % 10)))

    def skip(self, n):
        self.write(Passed(self.n, self._first(), 1 + n))

    def burn(self, n):
        self.write(Burned(10 * n, 5 * n))

    def publish(self, _):
        """Publish the files that aren't, full or half full."""
        start = self.catalog.shown().npublished
        while start < self.n:
            file = span_of(self.catalog.series(), start)
            start = min(file.stop, self.n)
            self.write(Published(file.number, start))
            self.published.add(file.number)

    def group(self, n):
        self.publish(n)
        number = 1 + span_of(self.catalog.series(), self.n - 1).number if self.n else 1
        self.write(Grouped(self.n, number, 1 + n % 4))

    def rewrite(self, n):
        numbers = sorted(self.catalog.numbers())
        if numbers:
            number = numbers[n % len(numbers)]
            self._rewrite(number, n, filling=number in self.catalog.filling)

    def _rewrite(self, number, n, *, filling):
        found = [(i, old) for i, old in enumerate(self.catalog.places) if old is not None and old.number == number]
        if not found:
            return
        self.published -= {number} if filling else set()
        start = found[0][0]
        places = [None] * (found[-1][0] + 1 - start)
        rewrite = self.catalog.rewrites.get(number, 0) + 1
        for i, old in found:
            if n % 3 == 0 or (i, old) == found[-1]:
                self.base += 1000
                places[i - start] = place(number, rewrite, self.base, min(9, old.cut + n % 2), old.layout)
        self.write(Rewritten(number, rewrite, start, filling, places))

    def drop(self, n):
        """Drop the files before one of those that are there."""
        ends = [i for i, old in enumerate(self.catalog.places) if old is not None and old.number < self.number]
        if ends:
            number = self.catalog.places[ends[n % len(ends)]].number
            stop = 1 + max(i for i in ends if self.catalog.places[i].number <= number)
            self.write(Burned(self.catalog.entry(stop - 1).stop, 0), Dropped(stop))

    def compact(self, _):
        self.catalog.forget_unused_layouts()
        self.journal = list(self.catalog.records())


EVENTS = st.tuples(
    st.sampled_from(
        ["store"] * 4 + ["skip", "burn", "publish", "publish", "group", "rewrite", "rewrite", "drop", "compact"]
    ),
    st.integers(0, 11),
)


def known(catalog):
    """All that a catalog says, but for the bytes of epochs that are in no file, and for layouts that nobody uses."""
    registry = catalog.registry()
    used = {place.layout for place in catalog.places if place is not None}
    numbers = catalog.numbers()
    return {
        "entries": [
            (entry.first, entry.nsamples, entry.nbytes if place is not None else 0)
            for entry, place in zip(registry.entries, catalog.places, strict=True)
        ],
        "cuts": list(registry.cuts),
        "series": registry.series,
        "burn": (registry.burn, registry.asked_burn, registry.stored_burn),
        "counts": (registry.generation, registry.npublished, registry.ndropped),
        "places": catalog.places,
        "specs": {i: catalog.specs[i] for i in used},
        "filling": catalog.filling,
        "numbers": numbers,
        "rewrites": {number: catalog.rewrites.get(number, 0) for number in numbers | catalog.filling},
        "run": (catalog.began.run_id, catalog.began.outfile_fmt, catalog.began.began_at),
    }


@given(st.lists(EVENTS, max_size=30))
@settings(max_examples=200)
def test_the_shortest_journal_says_the_same(events):
    """At any moment a compacted journal, and one that was compacted and written on, give an equal catalog."""
    author = Author()
    for name, n in events:
        getattr(author, name)(n)
    data = encode_header()
    data += encode_batch(author.journal, len(data))
    expected = known(author.catalog)
    assert known(replayed(decode(data)[0])) == expected
    short = list(author.catalog.records())
    assert known(replayed(short)) == expected
    assert list(replayed(short).records()) == short


def test_a_compacted_journal_is_short():
    """Its length grows with the epochs, not with what happened to them."""
    catalog = catalog_of(*TWO, Published(1, 2))
    for rewrite in range(1, 100):
        places = [place(rewrite=rewrite), place(rewrite=rewrite, base=1000, cut=3)]
        catalog.apply(Rewritten(1, rewrite, 0, False, places))
        catalog.apply(Burned(rewrite, 0))
    assert catalog.nrecords > 200
    assert len(list(catalog.records())) < 10


def test_a_forgotten_layout_is_described_anew():
    """After compaction, a layout that no epoch had then gets a new number: its text is no longer in the journal."""
    catalog = catalog_of(*TWO, Described(SPECS[1]), Published(1, 2), Burned(30, 0), Dropped(2))
    catalog.forget_unused_layouts()
    assert SPECS[0] not in catalog.spec_ids
    again = replayed(list(catalog.records()))
    assert SPECS[0] not in again.spec_ids
    assert len(again.specs) == len(catalog.specs)


# ---- looking up ------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 2**64 - 1)).map(tuple))
def test_checksums_come_back(sums):
    """Checksums are packed to eight bytes each."""
    assert unpack_sums(pack_sums(sums)) == sums
    assert len(pack_sums(sums)) == 8 * len(sums)


def test_a_place_leads_to_a_region():
    """The layout, the base and the checksums of an epoch are those of its place."""
    catalog = catalog_of(Described(SPECS[1]))
    region = catalog.region(place(base=256, layout=0, sums=pack_sums((5, 6))))
    assert (region.base, region.layout.spec, region.sums) == (256, SPECS[1], (5, 6))


def test_a_place_with_too_few_checksums_is_damage():
    """A checksum is missing for an array."""
    with pytest.raises(Damaged, match="1 checksums for 2 arrays"):
        catalog_of(Described(SPECS[1])).region(place(sums=pack_sums((5,))))


def test_the_names_of_a_file():
    """A file has one name while it fills up, one when it was written anew, and one when a reset took it."""
    assert filling_name("e%d.h5", 7) == ".e7.h5.filling"
    assert rewrite_name("e%d.h5", 7, 2) == ".e7.h5.2.new"
    assert aside_name("e%d.h5", 7, 3) == ".e7.h5.g3.old"


NAMES = {
    "filling": ".epochs_1.h5.filling",
    "published": "epochs_1.h5",
    "new": ".epochs_1.h5.2.new",
    "old": ".epochs_1.h5.g3.old",
}


def make(disk, name, rewrite=2, number=1, generation=3, run=RUN):
    file = EpochFile.create(disk, name, FileHead(run, generation, number, rewrite))
    file.flush()
    file.close()


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_place_is_found_under_whatever_name_its_file_has(disk, name):
    """A file is found while it fills up, when it is published, before it takes another's place, and after a reset."""
    make(disk, name)
    with open_place(disk, catalog_of(), place(rewrite=2)) as reader:
        assert reader.name == name


@pytest.mark.parametrize("head", [{"rewrite": 1}, {"number": 2}, {"generation": 2}, {"run": bytes(16)}], ids=str)
def test_a_file_that_is_another_one_is_not_taken(disk, head):
    """A file with the right name that was written anew since, or belongs to another run, isn't the one."""
    for name in NAMES.values():
        make(disk, name, **head)
    with pytest.raises(FileNotFoundError, match=r"epochs_1\.h5"):
        open_place(disk, catalog_of(), place(rewrite=2))


def test_the_right_one_of_several_files_is_taken(disk):
    """Of an old and a new state of a file, the one that the place means is opened, whatever their names."""
    make(disk, "epochs_1.h5", rewrite=1)
    make(disk, ".epochs_1.h5.2.new", rewrite=2)
    for rewrite, name in ((1, "epochs_1.h5"), (2, ".epochs_1.h5.2.new")):
        with open_place(disk, catalog_of(), place(rewrite=rewrite)) as reader:
            assert reader.name == name


def test_a_rename_between_two_looks_is_no_loss(tmp_path):
    """A file that gets its next name while it is looked for is found: names are tried in the order they come in."""
    order = [".epochs_1.h5.2.new", ".epochs_1.h5.filling", "epochs_1.h5", ".epochs_1.h5.g3.old"]

    class Renaming(Disk):
        """Each time that a name isn't there, the file has just got a later one."""

        def open(self, name, *, write=False):
            at = order.index(name)
            there = next(i for i, other in enumerate(order) if (tmp_path / other).exists())
            if there == at and at < 3:
                fd = super().open(name, write=write)
                os.close(fd)
                (tmp_path / name).rename(tmp_path / order[at + 1])
                raise FileNotFoundError(name)
            return super().open(name, write=write)

    disk = Renaming(tmp_path)
    disk.enter()
    make(disk, order[0])
    with open_place(disk, catalog_of(), place(rewrite=2)) as reader:
        assert reader.name == order[3]
    disk.leave()
