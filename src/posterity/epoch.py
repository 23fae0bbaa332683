"""Epochs: what a sampler hands over, checked and owned, and what it gets back to continue from.

Up the stream: a sampler. Down the stream: `ledger` queues a `Held` epoch; `store` writes it; `snapshot` reads it.
"""

import importlib
import inspect
import sys
from collections.abc import Collection, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, cast, runtime_checkable

import numpy as np

from .arrays import Array
from .buffers import Buffers
from .device import OnDevice, lies_on_device, take_over
from .errors import EpochMismatch, NotStorable, UntrustedClass
from .jexplore import described, unfetched
from .kinds import Kind, Kinds
from .layout import Layout, layout_of
from .metadata import Metadata
from .specs import encode_items
from .tree import Item, Leaf, flatten, restore

EpochDict = dict[str, object]
_SMALL = 1 << 16  # bytes; what is copied in less time than it takes to ask for room


@runtime_checkable
class ToBackend(Protocol):
    """Anything that can be ingested: jexplore's epochs, ours, yours."""

    def to_backend(self, burn: int, stats: bool, /) -> tuple[int, int, EpochDict | None]:
        """The number of samples, how many of them `burn` takes, and the rest as a dict; None if nothing is left."""


class Epoch:
    """One block of samples, as a sampler produced it.

    `samples`: name -> array `(nchain, dim_name, nsamples)`; "p" must be there. `covs`: `(nchain, dim, dim)`. `stats`,
    `cycle`, `sampling`, `state`: whatever the sampler wants to have back, a random generator's state for example.
    Other items are kept in `others`. A subclass comes back as itself from `load`.
    """

    _NAMES: ClassVar = ("samples", "covs", "stats", "cycle", "sampling", "state")

    def __init__(
        self,
        samples: dict[str, Array],
        *,
        covs: Array | None = None,
        stats: object = None,
        cycle: object = None,
        sampling: object = None,
        state: object = None,
        **others: object,
    ) -> None:
        self.samples = samples
        self.covs = covs
        self.stats = stats
        self.cycle = cycle
        self.sampling = sampling
        self.state = state
        self.others = others

    @classmethod
    def from_backend(cls, epoch: EpochDict) -> "Epoch":
        """An epoch from the dict that a backend gives back."""
        fields: dict[str, Any] = {name: value for name, value in epoch.items() if name != "class"}
        return cls(**fields)

    def to_backend(self, burn: int = 0, stats: bool = True) -> tuple[int, int, EpochDict | None]:
        """The number of samples, how many of them `burn` takes, and the rest as a dict; None if nothing is left."""
        nsamples = self.nsamples
        burned = min(max(burn, 0), nsamples)
        if burned == nsamples and nsamples:
            return nsamples, burned, None
        epoch: EpochDict = {"samples": {name: array[:, :, burned:] for name, array in self.samples.items()}}
        for name in self._NAMES[1:]:
            value = getattr(self, name)
            if value is not None and (stats or name != "stats"):
                epoch[name] = value
        kind = type(self)
        return nsamples, burned, {**epoch, **self.others, "class": f"{kind.__module__}.{kind.__qualname__}"}

    @property
    def nsamples(self) -> int:
        """Samples in each chain."""
        return int(next(iter(self.samples.values())).shape[2])

    @property
    def last(self) -> dict[str, Array]:
        """The last sample of each name, `(nchain, dim_name)`: where sampling goes on from."""
        return {name: array[:, :, -1] for name, array in self.samples.items()}

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}: {tuple(array.shape)}" for name, array in self.samples.items())
        return f"<{type(self).__name__} {shapes}>"


class Held:
    """An epoch in memory, ours alone, with the layout that it will have on disk. Some of it may still be on a device.

    `device_nbytes`: the bytes that were there when it was handed over.
    """

    __slots__ = ("__weakref__", "_leaves", "device_nbytes", "is_fetched", "kind")

    def __init__(self, kind: Kind, leaves: Sequence[Array | OnDevice]) -> None:
        self.kind = kind
        self._leaves = list(leaves)
        self.device_nbytes = 0
        if not kind.is_in_memory:
            self.device_nbytes = sum(leaf.nbytes for leaf in leaves if isinstance(leaf, OnDevice))
        self.is_fetched = self.device_nbytes == 0

    @property
    def layout(self) -> Layout:
        """Where its parts will lie in a file."""
        return self.kind.layout

    def fetch(self) -> None:
        """Have all of it in memory. Waits for the device that computes it."""
        for i, leaf in enumerate(self._leaves):
            if isinstance(leaf, OnDevice):
                self._leaves[i] = leaf.fetch()
        self.is_fetched = True

    def arrays(self) -> list[Array]:
        """The arrays; those on a device are fetched."""
        if self.is_fetched:
            return cast("list[Array]", self._leaves.copy())
        return [self.array(i) for i in range(len(self._leaves))]

    def array(self, i: int) -> Array:
        """One of the arrays; it is fetched if it lies on a device."""
        leaf = self._leaves[i]
        return leaf.fetch() if isinstance(leaf, OnDevice) else leaf


