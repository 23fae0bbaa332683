"""Branches, temperatures and leaves as samples: what needs no Eryn. With it: `tox -e eryn`."""

import subprocess
import sys

import numpy as np
import pytest

from posterity import Epoch, NotStorable, Parameter
from posterity._samplers.eryn.epochs import Ensemble, ensemble_of, from_samples, masked, nothing_counted
from posterity._samplers.eryn.run import chosen_steps
from posterity.errors import Burned

DOUBLE = np.dtype(float)


def ensemble(**kwargs):
    given = {"nwalkers": 4, "ndims": {"a": 2, "b": 3}, "nleaves_max": [2, 1], "ntemps": 2, "branch_names": ["a", "b"]}
    return ensemble_of(**{**given, "dtype": DOUBLE, **kwargs})


def test_each_branch_has_samples_of_its_own():
    """The first branch is "p"; the leaves of a branch lie one behind the other along dim."""
    found = ensemble()
    assert {name: shape for name, (shape, _) in found.samples.items()} == {
        "p": (8, 4), "p_b": (8, 3), "inds": (8, 2), "inds_b": (8, 1), "ll": (8, 1), "lp": (8, 1), "beta": (8, 1),
    }  # fmt: skip
    assert found.shape == {"a": (2, 4, 2, 2), "b": (2, 4, 1, 3)}
    assert found.chains == {"temperature": 2, "walker": 4}


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"nwalkers": 0}, "nwalkers must be"),
        ({"ndims": [1]}, "ndims must give a number for each"),
        ({"ndims": {"a": 1, "c": 2}}, "ndims is for the branches"),
        ({"nleaves_max": 1.5, "ndims": 2, "branch_names": "a"}, "nleaves_max.'a'. must be"),
        ({"branch_names": ["a", "a"]}, "each another one"),
    ],
)
def test_numbers_that_contradict_each_other_are_refused(given, what):
    """With an error that names them."""
    with pytest.raises(ValueError, match=what):
        ensemble(**given)


def test_a_name_that_hdf5_cannot_have_is_refused():
    """At once, and not with the first epoch."""
    with pytest.raises(NotStorable, match="p_b/c"):
        ensemble(ndims=[1, 1], branch_names=["a", "b/c"])


def test_parameters_are_called_by_their_keys_or_as_given():
    """With the number of the leaf, where there may be several."""
    found = ensemble(key_order={"a": ["x", "y"], "b": [0, 1, 2]})
    given = found.parameters({"b": [Parameter("u", "U", "m", "u"), Parameter("v"), Parameter("w")]})
    assert [parameter.name for parameter in given["p"]] == ["x_0", "y_0", "x_1", "y_1"]
    assert given["p_b"][0] == Parameter("u", "U", "m", "u")
    for wrong in ({"c": []}, {"a": [Parameter("x")]}):
        with pytest.raises(ValueError, match=r"parameters are given|are named"):
            found.parameters(wrong)


def test_an_epoch_says_what_it_is_of():
    """What `epoch` wrote `found_in` reads, and nothing of an epoch of somebody else's."""
    before = ensemble(rj=True, moves=["stretch"], info={"note": "kept"}).with_blobs(np.zeros((2, 4, 3), "i4"))
    steps = {name: np.zeros((5, *shape), dtype) for name, (shape, dtype) in before.shapes.items()}
    epoch = before.epoch(steps, nothing_counted(before))
    assert epoch["samples"]["p"].shape == (8, 4, 5)
    assert epoch["stats"]["accepted"].shape == (8,)
    after, counted = Ensemble.found_in(Epoch.from_backend(epoch))
    assert after == before
    assert after.info == {"note": "kept"}
    assert counted.rj_accepted.shape == (2, 4)
    assert Ensemble.found_in(Epoch.from_backend(before.epoch(steps, None))) == (before, None)
    assert Ensemble.found_in(Epoch(epoch["samples"], sampling={"class": "other"}, state={})) is None
    assert Ensemble.found_in(Epoch(epoch["samples"])) is None


def test_samples_as_eryn_has_them():
    """`(nchain, dim, n)` becomes `(n, ntemps, nwalkers, nleaves, ndim)`, and missing leaves get their number."""
    coords = np.arange(2 * 4 * 2 * 3.0).reshape(2, 4, 2, 3)
    steps = np.stack([coords, coords + 100])
    samples = steps.reshape(2, 8, 6).transpose(1, 2, 0)
    np.testing.assert_array_equal(from_samples(samples, (2, 4, 2, 3)), steps)
    np.testing.assert_array_equal(from_samples(samples[:, :, 1], (2, 4, 2, 3)), coords + 100)
    inds = np.tile([True, False], (2, 4, 1))
    found = masked(coords, inds, -1.0)
    assert (found[:, :, 1] == -1.0).all()
    assert (found[:, :, 0] == coords[:, :, 0]).all()


@pytest.mark.parametrize("burn", [0, 3])
@pytest.mark.parametrize(
    "arguments",
    [
        {"discard": 2, "thin": 3}, {"discard": 50}, {"slice_vals": slice(8, 1, -2)}, {"slice_vals": -1},
        {"slice_vals": [7, 4, 4]}, {"slice_vals": np.arange(10) > 5}, {"slice_vals": []}, {"thin": 2},
    ],
)  # fmt: skip
def test_steps_are_chosen_as_numpy_does(burn, arguments):
    """The steps read and the pick among them are what indexing the whole chain gives, but for burned ones."""
    given = {"discard": 0, "thin": 1, "slice_vals": None, **arguments}
    steps, pick = chosen_steps(10, burn, **given)
    index = given["slice_vals"]
    if index is None:
        index = slice(given["discard"] + given["thin"] - 1, 10, given["thin"])
    expected = np.arange(10)[index if index != [] else slice(0)] if isinstance(index, list) else np.arange(10)[index]
    found = np.asarray(steps, int)[pick]
    np.testing.assert_array_equal(found, expected[expected >= burn] if np.ndim(expected) else expected)
    assert steps.step > 0


def test_steps_that_are_not_there_are_refused():
    """Also those that were burned, if they are named."""
    for wrong, error in ((10, IndexError), ([2, 11], IndexError), (1, Burned), ([[4]], IndexError)):
        with pytest.raises(error):
            chosen_steps(10, 3, discard=0, thin=1, slice_vals=wrong)
    with pytest.raises(ValueError, match="zero"):
        chosen_steps(10, 0, discard=0, thin=0, slice_vals=None)


def test_without_eryn_the_error_names_the_extra():
    """And nothing else of the package needs it."""
    code = "import sys; sys.modules['eryn.backends'] = sys.modules['eryn'] = None; import posterity.eryn"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "MissingExtra" in done.stderr
    assert "posterity[eryn]" in done.stderr
