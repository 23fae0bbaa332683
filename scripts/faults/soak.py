"""The soak: writers and readers in processes of their own, for long, on a small disk that gets full now and then.

One writer lives all the while, and reads too; another one is killed again and again. Before each epoch they note what
they are about to hand over, and after each flush what is durable. What was durable must be there, bit for bit, and
memory and descriptors of those who live long must not grow.

Run as a script it is such a writer: `soak.py OUTDIR TOLD SEED`, until its standard input ends.
"""

import json
import logging
import random
import resource
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TextIO

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import anyio

import elsewhere
import test_full_disk
import test_readers_elsewhere
from posterity import DefaultBackend, MailboxFull, WriteFailed, open_run
from test_readers_elsewhere import Process

Case = tuple[str, Callable[[], object]]
MEGABYTES = 6
LONG_RUN = 250  # epochs, then it is reset: what grows with a run is no leak
PAGE = resource.getpagesize()
GROWTH = 1.1
ROOM = 8 << 20


# ---- a writer --------------------------------------------------------------------------------------------------------


class Sampler:
    """Hands over, burns, flushes and resets at random, whatever becomes of the disk."""

    def __init__(self, backend: DefaultBackend[Any], told: TextIO, rng: random.Random) -> None:
        self.backend = backend
        self.told = told
        self.rng = rng

    def tell(self, what: str, *numbers: int) -> None:
        """Note something before it is done, or what is durable after that was said."""
        self.told.write(json.dumps([what, *numbers]) + "\n")
        self.told.flush()

    def step(self) -> None:
        """One step of a sampler's life."""
        with self.backend.snapshot() as snapshot:
            registry = snapshot.registry
        if registry.next_index >= LONG_RUN:
            self.tell("reset", registry.generation + 1)
            self.trying(self.backend.reset)
            return
        step = self.rng.random()
        if step < 0.85:
            self.tell("epoch", registry.generation, registry.next_index)
            try:
                epoch = elsewhere.epoch("equal", registry.generation, registry.next_index)
                self.backend.ingest(epoch, timeout_s=0.1)
            except MailboxFull:
                pass
        elif step < 0.95:
            if self.trying(partial(self.backend.flush, publish=step < 0.87)):
                self.tell("durable", registry.generation, registry.next_index, registry.burn)
        else:
            burn = registry.burn + self.rng.randrange(1 + registry.nsamples_left // 2)
            self.backend.set_burn(max(registry.burn, min(burn, elsewhere.MOST_OWED)))

    def trying(self, call: Callable[[], object]) -> bool:
        """Whether the disk did what was asked."""
        try:
            call()
        except WriteFailed:
            self.tell("failed")
            return False
        return True


def read_blocking(backend: DefaultBackend[Any], rng: random.Random, is_over: threading.Event) -> None:
    """Ask snapshots of the writer's own process, and check each answer."""
    while not is_over.wait(0.01):
        with backend.snapshot() as snapshot:
            registry = snapshot.registry
            name, asked = elsewhere.question(rng, registry)
            if elsewhere.is_refused(name, asked, registry) is None:
                elsewhere.check_answer("equal", name, asked, registry, getattr(snapshot, name)(**asked))


async def read_awaited(backend: DefaultBackend[Any], rng: random.Random, is_over: threading.Event) -> None:
    """The same from a task."""
    while not is_over.is_set():
        await anyio.sleep(0.01)
        async with await backend.asynchronous.snapshot() as snapshot:
            registry = snapshot.registry
            name, asked = elsewhere.question(rng, registry)
            if elsewhere.is_refused(name, asked, registry) is None:
                elsewhere.check_answer("equal", name, asked, registry, await getattr(snapshot, name)(**asked))


def write(outdir: Path, told: Path, seed: str) -> None:
    """Sample and read until the standard input ends."""
    logging.disable(logging.CRITICAL)
    rng = random.Random(seed)
    is_over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), is_over.set()), daemon=True).start()
    options = {
        "epochs_per_file": rng.randint(1, 4),
        "inmem_epochs": rng.choice([0, 2]),
        "max_pending_epochs": 20,
        "retry_after_s": 0.01,
        "retry_at_most_s": 0.1,
    }
    with (
        told.open("a") as telling,
        DefaultBackend(outdir=outdir, **options) as backend,
        ThreadPoolExecutor() as threads,
    ):
        readers: list[Future[None]] = [
            threads.submit(read_blocking, backend, random.Random(f"{seed} 1"), is_over),
            threads.submit(anyio.run, read_awaited, backend, random.Random(f"{seed} 2"), is_over),
        ]
        sampler = Sampler(backend, telling, rng)
        try:
            while not (is_over.is_set() or any(reader.done() for reader in readers)):
                sampler.step()
        finally:
            is_over.set()
        for reader in readers:
            reader.result()
    elsewhere.say("closed")


