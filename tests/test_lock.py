"""One writer for a run folder."""

import errno
import fcntl
import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
import zipfile

import msgspec
import numpy as np
import pytest

from known import epoch_dict, numbers
from posterity import DefaultBackend, open_run
from posterity._model.file_names import JOURNAL, LOCK
from posterity._store import lock as lock_module
from posterity._store.lock import Holder, Lock
from posterity._system.disk import Disk
from posterity.errors import RunLocked


@pytest.fixture
def lock(disk):
    lock = Lock(disk, "run.py:3")
    yield lock
    lock.release()


def other_disk(disk):
    other = Disk(disk.folder)
    other.enter()
    return other


# ---- in this process -------------------------------------------------------------------------------------------------


def test_a_second_lock_in_this_process_is_refused(disk, lock):
    """The message says that it is this process, where in it, and since when."""
    lock.acquire()
    year = time.strftime("%Y-")
    expected = rf"process {os.getpid()} on {re.escape(socket.gethostname())} since {year}.*run\.py:3, in this process"
    with pytest.raises(RunLocked, match=expected):
        Lock(disk, "again.py:4").acquire()


def test_the_folder_counts_and_not_its_name(tmp_path, disk, lock):
    """The same folder by another path is held, too."""
    lock.acquire()
    (tmp_path / "link").symlink_to(tmp_path)
    other = Disk(tmp_path / "link")
    other.enter()
    with pytest.raises(RunLocked):
        Lock(other, "").acquire()
    other.leave()


def test_a_folder_that_was_moved_is_held(tmp_path):
    """The same folder by its new path is held: the system would give this process the lock once more."""
    disk = Disk(tmp_path / "old")
    disk.enter()
    lock = Lock(disk, "run.py:3")
    lock.acquire()
    (tmp_path / "old").rename(tmp_path / "new")
    other = Disk(tmp_path / "new")
    other.enter()
    second = Lock(other, "")
    with pytest.raises(RunLocked, match=r"new was moved and is written by .*run\.py:3"):
        second.acquire()
    assert "refused" in tell(other, "try")
    lock.release()
    second.acquire()
    second.release()
    disk.leave()
    other.leave()


def test_a_folder_that_was_moved_before_it_was_locked_can_be_locked(tmp_path):
    """The folder that was entered is locked, wherever it is by then."""
    disk = Disk(tmp_path / "old")
    disk.enter()
    (tmp_path / "old").rename(tmp_path / "new")
    lock = Lock(disk, "")
    lock.acquire()
    assert (tmp_path / "new" / LOCK).exists()
    lock.release()
    disk.leave()


def test_another_folder_is_free(tmp_path, disk, lock):
    """Each folder has a lock of its own."""
    lock.acquire()
    other = Disk(tmp_path / "other")
    other.enter()
    second = Lock(other, "")
    second.acquire()
    second.release()
    other.leave()


def test_a_lock_can_be_taken_again_once_released(disk, lock):
    """Taking and releasing are idempotent, and a released lock is free for anybody."""
    lock.acquire()
    lock.acquire()
    lock.release()
    lock.release()
    second = Lock(disk, "")
    second.acquire()
    second.release()
    lock.acquire()


def test_a_refused_lock_does_not_loosen_the_one_that_holds(disk, lock):
    """Being refused in this process closes no descriptor of the lock's file: that would give the lock away."""
    lock.acquire()
    with pytest.raises(RunLocked):
        Lock(disk, "").acquire()
    assert "refused" in tell(disk, "try")


def test_the_file_says_who_has_it(disk, lock):
    """While it is held, the lock's file names the holder; after that it is empty."""
    lock.acquire()
    holder = msgspec.json.decode((disk.folder / LOCK).read_bytes(), type=Holder)
    assert (holder.pid, holder.host, holder.where) == (os.getpid(), socket.gethostname(), "run.py:3")
    lock.release()
    assert (disk.folder / LOCK).read_bytes() == b""


def test_who_opens_waits_for_who_is_closing(disk, lock):
    """A lock whose holder is closing is waited for; one that is simply held isn't."""
    lock.acquire()
    lock.is_closing = True
    second = Lock(disk, "")
    with pytest.raises(RunLocked):
        second.claim(0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Lock, "wait_released", lambda self, timeout_s: self.release() or True)
        second.claim(60)
    second.acquire()
    second.release()


def test_waiting_ends_with_the_release(disk, lock):
    """A lock that was released is not waited for."""
    lock.acquire()
    lock.release()
    assert lock.wait_released(60)


