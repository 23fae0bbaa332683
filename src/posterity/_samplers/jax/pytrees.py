"""Pytrees of samples: which arrays of an epoch hold which leaf, and the samples given back with their structure.

An epoch of `run_kernel` says in its "pytrees" what its samples were made of, as text that names no class. So whoever
reads the run needs neither JAX nor the program that wrote it. Dicts, lists, tuples and None come back as such, and
everything else, named tuples for example, as a dict of its fields.

Up the stream: `kernels` describes what it stores. Down the stream: whoever reads a run.
"""

import math
from collections.abc import Awaitable, Iterator, Sequence
from typing import Annotated, Any, Literal, Protocol, TypeAlias

import msgspec
import numpy as np

from posterity._format.dtypes import dtype_from_text
from posterity._reading.selection import Mask
from posterity._system.arrays import Array
from posterity.errors import Damaged, EpochMismatch

Natural = Annotated[int, msgspec.Meta(ge=0)]
Node: TypeAlias = "Leaf | Branch"
KEY = "pytrees"  # of an epoch's dict
_NUMBERS = "?biufc"


class Leaf(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="leaf"):
    """An array. In `samples[name]` it is the components from `start` on along dim, in C order."""

    name: str
    dtype: str
    shape: tuple[Natural, ...] = ()  # for one chain and one sample
    start: Natural = 0

    @property
    def size(self) -> int:
        """How many components it has."""
        return math.prod(self.shape)


class Branch(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="branch"):
    """A container, or None. `keys`: of a dict, in the order of its members."""

    kind: Literal["dict", "list", "tuple", "none"]
    members: "tuple[Leaf | Branch, ...]" = ()
    keys: tuple[str | int, ...] = ()


class Readable(Protocol):
    """What samples are read from: a `Snapshot`, a `Run` or a `DefaultBackend`."""

    def load(self, iepoch: int = -1) -> Any:
        """An epoch as an object."""
        ...

    def get_samples(
        self, burn: int = 0, thin: int = 1, pars: Sequence[str] | None = None, mask: Mask = ...
    ) -> dict[str, Array] | None:
        """The samples of the whole run."""
        ...


class AwaitedReadable(Protocol):
    """What samples are read from, awaited: an `AsyncSnapshot`, an `AsyncRun` or an `AsyncBackend`."""

    def load(self, iepoch: int = -1) -> Awaitable[Any]:
        """See `Readable`."""
        ...

    def get_samples(
        self, burn: int = 0, thin: int = 1, pars: Sequence[str] | None = None, mask: Mask = ...
    ) -> Awaitable[dict[str, Array] | None]:
        """See `Readable`."""
        ...


# ---- reading ---------------------------------------------------------------------------------------------------------


def get_positions(run: Readable, burn: int = 0, thin: int = 1, mask: Mask = ..., like: object = None) -> Any:
    """The positions of a run of `run_kernel`, as the pytree that the sampler had.

    Args:
        run: an open run, a backend or a snapshot.
        burn: samples to leave out, on top of the run's own burn.
        thin: take every `thin`-th sample.
        mask: which chains: a boolean for each, a list of their numbers, or a slice.
        like: a pytree whose containers are to be used: a named tuple in it comes back as one. Needs JAX.

    Returns:
        The pytree. Each of its arrays is `(nchain, nsamples, *shape)`, with the dtype that it had. None if nothing is
        left.

    Raises:
        EpochMismatch: the run has no pytrees, or `like` has other leaves (a `ValueError`).
        IndexError: the run has no epoch yet.
        Damaged: what the run says about its pytrees makes no sense (an `OSError`).
    """
    return _read(run, "position", burn, thin, mask, like)


def get_info(run: Readable, burn: int = 0, thin: int = 1, mask: Mask = ..., like: object = None) -> Any:
    """What the sampler told about each draw, as the pytree that `info` of the kernel gave; see `get_positions`."""
    return _read(run, "info", burn, thin, mask, like)


async def get_positions_async(
    run: AwaitedReadable, burn: int = 0, thin: int = 1, mask: Mask = ..., like: object = None
) -> Any:
    """See `get_positions`, awaited: of an `AsyncRun`, an `AsyncBackend` or an `AsyncSnapshot`."""
    return await _read_async(run, "position", burn, thin, mask, like)


async def get_info_async(
    run: AwaitedReadable, burn: int = 0, thin: int = 1, mask: Mask = ..., like: object = None
) -> Any:
    """See `get_info`, awaited: of an `AsyncRun`, an `AsyncBackend` or an `AsyncSnapshot`."""
    return await _read_async(run, "info", burn, thin, mask, like)


def _read(run: Readable, part: str, burn: int, thin: int, mask: Mask, like: object) -> Any:
    structure = structure_of(run.load(), part)
    samples = run.get_samples(burn, thin, names_in(structure), mask)
    return None if samples is None else _unravelled(structure, samples, like)


async def _read_async(run: AwaitedReadable, part: str, burn: int, thin: int, mask: Mask, like: object) -> Any:
    structure = structure_of(await run.load(), part)
    samples = await run.get_samples(burn, thin, names_in(structure), mask)
    return None if samples is None else _unravelled(structure, samples, like)


