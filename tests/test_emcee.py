"""`EmceeBackend`: what emcee's own backends give, it gives; and what they can't: a kill, a reader, a second writer."""

import copy
import itertools
import os
import pickle
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import emcee
import numpy as np
import pytest
from emcee.backends import Backend, HDFBackend

from posterity import (
    Closed,
    DefaultBackend,
    EpochMismatch,
    Forked,
    NotStorable,
    RunLocked,
    UnknownOption,
    open_run,
)
from posterity.emcee import EmceeBackend
from walking import BLOBS, NDIM, NWALKERS, STEP_BYTES, log_prob, sampled, vectorized, with_text, with_two

NOT_IN_HDF5 = {"text"}  # h5py has no type for it


def assert_same_array(got, expected):
    if expected is None:
        assert got is None
        return
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got, expected)


def assert_same_random_state(got, expected):
    assert got[0] == expected[0]
    np.testing.assert_array_equal(got[1], expected[1])
    assert tuple(got[2:]) == tuple(expected[2:])


def assert_same(got, expected, *, is_thorough=True):
    """Every method and property that a backend of emcee's has gives the same."""
    assert got.initialized
    assert got.shape == expected.shape
    assert got.iteration == expected.iteration
    assert got.has_blobs() == expected.has_blobs()
    assert_same_array(got.accepted, np.asarray(expected.accepted, float))
    assert_same_random_state(got.random_state, expected.random_state)
    n = expected.iteration
    thins, discards = ([1, 3, n], [0, 4, n - 1, n + 3]) if is_thorough else ([2], [3])
    for thin, discard, flat in itertools.product(thins, discards, [False, True]):
        asked = {"thin": thin, "discard": discard, "flat": flat}
        assert_same_array(got.get_chain(**asked), expected.get_chain(**asked))
        assert_same_array(got.get_log_prob(**asked), expected.get_log_prob(**asked))
        assert_same_array(got.get_blobs(**asked), expected.get_blobs(**asked))
    last, other = got.get_last_sample(), expected.get_last_sample()
    assert_same_array(last.coords, other.coords)
    assert_same_array(last.log_prob, other.log_prob)
    assert_same_array(last.blobs, other.blobs)
    assert_same_random_state(last.random_state, other.random_state)
    for discard, thin in itertools.product([0, 3], [1, 2]) if n >= 20 else ():
        np.testing.assert_array_equal(
            got.get_autocorr_time(discard=discard, thin=thin, tol=0, quiet=True),
            expected.get_autocorr_time(discard=discard, thin=thin, tol=0, quiet=True),
        )


# ---- the same as emcee's own -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("blobs", BLOBS)
def test_everything_is_as_with_emcees_own_backends(tmp_path, blobs):
    """Whatever the blobs: while steps are gathered, in several epochs, closed, and opened again."""
    memory = Backend()
    sampled(memory, blobs)
    with EmceeBackend(tmp_path / "one") as whole:
        sampled(whole, blobs)
        assert_same(whole, memory)
    assert_same(whole, memory, is_thorough=False)
    with EmceeBackend(tmp_path / "many", max_epoch_bytes=7 * STEP_BYTES) as cut:
        sampled(cut, blobs)
        assert_same(cut, memory)
    with EmceeBackend(tmp_path / "many") as again:
        assert_same(again, memory)
    assert_same(EmceeBackend(tmp_path / "many", read_only=True), memory, is_thorough=False)
    with open_run(tmp_path / "many") as run, run.snapshot() as snapshot:
        assert snapshot.nepochs > 1
    if blobs not in NOT_IN_HDF5:
        theirs = HDFBackend(str(tmp_path / "theirs.h5"))
        sampled(theirs, blobs)
        assert_same(again, theirs, is_thorough=False)


@pytest.mark.parametrize("dtype", [np.float32, np.longdouble])
def test_a_dtype_is_kept(tmp_path, dtype):
    """That of the run, whoever opens it; a reset makes a new run with the one that was asked for."""
    memory = Backend(dtype=dtype)
    sampled(memory)
    with EmceeBackend(tmp_path, dtype=dtype) as backend:
        assert backend.dtype_set
        sampled(backend)
        assert_same_array(backend.get_chain(), memory.get_chain())
        assert_same_array(backend.get_log_prob(), memory.get_log_prob())
    with EmceeBackend(tmp_path) as backend:
        assert backend.dtype == dtype
        assert backend.dtype_set
        assert_same_array(backend.get_chain(), memory.get_chain())
        backend.reset(NWALKERS, NDIM)
        assert backend.dtype == float


