"""What a run consists of, and each way in which that can change."""

import itertools
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posterity._model.registry import (
    Entry,
    FileSpan,
    Log,
    Registry,
    Series,
    admit,
    mark_burn_stored,
    mark_dropped,
    mark_published,
    mark_rewritten,
    mark_written,
    next_entry,
    raise_burn,
    reset,
    start_series,
)


def run_of(*lengths, burn=0, epochs_per_file=2, written=0):
    """A run with epochs of so many samples, of which some are written."""
    registry = start_series(Registry(burn=burn), epochs_per_file)
    for nsamples in lengths:
        registry = admit(registry, nsamples, 100 * nsamples)
    return mark_written(registry, [0] * written)


# ---- the log ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 10), st.integers()), max_size=30))
def test_older_logs_never_change(steps):
    """Whichever log is appended to, and however often, each log stays what it was when it was made."""
    logs = [(Log(), [])]
    for which, item in steps:
        log, items = logs[which % len(logs)]
        logs.append((log.appended(item), [*items, item]))
    for log, items in logs:
        assert list(log) == items
        assert len(log) == len(items)
        assert log == Log(items)


def test_appending_to_the_longest_log_shares_its_memory():
    """Appending one by one copies nothing."""
    log = Log()
    longer = log.appended(1).appended(2)
    assert longer._items is log._items
    assert (list(log), list(longer)) == ([], [1, 2])


def test_appending_twice_to_one_log_makes_two_that_differ():
    """The second to be appended to an older log gets memory of its own."""
    log = Log([1])
    one, other = log.appended(2), log.appended(3)
    assert (list(log), list(one), list(other)) == ([1], [1, 2], [1, 3])


def test_a_log_is_not_what_it_was_made_from():
    """Changing the list that a log was made from doesn't change the log."""
    items = [1, 2]
    log = Log(items)
    items.append(3)
    assert list(log) == [1, 2]


@given(st.lists(st.integers(), max_size=8), st.slices(8), st.lists(st.integers(), max_size=3))
def test_a_log_is_indexed_as_a_list(items, part, more):
    """Indices, negative ones too, and slices give what a list gives, also when there is a longer log."""
    log = Log(items)
    log.extended(more)
    assert log[part] == items[part]
    assert [log[i] for i in range(-len(items), len(items))] == [items[i] for i in range(-len(items), len(items))]


@pytest.mark.parametrize("index", [2, -3, 100])
def test_an_index_beyond_a_log_is_an_error(index):
    """What a longer log holds there isn't seen."""
    log = Log([1, 2])
    log.extended([3, 4, 5])
    with pytest.raises(IndexError):
        log[index]


def test_replacing_makes_a_copy():
    """The items from some place on are other ones, as many as were given, and the old log stays."""
    log = Log([1, 2, 3, 4])
    assert list(log.replaced(1, [7, 8])) == [1, 7, 8, 4]
    assert list(log) == [1, 2, 3, 4]


def test_equal_logs_have_equal_hashes():
    """Logs are compared by what they hold, and with nothing else."""
    one, other = Log([1]).appended(2), Log([1, 2])
    one.appended(3)
    assert one == other
    assert hash(one) == hash(other)
    assert one != Log([1, 3])
    assert one != [1, 2]
    assert repr(one) == "Log([1, 2])"


def test_a_log_is_read_while_it_is_appended_to():
    """A reader in another thread sees what its log had, while longer ones are made."""
    log = Log(range(1000))
    seen, stop = [], threading.Event()

    def read():
        while not stop.is_set():
            seen.append(sum(log))

    thread = threading.Thread(target=read)
    thread.start()
    longer = log
    while len(seen) < 20:
        longer = longer.appended(1)
    stop.set()
    thread.join()
    assert set(seen) == {sum(range(1000))}