# ---- what it told ----------------------------------------------------------------------------------------------------


class Told(NamedTuple):
    """What a writer told: the epochs that it was about to hand over, and what was durable last."""

    epochs: set[tuple[int, int]]
    resets: set[int]
    durable: tuple[int, int, int]
    ndurable: int
    nfailed: int

    def __str__(self) -> str:
        return (
            f"{len(self.epochs)} epochs, {len(self.resets)} resets, {self.ndurable} flushes that worked and "
            f"{self.nfailed} that failed"
        )

    @classmethod
    def read(cls, path: Path) -> "Told":
        """All that was told so far."""
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("]")]
        durable = [tuple(numbers) for what, *numbers in lines if what == "durable"]
        return cls(
            {(generation, index) for what, generation, index, *_ in (line for line in lines if line[0] == "epoch")},
            {numbers[0] for what, *numbers in lines if what == "reset"},
            durable[-1] if durable else (0, 0, 0),
            len(durable),
            sum(line[0] == "failed" for line in lines),
        )


def check(outdir: Path, told: Path) -> None:
    """A run that nobody writes is as it was told: all that was durable, nothing that wasn't handed over."""
    said = Told.read(told)
    if not (outdir / "posterity.journal").exists():
        assert said.durable == (0, 0, 0)
        return
    with open_run(outdir) as run, run.snapshot() as snapshot:
        registry = snapshot.registry
        generation, nepochs, burn = said.durable
        if registry.generation == generation:
            assert registry.next_index >= nepochs
            assert registry.burn >= burn
        else:
            assert generation < registry.generation in said.resets
        assert not registry.next_index or (registry.generation, registry.next_index - 1) in said.epochs
        test_readers_elsewhere.ask_all(snapshot)


# ---- the soak --------------------------------------------------------------------------------------------------------


