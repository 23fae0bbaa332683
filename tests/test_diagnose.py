"""Diagnosing runs: while they are written and from elsewhere, blocking and awaited, through burns and resets."""

import itertools
import logging
import math
import shutil
import threading
import time

import anyio
import emcee
import numpy as np
import pytest
from arviz_stats.base import array_stats

from posterity import AsyncBackend, Closed, DefaultBackend, Diagnosis, SnapshotExpired, Stop, open_run
from posterity._reading.snapshot import Snapshot
from posterity._writing.wakers import Bell
from posterity.emcee import EmceeBackend

N = 50
NEVER = Stop(ess=1e9)


def epoch(index, *, nchain=4, n=N, shift=0.0):
    """White noise, another one for each index."""
    samples = shift + np.random.default_rng([7, index]).normal(size=(nchain, 2, n))
    return {"samples": {"p": samples, "q": samples[:, :1] ** 2}}


def expected(indices, name="p"):
    """Classic R-hat of the samples of some epochs."""
    samples = np.concatenate([epoch(i)["samples"][name] for i in indices], axis=2)
    return array_stats.rhat(samples, method="identity", chain_axis=0, draw_axis=2)


def assert_of(found, indices, name="p"):
    """These are the diagnostics of some epochs."""
    assert found is not None
    assert found.nsamples == N * len(indices)
    np.testing.assert_allclose(found.classic_rhat[name], expected(indices, name), rtol=1e-10)


def wait_for(condition, timeout_s=20):
    """Look again and again; returns what was found."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)
    return found


def status_of(backend, nsamples):
    """The diagnostics in the status, once they are of so many samples."""
    return wait_for(lambda: (d := backend.status.diagnostics) is not None and d.nsamples == nsamples and d)


@pytest.fixture
def reads(monkeypatch):
    """The positions from which samples are read to be diagnosed."""
    positions = []
    read = Snapshot._read_samples

    def noted(self, start, most, names):
        positions.append(start)
        return read(self, start, most, names)

    monkeypatch.setattr(Snapshot, "_read_samples", noted)
    return positions


# ---- in the status ---------------------------------------------------------------------------------------------------


def test_the_status_has_diagnostics_when_asked_for(tmp_path):
    """With the option they follow each epoch, and stay after the run is closed."""
    with DefaultBackend(outdir=tmp_path, diagnose=True) as backend:
        assert backend.status.diagnostics is None
        for i in range(3):
            backend.ingest(epoch(i))
            assert_of(status_of(backend, N * (i + 1)), range(i + 1))
    assert_of(backend.status.diagnostics, range(3))


def test_they_are_off_by_default(tmp_path):
    """Without the option there is no thread for them."""
    with DefaultBackend(outdir=tmp_path) as backend:
        backend.ingest(epoch(0))
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("posterity-diagnose")]
        assert backend.status.diagnostics is None


def test_the_names_can_be_chosen(tmp_path):
    """The option takes names of samples in place of True."""
    with DefaultBackend(outdir=tmp_path, diagnose=["q", "p"]) as backend:
        backend.ingest(epoch(0))
        found = status_of(backend, N)
    assert list(found.rhat) == ["q", "p"]
    assert_of(found, [0], "q")


@pytest.mark.parametrize("wrong", ["p", 3, [1]])
def test_a_wrong_option_is_refused(tmp_path, wrong):
    """Anything else than a bool or names is an error at once."""
    with pytest.raises(TypeError, match="diagnose"):
        DefaultBackend(outdir=tmp_path, diagnose=wrong)


def test_a_plain_loop_stops_when_the_rule_is_met(tmp_path):
    """`while not stop.is_met(backend.status.diagnostics)` ends by itself."""
    stop = Stop(rhat=1.05, ess=2000, min_samples=300)
    with DefaultBackend(outdir=tmp_path, diagnose=True) as backend:
        for i in itertools.count():
            if stop.is_met(backend.status.diagnostics):
                break
            backend.ingest(epoch(i))
            time.sleep(0.005)
        found = backend.status.diagnostics
    assert found.nsamples >= 300
    assert found.min_ess >= 2000


def test_emcee_stops_when_the_rule_is_met(tmp_path):
    """Steps that emcee's backend gathered are diagnosed as they become epochs; the rule ends the sampling."""
    stop = Stop(rhat=1.1, ess=200)
    with EmceeBackend(tmp_path, diagnose=True, max_step_age_s=0.02) as backend:
        sampler = emcee.EnsembleSampler(8, 2, lambda x: -0.5 * np.sum(x**2), backend=backend)
        found = None
        for _ in sampler.sample(np.random.default_rng(1).normal(size=(8, 2)), iterations=10**6):
            if stop.is_met(found := backend.status.diagnostics):
                break
    chain = backend.get_chain()[: found.nsamples].transpose(1, 2, 0)
    np.testing.assert_allclose(
        found.classic_rhat["p"],
        array_stats.rhat(chain, method="identity", chain_axis=0, draw_axis=2),
        rtol=1e-10,
    )


