"""Many threads and many backends at once: nothing is lost, nothing is half, nobody starves."""

import itertools
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest

from known import DIM, NCHAIN, numbers, run_of
from posterity import Burned, DefaultBackend, MailboxFull


@pytest.fixture
def outdir(tmp_path):
    return tmp_path / "run"


def together(*functions):
    """Run functions in threads that start at the same moment; raise what one of them raised."""
    start = threading.Barrier(len(functions))

    def run(function):
        start.wait()
        return function()

    with ThreadPoolExecutor(len(functions)) as pool:
        return [future.result() for future in [pool.submit(run, function) for function in functions]]


def marked(thread, k, nsamples=2):
    """An epoch that says which thread made it, and as its how manieth."""
    p = np.empty((NCHAIN, DIM, nsamples))
    p[:, 0], p[:, 1] = thread, k
    return {"samples": {"p": p}}


OPTIONS = [
    {},
    {"epochs_per_file": 7, "inmem_epochs": 3},
    {"max_pending_epochs": 2, "epochs_per_file": 50},
    {"max_pending_bytes": 200},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_several_threads_ingest_at_once(outdir, options):
    """Nothing is lost or doubled when threads ingest at once, and each thread's epochs are in its order."""
    nthreads, each = 6, 20

    def sampler(thread):
        def sample():
            for k in range(each):
                if k % 3:
                    backend.ingest(marked(thread, k))
                else:
                    backend.ingest_dict(marked(thread, k), copy=False)

        return sample

    with DefaultBackend(outdir=outdir, **options) as backend:
        together(*(sampler(thread) for thread in range(nthreads)))
        in_memory = backend.get_samples()["p"]
    with DefaultBackend(outdir=outdir) as backend:
        p = backend.get_samples(verify=True)["p"]
    np.testing.assert_array_equal(p, in_memory)
    assert p.shape[2] == nthreads * each * 2
    for thread in range(nthreads):
        np.testing.assert_array_equal(p[0, 1, p[0, 0] == thread], np.repeat(np.arange(each), 2))


def test_receipts_of_several_threads(outdir):
    """Each receipt has an index of its own, under which its epoch is found; who finds no room tries again."""
    nthreads, each = 4, 15

    def sampler(thread):
        def sample():
            receipts = []
            for k in range(each):
                while True:
                    try:
                        receipts.append((k, backend.ingest_nowait(marked(thread, k))))
                        break
                    except MailboxFull:
                        receipts[-1][1].durable.wait() if receipts else backend.flush()
            for k, receipt in receipts:
                receipt.durable.wait()
                np.testing.assert_array_equal(
                    backend.get(receipt.index)["samples"]["p"], marked(thread, k)["samples"]["p"]
                )
            return [receipt.index for _, receipt in receipts]

        return sample

    with DefaultBackend(outdir=outdir, max_pending_epochs=3, epochs_per_file=10) as backend:
        indices = together(*(sampler(thread) for thread in range(nthreads)))
    assert sorted(itertools.chain(*indices)) == list(range(nthreads * each))
    assert all(one == sorted(one) for one in indices)


class BusyRun:
    """A run that is written, burned and written anew, and threads that read it meanwhile."""

    def __init__(self, backend):
        self.backend = backend
        self.lengths = [1 + i % 7 for i in range(120)]
        self.is_done = threading.Event()

    def goes_on(self, nreads):
        return nreads < 20 or not self.is_done.is_set()

    def sample(self):
        try:
            for i, epoch in enumerate(run_of(self.lengths)):
                self.backend.ingest(epoch)
                if i % 10 == 9:
                    self.backend.set_burn(min(sum(self.lengths[:i]), self.backend.burn + 3 * (i % 40)))
                if i % 30 == 15:
                    self.backend.flush(publish=True)
        finally:
            self.is_done.set()

    def read(self):
        nreads, seen = 0, 0
        while self.goes_on(nreads):
            with self.backend.snapshot() as snapshot:
                self.check(snapshot, thin=1, verify=nreads % 2 == 0)
                stop = snapshot.burn + snapshot.nsamples
                assert stop >= seen
                seen = stop
            nreads += 1

    def listen(self):
        for snapshot in self.backend.updates():
            self.check(snapshot, thin=3)
            if snapshot.nepochs == len(self.lengths):
                break

    def check(self, snapshot, *, thin, verify=False):
        samples = snapshot.get_samples(thin=thin, verify=verify)
        if samples is not None:
            np.testing.assert_array_equal(samples["p"], numbers(snapshot.burn, snapshot.nsamples)[:, :, ::thin])

    def read_epochs(self):
        chance = random.Random(3)
        nreads = 0
        self.backend.get_samples()
        while self.goes_on(nreads):
            if count := self.backend.status.epochs:
                self.check_epoch(chance.randrange(count))
                assert self.backend.load().last["p"][0, 0] % 1000 == 0
            nreads += 1

    def check_epoch(self, i):
        stop = sum(self.lengths[: i + 1])
        try:
            p = self.backend.get(i)["samples"]["p"]
        except Burned:
            assert stop <= self.backend.burn
        else:
            np.testing.assert_array_equal(p, numbers(stop - p.shape[2], p.shape[2]))


@pytest.mark.parametrize("options", OPTIONS[:2], ids=str)
def test_readers_always_see_exact_numbers(outdir, options):
    """While a run is written, burned and written anew, every read gives exact numbers, and none goes back."""
    with DefaultBackend(outdir=outdir, **options) as backend:
        run = BusyRun(backend)
        together(run.sample, run.read, run.read, run.read_epochs, run.listen)
        burn = backend.burn
        assert burn > 50
    with DefaultBackend(outdir=outdir) as backend:
        np.testing.assert_array_equal(backend.get_samples(verify=True)["p"], numbers(burn, sum(run.lengths) - burn))


def test_readers_while_the_run_is_reset(outdir):
    """Reads while the run is reset over and over see one run or the next, never a mix."""
    is_done = threading.Event()

    def sample():
        try:
            for i in range(15):
                for epoch in run_of([3] * 5, start=10_000 * i):
                    backend.ingest(epoch)
                if i % 3 == 0:
                    backend.flush(publish=i % 2 == 0)
                backend.reset()
        finally:
            is_done.set()

    def read():
        while not is_done.is_set():
            with backend.snapshot() as snapshot:
                for _ in range(2):
                    samples = snapshot.get_samples()
                    if samples is None:
                        assert snapshot.nepochs == 0
                        continue
                    first = samples["p"][0, 0, 0] / 1000
                    assert first % 10_000 == 0
                    np.testing.assert_array_equal(samples["p"], numbers(int(first), snapshot.nsamples))

    with DefaultBackend(outdir=outdir, epochs_per_file=2, inmem_epochs=1) as backend:
        together(sample, read, read, read)


def test_burns_of_several_threads(outdir):
    """The burn is the largest that any thread asked for, and a lower one that comes later is an error in its thread."""

    def burner(thread):
        def burn():
            for k in range(100):
                try:
                    backend.set_burn(8 * k + thread)
                except ValueError:
                    assert backend.burn > 8 * k + thread
                else:
                    assert backend.burn >= 8 * k + thread

        return burn

    with DefaultBackend(outdir=outdir) as backend:
        for epoch in run_of([50] * 20):
            backend.ingest(epoch)
        together(*(burner(thread) for thread in range(8)))
        assert backend.burn == 8 * 99 + 7
        np.testing.assert_array_equal(backend.get_samples()["p"], numbers(799, 201))


def test_flushes_of_several_threads(outdir):
    """When its `flush` returned, a thread's epochs are durable, whoever else ingests and flushes."""

    def sampler(thread):
        def sample():
            for k in range(15):
                receipt = backend.ingest_nowait(marked(thread, k))
                backend.flush(publish=k % 5 == 0)
                assert receipt.durable.done

        return sample

    with DefaultBackend(outdir=outdir, epochs_per_file=4, inmem_epochs=10) as backend:
        together(*(sampler(thread) for thread in range(4)))
        assert backend.status.epochs_on_disk == 60


def test_closing_while_others_ingest(outdir):
    """A close while threads ingest: every ingest either returned, and its epoch is on disk, or was refused."""

    def sampler(thread):
        def sample():
            k = 0
            with suppress(ValueError):
                while True:
                    backend.ingest(marked(thread, k))
                    k += 1
                    if k == 10:
                        is_running.release()
            return k

        return sample

    def close():
        for _ in range(4):
            is_running.acquire()
        backend.close()

    is_running = threading.Semaphore(0)
    backend = DefaultBackend(outdir=outdir, max_pending_epochs=5, epochs_per_file=100)
    *counts, _ = together(*(sampler(thread) for thread in range(4)), close)
    with DefaultBackend(outdir=outdir) as again:
        p = again.get_samples(verify=True)["p"]
    for thread, count in enumerate(counts):
        np.testing.assert_array_equal(p[0, 1, p[0, 0] == thread], np.repeat(np.arange(count), 2))


def test_many_backends_in_one_process(tmp_path):
    """Many runs in one process don't disturb or starve each other."""
    count, lengths = 20, [5] * 12

    def sampler(i):
        def sample():
            backend = backends[i]
            for epoch in run_of(lengths, start=1000 * i):
                backend.ingest(epoch)
            backend.flush()
            np.testing.assert_array_equal(backend.get_samples()["p"], numbers(1000 * i, 60))
            backend.close()

        return sample

    backends = [DefaultBackend(outdir=tmp_path / str(i), epochs_per_file=5) for i in range(count)]
    together(*(sampler(i) for i in range(count)))
    for i in range(count):
        with DefaultBackend(outdir=tmp_path / str(i)) as backend:
            np.testing.assert_array_equal(backend.get_samples(verify=True)["p"], numbers(1000 * i, 60))


def test_backends_that_come_and_go(tmp_path):
    """Opening and closing over and over, in several threads, leaves no thread and no descriptor behind."""

    def worker(i):
        def work():
            for k in range(10):
                with DefaultBackend(outdir=tmp_path / str(i), epochs_per_file=3) as backend:
                    assert backend.status.epochs == k
                    backend.ingest(run_of([4], start=4 * k)[0])

        return work

    together(*(worker(i) for i in range(6)))
    for i in range(6):
        with DefaultBackend(outdir=tmp_path / str(i)) as backend:
            np.testing.assert_array_equal(backend.get_samples()["p"], numbers(0, 40))


def test_one_opening_of_many_succeeds(outdir):
    """Of several threads that open one run at once exactly one gets it."""
    with DefaultBackend(outdir=outdir) as backend:
        backend.ingest(run_of([4])[0])

    def open_run():
        try:
            return DefaultBackend(outdir=outdir)
        except BlockingIOError:
            return None

    opened = [backend for backend in together(*[open_run] * 8) if backend is not None]
    assert len(opened) == 1
    opened[0].ingest(run_of([3], start=4)[0])
    opened[0].close()
    with DefaultBackend(outdir=outdir) as backend:
        np.testing.assert_array_equal(backend.get_samples()["p"], numbers(0, 7))
