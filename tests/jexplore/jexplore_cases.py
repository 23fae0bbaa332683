"""jexplore's kinds of sampling, each small."""

from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
from jexplore.sampler import JaxSampler, Steps
from jexplore.sampling import EpochMS, Sampling, SamplingMH, SamplingMS
from jexplore.sampling.epoch import Epoch
from jexplore.steps import GaussianRandomWalk, Stretch, StudentTRandomWalk, TSwap
from jexplore.steps.modsel import DrawModel, IMStretch, TSwapMS
from jexplore.steps.step import Step
from jexplore.tools.distributions import Normal

jax.config.update("jax_enable_x64", True)
NWALKER, TEMPS, DIM = 4, (1.0, 2.0), 3
NCHAIN = NWALKER * len(TEMPS)
NITERS, NEPOCH = 20, 3


class Wander(Step):
    """A step of our own, for jexplore's base classes, which come without any."""

    def step(self, key, state):
        moved = state.p + 0.1 * jax.random.normal(key, state.p.shape)
        return state.set_val(moved), jnp.ones(state.p.shape[0])


def log_likelihood(p):
    return -0.5 * jnp.sum(p**2)


def other_log_likelihood(p):
    return -0.5 * jnp.sum((p - 0.5) ** 2)


def log_prior(p):
    return -0.01 * jnp.sum(p**2)


def points():
    return jax.random.normal(jax.random.key(1), (NCHAIN, DIM))


# Of each: the sampling, the names of its samples, its first epoch, and its steps. Those are made anew for each sampler:
# a step of jexplore's goes on with what it had when JAX first traced it.


class Base:
    """Epochs with nothing but points."""

    names = ("p",)

    def __init__(self):
        self.sampling = Sampling(NCHAIN, DIM)

    def start(self):
        return Epoch({"p": points()})

    def steps(self):
        return Steps([{Wander().builder: 1.0}])


class MetropolisHastings:
    """Two temperatures, and the steps that `get_sampler` takes if it is told of none."""

    names = ("p", "ll", "lp")

    def __init__(self):
        self.sampling = SamplingMH(NWALKER, jnp.array(TEMPS), log_likelihood, log_prior, dim=DIM)

    def start(self):
        return self.sampling.get_epoch(points())

    def steps(self):
        return Steps([{TSwap(permute=True).builder: 1.0}, {Stretch(permute=True).builder: 1.0}])


class RandomWalk(MetropolisHastings):
    """One temperature, and steps that depend on the covariances of the epoch before."""

    def __init__(self):
        self.sampling = SamplingMH(NCHAIN, jnp.ones(1), log_likelihood, log_prior, dim=DIM)

    def steps(self):
        return Steps([{GaussianRandomWalk().builder: 0.5, StudentTRandomWalk().builder: 0.5}])


class ModelSelection:
    """Two models, of two and of three parameters: the lists of their masks hold arrays of unequal length, one empty."""

    names = ("p", "ll", "lp", "k")

    def __init__(self):
        likelihoods, priors = [log_likelihood, other_log_likelihood], [log_prior, log_prior]
        pseudo = [Normal(DIM), None]
        self.sampling = SamplingMS(NWALKER, jnp.array(TEMPS), [2, None], likelihoods, priors, pseudo=pseudo, dim=DIM)

    def start(self):
        return EpochMS({"p": points(), "k": jnp.repeat(jnp.arange(2), NCHAIN // 2)[:, None]})

    def steps(self):
        return Steps([{DrawModel().builder: 1.0}, {IMStretch().builder: 0.5, TSwapMS(permute=True).builder: 0.5}])


CASES = {"base": Base, "mh": MetropolisHastings, "walk": RandomWalk, "modsel": ModelSelection}


@cache
def case_of(name):
    return CASES[name]()


def sampler_on(case, backend):
    """A sampler on a backend, as users get it: by `get_sampler`, where the kind of sampling has that."""
    if hasattr(case.sampling, "get_sampler"):
        return case.sampling.get_sampler(case.steps(), backend=backend)
    return JaxSampler(case.sampling, case.steps(), backend)


def files(folder):
    return sorted(Path(folder).glob("*.h5"))