def test_a_run_that_is_continued_is_read_once(tmp_path, reads):
    """What was there before is diagnosed too: it is read in the background, and never again."""
    with DefaultBackend(outdir=tmp_path, epochs_per_file=2) as backend:
        for i in range(5):
            backend.ingest(epoch(i))
    with DefaultBackend(outdir=tmp_path, diagnose=True) as backend:
        assert_of(status_of(backend, 5 * N), range(5))
        del reads[:]
        backend.ingest(epoch(5))
        assert_of(status_of(backend, 6 * N), range(6))
    assert set(reads) == {5 * N}


def test_burns_and_resets_are_followed(tmp_path):
    """They are of what is left; after a reset they begin anew, and of nothing there are none."""
    with DefaultBackend(outdir=tmp_path, diagnose=True) as backend:
        for i in range(4):
            backend.ingest(epoch(i))
        status_of(backend, 4 * N)
        backend.set_burn(2 * N)
        assert_of(status_of(backend, 2 * N), range(2, 4))
        backend.clean()
        wait_for(lambda: backend.status.diagnostics is None)
        backend.ingest(epoch(4))
        assert_of(status_of(backend, N), [4])
        backend.reset()
        for i in range(3):  # the burn that was asked for takes two of them
            backend.ingest(epoch(i, nchain=2))
        wait_for(lambda: (found := backend.status.diagnostics) is not None and len(found.acceptance) == 2)


def test_what_cannot_be_diagnosed_is_told_once(tmp_path, caplog):
    """A name that isn't there is an error in the log; the run goes on, and is diagnosed once it can be."""
    with DefaultBackend(outdir=tmp_path, diagnose=["r"]) as backend:
        backend.ingest(epoch(0))
        wait_for(lambda: "'r'" in caplog.text)
        backend.ingest(epoch(1))
        backend.flush()
        time.sleep(0.3)
        assert backend.status.diagnostics is None
        backend.reset()
        backend.ingest({"samples": {"p": np.zeros((2, 1, 5)), "r": np.zeros((2, 1, 5))}})
        status_of(backend, 5)
    told = [record for record in caplog.records if record.name == "posterity.monitor"]
    assert [record.levelno for record in told] == [logging.ERROR]


def test_closing_does_not_wait_for_a_long_diagnosis(tmp_path, monkeypatch):
    """A run that is being read anew is closed after the epoch that is being read."""
    with DefaultBackend(outdir=tmp_path) as backend:
        for i in range(200):
            backend.ingest(epoch(i))
    monkeypatch.setattr("posterity._convergence.diagnosis._PIECE_BYTES", 1)
    read, begun = Snapshot._read_samples, threading.Event()

    def slowly(self, start, most, names):
        begun.set()
        time.sleep(0.05)  # a slow disk
        return read(self, start, most, names)

    monkeypatch.setattr(Snapshot, "_read_samples", slowly)
    backend = DefaultBackend(outdir=tmp_path, diagnose=True)
    begun.wait()
    start = time.monotonic()
    backend.close()
    assert time.monotonic() - start < 5  # all of it would take ten


