"""One writer for a run folder, in this process and in all others.

The lock is a POSIX record lock on a file in the folder: the system takes it away when its process ends, however that
happens, and a forked child doesn't have it. A process that closes *any* descriptor of the file loses the lock, so
nothing else here opens it while it is held; what is held in this process is kept in a table.

Where the file system has no locks, the file itself is one: it says who made it, and its time is the holder's heartbeat.
"""

import contextlib
import errno
import fcntl
import os
import socket
import threading
import time
from pathlib import Path
from typing import Annotated

import msgspec

from .disk import Disk
from .errors import RunLocked

NAME = "posterity.lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
HEARTBEAT_S = 10.0
_SILENT_AFTER_S = 60.0


class Holder(msgspec.Struct, frozen=True):
    """Who writes a run.

    `since`: seconds since 1970. `start`: what tells this process from a later one of the same id.
    """

    host: str
    pid: int
    start: str
    since: Annotated[float, msgspec.Meta(ge=0, lt=1e11)]
    where: str
    by_file: bool = False

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        here = f", opened at {self.where}" if self.where and self.pid == os.getpid() else ""
        return f"process {self.pid} on {self.host} since {since}{here}"


_held: dict[tuple[int, int], "Lock"] = {}
_held_guard = threading.Lock()


class Lock:
    """The right to write one run folder. Held from `acquire` to `release`."""

    def __init__(self, disk: Disk, where: str) -> None:
        self._disk = disk
        self._where = where
        self._key: tuple[int, int] | None = None
        self._fd: int | None = None
        self._is_by_file = False
        self._is_released = threading.Event()
        self.holder: Holder | None = None
        self.is_closing = False

    def acquire(self) -> None:
        """Take the lock, if it isn't held; the folder exists and is entered.

        Raises:
            RunLocked: somebody has it; the message says who, where and since when.
        """
        if self._fd is not None:
            return
        found = self._disk.folder.stat()
        key = (found.st_dev, found.st_ino)
        me = Holder(socket.gethostname(), os.getpid(), _process_start(), time.time(), self._where)
        with _held_guard:
            held = _held.get(key)
            if held is not None and held.is_of_this_process:
                raise RunLocked(
                    f"{self._disk.folder} is written by {held.holder}, in this process; close that one first"
                )
            self._fd = self._disk.open_or_create(NAME)
            try:
                self._lock_file(me)
            except BaseException:
                self._disk.close(self._fd)
                self._fd = None
                raise
            self._key, self.holder = key, me
            self._is_released.clear()
            _held[key] = self

    @property
    def is_of_this_process(self) -> bool:
        """Whether this process has the lock, and not the one that it was forked from."""
        return self.holder is not None and self.holder.pid == os.getpid()

    def wait_released(self, timeout_s: float) -> None:
        """Wait until it is given back."""
        self._is_released.wait(timeout_s)

    def _lock_file(self, me: Holder) -> None:
        assert self._fd is not None
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise RunLocked(self._refusal(read_holder(self._disk, self._fd))) from error
            if error.errno not in _NO_LOCKS:
                raise
            self._is_by_file = True
            me = msgspec.structs.replace(me, by_file=True)
        holder = read_holder(self._disk, self._fd)
        if holder is not None and holder.by_file and self._is_alive(holder, me):
            raise RunLocked(self._refusal(holder))
        data = msgspec.json.encode(me)
        self._disk.truncate(self._fd, 0)
        self._disk.write_at(self._fd, 0, [data])

    def _is_alive(self, holder: Holder, me: Holder) -> bool:
        """Whether a holder that has no system lock is still there. One of another host is never taken for dead."""
        if holder.host != me.host:
            return True
        return _start_of(holder.pid) == holder.start

    def _refusal(self, holder: Holder | None) -> str:
        who = holder or "another process"
        hint = ""
        if holder is not None and holder.by_file and holder.host != socket.gethostname():
            assert self._fd is not None
            silent = time.time() - os.fstat(self._fd).st_mtime
            if silent > _SILENT_AFTER_S:
                hint = f"; it has been silent for {silent:.0f} s: if it is dead, remove {NAME} there"
        return f"{self._disk.folder} is written by {who}{hint}; close it there, or use another outdir"

    def beat(self) -> None:
        """Show other hosts that the holder lives; needed only where the system has no locks."""
        if self._is_by_file and self._fd is not None:
            os.utime(self._fd)

    def release(self) -> None:
        """Give the lock back; idempotent. A forked child's copy does nothing."""
        if self._fd is None:
            return
        with _held_guard:
            if self.is_of_this_process and self._key is not None:
                _held.pop(self._key, None)
                with contextlib.suppress(OSError):  # what the file says is a courtesy; the lock is what counts
                    self._disk.truncate(self._fd, 0)
        self._disk.close(self._fd)
        self._fd = None
        self._is_released.set()


def wait_if_closing(folder: Path, timeout_s: float) -> None:
    """A backend of this process that is closing lets its folder go soon: wait for that."""
    try:
        found = folder.stat()
    except FileNotFoundError:
        return
    held = _held.get((found.st_dev, found.st_ino))
    if held is not None and held.is_of_this_process and held.is_closing:
        held.wait_released(timeout_s)


def read_holder(disk: Disk, fd: int) -> Holder | None:
    """Who the lock's file says has it; None if it says nothing."""
    data = bytearray(min(4096, disk.size(fd)))
    disk.read_at(fd, 0, memoryview(data))
    try:
        return msgspec.json.decode(bytes(data), type=Holder)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _process_start() -> str:
    return _start_of(os.getpid())


def _start_of(pid: int) -> str:
    """When a process of this host was started, in the system's own words; empty if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        try:
            os.kill(pid, 0)
        except OSError:
            return ""
        return "unknown"
    return fields[19].decode()
