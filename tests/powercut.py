"""A disk in memory that remembers what was synced, and every state in which a power cut may leave it.

POSIX promises little: until a file is synced any of its writes may have reached the disk or not, whole or in part, in
any order, and its size may have come without its bytes; until the folder is synced any of the creations, renames and
removals in it may have happened or not, in any order. A rename itself happens wholly or not at all.
(As ALICE models it: Pillai et al., OSDI 2014.)
"""

import errno
import itertools
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from posterity._system.disk import Disk

SECTORS = (512, 4096)
_FIRST_FD = 1 << 20
_counter = itertools.count()


class Write(NamedTuple):
    """Bytes that were written to a file."""

    file: int
    offset: int
    data: bytes


class Size(NamedTuple):
    """A size that a file was given."""

    file: int
    nbytes: int


class Grown(NamedTuple):
    """A size that a file has at least: what it had not before is zeros."""

    file: int
    nbytes: int


class Name(NamedTuple):
    """Names that were given and taken away in one step: name -> file, or None."""

    names: tuple[tuple[str, int | None], ...]


class Sync(NamedTuple):
    """A file was synced; `None`: the folder's names were."""

    file: int | None


class Lost(NamedTuple):
    """A sync of a file failed: what was pending is thrown away, and a later sync will say that all is well."""

    file: int


class Told(NamedTuple):
    """What somebody was told by now, or asked for by now."""

    what: object


class Step(NamedTuple):
    """One thing that happened, and the code that did it."""

    what: Write | Size | Name | Sync | Lost | Told
    site: str


class Killed(BaseException):
    """The process ends here."""


