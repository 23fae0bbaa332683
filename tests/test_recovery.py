"""Opening a folder: what run is there, what a crash left half done, and whose the files are."""

import logging
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import storable
from posterity import DefaultBackend
from posterity._format.file_header import FileHead
from posterity._format.file_writer import EpochFile
from posterity._format.flatten import flatten
from posterity._format.frame import Stamp
from posterity._format.layout import layout_of
from posterity._format.schema import encode_items
from posterity._model.file_names import JOURNAL, NEW_JOURNAL
from posterity._model.options import Options
from posterity._model.registry import span_of
from posterity._store import journal
from posterity._store.catalog import Catalog, pack_sums
from posterity._store.file_lookup import open_place
from posterity._store.journal import Journal
from posterity._store.name_changes import Chore, Chores
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
from posterity._store.recovery import find_run
from posterity.errors import Damaged, ForeignFiles

RUN = b"0123456789abcdef"
SAMPLES = 10  # in each epoch
FILLING = ".epochs_{}.h5.filling"
PUBLISHED = "epochs_{}.h5"


class Author:
    """Writes a run folder file by file, with a journal that says so."""

    def __init__(self, disk, *, generation=0, run=RUN, epochs_per_file=2, burn=0):
        self.disk = disk
        self.catalog = Catalog(Began(run, generation, "epochs_%d.h5", burn, 0, 1e9))
        self.batches = [list(self.catalog.records())]
        self.say(Grouped(0, 1, epochs_per_file))

    def say(self, *records):
        """Have the journal say something."""
        for record in records:
            self.catalog.apply(record)
        self.batches.append(list(records))

    @property
    def n(self):
        return len(self.catalog.places)

    def file(self, number, *epochs, name=FILLING, rewrite=0, start=None):
        """A file with the next epochs: each by how many of its samples are cut, or None where all are: it is passed.

        Returns the records that tell of it. `start`: the index of the first one.
        """
        began = self.catalog.began
        file = EpochFile.create(
            self.disk, name.format(number), FileHead(began.run_id, began.generation, number, rewrite)
        )
        records, specs = [], dict(self.catalog.spec_ids)
        for index, cut in enumerate(epochs, self.n if start is None else start):
            if cut is None:
                records.append(Passed(index, SAMPLES * index, SAMPLES))
                continue
            items, arrays = flatten(
                {"samples": {"p": np.arange(cut, SAMPLES) + 100.0 * index + np.zeros((2, 1, 1))}, "i": index}
            )
            layout = layout_of(encode_items(items))
            stamp = Stamp(began.run_id, began.generation, index, SAMPLES * index, SAMPLES, cut)
            region = file.append(stamp, layout, arrays)
            if layout.spec not in specs:
                specs[layout.spec] = len(specs)
                records.append(Described(layout.spec))
            place = Place(number, rewrite, region.base, cut, specs[layout.spec], pack_sums(region.sums))
            records.append(Stored(index, SAMPLES * index, SAMPLES, layout.size, place))
        if not name.startswith(".") or name.endswith("new"):
            file.seal()
        file.sync()
        file.close()
        return records

    def group(self, number):
        """Have the next epochs belong to a file."""
        if span_of(self.catalog.series(), self.n).number != number:
            self.say(Grouped(self.n, number, 100))

    def stored(self, number, *epochs):
        """A file that is filling up, journaled."""
        self.group(number)
        self.say(*self.file(number, *epochs))

    def published(self, number, *epochs):
        """A file that is complete, journaled."""
        self.group(number)
        self.say(*self.file(number, *epochs, name=PUBLISHED), Published(number, self.n + len(epochs)))

    def rewritten(self, number, start, *epochs, filling=False, rewrite=1):
        """A file that was written anew and journaled, and has not yet taken the place of the old one."""
        burned = [SAMPLES * i + (SAMPLES if cut is None else cut) for i, cut in enumerate(epochs, start) if cut != 0]
        self.say(Burned(max(burned, default=0), 0))
        records = self.file(number, *epochs, name=f".epochs_{{}}.h5.{rewrite}.new", rewrite=rewrite, start=start)
        stored = {record.index: record.place for record in records if isinstance(record, Stored)}
        places = [stored.get(index) for index in range(start, start + len(epochs))]
        layouts = [record for record in records if isinstance(record, Described)]
        self.say(*layouts, Rewritten(number, rewrite, start, filling, places))

    def journal(self, nbatches=None):
        """Write the journal, or the first so many batches of it."""
        log = Journal.create(self.disk, self.batches[0])
        for batch in self.batches[1:nbatches]:
            log.append(batch)
        log.close()

    def move(self, name, as_name):
        (self.disk.folder / name).rename(self.disk.folder / as_name)


