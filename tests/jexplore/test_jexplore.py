"""jexplore's own sampler on our backend, value for value, and each reading the other's files: `tox -e jexplore`."""

import dataclasses
import subprocess
import sys
import threading
from typing import NamedTuple

import anyio.to_thread
import h5py
import numpy as np
import pytest

pytest.importorskip("jexplore.backends", reason="jexplore's own sampler is run by `tox -e jexplore`")

import jax
import jax.numpy as jnp
from jexplore.backends import DefaultBackend as TheirBackend
from jexplore.sampler import JaxSampler
from jexplore.sampling.epoch import Epoch
from jexplore.steps import GaussianRandomWalk
from jexplore_cases import CASES, DIM, NCHAIN, NEPOCH, NITERS, case_of, files, sampler_on

from posterity import AsyncBackend, DefaultBackend, read_epoch
from posterity._system.disk import Disk

pytestmark = pytest.mark.timeout(600)  # jexplore compiles each epoch anew


class Theirs(NamedTuple):
    """A run in jexplore's own backend, and the epoch that its sampler returned."""

    backend: TheirBackend
    last: Epoch
    folder: str


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return case_of(request.param)


@pytest.fixture(scope="module")
def mh():
    return case_of("mh")


@pytest.fixture(scope="module")
def theirs(case, tmp_path_factory):
    """A run in jexplore's own backend. It goes on from the epoch that is there, so nothing is ever loaded."""
    folder = tmp_path_factory.mktemp("theirs")
    backend = TheirBackend(burn=15, outdir=str(folder))
    last = sampler_on(case, backend).run(case.start(), NITERS, nepoch=NEPOCH, seed=3)
    backend.set_burn(NITERS + 5)
    last = JaxSampler(case.sampling, case.steps(), backend).run(last, NITERS, nepoch=2, seed=4)
    return Theirs(backend, last, folder)


@pytest.fixture(scope="module")
def ours(case, tmp_path_factory):
    """The folder of the same run in our backend: closed after three epochs, opened again, loaded and continued."""
    folder = tmp_path_factory.mktemp("ours")
    with DefaultBackend(burn=15, outdir=folder) as backend:
        sampler_on(case, backend).run(case.start(), NITERS, nepoch=NEPOCH, seed=3)
        backend.set_burn(NITERS + 5)
    with DefaultBackend(outdir=folder) as backend:
        sampler = JaxSampler(case.sampling, case.steps(), backend)
        sampler.run(backend.load(), NITERS, nepoch=2, seed=4)
    return folder


@pytest.fixture
def backend(ours):
    """Our backend on that folder."""
    with DefaultBackend(outdir=ours) as backend:
        yield backend


def assert_same(left, right, path=""):
    """Equal names, shapes, dtypes and values, text as text; a 0-d array may be a number, a list of arrays one array."""
    if isinstance(left, dict):
        assert left.keys() == right.keys(), path
        for name in left:
            assert_same(left[name], right[name], f"{path}/{name}")
    elif isinstance(left, list) or isinstance(right, list):
        assert len(left) == len(right), path
        for i, (a, b) in enumerate(zip(left, right, strict=True)):
            assert_same(a, b, f"{path}/{i}")
    else:
        a, b = np.asarray(left), np.asarray(right)
        assert a.dtype == b.dtype, path
        np.testing.assert_array_equal(a, b, err_msg=path)


def test_the_sampler_runs_unchanged_and_gives_the_same_samples(case, theirs, backend):
    """With the same seeds, sampling in our backend gives, bit for bit, what it gives in jexplore's."""
    assert_same(theirs.backend.get_samples(pars=case.names), backend.get_samples(pars=case.names))
    chosen = {"burn": 3, "mask": np.arange(NCHAIN) % 2 == 0, "flatten": True}
    assert_same(theirs.backend.get_samples(**chosen), backend.get_samples(**chosen))


def test_epochs_are_the_same_value_for_value(theirs, backend):
    """Each epoch that is left, with its covariances, cycle, sampling, class and stats."""
    for index in range(1, NEPOCH + 2):
        assert_same(theirs.backend.get(index), backend.get(index))


def test_metadata_come_from_the_epoch(case, theirs, backend):
    """The layout of chains is that of jexplore's own temperatures, chain by chain; what its samples are is said, too."""
    metadata = backend.metadata
    assert {"jexplore", "jax"} <= metadata.versions.keys()
    if not hasattr(case.sampling, "temps"):
        assert (metadata.chains, metadata.attributes, metadata.parameters) == ({}, {}, {})
        return
    sampling = case.sampling
    assert metadata.chains == {"walker": sampling.nwalker, "temperature": len(sampling.temps)}
    assert metadata.parameters.keys() == set(case.names) - {"p"}
    step = GaussianRandomWalk()
    step.build(theirs.last)
    temperatures = 1 / np.asarray(step.beta).reshape(list(metadata.chains.values()))
    np.testing.assert_array_equal(temperatures, [metadata.attributes["temperatures"]] * sampling.nwalker)


