"""Many tasks, threads, backends and listeners at once: nothing is lost, nobody starves, and nobody slows the writer."""

import itertools
import threading
from contextlib import suppress

import anyio
import numpy as np
import pytest
from anyio.lowlevel import checkpoint

from hanging import made_to_hang, seen
from known import DIM, NCHAIN, epoch_dict, numbers, run_of
from posterity import AsyncBackend, DefaultBackend, MailboxFull, State
from posterity._store.lock import HEARTBEAT_S
from posterity._system.disk import Disk
from posterity._system.reader_threads import in_thread
from posterity._writing.service import Service
from posterity._writing.writer import Writer

NSAMPLES = 2
LARGE = 300_000  # samples; in an epoch that is copied in a thread


@pytest.fixture
def outdir(tmp_path):
    return tmp_path / "run"


def marked(producer, k, nsamples=NSAMPLES):
    """An epoch that says who made it, and as its how manieth."""
    p = np.empty((NCHAIN, DIM, nsamples))
    p[:, 0], p[:, 1] = producer, k
    return {"samples": {"p": p}}


def counts_of(samples, producer):
    """The numbers of a producer's epochs, in their order in the run."""
    p = samples["p"][0]
    return [int(k) for k, _ in itertools.groupby(p[1, p[0] == producer])]


# ---- one backend -----------------------------------------------------------------------------------------------------

OPTIONS = [{}, {"max_pending_epochs": 2, "epochs_per_file": 50}, {"max_pending_bytes": 200, "inmem_epochs": 3}]


EACH = 12


class Marked:
    """An epoch object: what it has is asked for in a thread."""

    def __init__(self, producer, k):
        self._epoch = marked(producer, k)

    def to_backend(self, burn, stats):
        return NSAMPLES, 0, self._epoch


async def ingest_by_turns(backend, producer):
    """In each way that waits for room."""
    for k in range(EACH):
        if k % 3 == 0:
            await backend.ingest(marked(producer, k))
        elif k % 3 == 1:
            await backend.ingest_dict(marked(producer, k), copy=False)
        else:
            await backend.ingest(Marked(producer, k))


async def ingest_nowait(backend, producer):
    for k in range(EACH):
        receipt = None
        while receipt is None:
            try:
                receipt = backend.ingest_nowait(marked(producer, k))
            except MailboxFull:
                await backend.flush()
        if k % 4 == 0:
            await receipt.durable


async def ingest_in_thread(backend, producer):
    def ingest():
        for k in range(EACH):
            backend.blocking.ingest_dict(marked(producer, k), copy=k % 2 == 0)

    await in_thread(ingest)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
async def test_tasks_and_threads_ingest_at_once(outdir, options):
    """Tasks and threads use both faces at once: no epoch is lost or doubled, and each producer's are in its order."""
    producers = [ingest_by_turns] * 4 + [ingest_nowait] * 2 + [ingest_in_thread] * 4
    async with AsyncBackend(outdir=outdir, **options) as backend:
        async with anyio.create_task_group() as tasks:
            for producer, work in enumerate(producers):
                tasks.start_soon(work, backend, producer)
        in_memory = await backend.get_samples()
    with DefaultBackend(outdir=outdir) as again:
        samples = again.get_samples(verify=True)
    np.testing.assert_array_equal(samples["p"], in_memory["p"])
    assert samples["p"].shape[2] == NSAMPLES * EACH * len(producers)
    for producer in range(len(producers)):
        assert counts_of(samples, producer) == list(range(EACH))


async def test_a_task_keeps_its_order_whatever_it_hands_over(outdir):
    """One task's epochs are in the order of its calls, those that leave the loop to be copied, and those that don't."""
    async with AsyncBackend(outdir=outdir) as backend:
        for k in range(6):
            await backend.ingest(marked(0, k, NSAMPLES if k % 2 else LARGE))
        samples = await backend.get_samples(thin=NSAMPLES)
    assert counts_of(samples, 0) == list(range(6))


class BusyRun:
    """A run that is written, burned and written anew in a task, while it is read."""

    def __init__(self, backend):
        self.backend = backend
        self.lengths = [1 + i % 7 for i in range(60)]
        self.is_done = threading.Event()

    async def write(self):
        try:
            for i, epoch in enumerate(run_of(self.lengths)):
                await self.backend.ingest(epoch)
                if i % 10 == 9:
                    await self.backend.set_burn(min(sum(self.lengths[:i]), self.backend.burn + 3 * i))
                if i % 25 == 20:
                    await self.backend.flush(publish=True)
        finally:
            self.is_done.set()

    async def read(self):
        stop = 0
        while not self.is_done.is_set():
            async with self.backend.snapshot() as snapshot:
                stop = self.checked(await snapshot.get_samples(), snapshot, stop)

    def read_in_thread(self):
        stop = 0
        while not self.is_done.is_set():
            with self.backend.blocking.snapshot() as snapshot:
                stop = self.checked(snapshot.get_samples(verify=True), snapshot, stop)

    def checked(self, samples, snapshot, seen_before):
        """Where the run ended, if the samples are those of a moment that isn't before another one."""
        stop = snapshot.burn + snapshot.nsamples
        if samples is not None:
            np.testing.assert_array_equal(samples["p"], numbers(snapshot.burn, snapshot.nsamples))
        assert stop >= seen_before
        return stop


