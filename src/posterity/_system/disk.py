"""Every call that touches the run folder: the one seam at which a disk can be slow, full or broken.

A `Disk` knows nothing of runs. It speaks of names in one folder, which it holds open: the folder may be moved while it
is at work. Names never lead out of the folder, and symbolic links aren't followed. Errors come up as they are.

Up the stream: `journal`, `file_writer`, `lock`, `recovery`, `store`. Tests put a breaking disk in its place.
"""

import contextlib
import ctypes
import errno
import os
import stat
import struct
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from .uncopyable import Uncopyable

try:
    import fcntl
except ImportError as error:
    raise ImportError("posterity doesn't run on Windows: it needs POSIX locks and renames") from error

Buffer: TypeAlias = bytes | bytearray | memoryview
_MAX_BUFFERS = 512
_SYNC_FILE_RANGE_WRITE = 2
_FLOCK = struct.Struct("hhqqi4x")  # Linux's `struct flock` on 64 bits: type, whence, start, length, process
_OFD_SETLK: int | None = getattr(fcntl, "F_OFD_SETLK", None) if sys.maxsize > 1 << 32 else None


def _find_sync_file_range() -> Callable[[int, int, int, int], int] | None:
    """Linux has it, Python doesn't. See sync_file_range(2)."""
    try:
        found = ctypes.CDLL(None).sync_file_range
    except (AttributeError, OSError, TypeError):
        return None
    found.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    call: Callable[[int, int, int, int], int] = found
    return call


_sync_file_range = _find_sync_file_range()