def test_a_folder_can_be_claimed_before_it_is_there(tmp_path):
    """A claim needs no folder, and is given back like a lock."""
    first, second = (Lock(Disk(tmp_path / "missing"), where) for where in ("a.py:1", "b.py:2"))
    first.claim(0.0)
    with pytest.raises(RunLocked, match=r"a\.py:1"):
        second.claim(0.0)
    first.release()
    second.claim(0.0)
    second.release()
    assert not (tmp_path / "missing").exists()


def test_a_full_disk_does_not_keep_the_lock_from_being_taken(tmp_path):
    """What the file says of its holder is a courtesy: when it can't be written, the lock is held all the same."""

    class FullDisk(Disk):
        def write_at(self, fd, offset, buffers):
            raise OSError(errno.ENOSPC, "No space left on device")

    disk = FullDisk(tmp_path)
    disk.enter()
    lock = Lock(disk, "")
    lock.acquire()
    assert "refused" in tell(disk, "try")
    lock.release()
    disk.leave()


# ---- from other processes --------------------------------------------------------------------------------------------

PROGRAM = """
import os, signal, sys
from pathlib import Path
from posterity._system.disk import Disk
from posterity.errors import RunLocked
from posterity._store.lock import Lock
disk = Disk(Path(sys.argv[1]))
disk.enter()
lock = Lock(disk, "other.py:1")
try:
    lock.acquire()
except RunLocked as error:
    print("refused:", error, flush=True)
else:
    if sys.argv[2] == "fork" and os.fork() == 0:
        lock.release()
        child = Lock(disk, "child")
        line = "at once"
        while line:
            try:
                child.acquire()
            except RunLocked:
                print("held", flush=True)
            else:
                print("taken by the child", flush=True)
            line = sys.stdin.readline()
        os._exit(0)
    if sys.argv[2] != "fork":
        print("held", flush=True)
    if sys.argv[2] != "try":
        sys.stdin.read()
"""


def start(disk, what):
    arguments = [sys.executable, "-c", PROGRAM, str(disk.folder), what]
    return subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def tell(disk, what):
    """What another process says that tries to take the lock."""
    with start(disk, what) as process:
        return process.communicate(timeout=60)[0]


@pytest.fixture
def other_process(disk):
    """Another process that has the lock."""
    with start(disk, "hold") as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.communicate(timeout=60)


def test_a_lock_of_another_process_is_refused(disk, lock, other_process):
    """The message says which process has it, on which host, and what to do."""
    expected = rf"process {other_process.pid} on {re.escape(socket.gethostname())} since .*another outdir"
    with pytest.raises(RunLocked, match=expected) as caught:
        lock.acquire()
    assert isinstance(caught.value, BlockingIOError)
    assert "opened at" not in str(caught.value)


def test_being_refused_leaves_the_holders_name(disk, lock, other_process):
    """Who is refused doesn't write over what the file says."""
    for _ in range(2):
        with pytest.raises(RunLocked, match=f"process {other_process.pid} "):
            lock.acquire()


def test_another_process_is_refused(disk, lock):
    """While this process has the lock, no other one gets it; then it does."""
    lock.acquire()
    assert f"process {os.getpid()} on" in tell(disk, "try")
    lock.release()
    assert tell(disk, "try") == "held\n"


def test_a_killed_holder_does_not_block(disk, lock, other_process):
    """A process that was killed has no lock any more, though its name is still in the file."""
    other_process.kill()
    other_process.wait(60)
    assert (disk.folder / LOCK).read_bytes()
    lock.acquire()


def test_a_forked_child_does_not_hold_the_lock(disk, lock):
    """A child can't give its parent's lock away nor take it, and doesn't keep it when the parent is killed."""
    with start(disk, "fork") as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(RunLocked, match=f"process {process.pid} "):
            lock.acquire()
        process.kill()
        process.wait(60)
        lock.acquire()  # the child is alive: it reads from its standard input
        process.stdin.close()


def test_a_forked_child_can_take_the_lock_when_its_parent_is_dead(disk):
    """What the child remembers of its parent's lock doesn't keep it from taking a lock of its own."""
    with start(disk, "fork") as process:
        assert process.stdout.readline() == "held\n"
        process.kill()
        process.wait(60)
        process.stdin.write("again\n")
        process.stdin.close()
        assert process.stdout.readline() == "taken by the child\n"


def test_the_locks_file_is_never_made_anew(disk, other_process):
    """Who looked for the file before another process made it doesn't put one of its own in its place."""

    class LateDisk(Disk):
        def open(self, name, *, write=False):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", name)

    late = LateDisk(disk.folder)
    late.enter()
    with pytest.raises(RunLocked):
        Lock(late, "").acquire()
    late.leave()


def copied(folder, to):
    shutil.copytree(folder, to)


def zipped(folder, to):
    with zipfile.ZipFile(to, "w") as archive:
        for path in folder.iterdir():
            archive.write(path)


