"""Reading: an immutable picture of the run, and all that can be asked of it.

A snapshot knows the registry as it was and where the numbers are: in memory, or in files, which it reads at known
offsets without HDF5. Later ingests, burns and resets don't change it, and what it needs is kept until it is released.

Up the stream: `pinned_view` has the numbers. Down the stream: the faces hand it out, and read from one in each call.
"""

import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, cast

from posterity._convergence.diagnosis import Diagnosis
from posterity._convergence.diagnostics import Diagnostics
from posterity._format.flatten import restore
from posterity._format.layout import Layout
from posterity._format.samples import sample_shapes
from posterity._format.single_file import save_epochs
from posterity._model.metadata import Metadata
from posterity._model.registry import Entry, Registry
from posterity._system.arrays import Array
from posterity._system.uncopyable import Uncopyable
from posterity.epoch import E_co, EpochDict
from posterity.errors import Burned

from .load import to_epoch
from .pinned_view import PinnedView
from .selection import Mask, Samples, check_thin, count_samples, flatten_samples
from .variables import Chunks

if TYPE_CHECKING:
    import xarray


class Snapshot(Uncopyable, Generic[E_co]):
    """The run as it was when it was asked for. Any thread may read from it; `release` it when done."""

    _INSTEAD = "send what you read from it, or the path of the run's folder, and take a snapshot of `open_run` there"

    def __init__(self, view: PinnedView, *, trusted: Sequence[str] = ()) -> None:
        self._view = view
        self._trusted = trusted
        self._diagnostics: Diagnostics | None = None

    def release(self) -> None:
        """Let go of the files that it needs; idempotent."""
        self._view.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        registry = self.registry
        counts = f"{registry.next_index} epochs, {registry.nsamples_left} samples left, burn {registry.burn}"
        return f"<Snapshot: {counts}{registry.metadata.brief}>"

    @property
    def registry(self) -> Registry:
        """What the run consists of."""
        return self._view.registry

    @property
    def burn(self) -> int:
        """Samples discarded, counted from the first ever ingested."""
        return self.registry.burn

    @property
    def nepochs(self) -> int:
        """Epochs ever ingested, burned ones too."""
        return self.registry.next_index

    @property
    def nsamples(self) -> int:
        """Samples that are left in each chain."""
        return self.registry.nsamples_left

    @property
    def epochs(self) -> range:
        """The indices of the epochs that aren't wholly burned."""
        return range(self.registry.first_left, self.registry.next_index)

    @property
    def metadata(self) -> Metadata:
        """What the numbers mean, and where they come from: names, units, layout of the chains, attributes, versions."""
        return self.registry.metadata

    @property
    def shapes(self) -> dict[str, tuple[int, int, str]]:
        """The names of the newest epoch's samples: number of chains, dim, dtype. Empty if there is no epoch."""
        index = self.nepochs - 1
        layout = self._view.shelf.layout_of(index) if index >= 0 else None
        if layout is None:
            return {}
        nchain, found = sample_shapes(layout)
        return {name: (nchain, dim, dtype) for name, (dim, dtype) in found.items()}

    # ---- epochs --------------------------------------------------------------------------------------------------

    def get(self, ind: int = -1) -> EpochDict:
        """An epoch as the dict that was ingested, without its burned samples; the arrays are the caller's own.

        `ind`: its index in the run, or counted from the last if negative.

        Raises:
            IndexError: there never was such an epoch.
            Burned: all its samples are burned (a `ValueError`).
            Damaged: its file is damaged; every checksum is looked at.
        """
        entry = self._entry(ind)
        if entry.is_burned(self.burn):
            raise Burned(f"epoch {entry.index} was burned: burn is {self.burn}, and it ended at sample {entry.stop}")
        return self._read_epoch(entry, entry.burned(self.burn))

    def load(self, iepoch: int = -1, eclass: type | None = None, pars: Sequence[str] | None = None) -> E_co:
        """An epoch as an object, ready to continue sampling from.

        The newest epoch can always be loaded; when burn took all its samples, with its last one.

        Args:
            iepoch: its index in the run, or counted from the last if negative.
            eclass: its class; by default the one that the epoch names, if that is ours, imported already, or trusted.
            pars: names of the samples to load; by default all.

        Raises:
            IndexError, Burned, Damaged: see `get`.
            UntrustedClass: the class that the epoch names isn't imported (a `LookupError`).
        """
        entry = self._entry(iepoch)
        burned = entry.burned(self.burn)
        if burned == entry.nsamples and entry.index < self.nepochs - 1:
            raise Burned(f"epoch {entry.index} was burned: burn is {self.burn}, and it ended at sample {entry.stop}")
        data = self._read_epoch(entry, min(burned, entry.nsamples - 1))
        return cast("E_co", to_epoch(data, eclass, pars, self._trusted))

    def _entry(self, ind: int) -> Entry:
        n = self.registry.next_index
        if not -n <= ind < n:
            raise IndexError(f"there is no epoch {ind}: the run has {n} epochs" + (f", 0 to {n - 1}" if n else ""))
        return self.registry.entries[ind]

    def _read_epoch(self, entry: Entry, burned: int) -> EpochDict:
        with self._view.sources() as shelves:
            layout, arrays, cut = shelves.read(entry.index, _all_leaves, burned)
        data = restore(layout.items, arrays)
        samples = data["samples"]
        if burned > cut and isinstance(samples, dict):
            data["samples"] = {name: array[:, :, burned - cut :].copy() for name, array in samples.items()}
        return data

    # ---- samples -------------------------------------------------------------------------------------------------

    def get_samples(
        self,
        burn: int = 0,
        thin: int = 1,
        pars: Sequence[str] | None = None,
        mask: Mask = ...,
        flatten: bool = False,
        verify: bool = False,
    ) -> Samples:
        """The samples of the whole run: `concatenate(what is left, axis=2)[mask][:, :, burn::thin]` for each name.

        Args:
            burn: samples to leave out, on top of the run's own burn.
            thin: take every `thin`-th sample, counted across the borders of epochs.
            pars: names of the samples; by default only "p".
            mask: which chains: a boolean for each, a list of their numbers, or a slice.
            flatten: give `(n * nchain, dim)`, chain by chain, in place of `(nchain, dim, n)`.
            verify: look at the checksum of all that is read.

        Returns:
            name -> array, the caller's own; None if nothing is left.

        Raises:
            ValueError: `thin` is below 1, or `burn` below 0.
            KeyError: a name isn't in every epoch read; the message names those there are.
            IndexError: the mask doesn't fit the chains.
            Damaged: a file ends too early, or with `verify` a checksum is another one.
        """
        check_thin(burn, thin)
        names = ["p"] if pars is None else [pars] if isinstance(pars, str) else list(dict.fromkeys(pars))
        n = count_samples(self.registry, burn, thin)
        if n == 0:
            return None
        found = self._view.read(names, self.burn + burn, thin, n, mask=mask, verify=verify)
        return flatten_samples(found) if flatten else found

    def get_components(self, name: str, start: int, stop: int, burn: int = 0, thin: int = 1) -> Array | None:
        """Some components of one name, where all of them would be too much memory: `[:, start:stop, burn::thin]`.

        Args:
            name: of the samples.
            start: the first component along dim.
            stop: the one after the last.
            burn: see `get_samples`.
            thin: see `get_samples`.

        Returns:
            An array `(nchain, stop - start, n)`, the caller's own; None if nothing is left. Only that is read, unless
            the run is compressed.

        Raises:
            IndexError: there aren't so many components.
            ValueError, KeyError, Damaged: see `get_samples`.
        """
        check_thin(burn, thin)
        n = count_samples(self.registry, burn, thin)
        if n == 0:
            return None
        dim = self.shapes[name][1] if name in self.shapes else stop  # else the name is refused below
        if not 0 <= start < stop <= dim:
            raise IndexError(f"{name!r} has the components 0 to {dim - 1}; those from {start} to {stop} were asked for")
        dims = {name: range(start, stop)}
        return self._view.read([name], self.burn + burn, thin, n, dims=dims)[name]

    @property
    def diagnostics(self) -> Diagnostics | None:
        """What the last `diagnose` gave; `updates` calls it if it has a `diagnosis`."""
        return self._diagnostics

    def diagnose(self, diagnosis: Diagnosis | None = None) -> Diagnostics | None:
        """R-hat, ESS and acceptance of what is left; they are in `diagnostics` from then on.

        It reads what `diagnosis` doesn't know yet, and all without one. Epochs that a device still computes are left
        out.

        Returns:
            None if nothing is left.

        Raises:
            KeyError: a name isn't in every epoch read.
            TypeError: samples aren't real numbers.
            SnapshotExpired, Damaged: see `get_samples`. What was read before counts.
        """
        diagnosis = Diagnosis() if diagnosis is None else diagnosis
        view = self._view
        run = (str(view.disk.folder), view.run_key, view.registry.generation)
        self._diagnostics = diagnosis.follow(run, view.registry.burn, view.end_of_fetched(), self._read_samples)
        return self._diagnostics

    def _read_samples(self, start: int, most: int, names: Sequence[str]) -> dict[str, Array]:
        """The samples from position `start` on, to the end of an epoch: `most` of them, or one epoch."""
        registry = self.registry
        end = max(registry.epoch_at(start + most), registry.epoch_at(start) + 1)
        return self._view.read(names, start, 1, registry.entries[end - 1].stop - start)

    # ---- stats ---------------------------------------------------------------------------------------------------

    def get_stats(
        self, epochs: Iterable[int] | None = None, fname: str | os.PathLike[str] | None = None
    ) -> dict[str, EpochDict]:
        """The `stats` of the epochs, `{"epoch_3": {...}}`; burn never cuts them, and an epoch without is left out.

        Args:
            epochs: indices of epochs; by default all that aren't wholly burned.
            fname: an HDF5 file to save them to as well, in one step, in the place of one that is there.

        Raises:
            IndexError, Burned: an index that is listed isn't there; see `get`.
        """
        entries = [self._entry(i) for i in (self.epochs if epochs is None else epochs)]
        stats: dict[str, EpochDict] = {}
        with self._view.sources() as shelves:
            for entry in entries:
                if entry.is_burned(self.burn):
                    raise Burned(f"epoch {entry.index} was burned; its stats are gone with it")
                layout, arrays, _ = shelves.read(entry.index, _stats_leaves, entry.nsamples)
                items = [item for item in layout.items if item.path == "stats" or item.path.startswith("stats/")]
                if items:
                    found = restore(items, arrays)["stats"]
                    stats[f"epoch_{entry.index}"] = found if isinstance(found, dict) else {"stats": found}
        if fname is not None:
            save_epochs(Path(os.fsdecode(fname)), stats)
        return stats

    # ---- for others' tools ---------------------------------------------------------------------------------------

    def to_xarray(
        self,
        burn: int = 0,
        thin: int = 1,
        pars: Sequence[str] | None = None,
        *,
        chunks: Chunks = "epoch",
    ) -> "xarray.Dataset":
        """The samples as a lazy dataset of xarray's: nothing is read before it is asked for, and no more than that.

        Each name of samples is a variable `(chain, draw)` if it is a number, else `(chain, draw, NAME_dim_0)`. Names
        of parameters and the layout of chains are coordinates; so is the position of each draw in the run. It shows
        what this snapshot shows, for as long as it lives, and needs the snapshot no longer. Pickled, and so on the
        workers of a Dask cluster, it is read from the run folder, which must be seen there by the same path.

        Args:
            burn: samples to leave out, on top of the run's own burn.
            thin: take every `thin`-th sample, counted across the borders of epochs.
            pars: names of the samples; by default all that each epoch has.
            chunks: "epoch": arrays of Dask's, a chunk for each epoch; a number: so many draws in each chunk; what
                else `xarray.open_dataset` takes; None: lazy arrays of xarray's own, which are read as a whole once
                something is computed from them.

        Raises:
            ValueError: `thin` is below 1, or `burn` below 0.
            KeyError: a name isn't in every epoch.
            MissingExtra: xarray or Dask isn't installed (an `ImportError`).

        When it is read:
            SnapshotExpired: what is asked for was burned, or the run was reset, behind the back of a reader in another
                process. Never other numbers.
            OnlyInMemory: it isn't in files yet, and another process was asked; `flush` first.
            Damaged: a file ends too early.
        """
        from .xarray_data import to_dataset  # noqa: PLC0415  # an extra

        return to_dataset(self._view.shared(), burn, thin, pars, chunks=chunks)

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
        """The samples as the tree that ArviZ works on: groups `posterior` and `sample_stats`, axes chain and draw.

        ArviZ 1 takes it as it is; for ArviZ 0.23 there is `arviz.InferenceData.from_datatree(tree)`.

        Args:
            burn: see `to_xarray`.
            thin: see `to_xarray`.
            pars: see `to_xarray`.
            chunks: None: all is read now, by all cores; else it is lazy, see `to_xarray`.
            named: samples whose components have names become a variable for each of them, in place of one array.
            stats: names of the samples that go to `sample_stats`; by default "ll", "lp", and what is known to be the
                sampler's: acceptance_rate, diverging, energy, energy_error, n_steps, step_size, tree_depth.

        Raises:
            ValueError: see `to_xarray`; or two variables would have one name.
            KeyError: a name isn't in every epoch.
            MissingExtra: xarray or Dask isn't installed (an `ImportError`).
            SnapshotExpired, Damaged: see `to_xarray`.
        """
        from .xarray_data import to_datatree  # noqa: PLC0415  # an extra

        return to_datatree(self._view.shared(), burn, thin, pars, chunks=chunks, named=named, stats=stats)


def view_of(snapshot: Snapshot[Any]) -> PinnedView:
    """What a snapshot reads from, to be released on its own."""
    return snapshot._view.shared()  # noqa: SLF001  # of a class of this module


def samples_at(snapshot: Snapshot[Any], names: Sequence[str], at: range, mask: Mask = ...) -> dict[str, Array]:
    """Samples at some positions of the run, one at least, that aren't burned: name -> `(nchain, dim, len(at))`."""
    return snapshot._view.read(names, at.start, at.step, len(at), mask=mask)  # noqa: SLF001  # see above


def _all_leaves(layout: Layout) -> list[int]:
    return list(range(len(layout.leaves)))


def _stats_leaves(layout: Layout) -> list[int]:
    return [i for i, item in enumerate(layout.leaves) if item.path == "stats" or item.path.startswith("stats/")]
