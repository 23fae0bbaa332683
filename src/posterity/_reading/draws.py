"""The samples that a lazy reader counts on: pinned to what the run was when it was asked, wherever they are read.

Burn and thinning are applied once, at the beginning: what is left are the draws, numbered from 0. Any thread may read
them. Pickled, it is the folder and what to look for there: whoever gets it reads the folder himself, and sees exactly
these numbers, or an error.

Up the stream: `pinned_view`. Down the stream: `xarray_data` and `export` ask for draws.
"""

import threading
import uuid
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import xxhash

from posterity._format.dtypes import dtype_from_text
from posterity._format.samples import sample_shapes
from posterity._system.arrays import Array
from posterity.errors import Closed, OnlyInMemory, SnapshotExpired

from .followed_run import follow_run
from .pinned_view import PinnedView
from .selection import check_thin, count_samples, pieces_from
from .variables import Samples

if TYPE_CHECKING:
    import numpy.typing as npt


class Pin(msgspec.Struct, frozen=True):
    """Which numbers are meant: of one generation of a run, `n` samples from position `first` on, every `thin`-th.

    `nepochs`, `nsamples`: of the run when it was asked.
    """

    folder: str
    generation: int
    nepochs: int
    nsamples: int
    first: int
    thin: int
    n: int


class Draws:
    """Draws of a run: `n` in each of `nchain` chains; `samples` says of what. It keeps what it needs until it goes."""

    def __init__(
        self, pin: Pin, nchain: int, samples: dict[str, Samples], view: PinnedView | None, run_id: bytes
    ) -> None:
        self.pin = pin
        self.nchain = nchain
        self.samples = samples
        self._view = view
        self._run_id = run_id
        self.is_closed = False
        self._guard = threading.Lock()

    @classmethod
    def of(cls, view: PinnedView, burn: int = 0, thin: int = 1, pars: Sequence[str] | None = None) -> "Draws":
        """The draws of a view, which belongs to them from now on.

        Args:
            view: what is read.
            burn: samples to leave out, on top of the run's own burn.
            thin: take every `thin`-th sample, counted across the borders of epochs.
            pars: names of the samples; by default all that each epoch has.

        Raises:
            ValueError: `thin` is below 1, or `burn` below 0.
            KeyError: a name isn't in every epoch; the message names those that are.
        """
        try:
            check_thin(burn, thin)
            pin = _pinned(view, burn, thin)
            nchain, samples = _look(view, pin, pars)
            return cls(pin, nchain, samples, view, _run_id_of(view) or uuid.uuid4().bytes)
        except BaseException:
            view.release()
            raise

    @property
    def n(self) -> int:
        """Draws in each chain."""
        return self.pin.n

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """How many draws are of each epoch that has some."""
        registry = self._there().registry
        return tuple(piece.n for piece in pieces_from(registry, *self._span(range(self.n)), self.n))

    def _span(self, draws: range) -> tuple[int, int]:
        """The position of the first of some draws in the run, and how far it is from each to the next one."""
        return self.pin.first + self.pin.thin * draws.start, self.pin.thin * draws.step

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
        if not draws:
            return {name: self._nothing(name, chains, components) for name in names}
        mask = ... if chains is None else list(chains)
        dims = {} if components is None else dict.fromkeys(names, components)
        first, thin = self._span(draws)
        return self._there().read(names, first, thin, len(draws), mask=mask, verify=verify, dims=dims)

    def _nothing(self, name: str, chains: Sequence[int] | None, components: Sequence[int] | None) -> Array:
        kind = self.samples[name]
        nchain = self.nchain if chains is None else len(chains)
        return np.empty((nchain, kind.dim if components is None else len(components), 0), kind.dtype)

    def within_epochs(self, draws: "npt.NDArray[np.intp]") -> Iterator[slice]:
        """Draws that go up, in parts of which each lies in one epoch."""
        at = np.searchsorted(np.cumsum(self.sizes), draws, side="right")
        begins = [0, *(np.flatnonzero(np.diff(at)) + 1).tolist()] if len(draws) else []
        yield from map(slice, begins, [*begins[1:], len(draws)])

    # ---- keeping what is needed ----------------------------------------------------------------------------------

    def _there(self) -> PinnedView:
        with self._guard:
            if self.is_closed:
                raise Closed(f"{self!r}: they were closed")
            if self._view is None:
                self._view = _found_again(self.pin, self._run_id)
            return self._view

    def close(self) -> None:
        """Let go of what is kept; idempotent. Nothing can be read any more."""
        with self._guard:
            self.is_closed = True
            view, self._view = self._view, None
        if view is not None:
            view.release()

    # ---- in other processes --------------------------------------------------------------------------------------

    @property
    def token(self) -> str:
        """What tells these draws from all others: Dask names what it computes after it."""
        return xxhash.xxh3_128_hexdigest(repr((self._run_id, self.pin)).encode())

    def __dask_tokenize__(self) -> str:
        return self.token

    def __reduce__(self) -> "tuple[Callable[..., Draws], tuple[object, ...]]":
        return _elsewhere, (self.pin, self.nchain, self.samples, self._checked_run_id())

    def _checked_run_id(self) -> bytes:
        """The id of the run, to look for it elsewhere.

        Raises:
            OnlyInMemory: not all of it is in files, where others can find it.
        """
        view = self._view
        if view is None:
            return self._run_id
        run_id = _run_id_of(view)
        catalog = view.shelf.catalog
        written = 0 if catalog is None else len(catalog.places)
        if run_id is None or written < self.pin.nepochs:
            raise OnlyInMemory(
                f"epochs {written} to {self.pin.nepochs - 1} of {self.pin.folder} aren't in files yet, and no other "
                f"process can read them: call flush() first"
            )
        return run_id


