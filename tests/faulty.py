"""A disk that fails, or kills the process, at its n-th call; and a workload that meets every kind of call.

Run as a script, it does workloads, each in a process of its own that it forks: see `Workers`.
"""

import errno
import itertools
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import traceback
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import anyio._backends._asyncio  # noqa: F401  # not in each fork
import numpy as np

from posterity import DefaultBackend, WriteFailed
from posterity._model.options import parse_options
from posterity._system.disk import Disk
from posterity._writing.service import Service
from smallchunks import small_chunks

CHANGES = ["enter", "open_or_create", "create", "reserve", "write_at", "truncate", "publish", "replace", "remove"]
SYNCS = ["sync", "sync_data", "sync_names"]
CALLS = [*CHANGES, *SYNCS, "open", "read_at", "read_rows", "size", "names", "free_bytes"]
LENGTHS = [3, 4, 5, 3, 4, 5, 3]
BURN = 5


class FaultyDisk(Disk):
    """Counts the calls of the I/O thread, or those of opening, and at one of them does what `fault` does."""

    def __init__(self, folder, fault=None, at=0, *, opening=False, counted=CALLS):
        super().__init__(folder)
        self.fault = fault
        self.at = at
        self.opening = opening
        self.counted = counted
        self.ncalls = 0

    def meet(self, name, args):
        if threading.current_thread().name.startswith("posterity-io") != self.opening and name in self.counted:
            self.ncalls += 1
            if self.ncalls == self.at:
                self.fault(self, name, args)


def _counted(name):
    call = getattr(Disk, name)

    def counted(self, *args, **kwargs):
        self.meet(name, args)
        return call(self, *args, **kwargs)

    return counted


for _name in CALLS:
    setattr(FaultyDisk, _name, _counted(_name))