def test_moves_and_thinning_are_the_samplers_own_matter(tmp_path):
    """What the sampler proposes and how often it saves changes nothing in what is saved."""
    moves = [(emcee.moves.DEMove(), 0.8), (emcee.moves.DESnookerMove(), 0.2)]
    memory = Backend()
    sampled(memory, nsteps=4, moves=moves).run_mcmc(None, 5, thin_by=3)
    with EmceeBackend(tmp_path) as backend:
        sampled(backend, nsteps=4, moves=moves).run_mcmc(None, 5, thin_by=3)
        assert_same(backend, memory)


def test_a_vectorized_likelihood(tmp_path):
    """One call for all walkers."""
    found = []
    for backend in (Backend(), EmceeBackend(tmp_path)):
        np.random.seed(1)  # noqa: NPY002
        sampler = emcee.EnsembleSampler(NWALKERS, NDIM, vectorized, backend=backend, vectorize=True)
        sampler.run_mcmc(np.random.randn(NWALKERS, NDIM), 10)  # noqa: NPY002
        found.append(backend)
    assert_same(found[1], found[0])
    found[1].close()


def test_blobs_are_used_always_or_never(tmp_path):
    """As with emcee's: a run with blobs takes no steps without, nor the other way round, nor of another shape."""
    with EmceeBackend(tmp_path / "with") as backend:
        sampled(backend, "two numbers")
        with pytest.raises(ValueError, match="inconsistent use of blobs"):
            sampled(backend, "none")
        with pytest.raises(ValueError, match=r"shape \(2, 3\).*\(2,\)"):
            sampled(backend, "arrays")
        assert backend.iteration == 20
    with EmceeBackend(tmp_path / "without") as backend:
        sampled(backend, "none")
        with pytest.raises(ValueError, match="inconsistent use of blobs"):
            sampled(backend, "two numbers")
        assert backend.get_blobs() is None


def test_steps_that_do_not_fit_are_refused(tmp_path):
    """With emcee's own words, and none of them is saved."""
    with EmceeBackend(tmp_path) as backend:
        backend.reset(NWALKERS, NDIM)
        accepted = np.ones(NWALKERS, bool)
        p, lp = np.zeros((NWALKERS, NDIM)), np.zeros(NWALKERS)
        for bad in (emcee.State(p[1:], lp), emcee.State(p, lp[1:]), emcee.State(p, lp, blobs=lp)):
            with pytest.raises(ValueError, match=r"invalid|unexpected|inconsistent"):
                backend.save_step(bad, accepted)
        with pytest.raises(ValueError, match="acceptance"):
            backend.save_step(emcee.State(p, lp), accepted[1:])
        assert backend.iteration == 0


def test_objects_as_blobs_are_refused_before_the_first_step(tmp_path):
    """They can't be read again without running code; the message says what to do."""
    with EmceeBackend(tmp_path) as backend, pytest.raises(NotStorable, match="blobs_dtype"):
        sampler = emcee.EnsembleSampler(NWALKERS, NDIM, with_text, backend=backend)
        sampler.run_mcmc(np.random.default_rng(1).normal(size=(NWALKERS, NDIM)), 5)


def test_nothing_can_be_read_before_the_first_step(tmp_path):
    """As with emcee's: an AttributeError that says what to do. A reset says the shape."""
    with EmceeBackend(tmp_path) as backend:
        assert not backend.initialized
        calls = [backend.get_chain, backend.get_log_prob, backend.get_blobs, backend.get_last_sample, backend.has_blobs]
        calls += [lambda: backend.shape, lambda: backend.iteration, lambda: backend.accepted]
        for call in calls:
            with pytest.raises(AttributeError, match="store=True"):
                call()
        assert backend.random_state is None
        backend.reset(NWALKERS, NDIM)
        assert backend.initialized
        assert (backend.shape, backend.iteration, backend.has_blobs()) == ((NWALKERS, NDIM), 0, False)
        assert_same_array(backend.accepted, np.zeros(NWALKERS))
        for call in calls[:4]:
            with pytest.raises(AttributeError, match="store=True"):
                call()
    assert not list(tmp_path.iterdir()), "nothing is written before the first step"


