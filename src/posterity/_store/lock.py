"""One writer for a run folder, in this process and in all others.

The lock is on a file in the folder, and on the journal too: who removes the lock's file lets nobody in. It belongs to
the open file (see `Disk.lock`): the system takes it away when its process ends, however that happens, and nothing that
the process opens and closes does. A forked child closes its copies. What is held in this process is kept in a table.

Where the file system has no locks, the file itself is one: it says who made it, and its time is the holder's heartbeat.
"""

import contextlib
import errno
import os
import threading
import time
import weakref
from pathlib import Path
from typing import Annotated, Protocol

import msgspec

from posterity._model.file_names import LOCK
from posterity._system.disk import Disk
from posterity._system.uncopyable import Uncopyable
from posterity.errors import RunLocked

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
        who = f"process {self.pid}" if self.pid else "a process that doesn't say its number,"
        return f"{who} on {self.host} since {since}{here}"


_claims: dict[str, "Lock"] = {}
_claims_guard = threading.Lock()


class Locked(Protocol):
    """Something that has a file of a run folder open and locked."""

    def forget(self) -> None:
        """In a forked child: close the descriptor. That unlocks nothing, as the parent has it open."""


_held: "weakref.WeakSet[Locked]" = weakref.WeakSet()


def hold(disk: Disk, fd: int, name: str, owner: Locked) -> None:
    """Lock another file of a run folder as well, until `Disk.unlock`.

    Raises:
        RunLocked: somebody else has it locked.
    """
    _held.add(owner)  # first: a fork just now must find it
    try:
        disk.lock(fd)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise RunLocked(
                f"{disk.folder / name} is locked by another writer, and {LOCK} isn't: somebody removed that file while "
                f"the run was written; close the run there, or use another outdir"
            ) from error
        if error.errno not in _NO_LOCKS:
            raise


def _begin_anew() -> None:
    """In a forked child: its parent's locks are to end with the parent."""
    global _claims_guard  # noqa: PLW0603  # another thread may have had it
    _claims_guard = threading.Lock()
    owners = list(_held)
    _held.clear()
    _claims.clear()
    for owner in owners:
        with contextlib.suppress(OSError):  # somebody closed all descriptors
            owner.forget()


os.register_at_fork(after_in_child=_begin_anew)