# ---- entries ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("burn", "burned", "is_burned"),
    [(0, 0, False), (10, 0, False), (11, 1, False), (14, 4, False), (15, 5, True), (99, 5, True)],
)
def test_a_burn_takes_samples_of_an_epoch(burn, burned, is_burned):
    """An epoch from sample 10 to 15 loses what lies before the burn."""
    entry = Entry(3, 10, 5)
    assert (entry.stop, entry.burned(burn), entry.is_burned(burn)) == (15, burned, is_burned)


def test_an_entry_follows_another_one():
    """Positions and bytes add up from epoch to epoch, those on a device apart."""
    first = next_entry(None, 5, 100)
    second = next_entry(first, 7, 50)
    assert first == Entry(0, 0, 5, 100, 0)
    assert second == Entry(1, 5, 7, 50, 100)
    third = next_entry(second, 1, 1, 1)
    assert third == Entry(2, 12, 1, 1, 150, 1)
    assert next_entry(third, 1, 10, 8) == Entry(3, 13, 1, 10, 151, 9)


def test_bytes_on_devices_are_counted_from_an_epoch_on():
    """What lay on a device at the hand-over is added up to the end of the run."""
    registry = Registry()
    for device_nbytes in (0, 5, 0, 7):
        registry = admit(registry, 1, 10, device_nbytes)
    assert [registry.device_bytes(start) for start in range(5)] == [12, 12, 7, 7, 0]
    assert Registry().device_bytes(0) == 0


# ---- counting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("burn", "left", "first_left"),
    [(0, 12, 0), (4, 8, 0), (5, 7, 1), (6, 6, 1), (11, 1, 1), (12, 0, 2), (100, 0, 2)],
)
def test_what_is_left_of_a_run(burn, left, first_left):
    """A burn before, inside, across and beyond epochs of 5 and 7 samples leaves so many."""
    registry = run_of(5, 7, burn=burn)
    assert (registry.nsamples, registry.nsamples_left, registry.first_left) == (12, left, first_left)


def test_an_empty_run_has_nothing():
    """A registry without epochs counts nothing, and can be burned."""
    registry = Registry(burn=5)
    assert (registry.nsamples, registry.nsamples_left, registry.first_left) == (0, 0, 0)
    assert (registry.next_index, registry.nwritten, registry.bytes_before(0)) == (0, 0, 0)


@pytest.mark.parametrize(("sample", "index"), [(0, 0), (4, 0), (5, 1), (11, 1), (12, 2), (13, 2)])
def test_a_sample_belongs_to_an_epoch(sample, index):
    """Each position of the run is in one epoch; the first that isn't there would be in the next one."""
    assert run_of(5, 7).epoch_at(sample) == index


def test_an_epoch_without_samples_holds_none():
    """Epochs that were lost, and of which only the place is known, are passed over."""
    registry = run_of(5, 0, 0, 7)
    assert [registry.epoch_at(sample) for sample in (4, 5, 12)] == [0, 3, 4]


def test_the_bytes_before_an_epoch():
    """Bytes are counted from the first epoch; beyond the last one it is all of them."""
    registry = run_of(5, 7)
    assert [registry.bytes_before(i) for i in range(4)] == [0, 500, 1200, 1200]


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("index", "file"),
    [
        (0, FileSpan(1, 0, 3)),
        (2, FileSpan(1, 0, 3)),
        (3, FileSpan(2, 3, 4)),
        (4, FileSpan(3, 4, 5)),
        (5, FileSpan(4, 5, 6)),
        (6, FileSpan(5, 6, 8)),
        (7, FileSpan(5, 6, 8)),
        (100, FileSpan(52, 100, 102)),
    ],
)
def test_an_epoch_belongs_to_a_file(index, file):
    """Three to a file, but the second file is cut short by a change to one to a file; then two."""
    registry = Registry(series=(Series(0, 1, 3), Series(4, 3, 1), Series(6, 5, 2)))
    assert registry.file_of(index) == file


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 4)), max_size=6), st.integers(0, 30))
def test_files_never_overlap(changes, more):
    """However often the grouping changes on resume, each epoch has one file, and files follow each other by number."""
    registry, n = Registry(), 0
    for written, epochs_per_file in [*changes, (more, 1)]:
        registry = start_series(registry, epochs_per_file)
        before = [registry.file_of(i) for i in range(registry.nwritten)]
        for _ in range(written):
            registry = admit(registry, 1, 1)
        registry = mark_written(registry, [0] * written)
        n += written
        assert [registry.file_of(i) for i in range(len(before))] == before
    files = [registry.file_of(i) for i in range(n + 5)]
    assert all(file.start <= i < file.stop for i, file in enumerate(files))
    spans = list(dict.fromkeys(files))
    assert [file.number for file in spans] == list(range(1, len(spans) + 1))
    assert all(one.stop == other.start for one, other in itertools.pairwise(spans))


