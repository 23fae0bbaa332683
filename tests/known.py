"""Epochs whose every number tells where in the run it belongs, and what a run of them must give back."""

import numpy as np

from posterity import Epoch

NCHAIN, DIM = 3, 2


def numbers(first, nsamples, *, nchain=NCHAIN, dim=DIM, dtype=float):
    """An array `(nchain, dim, nsamples)` for the samples from position `first` on: no two numbers of a run are equal."""
    chain, row, sample = np.ogrid[:nchain, :dim, first : first + nsamples]
    return (1000 * sample + 10 * chain + row).astype(dtype)


def epoch_dict(first, nsamples, *, nchain=NCHAIN, dim=DIM, **others):
    """An epoch as a sampler gives it: samples, covariances, stats, and whatever else is asked for."""
    return {
        "samples": {
            "p": numbers(first, nsamples, nchain=nchain, dim=dim),
            "ll": -numbers(first, nsamples, nchain=nchain, dim=1, dtype=np.float32),
        },
        "covs": np.stack([np.eye(dim) * (first + chain + 1) for chain in range(nchain)]),
        "stats": {"steps": nsamples, "counts": np.arange(nchain) + first},
        **others,
    }


def run_of(lengths, start=0):
    """The epochs of a run, given how many samples each has."""
    epochs, first = [], start
    for nsamples in lengths:
        epochs.append(epoch_dict(first, nsamples))
        first += nsamples
    return epochs


def joined(epochs, name="p"):
    """All samples of some epochs in one array."""
    return np.concatenate([epoch["samples"][name] for epoch in epochs], axis=2)


def assert_same(got, expected, path=""):
    """Equal in value, type and order, all the way down."""
    assert type(got) is type(expected), f"{path}: {type(got)} is not {type(expected)}"
    if isinstance(expected, dict):
        assert list(got) == list(expected), path
        for name in expected:
            assert_same(got[name], expected[name], f"{path}/{name}")
    elif isinstance(expected, (list, tuple)):
        assert len(got) == len(expected), path
        for i, (one, other) in enumerate(zip(got, expected, strict=True)):
            assert_same(one, other, f"{path}/{i}")
    elif isinstance(expected, (np.ndarray, np.generic)):
        assert got.dtype == expected.dtype, path
        assert got.shape == expected.shape, path
        np.testing.assert_array_equal(got, expected, err_msg=path)
    else:
        assert got == expected, path


class Walk(Epoch):
    """An epoch class of a user's own."""


class Bare:
    """The least that can be ingested: an object with `to_backend`."""

    def __init__(self, data):
        self.data = data
        self.asked = None

    def to_backend(self, burn, stats):
        self.asked = (burn, stats)
        return self.data["samples"]["p"].shape[2], 0, self.data
