"""Eryn's own sampler on our backend, value for value against its own backends: `tox -e eryn`."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("eryn.backends", reason="Eryn's own sampler is run by `tox -e eryn`")

from eryn.backends import Backend, HDFBackend
from eryn.state import State
from eryn_cases import CASES, NWALKERS, Jumps, Plain, Tempered

from posterity import Closed, EpochMismatch, Parameter, RunExists, RunLocked, open_run
from posterity.eryn import ErynBackend

pytestmark = pytest.mark.timeout(300)
HERE = Path(__file__).parent
GETTERS = ("get_chain", "get_inds", "get_nleaves", "get_log_like", "get_log_prior", "get_betas", "get_blobs")
ARGUMENTS = [{}, {"thin": 3, "discard": 2}, {"discard": 11}, {"discard": 50}, {"temp_index": 0}, {"thin": 12}]


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]()


def assert_same(left, right):
    assert type(left) is type(right) or isinstance(left, np.ndarray)
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same(left[key], right[key])
    elif left is not None:
        assert left.shape == right.shape
        np.testing.assert_array_equal(left, right)


def assert_same_chain(theirs, ours, *, has_betas=True):
    for name in GETTERS:
        if name != "get_betas" or has_betas:  # without temperatures Eryn's own are whatever was in memory
            for arguments in ARGUMENTS:
                assert_same(getattr(theirs, name)(**arguments), getattr(ours, name)(**arguments))
    for name in ("accepted", "swaps_accepted", "rj_accepted"):
        assert_same(getattr(theirs, name), getattr(ours, name))
    assert_same(theirs.get_log_posterior(), ours.get_log_posterior())
    assert_same(theirs.get_move_info() or {}, ours.get_move_info() or {})


def test_all_is_as_in_eryns_backend_in_memory(tmp_path, case):
    """The same seed gives the same chain and the same counts, while it is written, and read again by another backend."""
    theirs = Backend()
    case.run(theirs, 12)
    has_betas = case.ntemps > 0
    with ErynBackend(tmp_path / "run") as ours:
        case.run(ours, 12)
        assert_same_chain(theirs, ours, has_betas=has_betas)
        ours.flush()
        reader = ErynBackend(tmp_path / "run", read_only=True)
        assert_same_chain(theirs, reader, has_betas=has_betas)
        reader.close()
    assert_same_chain(theirs, ours, has_betas=has_betas)  # closed, it reads from the folder
    ours.close()
    for name in ("nwalkers", "ntemps", "rj", "nbranches", "branch_names", "ndims", "nleaves_max", "key_order", "shape"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours.move_keys == getattr(theirs, "move_keys", [])
    assert ours.reset_args == theirs.reset_args
    info = theirs.reset_kwargs.pop("info")
    assert ours.reset_kwargs == {**theirs.reset_kwargs, **info}
    assert ours.iteration == theirs.iteration == 12


def test_all_is_as_in_eryns_hdf_backend(tmp_path, case):
    """Its file has the same numbers, and what only it can do, `slice_vals`, is done as there."""
    theirs = HDFBackend(str(tmp_path / "theirs.h5"))
    case.run(theirs, 12)
    with ErynBackend(tmp_path / "run") as ours:
        case.run(ours, 6)
        ours.flush()  # some of it on disk, some in memory
        case.go_on(ours, 6)
        for name in ("get_chain", "get_inds", "get_log_like", "get_log_prior"):
            for steps in (slice(3, 7), slice(4, None, 3), 0, -1, slice(20, 30)):
                for temperature in (None, 0):
                    arguments = {"slice_vals": steps, "temp_index": temperature}
                    assert_same(getattr(theirs, name)(**arguments), getattr(ours, name)(**arguments))
            arguments = {"slice_vals": np.array([1, 5, 9]), "temp_index": 0}
            assert_same(getattr(theirs, name)(**arguments), getattr(ours, name)(**arguments))


def test_a_sampler_goes_on_as_if_it_had_never_stopped(tmp_path, case):
    """With both generators as they were, steps of a second sampler are those that the first one would have made."""
    theirs = Backend()
    case.run(theirs, 20)
    with ErynBackend(tmp_path / "run") as ours:
        case.run(ours, 9)
    with ErynBackend(tmp_path / "run") as ours:
        case.go_on(ours, 11)
        assert_same(theirs.get_chain(), ours.get_chain())
        assert_same(theirs.get_log_like(), ours.get_log_like())
        assert_same(theirs.accepted, ours.accepted)
        assert_same(theirs.rj_accepted, ours.rj_accepted)


SAMPLER = """
import sys, warnings
warnings.simplefilter("ignore")
import numpy as np
from eryn_cases import Jumps
from posterity.eryn import ErynBackend

