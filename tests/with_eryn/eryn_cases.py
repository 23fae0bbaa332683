"""Eryn's ways of sampling, each small, driven by its own `EnsembleSampler`."""

import numpy as np
from eryn.ensemble import EnsembleSampler
from eryn.moves import GaussianMove, StretchMove
from eryn.prior import ProbDistContainer, uniform_dist
from eryn.state import State

NWALKERS = 8


def prior(keys):
    return ProbDistContainer({key: uniform_dist(-5.0, 5.0) for key in keys})


def gaussian(x):
    return -0.5 * np.sum(x**2)


def gaussian_with_blob(x):
    return np.array([gaussian(x), x[0] - x[1]])


def of_branches(leaves):
    """The leaves of all branches, `(nleaves, ndim)` of each; None of one without."""
    return -0.5 * sum(np.sum((branch - 1.0) ** 2) for branch in leaves if branch is not None)


def of_leaves(leaves):
    return -0.5 * np.sum((leaves - 1.0) ** 2)


class Case:
    """One way of sampling. `keys`: of each branch, what its parameters are called. `nleaves`: the most leaves."""

    keys = {"model_0": [0, 1]}
    nleaves = {"model_0": 1}
    ntemps = 3
    log_like = staticmethod(gaussian)
    adaptive = False

    def __init__(self):
        self.priors = {name: prior(keys) for name, keys in self.keys.items()}
        self.ndims = {name: len(keys) for name, keys in self.keys.items()}

    @property
    def options(self):
        return {}

    def sampler(self, backend):
        tempering = {} if self.ntemps == 0 else {"ntemps": self.ntemps, "adaptive": self.adaptive}
        options = {"branch_names": list(self.keys), "nleaves_max": self.nleaves, "tempering_kwargs": tempering}
        return EnsembleSampler(
            NWALKERS, self.ndims, self.log_like, self.priors, backend=backend, **{**options, **self.options}
        )

    def start(self, sampler):
        shape = max(1, self.ntemps), NWALKERS
        coords = {name: self.priors[name].rvs(size=(*shape, self.nleaves[name])) for name in self.keys}
        return State(coords, inds=self.inds(shape))

    def inds(self, shape):
        return None

    def run(self, backend, nsteps, *, seed=3, **kwargs):
        """A new run of so many steps."""
        np.random.seed(seed)
        sampler = self.sampler(backend)
        sampler.run_mcmc(self.start(sampler), nsteps, **kwargs)
        return sampler

    def go_on(self, backend, nsteps):
        """Go on in another sampler, as another process would."""
        np.random.set_state(backend.numpy_random_state)
        sampler = self.sampler(backend)
        sampler.run_mcmc(None, nsteps)
        return sampler


class Tempered(Case):
    """Three temperatures, and names for the parameters."""

    keys = {"model_0": ["x", "y"]}


class Adaptive(Tempered):
    """Temperatures that change."""

    adaptive = True


class Plain(Case):
    """No temperatures at all."""

    ntemps = 0


class Untracked(Case):
    """The acceptance of moves isn't asked for."""

    ntemps = 1

    @property
    def options(self):
        return {"track_moves": False}


class Moves(Case):
    """Two moves of a kind and one of another."""

    @property
    def options(self):
        moves = [(StretchMove(), 0.5), (StretchMove(a=3.0), 0.25), (GaussianMove({"model_0": 0.1}), 0.25)]
        return {"moves": moves}


class Blobs(Tempered):
    """A blob for each walker. Eryn takes it up if the state to start from has one, in three dimensions."""

    log_like = staticmethod(gaussian_with_blob)

    def start(self, sampler):
        state = super().start(sampler)
        state.log_prior = sampler.compute_log_prior(state.branches_coords)
        state.log_like, blobs = sampler.compute_log_like(state.branches_coords, logp=state.log_prior)
        state.blobs = blobs[:, :, None]
        return state


class Branches(Case):
    """Two branches of two and three parameters, one with two leaves."""

    keys = {"gauss": ["amp", "mean"], "sine": [0, 1, 2]}
    nleaves = {"gauss": 2, "sine": 1}
    ntemps = 2
    log_like = staticmethod(of_branches)

    @property
    def options(self):
        return {"moves": GaussianMove({name: 0.1 * np.eye(n) for name, n in self.ndims.items()})}


class Jumps(Branches):
    """Leaves of two branches come and go."""

    nleaves = {"gauss": 3, "sine": 2}
    least = {"gauss": 1, "sine": 0}

    @property
    def options(self):
        return {**super().options, "rj_moves": True, "nleaves_min": self.least}

    def inds(self, shape):
        inds = {name: np.random.rand(*shape, n) < 0.6 for name, n in self.nleaves.items()}
        inds["gauss"][..., 0] = True
        return inds


class JumpsOfOne(Case):
    """Leaves of one branch come and go, at one temperature."""

    keys = {"gauss": ["amp", "mean"]}
    nleaves = {"gauss": 4}
    ntemps = 1
    log_like = staticmethod(of_leaves)

    @property
    def options(self):
        return {"moves": GaussianMove({"gauss": 0.1}), "rj_moves": "separate_branches", "nleaves_min": {"gauss": 1}}

    def inds(self, shape):
        inds = np.random.rand(*shape, 4) < 0.5
        inds[..., 0] = True
        return {"gauss": inds}


CASES = {
    "tempered": Tempered,
    "adaptive": Adaptive,
    "plain": Plain,
    "untracked": Untracked,
    "moves": Moves,
    "blobs": Blobs,
    "branches": Branches,
    "jumps": Jumps,
    "jumps of one": JumpsOfOne,
}
