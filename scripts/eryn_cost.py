"""What storing a step costs Eryn's sampler: its `HDFBackend` beside ours. `tox -e eryn` runs it.

For each ensemble `(ntemps, nwalkers, nleaves, ndim)`: the median time of `save_step` over 300 steps, and the time of
all of them, until ours are on disk. Eryn's backend doesn't sync. Both write in turns, three times, in the same folder;
the medians of the three are told.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from eryn.backends import Backend, HDFBackend
from eryn.state import State

from posterity.eryn import ErynBackend

ENSEMBLES = [(10, 32, 4, 6), (2, 16, 1, 5)]
NSTEPS, NTURNS = 300, 3


def states_of(shape: tuple[int, int, int, int]) -> list[State]:
    """Some steps of a sampler's."""
    rng = np.random.default_rng(1)
    random_state = np.random.RandomState(0).get_state()  # Eryn's own kind
    ntemps, nwalkers, nleaves, _ = shape
    return [
        State(
            {"model_0": rng.normal(size=shape)},
            inds={"model_0": np.ones((ntemps, nwalkers, nleaves), bool)},
            log_like=rng.normal(size=(ntemps, nwalkers)),
            log_prior=rng.normal(size=(ntemps, nwalkers)),
            betas=np.linspace(1.0, 0.1, ntemps),
            random_state=random_state,
        )
        for _ in range(20)
    ]


def cost(backend: Backend, shape: tuple[int, int, int, int], states: list[State]) -> tuple[float, float]:
    """Seconds of one step, the median; and of all of them, until they are stored."""
    ntemps, nwalkers, nleaves, ndim = shape
    backend.reset(nwalkers, ndim, nleaves_max=nleaves, ntemps=ntemps, branch_names=["model_0"])
    backend.grow(NSTEPS, None)
    accepted, swaps = np.ones((ntemps, nwalkers)), np.zeros(ntemps - 1)
    each = []
    start = time.perf_counter()
    for number in range(NSTEPS):
        begin = time.perf_counter()
        backend.save_step(states[number % len(states)], accepted, swaps_accepted=swaps)
        each.append(time.perf_counter() - begin)
    if isinstance(backend, ErynBackend):
        backend.flush()
    return statistics.median(each), time.perf_counter() - start


def main() -> None:
    """Print a line for each ensemble."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", help="where to write; by default where temporary files go")
    where = parser.parse_args().dir
    for shape in ENSEMBLES:
        states, theirs, ours = states_of(shape), [], []
        with tempfile.TemporaryDirectory(dir=where) as folder:
            for turn in range(NTURNS):
                theirs.append(cost(HDFBackend(str(Path(folder, f"{turn}.h5"))), shape, states))
                with ErynBackend(Path(folder, f"run_{turn}")) as backend:
                    ours.append(cost(backend, shape, states))
        for column, what in enumerate(("a step", f"{NSTEPS} steps")):
            their, our = (statistics.median(turn[column] for turn in turns) for turns in (theirs, ours))
            print(f"{shape}: {what}: Eryn {1e3 * their:.3f} ms, ours {1e3 * our:.3f} ms, {their / our:.0f} x")


if __name__ == "__main__":
    main()