backend, case = ErynBackend(sys.argv[1], max_step_age_s=0.05), Jumps()
if not backend.initialized:
    case.run(backend, 1)
np.random.set_state(backend.numpy_random_state)
sampler = case.sampler(backend)
for _ in sampler.sample(backend.get_last_sample(), iterations=10_000):
    print(backend.iteration, flush=True)
"""


def test_a_sampler_that_is_killed_goes_on_from_whole_steps(tmp_path):
    """After two kills in the middle of sampling the chain is that of a sampler that was never stopped."""
    for _ in range(2):
        sampler = subprocess.Popen(
            [sys.executable, "-c", SAMPLER, str(tmp_path / "run")], cwd=HERE, text=True, stdout=-1
        )
        for line in sampler.stdout:
            if int(line) % 60 == 0:
                break
        sampler.kill()
        sampler.communicate()
        assert sampler.returncode == -9
    with ErynBackend(tmp_path / "run") as ours:
        theirs, case = Backend(), Jumps()
        case.run(theirs, ours.iteration)
        assert ours.iteration > 1
        assert_same(theirs.get_chain(), ours.get_chain())
        assert_same(theirs.rj_accepted, ours.rj_accepted)


def step_of(backend, number):
    """A step of two branches, in which everything is `number`, and some leaves are missing."""
    coords = {"a": np.full((2, 4, 2, 3), number, float), "b": np.full((2, 4, 1, 1), -number, float)}
    inds = {"a": np.tile([True, False], (2, 4, 1)), "b": np.ones((2, 4, 1), bool)}
    each = np.full((2, 4), number, float)
    return State(coords, inds=inds, log_like=each, log_prior=-each, betas=np.array([1.0, 0.5]))


def begin(backend, **kwargs):
    branches = {"ndims": {"a": 3, "b": 1}, "nleaves_max": {"a": 2, "b": 1}, "branch_names": ["a", "b"]}
    backend.reset(4, ntemps=2, **{**branches, **kwargs})


def test_each_step_is_a_copy(tmp_path):
    """The sampler may hand over the same arrays again and again."""
    with ErynBackend(tmp_path / "run", store_missing_leaves=-1.0) as backend:
        begin(backend)
        state, accepted = step_of(backend, 0), np.ones((2, 4))
        for number in range(5):
            state.branches["a"].coords[...] = number
            state.log_like[...] = number
            backend.save_step(state, accepted)
        np.testing.assert_array_equal(backend.get_log_like()[:, 0, 0], np.arange(5))
        np.testing.assert_array_equal(backend.get_chain()["a"][:, 0, 0, 0, 0], np.arange(5))
        assert (backend.get_chain()["a"][:, :, :, 1] == -1.0).all()
        assert (state.branches["a"].coords == 4).all(), "the state was changed"
        np.testing.assert_array_equal(backend.accepted, np.full((2, 4), 5.0))


@pytest.mark.parametrize("blobs", [np.zeros((2, 4, 3)), np.zeros((2, 4), "f4"), np.ones((2, 4, 2, 2), "i8")])
def test_blobs_of_any_shape(tmp_path, blobs):
    """Blobs keep their shape and dtype, in the run and when it goes on; others are refused."""
    for _ in range(2):
        with ErynBackend(tmp_path / "run") as backend:
            if not backend.initialized:
                begin(backend)
            backend.grow(1, blobs)
            state = step_of(backend, 1)
            state.blobs = blobs
            backend.save_step(state, np.ones((2, 4)))
            found = backend.get_blobs()
            assert found.dtype == blobs.dtype
            np.testing.assert_array_equal(found, np.stack([blobs] * backend.iteration))
            with pytest.raises(ValueError, match="blobs of each walker"):
                backend.grow(1, np.zeros((2, 4, 9)))
            with pytest.raises(ValueError, match="inconsistent use of blobs"):
                backend.grow(1, None)


def test_anyone_reads_the_run(tmp_path):
    """`open_run` has the walkers of all temperatures as chains, the branches by name, and what their numbers mean."""
    given = {"gauss": [Parameter("amp", unit="K"), "mean"]}
    with ErynBackend(tmp_path / "run", parameters=given) as backend:
        Jumps().run(backend, 10)
        chain, inds = backend.get_chain(), backend.get_inds()
        betas = backend.get_betas()
    with open_run(tmp_path / "run") as run:
        samples = run.get_samples(pars=["p", "p_sine", "inds", "inds_sine", "ll", "lp", "beta"])
        metadata = run.metadata
    assert samples["p"].shape == (2 * NWALKERS, 3 * 2, 10)
    np.testing.assert_array_equal(samples["p"][NWALKERS], chain["gauss"][:, 1, 0].reshape(10, 6).T)
    np.testing.assert_array_equal(samples["p_sine"][3], chain["sine"][:, 0, 3].reshape(10, 6).T)
    np.testing.assert_array_equal(samples["inds_sine"][3], inds["sine"][:, 0, 3].T)
    np.testing.assert_array_equal(samples["beta"][NWALKERS, 0], betas[:, 1])
    assert metadata.chains == {"temperature": 2, "walker": NWALKERS}
    names = [parameter.name for parameter in metadata.parameters["p"]]
    assert names == ["amp_0", "mean_0", "amp_1", "mean_1", "amp_2", "mean_2"]
    assert metadata.parameters["p"][2].unit == "K"
    assert [parameter.name for parameter in metadata.parameters["p_sine"]][:2] == ["sine_0_0", "sine_1_0"]


def test_reset_starts_empty_for_other_shapes(tmp_path):
    """A run that is reset takes another ensemble; what was there is gone, also for who opens the folder next."""
    with ErynBackend(tmp_path / "run") as backend:
        Tempered().run(backend, 5)
        backend.reset_base()
        assert backend.initialized
        assert backend.iteration == 0
        with pytest.raises(AttributeError, match="no steps yet"):
            backend.get_chain()
        begin(backend, rj=True, note="kept")
        backend.save_step(step_of(backend, 1), np.ones((2, 4)), rj_accepted=np.zeros((2, 4)))
    with ErynBackend(tmp_path / "run") as backend:
        assert backend.shape == {"a": (2, 4, 2, 3), "b": (2, 4, 1, 1)}
        assert backend.rj
        assert backend.note == "kept"
        assert backend.iteration == 1


def test_a_run_that_was_reset_and_got_no_step_begins_again(tmp_path):
    """The folder holds an empty run then; who opens it next isn't refused. A run that somebody else began is."""
    with ErynBackend(tmp_path / "run") as backend:
        Tempered().run(backend, 3)
        backend.reset_base()
    with ErynBackend(tmp_path / "run") as backend, ErynBackend(tmp_path / "other") as late:
        assert not backend.initialized
        Tempered().run(backend, 4)
        assert backend.iteration == 4
        with ErynBackend(tmp_path / "other") as first:
            Tempered().run(first, 2)
        with pytest.raises(RunExists, match="somebody else"):
            begin(late)
    with ErynBackend(tmp_path / "run") as backend:
        assert backend.iteration == 4


