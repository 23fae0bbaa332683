"""Cancelled means happened or not: at each point at which a call can be interrupted, and whoever interrupts it."""

import asyncio
import gc
import itertools
import signal
import types
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import partial

import anyio
import numpy as np
import pytest

from hanging import made_to_hang, seen
from known import epoch_dict, numbers
from posterity import AsyncBackend, Closed, DefaultBackend, Epoch, RunLocked, State, open_run
from posterity._system.disk import Disk
from posterity._system.reader_threads import in_thread
from posterity._writing import waiting
from test_endings import Script, read_again

# ---- being interrupted -----------------------------------------------------------------------------------------------


@types.coroutine
def interrupted(coroutine, at, interrupt):
    """Run a coroutine; when it is suspended for the `at`-th time, call `interrupt` with what it waits for."""
    suspensions = itertools.count()
    step, value = coroutine.send, None
    while True:
        try:
            waits_for = step(value)
        except StopIteration as end:
            return end.value
        if next(suspensions) == at:
            interrupt(waits_for)
        try:
            step, value = coroutine.send, (yield waits_for)
        except BaseException as error:  # noqa: BLE001  # it is the coroutine's
            step, value = coroutine.throw, error


async def by_scope(call, at):
    """By an anyio scope. Returns whether it was interrupted."""
    reached = []
    with anyio.CancelScope() as scope:
        await interrupted(call(), at, lambda _: reached.append(True) or scope.cancel())
    return bool(reached)


async def natively(call, at, *, as_woken=False):
    """By `Task.cancel()` while it waits, or just when it is about to go on."""
    reached = []

    def interrupt(waits_for):
        reached.append(True)
        if as_woken and asyncio.isfuture(waits_for):
            waits_for.add_done_callback(lambda _: task.cancel())
        else:
            task.cancel()

    async def run():
        await interrupted(call(), at, interrupt)

    task = asyncio.create_task(run())
    await asyncio.wait([task])
    if reached:
        assert task.cancelled(), f"the cancellation was swallowed: {task}"
    else:
        await task
    return bool(reached)


async def natively_as_woken(call, at):
    """By `Task.cancel()` when what it waits for has come, and it doesn't know yet."""
    return await natively(call, at, as_woken=True)


WAYS = {
    "asyncio, by scope": ("asyncio", by_scope),
    "asyncio, natively": ("asyncio", natively),
    "asyncio, natively, as it is woken": ("asyncio", natively_as_woken),
    "trio, by scope": ("trio", by_scope),
}


@pytest.fixture(params=WAYS)
def way(request):
    return WAYS[request.param]


@pytest.fixture
def anyio_backend(way):
    return way[0]


@pytest.fixture
def interrupt(way):
    return way[1]


