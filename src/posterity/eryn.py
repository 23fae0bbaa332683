"""`ErynBackend`: a backend of Eryn's that keeps the chain in a run folder.

It copies each step, `steps` gathers them into epochs, and the run's own threads write them. Eryn's diagnostics are
inherited from Eryn's own class.

Up the stream: Eryn's sampler, which hands over a step at a time. Down the stream: `branches` says what lies where in an
epoch, `steps` gathers, `run` reads.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypedDict, cast

import numpy as np

from .backend import DefaultBackend
from .branches import (
    BETA,
    BLOBS,
    LOG_LIKE,
    LOG_PRIOR,
    Counted,
    Ensemble,
    Numbers,
    RandomState,
    Recorded,
    ensemble_of,
    from_samples,
    masked,
    nothing_counted,
)
from .ensembles import Reading, Writing, chosen_steps, recorded_by
from .epoch import Epoch
from .errors import MissingExtra
from .metadata import check_parameters
from .options import parse_options
from .run import open_run
from .status import Status
from .steps import MAX_AGE_S, MAX_BYTES
from .tree import Array, dtype_from_text, flatten

if TYPE_CHECKING:
    import numpy.typing as npt
    from eryn.state import State

try:
    from eryn.backends import Backend
except ImportError as error:
    raise MissingExtra("ErynBackend needs the package eryn: pip install 'posterity[eryn]'") from error


class Gather(TypedDict):
    """When steps become an epoch; see `Steps`."""

    max_bytes: int
    max_age_s: float


class ErynBackend(Backend):  # type: ignore[misc]  # Eryn has no types
    """Keeps the chain of Eryn's `EnsembleSampler` in a run folder.

    A drop-in for Eryn's `Backend` and `HDFBackend`. A step that was saved is seen by every later `get_...`, and is on
    disk after at most `max_age_s`. The run can be read by `open_run` all the while, from any process.

    Args:
        outdir: the run folder. With a run in it the backend is `initialized`, and goes on with it.
        read_only: only read, in this or another process, while or after the run is written.
        dtype: of all numbers but blobs; by default what the run has, and float64 for a new one.
        store_missing_leaves: stands in the chain where a leaf isn't there.
        mode: what to do with a run that is there: "a" continues it, "x" refuses, "w" replaces it at the first step.
        parameters: branch -> names of its parameters, or `Parameter`s with labels and units; for one branch also a
            list. By default what `reset` says of their order. They count when the run begins.
        max_bytes: steps of this size together are written at once, as one epoch.
        max_age_s: how long after it was saved a step is on disk at the latest, if the disk can follow.
        options: all others that `DefaultBackend` has, but for `burn`: that is `discard` here.

    Raises:
        See `DefaultBackend`; and
        ValueError: the run in the folder isn't one of Eryn's, or has another dtype.
    """

    def __init__(
        self,
        outdir: str | os.PathLike[str],
        *,
        read_only: bool = False,
        dtype: "npt.DTypeLike | None" = None,
        store_missing_leaves: float = np.nan,
        mode: Literal["a", "x", "w"] = "a",
        parameters: object = None,
        max_bytes: int = MAX_BYTES,
        max_age_s: float = MAX_AGE_S,
        **options: object,
    ) -> None:
        self.outdir = Path(os.fsdecode(outdir)).absolute()
        self.read_only = read_only
        self.store_missing_leaves = store_missing_leaves
        self._given_dtype = None if dtype is None else np.dtype(dtype)
        self._parameters = {} if parameters is None else check_parameters(parameters)
        self._options = options
        self._gather: Gather = {"max_bytes": max_bytes, "max_age_s": max_age_s}
        self._writing: Writing | None = None
        self._reading: Reading | None = None
        self._may_replace = mode == "w"
        parse_options(0, self.outdir, {**options, "mode": mode})
        if not read_only and mode != "w":
            self._continue(mode)

    def _continue(self, mode: str) -> None:
        """Go on with the run that is there, if there is one."""
        backend: DefaultBackend[Epoch] = DefaultBackend(0, outdir=self.outdir, mode=mode, **self._options)
        try:
            if not backend.status.epochs:
                backend.close()
                return
            recorded = recorded_by(backend)
            self._check_dtype(recorded.ensemble)
            self._writing = Writing(backend, recorded, **self._gather)
        except BaseException:
            backend.close()
            raise
        self._may_replace = True
        self._show_info(recorded.info)

    def _check_dtype(self, ensemble: Ensemble) -> None:
        known = dtype_from_text(ensemble.dtype)
        if self._given_dtype not in (None, known):
            raise ValueError(f"the run in {self.outdir} has dtype {known}, and {self._given_dtype} was given")

    def _show_info(self, info: Mapping[str, object]) -> None:
        for name, value in info.items():
            setattr(self, name, value)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<ErynBackend of {self.outdir}>"

    # ---- beginning -----------------------------------------------------------------------------------------------

    def reset(
        self,
        nwalkers: int,
        ndims: object,
        nleaves_max: object = 1,
        ntemps: int = 1,
        branch_names: str | Sequence[str] | None = None,
        nbranches: int = 1,
        rj: bool = False,
        moves: Iterable[str] | None = None,
        key_order: Mapping[str, Iterable[str | int]] | None = None,
        **info: object,
    ) -> None:
        """Start an empty chain. A run that is there is replaced when the first step is written.

        Args:
            nwalkers: walkers at each temperature.
            ndims: parameters of a leaf: a number for one branch, a list, or a dict by branch.
            nleaves_max: the most leaves, in the same way.
            ntemps: temperatures.
            branch_names: by default "model_0", "model_1", ...
            nbranches: how many there are, without names.
            rj: whether leaves come and go.
            moves: names of the moves of which the acceptance is kept.
            key_order: branch -> what its parameters are called.
            info: anything else that an epoch can hold. It is kept with the run, and set as attributes here.

        Raises:
            RuntimeError: the backend only reads.
            ValueError: the numbers and names contradict each other.
            NotStorable: a name or an item of `info` can't be stored (a `TypeError`).
            RunExists: somebody else began a run in the folder (a `FileExistsError`).
        """
        self._check_may_write()
        ensemble = ensemble_of(
            nwalkers, ndims, nleaves_max, ntemps, branch_names,
            nbranches=nbranches, rj=rj, moves=moves, key_order=key_order, dtype=self._given_dtype or np.dtype(float),
        )  # fmt: skip
        flatten({"info": info})
        self.close()
        options = {**self._options, "chains": ensemble.chains, "parameters": ensemble.parameters(self._parameters)}
        options["mode"] = "w" if self._may_replace else "x"
        backend: DefaultBackend[Epoch] = DefaultBackend(0, outdir=self.outdir, **options)
        self._writing = Writing(backend, Recorded(ensemble, info, nothing_counted(ensemble)), **self._gather)
        self._may_replace = True
        self._show_info(info)

    def reset_base(self) -> None:
        """Start an empty chain with what the last one was started with."""
        kwargs: dict[str, Any] = self.reset_kwargs
        self.reset(*self.reset_args, **kwargs)

    def _check_may_write(self) -> None:
        if self.read_only:
            raise RuntimeError(f"{self!r} was opened with read_only=True; open it without, to change the run")

    # ---- adding --------------------------------------------------------------------------------------------------

    def grow(self, ngrow: int, blobs: Array | None) -> None:  # noqa: ARG002  # there is always room
        """Say what blobs the next steps have: `(ntemps, nwalkers, ...)`, or None.

        Raises:
            ValueError: there were none in the steps before, or other ones.
        """
        writing = self._to_write()
        self._check_blobs(blobs)
        if blobs is not None:
            writing.expect_blobs(np.asarray(blobs))

    def save_step(
        self,
        state: "State",
        accepted: Numbers,
        rj_accepted: Numbers | None = None,
        swaps_accepted: Numbers | None = None,
        moves_accepted_fraction: Mapping[str, Array] | None = None,
    ) -> None:
        """Copy one step of the sampler; it may change its arrays afterwards.

        Args:
            state: where the walkers are, `State` of Eryn's.
            accepted: proposals within a model that each walker accepted since the last step, `(ntemps, nwalkers)`.
            rj_accepted: the same, of proposals between models.
            swaps_accepted: accepted swaps between neighbouring temperatures, `(ntemps - 1,)`.
            moves_accepted_fraction: name of a move -> what it accepted so far, `(ntemps, nwalkers)`.

        Cost: a copy. It waits for no disk, unless the mailbox is full.

        Raises:
            ValueError: something has another shape than `reset` and `grow` said.
            MailboxFull, WriteFailed, Closed: see `DefaultBackend.ingest`.
        """
        writing = self._to_write()
        self._check(state, accepted, rj_accepted=rj_accepted, swaps_accepted=swaps_accepted)
        ensemble = writing.ensemble
        if moves_accepted_fraction is not None and ensemble.moves is None:
            raise ValueError("moves_accepted_fraction was given, and reset() was told of no moves")
        before = writing.recorded().counted
        writing.steps.add(
            _samples_of(state, ensemble, self.store_missing_leaves),
            Counted(
                before.accepted + accepted,
                before.swaps_accepted + (0 if swaps_accepted is None else swaps_accepted),
                None if before.rj_accepted is None or rj_accepted is None else before.rj_accepted + rj_accepted,
                _fractions(before.moves, moves_accepted_fraction),
                None if state.random_state is None else tuple(state.random_state),
                cast("RandomState", np.random.get_state()),  # noqa: NPY002  # Eryn's moves draw from that one
            ),
        )

    def _to_write(self) -> Writing:
        self._check_may_write()
        if self._writing is None:
            raise AttributeError(f"{self!r} isn't open for writing: call reset(), or open it again")
        return self._writing

    # ---- the disk ------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Wait until every step that was saved survives a power cut.

        Raises:
            WriteFailed: an attempt made since failed (an `OSError`); nothing is dropped and the attempts go on.
        """
        if self._writing is not None:
            self._writing.steps.hand_over()
            self._writing.backend.flush()

    def close(self, timeout_s: float | None = 60) -> None:
        """Write all, publish, and let the folder go; idempotent. The chain can be read afterwards.

        Raises:
            NotWritten: not all was written in time (a `TimeoutError`). The attempts go on; call it again.
        """
        if self._writing is not None:
            self._writing.backend.close(timeout_s)
            self._writing = None
        if self._reading is not None:
            self._reading.close()
            self._reading = None

    @property
    def status(self) -> Status | None:
        """What the writer is doing; None while nothing is written."""
        return None if self._writing is None else self._writing.backend.status

    # ---- what the run is -----------------------------------------------------------------------------------------

    @property
    def initialized(self) -> bool:
        """Whether there is a run: `reset` was called, or the folder had one."""
        return self._found() is not None

    def _found(self) -> Writing | Reading | None:
        """Where to read from: what is being written, or what is in the folder."""
        if self._writing is not None:
            return self._writing
        if self._reading is None:
            try:
                self._reading = Reading(open_run(self.outdir))
            except FileNotFoundError:
                return None
        return self._reading if self._reading.iteration else None

    def _source(self) -> Writing | Reading:
        found = self._found()
        if found is None:
            raise AttributeError(f"there is no chain in {self.outdir} yet: run the sampler with store=True first")
        return found

    @property
    def _ensemble(self) -> Ensemble:
        return self._source().recorded().ensemble

    @property
    def _counted(self) -> Counted:
        return self._source().recorded().counted

    @property
    def iteration(self) -> int:
        """Steps that are there."""
        return self._source().iteration

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Of all numbers but blobs."""
        found = self._found()
        return dtype_from_text(found.recorded().ensemble.dtype) if found else self._given_dtype or np.dtype(float)

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
    def reset_kwargs(self) -> dict[str, object]:
        """What else `reset` was called with."""
        ensemble, info, _ = self._source().recorded()
        moves = None if ensemble.moves is None else list(ensemble.moves)
        shape = {"nleaves_max": self.nleaves_max, "ntemps": ensemble.ntemps, "branch_names": self.branch_names}
        return {**shape, "rj": ensemble.rj, "moves": moves, "key_order": self.key_order, **info}

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

    def has_blobs(self) -> bool:
        """Whether the steps have blobs."""
        return self._ensemble.blobs is not None

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
            AttributeError: no step was saved yet.
            KeyError: there is no such name, or no such branch.
            IndexError: there is no such step, or no such temperature.
        """
        source = self._source()
        ensemble = source.recorded().ensemble
        if source.iteration <= 0:
            raise AttributeError(f"no step was saved in {self.outdir} yet: run the sampler with store=True first")
        if name == "blobs" and ensemble.blobs is None:
            return None
        places = ensemble.places(name, branch_names)
        temperature = None if temp_index is None else range(ensemble.ntemps)[temp_index]
        chains = ensemble.chosen_chains(temperature, one_each=name == "betas")
        choose = partial(chosen_steps, discard=discard, thin=thin, slice_vals=slice_vals)
        samples = source.read([place.samples for place in places.values()], choose, chains)
        ahead = () if temp_index is not None else (ensemble.ntemps,)
        values = {key: from_samples(samples[place.samples], (*ahead, *place.axes)) for key, place in places.items()}
        return values if name in ("chain", "inds") else values[name]

    def get_a_sample(self, it: int) -> "State":
        """The state of the sampler after a step, counted from 0; its random state is that of the newest."""
        sample = super().get_a_sample(it)
        if np.isnan(sample.betas).all():
            sample.betas = None  # the sampler has no temperatures, and wouldn't take any
        return sample