def is_full(error: OSError) -> bool:
    """Whether a call failed for want of room, and the disk is well otherwise."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


class Disk(Uncopyable):
    """One folder. Not shared between threads, but for reading."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self._folder_fds: list[int] = []

    def is_there(self) -> bool:
        """Whether the folder exists."""
        return self.folder.is_dir()

    def enter(self, *, make: bool = True) -> None:
        """Hold the folder open; `make`: it is made if need be.

        Raises:
            FileNotFoundError: it isn't there, and isn't to be made.
        """
        if self._folder_fds:
            return
        if make:
            missing = [folder for folder in (self.folder, *self.folder.parents) if not folder.exists()]
            self.folder.mkdir(parents=True, exist_ok=True)
            for folder in missing:
                _sync_path(folder.parent)
        self._folder_fds.append(os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY))

    def leave(self) -> None:
        """Let go of the folder; idempotent."""
        with contextlib.suppress(IndexError):
            os.close(self._folder_fds.pop())  # one of several threads that leave at once gets it

    def __del__(self) -> None:
        self.leave()

    @property
    def _fd(self) -> int:
        try:
            return self._folder_fds[0]
        except IndexError:
            raise FileNotFoundError(errno.ENOENT, "the run folder isn't open", str(self.folder)) from None

    def key(self) -> tuple[int, int]:
        """What tells the folder, which is entered, from all others, wherever it was moved to."""
        found = os.fstat(self._fd)
        return found.st_dev, found.st_ino

    def names(self) -> list[str]:
        """The names in the folder, in no order."""
        return os.listdir(self._fd)

    def open(self, name: str, *, write: bool = False) -> int:
        """A descriptor of a file that is there. A pipe or a device is refused, and never waited for."""
        flags = (os.O_RDWR if write else os.O_RDONLY) | os.O_NOFOLLOW | os.O_NONBLOCK
        return _plain_file(os.open(_plain(name), flags, dir_fd=self._fd), name)

    def create(self, name: str) -> int:
        """A descriptor of a new, empty file of our own; what had the name before is gone."""
        self.remove(name, missing_ok=True)
        return os.open(_plain(name), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666, dir_fd=self._fd)

    def open_or_create(self, name: str) -> int:
        """A descriptor of a plain file, to read and write; it is made if it isn't there, and never anew."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        return _plain_file(os.open(_plain(name), flags, 0o666, dir_fd=self._fd), name)

    def close(self, fd: int) -> None:
        """Give a descriptor back. An error of the disk's here would tell nothing: what counts was synced before."""
        try:
            os.close(fd)
        except OSError as error:
            if error.errno == errno.EBADF:
                raise

    def size(self, fd: int) -> int:
        """A file's size in bytes."""
        return os.fstat(fd).st_size

    def size_of(self, name: str) -> int:
        """The size in bytes of what has a name; a symbolic link isn't followed."""
        return os.stat(_plain(name), dir_fd=self._fd, follow_symlinks=False).st_size

    def changed_at(self, fd: int) -> float:
        """When a file's bytes changed last, in seconds since 1970."""
        return os.fstat(fd).st_mtime

    def is_same(self, fd: int, other_fd: int) -> bool:
        """Whether two descriptors are of one file."""
        return os.path.samestat(os.fstat(fd), os.fstat(other_fd))

    def lock(self, fd: int) -> None:
        """Lock a whole file for a descriptor, and what it opened; nobody else gets a lock of either kind meanwhile.

        The lock is the open file's own: no other descriptor of the file that this process opens and closes, to copy or
        hash its folder say, drops it. A forked child shares it until it closes its copy. Where the system has no such
        locks, it is the process's: then closing any descriptor of the file drops it.

        Raises:
            OSError: EACCES or EAGAIN: somebody has it. ENOLCK and the like: the file system has none.
        """
        if _OFD_SETLK is not None:
            try:
                fcntl.fcntl(fd, _OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
            except OSError as error:
                if error.errno != errno.EINVAL:  # a kernel from before 3.15
                    raise
            else:
                return
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    @property
    def locks_belong_to_files(self) -> bool:
        """Whether a lock is the open file's own, see `lock`."""
        return _OFD_SETLK is not None

    def unlock(self, fd: int) -> None:
        """Give a lock back, before the descriptor is closed: a child that is just being forked has a copy of that."""
        with contextlib.suppress(OSError):  # closing does it too
            if _OFD_SETLK is not None:
                fcntl.fcntl(fd, _OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0))
            else:
                fcntl.lockf(fd, fcntl.LOCK_UN)

    def lock_owner(self, fd: int) -> int | None:
        """Who has a lock on a file: a process; 0: nobody; negative: the system doesn't say who; None: or whether."""
        if not sys.platform.startswith("linux") or sys.maxsize < 1 << 32:
            return None
        try:
            asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            kind, *_, pid = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, asked))
        except OSError:
            return None
        return 0 if kind == fcntl.F_UNLCK else pid or -1

    def reserve(self, fd: int, offset: int, nbytes: int) -> None:
        """Claim room before a byte is written, so that a full disk is noticed while nothing is half done."""
        if nbytes and hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(fd, offset, nbytes)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    raise

    def write_at(self, fd: int, offset: int, buffers: Sequence[Buffer]) -> None:
        """Write the buffers one behind the other, all of them or an error."""
        views = [memoryview(buffer) for buffer in buffers if len(buffer)]
        first = 0
        while first < len(views):
            written = os.pwritev(fd, views[first : first + _MAX_BUFFERS], offset)
            if not written:
                raise OSError(errno.EIO, "the disk took no more bytes and gave no reason")
            offset += written
            while first < len(views) and written >= views[first].nbytes:
                written -= views[first].nbytes
                first += 1
            if written:
                views[first] = views[first][written:]

    def push(self, fd: int, offset: int, nbytes: int) -> None:
        """Have the disk begin to take what was written, so that a sync has less to wait for. It promises nothing."""
        if _sync_file_range is not None:
            _sync_file_range(fd, offset, nbytes, _SYNC_FILE_RANGE_WRITE)

    def read_at(self, fd: int, offset: int, into: memoryview) -> int:
        """Read until `into` is full or the file ends; returns how many bytes."""
        nbytes = into.nbytes
        done = os.preadv(fd, (into,), offset)
        while 0 < done < nbytes:
            got = os.preadv(fd, (into[done:],), offset + done)
            if not got:
                break
            done += got
        return done

    def read_rows(self, fd: int, offset: int, stride: int, rows: Sequence[memoryview]) -> bool:
        """Fill rows, all as long, whose bytes begin `stride` apart in the file; False if that ends before."""
        nbytes, done = rows[0].nbytes if rows else 0, 0
        while stride == nbytes and done < len(rows):  # one behind the other: in one call
            some = rows[done : done + _MAX_BUFFERS]
            if os.preadv(fd, some, offset + done * stride) < len(some) * nbytes:
                break
            done += len(some)
        for i in range(done, len(rows)):
            at = offset + i * stride
            if os.preadv(fd, rows[i : i + 1], at) < nbytes and self.read_at(fd, at, rows[i]) < nbytes:
                return False
        return True

    def sync(self, fd: int) -> None:
        """Wait until a file's bytes and size survive a power cut."""
        os.fsync(fd)

    def sync_data(self, fd: int) -> None:
        """As `sync`, without what isn't needed to read the file again."""
        if hasattr(os, "fdatasync"):
            os.fdatasync(fd)
        else:
            os.fsync(fd)

    def sync_names(self) -> None:
        """Wait until the folder's names survive a power cut."""
        os.fsync(self._fd)

    def truncate(self, fd: int, nbytes: int) -> None:
        """Cut a file of ours to a size."""
        os.ftruncate(fd, nbytes)

    def publish(self, name: str, as_name: str) -> None:
        """Give a file its new name, beside the old one; a file that has the name already is somebody's, and stays.

        The old name may go once the folder was synced: until then a power cut might take both.

        Raises:
            FileExistsError: the name is taken.
        """
        try:
            os.link(_plain(name), _plain(as_name), src_dir_fd=self._fd, dst_dir_fd=self._fd, follow_symlinks=False)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
                raise
            if as_name in self.names():
                raise FileExistsError(errno.EEXIST, "the name is taken", as_name) from error
            self.replace(name, as_name)  # a file system without hard links

    def replace(self, name: str, as_name: str) -> None:
        """Put a file in the place of another one of ours, in one step; who has that one open keeps it.

        Two names of one file both stay.
        """
        os.rename(_plain(name), _plain(as_name), src_dir_fd=self._fd, dst_dir_fd=self._fd)

    def remove(self, name: str, *, missing_ok: bool = False) -> None:
        """Take a name away."""
        try:
            os.unlink(_plain(name), dir_fd=self._fd)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def free_bytes(self) -> int:
        """How many bytes an ordinary user may still write here."""
        at = self.folder
        while not at.exists():
            at = at.parent
        found = os.statvfs(at)
        return found.f_bavail * found.f_frsize


def _plain_file(fd: int, name: str) -> int:
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a plain file", name)
    return fd


def _plain(name: str) -> str:
    if "/" in name or name in ("", ".", ".."):
        raise OSError(errno.EINVAL, "not the name of a file in the folder", name)
    return name


def _sync_path(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