def test_a_long_diagnosis_is_told_in_parts(tmp_path, monkeypatch):
    """Who reads for long lets the snapshot go in between, and tells what is known so far."""
    with DefaultBackend(outdir=tmp_path) as backend:
        for i in range(20):
            backend.ingest(epoch(i))
    monkeypatch.setattr("posterity._convergence.diagnosis._PIECE_BYTES", 1)
    monkeypatch.setattr("posterity._writing.monitor._AT_A_TIME_S", 1e-3)
    diagnose, told = Snapshot.diagnose, []

    def noted(self, diagnosis=None):
        told.append(diagnose(self, diagnosis))
        return told[-1]

    monkeypatch.setattr(Snapshot, "diagnose", noted)
    with DefaultBackend(outdir=tmp_path, diagnose=True) as backend:
        assert_of(status_of(backend, 20 * N), range(20))
    lengths = [found.nsamples for found in told if found is not None]
    assert lengths == sorted(lengths)
    assert len(set(lengths)) > 2


def test_nobody_is_woken_by_an_epoch(tmp_path):
    """The thread looks by itself: an epoch rings its bell as little as a read does."""
    with DefaultBackend(outdir=tmp_path, diagnose=True) as backend:
        backend.ingest(epoch(0))
        status_of(backend, N)
        assert backend._service._monitor._bell._silence.locked()


def test_much_that_is_new_makes_nobody_rest(tmp_path, monkeypatch):
    """The pause is for what the results cost: who has much to read begins again soon, and never falls behind by it."""
    read = Snapshot._read_samples

    def busily(self, start, most, names):
        end = time.thread_time() + 0.2
        while time.thread_time() < end:
            pass
        return read(self, start, most, names)

    pauses = []

    class Noted(Bell):
        def wait(self, timeout_s):
            pauses.append(timeout_s)
            super().wait(timeout_s)

    monkeypatch.setattr(Snapshot, "_read_samples", busily)
    monkeypatch.setattr("posterity._writing.monitor.Bell", Noted)
    with DefaultBackend(outdir=tmp_path, diagnose=True) as backend:
        backend.ingest(epoch(0))
        status_of(backend, N)
        backend.ingest(epoch(1))
        status_of(backend, 2 * N)
    assert max(pauses) < 1


# ---- asked for -------------------------------------------------------------------------------------------------------


def test_each_look_reads_what_is_new(tmp_path, reads):
    """A diagnosis that is handed in again costs what came since; without one all is read."""
    diagnosis = Diagnosis()
    with DefaultBackend(outdir=tmp_path) as backend:
        assert backend.diagnose(diagnosis) is None
        for i in range(6):
            backend.ingest(epoch(i))
            assert_of(backend.diagnose(diagnosis), range(i + 1))
        assert reads == [N * i for i in range(6)]
        assert_of(backend.diagnose(diagnosis), range(6))
        assert len(reads) == 6
        assert_of(backend.diagnose(), range(6))
        assert reads[6] == 0


