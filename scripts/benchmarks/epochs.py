"""The epochs that are measured with."""

import numpy as np


def samples(nbytes: int, nchain: int = 64, dim: int = 8, seed: int = 0) -> np.ndarray:
    """Samples `(nchain, dim, nsamples)` of about so many bytes, all touched."""
    n = max(1, nbytes // (8 * nchain * dim))
    return np.random.default_rng(seed).random((nchain, dim, n))


def plain(nbytes: int, seed: int = 0, nchain: int = 64, dim: int = 8) -> dict[str, object]:
    """An epoch with nothing but its samples."""
    return {"samples": {"p": samples(nbytes, nchain, dim, seed)}}


def given(nbytes: int, seed: int = 0) -> dict[str, object]:
    """An epoch that nobody can change any more."""
    array = samples(nbytes, seed=seed)
    array.flags.writeable = False
    return {"samples": {"p": array}}


def jexplore_like(nchain: int = 4, dim: int = 3, nsamples: int = 10, seed: int = 0) -> dict[str, object]:
    """The items of an epoch of jexplore's Metropolis-Hastings sampler: 15 datasets, about a kilobyte of samples."""
    rng = np.random.default_rng(seed)
    cycle = np.zeros(3, [("name", "S50"), ("incycle", "<i8"), ("weight", "<f8")])
    cycle["name"], cycle["weight"] = [b"SCAM", b"DE", b"AM"], [0.2, 0.3, 0.5]
    return {
        "covs": np.tile(np.eye(dim), (nchain, 1, 1)),
        "samples": {
            "p": rng.random((nchain, dim, nsamples)),
            "ll": rng.random((nchain, 1, nsamples)),
            "lp": rng.random((nchain, 1, nsamples)),
        },
        "cycle": cycle,
        "sampling": {
            "nsamples": np.array(nsamples),
            "nadapt": np.array(100),
            "thin": np.array(1),
            "temperature": np.array(1.0),
            "scale": np.array(2.4),
            "seed": np.array(7),
            "class": "jexplore.sampling.mh.MHSampling",
        },
        "stats": {
            "steps": rng.integers(0, 9, (nchain, 3)),
            "counts": rng.integers(0, 9, (nchain, 3)),
            "stats": rng.random((nchain, 3)),
        },
        "class": "posterity.epoch.Epoch",
    }
