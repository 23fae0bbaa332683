"""`EmceeBackend`: emcee's samplers on a run of ours.

It does what `emcee.backends.HDFBackend` does. A step costs a copy into memory, not an HDF5 file that is opened and
closed. It needs the extra `emcee`; nothing else of the package imports this module.

Up the stream: `emcee.EnsembleSampler` saves steps. Down the stream: `step_run` keeps them.
"""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Never

import numpy as np

from posterity._model.metadata import Metadata, Parameters
from posterity._model.options import Compression, Mode, OnFull, options_in
from posterity._samplers.step_backend import StepBackend
from posterity._samplers.step_buffer import MAX_AGE_S, MAX_BYTES
from posterity._samplers.step_run import EPOCHS_PER_FILE
from posterity._system.arrays import Array
from posterity.errors import MissingExtra

from .epochs import Ensemble, WalkersState
from .run import read_last, read_steps

try:
    import emcee
except ImportError as error:
    raise MissingExtra("EmceeBackend needs the package emcee: pip install 'posterity[emcee]'") from error

if TYPE_CHECKING:
    import numpy.typing as npt

_SAMPLES = {"chain": "p", "log_prob": "lp", "blobs": "blobs"}


class EmceeBackend(StepBackend[Ensemble, WalkersState], emcee.backends.Backend):  # type: ignore[misc]  # emcee has no types
    """Keeps the steps of an `emcee.EnsembleSampler` in a run folder; a drop-in for `emcee.backends.HDFBackend`.

    A step that was saved is seen by every later read of this backend, and is on disk after `max_step_age_s` at the
    latest. `flush` waits for that, `close` too, and so does the end of the process. A sampler with a backend whose run
    has steps already goes on from the last one, as if it had never stopped: `sampler.run_mcmc(None, n)`.

    In the run each walker is a chain, positions are the samples "p", log-probabilities "lp", and blobs of numbers
    "blobs". So everything else that reads a run reads this one, `open_run` in another process for example.

    Args:
        outdir: the run folder.
        name: the name of one of several chains: a folder in `outdir` that is the run folder then.
        read_only: look at a run, which somebody else may be writing. Writing is a `RuntimeError` then.
        dtype: of positions and log-probabilities, `np.longdouble` for example; by default that of the run, and float64
            for a new one.
        compression, compression_opts: see `DefaultBackend`; the latter is the `compression_level`.
        max_step_age_s: how long after it was saved a step is on disk, if the disk can follow.
        max_epoch_bytes: steps of so many bytes are an epoch, whatever their age.
        epochs_per_file: how many epochs go to one file.
        inmem_epochs: so many of the newest epochs of steps are in memory only, until `flush` or `close`.

    All other options are those of `DefaultBackend`. A backend that only reads takes none that is for writing.

    `filename`, `name`: as they were given. `folder`: the run folder.

    Raises:
        EpochMismatch: the folder holds a run that isn't one of emcee's (a `ValueError`).
        NotADirectoryError: it is a file; `import_emcee` makes a run of what `HDFBackend` wrote.
        PosterityError: see `DefaultBackend`. `RunLocked`: somebody else writes it, and `read_only` reads it meanwhile.
    """

    _ensemble_class = Ensemble

    def __init__(
        self,
        outdir: str | os.PathLike[str] = "./",
        name: str | None = None,
        read_only: bool = False,
        dtype: "npt.DTypeLike | None" = None,
        compression: Compression | None = None,
        compression_opts: int | None = None,
        *,
        max_step_age_s: float = MAX_AGE_S,
        max_epoch_bytes: int = MAX_BYTES,
        burn: int = 0,
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
        chains: Mapping[str, int] | None = None,
        attributes: Mapping[str, object] | None = None,
        **unknown: Never,
    ) -> None:
        super().__init__(
            outdir,
            name,
            read_only=read_only,
            dtype=dtype,
            compression_opts=compression_opts,
            max_step_age_s=max_step_age_s,
            max_epoch_bytes=max_epoch_bytes,
            options=options_in(locals()),
        )
        self.filename = os.fsdecode(outdir)
        self.folder = self._folder
        if not read_only:
            self._written = self._open_run(self._options)

    # ---- what the run is -----------------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, int]:
        """The dimensions of the ensemble, `(nwalkers, ndim)`."""
        ensemble = self._ensemble
        return ensemble.nwalkers, ensemble.ndim

    @property
    def accepted(self) -> Array:
        """How many proposals of each walker were accepted, `(nwalkers,)`."""
        ensemble, state = self._ensemble, self._source.state
        return np.zeros(ensemble.nwalkers) if state is None else np.array(state.accepted)

    @property
    def random_state(self) -> Any:  # what the sampler's generator takes
        """The state of the sampler's random number generator at the last step; None before there is one."""
        state = self._source.state
        return None if state is None else state.random_state

    @property
    def metadata(self) -> Metadata:
        """What the numbers mean, and where they come from. It is given by the options `parameters` and `attributes`."""
        return self._source.metadata

    # ---- writing -------------------------------------------------------------------------------------------------

    def reset(self, nwalkers: int, ndim: int) -> None:
        """Start empty, for steps of `nwalkers` walkers in `ndim` dimensions. Removes the run that is there.

        Raises:
            RuntimeError: this only reads.
            Closed: it was closed (a `ValueError`).
            WriteFailed: removing its files failed (an `OSError`); the run is empty, and the attempts go on.
        """
        self._writable().reset_for(Ensemble(int(nwalkers), int(ndim), self._new_dtype))

    def save_step(self, state: Any, accepted: Array) -> None:  # an emcee.State
        """Save a step. It is copied, and seen by every later read; it is on disk after `max_step_age_s` at the latest.

        It waits only when the disk is so far behind that the mailbox is full.

        Args:
            state: an `emcee.State`: coords (nwalkers, ndim), log_prob (nwalkers,), blobs (nwalkers, ...) or None.
            accepted: whether the proposal of each walker was accepted, (nwalkers,).

        Raises:
            ValueError: the state doesn't fit the ensemble.
            RuntimeError: this only reads.
            MailboxFull, WriteFailed, Closed, Forked: see `DefaultBackend.ingest`. The step wasn't saved.
        """
        written = self._writable()
        self._check(state, accepted)
        ensemble, before = self._ensemble, written.state
        step = {"p": state.coords, "lp": state.log_prob, "accepted": accepted}
        if ensemble.blobs is not None:
            step["blobs"] = state.blobs
        total: Any = np.zeros(ensemble.nwalkers) if before is None else before.accepted
        written.steps.add(step, WalkersState(state.random_state, total + accepted))

    # ---- reading -------------------------------------------------------------------------------------------------

    def get_value(self, name: str, flat: bool = False, thin: int = 1, discard: int = 0) -> Array | None:
        """Steps `discard + thin - 1`, and then every `thin`-th, but for those that are burned.

        Args:
            name: "chain", "log_prob" or "blobs".
            flat: give `(nsteps * nwalkers, ...)`, step by step, in place of `(nsteps, nwalkers, ...)`.
            thin: take only every `thin`-th step.
            discard: leave out so many steps at the beginning of the run.

        Returns:
            An array of the caller's own; None for blobs if there are none.

        Raises:
            AttributeError: there are no steps yet.
            KeyError: another name.
            ValueError: `thin` is below 1.
        """
        if name not in _SAMPLES:
            raise KeyError(f"steps have no {name!r}; they have {', '.join(_SAMPLES)}")
        if thin < 1:
            raise ValueError(f"thin must be at least 1, got {thin}")
        view = self._view()
        with view.snapshot:
            if name == "blobs" and view.ensemble.blobs is None:
                return None
            found = read_steps(view, _SAMPLES[name], range(view.nsteps)[discard + thin - 1 :: thin])
        return found.reshape(found.shape[0] * found.shape[1], *found.shape[2:]) if flat else found

    def get_last_sample(self) -> emcee.State:
        """The last step, with the random state, to go on from.

        Raises:
            AttributeError: there are no steps yet.
        """
        view = self._view()
        with view.snapshot:
            step = read_last(view)
        return emcee.State(
            step["p"],
            log_prob=step["lp"],
            blobs=step.get("blobs"),
            random_state=None if view.state is None else view.state.random_state,
        )
