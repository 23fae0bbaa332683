"""Reading in several threads: the same numbers, the same errors, and no thread is left."""

import contextlib
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posterity import Damaged, DefaultBackend, open_run
from posterity._format import row_reader
from posterity._reading import epoch_sources, gather
from posterity._system import parallel
from posterity._system.parallel import share_out
from posterity._system.threads import OurThread

NCHAIN, DIM = 5, 2


def helpers():
    return [thread for thread in threading.enumerate() if thread.name == "posterity-reader"]


class Workers:
    """Notes who did what, in which thread; the jobs in `fails` raise their own number."""

    def __init__(self, fails=(), together=1):
        self.fails = set(fails)
        self.done = []
        self.threads = set()
        self.entered = self.left = 0
        self._guard = threading.Lock()
        self._meet = threading.Barrier(together)

    @contextlib.contextmanager
    def __call__(self):
        with self._guard:
            self.entered += 1
        self._meet.wait(30)
        try:
            yield self._do
        finally:
            with self._guard:
                self.left += 1

    def _do(self, job):
        with self._guard:
            self.threads.add(threading.get_ident())
            self.done.append(job)
        if job in self.fails:
            raise LookupError(job)


@pytest.mark.parametrize("nthreads", [0, 1, 2, 5])
def test_each_job_is_done_once(nthreads):
    """However many threads there are, all jobs are done when it returns, and the threads have ended."""
    workers = Workers()
    share_out(range(50), workers, nthreads)
    assert sorted(workers.done) == list(range(50))
    assert workers.entered == workers.left
    assert helpers() == []


def test_the_work_is_shared():
    """Three threads are at it at the same time, one of them the caller's; each has a worker of its own."""
    workers = Workers(together=3)  # they wait for each other: fewer would never begin
    share_out(range(3), workers, 3)
    assert workers.entered == 3


def test_no_more_threads_than_jobs():
    """One job is done in the caller's thread, whatever was asked for."""
    workers = Workers()
    share_out([7], workers, 8)
    assert workers.threads == {threading.get_ident()}
    assert workers.entered == 1


@pytest.mark.parametrize("nthreads", [1, 3])
def test_the_first_error_among_the_jobs_is_raised(nthreads):
    """It is that of the job which comes first, and jobs after it aren't begun by threads that come to them later."""
    for _ in range(20):
        workers = Workers(fails=range(2, 100), together=nthreads)
        with pytest.raises(LookupError, match=r"^2$"):
            share_out(range(100), workers, nthreads)
        assert len(workers.done) <= 2 + 2 * nthreads
        assert workers.entered == workers.left
        assert helpers() == []


def test_an_interrupt_is_raised_before_any_error():
    """Ctrl-C in the caller's thread isn't lost because a job that comes before it failed too."""
    both_are_at_it = threading.Barrier(2)

    @contextlib.contextmanager
    def worker():
        def do(job):
            both_are_at_it.wait(30)
            raise KeyboardInterrupt if threading.current_thread() is threading.main_thread() else LookupError(job)

        yield do

    for _ in range(10):
        with pytest.raises(KeyboardInterrupt):
            share_out(range(2), worker, 2)
    assert helpers() == []


def test_a_worker_that_can_not_begin_is_an_error():
    """What is raised before the first job comes up too."""

    @contextlib.contextmanager
    def broken():
        raise OSError("no descriptor left")
        yield

    with pytest.raises(OSError, match="no descriptor left"):
        share_out(range(3), broken, 2)


