"""The reading calls that everything has which gives snapshots: a backend, and a run that is only read.

Up the stream: `snapshot`. Down the stream: `blocking`, `run`.
"""

import os
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Generic

from posterity._convergence.diagnosis import LOOK_EVERY_S, Diagnosis
from posterity._convergence.diagnostics import Diagnostics, Stop
from posterity._format.single_file import read_epoch
from posterity._model.metadata import Metadata
from posterity._system.arrays import Array
from posterity.epoch import EpochDict, EpochT
from posterity.errors import Closed

from .load import to_epoch
from .selection import Mask, Samples
from .selection import flatten_samples as flatten_arrays
from .snapshot import Snapshot
from .variables import Chunks

if TYPE_CHECKING:
    import xarray


class Reads(Generic[EpochT]):
    """Each call reads from a snapshot of its own."""

    def snapshot(self) -> "Snapshot[EpochT]":
        """The run at this moment, to read from as often as needed; use it with `with`, or `release` it."""
        raise NotImplementedError

    @property
    def metadata(self) -> Metadata:
        """See `Snapshot.metadata`; it is that of the latest snapshot, and nothing is waited for."""
        raise NotImplementedError

    def get(self, ind: int = -1) -> EpochDict:
        """See `Snapshot.get`."""
        with self.snapshot() as snapshot:
            return snapshot.get(ind)

    def get_samples(
        self,
        burn: int = 0,
        thin: int = 1,
        pars: Sequence[str] | None = None,
        mask: Mask = ...,
        flatten: bool = False,
        verify: bool = False,
    ) -> Samples:
        """See `Snapshot.get_samples`."""
        with self.snapshot() as snapshot:
            return snapshot.get_samples(burn, thin, pars, mask, flatten, verify)

    @staticmethod
    def flatten_samples(samples: dict[str, Array] | None) -> dict[str, Array] | None:
        """Put the samples of all chains one behind the other: `(nchain, dim, n)` becomes `(nchain * n, dim)`."""
        return flatten_arrays(samples)

    def get_stats(
        self, epochs: Iterable[int] | None = None, fname: str | os.PathLike[str] | None = None
    ) -> dict[str, EpochDict]:
        """See `Snapshot.get_stats`."""
        with self.snapshot() as snapshot:
            return snapshot.get_stats(epochs, fname)

    def load(self, iepoch: int = -1, eclass: type | None = None, pars: Sequence[str] | None = None) -> EpochT:
        """See `Snapshot.load`."""
        with self.snapshot() as snapshot:
            return snapshot.load(iepoch, eclass, pars)

    def to_xarray(
        self,
        burn: int = 0,
        thin: int = 1,
        pars: Sequence[str] | None = None,
        *,
        chunks: Chunks = "epoch",
    ) -> "xarray.Dataset":
        """See `Snapshot.to_xarray`."""
        with self.snapshot() as snapshot:
            return snapshot.to_xarray(burn, thin, pars, chunks=chunks)

    def to_datatree(
        self,
        burn: int = 0,
        thin: int = 1,
        pars: Sequence[str] | None = None,
        *,
        chunks: Chunks = None,
        named: bool = True,
        stats: Collection[str] | None = None,
    ) -> "xarray.DataTree":
        """See `Snapshot.to_datatree`."""
        with self.snapshot() as snapshot:
            return snapshot.to_datatree(burn, thin, pars, chunks=chunks, named=named, stats=stats)

    def diagnose(self, diagnosis: Diagnosis | None = None) -> Diagnostics | None:
        """See `Snapshot.diagnose`."""
        with self.snapshot() as snapshot:
            return snapshot.diagnose(diagnosis)

    def updates(self, min_samples: int = 1, *, diagnosis: Diagnosis | None = None) -> "Iterator[Snapshot[EpochT]]":
        """The newest snapshot each time something changed."""
        raise NotImplementedError

    def until(self, stop: Stop, *, diagnosis: Diagnosis | None = None, every_s: float = LOOK_EVERY_S) -> Diagnostics:
        """Wait until the chains are as `stop` says; returns how they are then.

        Args:
            stop: the rule.
            diagnosis: which samples are looked at, by default all that are left of "p"; it may know some already.
            every_s: how long to wait, at least, from one look to the next. Each costs what is new.

        Raises:
            Closed: this was closed before (a `ValueError`).
            KeyError, TypeError: see `Snapshot.diagnose`.
        """
        for snapshot in self.updates(diagnosis=diagnosis or Diagnosis()):
            snapshot.release()
            found = snapshot.diagnostics
            if found is not None and stop.is_met(found):
                return found
            time.sleep(every_s)
        raise Closed(f"the run was closed before it met {stop}")

    @classmethod
    def read_epoch(cls, fn: str | os.PathLike[str], iepoch: int = -1) -> EpochDict:
        """See `posterity.read_epoch`."""
        return read_epoch(fn, iepoch)

    @classmethod
    def load_epoch(
        cls,
        fn: str | os.PathLike[str],
        iepoch: int = -1,
        eclass: type | None = None,
        pars: Sequence[str] | None = None,
    ) -> EpochT:
        """An epoch object from a backend's file; see `read_epoch` and `load`."""
        return to_epoch(read_epoch(fn, iepoch), eclass, pars, ())  # type: ignore[return-value]  # the caller's word