def test_a_run_can_be_replaced(tmp_path):
    """`mode="w"` begins anew, at the first write: until then the sampler finds nothing, and what is there stays."""
    with ErynBackend(tmp_path / "run") as backend:
        Tempered().run(backend, 3)
    with ErynBackend(tmp_path / "run", mode="w", dtype="f4") as backend:
        assert not backend.initialized
        with pytest.raises(AttributeError, match="no steps yet"):
            backend.get_chain()
        begin(backend)
    with ErynBackend(tmp_path / "run", mode="w") as backend:
        with open_run(tmp_path / "run") as run:
            assert run.metadata.chains == {"temperature": 3, "walker": NWALKERS}
        Jumps().run(backend, 4)
        assert backend.iteration == 4
    with open_run(tmp_path / "run") as run:
        assert run.metadata.chains == {"temperature": 2, "walker": NWALKERS}
        assert run.get_samples()["p"].shape[2] == 4


def test_a_closed_backend_removes_nothing(tmp_path):
    """Others may have added steps since: to begin again the folder is opened again."""
    with ErynBackend(tmp_path / "run") as backend:
        Tempered().run(backend, 3)
    with ErynBackend(tmp_path / "run") as other:
        Tempered().go_on(other, 2)
    with pytest.raises(Closed, match="open it again"):
        backend.reset_base()
    assert backend.iteration == 5