class MemoryDisk(Disk):
    """A folder in memory, and the log of all that was done to it."""

    def __init__(self, files=None):
        self.folder = Path(f"/nowhere/run-{next(_counter)}")
        self._folder_fds = []
        self._files = {}
        self._names = {}
        self._fds = {}
        self._next = _FIRST_FD
        self.log = []
        self.kill_in = None
        self.fail_in = None
        self.fail_code = 0
        self.distrusted = set()
        self._exists = files is not None
        for name, data in (files or {}).items():
            self._files[self._number()] = bytearray(data)
            self._names[name] = self._next
        self.base = ({name: self._names[name] for name in self._names}, {n: bytes(f) for n, f in self._files.items()})

    def _number(self):
        self._next += 1
        return self._next

    def _note(self, what):
        """Log what is about to be done; where the process is to die or the disk to fail now, it isn't done."""
        site = _site(what)
        if self.kill_in is not None:
            self.kill_in -= 1
            if self.kill_in < 0:
                raise Killed
        file = None if isinstance(what, Name) else what.file
        assert file is None or file not in self.distrusted, f"{site}: a file that failed is used again"
        if self.fail_in is not None:
            self.fail_in -= 1
            if self.fail_in < 0:
                self._fail(what, site)
        self.log.append(Step(what, site))

    def fail(self, ncalls, code):
        """Let a call fail, after some that work."""
        self.fail_in, self.fail_code = ncalls, code

    def _fail(self, what, site):
        self.fail_in = None
        if isinstance(what, Write):
            half = what._replace(data=what.data[: len(what.data) // 2])
            self.log.append(Step(half, site))
            put(self._files[what.file], half.offset, half.data)
        if isinstance(what, Sync) and what.file is not None:
            self.log.append(Step(Lost(what.file), site))
        if (
            not isinstance(what, Name)
            and what.file is not None
            and (isinstance(what, Sync) or self.fail_code == errno.EIO)
        ):
            self.distrusted.add(what.file)
        raise OSError(self.fail_code, os.strerror(self.fail_code), site)

    def tell(self, what):
        """Note that somebody was told something."""
        self.log.append(Step(Told(what), ""))

    def contents(self):
        """Name -> bytes, as the process sees it."""
        return {name: bytes(self._files[file]) for name, file in self._names.items()}

    def _file(self, fd):
        return self._files[self._fds[fd]]

    def _opened(self, file):
        fd = self._number()
        self._fds[fd] = file
        return fd

    # ---- the calls of a disk -----------------------------------------------------------------------------------------

    def is_there(self):
        return self._exists

    def enter(self):
        self._exists = True

    def leave(self):
        pass

    def __del__(self):
        pass

    def key(self):
        return (0, id(self))

    def names(self):
        return list(self._names)

    def open(self, name, *, write=False):
        if name not in self._names:
            raise FileNotFoundError(errno.ENOENT, "not there", name)
        return self._opened(self._names[name])

    def create(self, name):
        self.remove(name, missing_ok=True)
        file = self._number()
        self._note(Name(((name, file),)))
        self._files[file] = bytearray()
        self._names[name] = file
        return self._opened(file)

    def open_or_create(self, name):
        """The lock's file: a real one, because the system locks it. No part of the state."""
        return os.memfd_create(name)

    def lock(self, fd):
        if fd not in self._fds:  # the lock's file; nobody else has the others
            super().lock(fd)

    def unlock(self, fd):
        if fd not in self._fds:
            super().unlock(fd)

    def close(self, fd):
        if fd in self._fds:
            del self._fds[fd]
        else:
            os.close(fd)

    def size(self, fd):
        return len(self._file(fd)) if fd in self._fds else super().size(fd)

    def is_same(self, fd, other_fd):
        return self._fds[fd] == self._fds[other_fd]

    def reserve(self, fd, offset, nbytes):
        data = self._file(fd)
        if nbytes and offset + nbytes > len(data):
            self._note(Size(self._fds[fd], offset + nbytes))
            resize(data, offset + nbytes)

    def write_at(self, fd, offset, buffers):
        if fd not in self._fds:
            super().write_at(fd, offset, buffers)
            return
        new = b"".join(bytes(buffer) for buffer in buffers)
        if new:
            self._note(Write(self._fds[fd], offset, new))
            put(self._file(fd), offset, new)

    def read_at(self, fd, offset, into):
        if fd not in self._fds:
            return super().read_at(fd, offset, into)
        data = self._file(fd)[offset : offset + into.nbytes]
        into[: len(data)] = data
        return len(data)

    def read_rows(self, fd, offset, stride, rows):
        return all(self.read_at(fd, offset + i * stride, row) == row.nbytes for i, row in enumerate(rows))

    def push(self, fd, offset, nbytes):
        """It promises nothing: what was written stays pending."""
        assert offset + nbytes <= len(self._file(fd))

    def sync(self, fd):
        self._note(Sync(self._fds[fd]))

    def sync_data(self, fd):
        self._note(Sync(self._fds[fd]))

    def sync_names(self):
        self._note(Sync(None))

    def truncate(self, fd, nbytes):
        if fd not in self._fds:
            super().truncate(fd, nbytes)
            return
        self._note(Size(self._fds[fd], nbytes))
        resize(self._file(fd), nbytes)

    def publish(self, name, as_name):
        file = self._there(name)
        if as_name in self._names:
            raise FileExistsError(errno.EEXIST, "the name is taken", as_name)
        self._note(Name(((as_name, file),)))
        self._names[as_name] = file

    def replace(self, name, as_name):
        file = self._there(name)
        if self._names.get(as_name) == file:  # two names of one file: a rename does nothing
            return
        self._note(Name(((name, None), (as_name, file))))
        del self._names[name]
        self._names[as_name] = file

    def remove(self, name, *, missing_ok=False):
        if name in self._names:
            self._note(Name(((name, None),)))
            del self._names[name]
        elif not missing_ok:
            raise FileNotFoundError(errno.ENOENT, "not there", name)

    def free_bytes(self):
        return 1 << 40

    def _there(self, name):
        if name not in self._names:
            raise FileNotFoundError(errno.ENOENT, "not there", name)
        return self._names[name]


def _site(what):
    """The code that does something, as the tests name it: what, where, called from where."""
    frame = sys._getframe(3)
    kind = "Names" if what == Sync(None) else type(what).__name__
    callers = []
    while frame is not None and len(callers) < 2:
        callers.append(frame.f_code.co_qualname)
        frame = frame.f_back
    return " < ".join([kind, *callers])


def put(data, offset, new):
    if offset > len(data):
        data.extend(bytes(offset - len(data)))
    data[offset : offset + len(new)] = new


def resize(data, nbytes):
    if nbytes < len(data):
        del data[nbytes:]
    else:
        data.extend(bytes(nbytes - len(data)))


# ---- power cuts ------------------------------------------------------------------------------------------------------


class PowerCut(NamedTuple):
    """What a power cut left: `files` by name. `told`: what was told before it, in order. `at`: step of the log."""

    files: dict[str, bytes]
    told: list[object]
    at: int


def power_cuts(log: list[Step], base: tuple, rng: random.Random, nrandom: int) -> Iterator[PowerCut]:
    """States in which a power cut may leave a disk, at every step of its log; `base`: what was on it before.

    After each step all states are among: what is pending is lost, has happened, each single one of it is lost, each
    single one of it has happened; and some random choices. The step itself comes whole and torn.
    """
    folder = _Folder(*base)
    told: list[object] = []
    for at, step in enumerate(log):
        if isinstance(step.what, Told):
            told.append(step.what.what)
        folder.take(step.what)
        for files in _states(folder, step.what, rng, nrandom):
            yield PowerCut(files, list(told), at)


class _Folder:
    """What is on the disk for sure, and what may be."""

    def __init__(self, names, files):
        self.names = dict(names)
        self.files = dict(files)
        self.pending = []

    def take(self, what):
        if isinstance(what, (Write, Size, Name)):
            self.pending.append(what)
        elif isinstance(what, Lost):
            self.pending = [change for change in self.pending if not _is_covered(change, what.file)]
        elif isinstance(what, Sync):
            mine = [change for change in self.pending if _is_covered(change, what.file)]
            self.pending = [change for change in self.pending if not _is_covered(change, what.file)]
            self.names, self.files = self._after(mine)

    def _after(self, changes):
        names = dict(self.names)
        files = dict(self.files)
        touched = {}
        for change in changes:
            if isinstance(change, Name):
                for name, file in change.names:
                    if file is None:
                        names.pop(name, None)
                    else:
                        names[name] = file
                continue
            if change.file not in touched:
                touched[change.file] = bytearray(files.get(change.file, b""))
            if isinstance(change, Write):
                put(touched[change.file], change.offset, change.data)
            elif isinstance(change, Size) or change.nbytes > len(touched[change.file]):
                resize(touched[change.file], change.nbytes)
        files.update({file: bytes(data) for file, data in touched.items()})
        return names, files

    def state(self, changes):
        names, files = self._after(changes)
        return {name: files.get(file, b"") for name, file in names.items()}


def _is_covered(change, file):
    return isinstance(change, Name) if file is None else not isinstance(change, Name) and change.file == file


def _states(folder, last, rng, nrandom):
    pending = folder.pending
    if not pending or pending[-1] is not last:
        yield folder.state([])
        yield folder.state(pending)
        before, endings = pending, [[]]
    else:
        before, endings = pending[:-1], [[last]]
    if isinstance(last, Write):
        endings += torn(last, rng)
    choices = [before, []]
    some = rng.sample(range(len(before)), min(len(before), 4))
    choices += [before[:i] + before[i + 1 :] for i in some]
    choices += [[before[i]] for i in some]
    for chosen in choices[:2]:
        for ending in endings:
            yield folder.state([*chosen, *ending])
    for chosen in choices[2:]:
        yield folder.state([*chosen, *rng.choice(endings)])
    for _ in range(nrandom):
        chosen = [piece for change in before if rng.random() < 0.5 for piece in _perhaps_torn(change, rng)]
        yield folder.state([*chosen, *rng.choice(endings)])


def _perhaps_torn(change, rng):
    if isinstance(change, Write) and rng.random() < 0.5:
        return rng.choice(torn(change, rng))
    return [change]


def torn(write: Write, rng: random.Random) -> list[list[Write | Grown]]:
    """What may be left of a write: its first or last sectors, some, all but one; its size without its bytes."""
    sector = rng.choice(SECTORS)
    stop = write.offset + len(write.data)
    edges = [write.offset, *range((write.offset // sector + 1) * sector, stop, sector), stop]
    pieces = [
        Write(write.file, start, write.data[start - write.offset : end - write.offset])
        for start, end in itertools.pairwise(edges)
    ]
    extended = Grown(write.file, stop)
    cut = rng.randrange(len(pieces))
    inner = rng.randrange(len(write.data))
    return [
        [extended],
        pieces[:cut],
        [extended, *pieces[:cut]],
        pieces[cut + 1 :],
        [*pieces[:cut], *pieces[cut + 1 :]],
        [piece for piece in pieces if rng.random() < 0.5],
        [Write(write.file, write.offset, write.data[:inner])],
    ]
