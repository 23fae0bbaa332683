"""The samples that a lazy reader counts on: pinned to what the run was when it was asked, wherever they are read.

Burn and thinning are applied once, at the beginning: what is left are the draws, numbered from 0. Any thread may read
them. Pickled, it is the folder and what to look for there: whoever gets it reads the folder himself, and sees exactly
these numbers, or an error.

Up the stream: `snapshot`. Down the stream: `xarrays` and `export` ask for draws.
"""

import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, TypeAlias

import msgspec
import numpy as np

from .errors import OnlyInMemory, SnapshotExpired
from .gathering import Gathering
from .registry import Registry
from .run import Run, open_run
from .selection import check_thin, count_samples, pieces_from
from .snapshot import Snapshot
from .sources import Shelves
from .tree import Array
from .variables import Samples

AnySnapshot: TypeAlias = Snapshot[Any]


class Pin(msgspec.Struct, frozen=True):
    """Which numbers are meant: of one generation of one run, `n` samples from position `first` on, every `thin`-th.

    `nepochs`, `nsamples`: of the run when it was asked.
    """

    folder: str
    run_id: bytes
    generation: int
    nepochs: int
    nsamples: int
    first: int
    thin: int
    n: int


class Draws:
    """Draws of a run, `n` in each of `nchain` chains. It keeps what it needs until it is closed, or goes."""

    def __init__(self, snapshot: AnySnapshot, burn: int = 0, thin: int = 1, pars: Sequence[str] | None = None) -> None:
        """Take over a snapshot.

        Args:
            snapshot: what is read; it belongs to this from now on.
            burn: samples to leave out, on top of the run's own burn.
            thin: take every `thin`-th sample, counted across the borders of epochs.
            pars: names of the samples; by default all that each epoch has.

        Raises:
            ValueError: `thin` is below 1, or `burn` below 0.
            KeyError: a name isn't in every epoch; the message names those that are.
        """
        check_thin(burn, thin)
        registry = snapshot.registry
        self._opened: tuple[AnySnapshot, Run[Any] | None] | None = (snapshot, None)
        self._guard = threading.Lock()
        self._is_closed = False
        self._registry: Registry | None = registry
        self.pin = Pin(
            str(snapshot._disk.folder),
            snapshot.run_id,
            registry.generation,
            registry.next_index,
            registry.nsamples,
            registry.burn + burn,
            thin,
            count_samples(registry, burn, thin),
        )
        self.sizes = tuple(piece.n for piece in pieces_from(registry, self.pin.first, thin, self.pin.n))
        self.nchain, self.samples = self._look(pars)

    def _look(self, pars: Sequence[str] | None) -> tuple[int, dict[str, Samples]]:
        """The number of chains, and the samples that are in all epochs."""
        snapshot = self._snapshot()
        nchain, found = 0, dict[str, Samples]()
        indices = [piece.epoch for piece in pieces_from(snapshot.registry, self.pin.first, self.pin.thin, self.pin.n)]
        with Shelves(snapshot._disk, snapshot._there()) as shelves:
            for at, layout in enumerate(shelves.layouts(indices)):
                here = {
                    item.path.partition("/")[2]: Samples(item.shape[1], layout.dtypes[i])
                    for i, item in enumerate(layout.leaves)
                    if item.path.startswith("samples/")
                }
                nchain = layout.leaves[layout.by_path["samples/p"]].shape[0]
                found = {name: kind for name, kind in found.items() if name in here} if at else here
        if pars is None:
            return nchain, found
        names = [pars] if isinstance(pars, str) else list(dict.fromkeys(pars))
        if missing := [name for name in names if name not in found and indices]:
            raise KeyError(f"not every epoch has samples {', '.join(map(repr, missing))}; all have {', '.join(found)}")
        return nchain, {name: found[name] for name in names if name in found}

    @property
    def n(self) -> int:
        """Draws in each chain."""
        return self.pin.n

    @property
    def nbytes(self) -> int:
        """The bytes of all draws of all samples."""
        return self.n * self.nchain * sum(kind.nbytes for kind in self.samples.values())

    @property
    def positions(self) -> range:
        """The positions of the draws in the run, counted from the first sample ever ingested."""
        return range(self.pin.first, self.pin.first + self.n * self.pin.thin, self.pin.thin)

    def __repr__(self) -> str:
        return f"<{self.n} draws of {self.nchain} chains in {self.pin.folder}>"

    def read(
        self,
        names: Sequence[str],
        draws: range,
        chains: Sequence[int] | None = None,
        components: Sequence[int] | None = None,
        *,
        verify: bool = False,
    ) -> dict[str, Array]:
        """Some of the draws: `{name: array[chains][:, components, draws]}`, the caller's own.

        Only the epochs and rows that are asked for are read. `draws`: a range that goes up; of chains and components
        None means all.

        Raises:
            SnapshotExpired: they are gone: burned, or the run was reset.
            OnlyInMemory: another process has them, and didn't write them yet.
            Damaged: a file is damaged; with `verify` the checksums of all that is read are looked at.
        """
        snapshot = self._snapshot()
        registry, pin = snapshot.registry, self.pin
        thin = pin.thin * draws.step
        parts = list(pieces_from(registry, pin.first + pin.thin * draws.start, thin, len(draws)))
        mask = ... if chains is None else list(chains)
        dims = {} if components is None else dict.fromkeys(names, components)
        gathering = Gathering(
            snapshot._disk, snapshot._there(), registry, list(names), mask, len(draws), thin, verify, dims
        )
        if not parts:
            return {name: self._nothing(name, chains, components) for name in names}
        gathering.gather(parts)
        return gathering.results

    def _nothing(self, name: str, chains: Sequence[int] | None, components: Sequence[int] | None) -> Array:
        kind = self.samples[name]
        nchain = self.nchain if chains is None else len(chains)
        return np.empty((nchain, kind.dim if components is None else len(components), 0), kind.dtype)

    def within_epochs(self, draws: Iterable[int]) -> Iterator[tuple[int, int]]:
        """Which of some draws, that go up, belong to one epoch: the first of them and the one after the last."""
        borders = np.cumsum(self.sizes)
        at = np.searchsorted(borders, np.fromiter(draws, np.int64), side="right")
        begins = [0, *(np.flatnonzero(np.diff(at)) + 1).tolist(), len(at)]
        yield from zip(begins[:-1], begins[1:], strict=True)

    # ---- keeping what is needed ----------------------------------------------------------------------------------

    def _snapshot(self) -> AnySnapshot:
        with self._guard:
            if self._opened is None and not self._is_closed:
                self._opened = _opened(self.pin)
        opened = self._opened
        if opened is None:
            raise ValueError("the dataset was closed")
        return opened[0]

    def close(self) -> None:
        """Let go of what is kept; idempotent. Nothing can be read any more."""
        self._is_closed = True
        opened, self._opened = self._opened, None
        if opened is not None:
            opened[0].release()
            if opened[1] is not None:
                opened[1].close()

    def __del__(self) -> None:
        if getattr(self, "_opened", None) is not None:
            self.close()

    # ---- in other processes --------------------------------------------------------------------------------------

    def __dask_tokenize__(self) -> tuple[object, ...]:
        return (type(self).__qualname__, *msgspec.structs.astuple(self.pin))

    def __reduce__(self) -> tuple[Callable[..., "Draws"], tuple[object, ...]]:
        self._check_written()
        return _elsewhere, (self.pin, self.sizes, self.nchain, self.samples)
