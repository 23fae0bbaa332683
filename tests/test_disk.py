"""The one seam at which a disk can be slow, full or broken."""

import errno
import os
import socket

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import storable
from posterity._format.checksum import as_bytes
from posterity._system.disk import Disk


@pytest.fixture
def written(disk):
    """A descriptor of a new file that is open for writing."""
    fd = disk.create("x")
    yield fd
    disk.close(fd)


def content(disk, name="x"):
    return (disk.folder / name).read_bytes()


# ---- the folder ------------------------------------------------------------------------------------------------------


def test_entering_makes_the_folder_and_those_above_it(tmp_path):
    """A folder that isn't there is made; one that is there is entered as it is."""
    disk = Disk(tmp_path / "a" / "b")
    assert not disk.is_there()
    disk.enter()
    assert disk.is_there()
    disk.enter()
    disk.leave()
    disk.leave()


def test_looking_makes_no_folder(tmp_path):
    """Asking whether the folder is there, or how much room there is, doesn't make it."""
    disk = Disk(tmp_path / "a" / "b")
    assert disk.free_bytes() > 0
    assert not (tmp_path / "a").exists()


def test_the_folder_is_held_when_it_is_moved(tmp_path):
    """What is written after the folder was moved goes to where it is now."""
    disk = Disk(tmp_path / "old")
    disk.enter()
    (tmp_path / "old").rename(tmp_path / "new")
    fd = disk.create("x")
    disk.write_at(fd, 0, [b"abc"])
    disk.close(fd)
    disk.leave()
    assert (tmp_path / "new" / "x").read_bytes() == b"abc"


def test_the_folder_is_found_again_when_the_process_moved(tmp_path, monkeypatch):
    """A relative folder is where it was when it was named, wherever the process goes."""
    monkeypatch.chdir(tmp_path)
    disk = Disk(tmp_path.relative_to(tmp_path) / "run")
    monkeypatch.chdir("/")
    disk.enter()
    disk.leave()
    assert (tmp_path / "run").is_dir()


def test_a_folder_is_told_from_others(tmp_path):
    """A folder has one key by whatever path it is entered, and another one than any other folder."""
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    keys = []
    for name in ("a", "link", "b"):
        disk = Disk(tmp_path / name)
        disk.enter()
        keys.append(disk.key())
        disk.leave()
    assert keys[0] == keys[1] != keys[2]


def test_nothing_is_opened_in_a_folder_that_was_not_entered(tmp_path):
    """A folder that wasn't entered, or was left, gives a FileNotFoundError that names it."""
    with pytest.raises(FileNotFoundError, match=tmp_path.name):
        Disk(tmp_path).open("x")


@pytest.mark.parametrize("name", ["../x", "a/b", "{outside}/x", "..", ".", ""])
def test_names_never_lead_out_of_the_folder(tmp_path, name):
    """A name that isn't that of a plain file in the folder is refused, for reading, writing, renaming and removing."""
    name = name.format(outside=tmp_path)
    (tmp_path / "x").write_bytes(b"outside")
    (tmp_path / "run" / "a").mkdir(parents=True)
    (tmp_path / "run" / "a" / "b").write_bytes(b"below")
    disk = Disk(tmp_path / "run")
    disk.enter()
    (tmp_path / "run" / "y").write_bytes(b"ours")
    for attempt in (
        lambda: disk.open(name),
        lambda: disk.open(name, write=True),
        lambda: disk.create(name),
        lambda: disk.open_or_create(name),
        lambda: disk.remove(name),
        lambda: disk.remove(name, missing_ok=True),
        lambda: disk.publish("y", name),
        lambda: disk.publish(name, "z"),
        lambda: disk.replace("y", name),
        lambda: disk.replace(name, "z"),
    ):
        with pytest.raises(OSError, match="not the name of a file in the folder"):
            attempt()
    disk.leave()
    assert (tmp_path / "x").read_bytes() == b"outside"
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["a", "y"]
    assert (tmp_path / "run" / "a" / "b").read_bytes() == b"below"


# ---- opening ---------------------------------------------------------------------------------------------------------


def test_a_link_is_not_followed(tmp_path, disk):
    """A symbolic link isn't opened, not even one to a file beside it."""
    (tmp_path / "y").write_bytes(b"abc")
    (tmp_path / "x").symlink_to("y")
    with pytest.raises(OSError, match="symbolic links"):
        disk.open("x")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path, disk):
    """Opening a pipe that nobody writes to raises at once."""
    os.mkfifo(tmp_path / "x")
    with pytest.raises(OSError, match="not a plain file"):
        disk.open("x")


def test_a_socket_or_a_folder_is_refused(tmp_path, disk, monkeypatch):
    """Only plain files are opened."""
    (tmp_path / "x").mkdir()
    with pytest.raises(OSError, match="not a plain file"):
        disk.open("x")
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("s")
        with pytest.raises(OSError, match=r".+"):
            disk.open("s")