def test_without_a_thread_left_the_caller_does_it(monkeypatch):
    """Where the system gives no thread, or the interpreter is ending, all is done in the caller's."""

    def start(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(OurThread, "start", start)
    workers = Workers()
    share_out(range(5), workers, 3)
    assert workers.threads == {threading.get_ident()}
    assert sorted(workers.done) == list(range(5))


def test_the_cores_are_those_that_we_may_use(monkeypatch):
    """A batch system that gives one core of a hundred gets one thread."""
    monkeypatch.setattr(parallel.os, "sched_getaffinity", lambda _: {5}, raising=False)
    assert parallel.count_cores() == 1
    monkeypatch.delattr(parallel.os, "sched_getaffinity")
    monkeypatch.setattr(parallel.os, "cpu_count", lambda: None)
    assert parallel.count_cores() == 1


# ---- samples that are read in several threads --------------------------------------------------------------------------


@pytest.fixture
def shared(monkeypatch):
    """Everything is worth three threads and is cut small, so that each way of reading is met."""
    for module, name, value in [
        (gather, "_JOB_BYTES", 100),
        (gather, "_WORTH_A_THREAD", 1),
        (gather, "_WORTH_A_CALL", 0),
        (gather, "count_cores", lambda: 3),
        (gather, "_READ_BYTES", 1),
        (gather, "MOST_OPEN", 2),
        (gather, "LONG_ROW", 64),
        (epoch_sources, "MOST_OPEN", 2),
        (row_reader, "LONG_ROW", 64),
        (row_reader, "_SLAB", 64),
        (row_reader, "_WORTH_SKIPPING", 16),
    ]:
        monkeypatch.setattr(module, name, value)
    asked = []

    def noted(jobs, worker, nthreads):
        jobs = list(jobs)
        asked.append(min(nthreads, len(jobs)))
        share_out(jobs, worker, nthreads)

    monkeypatch.setattr(gather, "share_out", noted)
    return asked


def epochs_of(lengths):
    first = 0
    for nsamples in lengths:
        p = np.arange(first, first + nsamples) + 1000.0 * np.arange(NCHAIN * DIM).reshape(NCHAIN, DIM, 1)
        yield {"samples": {"p": p, "ll": -p[:, :1].astype(np.float32)}}
        first += nsamples


def joined(lengths, name="p"):
    return np.concatenate([epoch["samples"][name] for epoch in epochs_of(lengths)], axis=2)


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    run_burn=st.integers(0, 20),
    burn=st.integers(0, 30),
    thin=st.integers(1, 9),
    chains=st.none() | st.lists(st.integers(-NCHAIN, NCHAIN - 1), max_size=8),
    verify=st.booleans(),
    inmem_epochs=st.integers(0, 2),
    epochs_per_file=st.integers(1, 3),
)
@settings(max_examples=60)
def test_shared_reads_are_those_of_numpy(
    shared, tmp_path_factory, lengths, run_burn, burn, thin, chains, verify, inmem_epochs, epochs_per_file
):
    """Whatever is selected, in memory or in files, several threads put together what NumPy selects of the whole."""
    outdir = tmp_path_factory.mktemp("shared") / "run"
    with DefaultBackend(run_burn, outdir=outdir, epochs_per_file=epochs_per_file, inmem_epochs=inmem_epochs) as backend:
        for epoch in epochs_of(lengths):
            backend.ingest(epoch)
        backend.update()
        mask = ... if chains is None else chains
        got = backend.get_samples(burn, thin, ["p", "ll", "p"], mask, verify=verify)
    for name in ("p", "ll"):
        whole = joined(lengths, name)[:, :, run_burn:]
        expected = (whole if chains is None else whole[np.array(chains, int)])[:, :, burn::thin]
        if not expected.shape[2]:
            assert got is None
            return
        assert list(got) == ["p", "ll"]
        np.testing.assert_array_equal(got[name], expected)
    assert helpers() == []


LENGTHS = [20] * 8


@pytest.fixture
def outdir(tmp_path):
    """A run of eight epochs in files of their own."""
    with DefaultBackend(outdir=tmp_path / "run") as backend:
        for epoch in epochs_of(LENGTHS):
            backend.ingest(epoch)
    return tmp_path / "run"


def test_all_cores_read(shared, outdir):
    """A large read is shared among as many threads as there are cores."""
    with open_run(outdir) as run:
        np.testing.assert_array_equal(run.get_samples()["p"], joined(LENGTHS))
        assert shared == [3]


@pytest.mark.parametrize(("name", "value"), [("_WORTH_A_THREAD", 1 << 20), ("_WORTH_A_CALL", 1 << 20)])
def test_small_reads_start_no_thread(shared, outdir, monkeypatch, name, value):
    """Little to read, or little with each call to the system, is read by the caller alone."""
    monkeypatch.setattr(gather, name, value)
    with open_run(outdir) as run:
        np.testing.assert_array_equal(run.get_samples()["p"], joined(LENGTHS))
        assert shared == [1]


def test_the_first_damaged_epoch_is_named(shared, outdir):
    """Of several damaged epochs the error names the first, whichever thread was first to see one."""
    for number in (3, 5, 8):
        path = outdir / f"epochs_{number}.h5"
        data = bytearray(path.read_bytes())
        at = data.find(next(iter([joined(LENGTHS)[0, 0, 20 * (number - 1) : 20 * number].tobytes()])))
        assert at > 0
        data[at] ^= 1
        path.write_bytes(data)
    with open_run(outdir) as run:
        for _ in range(10):
            with pytest.raises(Damaged, match=r"epochs_3\.h5 is damaged: 'samples/p'"):
                run.get_samples(verify=True)
        assert run.get_samples()["p"].shape == (NCHAIN, DIM, 160)
    assert helpers() == []


def test_an_epoch_of_another_shape_is_damage(shared, outdir, monkeypatch):
    """Files that contradict each other aren't read into each other's places."""
    find = epoch_sources.Shelves.find
    with DefaultBackend(outdir=outdir.parent / "other") as backend:
        p = np.zeros((NCHAIN, DIM + 1, 20))
        backend.ingest({"samples": {"p": p, "ll": p}})
        with backend.snapshot() as other, open_run(outdir) as run:
            alien = find(other._view.sources(), 0, 0)
            monkeypatch.setattr(
                epoch_sources.Shelves, "find", lambda self, i, start: alien if i == 4 else find(self, i, start)
            )
            with pytest.raises(Damaged, match="epoch 4 has another shape"):
                run.get_samples()


def test_a_missing_name_is_a_key_error_of_the_first_epoch_without_it(shared, tmp_path):
    """As when one thread reads."""
    with DefaultBackend(outdir=tmp_path / "run") as backend:
        for i, epoch in enumerate(epochs_of([20] * 6)):
            if i > 2:
                del epoch["samples"]["ll"]
            backend.ingest(epoch)
        backend.flush()
        with pytest.raises(KeyError, match="epoch 3 has no samples 'll'; it has p"):
            backend.get_samples(pars=["p", "ll"])