def _pinned(view: PinnedView, burn: int, thin: int) -> Pin:
    registry = view.registry
    return Pin(
        folder=str(view.disk.folder),
        generation=registry.generation,
        nepochs=registry.next_index,
        nsamples=registry.nsamples,
        first=registry.burn + burn,
        thin=thin,
        n=count_samples(registry, burn, thin),
    )


def _look(view: PinnedView, pin: Pin, pars: Sequence[str] | None) -> tuple[int, dict[str, Samples]]:
    """The number of chains, and the samples that all epochs have which are read."""
    nchain, found = 0, dict[str, Samples]()
    indices = [piece.epoch for piece in pieces_from(view.registry, pin.first, pin.thin, pin.n)]
    with view.sources() as shelves:
        layouts = shelves.layouts(indices)
    for at, layout in enumerate(layouts):
        nchain, shapes = sample_shapes(layout)
        here = {name: Samples(dim, dtype_from_text(dtype)) for name, (dim, dtype) in shapes.items()}
        found = {name: kind for name, kind in found.items() if name in here} if at else here
    if pars is None:
        return nchain, found
    names = [pars] if isinstance(pars, str) else list(dict.fromkeys(pars))
    if layouts and (missing := [name for name in names if name not in found]):
        raise KeyError(f"not every epoch has samples {', '.join(map(repr, missing))}; all have {', '.join(found)}")
    return nchain, {name: found[name] for name in names if name in found}


def _run_id_of(view: PinnedView) -> bytes | None:
    """The id of a view's run; None if nothing of it is in files yet."""
    catalog = view.shelf.catalog
    return None if catalog is None else catalog.began.run_id


_known: "weakref.WeakValueDictionary[tuple[object, ...], Draws]" = weakref.WeakValueDictionary()


def _elsewhere(pin: Pin, nchain: int, samples: dict[str, Samples], run_id: bytes) -> Draws:
    """Draws that come from another process. All that are the same read from one open run."""
    key = (pin, run_id, tuple(samples))
    draws = _known.get(key)
    if draws is None or draws.is_closed:
        draws = _known[key] = Draws(pin, nchain, samples, None, run_id)
    return draws


def _found_again(pin: Pin, run_id: bytes) -> PinnedView:
    """A view of the run in which the pinned samples are those that were meant.

    Raises:
        SnapshotExpired: it isn't there any more, or another one is.
        OnlyInMemory: it isn't written so far yet.
    """
    try:
        view, _ = follow_run(pin.folder).look()  # which keeps the run open
    except FileNotFoundError as error:
        raise SnapshotExpired(f"the run in {pin.folder} is gone, or can't be seen from here") from error
    registry = view.registry
    if (_run_id_of(view), registry.generation) != (run_id, pin.generation):
        raise SnapshotExpired(f"the run in {pin.folder} was reset or replaced; make the dataset anew")
    if registry.next_index < pin.nepochs:
        raise OnlyInMemory(
            f"epochs {registry.next_index} to {pin.nepochs - 1} of {pin.folder} aren't in files that can be seen from "
            f"here: call flush() where it is written"
        )
    if pin.nepochs and registry.entries[pin.nepochs - 1].stop != pin.nsamples:
        raise SnapshotExpired(f"the epochs of {pin.folder} aren't those that they were; make the dataset anew")
    return view
