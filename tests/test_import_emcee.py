"""`import_emcee`: a file of `HDFBackend`'s becomes a run that gives the same, and from which a sampler goes on."""

import tracemalloc

import h5py
import numpy as np
import pytest
from emcee.backends import Backend, HDFBackend

from posterity import Damaged, EpochMismatch, NotStorable, RunExists, open_run
from posterity._interop import import_emcee as module
from posterity._interop.import_emcee import import_emcee
from posterity._interop.importer import importer_of
from posterity.emcee import EmceeBackend
from test_emcee import NOT_IN_HDF5, assert_same
from walking import BLOBS, NDIM, NWALKERS, sampled


@pytest.fixture
def theirs(tmp_path):
    return HDFBackend(str(tmp_path / "theirs.h5"))


@pytest.mark.parametrize("blobs", sorted(BLOBS.keys() - NOT_IN_HDF5))
def test_an_imported_run_gives_what_the_file_gives(tmp_path, theirs, blobs, monkeypatch):
    """Whatever its blobs, in several epochs; and emcee's sampler goes on from it as from the file."""
    monkeypatch.setattr(module, "MAX_BYTES", 2000)
    sampled(theirs, blobs)
    told = []
    found = import_emcee(theirs.filename, tmp_path / "run", progress=lambda *done: told.append(done))
    assert (found.source, found.samples) == (theirs.filename, 20)
    assert found.epochs > 1
    assert told[-1] == (20, 20)
    assert len(told) == found.epochs
    assert_same(EmceeBackend(tmp_path / "run", read_only=True), theirs)
    memory = Backend()
    sampled(memory, blobs)
    sampled(memory, blobs, 5, start=False)
    with EmceeBackend(tmp_path / "run") as backend:
        sampled(backend, blobs, 5, start=False)
        assert_same(backend, memory, is_thorough=False)


def test_a_chain_of_another_name_and_a_file_that_was_grown(tmp_path):
    """Each chain of a file can be imported; steps that the sampler never came to aren't steps."""
    theirs = HDFBackend(str(tmp_path / "theirs.h5"), name="second", dtype=np.longdouble, compression="gzip")
    sampled(theirs, "two numbers", 5)
    theirs.grow(100, np.zeros((NWALKERS, 2)))
    with pytest.raises(KeyError, match=r"no chain 'mcmc'.*'second'"):
        import_emcee(theirs.filename, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    found = import_emcee(theirs.filename, tmp_path / "run", name="second", compression="gzip", parameters=["a", "b"])
    assert found.samples == 5
    backend = EmceeBackend(tmp_path / "run", read_only=True)
    assert backend.dtype == np.longdouble
    assert_same(backend, theirs, is_thorough=False)
    assert [parameter.name for parameter in backend.metadata.parameters["p"]] == ["a", "b"]
    assert backend.metadata.attributes["imported_from"] == "emcee"


def test_a_file_larger_than_the_memory_can_be_imported(tmp_path):
    """Some steps at a time: it takes much less memory than the file has bytes."""
    path = tmp_path / "theirs.h5"
    nsteps, nbytes = 100_000, 48_000_000
    with h5py.File(path, "w") as file:
        group = file.create_group("mcmc")
        group.attrs.update({"nwalkers": 20, "ndim": 2, "has_blobs": False, "iteration": nsteps})
        group["accepted"] = np.zeros(20)
        group["chain"] = np.broadcast_to(np.arange(float(nsteps))[:, None, None], (nsteps, 20, 2))
        group["log_prob"] = np.zeros((nsteps, 20))
    tracemalloc.start()
    try:
        import_emcee(path, tmp_path / "run", max_pending_bytes=4 << 20)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert path.stat().st_size > nbytes
    assert peak < nbytes / 2
    with open_run(tmp_path / "run") as run:
        np.testing.assert_array_equal(run.get_samples(thin=10_000)["p"][0, 0], np.arange(0, nsteps, 10_000.0))


def test_an_import_that_was_cut_off_is_not_taken_for_a_run(tmp_path, theirs, monkeypatch):
    """A sampler that went on from it would go on from the middle, with no random state."""
    monkeypatch.setattr(module, "MAX_BYTES", 2000)
    sampled(theirs)

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_emcee(theirs.filename, tmp_path / "run", progress=stop)
    with pytest.raises(EpochMismatch, match="cut off"):
        EmceeBackend(tmp_path / "run")
    with pytest.raises(RunExists):
        import_emcee(theirs.filename, tmp_path / "run")


def edit(path, change):
    with h5py.File(path, "a") as file:
        change(file["mcmc"])


def _too_many_steps(group):
    group.attrs["iteration"] = 10_000


def _no_steps(group):
    group.attrs["iteration"] = 0


def _other_walkers(group):
    group.attrs["nwalkers"] = NWALKERS + 1


def _accepted(group):
    del group["accepted"]
    group["accepted"] = np.zeros(NWALKERS - 1)


def _log_prob(group):
    del group["log_prob"]
    group["log_prob"] = np.zeros((20, NDIM + 5))


def _no_log_prob(group):
    del group["log_prob"]


def _texts(group):
    group.attrs["has_blobs"] = True
    group.create_dataset("blobs", (20, NWALKERS), h5py.string_dtype())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (_too_many_steps, Damaged, "mcmc/p has shape .* 10000 steps"),
        (_no_steps, ValueError, "no steps"),
        (_other_walkers, Damaged, "mcmc/p has shape"),
        (_accepted, Damaged, "mcmc/accepted has shape"),
        (_log_prob, Damaged, "mcmc/lp has shape"),
        (_no_log_prob, KeyError, "it has none"),
        (_texts, NotStorable, "Python objects"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_file_that_contradicts_itself_is_refused(tmp_path, theirs, change, error, message):
    """Before anything is written; the message says where."""
    sampled(theirs)
    edit(theirs.filename, change)
    with pytest.raises(error, match=message):
        import_emcee(theirs.filename, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_is_no_file_of_emcees_is_refused(tmp_path):
    """Nothing, a folder, text, half a file, an HDF5 file of others."""
    with pytest.raises(FileNotFoundError):
        import_emcee(tmp_path / "nothing.h5", tmp_path / "run")
    with pytest.raises(FileNotFoundError):
        import_emcee(tmp_path, tmp_path / "run")
    text = tmp_path / "text.h5"
    text.write_text("no numbers")
    with pytest.raises(Damaged, match="text"):
        import_emcee(text, tmp_path / "run")
    theirs = HDFBackend(str(tmp_path / "theirs.h5"))
    sampled(theirs, nsteps=50)
    half = tmp_path / "half.h5"
    whole = (tmp_path / "theirs.h5").read_bytes()
    half.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Damaged, match="half"):
        import_emcee(half, tmp_path / "run")
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["x"] = [1, 2]
    with pytest.raises(KeyError, match="it has none"):
        import_emcee(other, tmp_path / "run")
    assert importer_of(theirs.filename) is import_emcee
    with pytest.raises(ValueError, match="neither"):
        importer_of(other)