def test_what_is_asked_for_must_be_there(tmp_path):
    """Another name, or a thin that isn't one, is refused."""
    with EmceeBackend(tmp_path) as backend:
        sampled(backend)
        with pytest.raises(KeyError, match="'accepted'"):
            backend.get_value("accepted")
        with pytest.raises(ValueError, match="thin"):
            backend.get_chain(thin=0)


def test_what_is_read_is_the_callers_own(tmp_path):
    """Changing it changes no step, gathered or stored."""
    with EmceeBackend(tmp_path, max_epoch_bytes=15 * STEP_BYTES) as backend:
        sampled(backend)
        before = backend.get_chain().copy()
        for _ in range(2):
            backend.get_chain()[...] = 0
            backend.get_last_sample().coords[...] = 0
            backend.accepted[...] = -1
        assert_same_array(backend.get_chain(), before)
        assert np.all(backend.accepted >= 0)


# ---- going on --------------------------------------------------------------------------------------------------------


SCRIPT = """
import os, signal, sys
sys.path.insert(0, {here!r})
from posterity.emcee import EmceeBackend
import walking as t
outdir = sys.argv[1]
"""


def run_script(folder, code, *, expected=0):
    text = SCRIPT.format(here=str(Path(__file__).parent)) + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore:.*multi-threaded:DeprecationWarning", "-c", text, str(folder)],
        capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert done.returncode == expected, done.stderr
    return done.stdout


@pytest.mark.parametrize("blobs", ["none", "one number", "fields of numbers", "fields with text"])
def test_a_sampler_goes_on_as_if_it_had_not_stopped(tmp_path, blobs):
    """The random state is in the run: the same steps come, bit for bit."""
    memory = Backend()
    sampled(memory, blobs, 20)
    with EmceeBackend(tmp_path) as backend:
        sampled(backend, blobs, 7)
    np.random.seed(3)  # noqa: NPY002  # it has gone on for others since
    with EmceeBackend(tmp_path) as backend:
        sampled(backend, blobs, 13, start=False)
        assert_same(backend, memory)


def test_a_killed_sampler_goes_on(tmp_path):
    """SIGKILL in the middle: what is there is a prefix of what would have been, and it goes on to the same end."""
    memory = Backend()
    sampled(memory, nsteps=400)
    code = """
    backend = EmceeBackend(outdir, max_epoch_bytes=10 * t.STEP_BYTES, epochs_per_file=4)
    save_step, n = backend.save_step, 0
    def killing(state, accepted):
        global n
        save_step(state, accepted)
        n += 1
        if n == 150:
            backend.flush()
        if n == 200:
            os.kill(os.getpid(), signal.SIGKILL)
    backend.save_step = killing
    t.sampled(backend, nsteps=400)
    """
    run_script(tmp_path, code, expected=-signal.SIGKILL)
    with EmceeBackend(tmp_path) as backend:
        nsteps = backend.iteration
        assert 150 <= nsteps <= 200, "all that was flushed is there"
        assert_same_array(backend.get_chain(), memory.get_chain()[:nsteps])
        sampled(backend, nsteps=400 - nsteps, start=False)
        assert_same(backend, memory, is_thorough=False)


def test_a_script_that_does_not_close_loses_nothing(tmp_path):
    """At its end what is gathered is written, also after an exception; another process goes on where it ended."""
    memory = Backend()
    sampled(memory, "fields with text")
    code = """
    backend = EmceeBackend(outdir)
    t.sampled(backend, "fields with text", nsteps=12)
    raise SystemExit(5)
    """
    run_script(tmp_path, code, expected=5)
    with EmceeBackend(tmp_path) as backend:
        assert backend.iteration == 12
        sampled(backend, "fields with text", 8, start=False)
        assert_same(backend, memory)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_pool_of_processes_computes(tmp_path, method):
    """The workers compute, and the backend stays where it is; its lock isn't theirs, and they end without a word."""
    memory = Backend()
    sampled(memory, "two numbers", 5)
    code = f"""
    import multiprocessing, sys
    sys.path.insert(0, {str(Path(__file__).parent)!r})
    import walking  # a worker needs no more
    if __name__ == "__main__":
        from posterity.emcee import EmceeBackend
        with EmceeBackend(sys.argv[1]) as backend, multiprocessing.get_context({method!r}).Pool(2) as pool:
            walking.sampled(backend, "two numbers", 5, pool=pool)
        with EmceeBackend(sys.argv[1]) as backend:
            assert backend.iteration == 5
    """
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(code))
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "run")], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stderr
    assert_same(EmceeBackend(tmp_path / "run", read_only=True), memory)


