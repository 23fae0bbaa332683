"""A run of an ensemble's steps, being written or only read: what it recorded last, and any of its steps.

Up the stream: `eryn` asks. Down the stream: `steps` and `run` have the run, `branches` knows what lies where.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import msgspec
import numpy as np

from .backend import DefaultBackend
from .branches import Counted, Ensemble, Recorded, epoch_of, nothing_counted, recorded_in
from .epoch import Epoch, EpochDict
from .reads import Reads
from .registry import Log
from .run import Run
from .snapshot import Snapshot
from .steps import Steps
from .tree import Array

if TYPE_CHECKING:
    import numpy.typing as npt


Pick: TypeAlias = "int | slice | Array"
Choice: TypeAlias = Callable[[int], tuple[range, Pick]]


def recorded_by(run: Reads[Epoch] | Snapshot[Epoch]) -> Recorded:
    """What the newest epoch of a run says.

    Raises:
        ValueError: it isn't one of Eryn's.
    """
    epoch = run.load(eclass=Epoch)
    return recorded_in(epoch.sampling, epoch.state)


class Writing:
    """A run that is being written."""

    def __init__(self, backend: DefaultBackend[Epoch], recorded: Recorded, *, max_bytes: int, max_age_s: float) -> None:
        self.backend = backend
        self.ensemble, self._info, _ = recorded
        self._nothing: Counted = nothing_counted(self.ensemble)
        self.steps: Steps[Counted] = Steps(
            backend._service, self._epoch, state=recorded.counted, max_bytes=max_bytes, max_age_s=max_age_s
        )
        self.steps.declare(self.ensemble.samples)

    def _epoch(self, rows: Mapping[str, Array], counted: Counted) -> EpochDict:
        samples = {name: array.transpose(1, 2, 0) for name, array in rows.items()}
        return epoch_of(Recorded(self.ensemble, self._info, counted), samples)

    @property
    def iteration(self) -> int:
        """Steps that are there."""
        return max(0, self.steps.total - self.backend.burn)

    def recorded(self) -> Recorded:
        """What came with the newest step."""
        return Recorded(self.ensemble, self._info, self.steps.state or self._nothing)

    def read(self, names: Sequence[str], choose: Choice, chains: slice) -> dict[str, Array]:
        """Samples of the steps that are chosen of so many; see `read_steps`."""
        snapshot, tail, _ = self.steps.view()
        with snapshot:
            return read_steps(snapshot, tail, self.ensemble, names, choose, chains)

    def expect_blobs(self, blobs: Array) -> None:
        """The next steps have blobs like these."""
        ensemble = self.ensemble.with_blobs(blobs)
        if self.ensemble.blobs is not None and ensemble != self.ensemble:
            raise ValueError(
                f"the blobs of each walker have shape {ensemble.blobs} and dtype {ensemble.blob_dtype}, and in the run "
                f"they have {self.ensemble.blobs} and {self.ensemble.blob_dtype}"
            )
        self.steps.declare(ensemble.samples)
        self.ensemble = ensemble


class Reading:
    """A run that is only read, while or after somebody writes it."""

    def __init__(self, run: Run[Epoch]) -> None:
        self._run = run
        self._known: tuple[tuple[int, int], Recorded] | None = None

    @property
    def iteration(self) -> int:
        """Steps that are there."""
        with self._run.snapshot() as snapshot:
            return snapshot.nsamples

    def recorded(self) -> Recorded:
        """What came with the newest step that is in a file."""
        with self._run.snapshot() as snapshot:
            now = snapshot.registry.generation, snapshot.nepochs
            if self._known is None or self._known[0] != now:
                self._known = now, recorded_by(snapshot)
            return self._known[1]

    def read(self, names: Sequence[str], choose: Choice, chains: slice) -> dict[str, Array]:
        """Samples of the steps that are chosen of so many; see `read_steps`."""
        ensemble = self.recorded().ensemble
        with self._run.snapshot() as snapshot:
            return read_steps(snapshot, {}, ensemble, names, choose, chains)

    def close(self) -> None:
        """Let go of the run."""
        self._run.close()


def chosen_steps(
    n: int, *, discard: int, thin: int, slice_vals: "int | slice | npt.ArrayLike | None"
) -> tuple[range, Pick]:
    """Which of `n` steps to read, a range that goes up, and which of those are wanted.

    Raises:
        ValueError: `thin` is 0.
        IndexError: there is no such step.
    """
    if slice_vals is None:
        slice_vals = slice(discard + thin - 1, n, thin)
    if isinstance(slice_vals, slice):
        wanted = range(n)[slice_vals]
        return (wanted, slice(None)) if wanted.step > 0 else (wanted[::-1], slice(None, None, -1))
    index = np.asarray(slice_vals)
    steps = np.arange(n)[index if index.size else index.astype(np.intp)]
    if steps.ndim > 1:
        raise IndexError(f"slice_vals must be a number, a slice, or a list of either numbers or bools: {slice_vals!r}")
    if not steps.size:
        return range(0), slice(None)
    first, last = int(steps.min()), int(steps.max())
    return range(first, last + 1), 0 if steps.ndim == 0 else steps - first


def read_steps(
    snapshot: Snapshot[object],
    tail: Mapping[str, Array],
    ensemble: Ensemble,
    names: Sequence[str],
    choose: Choice,
    chains: slice,
) -> dict[str, Array]:
    """Samples of some steps, name -> `(nchain, dim, n)`: of those in a snapshot, and those in the tail behind it.

    Args:
        snapshot: the run; ours alone.
        tail: name -> `(nsteps, nchain, dim)`.
        ensemble: what the run is of.
        names: of the samples.
        choose: which steps of so many: see `chosen_steps`.
        chains: which chains.
    """
    nleft, burned = snapshot.nsamples, max(0, snapshot.burn - snapshot.registry.nsamples)
    tail = {name: rows[burned:] for name, rows in tail.items()}
    wanted, pick = choose(nleft + (len(next(iter(tail.values()))) if tail else 0))
    stored = range(wanted.start, min(wanted.stop, nleft), wanted.step)
    parts: dict[str, list[Array]] = {name: [] for name in names}
    if stored:
        _leave_out_after(snapshot, stored[-1])
        samples = snapshot.get_samples(stored.start, stored.step, names, chains) or {}
        for name, part in parts.items():
            part.append(samples[name][:, :, : len(stored)])
    if later := wanted[len(stored) :]:
        at = slice(later.start - nleft, later.stop - nleft, later.step)
        for name, part in parts.items():
            part.append(tail[name][at][:, chains].transpose(1, 2, 0))
    return {name: _joined(part, ensemble, name, chains)[:, :, pick] for name, part in parts.items()}


def _leave_out_after(snapshot: Snapshot[object], step: int) -> None:
    """Have a snapshot show no epoch after the one with a step, so that no more is read."""
    registry = snapshot.registry
    last = registry.epoch_at(registry.burn + step)
    snapshot.registry = msgspec.structs.replace(registry, entries=Log(registry.entries[: last + 1]))


def _joined(parts: list[Array], ensemble: Ensemble, name: str, chains: slice) -> Array:
    if not parts:
        shape, dtype = ensemble.samples[name]
        empty: Array = np.empty((*shape, 0), dtype)[chains]
        return empty
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)