async def test_readers_see_exact_numbers(outdir):
    """Tasks and threads that read while others write and burn see exact numbers, and none goes back."""
    async with AsyncBackend(outdir=outdir, epochs_per_file=7, reader_threads=2) as backend:
        run = BusyRun(backend)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run.write)
            for _ in range(4):
                tasks.start_soon(run.read)
            tasks.start_soon(in_thread, run.read_in_thread)
        left = numbers(backend.burn, sum(run.lengths) - backend.burn)
        np.testing.assert_array_equal((await backend.get_samples())["p"], left)


# ---- many backends ---------------------------------------------------------------------------------------------------


async def test_a_backend_whose_disk_hangs_starves_nobody(tmp_path, monkeypatch):
    """One run's disk hangs, its mailbox is full and its reads are stuck: the other runs of the process don't notice."""
    stuck = tmp_path / "stuck"

    def is_stuck(disk, *_):
        return disk.folder == stuck

    async def work(outdir):
        async with AsyncBackend(outdir=outdir, reader_threads=1, max_pending_epochs=2) as backend:
            for epoch in run_of([3] * 5):
                await backend.ingest(epoch)
            await backend.ingest(Marked(0, 0))
            await backend.flush(publish=True)
            async for snapshot in backend.updates():
                np.testing.assert_array_equal((await snapshot.get_samples())["p"][:, :, :15], numbers(0, 15))
                break
        assert len(await AsyncBackend.read_epoch(outdir / "epochs_1.h5"))

    async def stuck_read(backend):
        await backend.get(0)

    async def stuck_ingest(backend, i):
        await backend.ingest(epoch_dict(3 * i, 3))

    async with AsyncBackend(outdir=stuck, reader_threads=3, max_pending_epochs=1) as backend:
        await backend.ingest(epoch_dict(0, 3))
        await backend.flush()
        with (
            made_to_hang(monkeypatch, Disk, "reserve", is_stuck) as writes,
            made_to_hang(monkeypatch, Disk, "read_at", is_stuck) as reads,
        ):
            async with anyio.create_task_group() as tasks:
                for i in range(1, 6):
                    tasks.start_soon(stuck_read, backend)
                    tasks.start_soon(stuck_ingest, backend, i)
                await seen(lambda: writes.inside and reads.inside == 3)
                with anyio.fail_after(50):
                    async with anyio.create_task_group() as others:
                        for i in range(10):
                            others.start_soon(work, tmp_path / str(i))
                assert (writes.inside, reads.inside) == (1, 3)
                assert backend.status.epochs == 2
                writes.let_go()
                reads.let_go()
        assert backend.status.epochs == 6


async def test_backends_that_come_and_go(tmp_path):
    """Tasks that open and close runs over and over, each its own, leave nothing behind and find what they left."""

    async def work(i):
        for k in range(5):
            async with AsyncBackend(outdir=tmp_path / str(i), epochs_per_file=3) as backend:
                assert backend.status.epochs == k
                await backend.ingest(epoch_dict(4 * k, 4))

    async with anyio.create_task_group() as tasks:
        for i in range(8):
            tasks.start_soon(work, i)
    for i in range(8):
        with DefaultBackend(outdir=tmp_path / str(i)) as backend:
            np.testing.assert_array_equal(backend.get_samples()["p"], numbers(0, 20))


async def test_one_opening_of_many_succeeds(outdir):
    """Of several tasks that open one run at once exactly one gets it."""
    opened = []

    async def enter():
        with suppress(BlockingIOError):
            opened.append(await AsyncBackend(outdir=outdir).__aenter__())

    with DefaultBackend(outdir=outdir) as backend:
        backend.ingest(epoch_dict(0, 3))
    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(enter)
    assert len(opened) == 1
    await opened[0].ingest(epoch_dict(3, 3))
    await opened[0].aclose()


# ---- many listeners --------------------------------------------------------------------------------------------------