def test_a_sampler_that_is_reset_starts_anew(tmp_path):
    """What is there goes, gathered and stored; the next steps are a run of their own, of another shape if need be."""
    with EmceeBackend(tmp_path, max_epoch_bytes=15 * STEP_BYTES) as backend:
        sampler = sampled(backend, "two numbers")
        sampler.reset()
        assert backend.iteration == 0
        assert not backend.has_blobs()
        assert backend.random_state is None
        memory = Backend()
        sampled(memory)
        sampled(backend)
        assert_same(backend, memory)
        backend.reset(4, 1)
        assert backend.shape == (4, 1)
    assert not EmceeBackend(tmp_path, read_only=True).initialized


def test_a_sampler_of_another_shape_is_refused(tmp_path):
    """By emcee itself, which asks for the shape."""
    with EmceeBackend(tmp_path) as backend:
        sampled(backend)
    with EmceeBackend(tmp_path) as backend, pytest.raises(ValueError, match="shape"):
        emcee.EnsembleSampler(NWALKERS + 2, NDIM, log_prob, backend=backend)


def test_a_run_can_be_replaced(tmp_path):
    """`mode="w"` begins anew, at the first write; `mode="x"` refuses."""
    with EmceeBackend(tmp_path) as backend:
        sampled(backend, "two numbers", seed=2)
    with pytest.raises(FileExistsError):
        EmceeBackend(tmp_path, mode="x")
    memory = Backend()
    sampled(memory)
    with EmceeBackend(tmp_path, mode="w") as backend:
        assert not backend.initialized
        sampled(backend)
    assert_same(EmceeBackend(tmp_path, read_only=True), memory)


# ---- burned steps ----------------------------------------------------------------------------------------------------


def test_burned_steps_are_discarded(tmp_path):
    """They count as steps and are left out of what is read; the last one can be gone on from all the same."""
    memory = Backend()
    sampled(memory, "fields with text")
    with EmceeBackend(tmp_path, burn=6, max_epoch_bytes=4 * STEP_BYTES) as backend:
        sampled(backend, "fields with text")
        for thin, discard in itertools.product([1, 3], [0, 4, 9]):
            wanted = [i for i in range(20)[discard + thin - 1 :: thin] if i >= 6]
            assert_same_array(backend.get_chain(thin=thin, discard=discard), memory.get_chain()[wanted])
            assert_same_array(backend.get_blobs(thin=thin, discard=discard), memory.get_blobs()[wanted])
        assert backend.iteration == 20
    with EmceeBackend(tmp_path, burn=20) as backend:
        assert backend.get_chain().shape == (0, NWALKERS, NDIM)
        sampled(backend, "fields with text", 5, start=False)
        sampled(memory, "fields with text", 5, start=False)
        assert_same_array(backend.get_chain(), memory.get_chain()[20:])
        assert_same_random_state(backend.random_state, memory.random_state)


# ---- others who read, and who write ----------------------------------------------------------------------------------


def test_a_run_that_is_only_read_is_live(tmp_path):
    """It needn't be there yet, shows what is on disk, and can't be written to; emcee's sampler may have it, too."""
    reader = EmceeBackend(tmp_path, read_only=True)
    assert not reader.initialized
    with EmceeBackend(tmp_path, max_step_age_s=0.0) as backend:
        sampled(backend, "two numbers", 5)
        backend.flush()
        assert_same(reader, backend)
        sampled(backend, "two numbers", 3, start=False)
        backend.flush(publish=True)
        assert_same(reader, backend)
        with pytest.raises(RuntimeError, match="read_only"):
            reader.reset(NWALKERS, NDIM)
        with pytest.raises(RuntimeError, match="read_only"):
            reader.grow(1, None)
        with pytest.raises(RuntimeError, match="read_only"):
            reader.save_step(backend.get_last_sample(), np.ones(NWALKERS, bool))
        with pytest.raises(RuntimeError, match="read_only"):
            sampled(reader, "two numbers")
        sampler = emcee.EnsembleSampler(NWALKERS, NDIM, with_two, backend=reader)
        assert_same_array(sampler.get_chain(), backend.get_chain())
        backend.reset(NWALKERS, NDIM)
    assert not reader.initialized
    reader.close()
    reader.close()


