"""The disk in memory, on which power cuts are tried, does what the real one does; and what a power cut may leave."""

import random

import hypothesis.strategies as st
import pytest
from hypothesis import given

from posterity._system.disk import Disk
from powercut import Grown, MemoryDisk, Name, Size, Sync, Write, power_cuts, torn

NAMES = st.sampled_from(["a", "b", "c"])
OFFSETS = st.integers(0, 5000)
CALLS = st.one_of(
    st.tuples(st.just("create"), NAMES),
    st.tuples(st.just("remove"), NAMES),
    st.tuples(st.just("publish"), NAMES, NAMES),
    st.tuples(st.just("replace"), NAMES, NAMES),
    st.tuples(st.just("write_at"), NAMES, OFFSETS, st.lists(st.binary(max_size=600), max_size=3)),
    st.tuples(st.just("reserve"), NAMES, OFFSETS, OFFSETS),
    st.tuples(st.just("truncate"), NAMES, OFFSETS),
    st.tuples(st.just("read_at"), NAMES, OFFSETS, OFFSETS),
    st.tuples(st.just("read_rows"), NAMES, OFFSETS, OFFSETS, OFFSETS, st.integers(0, 3)),
)


def called(disk, call, *args):
    """What a call gives, or its error."""
    try:
        if call in ("remove", "publish", "replace"):
            return getattr(disk, call)(*args)
        fd = disk.create(*args) if call == "create" else disk.open(args[0], write=True)
        try:
            if call == "read_at":
                into = bytearray(args[2])
                return disk.read_at(fd, args[1], memoryview(into)), into
            if call == "read_rows":
                offset, stride, nbytes, nrows = args[1:]
                into = [bytearray(nbytes) for _ in range(nrows)]
                is_all_there = disk.read_rows(fd, offset, stride, [memoryview(row) for row in into])
                return is_all_there, into if is_all_there else None
            return getattr(disk, call)(fd, *args[1:]) if call != "create" else disk.size(fd)
        finally:
            disk.close(fd)
    except OSError as error:
        return type(error)


def contents(disk):
    found = {}
    for name in disk.names():
        fd = disk.open(name)
        data = bytearray(disk.size(fd))
        disk.read_at(fd, 0, memoryview(data))
        disk.close(fd)
        found[name] = bytes(data)
    return found


@given(calls=st.lists(CALLS, max_size=20))
def test_it_does_what_a_disk_does(tmp_path_factory, calls):
    """Each call gives the same result or error as on the real disk, and leaves the same names and bytes."""
    real, memory = Disk(tmp_path_factory.mktemp("disk")), MemoryDisk({})
    real.enter()
    try:
        for call in calls:
            assert called(memory, *call) == called(real, *call)
        assert contents(memory) == contents(real) == memory.contents()
    finally:
        real.leave()


@given(calls=st.lists(CALLS, max_size=20))
def test_after_syncing_all_nothing_is_lost(calls):
    """A power cut after everything was synced leaves what the process saw."""
    disk = MemoryDisk({"a": b"before"})
    for call in calls:
        called(disk, *call)
    for name in disk.names():
        fd = disk.open(name)
        disk.sync(fd)
        disk.close(fd)
    disk.sync_names()
    cuts = list(power_cuts(disk.log, disk.base, random.Random(1), 1))
    assert cuts[-1].files == disk.contents()


def left(*steps):
    """All that a power cut may leave on a disk that had a file `a`: after the last step if it is a sync, else at any."""
    disk = MemoryDisk({"a": b"0" * 1000})
    for step in steps:
        disk._note(step(disk._names["a"]))
    cuts = list(power_cuts(disk.log, disk.base, random.Random(1), 20))
    if isinstance(disk.log[-1].what, Sync):
        return [cut.files for cut in cuts if cut.at == len(steps) - 1]
    return [{"a": b"0" * 1000}, *(cut.files for cut in cuts)]


def test_an_unsynced_write_may_have_happened_or_not():
    """Until the file is synced, both what was there and what was written may be found."""
    found = [files["a"] for files in left(lambda file: Write(file, 0, b"1" * 1000))]
    assert b"0" * 1000 in found
    assert b"1" * 1000 in found


def test_a_write_is_torn_at_sectors_and_within():
    """Any part of the sectors of a write may be there."""
    found = {files["a"] for files in left(lambda file: Write(file, 0, b"1" * 1000))}
    assert any(data[:512] == b"0" * 512 and data[512:] == b"1" * 488 for data in found)
    assert any(data[:512] == b"1" * 512 and data[512:] == b"0" * 488 for data in found)


def test_a_file_may_have_grown_without_its_bytes():
    """What was appended may be zeros."""
    assert b"0" * 1000 + bytes(500) in [files["a"] for files in left(lambda file: Write(file, 1000, b"1" * 500))]


def test_growing_never_cuts():
    """The size that comes without bytes is at least the one that was there."""
    assert all(len(files["a"]) >= 1000 for files in left(lambda file: Write(file, 100, b"1" * 5)))


def test_a_synced_write_has_happened():
    """After the sync of the file there is one state."""
    found = left(lambda file: Write(file, 0, b"1" * 1000), Sync)
    assert {files["a"] for files in found} == {b"1" * 1000}


def test_a_synced_folder_keeps_no_bytes():
    """The sync of the folder is none of the file."""
    found = left(lambda file: Write(file, 0, b"1" * 1000), lambda _: Sync(None))
    assert b"0" * 1000 in {files["a"] for files in found}


@pytest.mark.parametrize("last", [Sync, lambda _: Sync(None)], ids=["file", "folder"])
def test_a_rename_happens_when_the_folder_is_synced(last):
    """Until then it may not have happened, whatever else is synced."""
    found = {tuple(files) for files in left(lambda file: Name((("a", None), ("b", file))), last)}
    assert found == ({("b",)} if last(1) == Sync(None) else {("a",), ("b",)})


def test_names_may_change_in_any_order():
    """Of a link and the removal of the old name, each may be there without the other."""
    found = left(lambda file: Name((("b", file),)), lambda _: Name((("a", None),)))
    assert {frozenset(files) for files in found} == {frozenset(names) for names in [("a",), ("b",), ("a", "b"), ()]}


def test_a_truncation_may_come_late():
    """What was cut off may be there again."""
    found = [files["a"] for files in left(lambda file: Size(file, 10))]
    assert {len(data) for data in found} == {10, 1000}


@given(offset=OFFSETS, data=st.binary(min_size=1, max_size=9000), seed=st.integers(0, 100))
def test_torn_writes_are_parts_of_the_write(offset, data, seed):
    """Whatever is left of a write is what was written there, or a size."""
    for pieces in torn(Write(1, offset, data), random.Random(seed)):
        for piece in pieces:
            if isinstance(piece, Grown):
                assert piece.nbytes == offset + len(data)
            else:
                start = piece.offset - offset
                assert data[start : start + len(piece.data)] == piece.data