@pytest.fixture
def author(disk):
    return Author(disk)


def find(disk, **options):
    return find_run(disk, Options(**options))


def told(chores):
    """Chores in a few words."""
    return sorted((chore.what, chore.name, chore.as_name) for chore in chores)


def known(catalog):
    """What there is of a run: each epoch that is in a file, and what is said of it."""
    registry = catalog.registry()
    return {
        "epochs": {
            i: (registry.entries[i].first, registry.entries[i].nsamples, place)
            for i, place in enumerate(catalog.places)
            if place is not None
        },
        "specs": [catalog.specs[place.layout] for place in catalog.places if place is not None],
        "nsamples": registry.nsamples,
        "next": registry.next_index,
        "published": registry.npublished,
        "filling": catalog.filling,
    }


def check(disk, catalog):
    """What must hold of any catalog: its epochs can be read, and each file has those that the registry gives it."""
    registry = catalog.registry()
    for i, place in enumerate(catalog.places):
        entry = registry.entries[i]
        if place is None:
            assert entry.is_burned(registry.burn)
            continue
        assert registry.file_of(i).number == place.number, "a file is dropped with its epochs, and no others"
        assert place.cut <= entry.burned(registry.burn), "what isn't in the file is burned"
        with open_place(disk, catalog, place) as reader:
            region = catalog.region(place)
            p = reader.read_array(region, region.layout.by_path["samples/p"], verify=True)
        np.testing.assert_array_equal(p[1, 0], np.arange(place.cut, SAMPLES) + 100.0 * i)


# ---- whose the files are ---------------------------------------------------------------------------------------------


def test_an_empty_folder_holds_no_run(disk):
    """Where nothing is, nothing is found and nothing is to be done."""
    assert find(disk) == (None, None, [], [])


def test_a_folder_of_other_things_holds_no_run(disk):
    """Names that no file of a run has are nobody's concern."""
    for name in ("notes.txt", "epochs_1.h5.bak", "epochs_01.h5", "my_epochs_1.h5", "epochs_x.h5"):
        (disk.folder / name).write_bytes(b"")
    assert find(disk) == (None, None, [], [])


def test_a_journal_that_was_being_made_is_removed(disk, author):
    """A new journal that didn't get its name is taken away, with a run or without."""
    (disk.folder / NEW_JOURNAL).write_bytes(b"half")
    assert told(find(disk).chores) == [("remove", NEW_JOURNAL, "")]
    author.journal()
    (disk.folder / NEW_JOURNAL).write_bytes(b"half")
    assert told(find(disk).chores) == [("remove", NEW_JOURNAL, "")]


def test_foreign_files_are_refused_by_name(disk):
    """Files that match and are nobody's make it fail, naming them and the ways out."""
    (disk.folder / "epochs_3.h5").write_bytes(b"theirs")
    (disk.folder / "epochs_1.h5").mkdir()
    (disk.folder / "epochs_2.h5").symlink_to("nowhere")
    os.mkfifo(disk.folder / "epochs_4.h5")
    expected = r"epochs_1\.h5, epochs_2\.h5, epochs_3\.h5, epochs_4\.h5, which match .*another outdir.*ingest\(path"
    with pytest.raises(ForeignFiles, match=expected) as caught:
        find(disk)
    assert isinstance(caught.value, FileExistsError)
    assert find(disk, outfile_fmt="other_%d.h5") == (None, None, [], [])


def test_many_foreign_files_are_counted(disk):
    """Only some are named."""
    for i in range(12):
        (disk.folder / f"epochs_{i}.h5").write_bytes(b"theirs")
    with pytest.raises(ForeignFiles, match=r"epochs_10\.h5, epochs_11\.h5, epochs_2\.h5 and 7 more"):
        find(disk)


def test_a_foreign_file_beside_a_run_is_refused(disk, author):
    """A file of somebody else's among the run's own is named alone."""
    author.published(1, 0, 0)
    author.journal()
    (disk.folder / "epochs_7.h5").write_bytes(b"theirs")
    with pytest.raises(ForeignFiles, match=r"holds epochs_7\.h5, which"):
        find(disk)