def test_a_step_is_on_disk_in_time(tmp_path):
    """Nobody calls anything, no other step comes: another process sees it."""
    backend = EmceeBackend(tmp_path, max_step_age_s=0.1)
    sampled(backend, nsteps=1)
    with open_run(tmp_path, wait_s=20) as run:
        assert run.get_samples()["p"].shape == (NWALKERS, NDIM, 1)
    backend.close()


def test_the_run_is_one_like_any_other(tmp_path):
    """Walkers are chains; everything that reads runs reads it, blobs of numbers by their names."""
    with EmceeBackend(tmp_path, max_epoch_bytes=6 * STEP_BYTES) as backend:
        sampled(backend, "fields of numbers")
        chain, log_probs, blobs = backend.get_chain(), backend.get_log_prob(), backend.get_blobs()
        accepted, random_state = backend.accepted, backend.random_state
    with open_run(tmp_path) as run:
        samples = run.get_samples(pars=["p", "lp", "blobs.log_prior", "blobs.mean"])
        np.testing.assert_array_equal(samples["p"], chain.transpose(1, 2, 0))
        np.testing.assert_array_equal(samples["lp"][:, 0], log_probs.T)
        np.testing.assert_array_equal(samples["blobs.log_prior"][:, 0], blobs["log_prior"].T)
        np.testing.assert_array_equal(samples["blobs.mean"][:, 0], blobs["mean"].T)
        assert samples["blobs.mean"].dtype == np.int32
        epoch = run.load()
        np.testing.assert_array_equal(epoch.last["p"], chain[-1])
        assert_same_random_state(epoch.state["random_state"], random_state)
        stats = run.get_stats()
        assert len(stats) > 1
        np.testing.assert_array_equal(sum(epoch["accepted"] for epoch in stats.values()), accepted)


def test_a_run_becomes_a_tree_for_arviz(tmp_path):
    """Parameters by their names, blobs beside them, and the log-probability among what samplers tell."""
    with EmceeBackend(tmp_path, parameters=["m", "b"]) as backend:
        chain = sampled(backend, "one number").get_chain()
    with open_run(tmp_path) as run:
        tree = run.to_datatree()
    assert tree["posterior"]["m"].dims == ("chain", "draw")
    np.testing.assert_array_equal(tree["posterior"]["m"], chain[:, :, 0].T)
    assert dict(tree["posterior"]["blobs"].sizes) == {"chain": NWALKERS, "draw": 20}
    np.testing.assert_array_equal(tree["sample_stats"]["lp"], backend.get_log_prob().T)


def test_two_writers_are_refused(tmp_path):
    """The second one hears who holds the run, and what is there is left as it is."""
    with EmceeBackend(tmp_path) as backend:
        sampled(backend, nsteps=3)
        backend.flush()
        with pytest.raises(RunLocked, match=r"test_emcee\.py"):
            EmceeBackend(tmp_path)
        assert backend.iteration == 3


def test_a_run_of_others_is_refused(tmp_path):
    """Epochs of another sampler aren't taken for steps, nor removed; the folder is free again."""
    with DefaultBackend(outdir=tmp_path) as backend:
        backend.ingest({"samples": {"p": np.zeros((NWALKERS, NDIM, 5))}})
    for _ in range(2):
        with pytest.raises(EpochMismatch, match=f"{tmp_path.name} holds a run that no EmceeBackend wrote"):
            EmceeBackend(tmp_path)
    with pytest.raises(EpochMismatch, match="no EmceeBackend wrote"):
        EmceeBackend(tmp_path, read_only=True).get_chain()


def test_a_copy_only_reads(tmp_path):
    """Pickled or copied, as a part of a sampler too: there is one writer."""
    with EmceeBackend(tmp_path) as backend:
        sampler = sampled(backend, "two numbers")
        backend.flush()
        for other in (pickle.loads(pickle.dumps(sampler)).backend, copy.deepcopy(backend)):
            assert other.read_only
            assert_same(other, backend, is_thorough=False)


