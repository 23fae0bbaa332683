"""`ErynBackend`: Eryn's sampler on a run of ours.

It does what `eryn.backends.HDFBackend` does. A step costs a copy into memory, not an HDF5 file that is opened and
closed. Eryn's diagnostics are inherited from Eryn's own class. It needs the extra `eryn`; nothing else of the package
imports this module.

Up the stream: `eryn.ensemble.EnsembleSampler` saves steps. Down the stream: `step_run` keeps them.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Never, cast

import numpy as np

from posterity._format.dtypes import dtype_from_text
from posterity._model.metadata import Parameters, check_parameters
from posterity._model.options import Compression, Mode, OnFull, options_in
from posterity._samplers.step_buffer import MAX_AGE_S, MAX_BYTES
from posterity._samplers.step_run import EPOCHS_PER_FILE, WrittenRun
from posterity._system.arrays import Array
from posterity.errors import EpochMismatch, RunExists, UnknownOption

from .epochs import (
    ACCEPTED,
    BETA,
    BLOBS,
    LOG_LIKE,
    LOG_PRIOR,
    RJ_ACCEPTED,
    SWAPS_ACCEPTED,
    Counted,
    Ensemble,
    Numbers,
    RandomState,
    ensemble_of,
    masked,
    nothing_counted,
)
from .reads import ErynReads

if TYPE_CHECKING:
    import numpy.typing as npt
    from eryn.state import State


class ErynBackend(ErynReads):
    """Keeps the steps of Eryn's `EnsembleSampler` in a run folder; a drop-in for `eryn.backends.HDFBackend`.

    A step that was saved is seen by every later read of this backend, and is on disk after `max_step_age_s` at the
    latest. `flush` waits for that, `close` too, and so does the end of the process. A sampler with a backend whose run
    has steps already goes on from the last one: `sampler.run_mcmc(None, n)`. See `numpy_random_state`.

    In the run each walker of each temperature is a chain, one temperature after the other. The leaves of the first
    branch are the samples "p", those of another one "p_<name>"; which of them are there "inds" and "inds_<name>". The
    samples "ll", "lp", "beta" and "blobs" are what they are called. So everything else that reads a run reads this one,
    `open_run` in another process for example.

    Args:
        outdir: the run folder.
        name: the name of one of several chains: a folder in `outdir` that is the run folder then.
        read_only: look at a run, which somebody else may be writing. Writing is a `RuntimeError` then.
        dtype: of all numbers but blobs; by default that of the run, and float64 for a new one.
        compression: see `DefaultBackend`.
        compression_opts: its `compression_level`.
        store_missing_leaves: stands in the chain where a leaf isn't there.
        parameters: branch -> names of its parameters, or a `Parameter` with label and unit for each; of the only
            branch also a list. By default the keys of the priors. They count when a run begins.
        max_step_age_s: how long after it was saved a step is on disk, if the disk can follow.
        max_epoch_bytes: steps of so many bytes are an epoch, whatever their age.
        epochs_per_file: how many epochs go to one file.

    All other options are those of `DefaultBackend`, but for `burn` and `chains`. A backend that only reads takes none
    that is for writing.

    Raises:
        EpochMismatch: the folder holds a run that isn't one of Eryn's, or has another dtype (a `ValueError`).
        NotADirectoryError: it is a file.
        PosterityError: see `DefaultBackend`. `RunLocked`: somebody else writes it, and `read_only` reads it meanwhile.
    """

    def __init__(
        self,
        outdir: str | os.PathLike[str] = "./",
        name: str | None = None,
        read_only: bool = False,
        dtype: "npt.DTypeLike | None" = None,
        compression: Compression | None = None,
        compression_opts: int | None = None,
        store_missing_leaves: float = np.nan,
        *,
        max_step_age_s: float = MAX_AGE_S,
        max_epoch_bytes: int = MAX_BYTES,
        outfile_fmt: str | None = None,
        epochs_per_file: int = EPOCHS_PER_FILE,
        inmem_epochs: int = 0,
        save_stats: bool = True,
        compression_level: int | None = None,
        shuffle: bool = False,
        mode: Mode = "a",
        max_pending_bytes: int = 1 << 30,
        max_pending_epochs: int = 10_000,
        max_device_bytes: int = 1 << 30,
        on_full: OnFull = "wait",
        retry_after_s: float = 0.1,
        retry_at_most_s: float = 30.0,
        warn_free_bytes: int = 1 << 30,
        exit_timeout_s: float = 60.0,
        flush_on_sigterm: bool = False,
        reader_threads: int = 4,
        diagnose: bool | Sequence[str] = False,
        trusted_classes: Sequence[str] = (),
        parameters: Parameters | None = None,
        attributes: Mapping[str, object] | None = None,
        **unknown: Never,
    ) -> None:
        if "burn" in unknown or "chains" in unknown:
            raise UnknownOption("burn and chains aren't for a backend of Eryn's: use discard= when reading")
        options = options_in(locals())
        del options["parameters"]  # they are those of branches
        super().__init__(
            outdir,
            name,
            read_only=read_only,
            dtype=dtype,
            compression_opts=compression_opts,
            max_step_age_s=max_step_age_s,
            max_epoch_bytes=max_epoch_bytes,
            options=options,
        )
        self.outdir = self._folder
        self.store_missing_leaves = store_missing_leaves
        self._parameters = {} if parameters is None else check_parameters(parameters)
        if read_only:
            return
        self._replaces = mode == "w"
        self._continue()

    def _continue(self) -> None:
        """Go on with the run that is there, if one is; one that is to be replaced is nothing to go on with."""
        written = self._open_run(self._options)
        try:
            if written.ensemble is not None:
                self._check_dtype(written.ensemble)
                self._keep(written, written.ensemble)
            elif self._replaces:
                self._written = written
        finally:
            if self._written is None:
                written.close()

    def _keep(self, written: WrittenRun[Ensemble, Counted], ensemble: Ensemble) -> None:
        self._stored.close()
        self._written, self._replaces = written, True
        for name, value in ensemble.info.items():
            setattr(self, name, value)

    def _check_dtype(self, ensemble: Ensemble) -> None:
        known = dtype_from_text(ensemble.dtype)
        if self._asked_dtype not in (None, known):
            raise EpochMismatch(
                f"the run in {self._folder} has dtype {known}, and {self._asked_dtype} was asked for; leave it out"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        made, arguments = super().__reduce__()
        return made, (*arguments, None, self.compression, self.compression_opts, self.store_missing_leaves)

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
        """Start empty. Removes the run that is there.

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
            RuntimeError: this only reads.
            Closed: it was closed (a `ValueError`).
            ValueError: the numbers and names contradict each other.
            NotStorable: a name or an item of `info` can't be stored (a `TypeError`).
            RunExists: somebody else began a run in the folder (a `FileExistsError`).
            WriteFailed, NotWritten: removing the files failed (an `OSError`).
        """
        self._check_may_write()
        ensemble = ensemble_of(
            nwalkers, ndims, nleaves_max, ntemps, branch_names,
            nbranches=nbranches, rj=rj, moves=moves, key_order=key_order, dtype=self._new_dtype, info=info,
        )  # fmt: skip
        options = {**self._options, "chains": ensemble.chains, "parameters": ensemble.parameters(self._parameters)}
        if self._written is not None:
            if self._written.ensemble is not None:
                self._written.reset()
            self._written.close()
            self._written = None
        if not self._replaces:
            self._check_none_began()
        options["mode"] = "w"  # what is there, if anything is, has no steps
        written = self._open_run(options)
        written.expect(ensemble)
        self._keep(written, ensemble)

    def _check_none_began(self) -> None:
        if self._stored.ensemble is not None:
            raise RunExists(f"somebody else began a run in {self._folder} since this backend was made")

    def reset_base(self) -> None:
        """Start empty, with what the last chain was started with."""
        args, kwargs = self.reset_args, self.reset_kwargs
        self.reset(*args, **kwargs)

    # ---- adding --------------------------------------------------------------------------------------------------

    def save_step(
        self,
        state: "State",
        accepted: Numbers,
        rj_accepted: Numbers | None = None,
        swaps_accepted: Numbers | None = None,
        moves_accepted_fraction: Mapping[str, Array] | None = None,
    ) -> None:
        """Save a step. It is copied, and seen by every later read; it is on disk after `max_step_age_s` at the latest.

        It waits only when the disk is so far behind that the mailbox is full.

        Args:
            state: an `eryn.state.State`: where the walkers are.
            accepted: how many proposals within a model each walker accepted in this step, `(ntemps, nwalkers)`.
            rj_accepted: the same, of proposals between models.
            swaps_accepted: swaps between neighbouring temperatures, `(ntemps - 1,)`.
            moves_accepted_fraction: name of a move -> the part it accepted so far, `(ntemps, nwalkers)`.

        Raises:
            ValueError: something has another shape than `reset` and `grow` said.
            RuntimeError: this only reads.
            MailboxFull, WriteFailed, Closed, Forked: see `DefaultBackend.ingest`. The step wasn't saved.
        """
        written = self._writable()
        self._check(state, accepted, rj_accepted=rj_accepted, swaps_accepted=swaps_accepted)
        ensemble = self._ensemble
        before = written.state or nothing_counted(ensemble)
        if moves_accepted_fraction is not None and ensemble.moves is None:
            raise ValueError("moves_accepted_fraction was given, and reset() was told of no moves")
        swaps: Numbers = np.zeros(ensemble.ntemps - 1) if swaps_accepted is None else swaps_accepted
        step = _samples_of(state, ensemble, self.store_missing_leaves)
        step |= {ACCEPTED: np.reshape(accepted, -1), SWAPS_ACCEPTED: swaps}
        jumps = None
        if before.rj_accepted is not None and rj_accepted is not None:
            step[RJ_ACCEPTED] = np.reshape(rj_accepted, -1)
            jumps = before.rj_accepted + rj_accepted
        counted = Counted(
            before.accepted + accepted,
            before.swaps_accepted + swaps,
            jumps,
            _fractions(before.moves, moves_accepted_fraction),
            None if state.random_state is None else tuple(state.random_state),
            cast("RandomState", np.random.get_state()),  # noqa: NPY002  # Eryn's moves draw from that one
        )
        written.steps.add(step, counted)


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
