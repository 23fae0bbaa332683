"""A disk that fails, or kills the process, at its n-th call; and a workload that meets every kind of call.

Run as a script, it does the workload: `faulty.py OUTDIR EPOCHS_PER_FILE INMEM_EPOCHS COMPRESSION KILL_AT`.
"""

import os
import signal
import sys
import threading
from pathlib import Path

import numpy as np

from posterity import DefaultBackend, WriteFailed
from posterity.disk import Disk
from posterity.options import parse_options
from posterity.service import Service
from smallchunks import small_chunks

CALLS = [
    "create",
    "reserve",
    "write_at",
    "sync",
    "sync_data",
    "sync_names",
    "truncate",
    "publish",
    "replace",
    "remove",
    "open",
    "read_at",
]
LENGTHS = [3, 4, 5, 3, 4, 5, 3]
BURN = 5


class FaultyDisk(Disk):
    """Counts the calls of the I/O thread, and at one of them does what `fault` does."""

    def __init__(self, folder, fault=None, at=0):
        super().__init__(folder)
        self.fault = fault
        self.at = at
        self.ncalls = 0

    def meet(self, name, args):
        if threading.current_thread().name.startswith("posterity-io"):
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


def main(outdir, epochs_per_file, inmem_epochs, compression, kill_at):
    disk = FaultyDisk(Path(outdir), kill, int(kill_at))
    options = options_of(epochs_per_file, inmem_epochs, compression)
    with small_chunks(), backend_on(disk, **options) as backend:
        work(backend, say)
    say("calls", disk.ncalls)


if __name__ == "__main__":
    main(*sys.argv[1:])