@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # JAX's, if another test has imported it
def test_a_forked_child_is_refused(tmp_path):
    """It can neither save nor read through its copy, and leaving the block closes nothing."""
    with EmceeBackend(tmp_path) as backend:
        sampler = sampled(backend, nsteps=3)
        child = os.fork()
        if not child:
            refused = 0
            for call in (lambda: sampler.run_mcmc(None, 1), backend.get_chain, backend.flush, backend.close):
                try:
                    call()
                except Forked:
                    refused += 1
            backend.__exit__(None, None, None)
            os._exit(refused)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 4
        sampled(backend, nsteps=2, start=False)
    assert EmceeBackend(tmp_path, read_only=True).iteration == 5


def test_a_closed_backend_can_be_read_and_not_written(tmp_path):
    """As with a file that is there: emcee's sampler goes on giving its results after the block."""
    with EmceeBackend(tmp_path) as backend:
        sampler = sampled(backend, "two numbers")
    assert sampler.get_chain().shape == (20, NWALKERS, NDIM)
    assert sampler.acceptance_fraction.shape == (NWALKERS,)
    with pytest.raises(Closed, match="open it again"):
        sampler.run_mcmc(None, 1)
    for call in (backend.flush, lambda: backend.status):
        with pytest.raises(Closed):
            call()
    backend.close()


# ---- how it is opened ------------------------------------------------------------------------------------------------


def test_names_are_folders(tmp_path):
    """Several chains side by side, as several groups of one HDF5 file were; each is a run of its own."""
    with EmceeBackend(tmp_path, "first") as first, EmceeBackend(tmp_path, name="second") as second:
        sampled(first, nsteps=3)
        sampled(second, nsteps=4)
        first.reset(NWALKERS, NDIM)
        assert second.iteration == 4
        assert first.folder == tmp_path / "first"
        second.flush()
        assert EmceeBackend(second.filename, second.name, read_only=True).iteration == 4
        assert second.name == "second"
    assert EmceeBackend(tmp_path / "second", read_only=True).iteration == 4
    for bad in ("", ".hidden", "a/b", ".."):
        with pytest.raises(ValueError, match="plain, visible"):
            EmceeBackend(tmp_path, bad)


@pytest.mark.parametrize("options", [{"compression": "gzip", "compression_opts": 4}, {"compression": "auto"}])
def test_a_run_can_be_compressed(tmp_path, options):
    """With the names that `HDFBackend` has for it."""
    memory = Backend()
    sampled(memory, "two numbers", 200)
    with EmceeBackend(tmp_path, **options) as backend:
        assert (backend.compression, backend.compression_opts) == (
            options["compression"],
            options.get("compression_opts"),
        )
        sampled(backend, "two numbers", 200)
    assert_same(EmceeBackend(tmp_path, read_only=True), memory, is_thorough=False)


def test_options_are_checked(tmp_path):
    """Wrong ones are errors, and nothing is left open."""
    with pytest.raises(UnknownOption, match="max_pending_bytes"):
        EmceeBackend(tmp_path, max_pending_byte=1)
    with pytest.raises(TypeError, match="on_full"):
        EmceeBackend(tmp_path, read_only=True, on_full="raise")
    with pytest.raises(ValueError, match="max_age_s"):
        EmceeBackend(tmp_path, max_step_age_s=-1)
    with pytest.raises(TypeError, match="compression"):
        EmceeBackend(tmp_path, compression="lzf")


def test_an_hdf5_file_is_no_run(tmp_path):
    """Who gives the file of an `HDFBackend` hears how it becomes one; and a run is no file to open."""
    theirs = tmp_path / "chain.h5"
    sampled(HDFBackend(str(theirs)), nsteps=3)
    with pytest.raises(NotADirectoryError, match="import_emcee"):
        EmceeBackend(theirs)
    with EmceeBackend(tmp_path / "run") as backend, pytest.raises(OSError, match="open_run"):
        backend.open("a")


def test_it_shows_what_it_is(tmp_path):
    """Its folder and what its writer does."""
    with EmceeBackend(tmp_path / "run") as backend:
        sampled(backend, nsteps=3)
        assert "run: running" in repr(backend)
        backend.flush()
        assert backend.status.samples == 3
    assert "only read" in repr(backend)


def test_without_emcee_the_error_names_the_extra(tmp_path):
    """Importing the backend says what to install."""
    code = "import sys; sys.modules['emcee'] = None\nimport posterity.emcee"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "MissingExtra: EmceeBackend needs the package emcee: pip install 'posterity[emcee]'" in done.stderr