def test_a_file_of_another_run_is_foreign(disk, author):
    """A file of ours that belongs to another run is somebody else's here."""
    Author(disk, run=bytes(16)).published(2, 0)
    author.journal()
    with pytest.raises(ForeignFiles, match=r"epochs_2\.h5"):
        find(disk)


def test_the_format_of_the_run_counts(disk, author):
    """What is foreign is told by the names that the run's files have."""
    author.journal()
    (disk.folder / "other_1.h5").write_bytes(b"theirs")
    assert find(disk, outfile_fmt="other_%d.h5").catalog is not None


# ---- a run as it was left --------------------------------------------------------------------------------------------


def test_a_run_is_found_as_it_was_left(disk, author):
    """With a journal, the run is what that says, and nothing is to be done."""
    author.published(1, 0, 0)
    author.stored(2, 0)
    author.say(Burned(3, 3))
    author.journal()
    found = find(disk)
    assert found.end == (disk.folder / JOURNAL).stat().st_size
    assert found.chores == []
    assert known(found.catalog) == known(author.catalog)
    assert found.catalog.registry().burn == 3
    check(disk, found.catalog)


def test_looking_changes_nothing(disk, author):
    """Whatever is to be done, looking at a folder leaves it as it is."""
    author.stored(1, 0, 0)
    author.file(1, name=".epochs_1.h5.7.new")
    author.journal(nbatches=2)
    before = {path.name: path.read_bytes() for path in disk.folder.iterdir()}
    assert find(disk).chores
    assert {path.name: path.read_bytes() for path in disk.folder.iterdir()} == before


def test_a_missing_file_is_a_warning(disk, author, caplog):
    """A file that went away is named; the others stay readable."""
    author.published(1, 0, 0)
    author.published(2, 0, 0)
    author.journal()
    (disk.folder / "epochs_1.h5").unlink()
    with caplog.at_level(logging.WARNING):
        assert find(disk).chores == []
    assert "epochs_1.h5 is missing" in caplog.text


def test_a_damaged_journal_is_an_error(disk, author):
    """Damage before good records raises; no shorter run is made of it."""
    author.published(1, 0, 0)
    author.journal()
    data = bytearray((disk.folder / JOURNAL).read_bytes())
    data[40] ^= 1
    (disk.folder / JOURNAL).write_bytes(data)
    with pytest.raises(Damaged, match="good records follow"):
        find(disk)


# ---- what a crash left half done -------------------------------------------------------------------------------------


def published_and_not_named(author):
    author.say(*author.file(1, 0, 0), Published(1, 2))
    return [("publish", FILLING.format(1), "epochs_1.h5")]


def published_with_both_names(author):
    published_and_not_named(author)
    folder = author.disk.folder
    (folder / "epochs_1.h5").hardlink_to(folder / FILLING.format(1))
    return [("replace", FILLING.format(1), "epochs_1.h5")]


def rewritten_and_not_named(author):
    author.published(1, 0, 0)
    author.rewritten(1, 0, None, 3)
    return [("replace", ".epochs_1.h5.1.new", "epochs_1.h5")]


def rewritten_and_the_old_one_gone(author):
    rewritten_and_not_named(author)
    (author.disk.folder / "epochs_1.h5").unlink()
    return [("publish", ".epochs_1.h5.1.new", "epochs_1.h5")]


def rewritten_while_it_fills(author):
    author.stored(1, 0)
    author.rewritten(1, 0, 3, filling=True)
    return [("replace", ".epochs_1.h5.1.new", FILLING.format(1))]


def reopened_to_fill_up(author):
    author.published(1, 0)
    author.rewritten(1, 0, 0, filling=True)
    return [("publish", ".epochs_1.h5.1.new", FILLING.format(1))]


def rewritten_and_published(author):
    author.stored(1, 0, 0)
    author.rewritten(1, 0, 1, 1, filling=True)
    author.say(Published(1, 2))
    return [("publish", ".epochs_1.h5.1.new", "epochs_1.h5"), ("remove", FILLING.format(1), "")]


def rewritten_and_not_journaled(author):
    author.published(1, 0, 0)
    author.file(1, 5, 5, name=".epochs_1.h5.1.new", rewrite=1, start=0)
    return [("remove", ".epochs_1.h5.1.new", "")]


def rewritten_again(author):
    author.published(1, 0, 0)
    author.rewritten(1, 0, 1, 1)
    author.rewritten(1, 0, 2, 2, rewrite=2)
    return [("remove", ".epochs_1.h5.1.new", ""), ("replace", ".epochs_1.h5.2.new", "epochs_1.h5")]