def test_a_copy_only_reads(tmp_path):
    """It has the name and the number for missing leaves that the backend was made with."""
    with ErynBackend(tmp_path, "run", store_missing_leaves=-1.0) as backend:
        Tempered().run(backend, 3)
        backend.flush()
        other = pickle.loads(pickle.dumps(backend))
        assert (other.read_only, other.name, other.store_missing_leaves) == (True, "run", -1.0)
        assert_same_chain(backend, other)
        other.close()


def test_a_backend_that_only_reads(tmp_path):
    """It follows the run that another one writes, and changes nothing."""
    reader = ErynBackend(tmp_path / "run", read_only=True)
    assert not reader.initialized
    with ErynBackend(tmp_path / "run") as backend:
        Tempered().run(backend, 3)
        backend.flush()
        assert reader.iteration == 3
        with pytest.raises(RuntimeError, match="only reads"):
            reader.grow(1, None)
        with pytest.raises(RuntimeError, match="only reads"):
            begin(reader)
        with pytest.raises(RunLocked):
            ErynBackend(tmp_path / "run")
        case = Tempered()
        case.go_on(backend, 2)
        backend.flush()
        assert reader.iteration == 5
        assert_same(reader.accepted, backend.accepted)
    reader.close()


def test_what_does_not_fit_is_refused(tmp_path):
    """A state of another shape, jumps without `rj`, another dtype, a name or a branch that isn't there."""
    with ErynBackend(tmp_path / "run") as backend:
        begin(backend)
        state, accepted = step_of(backend, 1), np.ones((2, 4))
        with pytest.raises(ValueError, match="inconsistent use of rj_accepted"):
            backend.save_step(state, accepted, rj_accepted=accepted)
        with pytest.raises(ValueError, match="acceptance size"):
            backend.save_step(state, np.ones(4))
        with pytest.raises(ValueError, match="told of no moves"):
            backend.save_step(state, accepted, moves_accepted_fraction={"x": accepted})
        assert backend.iteration == 0
        backend.save_step(state, accepted)
        with pytest.raises(KeyError, match="there are a, b"):
            backend.get_chain(branch_names="c")
        assert backend.get_chain(branch_names="b").keys() == {"b"}
        with pytest.raises(IndexError):
            backend.get_chain(temp_index=2)
        with pytest.raises(ValueError, match="for the branches"):
            begin(backend, ndims={"a": 3, "c": 1})
    with pytest.raises(EpochMismatch, match="dtype"):
        ErynBackend(tmp_path / "run", dtype="f4")


def test_eryns_diagnostics_work(tmp_path):
    """What Eryn's class computes from the chain is what it computes in memory."""
    theirs, case = Backend(), Plain()
    case.run(theirs, 60)
    with ErynBackend(tmp_path / "run") as ours:
        case.run(ours, 60)
        assert_same(theirs.get_autocorr_time(), ours.get_autocorr_time())
        assert ours.get_autocorr_thin_burn() == theirs.get_autocorr_thin_burn()
        rhat = [backend.get_gelman_rubin_convergence_diagnostic(doprint=False) for backend in (theirs, ours)]
        np.testing.assert_array_equal(rhat[0]["model_0"][0], rhat[1]["model_0"][0])
        assert_same(theirs.get_info()["samples"], ours.get_info()["samples"])
        tempered = Backend(), ErynBackend(tmp_path / "tempered")
        for backend in tempered:
            Tempered().run(backend, 20)
        assert tempered[0].get_evidence_estimate() == tempered[1].get_evidence_estimate()
        tempered[1].close()


def test_every_name_of_eryns_backends_is_there(tmp_path):
    """All that is public in either of Eryn's, but the arrays that only its backend in memory has: get_... gives those."""
    theirs = Backend()
    Jumps().run(theirs, 2)
    in_memory = {"chain", "inds", "log_like", "log_prior", "betas", "blobs"}
    wanted = {name for name in [*dir(theirs), *dir(HDFBackend)] if not name.startswith("_")} - in_memory
    with ErynBackend(tmp_path / "run") as ours:
        Jumps().run(ours, 2)
        assert wanted - set(dir(ours)) == set()
