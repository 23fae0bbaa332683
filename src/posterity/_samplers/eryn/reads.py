"""The reading half of `ErynBackend`: what a run is, what was counted, and its steps.

Eryn's diagnostics are inherited from Eryn's own class, and ask for these.

Up the stream: `step_run` has the run. Down the stream: `backend` adds the writing.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from posterity._samplers.step_backend import StepBackend
from posterity.errors import MissingExtra

from .epochs import Counted, Ensemble, Numbers, RandomState, from_samples, nothing_counted
from .run import chosen_steps, read_samples

try:
    from eryn.backends import Backend
except ImportError as error:
    raise MissingExtra("ErynBackend needs the package eryn: pip install 'posterity[eryn]'") from error

if TYPE_CHECKING:
    import numpy.typing as npt
    from eryn.state import State


class ErynReads(StepBackend[Ensemble, Counted], Backend):  # type: ignore[misc]  # Eryn has no types
    """All that can be asked of a run of Eryn's."""

    _ensemble_class = Ensemble

    @property
    def filename(self) -> str:
        """The run folder, as text."""
        return str(self._folder)

    @property
    def _counted(self) -> Counted:
        ensemble = self._ensemble
        return self._source.state or nothing_counted(ensemble)

    @property
    def nwalkers(self) -> int:
        """Walkers at each temperature."""
        return self._ensemble.nwalkers

    @property
    def ntemps(self) -> int:
        """Temperatures."""
        return self._ensemble.ntemps

    @property
    def branch_names(self) -> list[str]:
        """Names of the branches."""
        return [branch.name for branch in self._ensemble.branches]

    @property
    def nbranches(self) -> int:
        """How many branches there are."""
        return len(self._ensemble.branches)

    @property
    def ndims(self) -> dict[str, int]:
        """Of each branch: parameters of a leaf."""
        return {branch.name: branch.ndim for branch in self._ensemble.branches}

    @property
    def nleaves_max(self) -> dict[str, int]:
        """Of each branch: the most leaves."""
        return {branch.name: branch.nleaves_max for branch in self._ensemble.branches}

    @property
    def shape(self) -> dict[str, tuple[int, int, int, int]]:
        """Of each branch: temperatures, walkers, leaves, parameters."""
        return self._ensemble.shape

    @property
    def rj(self) -> bool:
        """Whether leaves come and go."""
        return self._ensemble.rj

    @property
    def key_order(self) -> dict[str, list[str | int]] | None:
        """Of each branch: what its parameters are called."""
        order = self._ensemble.key_order
        return None if order is None else {name: list(keys) for name, keys in order.items()}

    @property
    def move_keys(self) -> list[str]:
        """Names of the moves that are tracked."""
        return list(self._ensemble.moves or ())

    @property
    def reset_args(self) -> tuple[int, dict[str, int]]:
        """What `reset` was called with."""
        return self.nwalkers, self.ndims

    @property
    def reset_kwargs(self) -> dict[str, Any]:
        """What else `reset` was called with."""
        ensemble = self._ensemble
        moves = None if ensemble.moves is None else list(ensemble.moves)
        shape = {"nleaves_max": self.nleaves_max, "ntemps": ensemble.ntemps, "branch_names": self.branch_names}
        return {**shape, "rj": ensemble.rj, "moves": moves, "key_order": self.key_order, **ensemble.info}

    # ---- what was counted ----------------------------------------------------------------------------------------

    @property
    def accepted(self) -> Numbers:
        """Accepted proposals within a model, `(ntemps, nwalkers)`."""
        return self._counted.accepted.copy()

    @property
    def rj_accepted(self) -> Numbers | None:
        """Accepted proposals between models, `(ntemps, nwalkers)`; None without reversible jumps."""
        counted = self._counted.rj_accepted
        return None if counted is None else counted.copy()

    @property
    def swaps_accepted(self) -> Numbers:
        """Accepted swaps between neighbouring temperatures, `(ntemps - 1,)`."""
        return self._counted.swaps_accepted.copy()

    @property
    def move_info(self) -> dict[str, dict[str, Numbers]] | None:
        """Of each move that is tracked: `{"acceptance_fraction": (ntemps, nwalkers)}`."""
        moves = self._counted.moves
        return None if moves is None else {name: {"acceptance_fraction": each.copy()} for name, each in moves.items()}

    def get_move_info(self) -> dict[str, dict[str, Numbers]] | None:
        """See `move_info`."""
        return self.move_info

    @property
    def random_state(self) -> RandomState | None:
        """Of the sampler's generator after the newest step; a sampler that goes on takes it from here."""
        return self._counted.random_state

    @property
    def numpy_random_state(self) -> RandomState | None:
        """Of NumPy's global generator after the newest step, for `numpy.random.set_state`.

        Eryn's stretch moves and its swaps of temperatures draw from that one. Who sets it before going on goes on as
        if the sampler had never stopped.
        """
        return self._counted.numpy_state

    # ---- reading -------------------------------------------------------------------------------------------------

    def get_value(
        self,
        name: str,
        thin: int = 1,
        discard: int = 0,
        slice_vals: "int | slice | npt.ArrayLike | None" = None,
        temp_index: int | None = None,
        branch_names: str | Iterable[str] | None = None,
    ) -> Any:
        """Something of each step: all `get_...` methods take these arguments, but for `name`.

        Args:
            name: "chain" or "inds", each a dict by branch; "log_like", "log_prior", "betas", "blobs".
            thin: take every `thin`-th step.
            discard: leave out so many steps first.
            slice_vals: which steps, in place of `thin` and `discard`: a number, a slice, numbers, or a bool for each.
            temp_index: one temperature; by default all, as an axis.
            branch_names: one branch or some; by default all.

        Returns:
            Arrays `(nsteps, ntemps, nwalkers, ...)`, `(nsteps, ntemps)` of betas. None of blobs if there are none.
            Betas are NaN where the sampler had no temperatures.

        Raises:
            AttributeError: there are no steps yet.
            KeyError: there is no such name, or no such branch.
            IndexError: there is no such step, or no such temperature.
            Burned: a step that `slice_vals` names was burned (a `ValueError`).
        """
        view = self._view()
        with view.snapshot:
            ensemble = view.ensemble
            if name == "blobs" and ensemble.blobs is None:
                return None
            places = ensemble.places(name, branch_names)
            temperature = None if temp_index is None else range(ensemble.ntemps)[temp_index]
            chains = ensemble.chosen_chains(temperature, one_each=name == "betas")
            burn = view.snapshot.burn
            steps, pick = chosen_steps(view.nsteps, burn, discard=discard, thin=thin, slice_vals=slice_vals)
            samples = read_samples(view, [place.samples for place in places.values()], steps, chains)
        ahead = () if temp_index is not None else (ensemble.ntemps,)
        values = {
            key: from_samples(samples[place.samples][:, :, pick], (*ahead, *place.axes))
            for key, place in places.items()
        }
        return values if name in ("chain", "inds") else values[name]

    def get_a_sample(self, it: int) -> "State":
        """The state of the sampler after a step, counted from 0; its random state is that of the newest."""
        sample = super().get_a_sample(it)
        if np.isnan(sample.betas).all():
            sample.betas = None  # the sampler has no temperatures, and wouldn't take any
        return sample