def dropped_and_still_there(author):
    author.published(1, 0, 0)
    author.published(2, 0, 0)
    author.say(Burned(20, 20), Dropped(2))
    return [("remove", "epochs_1.h5", "")]


def dropped_with_all_its_names(author):
    dropped_and_still_there(author)
    author.file(1, name=FILLING)
    author.file(1, name=".epochs_1.h5.4.new")
    return [("remove", name, "") for name in (".epochs_1.h5.4.new", FILLING.format(1), "epochs_1.h5")]


def begun_and_never_journaled(author):
    author.published(1, 0, 0)
    author.file(2, name=FILLING)
    return [("remove", FILLING.format(2), "")]


def reset_while_somebody_read(author):
    author.published(1, 0, 0)
    author.file(1, name=".epochs_1.h5.g0.old")
    return [("remove", ".epochs_1.h5.g0.old", "")]


def reset_and_still_there(author):
    author.published(1, 0, 0)
    author.published(2, 0)
    author.batches.append([Began(RUN, 1, "epochs_%d.h5", 0, 0, 2e9), Grouped(0, 1, 2)])
    return [("remove", "epochs_1.h5", ""), ("remove", "epochs_2.h5", "")]


CRASHES = [
    published_and_not_named,
    published_with_both_names,
    rewritten_and_not_named,
    rewritten_and_the_old_one_gone,
    rewritten_while_it_fills,
    reopened_to_fill_up,
    rewritten_and_published,
    rewritten_and_not_journaled,
    rewritten_again,
    dropped_and_still_there,
    dropped_with_all_its_names,
    begun_and_never_journaled,
    reset_while_somebody_read,
    reset_and_still_there,
]


@pytest.mark.parametrize("crash", CRASHES)
def test_what_a_crash_left_half_done_is_finished(disk, author, crash):
    """After a crash, each name that isn't as the journal says is set right, and no temporary one stays."""
    expected = crash(author)
    author.journal()
    found = find(disk)
    assert told(found.chores) == sorted(expected)
    check(disk, found.catalog)
    chores = Chores(disk)
    chores.add(found.chores)
    chores.do(RUN)
    assert find(disk).chores == []
    check(disk, find(disk).catalog)
    assert not [name for name in disk.names() if name.startswith(".") and name != FILLING.format(1)]


def test_a_chore_is_a_plain_struct():
    """Chores are compared by what they say."""
    assert Chore("remove", "a") == Chore("remove", "a", "")


def test_a_name_that_somebody_took_is_refused(disk, author):
    """A file of somebody else's under the name that a file of ours waits for is named, and isn't replaced."""
    published_and_not_named(author)
    author.journal()
    (disk.folder / "epochs_1.h5").write_bytes(b"theirs")
    with pytest.raises(ForeignFiles, match=r"epochs_1\.h5"):
        find(disk)


# ---- epochs that the journal doesn't know ----------------------------------------------------------------------------


def test_epochs_that_the_journal_does_not_know_are_taken_in(disk, author, caplog):
    """Epochs that are whole, in the file that was filling up, are part of the run; the journal is to be made anew."""
    author.stored(1, 0, 0)
    author.journal(nbatches=2)
    with caplog.at_level(logging.WARNING):
        found = find(disk)
    assert found.end is None
    assert found.chores == []
    assert known(found.catalog) == known(author.catalog)
    assert "2 epochs were in files and not in the journal" in caplog.text
    check(disk, found.catalog)


def test_only_those_behind_the_known_ones_are_looked_at(disk, author):
    """An epoch in a file whose other epochs are known is found behind them."""
    author.stored(1, 0, 0)
    *records, last = author.batches.pop()
    author.batches.append(records)
    author.journal()
    assert isinstance(last, Stored)
    assert known(find(disk).catalog) == known(author.catalog)


def test_epochs_of_several_files_are_taken_in(disk, author):
    """A crash may come between several files and the one record for all of them."""
    author.published(1, 0, 0)
    author.stored(2, 0)
    author.journal(nbatches=2)
    found = find(disk)
    assert known(found.catalog) == known(author.catalog)
    assert found.chores == []
    check(disk, found.catalog)


def test_a_burn_that_cut_an_epoch_is_known_from_it(disk, author):
    """An epoch without its first samples is taken in with the burn that took them."""
    author.stored(1, 0, 4)
    author.journal(nbatches=2)
    catalog = find(disk).catalog
    assert catalog.registry().burn == 14
    check(disk, catalog)


