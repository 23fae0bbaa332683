"""Which chains and samples a reader asked for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from posterity._model.registry import Registry, admit, raise_burn
from posterity._reading.selection import check_thin, chosen_chains, count_samples, flatten_samples, pieces

NCHAIN = 5


@pytest.mark.parametrize(
    "mask",
    [
        slice(None),
        slice(1, 4, 2),
        slice(None, None, -1),
        slice(9, 12),
        [0, 3, 3],
        [-1, 0],
        [],
        (),
        np.array([], dtype=bool)[:0],
        [True, False, True, False, False],
        np.zeros(NCHAIN, bool),
        np.array([4, 2], np.uint8),
        range(2),
    ],
    ids=str,
)
def test_a_mask_chooses_chains_as_numpy_does(mask):
    """Slices, numbers and booleans choose the chains that they choose in NumPy, in their order."""
    index = mask if isinstance(mask, slice) else np.asarray(mask)
    if not isinstance(mask, slice) and index.size == 0:
        index = index.astype(int)
    assert chosen_chains(mask, NCHAIN) == list(np.arange(NCHAIN)[index])


def test_no_mask_chooses_all():
    """Without a mask no list is made."""
    assert chosen_chains(..., NCHAIN) is None


@pytest.mark.parametrize(
    "mask",
    [3, [5], [-6], [True, False], [[0, 1]], [0.5], ["a"], None, True, np.zeros((5, 5), bool), np.array(2)],
    ids=repr,
)
def test_a_mask_that_does_not_choose_chains_is_an_index_error(mask):
    """The message says how many chains there are."""
    with pytest.raises(IndexError, match=f"mask .*{NCHAIN}"):
        chosen_chains(mask, NCHAIN)


@pytest.mark.parametrize(("burn", "thin", "says"), [(0, 0, "thin"), (0, -1, "thin"), (-1, 1, "burn")])
def test_no_burn_and_no_thinning_are_refused_by_name(burn, thin, says):
    """Thinning takes every first sample at least, and burn none at least."""
    with pytest.raises(ValueError, match=f"{says} must be at least"):
        check_thin(burn, thin)


@given(st.lists(st.integers(0, 7), max_size=6), st.integers(0, 30), st.integers(0, 30), st.integers(1, 40))
def test_pieces_are_what_numpy_takes_of_the_whole(lengths, run_burn, burn, thin):
    """Thinning goes on across the borders of epochs, as `[run_burn:][burn::thin]` of all samples in a row does."""
    registry, epochs = Registry(), []
    for nsamples in lengths:
        epochs.append(np.arange(nsamples) + registry.nsamples)
        registry = admit(registry, nsamples, nsamples)
    registry = raise_burn(registry, run_burn, asked=True)
    expected = np.concatenate([np.zeros(0, int), *epochs])[run_burn:][burn::thin]
    assert count_samples(registry, burn, thin) == len(expected)
    got = np.full(len(expected), -1)
    for piece in pieces(registry, burn, thin):
        assert piece.n > 0
        got[piece.at : piece.at + piece.n] = epochs[piece.epoch][piece.start :: thin]
    np.testing.assert_array_equal(got, expected)


@given(hnp.array_shapes(min_dims=3, max_dims=3, min_side=0, max_side=4))
def test_flattening_goes_chain_by_chain(shape):
    """`(nchain, dim, n)` becomes `(nchain * n, dim)`: all samples of the first chain come first."""
    array = np.arange(np.prod(shape)).reshape(shape)
    nchain, dim, n = shape
    flat = flatten_samples({"p": array})["p"]
    assert flat.shape == (nchain * n, dim)
    for chain in range(nchain):
        for i in range(n):
            np.testing.assert_array_equal(flat[chain * n + i], array[chain, :, i])


def test_nothing_flattened_is_nothing():
    """None, which stands for no samples, stays None."""
    assert flatten_samples(None) is None