def test_a_grouping_that_stays_goes_on():
    """Resuming with the same number of epochs a file goes on with the file that is half full."""
    registry = run_of(1, 1, 1, written=3)
    assert start_series(registry, 2) is registry


def test_a_grouping_that_changes_begins_a_new_file():
    """Another number of epochs a file starts at the next number; what is written keeps its file."""
    registry = start_series(run_of(1, 1, 1, 1, written=3), 5)
    assert registry.series == (Series(0, 1, 2), Series(3, 3, 5))
    assert registry.file_of(2) == FileSpan(2, 2, 3)


def test_a_grouping_that_nothing_was_written_with_is_forgotten():
    """Only the last of several changes without a write in between counts."""
    registry = start_series(start_series(run_of(1, written=0), 5), 3)
    assert registry.series == (Series(0, 1, 3),)
    registry = start_series(start_series(run_of(1, 1, 1, written=3), 5), 3)
    assert registry.series == (Series(0, 1, 2), Series(3, 3, 3))


# ---- transitions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("burns", "expected"),
    [
        ([(5, True)], (5, 5)),
        ([(5, False)], (5, 0)),
        ([(5, True), (9, False)], (9, 5)),
        ([(9, False), (5, True)], (9, 5)),
        ([(9, True), (5, True)], (9, 9)),
    ],
)
def test_a_burn_only_grows(burns, expected):
    """The larger burn holds; what was asked for by number is remembered by itself."""
    registry = run_of(3)
    for burn, asked in burns:
        registry = raise_burn(registry, burn, asked=asked)
    assert (registry.burn, registry.asked_burn) == expected


def test_a_reset_keeps_the_burn_that_was_asked_for():
    """After a reset the run is empty, of the next generation, and goes on to owe the burn named by number."""
    registry = run_of(5, 7, epochs_per_file=3, written=1)
    registry = mark_burn_stored(raise_burn(raise_burn(registry, 4, asked=True), 12, asked=False), 12)
    assert reset(registry, 2) == Registry(generation=1, series=(Series(0, 1, 2),), burn=4, asked_burn=4)


def test_transitions_leave_the_old_registry_alone():
    """Each transition makes a new registry: who has the old one goes on to see what it saw."""
    old = run_of(5, 7, 2)
    cuts = [0, 3]
    new = mark_written(admit(old, 1, 10), cuts)
    new = mark_dropped(mark_published(mark_rewritten(raise_burn(new, 6, asked=True), 0, [5, 1]), 2), 1)
    new = mark_burn_stored(new, 6)
    assert old == run_of(5, 7, 2)
    assert (old.next_index, old.nwritten, old.burn, old.npublished, old.ndropped, old.stored_burn) == (3, 0, 0, 0, 0, 0)
    assert (new.next_index, list(new.cuts), new.burn, new.npublished, new.ndropped, new.stored_burn) == (
        4,
        [5, 1],
        6,
        2,
        1,
        6,
    )


@pytest.mark.parametrize(
    ("mark", "name"), [(mark_published, "npublished"), (mark_dropped, "ndropped"), (mark_burn_stored, "stored_burn")]
)
def test_marks_only_grow(mark, name):
    """A mark that is lower than the one before changes nothing."""
    registry = mark(mark(run_of(5, 7), 2), 1)
    assert getattr(registry, name) == 2
