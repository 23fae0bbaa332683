"""A run of branches' steps, open for writing or only read. It knows nothing of the sampler's own classes.

Up the stream: `eryn`, the backend of one sampler. Down the stream: `steps` gathers what is written; `branches` knows
how it lies in epochs.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

import numpy as np

from posterity._reading.snapshot import Snapshot, samples_at
from posterity._samplers.step_buffer import Steps
from posterity._samplers.step_run import ReadFolder
from posterity._system.arrays import Array
from posterity._writing.blocking import DefaultBackend
from posterity.epoch import Epoch, EpochDict
from posterity.errors import Burned, EpochMismatch

from .epochs import Counted, Recorded, epoch_of, nothing_counted, recorded_in

if TYPE_CHECKING:
    import numpy.typing as npt

Pick: TypeAlias = "int | slice | Array"


class Look(NamedTuple):
    """All steps at one moment: those in a snapshot, to be released, and the `tail` behind them."""

    snapshot: Snapshot[Epoch] | Snapshot[object]
    tail: Mapping[str, Array]
    recorded: Recorded

    @property
    def nsteps(self) -> int:
        """Burned ones too."""
        return self.snapshot.registry.nsamples + (len(next(iter(self.tail.values()))) if self.tail else 0)

    def read(self, names: Sequence[str], wanted: range, chains: slice) -> dict[str, Array]:
        """Samples of some steps that aren't burned, name -> `(nchain, dim, n)`; `chains`: which."""
        nstored = self.snapshot.registry.nsamples
        n = bisect_left(wanted, nstored)
        stored, gathered = wanted[:n], wanted[n:]
        parts: dict[str, list[Array]] = {name: [] for name in names}
        if stored:
            samples = samples_at(self.snapshot, names, stored, chains)
            for name, part in parts.items():
                part.append(samples[name])
        if gathered:
            at = slice(gathered.start - nstored, gathered.stop - nstored, gathered.step)
            for name, part in parts.items():
                part.append(self.tail[name][at][:, chains].transpose(1, 2, 0))
        return {name: self._joined(part, name, chains) for name, part in parts.items()}

    def _joined(self, parts: list[Array], name: str, chains: slice) -> Array:
        if not parts:
            shape, dtype = self.recorded.ensemble.samples[name]
            return np.empty((*shape, 0), dtype)[chains]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)


def chosen_steps(
    nsteps: int, burn: int, *, discard: int, thin: int, slice_vals: "int | slice | npt.ArrayLike | None"
) -> tuple[range, Pick]:
    """Which steps to read, a range that goes up, and which of those are wanted.

    Raises:
        ValueError: `thin` is 0.
        IndexError: there is no such step.
        Burned: a step that is named was burned (a `ValueError`).
    """
    if slice_vals is None:
        slice_vals = slice(discard + thin - 1, nsteps, thin)
    if isinstance(slice_vals, slice):
        wanted = range(nsteps)[slice_vals]
        pick = slice(None) if wanted.step > 0 else slice(None, None, -1)
        wanted = wanted[pick]
        return wanted[bisect_left(wanted, burn) :], pick
    index = np.asarray(slice_vals)
    steps = np.arange(nsteps)[index if index.size else index.astype(np.intp)]
    if steps.ndim > 1:
        raise IndexError(f"slice_vals must be a number, a slice, or a list of numbers or bools; got {slice_vals!r}")
    if not steps.size:
        return range(0), slice(None)
    first, last = int(steps.min()), int(steps.max())
    if first < burn:
        raise Burned(f"step {first} was burned: burn is {burn}")
    return range(first, last + 1), 0 if steps.ndim == 0 else steps - first


class Source(Protocol):
    """Where steps are read from."""

    @property
    def recorded(self) -> Recorded | None:
        """What came with the last step; None before it is known what steps there are."""

    @property
    def total(self) -> int:
        """How many steps there are, burned ones too."""

    def look(self) -> Look | None:
        """All steps at this moment; None before it is known what they are."""


