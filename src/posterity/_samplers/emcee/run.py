"""A run of an ensemble's steps, open for writing or only read. It knows nothing of the sampler's own classes.

Up the stream: `emcee`, the backend of one sampler. Down the stream: `steps` gathers what is written; `ensemble` knows
how it lies in epochs.
"""

from bisect import bisect_left
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import numpy as np

from posterity._model.metadata import Metadata
from posterity._model.options import parse_options
from posterity._reading.snapshot import Snapshot
from posterity._samplers.step_buffer import Steps
from posterity._samplers.step_run import ReadFolder
from posterity._system.arrays import Array
from posterity._writing.blocking import DefaultBackend
from posterity._writing.service import Service
from posterity.epoch import EpochDict

from .epochs import Blobs, Ensemble, WalkersState, read_last, read_newest, read_steps

EPOCHS_PER_FILE = 1000


class Look(NamedTuple):
    """All steps at one moment: those in a snapshot, to be released, and those behind it. `state`: of the last one."""

    ensemble: Ensemble
    snapshot: Snapshot[object]
    tail: dict[str, Array]
    state: WalkersState | None

    @property
    def nsteps(self) -> int:
        """Burned ones too."""
        return self.snapshot.registry.nsamples + (len(self.tail["p"]) if self.tail else 0)

    def read(self, name: str, at: range) -> Array:
        """The steps at some positions, (nsteps, nwalkers, ...), without those that are burned."""
        at = at[bisect_left(at, self.snapshot.burn) :]
        nstored = self.snapshot.registry.nsamples
        n = bisect_left(at, nstored)
        stored = read_steps(self.snapshot, self.ensemble, name, at[:n])
        if n == len(at):
            return stored
        gathered = self.tail[name][at[n] - nstored :: at.step][: len(at) - n]
        return np.concatenate([stored, gathered]) if n else gathered

    def last(self) -> dict[str, Array]:
        """The last step, also if it is burned: name -> (nwalkers, ...)."""
        if self.tail and len(self.tail["p"]):
            return {name: self.tail[name][-1] for name in self.tail}
        return read_last(self.snapshot, self.ensemble)


class Source(Protocol):
    """Where steps are read from."""

    @property
    def ensemble(self) -> Ensemble | None:
        """What all steps have in common; None before there are any."""

    @property
    def total(self) -> int:
        """How many steps there are, burned ones too."""

    @property
    def state(self) -> WalkersState | None:
        """What came with the last step."""

    @property
    def metadata(self) -> Metadata:
        """What the numbers mean, and where they come from."""

    def look(self) -> Look | None:
        """All steps at this moment; None before `ensemble` is known."""


class WrittenRun:
    """A run that is open for writing, and the steps that are gathered for it."""

    def __init__(self, outdir: Path, options: dict[str, object], *, max_age_s: float, max_bytes: int) -> None:
        burn = cast("int", options.pop("burn", 0))  # it is checked like the others
        self.service = Service(parse_options(burn, outdir, options))
        self.face: DefaultBackend[object] = DefaultBackend._of(self.service)
        try:
            with self.service.snapshot() as snapshot:
                newest = read_newest(snapshot, outdir)
            self.ensemble: Ensemble | None = None
            self.steps: Steps[WalkersState] = Steps(
                self.service,
                self._make_epoch,
                state=None if newest is None else newest.state,
                max_bytes=max_bytes,
                max_age_s=max_age_s,
            )
            if newest is not None:
                self._expect(newest.ensemble)
        except BaseException:
            self.face.close()
            raise

    def _make_epoch(self, steps: Mapping[str, Array], state: WalkersState) -> EpochDict:
        assert self.ensemble is not None
        return self.ensemble.epoch(steps, state)

    @property
    def total(self) -> int:
        """How many steps there are."""
        return self.steps.total

    @property
    def state(self) -> WalkersState | None:
        """What came with the last step."""
        return self.steps.state

    @property
    def metadata(self) -> Metadata:
        """What the numbers mean, and where they come from."""
        return self.face.metadata

    def look(self) -> Look | None:
        """All steps at this moment."""
        if self.ensemble is None:
            return None
        view = self.steps.view()
        return Look(self.ensemble, view.snapshot, view.tail, view.state)

    def reset(self, ensemble: Ensemble) -> None:
        """Start empty, for such steps."""
        try:
            if self.steps.total:
                self.face.reset()
        finally:  # if the files can't be removed just now, the run is empty all the same
            self._expect(ensemble)

    def expect_blobs(self, blobs: Blobs) -> None:
        """The steps to come have such blobs.

        Raises:
            ValueError: those that are there have others.
        """
        assert self.ensemble is not None
        known = self.ensemble.blobs
        if known is None:
            self._expect(self.ensemble._replace(blobs=blobs))
        elif known.shape != blobs.shape:
            raise ValueError(f"the blobs have shape {blobs.shape}, and in the run they have {known.shape}")

    def _expect(self, ensemble: Ensemble) -> None:
        self.steps.declare(ensemble.shapes)  # first: it hands over what is gathered as it was
        self.ensemble = ensemble

    def save(self, state: Any, accepted: Array) -> None:  # an emcee.State, and whose proposals were accepted
        """Add a step that fits."""
        assert self.ensemble is not None
        step = {"p": state.coords, "lp": state.log_prob, "accepted": accepted}
        if self.ensemble.blobs is not None:
            step["blobs"] = state.blobs
        before = self.steps.state
        total: Any = np.zeros(self.ensemble.nwalkers) if before is None else before.accepted
        self.steps.add(step, WalkersState(state.random_state, total + accepted))


class StoredRun(ReadFolder):
    """A run that is only read."""

    @property
    def ensemble(self) -> Ensemble | None:
        """What all steps have in common."""
        look = self._released()
        return None if look is None else look.ensemble

    @property
    def total(self) -> int:
        """How many steps there are."""
        look = self._released()
        return 0 if look is None else look.nsteps

    @property
    def state(self) -> WalkersState | None:
        """What came with the last step."""
        look = self._released()
        return None if look is None else look.state

    @property
    def metadata(self) -> Metadata:
        """What the numbers mean, and where they come from; nothing if there is no run."""
        snapshot = self.snapshot()
        if snapshot is None:
            return Metadata()
        with snapshot:
            return snapshot.metadata

    def _released(self) -> Look | None:
        look = self.look()
        if look is not None:
            look.snapshot.release()
        return look

    def look(self) -> Look | None:
        """All steps at this moment."""
        snapshot = self.snapshot()
        if snapshot is None:
            return None
        newest = None
        try:
            newest = read_newest(snapshot, self.outdir)
        finally:
            if newest is None:
                snapshot.release()
        return None if newest is None else Look(newest.ensemble, snapshot, {}, newest.state)
