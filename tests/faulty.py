"""A disk that fails, or kills the process, at its n-th call; and a workload that meets every kind of call.

Run as a script, it does workloads, each in a process of its own that it forks: see `Workers`.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import traceback
import warnings
from pathlib import Path

import anyio._backends._asyncio  # noqa: F401  # not in each fork
import numpy as np

from posterity import DefaultBackend, WriteFailed
from posterity.disk import Disk
from posterity.options import parse_options
from posterity.service import Service
from smallchunks import small_chunks

CHANGES = ["enter", "open_or_create", "create", "reserve", "write_at", "truncate", "publish", "replace", "remove"]
SYNCS = ["sync", "sync_data", "sync_names"]
CALLS = [*CHANGES, *SYNCS, "open", "read_at", "size", "names", "free_bytes"]
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