def read_recorded(snapshot: Snapshot[Epoch] | Snapshot[object], folder: Path) -> Recorded | None:
    """What the newest epoch of the run in a folder says; None if it has none.

    Raises:
        EpochMismatch: the run isn't one of Eryn's, or an import that was cut off (a `ValueError`).
    """
    if not snapshot.nepochs:
        return None
    epoch = snapshot.load(eclass=Epoch)
    assert isinstance(epoch, Epoch)
    recorded = recorded_in(epoch.sampling, epoch.state)
    if recorded is None:
        raise EpochMismatch(f"{folder} holds a run that no ErynBackend wrote; use another folder, or mode='w'")
    if epoch.state is None:
        raise EpochMismatch(f"{folder} holds an import that was cut off; import it again, into another folder")
    return recorded


class WrittenRun:
    """A run that is open for writing, and the steps that are gathered for it."""

    def __init__(self, backend: DefaultBackend[Epoch], recorded: Recorded, *, max_bytes: int, max_age_s: float) -> None:
        self.face = backend
        self.service = backend._service
        self.ensemble, self._info, counted = recorded
        self._nothing: Counted = nothing_counted(self.ensemble)
        self.steps: Steps[Counted] = Steps(
            self.service, self._make_epoch, state=counted, max_bytes=max_bytes, max_age_s=max_age_s
        )
        self.steps.declare(self.ensemble.in_a_step)

    def _make_epoch(self, rows: Mapping[str, Array], counted: Counted) -> EpochDict:
        return epoch_of(Recorded(self.ensemble, self._info, counted), rows)

    @property
    def total(self) -> int:
        """How many steps there are."""
        return self.steps.total

    @property
    def counted(self) -> Counted:
        """What came with the last step."""
        return self.steps.state or self._nothing

    @property
    def recorded(self) -> Recorded:
        """What came with the last step."""
        return Recorded(self.ensemble, self._info, self.counted)

    def look(self) -> Look:
        """All steps at this moment."""
        view = self.steps.view()
        return Look(view.snapshot, view.tail, Recorded(self.ensemble, self._info, view.state or self._nothing))

    def expect_blobs(self, blobs: Array) -> None:
        """The steps to come have blobs like these.

        Raises:
            ValueError: those that are there have others.
            NotStorable: they can't be stored (a `TypeError`).
        """
        ensemble = self.ensemble.with_blobs(blobs)
        if self.ensemble.blobs is not None and ensemble != self.ensemble:
            raise ValueError(
                f"the blobs of each walker have shape {ensemble.blobs} and dtype {ensemble.blob_dtype}, and in the run "
                f"they have {self.ensemble.blobs} and {self.ensemble.blob_dtype}"
            )
        self.steps.declare(ensemble.in_a_step)
        self.ensemble = ensemble


class StoredRun(ReadFolder):
    """A run that is only read."""

    def __init__(self, outdir: Path) -> None:
        super().__init__(outdir)
        self._known: tuple[tuple[float, ...], Recorded] | None = None

    @property
    def recorded(self) -> Recorded | None:
        """What came with the last step that is in a file."""
        look = self._released()
        return None if look is None else look.recorded

    @property
    def total(self) -> int:
        """How many steps there are."""
        look = self._released()
        return 0 if look is None else look.nsteps

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
        recorded = None
        try:
            recorded = self._read_recorded(snapshot)
        finally:
            if recorded is None:
                snapshot.release()
        return None if recorded is None else Look(snapshot, {}, recorded)

    def _read_recorded(self, snapshot: Snapshot[object]) -> Recorded | None:
        """It is read once for each epoch: many small questions are asked."""
        registry = snapshot.registry
        now = registry.metadata.started_at, registry.generation, registry.next_index
        if self._known is None or self._known[0] != now:
            recorded = read_recorded(snapshot, self.outdir)
            self._known = None if recorded is None else (now, recorded)
        return None if self._known is None else self._known[1]

    def close(self) -> None:
        """Let go of the run, until it is read again."""
        self._known = None
        super().close()