class Prepared(NamedTuple):
    """An epoch that was checked and not yet copied. Its arrays are the caller's."""

    kind: Kind
    leaves: Sequence[Leaf]

    @property
    def device_nbytes(self) -> int:
        """The bytes that will stay on a device for now."""
        return 0 if self.kind.is_in_memory else sum(leaf.nbytes for leaf in self.leaves if lies_on_device(leaf))

    def is_quick(self, *, copy: bool) -> bool:
        """Whether to take it over takes no longer than to ask for room first: it is small, or needs no copy."""
        if not self.kind.is_in_memory:
            return False
        return self.kind.nbytes <= _SMALL or not any(
            _must_copy(leaf, copy=copy) for leaf in cast("Sequence[Array]", self.leaves)
        )

    def described(self) -> Metadata | None:
        """What the epoch says of the meaning of its numbers; None if it says nothing."""
        paths = [item.path for item in self.kind.items if item.is_array]
        return described(dict(zip(paths, self.leaves, strict=True)), self.kind.nchain)

    def own(self, buffers: Buffers, *, copy: bool) -> Held:
        """Take the epoch over: NumPy arrays are copied, arrays of a device in a way that lets them be donated.

        `copy=False`: the arrays are given away. They are kept by reference where they lie as they will on disk.
        """
        kind = self.kind
        if copy and kind.is_in_memory and kind.nbytes <= _SMALL:
            return Held(kind, [leaf.copy() for leaf in cast("Sequence[Array]", self.leaves)])
        layout = kind.layout
        leaves = [leaf if isinstance(leaf, np.ndarray) else take_over(leaf, buffers, copy=copy) for leaf in self.leaves]
        to_copy = [i for i, leaf in enumerate(leaves) if isinstance(leaf, np.ndarray) and _must_copy(leaf, copy=copy)]
        if not to_copy:
            return Held(kind, leaves)
        offsets, end = [], 0
        for i in to_copy:
            offsets.append(end)
            end += -(-layout.nbytes[i] // 64) * 64
        memory = buffers.take(end)
        for i, offset in zip(to_copy, offsets, strict=True):
            leaf = cast("Array", leaves[i])
            mine = memory[offset : offset + layout.nbytes[i]].view(layout.dtypes[i]).reshape(leaf.shape)
            np.copyto(mine, leaf, casting="no")
            leaves[i] = mine
        return Held(kind, leaves)


def _must_copy(leaf: Array, *, copy: bool) -> bool:
    """What can't change needs no copy: a view of a device's array is read-only to the end of its memory."""
    if not leaf.flags.c_contiguous:
        return True
    return copy and not _is_immutable(leaf)


def _is_immutable(leaf: Array) -> bool:
    """Whether nobody can change the memory: it is bytes, or belongs to an array of a device."""
    base: object = leaf
    while isinstance(base, np.ndarray):
        if base.flags.writeable:
            return False
        base = base.base
    return isinstance(base, bytes) or (base is not None and hasattr(base, "is_deleted"))


def prepare(epoch: object, *, save_stats: bool, kinds: Kinds | None = None) -> Prepared:
    """Check an epoch, given as an object with `to_backend` or as a dict. `kinds`: those that needn't be checked again.

    Raises:
        NotStorable: an item can't be stored; the message gives its path.
        EpochMismatch: it isn't an epoch: there is no "p", or its arrays disagree.
    """
    if isinstance(epoch, dict):
        data: EpochDict | None = epoch
    elif isinstance(epoch, ToBackend) and not isinstance(epoch, type):
        data = unfetched(epoch, stats=save_stats)
        if data is None:
            _, _, data = epoch.to_backend(0, save_stats)
    else:
        raise NotStorable(f"an epoch is a dict, or has to_backend(burn, stats); got {_kind(epoch)}")
    if data is None:
        raise EpochMismatch("the epoch's to_backend(0, stats) gave no samples; an epoch needs at least one")
    if not save_stats and "stats" in data:
        data = {name: value for name, value in data.items() if name != "stats"}
    found = kinds.recognise(data) if kinds is not None else None
    if found is None:
        kind, leaves = found = _check(data)
        if kinds is not None:
            kinds.note(kind, data, leaves)
    return Prepared(*found)


def _kind(epoch: object) -> str:
    return f"the class {epoch.__qualname__}" if isinstance(epoch, type) else f"a {type(epoch).__qualname__}"


def _check(data: EpochDict) -> tuple[Kind, list[Leaf]]:
    samples = data.get("samples")
    if not isinstance(samples, dict) or "p" not in samples:
        names = sorted(map(str, samples)) if isinstance(samples, dict) else type(samples).__name__
        raise EpochMismatch(f"an epoch needs data['samples']['p'], an array (nchain, dim, nsamples); got {names}")
    items, leaves = flatten(data)
    arrays = (item for item in items if item.is_array)
    pairs = [(item, leaf) for item, leaf in zip(arrays, leaves, strict=True) if _is_sample(item)]
    if len(pairs) < len(samples):
        raise EpochMismatch("each of data['samples'] must be an array (nchain, dim, nsamples)")
    first = pairs[0][0]
    for item, _ in pairs:
        if len(item.shape) != 3 or item.kind != "array":
            raise EpochMismatch(f"{item.path} must be an array (nchain, dim, nsamples); its shape is {item.shape}")
        if (item.shape[0], item.shape[2]) != (first.shape[0], first.shape[2]):
            raise EpochMismatch(
                f"{item.path} has shape {item.shape} and {first.path} has {first.shape}: "
                f"the first axis (chains) and the last one (samples) must agree"
            )
    if first.shape[0] < 1 or first.shape[2] < 1:
        raise EpochMismatch(f"an epoch needs a chain and a sample at least; {first.path} has shape {first.shape}")
    shapes = {item.path.partition("/")[2]: (item.shape[1], item.dtype) for item, _ in pairs}
    return Kind(items, leaves, first.shape[0], first.shape[2], shapes), leaves


def _is_sample(item: Item) -> bool:
    return item.path.startswith("samples/") and item.path.count("/") == 1


def sample_shapes(layout: Layout) -> tuple[int, dict[str, tuple[int, str]]]:
    """The number of chains, and of each name the dim and the dtype."""
    samples = [item for item in layout.leaves if _is_sample(item)]
    nchain = samples[0].shape[0] if samples else 0
    return nchain, {item.path.partition("/")[2]: (item.shape[1], item.dtype) for item in samples}


def cut_samples(layout: Layout, arrays: Sequence[Array], cut: int) -> tuple[Layout, list[Array]]:
    """An epoch without its first `cut` samples; everything else in it stays as it is."""
    if cut == 0:
        return layout, list(arrays)
    at = [i for i, item in enumerate(layout.leaves) if _is_sample(item)]
    kept = list(arrays)
    for i in at:
        kept[i] = np.ascontiguousarray(arrays[i][:, :, cut:])
    shapes = {layout.leaves[i].path: kept[i].shape for i in at}
    items = [_reshaped(item, shapes.get(item.path, item.shape)) for item in layout.items]
    return layout_of(encode_items(items)), kept


def _reshaped(item: Item, shape: tuple[int, ...]) -> Item:
    return item if shape == item.shape else Item(item.path, item.kind, item.dtype, shape, item.was)


def to_dict(layout: Layout, arrays: Sequence[Array]) -> EpochDict:
    """The dict that was ingested; the arrays become part of it."""
    return restore(layout.items, arrays)


def to_epoch(data: EpochDict, eclass: type | None, pars: Collection[str] | None, trusted: Collection[str]) -> object:
    """An epoch object from a dict, of the class asked for, or of the one that the dict names.

    Raises:
        UntrustedClass: the named class isn't imported; files can't make us import code.
    """
    kind = eclass if eclass is not None else named_class(data.get("class"), trusted)
    if pars is not None:
        data = {**data, "samples": _only(data["samples"], pars)}
    statecls = getattr(kind, "statecls", None)
    if statecls is not None:
        return kind(_state_fields(data, statecls))
    from_backend = getattr(kind, "from_backend", kind)
    return from_backend(data)


def _only(samples: object, pars: Collection[str]) -> dict[str, object]:
    assert isinstance(samples, dict)
    missing = [name for name in pars if name not in samples]
    if missing:
        raise KeyError(f"the epoch has no {', '.join(missing)}; it has {', '.join(samples)}")
    return {name: samples[name] for name in pars}


def _state_fields(data: EpochDict, statecls: type) -> dict[str, object]:
    """What a class of jexplore's is made from: the names that its state has, and the covariances."""
    fields = getattr(statecls, "__dataclass_fields__", {})
    samples = data["samples"]
    assert isinstance(samples, dict)
    state = {name: array for name, array in samples.items() if name in fields}
    return state | ({"covs": data["covs"]} if "covs" in data else {})


def named_class(name: object, trusted: Collection[str]) -> type:
    """The class with a dotted name, if it is ours, imported already, or trusted by the caller."""
    if name is None:
        return Epoch
    if isinstance(name, str):
        if name in trusted:
            _import_module_of(name.split("."))
        found = _find_class(name.split("."))
        if isinstance(found, type) and hasattr(found, "to_backend"):
            return found
    raise UntrustedClass(
        f"the epoch names its class {name!r}, which isn't imported; import it first, "
        f"pass it as eclass, or name it in trusted_classes"
    )


def _import_module_of(parts: list[str]) -> None:
    """Import the module of a class, which may lie within another class."""
    for n in range(len(parts) - 1, 0, -1):
        try:
            importlib.import_module(".".join(parts[:n]))
        except ModuleNotFoundError as error:
            if str(error.name) not in [".".join(parts[:i]) for i in range(1, n + 1)]:
                raise  # the module is there, and one that it needs isn't
        else:
            return


def _find_class(parts: list[str]) -> object:
    """What a dotted name means among the modules that are imported already: the longest module name wins.

    Nobody is asked for attributes that are made when they are asked for: that may run code, or import some.
    """
    for n in range(len(parts) - 1, 0, -1):
        found: object = sys.modules.get(".".join(parts[:n]))
        if found is not None:
            for part in parts[n:]:
                found = inspect.getattr_static(found, part, None)
            return found
    return None