class Lock(Uncopyable):
    """The right to write one run folder: claimed in this process from opening on, locked once there is a folder."""

    def __init__(self, disk: Disk, where: str) -> None:
        self._disk = disk
        self._path = os.path.realpath(disk.folder)
        self.folder_key: tuple[int, int] | None = None
        self._fd: int | None = None
        self._is_by_file = False
        self._is_released = threading.Event()
        self.holder = Holder(os.uname().nodename, os.getpid(), _start_of(os.getpid()), time.time(), where)
        self.is_closing = False

    def claim(self, timeout_s: float) -> None:
        """Be the one backend of this process for the folder; one that is closing is waited for. Idempotent.

        Raises:
            RunLocked: this process has another one; the message says where it was opened.
        """
        while True:
            with _claims_guard:
                other = _claims.get(self._path)
                if other is None or other is self or other.holder.pid != os.getpid():
                    _claims[self._path] = self
                    return
            if not (other.is_closing and other.wait_released(timeout_s)):
                raise RunLocked(
                    f"{self._disk.folder} is written by {other.holder}, in this process; close that one first"
                )

    def wait_released(self, timeout_s: float) -> bool:
        """Wait until lock and claim are given back; False if that takes longer."""
        return self._is_released.wait(min(timeout_s, threading.TIMEOUT_MAX))

    def acquire(self) -> None:
        """Take the lock, if it isn't held; the folder exists and is entered.

        Raises:
            RunLocked: somebody has it; the message says who, where and since when.
        """
        self.claim(0.0)
        if self._fd is not None:
            return
        self._refuse_moved()
        self._fd = self._disk.open_or_create(LOCK)
        _held.add(self)
        try:
            self._lock_file(self.holder)
        except BaseException:
            fd, self._fd, self.folder_key = self._fd, None, None
            self._disk.unlock(fd)
            self._disk.close(fd)
            raise

    def _refuse_moved(self) -> None:
        """A folder that was moved while it is written has a new name, and the system would lock it again for us."""
        key = self._disk.key()
        with _claims_guard:
            for other in _claims.values():
                if other is not self and other.folder_key == key and other.holder.pid == os.getpid():
                    raise RunLocked(
                        f"{self._disk.folder} was moved and is written by {other.holder}, in this process; close that "
                        f"one first"
                    )
            self.folder_key = key

    def _lock_file(self, me: Holder) -> None:
        assert self._fd is not None
        try:
            self._disk.lock(self._fd)
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
        try:
            self._disk.truncate(self._fd, 0)
            self._disk.write_at(self._fd, 0, [msgspec.json.encode(me)])
        except OSError:
            if self._is_by_file:  # else it is a courtesy, and a full disk no reason not to open a run
                raise

    def _is_alive(self, holder: Holder, me: Holder) -> bool:
        """Whether a holder that has no system lock is still there. One of another host is never taken for dead."""
        if holder.host != me.host:
            return True
        return _start_of(holder.pid) == holder.start

    def _refusal(self, holder: Holder | None) -> str:
        who = holder or "another process"
        hint = ""
        if holder is not None and not holder.by_file and self._is_unseen(holder):
            hint = "; if that one has ended, a child that it forked still holds the lock: end the child"
        if holder is not None and holder.by_file and holder.host != os.uname().nodename:
            assert self._fd is not None
            silent = time.time() - os.fstat(self._fd).st_mtime
            if silent > _SILENT_AFTER_S:
                hint = f"; it has been silent for {silent:.0f} s: if it is dead, remove {LOCK} there"
        return f"{self._disk.folder} is written by {who}{hint}; close it there, or use another outdir"

    def _is_unseen(self, holder: Holder) -> bool:
        """Whether a process of this host isn't there any more, or is in another container."""
        return holder.host == self.holder.host and _start_of(holder.pid) != holder.start

    def forget(self) -> None:
        """See `Locked`."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def beat(self) -> None:
        """Show other hosts that the holder lives; needed only where the system has no locks."""
        if self._is_by_file and self._fd is not None:
            os.utime(self._fd)

    def release(self) -> None:
        """Give lock and claim back; idempotent. A forked child's copy does nothing to its parent's."""
        is_mine = self.holder.pid == os.getpid()
        fd, self._fd = self._fd, None  # first: a fork just now must not close what has this number next
        if fd is not None:
            if is_mine:
                with contextlib.suppress(OSError):  # what the file says is a courtesy; the lock is what counts
                    self._disk.truncate(fd, 0)
                self._disk.unlock(fd)
            self._disk.close(fd)
        with _claims_guard:
            self.folder_key = None
            if _claims.get(self._path) is self:
                del _claims[self._path]
        self._is_released.set()


def read_holder(disk: Disk, fd: int) -> Holder | None:
    """Who the lock's file says has it; None if it says nothing."""
    data = bytearray(min(4096, disk.size(fd)))
    disk.read_at(fd, 0, memoryview(data))
    try:
        return msgspec.json.decode(bytes(data), type=Holder)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def writer_of(disk: Disk) -> Holder | None:
    """Who writes a run just now, as far as can be told; None if nobody does. Nothing is locked, and nobody disturbed.

    The folder exists and is entered. A holder on another host, where the system has no locks, is taken at its word.
    """
    key = disk.key()
    with _claims_guard:
        mine = [lock for lock in _claims.values() if lock.folder_key == key and lock.holder.pid == os.getpid()]
    if mine:
        return mine[0].holder
    # Where a lock is the process's own, a backend that is just being opened would lose it if we closed the file.
    with contextlib.nullcontext() if disk.locks_belong_to_files else _claims_guard:
        try:
            fd = disk.open(LOCK)
        except OSError:
            return None
        try:
            holder, owner = read_holder(disk, fd), disk.lock_owner(fd)
            since = disk.changed_at(fd)
        finally:
            disk.close(fd)
    if owner is None or (holder is not None and holder.by_file):
        return holder if holder is not None and _may_live(holder) else None
    if owner and holder is None:  # a full disk may have kept it from saying who it is
        return Holder(os.uname().nodename, max(0, owner), _start_of(owner) if owner > 0 else "", since, "")
    return holder if owner else None


def _may_live(holder: Holder) -> bool:
    return holder.host != os.uname().nodename or _start_of(holder.pid) == holder.start


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
