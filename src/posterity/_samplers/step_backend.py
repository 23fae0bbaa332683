"""What the backends of ensemble samplers share: opening, flushing, closing, copies, and what any run of steps is asked.

A sampler's backend adds its own words for a step, and for reading.

Up the stream: a sampler's `EnsembleSampler`. Down the stream: `step_run` has the run.
"""

import io
import os
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self

import msgspec
import numpy as np

from posterity._model.options import Options
from posterity._system.arrays import Array
from posterity.errors import Closed

from .step_run import EnsembleT, StateT, StepSource, StepsView, StoredRun, WrittenRun, run_folder

if TYPE_CHECKING:
    import numpy.typing as npt

    from posterity._writing.status import Status


class StepBackend(Generic[EnsembleT, StateT]):
    """Stands before the sampler's own `Backend` among the base classes; the arguments are those of the backends.

    `_ensemble_class`: the sampler's `StepEnsemble`. `_written`: the run while it is open for writing; a backend opens
    it when it knows how, with `_open_run`.
    """

    _ensemble_class: type[EnsembleT]
    _check_blobs: Callable[[Array | None], None]  # the sampler's own: whether steps have blobs always or never

    def __init__(
        self,
        outdir: str | os.PathLike[str],
        name: str | None,
        *,
        read_only: bool,
        dtype: "npt.DTypeLike | None",
        compression_opts: int | None,
        max_step_age_s: float,
        max_epoch_bytes: int,
        options: dict[str, Any],
    ) -> None:
        if read_only:
            _refuse_options(options)
        self.name = name
        self.read_only = read_only
        self.compression = options.get("compression")
        self.compression_opts = compression_opts
        self._folder = run_folder(outdir, name).absolute()
        self._asked_dtype = None if dtype is None else np.dtype(dtype)
        self._max_age_s, self._max_bytes = max_step_age_s, max_epoch_bytes
        self._options = {option: value for option, value in options.items() if option != "outdir"}
        if compression_opts is not None:
            self._options["compression_level"] = compression_opts
        self._written: WrittenRun[EnsembleT, StateT] | None = None
        self._stored: StoredRun[EnsembleT, StateT] = StoredRun(self._folder, self._ensemble_class)
        self._is_closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._written is None or self._written.is_of_this_process:  # a forked child has nothing to close
            self.close()

    def __repr__(self) -> str:
        state = self._written.status if self._written is not None else "only read"
        return f"<{type(self).__name__} of {self._folder}: {state}>"

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy, in another process for example, only reads: a run has one writer."""
        outdir = self._folder if self.name is None else self._folder.parent
        return type(self), (str(outdir), self.name, True)

    def _open_run(self, options: Mapping[str, Any]) -> WrittenRun[EnsembleT, StateT]:
        return WrittenRun(
            self._folder, self._ensemble_class, options, max_age_s=self._max_age_s, max_bytes=self._max_bytes
        )

    @property
    def _source(self) -> StepSource[EnsembleT, StateT]:
        written = self._written
        return self._stored if written is None else written

    # ---- what the run is -----------------------------------------------------------------------------------------

    @property
    def initialized(self) -> bool:
        """Whether there are steps, or `reset` said what they will be."""
        return self._source.ensemble is not None

    @property
    def iteration(self) -> int:
        """How many steps were saved, burned ones too."""
        if not self.initialized:
            raise self._no_steps()
        return self._source.total

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Of all numbers but blobs."""
        ensemble = self._source.ensemble
        return self._new_dtype if ensemble is None else ensemble.shapes["p"][1]

    @property
    def dtype_set(self) -> bool:
        """Whether the dtype is more than a default."""
        return self._asked_dtype is not None or self.initialized

    @property
    def _new_dtype(self) -> np.dtype[np.generic]:
        return np.dtype(np.float64) if self._asked_dtype is None else self._asked_dtype

    def has_blobs(self) -> bool:
        """Whether the steps have blobs."""
        return self._ensemble.blobs is not None

    @property
    def _ensemble(self) -> EnsembleT:
        ensemble = self._source.ensemble
        if ensemble is None:
            raise self._no_steps()
        return ensemble

    def _view(self) -> StepsView[EnsembleT, StateT]:
        """All steps at this moment, one at least."""
        view = self._source.view()
        if view is None:
            raise self._no_steps()
        if not view.nsteps:
            view.snapshot.release()
            raise self._no_steps()
        return view

    def _no_steps(self) -> AttributeError:
        return AttributeError(f"{self._folder} holds no steps yet: run the sampler with store=True first")

    # ---- writing -------------------------------------------------------------------------------------------------

    def grow(self, ngrow: int, blobs: Array | None) -> None:  # noqa: ARG002  # the samplers' signature
        """Get ready for more steps. There is nothing to make room for; what blobs they have is noted.

        Args:
            ngrow: how many steps.
            blobs: those of one step, or None.

        Raises:
            ValueError: earlier steps had others, or none.
            NotStorable: blobs that can't be stored, Python objects for example (a `TypeError`).
            RuntimeError: this only reads.
            Closed: it was closed (a `ValueError`).
        """
        written = self._writable()
        self._check_blobs(blobs)
        if blobs is not None:
            written.expect_blobs(np.asarray(blobs))

    def flush(self, publish: bool = False) -> None:
        """Wait until all steps saved so far survive a power cut. See `DefaultBackend.flush`."""
        self._writable().flush(publish)

    @property
    def status(self) -> "Status":
        """What the writer is doing; never waits. Steps that are only gathered so far aren't in its counts."""
        return self._writable().status

    def close(self, timeout_s: float | None = 60) -> None:
        """Write all, publish, and let the folder go; idempotent. Reading goes on, from the folder.

        Raises:
            NotWritten: not all was written in time (a `TimeoutError`); the attempts go on.
        """
        if self._written is not None:
            self._written.close(timeout_s)
            self._written = None
        self._stored.close()
        self._is_closed = True

    def open(self, mode: str = "r") -> None:
        """Not for a run: it isn't one HDF5 file. `posterity.open_run` gives what can be read from it.

        Raises:
            io.UnsupportedOperation: always (an `OSError`).
        """
        raise io.UnsupportedOperation(
            f"{self._folder} is a run folder and no HDF5 file to open with mode {mode!r}; use posterity.open_run"
        )

    def _writable(self) -> WrittenRun[EnsembleT, StateT]:
        if self._written is not None:
            return self._written
        self._check_may_write()
        raise AttributeError(f"{self._folder} holds no run yet: call reset() first, as a sampler does")

    def _check_may_write(self) -> None:
        if self.read_only:
            raise RuntimeError(f"the backend of {self._folder} only reads; open it with read_only=False to write")
        if self._is_closed:
            raise Closed(f"the backend of {self._folder} was closed; open it again to go on")


def _refuse_options(options: Mapping[str, Any]) -> None:
    """Refuse what is for writing where a run is only read: what a copy of a backend is given doesn't count.

    Raises:
        TypeError: the message names them.
    """
    usual = msgspec.structs.asdict(Options())
    kept = {"outdir", "compression", "epochs_per_file"}
    given = [option for option, value in options.items() if option not in kept and value != usual[option]]
    if given:
        raise TypeError(f"{', '.join(given)}: a backend that only reads has no options for writing")