def test_a_burned_epoch_is_refused_by_both(theirs, backend):
    """`get` of an epoch that was burned raises `ValueError`, with the same burn."""
    assert theirs.backend.burn == backend.burn == NITERS + 5
    for both in (theirs.backend, backend):
        with pytest.raises(ValueError, match="burned"):
            both.get(0)


def test_the_stats_are_the_same(theirs, backend):
    """`get_stats` gives the same dict."""
    assert_same(theirs.backend.get_stats(), backend.get_stats())


def test_each_reads_the_others_files(theirs, ours):
    """`read_epoch` of either gives the same from our files and from jexplore's."""
    for mine, other in zip(files(ours), files(theirs.folder), strict=True):
        expected = TheirBackend.read_epoch(str(other))
        assert_same(expected, TheirBackend.read_epoch(str(mine)))
        assert_same(expected, read_epoch(other))
        assert_same(expected, read_epoch(mine))


def test_each_loads_the_others_files(theirs, ours):
    """`load_epoch` of either makes the same epoch, of its own class, from our files and from jexplore's."""
    for path in (files(ours)[-1], files(theirs.folder)[-1]):
        for epoch in (
            TheirBackend.load_epoch(str(path)),
            DefaultBackend.load_epoch(path),
            DefaultBackend.load_epoch(path, -1, type(theirs.last)),
        ):
            assert type(epoch) is type(theirs.last)
            np.testing.assert_array_equal(epoch.covs, theirs.last.covs)
            for name in vars(theirs.last.samples):
                np.testing.assert_array_equal(getattr(epoch.samples, name), getattr(theirs.last.samples, name))


def test_one_run_an_epoch_goes_on_bit_for_bit(case, tmp_path):
    """A loop that gives each epoch a seed of its own is the same chain whether or not it is stopped after each epoch."""

    def sample(backend, epoch, index):
        sampler = JaxSampler(case.sampling, case.steps(), backend)
        return sampler.run(type(epoch)(epoch, force_covs=index > 0), NITERS, seed=index)

    with DefaultBackend(outdir=tmp_path / "whole") as backend:
        epoch = case.start()
        for index in range(NEPOCH):
            epoch = sample(backend, epoch, index)
        whole = [backend.get(index) for index in range(NEPOCH)]
    for index in range(NEPOCH):
        with DefaultBackend(outdir=tmp_path / "stopped") as backend:
            sample(backend, backend.load() if index else case.start(), index)
    with DefaultBackend(outdir=tmp_path / "stopped") as backend:
        for index in range(NEPOCH):
            assert_same(whole[index], backend.get(index))


@pytest.fixture
def stopped_disk(monkeypatch):
    """A disk that takes nothing until this event is set."""
    goes_on = threading.Event()
    reserve = Disk.reserve

    def wait_first(disk, fd, offset, nbytes):
        goes_on.wait()
        reserve(disk, fd, offset, nbytes)

    monkeypatch.setattr(Disk, "reserve", wait_first)
    yield goes_on
    goes_on.set()


def test_the_sampler_waits_for_no_disk(mh, stopped_disk, tmp_path):
    """While the disk stands still, `run` goes on to its end, and what it sampled can be read; later all is written."""
    with DefaultBackend(outdir=tmp_path / "run") as backend:
        try:
            sampler_on(mh, backend).run(mh.start(), NITERS, nepoch=NEPOCH, seed=3)
            assert backend.status.epochs == NEPOCH
            assert backend.status.epochs_on_disk == 0
            sampled = backend.get_samples()
        finally:
            stopped_disk.set()
    with DefaultBackend(outdir=tmp_path / "run") as backend:
        assert_same(sampled, backend.get_samples())


@jax.jit
def compute(n):
    """A computation of `n` steps, with a result (NCHAIN, DIM, NITERS)."""
    return jax.lax.fori_loop(0, n, lambda _, x: jnp.sin(x @ x.T), jnp.eye(100))[None, :DIM, :NITERS].repeat(NCHAIN, 0)


def test_the_sampler_waits_for_no_device(mh, tmp_path):
    """An epoch whose samples are still being computed is handed over at once, and stored as its own `to_backend` gives it."""
    epochs = []
    with DefaultBackend(outdir=tmp_path / "run") as backend:
        compute(1)
        for n in (2_000, 8_000, 32_000, 128_000):
            epoch = JaxSampler(mh.sampling, mh.steps(), backend).run(mh.start(), NITERS, seed=3)
            epoch.samples = dataclasses.replace(epoch.samples, p=compute(n))
            backend.ingest(epoch)
            is_first = not epoch.samples.p.is_ready()
            epochs.append(epoch)
            if is_first:
                break
        assert_same(epochs[-1].to_backend(0, True)[2], backend.get())
    assert is_first, "each computation was over when `ingest` returned"


def test_get_sampler_starts_anew(mh, tmp_path):
    """`get_sampler` resets the backend that it is given: a run that is there is gone."""
    with DefaultBackend(outdir=tmp_path / "run") as backend:
        sampler = sampler_on(mh, backend)
        sampler.run(mh.start(), NITERS, seed=1)
        backend.flush()
        sampler_on(mh, backend)
        assert backend.get_samples() is None
        assert files(tmp_path / "run") == []


