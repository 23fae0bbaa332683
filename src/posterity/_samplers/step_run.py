"""A run of an ensemble's steps, open for writing or only read, whichever sampler makes them.

What is a sampler's own is its `StepEnsemble`, and the state that comes with each step.

Up the stream: the sampler's backend. Down the stream: `step_buffer` gathers what is written; `open_run` reads.
"""

import os
from bisect import bisect_left
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, Self, TypeAlias, TypeVar, cast

from posterity._model.metadata import Metadata
from posterity._reading.run import Run, open_run
from posterity._reading.snapshot import Snapshot
from posterity._system.arrays import Array
from posterity._writing.blocking import DefaultBackend
from posterity.epoch import Epoch, EpochDict
from posterity.errors import EpochMismatch

from .step_buffer import Shapes, Steps

EPOCHS_PER_FILE = 1000

StateT = TypeVar("StateT")
EnsembleT = TypeVar("EnsembleT", bound="StepEnsemble[Any]")


class StepEnsemble(Protocol[StateT]):
    """What all steps of a run have in common, and how they lie in epochs. Each sampler has its own.

    `written_by`: the backend that writes such runs. A step's arrays are what `shapes` says; among them is "p".
    """

    written_by: ClassVar[str]

    @property
    def shapes(self) -> Shapes:
        """Of each array of a step: its shape and dtype."""

    @property
    def blobs(self) -> object | None:
        """What blobs a step has; None without any."""

    def with_blobs(self, blobs: Array) -> Self:
        """This ensemble with blobs like those of a step.

        Raises:
            ValueError: it has others.
            NotStorable: they can't be stored (a `TypeError`).
        """

    def epoch(self, steps: Mapping[str, Array], state: StateT | None) -> EpochDict:
        """An epoch of some steps, name -> array (nsteps, ...), and the state that came with the last of them.

        Nothing is copied that needn't be. Without a state a run can't be continued from it: an import isn't over then.
        """

    @classmethod
    def found_in(cls, epoch: Epoch) -> tuple[Self, StateT | None] | None:
        """What an epoch says of the ensemble, and the state in it; None if it is an epoch of another sampler's."""


class StepsView(NamedTuple, Generic[EnsembleT, StateT]):
    """All steps at one moment: those in a snapshot, to be released, and the `tail` gathered behind them.

    `tail`: name -> array (nsteps, ...), the caller's own. `state`: what came with the last step; None before the first.
    """

    ensemble: EnsembleT
    snapshot: Snapshot[object]
    tail: Mapping[str, Array]
    state: StateT | None

    @property
    def nsteps(self) -> int:
        """Burned ones too."""
        return self.snapshot.registry.nsamples + (len(next(iter(self.tail.values()))) if self.tail else 0)

    def split(self, at: range) -> tuple[range, slice | None]:
        """Of some steps, by position: which are in the snapshot, and where in the tail the others are, if there are."""
        nstored = self.snapshot.registry.nsamples
        n = bisect_left(at, nstored)
        stored, rest = at[:n], at[n:]
        return stored, slice(rest.start - nstored, rest.stop - nstored, rest.step) if rest else None


def run_folder(outdir: str | os.PathLike[str], name: str | None) -> Path:
    """The folder of a run, or of the one with a name in it.

    Raises:
        ValueError: the name isn't one of a plain, visible folder.
        NotADirectoryError: it is a file.
    """
    folder = Path(os.fsdecode(outdir))
    if name is not None:
        if not name or name.startswith(".") or "/" in name or "\0" in name:
            raise ValueError(f"name must be a plain, visible folder name, got {name!r}")
        folder /= name
    if folder.is_file():
        raise NotADirectoryError(f"{folder} is a file and no run folder; import_emcee or import_eryn makes a run of it")
    return folder


def _read_newest(
    snapshot: Snapshot[object], folder: Path, ensemble_class: type[EnsembleT]
) -> tuple[EnsembleT, Any] | None:
    """What the newest epoch of the run in a folder says: the ensemble, and the state; None if there is no epoch.

    Raises:
        EpochMismatch: the run is another sampler's, or an import that was cut off (a `ValueError`).
    """
    if not snapshot.nepochs:
        return None
    found = ensemble_class.found_in(cast("Epoch", snapshot.load(eclass=Epoch)))
    if found is None:
        writer = ensemble_class.written_by
        raise EpochMismatch(f"{folder} holds a run that no {writer} wrote; use another folder, or mode='w'")
    if found[1] is None:
        raise EpochMismatch(f"{folder} holds an import that was cut off; remove it and import it again")
    return found


