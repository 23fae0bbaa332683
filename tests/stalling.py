"""What a stalling disk does to others: each I/O call of the writer takes long, and the gaps of others are measured."""

import threading
import time

import anyio
import anyio.lowlevel
import numpy as np

from faulty import CALLS
from posterity import DefaultBackend
from posterity._model.options import parse_options
from posterity._system.disk import Disk
from posterity._writing.service import Service

NCHAIN, DIM = 8, 4


class StallingDisk(Disk):
    """A disk on which each call of the I/O thread takes `delay_s` longer."""

    def __init__(self, folder, delay_s):
        super().__init__(folder)
        self.delay_s = delay_s
        self.nstalls = 0

    def stall(self):
        if threading.current_thread().name.startswith("posterity-io"):
            self.nstalls += 1
            time.sleep(self.delay_s)


def _stalling(name):
    call = getattr(Disk, name)

    def stalling(self, *args, **kwargs):
        self.stall()
        return call(self, *args, **kwargs)

    return stalling


for _name in CALLS:
    setattr(StallingDisk, _name, _stalling(_name))


class Run:
    """A run on a stalling disk, with a small epoch on disk to be read."""

    def __init__(self, folder, delay_s, nbytes):
        self.disk = StallingDisk(folder, 0.0)
        self.backend = DefaultBackend._of(Service(parse_options(0, folder, {"epochs_per_file": 1000}), self.disk))
        self.backend.ingest(_epoch(10))
        self.backend.flush()
        self.disk.delay_s = delay_s
        self._large = _epoch(max(1, nbytes // (8 * NCHAIN * DIM)))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.disk.delay_s = 0
        self.backend.close()

    def write(self):
        """Have a large epoch written; the event is set when it is durable. Many stalls lie before that."""
        receipt = self.backend.ingest_nowait(self._large)
        is_durable = threading.Event()

        def wait():
            receipt.durable.wait()
            is_durable.set()

        threading.Thread(target=wait).start()
        return is_durable


def _epoch(nsamples):
    return {"samples": {"p": np.random.default_rng(1).normal(size=(NCHAIN, DIM, nsamples))}}


class Longest:
    """The longest time between two steps, for each stall of a disk that they fall into."""

    def __init__(self, disk):
        self._disk = disk
        self._nstalls = disk.nstalls
        self._found = [0.0]
        self._now = time.perf_counter()

    def step(self):
        """The next step is done."""
        before, self._now = self._now, time.perf_counter()
        if self._nstalls != self._disk.nstalls:
            self._nstalls = self._disk.nstalls
            self._found.append(0.0)
        self._found[-1] = max(self._found[-1], self._now - before)

    def per_stall(self):
        """All of them; what lies before the first stall isn't in one."""
        return self._found[1:]


def sampling_gaps(run):
    """Of a thread that does nothing but Python while a large epoch is written."""
    is_durable = run.write()
    longest = Longest(run.disk)
    while not is_durable.is_set():
        longest.step()
    return longest.per_stall()


def loop_gaps(run):
    """Of the turns of an event loop in which a task waits for the run."""

    async def turn():
        is_durable = run.write()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run.backend.asynchronous.flush)
            longest = Longest(run.disk)
            while not is_durable.is_set():
                await anyio.lowlevel.checkpoint()
                longest.step()
        return longest.per_stall()

    return anyio.run(turn)


def reads(run):
    """How long it takes to read a small epoch from disk while a large one is written."""
    is_durable = run.write()
    longest = Longest(run.disk)
    while not is_durable.is_set():
        run.backend.get(0)
        longest.step()
    return longest.per_stall()


MEASURES = {
    "gap of a thread that samples": sampling_gaps,
    "gap of an event loop": loop_gaps,
    "small read": reads,
}