def test_a_new_file_takes_the_place_of_what_had_its_name(tmp_path, disk):
    """A file that is made is new and empty: a link that had the name is gone, and what it led to is untouched."""
    (tmp_path / "other").write_bytes(b"abc")
    (tmp_path / "x").symlink_to("other")
    fd = disk.create("x")
    disk.write_at(fd, 0, [b"new"])
    disk.close(fd)
    assert not (tmp_path / "x").is_symlink()
    assert (content(disk), content(disk, "other")) == (b"new", b"abc")


def test_a_file_that_is_there_is_never_made_anew(disk, written):
    """Opening a file, or making it if need be, keeps what is in it, and refuses what isn't a plain file."""
    disk.write_at(written, 0, [b"abc"])
    for name, expected in (("x", b"abc"), ("y", b"")):
        fd = disk.open_or_create(name)
        disk.write_at(fd, len(expected), [b"d"])
        disk.close(fd)
        assert content(disk, name) == expected + b"d"
    (disk.folder / "link").symlink_to("x")
    os.mkfifo(disk.folder / "pipe")
    for name, says in (("link", "symbolic links"), ("pipe", "not a plain file")):
        with pytest.raises(OSError, match=says):
            disk.open_or_create(name)


def test_a_file_opened_to_read_cannot_be_written(disk, written):
    """Readers can't change a file by mistake."""
    fd = disk.open("x")
    with pytest.raises(OSError, match="Bad file descriptor"):
        disk.write_at(fd, 0, [b"a"])
    disk.close(fd)


# ---- writing and reading ---------------------------------------------------------------------------------------------


def test_buffers_are_written_one_behind_the_other(disk, written):
    """Bytes, bytearrays and views of an array's memory follow each other; empty ones are nothing."""
    array = np.arange(6, dtype=">i2").reshape(2, 3)
    disk.write_at(written, 2, [b"ab", b"", bytearray(b"c"), as_bytes(array), memoryview(b"d"), as_bytes(array[:0])])
    assert content(disk) == b"\0\0abc" + array.tobytes() + b"d"


@pytest.mark.parametrize("n", [511, 512, 513, 2000])
def test_more_buffers_than_the_system_takes_at_once_are_written(disk, written, n):
    """Any number of buffers is written."""
    disk.write_at(written, 0, [bytes([i % 251]) for i in range(n)])
    assert content(disk) == bytes(i % 251 for i in range(n))


@given(st.lists(st.binary(max_size=20), max_size=6), st.integers(1, 7))
def test_a_system_that_writes_little_at_a_time_is_asked_again(tmp_path_factory, buffers, most):
    """However few bytes each call of the system takes, all are written, in order."""
    disk = storable.folder(tmp_path_factory)
    fd = disk.create("x")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pwritev", lambda fd, views, at: os.pwrite(fd, b"".join(views)[:most], at))
        disk.write_at(fd, 3, buffers)
    disk.close(fd)
    assert content(disk)[3:] == b"".join(buffers)
    disk.leave()


def test_a_system_that_writes_nothing_is_an_error(disk, written, monkeypatch):
    """A write of no bytes, without a reason, doesn't go on for ever."""
    monkeypatch.setattr(os, "pwritev", lambda *_: 0)
    with pytest.raises(OSError, match="gave no reason"):
        disk.write_at(written, 0, [b"a"])


@pytest.mark.parametrize(
    ("offset", "nbytes", "expected"), [(0, 6, b"abcdef"), (2, 3, b"cde"), (4, 9, b"ef"), (9, 3, b"")]
)
def test_reading_ends_where_the_file_does(disk, written, offset, nbytes, expected):
    """Reading fills the memory, or what the file has; it says how many bytes."""
    disk.write_at(written, 0, [b"abcdef"])
    memory = bytearray(nbytes)
    got = disk.read_at(written, offset, memoryview(memory))
    assert memory[:got] == expected


def test_a_system_that_reads_little_at_a_time_is_asked_again(disk, written, monkeypatch):
    """However few bytes each call gives, the memory is filled."""
    disk.write_at(written, 0, [b"abcdef"])

    def preadv(fd, views, at):
        data = os.pread(fd, 2, at)
        views[0][: len(data)] = data
        return len(data)

    monkeypatch.setattr(os, "preadv", preadv)
    memory = bytearray(6)
    assert disk.read_at(written, 0, memoryview(memory)) == 6
    assert memory == b"abcdef"


@pytest.mark.parametrize(("stride", "nrows"), [(3, 1200), (5, 40), (3, 0)])
@pytest.mark.parametrize("at_once", [1, 4, 10_000])
def test_rows_are_filled_wherever_they_are(disk, written, monkeypatch, stride, nrows, at_once):
    """Rows that lie one behind the other, or apart, get their bytes, however few the system gives at a time."""
    data = os.urandom(3600)
    disk.write_at(written, 0, [data])
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: preadv(fd, [views[0][:at_once], *views[1:]][:at_once], at))
    memory = np.zeros((nrows, 3), np.uint8)
    assert disk.read_rows(written, 0, stride, [row.data for row in memory])
    assert [bytes(row) for row in memory] == [data[i : i + 3] for i in range(0, stride * nrows, stride)]