class WrittenRun(DefaultBackend[object], Generic[EnsembleT, StateT]):
    """A run that is open for writing, and the steps that are gathered for it.

    Args:
        folder: the run folder. A run in it is gone on with.
        ensemble_class: the sampler's.
        options: of `DefaultBackend`.
        max_age_s, max_bytes: see `Steps`.

    `ensemble`: what all steps have in common; None before it is known.

    Raises:
        EpochMismatch: the run is another sampler's, or an import that was cut off (a `ValueError`).
        PosterityError, ValueError, TypeError: see `DefaultBackend` and `Steps`.
    """

    def __init__(
        self,
        folder: Path,
        ensemble_class: type[EnsembleT],
        options: Mapping[str, Any],
        *,
        max_age_s: float,
        max_bytes: int,
    ) -> None:
        super().__init__(outdir=folder, **options)
        try:
            with self.snapshot() as snapshot:
                ensemble, state = _read_newest(snapshot, folder, ensemble_class) or (None, None)
            self.ensemble: EnsembleT | None = None
            self.steps: Steps[StateT] = Steps(
                self._service, self._make_epoch, state=state, max_bytes=max_bytes, max_age_s=max_age_s
            )
            if ensemble is not None:
                self.expect(ensemble)
        except BaseException:
            self.close()
            raise

    def _make_epoch(self, steps: Mapping[str, Array], state: StateT) -> EpochDict:
        assert self.ensemble is not None
        return self.ensemble.epoch(steps, state)

    @property
    def is_of_this_process(self) -> bool:
        """Whether this process opened the run, and not the one that it was forked from."""
        return self._service.is_of_this_process

    @property
    def total(self) -> int:
        """How many steps there are, burned ones too."""
        return self.steps.total

    @property
    def state(self) -> StateT | None:
        """What came with the last step; None before the first."""
        return self.steps.state

    def view(self) -> StepsView[EnsembleT, StateT] | None:
        """All steps at this moment; None before the ensemble is known."""
        if self.ensemble is None:
            return None
        view = self.steps.view()
        return StepsView(self.ensemble, view.snapshot, view.tail, view.state)

    def expect(self, ensemble: EnsembleT) -> None:
        """The steps to come are of such an ensemble."""
        self.steps.declare(ensemble.shapes)  # first: it hands over what is gathered as it was
        self.ensemble = ensemble

    def expect_blobs(self, blobs: Array) -> None:
        """The steps to come have blobs like these of one step.

        Raises:
            ValueError: those that are there have others.
            NotStorable: they can't be stored (a `TypeError`).
        """
        assert self.ensemble is not None
        self.expect(self.ensemble.with_blobs(blobs))

    def reset_for(self, ensemble: EnsembleT) -> None:
        """Start empty, for steps of such an ensemble; see `reset`."""
        try:
            if self.steps.total:
                self.reset()
        finally:  # if the files can't be removed just now, the run is empty all the same
            self.expect(ensemble)

    def flush(self, publish: bool = False) -> None:
        """Wait until all steps that were added survive a power cut. See `DefaultBackend.flush`."""
        self.steps.hand_over()
        super().flush(publish)


class StoredRun(Generic[EnsembleT, StateT]):
    """A run that is only read; it needn't be there yet, and may go and come again.

    Raises, whatever is asked:
        EpochMismatch: the run is another sampler's, or an import that was cut off (a `ValueError`).
    """

    def __init__(self, folder: Path, ensemble_class: type[EnsembleT]) -> None:
        self._folder = folder
        self._ensemble_class = ensemble_class
        self._run: Run[object] | None = None
        self._known: tuple[tuple[float, ...], tuple[EnsembleT, StateT]] | None = None

    @property
    def ensemble(self) -> EnsembleT | None:
        """What all steps have in common; None before there are any."""
        view = self._released()
        return None if view is None else view.ensemble

    @property
    def total(self) -> int:
        """How many steps there are, burned ones too."""
        view = self._released()
        return 0 if view is None else view.nsteps

    @property
    def state(self) -> StateT | None:
        """What came with the last step; None before the first."""
        view = self._released()
        return None if view is None else view.state

    @property
    def metadata(self) -> Metadata:
        """What the numbers mean, and where they come from; nothing if there is no run."""
        snapshot = self._snapshot()
        if snapshot is None:
            return Metadata()
        with snapshot:
            return snapshot.metadata

    def view(self) -> StepsView[EnsembleT, StateT] | None:
        """All steps at this moment; None before there are any."""
        snapshot = self._snapshot()
        if snapshot is None:
            return None
        newest = None
        try:
            newest = self._newest(snapshot)
        finally:
            if newest is None:
                snapshot.release()
        return None if newest is None else StepsView(newest[0], snapshot, {}, newest[1])

    def close(self) -> None:
        """Let go of the run, until it is read again."""
        self._known = None
        if self._run is not None:
            self._run.close()
            self._run = None

    def _released(self) -> StepsView[EnsembleT, StateT] | None:
        view = self.view()
        if view is not None:
            view.snapshot.release()
        return view

    def _snapshot(self) -> Snapshot[object] | None:
        """The run at this moment, to be released; None if there is none."""
        try:
            if self._run is None:
                self._run = open_run(self._folder)
            return self._run.snapshot()
        except FileNotFoundError:
            self.close()
            return None

    def _newest(self, snapshot: Snapshot[object]) -> tuple[EnsembleT, StateT] | None:
        """It is read once for each epoch: many small questions are asked."""
        registry = snapshot.registry
        now = registry.metadata.started_at, registry.generation, registry.next_index
        known = self._known
        if known is None or known[0] != now:
            newest = _read_newest(snapshot, self._folder, self._ensemble_class)
            known = self._known = None if newest is None else (now, newest)
        return None if known is None else known[1]


StepSource: TypeAlias = WrittenRun[EnsembleT, StateT] | StoredRun[EnsembleT, StateT]
