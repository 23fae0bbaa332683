"""The seed's own sampler on our backend, value for value; needs jexplore and JAX: `tox -e jexplore`."""

from pathlib import Path

import numpy as np
import pytest

from posterity import DefaultBackend, Epoch, read_epoch

jexplore = pytest.importorskip("jexplore.backends")

import jax  # noqa: E402  # only there with jexplore
import jax.numpy as jnp  # noqa: E402
from jexplore.sampler import JaxSampler, Steps  # noqa: E402
from jexplore.sampling.mh import EpochMH, SamplingMH  # noqa: E402
from jexplore.steps import Stretch  # noqa: E402

jax.config.update("jax_enable_x64", True)
NWALKER, TEMPS, DIM, NITERS, NEPOCH = 4, (1.0, 2.0), 3, 20, 3


def log_likelihood(p):
    return -0.5 * jnp.sum(p**2)


def log_prior(p):
    return 0.0 * p[0]


@pytest.fixture(scope="module")
def sampling():
    return SamplingMH(NWALKER, jnp.array(TEMPS), log_likelihood, log_prior, dim=DIM)


def sampled(sampling, backend):
    """Some epochs of a run of `get_sampler`, always the same ones."""
    start = jax.random.normal(jax.random.key(1), (NWALKER * len(TEMPS), DIM))
    sampler = sampling.get_sampler(backend=backend)
    sampler.run(sampling.get_epoch(start), NITERS, nepoch=NEPOCH, seed=3)
    return backend


@pytest.fixture
def theirs(sampling, tmp_path):
    folder = tmp_path / "theirs"
    folder.mkdir()
    backend = sampled(sampling, jexplore.DefaultBackend(burn=15, outdir=str(folder)))
    backend.folder = folder
    return backend


@pytest.fixture
def ours(sampling, tmp_path):
    with DefaultBackend(burn=15, outdir=tmp_path / "ours") as backend:
        sampled(sampling, backend)
        backend.flush(publish=True)
        yield backend


def files(folder):
    return sorted(Path(folder).glob("*.h5"))


def assert_equal(left, right, path=""):
    """Equal names, shapes, values; a 0-d array may be a number."""
    if isinstance(left, dict):
        assert left.keys() == right.keys(), path
        for name in left:
            assert_equal(left[name], right[name], f"{path}/{name}")
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right), path
        for i, (a, b) in enumerate(zip(left, right, strict=True)):
            assert_equal(a, b, f"{path}/{i}")
    else:
        np.testing.assert_array_equal(np.asarray(left), np.asarray(right), err_msg=path)


def test_the_sampler_runs_unchanged_and_gives_the_same_samples(theirs, ours):
    """`get_sampler(backend=...)` and `run` on our backend give, bit for bit, what they give on jexplore's."""
    names = ["p", "ll", "lp"]
    assert_equal(theirs.get_samples(pars=names), ours.get_samples(pars=names))
    flat = {"burn": 3, "thin": 1, "flatten": True, "mask": np.arange(8) < NWALKER}
    assert_equal(theirs.get_samples(**flat), ours.get_samples(**flat))


def test_epochs_are_the_same_value_for_value(theirs, ours):
    """Each epoch that is left, with its covariances, cycle, sampling, class and stats."""
    for index in range(1, NEPOCH):
        assert_equal(theirs.get(index), ours.get(index))


def test_the_stats_are_the_same(theirs, ours):
    """`get_stats` gives the same dict."""
    listed = list(range(1, NEPOCH))
    assert_equal(theirs.get_stats(epochs=listed), ours.get_stats(epochs=listed))


def test_jexplore_reads_our_files(theirs, ours):
    """jexplore's `read_epoch` gives the same from our files as from its own."""
    for mine, other in zip(files(ours._service.disk.folder), files(theirs.folder), strict=True):
        assert_equal(jexplore.DefaultBackend.read_epoch(str(other)), jexplore.DefaultBackend.read_epoch(str(mine)))


def test_we_read_jexplores_files(theirs, ours):
    """Our `read_epoch` gives the same from jexplore's files as from ours."""
    for mine, other in zip(files(ours._service.disk.folder), files(theirs.folder), strict=True):
        assert_equal(read_epoch(other), read_epoch(mine))


def test_jexplore_loads_epochs_from_our_files(ours):
    """jexplore's `load_epoch` makes an epoch of its own class from one of our files."""
    epoch = jexplore.DefaultBackend.load_epoch(str(files(ours._service.disk.folder)[-1]), NEPOCH - 1, EpochMH)
    assert isinstance(epoch, EpochMH)


def test_load_gives_jexplores_epoch_and_the_sampler_continues_from_it(sampling, ours, tmp_path):
    """`load` finds the epoch's class, which is imported, and sampling goes on in the reopened run."""
    ours.close()
    with DefaultBackend(outdir=tmp_path / "ours") as backend:
        epoch = backend.load()
        assert type(epoch) is EpochMH
        sampler = JaxSampler(sampling, Steps([{Stretch(permute=True).builder: 1.0}]), backend)
        sampler.run(epoch, 10, nepoch=2, seed=1)
        assert backend.get_samples()["p"].shape == (NWALKER * len(TEMPS), DIM, NITERS * NEPOCH - 15 + 20)


def test_a_run_of_jexplores_is_taken_over_by_path(theirs, tmp_path):
    """`ingest(path)` takes epochs over from jexplore's files."""
    with DefaultBackend(outdir=tmp_path / "taken") as backend:
        for path in files(theirs.folder):
            backend.ingest(path)
        assert_equal(theirs.get_samples(), backend.get_samples())


def test_an_epoch_that_sits_on_a_device_can_be_donated_after_ingest(tmp_path):
    """JAX arrays may be donated as soon as `ingest` returned, ready or not."""
    step = jax.jit(lambda x: x * 1.0001 + 1.0, donate_argnums=0)
    x = jnp.ones((4, 2, 5000))
    expected = []
    with DefaultBackend(outdir=tmp_path / "run") as backend:
        for _ in range(20):
            x = step(x)
            backend.ingest({"samples": {"p": x}})
            expected.append(np.array(x))
            x = step(x)
        np.testing.assert_array_equal(backend.get_samples()["p"], np.concatenate(expected, axis=2))


def test_our_epoch_class_takes_jax_arrays(tmp_path):
    """`Epoch` of JAX arrays is ingested like one of NumPy arrays."""
    with DefaultBackend(outdir=tmp_path / "run") as backend:
        backend.ingest(
            Epoch({"p": jnp.arange(24.0).reshape(2, 3, 4)}, state={"key": jax.random.key_data(jax.random.key(1))})
        )
        backend.flush()
        assert isinstance(backend.load(), Epoch)
        np.testing.assert_array_equal(backend.get()["samples"]["p"], np.arange(24.0).reshape(2, 3, 4))