def test_rows_that_a_file_does_not_have_are_told(disk, written):
    """Where the file ends before the last of the rows, that is said."""
    disk.write_at(written, 0, [b"abcdef"])
    for stride in (3, 4):
        rows = [memoryview(bytearray(3)) for _ in range(3)]
        assert not disk.read_rows(written, 0, stride, rows)


def test_room_is_claimed_before_a_byte_is_written(disk, written):
    """A file for which room was claimed has it; nothing is claimed for nothing."""
    disk.reserve(written, 0, 0)
    assert disk.size(written) == 0
    disk.reserve(written, 100, 1000)
    assert disk.size(written) == 1100
    assert os.fstat(written).st_blocks > 0


def test_a_full_disk_is_told_when_room_is_claimed(disk, written, monkeypatch):
    """Claiming room on a full disk raises the system's own error."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space"):
        disk.reserve(written, 0, 10)


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_that_cannot_claim_room_is_no_error(disk, written, monkeypatch, code):
    """Where room can't be claimed, writing goes on without."""

    def unable(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", unable)
    disk.reserve(written, 0, 10)


def test_a_file_is_cut_to_a_size(disk, written):
    """What is behind the size is gone."""
    disk.write_at(written, 0, [b"abcdef"])
    disk.truncate(written, 2)
    assert content(disk) == b"ab"


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_an_error_when_a_file_is_closed_is_no_error(disk, written, monkeypatch, code):
    """The descriptor is gone, and what counts was synced before."""
    close = os.close

    def close_and_fail(fd):
        close(fd)
        raise OSError(code, os.strerror(code))

    fd = disk.open("x")
    with monkeypatch.context() as patch:
        patch.setattr(os, "close", close_and_fail)
        disk.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        disk.close(fd)


def test_syncing_works_on_what_is_open(disk, written):
    """Files and the folder can be synced; a descriptor that was given back can't."""
    disk.sync(written)
    disk.sync_data(written)
    disk.sync_names()
    fd = disk.open("x")
    disk.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        disk.sync(fd)


# ---- names -----------------------------------------------------------------------------------------------------------


def names(disk):
    return sorted(disk.names())


@pytest.fixture
def two_files(tmp_path):
    (tmp_path / "new").write_bytes(b"ours")
    (tmp_path / "taken").write_bytes(b"theirs")


def test_a_file_is_published(disk, two_files):
    """A file that gets a new name keeps the old one: that may go only when the new one is synced."""
    disk.publish("new", "epochs_1.h5")
    assert names(disk) == ["epochs_1.h5", "new", "taken"]
    assert content(disk, "epochs_1.h5") == b"ours"


def test_publishing_never_replaces_a_file(disk, two_files):
    """A name that is taken stays with whoever has it, and the new file keeps its old name."""
    with pytest.raises(FileExistsError):
        disk.publish("new", "taken")
    assert (content(disk, "new"), content(disk, "taken")) == (b"ours", b"theirs")


def test_publishing_replaces_no_link_that_leads_nowhere(tmp_path, disk, two_files):
    """A symbolic link to nothing has its name, too."""
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(FileExistsError):
        disk.publish("new", "link")
    assert (tmp_path / "link").is_symlink()


@pytest.fixture
def no_hard_links(monkeypatch):
    """A file system without hard links."""

    def unable(*_, **__):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", unable)


def test_a_file_is_published_without_hard_links(disk, two_files, no_hard_links):
    """Where there are no hard links, a free name is taken by renaming, and a name that is taken is refused."""
    with pytest.raises(FileExistsError):
        disk.publish("new", "taken")
    assert names(disk) == ["new", "taken"]
    disk.publish("new", "epochs_1.h5")
    assert names(disk) == ["epochs_1.h5", "taken"]


def test_publishing_a_file_that_is_not_there_is_an_error(disk, two_files):
    """There must be a file to publish."""
    with pytest.raises(FileNotFoundError):
        disk.publish("missing", "epochs_1.h5")


def test_a_file_takes_the_place_of_another_one(disk, two_files):
    """Who has the old file open keeps it."""
    fd = disk.open("taken")
    disk.replace("new", "taken")
    memory = bytearray(10)
    assert memory[: disk.read_at(fd, 0, memoryview(memory))] == b"theirs"
    disk.close(fd)
    assert names(disk) == ["taken"]
    assert content(disk, "taken") == b"ours"


def test_two_names_of_one_file_both_stay(tmp_path, disk, two_files):
    """After a crash between the steps of publishing, a file has two names: replacing one by the other takes none away."""
    (tmp_path / "epochs_1.h5").hardlink_to(tmp_path / "new")
    disk.replace("new", "epochs_1.h5")
    assert names(disk) == ["epochs_1.h5", "new", "taken"]


def test_a_name_is_taken_away(disk, two_files):
    """Removing a name twice is an error, unless that is allowed."""
    disk.remove("new")
    disk.remove("new", missing_ok=True)
    with pytest.raises(FileNotFoundError):
        disk.remove("new")
    assert names(disk) == ["taken"]