def _unravelled(structure: Node, samples: dict[str, Array], like: object) -> Any:
    """The pytree, in the containers of `like` if there is one."""
    if like is None:
        return unravel(structure, samples)
    import jax  # noqa: PLC0415  # whoever has a pytree of JAX's has imported it

    leaves = [_leaf_array(leaf, samples[leaf.name]) for leaf in leaves_of(structure)]
    form = jax.tree.structure(like)
    if len(leaves) != form.num_leaves:
        raise EpochMismatch(f"the run's pytree has {len(leaves)} leaves, and the one given as `like` is {form}")
    return jax.tree.unflatten(form, leaves)


# ---- structures ------------------------------------------------------------------------------------------------------


def structure_of(epoch: object, part: str) -> Node:
    """What an epoch that was loaded says about its "position" or "info".

    Raises:
        EpochMismatch: it says nothing: it isn't one of `run_kernel`'s.
        Damaged: it makes no sense.
    """
    texts = getattr(epoch, "others", {}).get(KEY)
    if not isinstance(texts, dict) or not isinstance(texts.get(part), str):
        raise EpochMismatch(
            f"the run doesn't say what pytrees its samples are: it wasn't written by run_kernel ({part})"
        )
    return decode(texts[part])


def encode(structure: Node) -> str:
    """A structure as text, JSON."""
    return msgspec.json.encode(structure).decode()


def decode(text: str) -> Node:
    """The structure that `encode` wrote. The text may come from a hostile file.

    Raises:
        Damaged: it makes no sense.
    """
    try:
        structure: Node = msgspec.json.decode(text, type=Leaf | Branch)
        _check(structure)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"what the run says about its pytrees makes no sense: {error}") from error
    return structure


def _check(structure: Node) -> None:
    """No two leaves may be the same numbers: else a small text could ask for much memory."""
    ends: dict[str, int] = {}
    for leaf in leaves_of(structure):
        if leaf.start < ends.get(leaf.name, 0):
            raise ValueError(f"leaves overlap in {leaf.name!r}")
        ends[leaf.name] = leaf.start + leaf.size
        if dtype_from_text(leaf.dtype).kind not in _NUMBERS:
            raise ValueError(f"{leaf.dtype!r} is no dtype of numbers")
    for branch in _branches(structure):
        if branch.kind == "dict" and not len(branch.keys) == len(set(branch.keys)) == len(branch.members):
            raise ValueError("a dict needs a key of its own for each member")
        if branch.kind == "none" and branch.members:
            raise ValueError("None has no members")


def leaves_of(structure: Node) -> Iterator[Leaf]:
    """The leaves, in the order in which JAX has them."""
    if isinstance(structure, Leaf):
        yield structure
    else:
        for member in structure.members:
            yield from leaves_of(member)


def _branches(structure: Node) -> Iterator[Branch]:
    if isinstance(structure, Branch):
        yield structure
        for member in structure.members:
            yield from _branches(member)


def names_in(structure: Node) -> list[str]:
    """The names of the samples that are needed; one at least, for how many there are."""
    return list(dict.fromkeys(leaf.name for leaf in leaves_of(structure))) or ["p"]


def parameter_names(structure: Node) -> list[str]:
    """A name for each number of a pytree, in their order in "p": "slope", "offset[0]", "layers[1].w[0,2]"."""
    return list(_named(structure, ""))


def _named(node: Node, path: str) -> Iterator[str]:
    if isinstance(node, Branch):
        for i, member in enumerate(node.members):
            step = f"[{i}]" if node.kind != "dict" else f".{node.keys[i]}" if path else str(node.keys[i])
            yield from _named(member, path + step)
        return
    whole = path if path and not path.startswith("[") else f"p{path}"
    for index in np.ndindex(node.shape):
        yield f"{whole}[{','.join(map(str, index))}]" if index else whole


def unravel(structure: Node, samples: dict[str, Array]) -> Any:
    """The pytree of arrays `(nchain, nsamples, *shape)` from samples `(nchain, dim, nsamples)`.

    Raises:
        Damaged: the samples aren't what the structure says.
    """
    if isinstance(structure, Leaf):
        return _leaf_array(structure, samples[structure.name])
    members = [unravel(member, samples) for member in structure.members]
    if structure.kind == "dict":
        return dict(zip(structure.keys, members, strict=True))
    if structure.kind == "none":
        return None
    return members if structure.kind == "list" else tuple(members)


def _leaf_array(leaf: Leaf, samples: Array) -> Array:
    nchain, dim, nsamples = samples.shape
    if leaf.start + leaf.size > dim:
        raise Damaged(f"samples[{leaf.name!r}] has dim {dim}, and a leaf of {leaf.shape} begins at {leaf.start}")
    part = np.moveaxis(samples[:, leaf.start : leaf.start + leaf.size], 1, 2)
    dtype = dtype_from_text(leaf.dtype)
    if part.dtype.kind == "c" and dtype.kind != "c":
        part = part.real
    return np.ascontiguousarray(part.reshape(nchain, nsamples, *leaf.shape), dtype)