@pytest.mark.parametrize("lost", [1, 60, 200])
def test_an_epoch_that_is_not_whole_is_not_taken_in(disk, author, lost):
    """What a crash cut short never happened, and neither did what comes behind it."""
    author.stored(1, 0, 0)
    author.journal(nbatches=2)
    path = disk.folder / FILLING.format(1)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - lost)
    assert find(disk).catalog.registry().next_index == 1


def test_an_epoch_with_a_wrong_checksum_is_not_taken_in(disk, author):
    """A frame may be on disk before its numbers are."""
    records = author.file(1, 0, 0)
    author.journal()
    place = records[1].place
    with (disk.folder / FILLING.format(1)).open("r+b") as file:
        file.seek(place.base + author_layout(records).offsets[0])
        file.write(b"\x01")
    assert find(disk).catalog.registry().next_index == 0


def author_layout(records):
    return layout_of(records[0].spec)


@pytest.mark.parametrize(
    "change",
    [{"generation": 1}, {"run": bytes(16)}, {"rewrite": 1}, {"number": 2}, {"start": 1}],
    ids=str,
)
def test_an_epoch_that_is_not_the_next_one_is_not_taken_in(disk, author, change):
    """Epochs of another run or generation, of an older state of the file, or that leave a gap, don't belong here."""
    other = Author(disk, run=change.get("run", RUN), generation=change.get("generation", 0))
    other.file(change.get("number", 1), 0, rewrite=change.get("rewrite", 0), start=change.get("start", 0))
    author.journal()
    assert find(disk).catalog.registry().next_index == 0


# ---- a journal that is lost ------------------------------------------------------------------------------------------


def rebuilt(disk, caplog=None):
    """Take the journal away, and rebuild the run from its files."""
    disk.remove(JOURNAL, missing_ok=True)
    found = find(disk)
    assert found.end is None
    check(disk, found.catalog)
    return found


def test_a_lost_journal_is_rebuilt(disk, author, caplog):
    """All epochs are found in the files, published or filling up, with their places and checksums."""
    author.published(1, 0, 0)
    author.published(2, 0, 0)
    author.stored(3, 0)
    found = rebuilt(disk)
    assert known(found.catalog) == known(author.catalog)
    assert found.chores == []
    assert "has no journal; it is rebuilt from 3 files" in caplog.text


def test_a_run_that_lost_its_beginning_is_rebuilt(disk, author):
    """Files that were dropped leave epochs of which only the place is known: they are burned."""
    author.published(1, 0, 0)
    author.published(2, 0, 0)
    author.stored(3, 3)
    disk.remove("epochs_1.h5")
    catalog = rebuilt(disk).catalog
    registry = catalog.registry()
    assert (registry.next_index, registry.nsamples, registry.burn, registry.ndropped) == (5, 50, 43, 2)
    assert catalog.places[:2] == [None, None]


def test_epochs_that_were_passed_over_are_passed_over_again(disk, author):
    """An epoch that was burned before it was written leaves a gap in its file; those behind it stay in that file."""
    author = Author(disk, epochs_per_file=4)
    author.published(1, 0, None, None, 9)
    author.stored(2, 0)
    catalog = rebuilt(disk).catalog
    assert list(known(catalog)["epochs"]) == [0, 3, 4]
    assert catalog.registry().burn == 39


def test_a_cut_without_a_gap_is_burned(disk, author):
    """What an epoch lost is burned, and so is all before it: nobody asks for samples that are in no file."""
    author.published(1, 0, 0)
    author.stored(2, 9)
    assert rebuilt(disk).catalog.registry().burn == 29


def test_a_file_that_was_written_anew_is_taken_as_it_is_now(disk, author):
    """Of a file that was published half full and goes on under another name, the newer state is taken."""
    author.published(1, 0)
    author.rewritten(1, 0, 0, filling=True)
    author.move(".epochs_1.h5.1.new", FILLING.format(1))
    found = rebuilt(disk)
    assert (found.catalog.places[0].rewrite, found.catalog.rewrites) == (1, {1: 1})
    assert found.catalog.filling == {1}


def test_an_older_generation_is_not_taken(disk, author):
    """What a reset left is removed and not read."""
    author.published(1, 0, 0)
    author.published(2, 0, 0)
    newer = Author(disk, generation=1)
    newer.published(1, 0, 0)
    found = rebuilt(disk)
    assert (found.catalog.began.generation, found.catalog.registry().next_index) == (1, 2)
    assert told(found.chores) == [("remove", "epochs_2.h5", "")]