def test_the_first_part_can_be_left_out(tmp_path, reads):
    """`discard` looks at the last part of what is left, without a burn, and reads little twice."""
    diagnosis = Diagnosis("p", discard=0.5)
    with DefaultBackend(outdir=tmp_path) as backend:
        for i in range(40):
            backend.ingest(epoch(i, shift=100.0 if i < 4 else 0.0))
            found = backend.diagnose(diagnosis)
            assert (found.first, found.nsamples) == (N * (i + 1) // 2, N * (i + 1) // 2)
        assert_of(found, range(20, 40))
    assert len(reads) == 40


def test_a_run_elsewhere_is_followed(tmp_path):
    """`Run.updates` with a diagnosis gives snapshots that have diagnostics, through burns and resets."""
    diagnosis = Diagnosis(["p", "q"])
    with DefaultBackend(outdir=tmp_path) as backend:
        backend.ingest(epoch(0))
        backend.flush()
        with open_run(tmp_path) as run:
            updates = run.updates(diagnosis=diagnosis, every_s=0.01)
            assert_of(next(updates).diagnostics, [0], "q")
            backend.ingest(epoch(1))
            backend.flush()
            assert_of(next(updates).diagnostics, [0, 1])
            backend.set_burn(N)
            backend.flush()
            assert_of(next(updates).diagnostics, [1])
            backend.reset()
            backend.ingest(epoch(5)).ingest(epoch(6))  # the burn that was asked for takes the first one
            backend.flush()
            found = wait_for(lambda: (snapshot := next(updates)).nsamples and snapshot.diagnostics)
            assert_of(found, [6])
            updates.close()
            with run.snapshot() as snapshot:
                assert snapshot.diagnostics is None
                assert_of(snapshot.diagnose(diagnosis), [6])


@pytest.mark.parametrize("names", ["ab", "aa"])
def test_a_diagnosis_of_another_run_begins_anew(tmp_path, names):
    """What is known of one run isn't taken for another's, not even for one that took its place."""
    diagnosis = Diagnosis()
    for name, index in zip(names, (0, 1), strict=True):
        shutil.rmtree(tmp_path / name, ignore_errors=True)
        with DefaultBackend(outdir=tmp_path / name) as backend:
            backend.ingest(epoch(index))
            backend.ingest(epoch(index + 5))
            assert_of(backend.diagnose(diagnosis), [index, index + 5])


def test_an_update_whose_samples_went_is_left_out(tmp_path, monkeypatch):
    """A burn between the look and the reading costs an update, and no error."""
    expire = iter([True, False])
    diagnose = Snapshot.diagnose

    def once(self, diagnosis=None):
        if next(expire):
            raise SnapshotExpired("burned since")
        return diagnose(self, diagnosis)

    with DefaultBackend(outdir=tmp_path) as backend:
        backend.ingest(epoch(0))
        backend.flush()
        monkeypatch.setattr(Snapshot, "diagnose", once)
        with open_run(tmp_path) as run:
            assert_of(next(run.updates(diagnosis=Diagnosis(), every_s=0.01)).diagnostics, [0])


def test_errors_of_a_diagnosis_reach_who_asked(tmp_path):
    """A name that isn't there is a `KeyError` with those there are; it leaves no snapshot behind."""
    with DefaultBackend(outdir=tmp_path) as backend:
        backend.ingest(epoch(0))
        backend.flush()
        with pytest.raises(KeyError, match=r"'r'.* it has p, q"):
            next(backend.updates(diagnosis=Diagnosis(["r"])))
        with open_run(tmp_path) as run:
            with pytest.raises(KeyError, match=r"'r'.* it has p, q"):
                next(run.updates(diagnosis=Diagnosis(["r"])))
            assert not run._followed._given
        assert not backend._service.ledger._pins


@pytest.mark.parametrize("wrong", [{"pars": ()}, {"discard": 1.0}, {"discard": -0.1}, {"discard": math.nan}])
def test_a_diagnosis_of_nothing_is_refused(wrong):
    """No name, or nothing left to look at, is an error at once."""
    with pytest.raises(ValueError, match="must"):
        Diagnosis(**wrong)


def test_who_was_interrupted_begins_anew(tmp_path, monkeypatch):
    """A Ctrl-C while samples are taken in leaves no half of them."""
    from posterity._convergence.diagnostics import Chains

    diagnosis, add = Diagnosis(["p", "q"]), Chains.add
    with DefaultBackend(outdir=tmp_path) as backend:
        backend.ingest(epoch(0))
        backend.diagnose(diagnosis)
        backend.ingest(epoch(1))
        with monkeypatch.context() as patch:

            def interrupted(self, samples):
                self._names["p"].add(samples["p"])
                raise KeyboardInterrupt

            patch.setattr(Chains, "add", interrupted)
            with pytest.raises(KeyboardInterrupt):
                backend.diagnose(diagnosis)
        assert Chains.add is add
        assert_of(backend.diagnose(diagnosis), [0, 1])


def test_epochs_on_a_device_are_left_out_until_they_are_fetched(tmp_path):
    """What a device still computes isn't waited for."""
    with DefaultBackend(outdir=tmp_path, inmem_epochs=5) as backend:
        backend.ingest(epoch(0)).ingest(epoch(1))
        with backend.snapshot() as snapshot:
            held = backend._service.ledger._shelf.held[1]
            held.is_fetched = False
            assert_of(snapshot.diagnose(), [0])
            held.is_fetched = True
            assert_of(snapshot.diagnose(), [0, 1])


# ---- waited for ------------------------------------------------------------------------------------------------------


def keep_ingesting(backend, is_over):
    for i in itertools.count():
        if is_over.is_set():
            return
        backend.ingest(epoch(i))
        time.sleep(0.005)


def test_a_thread_waits_until_the_chains_agree(tmp_path):
    """`until` returns the diagnostics that met the rule, of a backend and of a run elsewhere."""
    stop, is_over = Stop(rhat=1.05, ess=1000, min_samples=500), threading.Event()
    with DefaultBackend(outdir=tmp_path) as backend:
        sampler = threading.Thread(target=keep_ingesting, args=[backend, is_over])
        sampler.start()
        try:
            assert stop.is_met(backend.until(stop, every_s=0.01))
            with open_run(tmp_path, wait_s=20) as run:
                assert stop.is_met(run.until(stop, every_s=0.01, diagnosis=Diagnosis(["q"], discard=0.3)))
        finally:
            is_over.set()
            sampler.join()
        assert not backend._service.ledger._pins


def test_who_waits_hears_that_the_run_is_closed(tmp_path):
    """A rule that is never met ends in `Closed` when the backend, or the run, is closed."""
    with DefaultBackend(outdir=tmp_path) as backend:
        backend.ingest(epoch(0))
        backend.flush()
        for opened in (open_run(tmp_path), backend):
            closing = threading.Timer(0.2, opened.close)
            closing.start()
            with pytest.raises(Closed, match="before it met"):
                opened.until(NEVER, every_s=0.01)
            closing.join()


async def test_a_task_waits_until_the_chains_agree(tmp_path):
    """`await until` works beside the task that samples, and on a run elsewhere."""
    stop = Stop(rhat=1.05, ess=1000, min_samples=500)
    async with AsyncBackend(outdir=tmp_path, diagnose=True) as backend:

        async def sample():
            for i in itertools.count():
                await backend.ingest(epoch(i))
                await anyio.sleep(0.005)

        async with anyio.create_task_group() as sampling:
            sampling.start_soon(sample)
            assert stop.is_met(await backend.until(stop, every_s=0.01))
            run = await anyio.to_thread.run_sync(lambda: open_run(tmp_path, wait_s=20))
            async with run.asynchronous as reader:
                assert stop.is_met(await reader.until(stop, every_s=0.01, diagnosis=Diagnosis(["p", "q"])))
            sampling.cancel_scope.cancel()
        wait_for(lambda: not backend._service.ledger._pins)  # the status's own thread may still be reading


async def test_a_task_that_waits_can_be_cancelled_and_closed(tmp_path):
    """Cancelled, `until` leaves no snapshot behind; when the backend is closed it raises `Closed`."""
    async with AsyncBackend(outdir=tmp_path) as backend:
        await backend.ingest(epoch(0))
        with anyio.move_on_after(0.1) as scope:
            await backend.until(NEVER, every_s=0.01)
        assert scope.cancelled_caught
        assert not backend._service.ledger._pins

        async def close_soon():
            await anyio.sleep(0.1)
            await backend.aclose()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(close_soon)
            with pytest.raises(Closed, match="before it met"):
                await backend.until(NEVER, every_s=0.01)


async def test_snapshots_of_updates_have_diagnostics(tmp_path):
    """Awaited updates with a diagnosis give snapshots that have diagnostics; asked for they can be awaited."""
    async with AsyncBackend(outdir=tmp_path) as backend:
        await backend.ingest(epoch(0))
        updates = backend.updates(diagnosis=Diagnosis())
        assert_of((await anext(updates)).diagnostics, [0])
        await backend.ingest(epoch(1))
        assert_of((await anext(updates)).diagnostics, [0, 1])
        await updates.aclose()
        assert_of(await backend.diagnose(), [0, 1])
        async with backend.snapshot() as snapshot:
            assert_of(await snapshot.diagnose(Diagnosis("q")), [0, 1], "q")
