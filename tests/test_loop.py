"""The caller's event loop goes on whatever the awaited face does: what takes long leaves it, and reads are bounded."""

import asyncio
import threading
from contextlib import ExitStack

import anyio
import numpy as np
import pytest

from hanging import made_to_hang, seen
from known import epoch_dict, numbers, run_of
from loop_watch import LoopWatch
from posterity import AsyncBackend, Epoch, open_run
from posterity._ingest.prepare import Prepared
from posterity._system.disk import Disk
from posterity._system.event_loop import Loop
from posterity._system.reader_threads import in_thread
from posterity._writing.service import Service
from posterity._writing.waiting import until


@pytest.fixture
def outdir(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def stuck(monkeypatch):
    """Makes calls hang until the end of the test, or until they are let go."""
    with ExitStack() as stack:
        yield lambda owner, name: stack.enter_context(made_to_hang(monkeypatch, owner, name))


async def written(outdir, lengths=(4, 3)):
    """A run on disk, to be read."""
    async with AsyncBackend(outdir=outdir) as backend:
        for epoch in run_of(lengths):
            await backend.ingest(epoch)


# ---- the watch that every test in a loop is under --------------------------------------------------------------------


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
@pytest.mark.parametrize("by", ["disk", "wait", "cpu"])
def test_the_watch_finds_what_is_done_in_the_loop(outdir, monkeypatch, loop, by):
    """A call that touches the disk, waits, or computes for long is found if the face makes it in the loop, only then."""
    watch = LoopWatch(most_cpu_s=0.01)
    watch.install(monkeypatch)

    async def main():
        async with AsyncBackend(outdir=outdir) as backend:
            service = backend._service
            calls = {
                "disk": service.disk.is_there,
                "wait": service._writer.join,
                "cpu": lambda: service.prepare({**epoch_dict(0, 1), "list": list(range(300_000))}),
            }
            await backend.aclose()
            calls[by]()
            assert not watch.found, "the test's own call"
            await until(service.ledger, lambda: bool(calls[by]()) or True)

    anyio.run(main, backend=loop)
    assert len(watch.found) == 1
    expected = {"disk": "Disk.is_there was called", "wait": "Thread.join was called", "cpu": "Service.prepare took"}
    assert expected[by] in watch.found[0]
    assert "waiting.py" in watch.found[0]


async def test_the_watch_finds_a_loop_that_stands_still(outdir):
    """A loop that waits in code of ours, for a lock for instance, is found by the stack of its thread."""
    async with AsyncBackend(outdir=outdir) as backend:
        watch = LoopWatch(every_s=0.01, samples=5)
        ledger = backend._service.ledger
        has_lock, gives_back = threading.Event(), threading.Event()

        def hold():
            ledger.holds(lambda: has_lock.set() or gives_back.wait())

        def give_back():
            while not watch.found:
                gives_back.wait(0.01)
            gives_back.set()

        threads = [threading.Thread(target=target) for target in (hold, give_back)]
        with watch.calling():
            threads[0].start()
            await seen(has_lock.is_set)
            threads[1].start()
            await backend.set_burn(1)  # the lock is another thread's until the watch saw that
        for thread in threads:
            thread.join()
        assert "set_burn" in watch.found[0]


# ---- what is handed over ---------------------------------------------------------------------------------------------


class Device:
    """An array of some device: to look at its numbers may mean to wait for them."""

    def __init__(self, array):
        self._array = array
        self.shape, self.dtype, self.nbytes = array.shape, array.dtype, array.nbytes

    def __array__(self, dtype=None, copy=None):
        return self._array


class ForDevice:
    """An epoch object; it may wait for a device when it is asked for its samples."""

    def to_backend(self, burn, stats):
        return 1, 0, epoch_dict(0, 1)


LARGE = np.ones((8, 16, 1 << 13))  # 8 MB
SMALL = np.ones((8, 16, 4))
STAYS, LEAVES = True, False
EPOCHS = {
    "small": (STAYS, {"samples": {"p": SMALL}, "stats": {"steps": 3, "names": ["a", "b"]}, "state": None}, {}),
    "large": (LEAVES, {"samples": {"p": LARGE}}, {}),
    "large together": (LEAVES, {"samples": {"p": SMALL}, "state": [np.ones(1 << 16)] * 9}, {}),
    "large, given away": (STAYS, {"samples": {"p": LARGE}}, {"copy": False}),
    "large, given away, not contiguous": (LEAVES, {"samples": {"p": LARGE[:, :, ::2]}}, {"copy": False}),
    "many arrays": (LEAVES, {"samples": {"p": SMALL}, "state": {f"n{i}": np.ones(1) for i in range(1000)}}, {}),
    "a long list": (LEAVES, {"samples": {"p": SMALL}, "state": {"list": list(range(10_000))}}, {}),
    "much text": (LEAVES, {"samples": {"p": SMALL}, "state": np.array(["walker"] * 10_000)}, {}),
    "an array of a device": (LEAVES, {"samples": {"p": SMALL}, "state": Device(np.ones(3))}, {}),
    "an object": (LEAVES, ForDevice(), {}),
}


@pytest.mark.parametrize(("stays", "epoch", "how"), EPOCHS.values(), ids=EPOCHS)
async def test_what_takes_long_leaves_the_loop(outdir, monkeypatch, stays, epoch, how):
    """An epoch is checked and copied in the loop only where that takes no longer than leaving it would."""
    threads = []
    for kind, name in ((Service, "prepare"), (Prepared, "own")):
        call = getattr(kind, name)
        monkeypatch.setattr(
            kind,
            name,
            lambda *args, call=call, **kw: threads.append(threading.current_thread()) or call(*args, **kw),
        )
    async with AsyncBackend(outdir=outdir) as backend:
        await (backend.ingest_dict(epoch, **how) if how else backend.ingest(epoch))
        assert (backend.status.epochs, len(threads)) == (1, 2)
    assert [thread is threading.current_thread() for thread in threads] == [stays] * 2


async def test_an_epoch_of_a_file_is_read_in_a_thread(outdir, tmp_path):
    """The file is read where nobody's loop waits for it; the watch would say so if not."""
    await written(outdir)
    async with AsyncBackend(outdir=tmp_path / "other") as backend:
        await backend.ingest(outdir / "epochs_2.h5")
        np.testing.assert_array_equal((await backend.get())["samples"]["p"], numbers(4, 3))


# ---- reads -----------------------------------------------------------------------------------------------------------


async def test_reads_take_nothing_from_ingesting(outdir, stuck):
    """Reads that hang take no thread away from large epochs, from epoch objects, nor from closing."""
    await written(outdir)
    async with AsyncBackend(outdir=outdir, reader_threads=1) as backend, anyio.create_task_group() as tasks:
        reads = stuck(Disk, "read_at")
        tasks.start_soon(backend.get)
        await seen(lambda: reads.inside)
        with anyio.fail_after(30):
            await backend.ingest(Epoch(epoch_dict(7, 2)["samples"]))
            await backend.flush()
            await backend.aclose()
        assert reads.inside == 1
        reads.let_go()


async def test_reads_are_bounded(outdir, stuck):
    """At most `reader_threads` reads are under way at once; the others wait for their turn, and get what they ask for."""
    await written(outdir)
    got = []

    async def read():
        got.append((await backend.get(0))["samples"]["p"])

    async with AsyncBackend(outdir=outdir, reader_threads=2) as backend:
        reads = stuck(Disk, "read_at")
        async with anyio.create_task_group() as tasks:
            for _ in range(7):
                tasks.start_soon(read)
            await seen(lambda: reads.inside == 2)
            await anyio.wait_all_tasks_blocked()
            reads.let_go()
    assert reads.most == 2
    np.testing.assert_array_equal(got, [numbers(0, 4)] * 7)


async def test_a_cancelled_read_returns_although_the_disk_hangs(outdir, stuck):
    """Who cancels a read doesn't wait for the disk; the thread keeps its place until it is done."""
    await written(outdir)
    async with AsyncBackend(outdir=outdir, reader_threads=2) as backend:
        reads = stuck(Disk, "read_at")
        for _ in range(3):
            with anyio.fail_after(30):
                async with anyio.create_task_group() as tasks:
                    for _ in range(3):
                        tasks.start_soon(backend.get)
                    await seen(lambda: reads.inside == 2)
                    await anyio.wait_all_tasks_blocked()
                    tasks.cancel_scope.cancel()
        assert (reads.inside, reads.most) == (2, 2)
        reads.let_go()
        np.testing.assert_array_equal((await backend.get())["samples"]["p"], numbers(4, 3))
    assert reads.most == 2


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_reads_that_asyncio_cancels_are_bounded_too(outdir, stuck, anyio_backend):
    """`Task.cancel()` leaves threads at work; they count until they are done."""
    await written(outdir)
    async with AsyncBackend(outdir=outdir, reader_threads=2) as backend:
        reads = stuck(Disk, "read_at")
        for _ in range(3):
            tasks = [asyncio.create_task(backend.get()) for _ in range(3)]
            await seen(lambda: reads.inside == 2)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            assert all(task.cancelled() for task in tasks)
        reads.let_go()
        np.testing.assert_array_equal((await backend.get())["samples"]["p"], numbers(4, 3))
    assert reads.most == 2


async def test_a_run_that_is_only_read_leaves_the_loop(outdir, stuck):
    """The journal is read in a thread: the loop goes on while that hangs."""
    await written(outdir)
    async with await in_thread(lambda: open_run(outdir).asynchronous) as run:
        reads = stuck(Disk, "read_at")
        shown = []

        async def look():
            async with run.snapshot() as snapshot:
                shown.append(snapshot.nsamples)
            shown.append((await run.snapshot()).nsamples)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(look)
            await seen(lambda: reads.inside)
            assert shown == []
            reads.let_go()
        assert shown == [7, 7]
        async for snapshot in run.updates():
            np.testing.assert_array_equal((await snapshot.get_samples())["p"], numbers(0, 7))
            break


# ---- the rest --------------------------------------------------------------------------------------------------------


async def test_opening_and_closing_leave_the_loop(outdir, stuck):
    """While opening and closing hang, the loop goes on."""
    await written(outdir)
    for name in ("open_or_create", "truncate"):  # the lock is taken, and given back
        call = stuck(Disk, name)
        backend = AsyncBackend(outdir=outdir)

        async def work(backend=backend):
            async with backend:
                pass

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(work)
            await seen(lambda call=call: call.inside)
            call.let_go()


async def test_waiting_tasks_cost_a_change_one_call(outdir, monkeypatch):
    """However many tasks wait, a change calls their loop once: listeners don't slow the sampler."""
    calls = []
    call = Loop.call
    monkeypatch.setattr(Loop, "call", lambda loop, function: calls.append(function) or call(loop, function))
    async with AsyncBackend(outdir=outdir) as backend, anyio.create_task_group() as tasks:
        woken = []

        async def wait(listener):
            updates = backend.updates()
            while True:
                woken.append((listener, (await anext(updates)).nepochs))

        for listener in range(50):
            tasks.start_soon(wait, listener)
        await anyio.wait_all_tasks_blocked()
        sampler = backend.blocking
        calls.clear()
        for epoch in run_of([2] * 20):
            sampler.ingest(epoch)  # in this very thread: the loop hears of it later
        assert len(calls) == 1
        await seen(lambda: len(woken) == 50)
        assert sorted(woken) == [(listener, 20) for listener in range(50)]
        tasks.cancel_scope.cancel()