class Gauge:
    """Memory and descriptors of a process, again and again."""

    def __init__(self, name: str, pid: int) -> None:
        self.name = name
        self._folder = Path(f"/proc/{pid}")
        self._readings: list[tuple[int, int]] = []

    def read(self) -> None:
        """Take down what it has now."""
        pages = int((self._folder / "statm").read_text().split()[1])
        self._readings.append((pages * PAGE, len(list((self._folder / "fd").iterdir()))))

    def check_flat(self) -> None:
        """The last quarter has no more than the first, the time of starting left out."""
        readings = self._readings[len(self._readings) // 10 :]
        quarter = max(1, len(readings) // 4)
        memory, descriptors = ([reading[i] for reading in readings] for i in (0, 1))
        first, last = (statistics.median(memory[part]) for part in (slice(quarter), slice(-quarter, None)))
        had, has = (statistics.median(descriptors[part]) for part in (slice(quarter), slice(-quarter, None)))
        print(f"{self.name}: {first / 1e6:.1f} -> {last / 1e6:.1f} MB, {had:.0f} -> {has:.0f} descriptors", flush=True)
        assert last <= GROWTH * first + ROOM
        assert has <= had + 3


class Soak:
    """The processes, and what is done to them."""

    def __init__(self, folder: Path, start: Callable[..., Process], stack: ExitStack) -> None:
        self._start = start
        self._told = {name: folder / f"{name}.told" for name in ("steady", "victim")}
        for told in self._told.values():
            told.touch()
        try:
            self._disk = stack.enter_context(test_full_disk.mounted(folder / "disk", MEGABYTES))
            self.fill = self._fill_disk
        except test_full_disk.NotMountedError as error:
            print(f"no full disk, but a limit for the size of files: {error}")
            self._disk = folder / "disk"
            self._disk.mkdir()
            self.fill = self._limit_files
        self.gauges: list[Gauge] = []
        self._steady = self._write("steady")
        self._victim = self._write("victim")
        self.wait_durable("steady")
        self._readers = [
            start("read", self._disk / "steady", "equal", random.random(), face) for face in ("blocking", "asyncio")
        ]
        self.gauges = [
            Gauge("writer", self._steady.pid),
            Gauge("blocking reader", self._readers[0].pid),
            Gauge("awaiting reader", self._readers[1].pid),
        ]

    def _write(self, name: str) -> Process:
        return self._start(self._disk / name, self._told[name], random.random(), script=Path(__file__))

    def wait_durable(self, name: str) -> None:
        """Wait until a writer told once more that something is durable, which it does by itself."""
        before, deadline = Told.read(self._told[name]).ndurable, time.monotonic() + 60
        while Told.read(self._told[name]).ndurable <= before:
            assert time.monotonic() < deadline, f"the {name} writer makes no progress"
            self.rest(0.05)

    def rest(self, seconds: float) -> None:
        """Let them work, and take their readings."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))
            for gauge in self.gauges:
                gauge.read()

    def kill(self) -> None:
        """Kill the victim at any moment, look at what it left, and have it go on."""
        self.rest(random.uniform(0, 1.5))
        self._victim.kill()
        check(self._disk / "victim", self._told["victim"])
        self._victim = self._write("victim")
        self.wait_durable("victim")

    def _fill_disk(self) -> None:
        """No room for a while."""
        ballast = self._disk / "ballast"
        try:
            with ballast.open("wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass
        except OSError:
            self.rest(random.uniform(0.1, 1))
        ballast.unlink()
        self.wait_durable("steady")
        self.wait_durable("victim")

    def _limit_files(self) -> None:
        """No file may grow for a while, which is another error than a full disk."""
        for limit in (4096, resource.RLIM_INFINITY):
            for writer in (self._steady, self._victim):
                resource.prlimit(writer.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            self.rest(random.uniform(0.1, 1))
        self.wait_durable("steady")
        self.wait_durable("victim")

    def end(self, name: str) -> None:
        """Have a writer close its run, and look at all of it."""
        writer = self._steady if name == "steady" else self._victim
        assert writer.end() == "closed"
        check(self._disk / name, self._told[name])
        print(f"{name}: {Told.read(self._told[name])}", flush=True)

    def end_readers(self) -> None:
        """Have the readers end; they checked each answer."""
        for reader in self._readers:
            print(f"a reader asked: {reader.end()}", flush=True)


def soak(folder: Path, seconds: float) -> Iterator[Case]:
    """Kills and full disks at random, then a look at everything."""
    with ExitStack() as stack:
        scene = Soak(folder, stack.enter_context(test_readers_elsewhere.processes()), stack)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            yield random.choice([("the victim is killed", scene.kill), ("the disk is full", scene.fill)])
        for gauge in scene.gauges:
            yield f"the {gauge.name} stays as it is", gauge.check_flat
        yield "the readers end", scene.end_readers
        yield "the steady writer ends", partial(scene.end, "steady")
        yield "the victim ends", partial(scene.end, "victim")


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