def test_a_run_of_jexplores_is_taken_over_by_path(case, theirs, tmp_path):
    """`ingest(path)` takes epochs over from jexplore's files, and sampling goes on from the last one."""
    with DefaultBackend(outdir=tmp_path / "taken") as backend:
        for path in files(theirs.folder):
            backend.ingest(path)
        assert_same(theirs.backend.get_samples(), backend.get_samples())
        JaxSampler(case.sampling, case.steps(), backend).run(backend.load(), NITERS, seed=1)
        assert backend.get_samples()["p"].shape == (NCHAIN, DIM, (NEPOCH + 2) * NITERS - 5)


def test_a_folder_of_jexplores_is_taken_over_in_order(mh, tmp_path):
    """All epochs of many files, several to a file, are taken over in the order of their numbers."""
    theirs = TheirBackend(outdir=str(tmp_path), epochs_per_file=2)
    with DefaultBackend(outdir=tmp_path / "one") as backend:
        sampler_on(mh, backend).run(mh.start(), NITERS, seed=3)
        epoch = backend.get()
    for i in range(23):
        theirs.ingest({**epoch, "samples": {name: array + i for name, array in epoch["samples"].items()}})

    def number(name):
        return int(name.rpartition("_")[2])

    with DefaultBackend(outdir=tmp_path / "taken") as backend:
        for path in sorted(tmp_path.glob("epochs_*.h5"), key=lambda path: number(path.stem)):
            with h5py.File(path) as file:
                indices = sorted(map(number, file))
            for index in indices:
                backend.ingest(path, index)
        assert_same(theirs.get_samples(pars=mh.names), backend.get_samples(pars=mh.names))


async def test_the_sampler_runs_in_a_thread_of_an_event_loop(mh, tmp_path):
    """On the blocking face of an `AsyncBackend`, on asyncio and on trio; what it sampled is read in the loop."""

    def sample(backend):
        sampler_on(mh, backend).run(mh.start(), NITERS, nepoch=2, seed=3)

    async with AsyncBackend(outdir=tmp_path / "run") as backend:
        await anyio.to_thread.run_sync(sample, backend.blocking)
        assert (await backend.get_samples())["p"].shape == (NCHAIN, DIM, 2 * NITERS)


# In a process that has imported nothing of jexplore's: its name, and what becomes of it, for each folder.
LOADS = """
import sys
from posterity import DefaultBackend, UntrustedClass

for folder, name in zip(sys.argv[1::2], sys.argv[2::2]):
    with DefaultBackend(outdir=folder) as backend:
        try:
            backend.load()
        except UntrustedClass as error:
            assert name in str(error) and "eclass" in str(error), error
        else:
            raise AssertionError("a class was taken on a file's word")
assert not any(module.startswith("jexplore") for module in sys.modules), "a file had something imported"
for folder, name in zip(sys.argv[1::2], sys.argv[2::2]):
    with DefaultBackend(outdir=folder, trusted_classes=[name]) as backend:
        loaded = type(backend.load())
        assert f"{loaded.__module__}.{loaded.__qualname__}" == name, loaded
"""


@pytest.fixture(scope="module")
def a_run_of_each_class(tmp_path_factory):
    """Folders, each with the name of the epoch class in it."""
    found = []
    for name in CASES:
        folder, case = tmp_path_factory.mktemp(name), case_of(name)
        with DefaultBackend(outdir=folder) as backend:
            JaxSampler(case.sampling, case.steps(), backend).run(case.start(), NITERS, seed=1)
            found += [str(folder), backend.get()["class"]]
    return found


def test_a_file_has_no_class_imported_that_is_not_trusted(a_run_of_each_class):
    """In a new process `load` refuses each of jexplore's classes, and imports one that `trusted_classes` names."""
    subprocess.run([sys.executable, "-W", "error", "-c", LOADS, *a_run_of_each_class], check=True, timeout=170)


def test_another_class_can_be_asked_for(case, backend):
    """`load(eclass=...)` makes an epoch of the class given, here a subclass of the one that the file names."""

    class Mine(type(case.start())):
        pass

    assert type(backend.load(eclass=Mine)) is Mine


def test_the_key_may_be_stored_with_the_epoch(mh, tmp_path):
    """What is added to the dict of a jexplore epoch, a key for example, comes back, and jexplore reads the file."""
    with DefaultBackend(outdir=tmp_path / "run") as backend:
        data = mh.start().complete(mh.sampling)
        data.cycle = mh.steps().epoch_cycle(data)
        data.stats = None
        _, _, data = data.to_backend(0, False)
        key = jax.random.key_data(jax.random.key(5))
        backend.ingest_dict({**data, "state": {"key": key}})
        np.testing.assert_array_equal(backend.get()["state"]["key"], key)
    np.testing.assert_array_equal(TheirBackend.read_epoch(str(files(tmp_path / "run")[0]))["state"]["key"], key)