async def test_listeners_do_not_hold_the_writer_up(outdir):
    """With listeners that wait, that are slow, and that never ask again, a run is written while their loop stands still."""
    woken = {}

    async def listen(backend, listener):
        async for snapshot in backend.updates():
            woken[listener] = snapshot.nepochs

    async with AsyncBackend(outdir=outdir, max_pending_epochs=2) as backend:
        lost_interest = [backend.updates() for _ in range(30)]
        await backend.ingest(epoch_dict(0, 3))
        for updates in lost_interest:
            await anext(updates)
        async with anyio.create_task_group() as tasks:
            for listener in range(30):
                tasks.start_soon(listen, backend, listener)
            await seen(lambda: len(woken) == 30)
            await anyio.wait_all_tasks_blocked()
            sampler = backend.blocking
            for i in range(1, 40):
                sampler.ingest(epoch_dict(3 * i, 3))  # waits for room, and the loop that it is called in with it
            sampler.flush()
            assert sampler.status.epochs_on_disk == 40
            assert set(woken.values()) == {1}
            await seen(lambda: set(woken.values()) == {40})
            await backend.aclose()
        assert backend.status.state is State.CLOSED
        assert [(await anext(updates, None)) for updates in lost_interest] == [None] * 30


async def test_a_sleeping_writer_is_woken_once(outdir, monkeypatch):
    """Of many epochs that come before it is awake only the first one wakes it; what is asked for later does so again."""
    woken = []
    rouse = Writer._rouse
    monkeypatch.setattr(Writer, "_rouse", lambda writer: (woken.append(writer), rouse(writer)))
    is_free = threading.Event()
    async with AsyncBackend(outdir=outdir, inmem_epochs=100) as backend:
        writer = backend._service._writer
        await seen(lambda: writer._sleeps)
        woken.clear()
        writer.later(is_free.wait)  # the I/O thread, in which it is woken
        for i in range(10):
            backend.ingest_nowait(epoch_dict(3 * i, 3))
        is_free.set()
        await seen(lambda: writer._sleeps)
        assert woken == [writer]
        await backend.flush()
        assert backend.status.epochs_on_disk == 10
        assert len(woken) > 1


async def test_a_wake_up_that_is_interrupted_is_made_up_for(outdir, monkeypatch):
    """Ctrl-C just when a sleeping writer is to be woken: what comes next wakes it, long before it would look itself."""
    async with AsyncBackend(outdir=outdir) as backend:
        writer = backend._service._writer
        await seen(lambda: writer._sleeps)
        put = writer._io.put

        def interrupted(_work):
            monkeypatch.setattr(writer._io, "put", put)
            raise KeyboardInterrupt

        monkeypatch.setattr(writer._io, "put", interrupted)
        with pytest.raises(KeyboardInterrupt):
            backend.ingest_nowait(epoch_dict(0, 3))
        with anyio.fail_after(HEARTBEAT_S / 2):
            await backend.ingest_nowait(epoch_dict(3, 3)).durable
        assert backend.status.epochs_on_disk == 2


async def test_a_listener_ends_when_the_run_is_closed_just_now(outdir, monkeypatch):
    """A run that is closed between the news and the look at it ends the updates of either face, without an error."""
    snapshot = Service.snapshot

    def close_first(service):
        closer = threading.Thread(target=DefaultBackend._of(service).close)
        closer.start()
        closer.join()
        return snapshot(service)

    for awaited in (True, False):
        async with AsyncBackend(outdir=outdir / str(awaited)) as backend:
            await backend.ingest(epoch_dict(0, 3))
            with monkeypatch.context() as patch:
                patch.setattr(Service, "snapshot", close_first)
                if awaited:
                    assert [snapshot async for snapshot in backend.updates()] == []
                else:
                    assert list(backend.blocking.updates()) == []
                assert backend.status.state is State.CLOSED


async def test_each_listener_gets_the_newest(outdir):
    """Listeners of different speed each get ever newer snapshots, the slow ones fewer, and all of them the last one."""
    nepochs, seen_by = 40, {}

    async def listen(backend, listener):
        nseen = seen_by[listener] = []
        async for snapshot in backend.updates(min_samples=1 + listener):
            nseen.append(snapshot.nepochs)
            if snapshot.nepochs == nepochs:
                break
            for _ in range(20 * listener):
                await checkpoint()

    async with AsyncBackend(outdir=outdir, epochs_per_file=10) as backend, anyio.create_task_group() as tasks:
        for listener in range(4):
            tasks.start_soon(listen, backend, listener)
        for epoch in run_of([5] * nepochs):
            await backend.ingest(epoch)
            await backend.flush()
    for nseen in seen_by.values():
        assert nseen == sorted(set(nseen))
        assert nseen[-1] == nepochs
