"""The reading calls that everything has which gives snapshots: a backend, and a run that is only read.

Up the stream: `snapshot`. Down the stream: `backend`, `run`.
"""

import os
from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

from .epoch import EpochDict, to_epoch
from .metadata import Metadata
from .selection import Mask
from .selection import flatten_samples as flatten_arrays
from .singlefile import read_epoch
from .snapshot import Snapshot
from .tree import Array

EpochT = TypeVar("EpochT")


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
    ) -> dict[str, Array] | None:
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
