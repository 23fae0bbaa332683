"""A run that emcee's sampler wrote opens in ArviZ, in its 0.23 and in what ArviZ 1 is made of. `tox -e emcee` has both."""

import emcee
import numpy as np
import pytest

from posterity import open_run
from posterity.emcee import EmceeBackend

arviz_stats = pytest.importorskip("arviz_stats")
pytest.importorskip("arviz_base")


def log_prob(x):
    return -0.5 * np.sum(x**2), x[0]


@pytest.fixture
def chain(tmp_path):
    """A run of emcee's in `tmp_path`: its chain, (nsteps, nwalkers, ndim)."""
    with EmceeBackend(tmp_path, parameters=["m", "b"]) as backend:
        sampler = emcee.EnsembleSampler(16, 2, log_prob, backend=backend)
        sampler.run_mcmc(np.random.default_rng(1).normal(size=(16, 2)), 500)
    return backend.get_chain()


def test_it_opens_in_arviz_1(tmp_path, chain):
    """Two lines: the tree, and what ArviZ says of it."""
    with open_run(tmp_path) as run:
        summary = arviz_stats.summary(run.to_datatree(burn=100), var_names=["m", "b"], round_to="none")
    assert list(summary.index) == ["m", "b"]
    np.testing.assert_allclose(summary["mean"], chain[100:].mean(axis=(0, 1)))
    assert np.all(summary["ess_bulk"] > 100)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # of ArviZ's own, at its import
def test_it_opens_in_arviz_0(tmp_path, chain):
    """One line more makes what it was used to."""
    arviz = pytest.importorskip("arviz")
    with open_run(tmp_path) as run:
        data = arviz.InferenceData.from_datatree(run.to_datatree(burn=100))
    summary = arviz.summary(data, var_names=["m", "b"], round_to="none")
    np.testing.assert_allclose(summary["mean"], chain[100:].mean(axis=(0, 1)))
    assert data.sample_stats["lp"].shape == (16, 400)