def tarred(folder, to):
    with tarfile.open(to, "w") as archive:
        archive.add(folder)


def hashed(folder, to):
    to.write_text("".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()))


@pytest.mark.parametrize("back_up", [copied, zipped, tarred, hashed])
def test_a_backup_of_the_own_folder_drops_no_lock(tmp_path, back_up):
    """The program that writes a run opens and closes every file of it; nobody else gets in, and nothing is lost."""
    folder = tmp_path / "run"
    with DefaultBackend(outdir=folder) as backend:
        for i in range(3):
            backend.ingest(epoch_dict(10 * i, 10))
            backend.flush()
            back_up(folder, tmp_path / f"backup{i}")
            told = opened_elsewhere(folder)
            assert "RunLocked" in told
            assert f"process {os.getpid()} on" in told
    assert "opened" in opened_elsewhere(folder)
    with open_run(folder) as run:
        np.testing.assert_array_equal(run.get_samples(verify=True)["p"], numbers(0, 30))


def test_who_removes_the_locks_file_lets_nobody_in(tmp_path):
    """The journal is locked as well; a reader goes on, and so does the writer."""
    folder = tmp_path / "run"
    with DefaultBackend(outdir=folder) as backend:
        backend.ingest(epoch_dict(0, 10))
        backend.flush()
        (folder / LOCK).unlink()
        assert "RunLocked" in (told := opened_elsewhere(folder))
        assert "removed that file" in told
        backend.ingest(epoch_dict(10, 10))
        backend.flush()
    with open_run(folder) as run:
        assert run.get_samples(verify=True)["p"].shape[2] == 20


OPENED = """
import sys
from posterity import DefaultBackend, RunLocked
try:
    DefaultBackend(outdir=sys.argv[1]).close()
except RunLocked as error:
    print("RunLocked", error)
else:
    print("opened")
"""


def opened_elsewhere(folder):
    """What another process says that opens the run to write it."""
    command = [sys.executable, "-W", "ignore", "-c", OPENED, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=50)
    assert done.returncode == 0, done.stderr
    return done.stdout


FORKED_BEHIND = """
import ctypes, os, signal, sys, time
from pathlib import Path
from posterity import DefaultBackend
backend = DefaultBackend(outdir=sys.argv[1])
backend.ingest({"samples": {"p": __import__("numpy").zeros((1, 1, 1))}})
backend.flush()
child = ctypes.CDLL(None).fork()  # Python doesn't hear of it
if child == 0:
    while True:
        time.sleep(0.1)
print(child, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_child_that_outlives_its_parent_is_named(tmp_path):
    """One that was forked behind Python's back still has the lock: the refusal says so, and what to do."""
    command = [sys.executable, "-W", "ignore", "-c", FORKED_BEHIND, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        parent.wait(50)
        try:
            with pytest.raises(
                RunLocked, match=f"process {parent.pid} .*has ended, a child that it forked still holds"
            ):
                DefaultBackend(outdir=tmp_path / "run")
        finally:
            os.kill(child, signal.SIGKILL)
    for _ in range(1000):
        try:
            DefaultBackend(outdir=tmp_path / "run").close()
        except RunLocked:
            time.sleep(0.01)
        else:
            return
    raise AssertionError("the lock was never free")


FORKING = """
import subprocess, sys, threading
import numpy as np
from posterity import DefaultBackend, compact
ended = threading.Event()
def fork():
    while not ended.is_set():
        subprocess.run(["true"])
forking = [threading.Thread(target=fork) for _ in range(2)]
for thread in forking:
    thread.start()
try:
    for i in range(60):
        with DefaultBackend(outdir=sys.argv[1]) as backend:
            backend.ingest({"samples": {"p": np.full((1, 1, 2), float(i))}})
    for _ in range(20):
        compact(sys.argv[1])
    with DefaultBackend(outdir=sys.argv[1]) as backend:
        assert backend.get_samples()["p"].shape[2] == 120
finally:
    ended.set()
"""


def test_a_run_is_free_once_it_is_closed_whatever_is_forked_meanwhile(tmp_path):
    """A child has copies of the descriptors until it closes them or runs another program: they keep no lock."""
    command = [sys.executable, "-W", "ignore", "-c", FORKING, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=55)
    assert done.returncode == 0, done.stderr


def test_between_a_file_and_the_journal_nobody_gets_in_either(tmp_path):
    """An opening that would take in what is in a file and in no record must have the journal first. So must a repair."""
    folder = tmp_path / "run"
    with DefaultBackend(outdir=folder, epochs_per_file=4) as backend:
        backend.ingest(epoch_dict(0, 10))
        backend.flush()
        (folder / LOCK).unlink()
        before = (folder / JOURNAL).stat().st_size
        backend.ingest(epoch_dict(10, 10))
        backend.flush()
        os.truncate(folder / JOURNAL, before)  # as others see it between the two syncs
        assert "RunLocked" in opened_elsewhere(folder)
        code = f"from posterity import repair; repair({str(folder)!r})"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=50)
        assert "RunLocked" in done.stderr
        assert not list(folder.glob("*.aside*"))