def test_files_of_two_runs_are_not_mixed(disk, author):
    """Without a journal nobody knows which run is meant."""
    author.published(1, 0, 0)
    Author(disk, run=bytes(16)).published(2, 0, 0)
    with pytest.raises(ForeignFiles, match="files of 2 runs"):
        find(disk)


def test_a_foreign_file_among_them_is_refused(disk, author):
    """Also without a journal, a file that isn't ours is named."""
    author.published(1, 0, 0)
    (disk.folder / "epochs_9.h5").write_bytes(b"theirs")
    with pytest.raises(ForeignFiles, match=r"holds epochs_9\.h5, which"):
        find(disk)


def test_a_missing_file_is_not_passed_over(disk, author):
    """A gap between files isn't taken for a burn: that would burn all before it."""
    author.published(1, 0, 0)
    author.published(2, 0, 0)
    author.published(3, 0, 0)
    disk.remove("epochs_2.h5")
    with pytest.raises(Damaged, match=r"epochs_3\.h5 has epoch 4 where epoch 2 belongs; a file is missing"):
        find(disk)


@pytest.mark.parametrize("which", [0, 1], ids=["the first epoch", "the last epoch"])
def test_a_damaged_description_is_not_passed_over(disk, author, which):
    """An epoch in a published file that can't be found by walking is damage, and not a shorter run."""
    records = author.file(1, 0, 0, name=PUBLISHED)
    places = [record.place for record in records if isinstance(record, Stored)]
    with (disk.folder / "epochs_1.h5").open("r+b") as file:
        file.seek(places[which].base + 20)
        file.write(b"\xff")
    with pytest.raises(Damaged, match=r"epochs_1\.h5"):
        find(disk)


def test_the_last_epoch_of_a_filling_file_may_be_half_written(disk, author):
    """What was being written when the power went never happened, also without a journal."""
    records = author.file(1, 0, 0)
    last = records[-1].place
    with (disk.folder / FILLING.format(1)).open("r+b") as file:
        file.seek(last.base + author_layout(records).offsets[0])
        file.write(b"\x01")
    assert rebuilt(disk).catalog.registry().next_index == 1


def test_a_run_of_no_epochs_is_rebuilt(disk, author):
    """A file that was begun and got no epoch is ours, and is removed."""
    author.file(1)
    found = find(disk)
    assert found.catalog.places == []
    assert told(found.chores) == [("remove", FILLING.format(1), "")]


@given(
    st.lists(st.lists(st.sampled_from([0, 0, 0, 4, 9, None]), min_size=1, max_size=4), min_size=1, max_size=4),
    st.booleans(),
)
@settings(max_examples=50)
def test_any_run_is_rebuilt(tmp_path_factory, files, is_filling):
    """Whatever was cut from epochs, and whichever of them were passed over: what is in the files is found again."""
    disk = storable.folder(tmp_path_factory)
    author = Author(disk)
    for number, cuts in enumerate(files, 1):
        epochs = [cuts[0] or 0, *cuts[1:-1], cuts[-1] or 0]  # a file that begins or ends with a gap looks like others
        author.say(Grouped(author.n, number, len(cuts)))
        if number == len(files) and is_filling:
            author.stored(number, *epochs[: len(cuts)])
        else:
            author.published(number, *epochs[: len(cuts)])
    got, expected = known(rebuilt(disk).catalog), known(author.catalog)
    assert got == expected
    disk.leave()


def test_a_file_with_its_published_name_was_published(tmp_path):
    """The record that said so can be damaged: the run goes on as if it were there, at the first attempt."""
    epochs = [{"samples": {"p": np.full((2, 3, 4), float(i))}} for i in range(3)]
    outdir = tmp_path / "run"
    with DefaultBackend(outdir=outdir, epochs_per_file=2) as backend:
        for epoch in epochs:
            backend.ingest(epoch)
    path = outdir / JOURNAL
    assert isinstance(journal.decode(path.read_bytes())[0][-1], Published)
    path.write_bytes(path.read_bytes()[:-1])
    with DefaultBackend(outdir=outdir, epochs_per_file=2) as backend:
        backend.ingest(epochs[0]).flush()
        np.testing.assert_array_equal(backend.get_samples()["p"][0, 0, ::4], [0, 1, 2, 0])
    assert sorted(path.name for path in outdir.glob("*.h5")) == ["epochs_1.h5", "epochs_2.h5"]