def _samples_of(state: "State", ensemble: Ensemble, missing: float) -> "dict[str, npt.ArrayLike]":
    """A step of the sampler as samples, name -> what fits into `(nchain, dim)`. Nothing is copied that needn't be."""
    nchain = ensemble.nchain
    step: dict[str, npt.ArrayLike] = {
        LOG_LIKE: state.log_like.reshape(nchain, 1),
        LOG_PRIOR: state.log_prior.reshape(nchain, 1),
        BETA: np.nan if state.betas is None else np.repeat(state.betas, ensemble.nwalkers)[:, None],
    }
    for branch in ensemble.branches:
        coords, inds = state.branches[branch.name].coords, state.branches[branch.name].inds
        points = coords if inds.all() else masked(coords, inds, missing)
        step[branch.points] = points.reshape(nchain, branch.dim)
        step[branch.inds] = inds.reshape(nchain, branch.nleaves_max)
    if state.blobs is not None:
        step[BLOBS] = np.reshape(state.blobs, (nchain, -1))
    return step


def _fractions(known: dict[str, Numbers] | None, given: Mapping[str, Array] | None) -> dict[str, Numbers] | None:
    """What each move accepted by now, our own."""
    if known is None or given is None:
        return known
    return {name: np.array(given[name], float) for name in known}