def test_an_interrupted_opening_leaves_the_run_free(tmp_path, monkeypatch):
    """A Ctrl-C that comes just after the journal was locked, or synced, gives everything back."""
    with DefaultBackend(outdir=tmp_path / "run") as backend:
        backend.ingest(epoch_dict(0, 10))
    for name in ("lock", "sync", "read_at"):
        call = getattr(Disk, name)

        def interrupted(self, *args, call=call):
            call(self, *args)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Disk, name, interrupted)
            with pytest.raises(KeyboardInterrupt):
                DefaultBackend(outdir=tmp_path / "run")
        DefaultBackend(outdir=tmp_path / "run").close()


# ---- where the file system has no locks ------------------------------------------------------------------------------


@pytest.fixture
def no_locks(monkeypatch):
    """A file system that has no locks."""

    def unable(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", unable)
    monkeypatch.setattr(fcntl, "fcntl", unable)


def held_by(disk, **fields):
    """Have the file say that somebody has it."""
    me = Holder(socket.gethostname(), os.getpid(), lock_module._start_of(os.getpid()), time.time(), "", True)
    (disk.folder / LOCK).write_bytes(msgspec.json.encode(msgspec.structs.replace(me, **fields)))


def test_the_file_is_the_lock_where_there_are_none(disk, lock, no_locks):
    """A living process of this host that the file names has the lock."""
    held_by(disk)
    with pytest.raises(RunLocked, match=f"process {os.getpid()} on"):
        lock.acquire()


@pytest.mark.parametrize("fields", [{"start": "1"}, {"pid": 2**22 + 1}, {"by_file": False}], ids=str)
def test_a_dead_holder_of_this_host_does_not_block(disk, lock, no_locks, fields):
    """A process that is gone, or another one with its number, doesn't have the lock."""
    held_by(disk, **fields)
    lock.acquire()


def test_a_holder_on_another_host_is_never_broken(disk, lock, no_locks):
    """Whatever its silence, another host's holder stays, and the message says for how long it has been silent."""
    held_by(disk, host="elsewhere")
    with pytest.raises(RunLocked, match="on elsewhere") as caught:
        lock.acquire()
    assert "silent" not in str(caught.value)
    os.utime(disk.folder / LOCK, (time.time() - 7200,) * 2)
    with pytest.raises(RunLocked, match=r"silent for 7\d\d\d s: if it is dead, remove posterity\.lock"):
        lock.acquire()


def test_a_holder_without_locks_counts_where_there_are_some(disk, lock):
    """This host may have locks on a folder where another one had none."""
    held_by(disk, host="elsewhere")
    with pytest.raises(RunLocked, match="on elsewhere"):
        lock.acquire()


def test_the_heartbeat_is_the_files_time(disk, lock, no_locks):
    """Without locks, a beat shows others that the holder lives; with locks it does nothing."""
    lock.beat()
    lock.acquire()
    os.utime(disk.folder / LOCK, (0, 0))
    lock.beat()
    assert time.time() - (disk.folder / LOCK).stat().st_mtime < 600


def test_with_locks_there_is_no_heartbeat(disk, lock):
    """The system itself knows that a holder lives."""
    lock.acquire()
    os.utime(disk.folder / LOCK, (0, 0))
    lock.beat()
    assert (disk.folder / LOCK).stat().st_mtime == 0


def test_another_failure_to_lock_is_an_error(disk, lock, monkeypatch):
    """An error that doesn't mean that there are no locks comes up as it is."""

    def broken(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "lockf", broken)
    monkeypatch.setattr(fcntl, "fcntl", broken)
    with pytest.raises(OSError, match="Input/output"):
        lock.acquire()


@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b"{}", b'{"host": "\xff"}', b"[" * 5000, b"x" * 10_000])
def test_a_file_that_says_nothing_is_free(disk, lock, data):
    """A lock's file without a holder that can be read belongs to nobody."""
    (disk.folder / LOCK).write_bytes(data)
    lock.acquire()


@pytest.mark.parametrize("since", [1e300, -1.0, 1e11])
def test_a_holder_of_no_time_is_none(disk, lock, since):
    """A file that says when in words that no clock has is not believed."""
    held_by(disk, host="elsewhere", since=since)
    lock.acquire()
