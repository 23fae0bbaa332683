"""Runs in ArviZ itself: 0.23 and its InferenceData, 1 and its trees. Run by `tox -e arviz0,arviz1`."""

import numpy as np
import pytest

from posterity import DefaultBackend, Parameter, export_netcdf, export_zarr, open_run

arviz = pytest.importorskip("arviz")
pytestmark = pytest.mark.filterwarnings("default")  # ArviZ warns of itself
IS_OLD = int(arviz.__version__.partition(".")[0]) < 1


@pytest.fixture
def run(tmp_path):
    """Four walkers of known mean and spread, burned, with names, and what a sampler tells."""
    rng = np.random.default_rng(1)
    options = {"parameters": [Parameter("m1", "Primary mass", "Msun"), Parameter("m2")], "chains": {"walker": 4}}
    with DefaultBackend(outdir=tmp_path / "run", burn=100, **options) as backend:
        for _ in range(5):
            p = rng.normal(size=(4, 2, 300)) * np.array([1, 3])[:, None] + np.array([10, -5])[:, None]
            diverging = np.zeros((4, 1, 300), bool)
            backend.ingest({"samples": {"p": p, "lp": -(p**2).sum(1, keepdims=True), "diverging": diverging}})
    with open_run(tmp_path / "run") as run:
        yield run


def converted(tree):
    """As this ArviZ wants it."""
    return arviz.InferenceData.from_datatree(tree) if IS_OLD else tree


def check_summary(data):
    """Mean, spread and R-hat are those of independent draws."""
    summary = arviz.summary(data, round_to="none").sort_index()
    assert list(summary.index) == ["m1", "m2"]
    np.testing.assert_allclose(summary["mean"].astype(float), [10, -5], atol=0.2)
    np.testing.assert_allclose(summary["sd"].astype(float), [1, 3], rtol=0.1)
    assert (summary["r_hat"].astype(float) < 1.02).all()


def test_a_summary_in_two_lines(run):
    """Open the run, hand the tree over."""
    check_summary(converted(run.to_datatree()))


@pytest.mark.parametrize("chunks", ["epoch", 500])
def test_lazy_trees_hold_the_same_numbers(run, chunks):
    """What is lazy is loaded by ArviZ's own means, or by `load`."""
    tree = run.to_datatree(thin=2, chunks=chunks)
    assert tree["posterior"].sizes == {"chain": 4, "draw": 700}
    check_summary(converted(tree.load()))


def test_groups_are_arvizs(run):
    """`posterior` and `sample_stats`, axes chain and draw, burn and thinning applied."""
    data = converted(run.to_datatree(burn=100, thin=10))
    assert dict(data["posterior"].sizes) == {"chain": 4, "draw": 130}
    assert set(data["sample_stats"].data_vars) == {"lp", "diverging"}
    assert arviz.ess(data)["m1"].values > 100


def test_netcdf_is_read_by_arviz(run, tmp_path):
    """`from_netcdf` gives what `to_datatree` does."""
    export_netcdf(run, tmp_path / "run.nc", compression=1)
    data = arviz.from_netcdf(str(tmp_path / "run.nc"))
    check_summary(data)
    assert data["sample_stats"]["diverging"].dtype == bool
    np.testing.assert_array_equal(data["posterior"]["m1"], run.to_datatree()["posterior/m1"])


def test_zarr_is_read_by_xarray_for_arviz(run, tmp_path):
    """A Zarr v3 group is a tree as well."""
    import xarray as xr

    export_zarr(run, tmp_path / "run.zarr")
    with xr.open_datatree(tmp_path / "run.zarr", engine="zarr", consolidated=False) as tree:
        check_summary(converted(tree.load()))