@pytest.fixture
def outdir(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def disk_hangs(monkeypatch):
    """The disk takes nothing until it is let go."""
    with made_to_hang(monkeypatch, Disk, "reserve") as call:
        call.let_go()
        yield call


# ---- what is interrupted ---------------------------------------------------------------------------------------------

NSAMPLES = 2
READER_THREADS = 2


class Bench:
    """A run at work, and what must be in it: the positions of its samples, and the burn."""

    def __init__(self, backend, run, disk_hangs, folder):
        self.backend = backend
        self.run = run
        self.disk_hangs = disk_hangs
        self.folder = folder
        self.ledger = backend._service.ledger
        self.made = 0
        self.burn = 0
        self.positions = []

    def next_epoch(self):
        self.made += NSAMPLES
        return epoch_dict(self.made - NSAMPLES, NSAMPLES)

    def add(self):
        """Hand an epoch over, in the other face."""
        self.backend.blocking.ingest(self.next_epoch())
        self.positions.append(self.made - NSAMPLES)

    def shown(self):
        samples = self.backend.blocking.get_samples()
        firsts = [] if samples is None else (samples["p"][0, 0, ::NSAMPLES] / 1000).astype(int).tolist()
        return firsts, self.backend.burn

    def expected(self):
        return self.positions[self.burn // NSAMPLES :], self.burn

    def check_nothing_is_left(self):
        """No listener, no place in the queue, no room taken."""
        chime = waiting._chimes.get({}).get(self.ledger)
        assert chime is None
        writer = self.backend._service._writer
        assert set(self.ledger._bells._listeners) == {writer, writer._fetcher}
        assert not self.ledger._room._waiting
        assert not list(self.ledger._room._granted)

    def holds_nothing(self):
        """Whether no snapshot is read any more, and each reader has its place back."""
        self.ledger.holds(self.ledger._pins.settle)
        free = [*self.backend._readers._free.values(), *self.backend._copiers._free.values()]
        return not self.ledger._pins and all(places.value == READER_THREADS for places in free)


@pytest.fixture
async def bench(outdir, disk_hangs):
    """Three epochs on disk, and room for one more that isn't."""
    options = {"max_pending_epochs": 1, "epochs_per_file": 1000, "reader_threads": READER_THREADS}
    async with AsyncBackend(outdir=outdir, **options) as backend:
        await backend.ingest(epoch_dict(0, NSAMPLES))
        await backend.flush()
        async with open_run(outdir).asynchronous as run:
            bench = Bench(backend, run, disk_hangs, outdir)
            bench.made = NSAMPLES
            bench.positions = [0]
            yield bench
            disk_hangs.let_go()


class Scene:
    """A call to be interrupted. `hangs`: the disk takes nothing, until the call waits for it."""

    hangs = False

    async def begin(self, bench):
        """What comes before, uninterrupted."""

    async def call(self, bench):
        """What is interrupted."""

    def relieve(self, bench):
        """Something that ends the waiting."""
        bench.disk_hangs.let_go()

    def happened(self, bench):
        """Take note that it happened."""


class Ingest(Scene):
    async def begin(self, bench):
        self.epoch = bench.next_epoch()

    async def call(self, bench):
        await bench.backend.ingest(self.epoch)

    def happened(self, bench):
        bench.positions.append(bench.made - NSAMPLES)


class IngestDict(Ingest):
    async def call(self, bench):
        await bench.backend.ingest_dict(self.epoch, copy=False)


class IngestObject(Ingest):
    """It is asked for its samples, and copied, in threads."""

    async def begin(self, bench):
        self.epoch = Epoch(bench.next_epoch()["samples"])


class IngestFile(Ingest):
    async def begin(self, bench):
        self.epoch = bench.folder.parent / f"{bench.made}" / "epochs_1.h5"
        with DefaultBackend(outdir=self.epoch.parent) as other:
            other.ingest(bench.next_epoch())


class IngestWaiting(Ingest):
    """There is no room until the disk goes on."""

    hangs = True

    async def begin(self, bench):
        bench.add()
        await super().begin(bench)


class IngestWaitingInTime(IngestWaiting):
    async def call(self, bench):
        await bench.backend.ingest(self.epoch, timeout_s=60)


class IngestObjectWaiting(IngestWaiting):
    async def begin(self, bench):
        await super().begin(bench)
        self.epoch = Epoch(self.epoch["samples"])


class SetBurn(Scene):
    async def call(self, bench):
        await bench.backend.set_burn(bench.burn + NSAMPLES)

    def happened(self, bench):
        bench.burn += NSAMPLES


class Clean(Scene):
    async def call(self, bench):
        await bench.backend.clean()

    def happened(self, bench):
        bench.burn = NSAMPLES * len(bench.positions)


class Reset(Scene):
    hangs = True

    async def begin(self, bench):
        bench.add()

    async def call(self, bench):
        await bench.backend.reset()

    def happened(self, bench):
        bench.positions = []


class Waits(Scene):
    """Something is to be written, and the disk hangs."""

    hangs = True

    async def begin(self, bench):
        bench.add()


class Update(Waits):
    async def call(self, bench):
        await bench.backend.update()


class Flush(Waits):
    async def call(self, bench):
        await bench.backend.flush(publish=True)


class Durable(Waits):
    async def begin(self, bench):
        self.receipt = bench.backend.ingest_nowait(bench.next_epoch(), copy=False)
        bench.positions.append(bench.made - NSAMPLES)

    async def call(self, bench):
        await self.receipt.durable


class Released(Durable):
    async def call(self, bench):
        await self.receipt.released


class Read(Scene):
    def __init__(self, name, *args):
        self.name = name
        self.args = args

    async def call(self, bench):
        await getattr(bench.backend, self.name)(*self.args)


class ReadFile(Scene):
    async def begin(self, bench):
        await bench.backend.flush(publish=True)

    async def call(self, bench):
        await bench.backend.load_epoch(bench.folder / "epochs_1.h5")


class TakeSnapshot(Scene):
    async def call(self, bench):
        (await bench.backend.snapshot()).release()


class ReadSnapshot(Scene):
    async def call(self, bench):
        async with bench.backend.snapshot() as snapshot:
            await snapshot.get()
            await snapshot.get_samples()


class Updates(Scene):
    """A listener that has seen all there is."""

    async def begin(self, bench):
        bench.add()
        self.updates = bench.backend.updates()
        await anext(self.updates)

    async def call(self, bench):
        try:
            snapshot = await anext(self.updates)
            await snapshot.get_samples()
        finally:
            await self.updates.aclose()

    def relieve(self, bench):
        bench.add()


class ReadRun(Scene):
    """From outside."""

    async def call(self, bench):
        await bench.run.get(0)
        async with bench.run.snapshot() as snapshot:
            await snapshot.get_samples()
        updates = bench.run.updates()
        try:
            await anext(updates)
        finally:
            await updates.aclose()


SCENES = {
    "ingest": Ingest,
    "ingest_dict": IngestDict,
    "ingest, of an object": IngestObject,
    "ingest, of a file": IngestFile,
    "ingest, waiting": IngestWaiting,
    "ingest, waiting so long": IngestWaitingInTime,
    "ingest, of an object, waiting": IngestObjectWaiting,
    "set_burn": SetBurn,
    "clean": Clean,
    "reset": Reset,
    "update": Update,
    "flush": Flush,
    "durable": Durable,
    "released": Released,
    "get": lambda: Read("get"),
    "get_samples": lambda: Read("get_samples"),
    "get_stats": lambda: Read("get_stats"),
    "load": lambda: Read("load"),
    "load_epoch": ReadFile,
    "snapshot": TakeSnapshot,
    "async with snapshot": ReadSnapshot,
    "updates": Updates,
    "open_run": ReadRun,
}


async def relieve_who_waits(scene, bench):
    """Once somebody waits for the ledger, let things go on."""
    await seen(lambda: (chime := waiting._chimes.get({}).get(bench.ledger)) is not None and chime._event is not None)
    scene.relieve(bench)


@pytest.mark.parametrize("make", SCENES.values(), ids=SCENES)
async def test_interrupted_at_each_suspension(bench, interrupt, make):
    """Wherever a call is interrupted it happened or it didn't, it leaves nothing behind, and the run goes on."""
    for at in range(100):
        scene = make()
        bench.disk_hangs.let_go()
        await bench.backend.flush()
        if scene.hangs:
            bench.disk_hangs.hang()
        await scene.begin(bench)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(relieve_who_waits, scene, bench)
            was_reached = await interrupt(lambda scene=scene: scene.call(bench), at)
            tasks.cancel_scope.cancel()
        if not was_reached or bench.shown() != bench.expected():
            scene.happened(bench)
        assert bench.shown() == bench.expected()
        bench.check_nothing_is_left()
        await seen(bench.holds_nothing)
        if not was_reached:
            break
    assert at > 0
    bench.disk_hangs.let_go()
    await bench.backend.ingest(bench.next_epoch())
    bench.positions.append(bench.made - NSAMPLES)
    await bench.backend.aclose()
    with DefaultBackend(outdir=bench.folder) as again:
        expected, burn = bench.expected()
        samples = again.get_samples(verify=True)["p"][0, 0, ::NSAMPLES]
        assert ((samples / 1000).astype(int).tolist(), again.burn) == (expected, burn)


# ---- opening and closing ---------------------------------------------------------------------------------------------


async def opened_again(outdir):
    """A new backend of the folder, as soon as it is free."""
    with anyio.fail_after(30):
        while True:
            try:
                return await in_thread(lambda: DefaultBackend(outdir=outdir))
            except RunLocked:
                continue


async def assert_free_and_whole(outdir, counts):
    """The folder can be opened, and holds so many epochs."""
    again = await opened_again(outdir)
    samples = again.get_samples(verify=True)["p"]
    assert samples.shape[2] in [NSAMPLES * count for count in counts]
    np.testing.assert_array_equal(samples, numbers(0, samples.shape[2]))
    await in_thread(again.close)


@pytest.fixture
def run_of_one(outdir):
    with DefaultBackend(outdir=outdir) as backend:
        backend.ingest(epoch_dict(0, NSAMPLES))
    return outdir


async def test_opening_is_interrupted(run_of_one, interrupt):
    """An opening that is interrupted closes what it opened: the folder is free again, and nothing in it changed."""
    for at in range(100):
        backend = AsyncBackend(outdir=run_of_one)
        was_reached = await interrupt(backend.__aenter__, at)
        if backend._opened is not None:
            assert backend.status.state is State.RUNNING
            await backend.aclose()
        await assert_free_and_whole(run_of_one, [1])
        if not was_reached:
            break
    assert at > 1


async def test_closing_is_interrupted(tmp_path, interrupt, disk_hangs):
    """A closing that is interrupted goes on: all is written, and the folder is free."""
    for at in range(100):
        outdir = tmp_path / str(at)
        disk_hangs.hang()
        backend = await AsyncBackend(outdir=outdir, retry_after_s=0.01).__aenter__()
        backend.ingest_nowait(epoch_dict(0, NSAMPLES))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(relieve_who_waits, Scene(), Bench(backend, None, disk_hangs, outdir))
            was_reached = await interrupt(backend.aclose, at)
            tasks.cancel_scope.cancel()
        disk_hangs.let_go()
        await assert_free_and_whole(outdir, [1])
        if not was_reached:
            break
    assert at > 1


async def test_a_whole_block_is_interrupted(tmp_path, interrupt):
    """Wherever a block is interrupted it closes the run, with all that was ingested in it.

    A scope waits for that; asyncio may interrupt the closing too, which then goes on.
    """
    counts = set()
    for at in range(200):
        outdir = tmp_path / str(at)
        done, entered = [], []

        async def work(outdir=outdir, done=done, entered=entered):
            async with AsyncBackend(outdir=outdir, inmem_epochs=5) as backend:
                entered.append(backend)
                for i in range(2):
                    await backend.ingest(epoch_dict(i * NSAMPLES, NSAMPLES))
                    done.append(i)
                await backend.flush()

        was_reached = await interrupt(work, at)
        counts.add(len(done))
        if interrupt is by_scope:
            assert [backend.status.state for backend in entered] in ([], [State.CLOSED])
        again = await opened_again(outdir)
        samples = again.get_samples(verify=True)
        assert again.status.epochs == len(done)
        if done:
            np.testing.assert_array_equal(samples["p"], numbers(0, NSAMPLES * len(done)))
        await in_thread(again.close)
        if not was_reached:
            break
    assert counts == {0, 1, 2}


async def test_a_read_run_is_interrupted(run_of_one, interrupt):
    """Wherever the block of a run that is only read is interrupted, its descriptors are given back."""
    for at in range(100):
        run = await in_thread(lambda: open_run(run_of_one))

        async def work(run=run):
            async with run.asynchronous as reading:
                await reading.get()

        was_reached = await interrupt(work, at)
        if at == 0 and was_reached:
            run.close()
        if not was_reached:
            break
    assert at > 1


# ---- who else interrupts ---------------------------------------------------------------------------------------------

ASYNCIO = pytest.mark.parametrize("anyio_backend", ["asyncio"])
LOOPS = ["asyncio", "trio"]


@ASYNCIO
async def test_a_timeout_of_asyncio(bench, anyio_backend):
    """`asyncio.timeout` ends each kind of waiting, and leaves nothing behind."""
    bench.disk_hangs.hang()
    bench.add()
    for call in (lambda: bench.backend.ingest(epoch_dict(90, 1)), bench.backend.flush, bench.backend.update):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await call()
        bench.check_nothing_is_left()
    assert bench.shown() == bench.expected()
    bench.disk_hangs.let_go()
    await bench.backend.flush()


@pytest.mark.parametrize("other", LOOPS)
@pytest.mark.parametrize("anyio_backend", LOOPS)
async def test_a_run_is_used_from_two_loops(bench, anyio_backend, other):
    """Two event loops in two threads use one backend at once; each waits and reads in its own."""
    bench.disk_hangs.hang()
    bench.add()
    shown = []

    async def work(first):
        await bench.backend.ingest(epoch_dict(first, NSAMPLES))  # there is no room for it yet
        await bench.backend.flush()
        async for snapshot in bench.backend.updates():
            shown.append((await snapshot.get_samples())["p"][0, 0, ::NSAMPLES])
            break

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work, 500)
        tasks.start_soon(in_thread, partial(anyio.run, work, 600, backend=other))
        await seen(lambda: len(bench.ledger._bells._listeners) == 4)
        bench.disk_hangs.let_go()
    assert len(shown) == 2
    assert bench.shown()[0][2:] in ([500, 600], [600, 500])
    bench.check_nothing_is_left()


async def awaiting(awaitable):
    await awaitable


async def never():
    await asyncio.get_running_loop().create_future()


async def looking(backend):
    async with backend.snapshot(), await backend.snapshot():
        await never()


async def listening(backend):
    async for _ in backend.updates():
        await never()


async def staying(outdir):
    async with AsyncBackend(outdir=outdir) as backend:
        await backend.ingest(epoch_dict(0, NSAMPLES))
        await never()


def test_a_loop_is_closed_under_us(outdir, tmp_path, disk_hangs):
    """A loop that is closed while tasks wait for the run takes nothing with it, and what finalisers do is harmless."""
    backend = DefaultBackend(outdir=outdir, max_pending_epochs=1)
    ledger = backend._service.ledger
    backend.ingest(epoch_dict(0, NSAMPLES))
    backend.flush()
    disk_hangs.hang()
    receipt = backend.ingest_nowait(epoch_dict(NSAMPLES, NSAMPLES))

    async def begin():
        awaited = backend.asynchronous
        waits = [awaited.flush(), awaited.update(), awaiting(receipt.durable)]
        others = [looking(awaited), listening(awaited), staying(tmp_path / "other")]
        tasks.extend(asyncio.get_running_loop().create_task(coroutine) for coroutine in waits + others)
        await seen(lambda: (chime := waiting._chimes.get({}).get(ledger)) and chime._ntasks == len(waits))
        await seen(lambda: sum(ledger._pins._counts.values()) == 3 and (tmp_path / "other").exists())

    tasks = []
    loop = asyncio.new_event_loop()
    loop.run_until_complete(begin())
    loop.close()
    tasks.clear()
    del loop, begin
    # The worst moment for finalisers to run in: this thread has the lock.
    assert ledger.holds(lambda: gc.collect() >= 0)
    assert not ledger.holds(lambda: ledger._pins.settle() or bool(ledger._pins))
    disk_hangs.let_go()
    backend.flush()
    backend.ingest(epoch_dict(2 * NSAMPLES, 1))
    np.testing.assert_array_equal(backend.get_samples()["p"], numbers(0, 2 * NSAMPLES + 1))
    receipt.durable.wait()
    backend.close()
    anyio.run(assert_free_and_whole, tmp_path / "other", [1])


@pytest.mark.parametrize("anyio_backend", LOOPS)
async def test_an_async_generator_is_closed(outdir, anyio_backend):
    """A generator that is closed while it has a run open closes the run first, and releases its snapshots."""

    async def opened():
        async with AsyncBackend(outdir=outdir) as backend:
            yield backend

    async def shown(backend):
        async with backend.snapshot() as snapshot:
            yield snapshot

    async with aclosing(opened()) as generator:
        backend = await anext(generator)
        await backend.ingest(epoch_dict(0, NSAMPLES))
        async with aclosing(shown(backend)) as snapshots:
            snapshot = await anext(snapshots)
        with pytest.raises(Closed, match="released"):
            await snapshot.get()
    assert backend.status.state is State.CLOSED


SAMPLES = """
import itertools
import anyio
from posterity import AsyncBackend

signal.signal(signal.SIGINT, signal.default_int_handler)  # who runs the tests may have it ignored

async def main():
    n = 0
    try:
        async with AsyncBackend(outdir=outdir, epochs_per_file=100, **{options}) as backend:
            for n in itertools.count():
                if n == 20:
                    tell("running")
                await backend.ingest(epoch_dict(2 * n, 2))
    finally:
        print(n, flush=True)

anyio.run(main, backend={loop!r})
"""


@pytest.mark.parametrize("options", [{"inmem_epochs": 1000}, {"max_pending_epochs": 1}], ids=str)
@pytest.mark.parametrize("loop", LOOPS)
def test_ctrl_c(outdir, loop, options):
    """Ctrl-C under `asyncio.run` or trio closes the run on the way out: each epoch is there whose `ingest` returned."""
    with Script(SAMPLES.format(loop=loop, options=options), outdir) as script:
        script.wait_for("running")
        script.process.send_signal(signal.SIGINT)
        code, out, err = script.end()
    assert "KeyboardInterrupt" in err
    assert code == -signal.SIGINT, err
    count = int(out.split()[-1])
    samples = read_again(outdir)
    assert samples.shape[2] in (2 * count, 2 * count + 2)
    np.testing.assert_array_equal(samples, numbers(0, samples.shape[2]))


@pytest.mark.parametrize("loop", LOOPS)
def test_flush_on_sigterm(outdir, loop):
    """With `flush_on_sigterm` everything is written when SIGTERM comes, and then the process dies of it."""
    options = {"flush_on_sigterm": True, "inmem_epochs": 10_000}
    with Script(SAMPLES.format(loop=loop, options=options), outdir) as script:
        script.wait_for("running")
        script.process.terminate()
        code, _, err = script.end()
    assert code == -signal.SIGTERM, err
    samples = read_again(outdir)
    assert samples.shape[2] >= 40
    np.testing.assert_array_equal(samples, numbers(0, samples.shape[2]))


@pytest.mark.parametrize("loop", LOOPS)
def test_flush_on_sigterm_needs_the_main_thread(outdir, loop):
    """In another thread it is refused when the run is entered, and the folder stays free."""

    async def enter():
        with pytest.raises(ValueError, match="main thread"):
            await AsyncBackend(outdir=outdir, flush_on_sigterm=True).__aenter__()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(anyio.run, enter, backend=loop).result()
    DefaultBackend(outdir=outdir).close()