def write_half(disk, name, args):
    """Half of what was to be written reaches the disk."""
    if name == "write_at":
        data = b"".join(bytes(buffer) for buffer in args[2])
        Disk.write_at(disk, args[0], args[1], [data[: len(data) // 2]])


class Ailment(NamedTuple):
    """What is wrong with a disk for good: the calls that fail, and how.

    `is_half`: half of what was to be written is there all the same. `only_files`: calls on HDF5 files alone.
    """

    code: int
    calls: tuple[str, ...]
    is_half: bool = False
    only_files: bool = False


NEEDS_ROOM = ("enter", "open_or_create", "create", "reserve", "write_at", *SYNCS, "publish", "replace")
AILMENTS = {
    "full disk": Ailment(errno.ENOSPC, NEEDS_ROOM, is_half=True),
    "quota": Ailment(errno.EDQUOT, NEEDS_ROOM),
    "I/O error": Ailment(errno.EIO, tuple(CALLS)),
    "I/O error in HDF5 files": Ailment(errno.EIO, tuple(CALLS), is_half=True, only_files=True),
    "failing syncs": Ailment(errno.EIO, tuple(SYNCS)),
    "full disk, told by syncs": Ailment(errno.ENOSPC, tuple(SYNCS)),
}


class BrokenDisk(FaultyDisk):
    """Fails from the n-th call of the I/O thread on, until it is mended; and notes what must never be done with it.

    A sync that fails throws away what was pending, as Linux does.
    """

    def __init__(self, folder, ailment, at):
        super().__init__(folder, at=at)
        self.ailment = ailment
        self.has_failed = self.is_mended = False
        self.wrongs = []
        self.may_remove = lambda name: True
        self.note_failure = lambda: None
        self._pending = {}
        self._given_up = {}  # descriptors of files that failed, by inode; open, so that no other file gets it

    def mend(self):
        self.is_mended = True

    def give_up(self):
        """The test is over."""
        for fd in self._given_up.values():
            os.close(fd)

    def meet(self, name, args):
        if not threading.current_thread().name.startswith("posterity-io"):
            return
        self.ncalls += 1
        if name in ("reserve", "write_at", "sync", "sync_data") and os.fstat(args[0]).st_ino in self._given_up:
            self.wrongs.append(f"{name} of a file that failed")
        if (
            name == "remove"
            and args[0].endswith(".h5")
            and args[0] in Disk.names(self)
            and not self.may_remove(args[0])
        ):
            self.wrongs.append(f"{args[0]} was removed before all was well")
        if self.ncalls >= self.at and not self.is_mended and self._is_ailing(name, args):
            if not self.has_failed:
                self.has_failed = True
                self.note_failure()
            self._fail(name, args)

    def _is_ailing(self, name, args):
        if name not in self.ailment.calls:
            return False
        if not self.ailment.only_files:
            return True
        on = args[0] if args else ""
        return ".h5" in (on if isinstance(on, str) else str(Path(f"/proc/self/fd/{on}").readlink()))

    def _fail(self, name, args):
        code = self.ailment.code
        if name == "write_at" and self.ailment.is_half:
            write_half(self, name, args)
        is_sync = name in ("sync", "sync_data")
        if is_sync:
            for offset, nbytes in self._pending.pop(os.fstat(args[0]).st_ino, []):
                os.pwrite(args[0], bytes(nbytes), offset)
        if is_sync or (name in ("reserve", "write_at") and code == errno.EIO):
            self._given_up.setdefault(os.fstat(args[0]).st_ino, os.dup(args[0]))
        raise OSError(code, os.strerror(code), name)

    def write_at(self, fd, offset, buffers):
        super().write_at(fd, offset, buffers)
        written = (offset, sum(map(len, buffers)))
        self._pending.setdefault(os.fstat(fd).st_ino, []).append(written)

    def sync(self, fd):
        super().sync(fd)
        self._pending.pop(os.fstat(fd).st_ino, None)

    def sync_data(self, fd):
        super().sync_data(fd)
        self._pending.pop(os.fstat(fd).st_ino, None)


@contextmanager
def short_writes(at, *, for_good):
    """The system takes only half of the bytes of its n-th write of the I/O thread, or of all from then on."""
    pwritev = os.pwritev
    calls = itertools.count(1)

    def short(fd, buffers, offset):
        if threading.current_thread().name.startswith("posterity-io"):
            ncalls = next(calls)
            if ncalls == at or (for_good and ncalls > at):
                data = b"".join(map(bytes, buffers))
                return os.pwrite(fd, data[: max(1, len(data) // 2)], offset)
        return pwritev(fd, buffers, offset)

    os.pwritev = short
    try:
        yield calls
    finally:
        os.pwritev = pwritev


def kill(disk, name, args):
    write_half(disk, name, args)
    os.kill(os.getpid(), signal.SIGKILL)


def epoch(index):
    start = sum(LENGTHS[:index])
    p = np.arange(start, start + LENGTHS[index], dtype=float) + 1e6 * np.arange(4.0).reshape(2, 2, 1)
    return {"samples": {"p": p}, "state": {"index": index}, "listed": list(range(index))}


def samples(nepochs, burn):
    return np.concatenate([epoch(i)["samples"]["p"] for i in range(nepochs)], axis=2)[:, :, burn:]


def backend_on(disk, **options):
    return DefaultBackend._of(Service(parse_options(0, disk.folder, options), disk))


def persistently(call, **options):
    """Call until the disk takes it: each failure that is told is one more attempt of the writer's."""
    for _ in range(20):
        try:
            return call(**options)
        except WriteFailed:
            continue
    raise AssertionError("the writer doesn't recover")


def work(backend, tell=lambda nepochs, burn: None):
    """Ingest what isn't there yet, burn, flush, publish; `tell` is told what is durable."""
    for index in range(backend.status.epochs, len(LENGTHS)):
        backend.ingest(epoch(index))
        if index >= 3 and backend.burn < BURN:
            backend.set_burn(BURN)
        if index % 2:
            persistently(backend.flush, publish=index == 5)
            tell(index + 1, backend.burn)
        else:
            persistently(backend.update)
    if backend.burn < BURN:
        backend.set_burn(BURN)
    persistently(backend.flush)
    tell(len(LENGTHS), BURN)


def say(*words):
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def options_of(epochs_per_file, inmem_epochs, compression):
    return {
        "epochs_per_file": int(epochs_per_file),
        "inmem_epochs": int(inmem_epochs),
        "compression": None if compression == "None" else compression,
    }


# ---- in other processes ----------------------------------------------------------------------------------------------


class Workers:
    """Does the workload in processes that may be killed; all are forked from one that has imported everything."""

    def __enter__(self):
        self._parent = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )  # fmt: skip
        return self

    def __exit__(self, *_):
        self._parent.communicate()

    def work(self, outdir, *grouping, **kill):
        """What the process said before it ended; see `main`."""
        options = options_of(*grouping)
        self._parent.stdin.write(json.dumps({"outdir": str(outdir), "options": options, **kill}) + "\n")
        self._parent.stdin.flush()
        code, said = json.loads(self._parent.stdout.readline())
        assert code in (0, -signal.SIGKILL), said
        return [[int(word) if word.isdigit() else word for word in line.split()] for line in said.splitlines()]


def main(outdir, options, kill_at=0, opening=False, counted=CALLS):
    """Do the workload, and be killed at a call of the I/O thread, or at one of opening; say what is durable."""
    disk = FaultyDisk(Path(outdir), kill, kill_at, opening=opening, counted=counted)
    with small_chunks(), backend_on(disk, **options) as backend:
        say("opened", disk.ncalls)
        if opening:
            disk.at = 0
        work(backend, say)
    say("calls", disk.ncalls)


def _fork(job):
    said, telling = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(telling, 1)
        try:
            main(**job)
            os._exit(0)
        except BaseException:  # noqa: BLE001  # told to the parent
            say(traceback.format_exc())
            os._exit(1)
    os.close(telling)
    with open(said) as pipe:
        words = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), words


def serve():
    logging.disable(logging.CRITICAL)
    warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)  # no thread of ours runs here
    for line in sys.stdin:
        say(json.dumps(_fork(json.loads(line))))


if __name__ == "__main__":
    serve()
