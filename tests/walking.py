"""Log-probabilities for emcee, with all kinds of blobs, and a run of its sampler; workers and scripts import it fast."""

import numpy as np

NWALKERS, NDIM = 8, 2
STEP_BYTES = NWALKERS * (NDIM + 1) * 8 + NWALKERS


def log_prob(x):
    return -0.5 * np.sum(x**2)


def with_one(x):
    return log_prob(x), x[0]


def with_two(x):
    return log_prob(x), x[0], 7


def with_array(x):
    return log_prob(x), np.outer(x, [1.0, 2.0, 3.0])


def with_text(x):
    return log_prob(x), f"{x[0]:.3f}é"


def with_mixed(x):
    return log_prob(x), x[0], f"{x[0]:.3f}".encode()


def vectorized(x):
    return -0.5 * np.sum(x**2, axis=1)


BLOBS = {
    "none": (log_prob, None),
    "one number": (with_one, None),
    "two numbers": (with_two, None),
    "arrays": (with_array, None),
    "float32": (with_two, np.float32),
    "complex": (with_one, complex),
    "fields of numbers": (with_two, [("log_prior", float), ("mean", np.int32)]),
    "fields with text": (with_mixed, [("x", float), ("name", "S20")]),
    "text": (with_text, "U12"),
    "long complex numbers": (with_one, np.clongdouble),
}


def sampled(backend, blobs="none", nsteps=20, *, seed=1, start=True, **more):
    """Run emcee's sampler; `start=False`: from where it ended."""
    import emcee

    function, dtype = BLOBS[blobs]
    begin = None
    if start:
        np.random.seed(seed)  # noqa: NPY002  # emcee's own
        begin = np.random.randn(NWALKERS, NDIM)  # noqa: NPY002
    sampler = emcee.EnsembleSampler(NWALKERS, NDIM, function, backend=backend, blobs_dtype=dtype, **more)
    sampler.run_mcmc(begin, nsteps)
    return sampler
