"""Pytrees of JAX: as samples, and as a state that an epoch can hold and that comes back bit for bit.

The walk is JAX's own, one level at a time, so that every container that JAX knows is known here too. Containers are
named by what they are to a reader without JAX: a dict, a list, a tuple, None. All else is a dict of its fields.

Up the stream: `kernels`, which has pytrees. Down the stream: `jax/pytrees`, which gives them back from the samples.
"""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import numpy as np

from posterity._format.dtypes import dtype_to_text
from posterity.errors import EpochMismatch, MissingExtra, NotStorable

from .pytrees import Branch, Leaf, Node

try:
    import jax
    import jax.numpy as jnp
except ImportError as error:
    raise MissingExtra("run_kernel needs the package jax: pip install 'posterity[jax]'") from error

__all__ = [
    "Tree",
    "describe",
    "escaped",
    "jax",
    "jnp",
    "members_of",
    "plain",
    "ravelled",
    "restored",
    "settled",
    "storable",
]

Tree: TypeAlias = Any
Kind: TypeAlias = Literal["dict", "list", "tuple", "none"]
_NUMPYS = "?biufc"


# ---- one level -------------------------------------------------------------------------------------------------------


def members_of(node: Tree) -> list[tuple[str | int, Tree]] | None:
    """The members of a container with their keys, in JAX's order; None if it is a leaf."""
    found = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda part: part is not node)[0]
    if len(found) == 1 and not found[0][0]:
        return None
    return [(_key(path[0]), member) for path, member in found]


def _key(step: Any) -> str | int:
    """What JAX calls a member: a key of a dict, the name of a field, or an index. Other keys become text.

    NumPyro, for example, has tuples of names as keys.
    """
    key = next((getattr(step, name) for name in ("key", "name", "idx") if hasattr(step, name)), step)
    if isinstance(key, tuple):
        return ",".join(map(str, key))
    return key if isinstance(key, (str, int)) and not isinstance(key, bool) else str(key)


def kind_of(node: Tree) -> Kind:
    """What a container is to a reader without JAX."""
    if node is None:
        return "none"
    if type(node) is list:
        return "list"
    return "tuple" if type(node) is tuple else "dict"


def _mapped(tree: Tree, path: str, leaf: Callable[[str, Any], Any], box: Callable[[Kind, Any], Any]) -> Any:
    """The tree made anew: its leaves, called with their paths, and its containers, with keys and members."""
    members = members_of(tree)
    if members is None:
        return leaf(path, tree)
    made = [(key, _mapped(member, f"{path}.{key}" if path else str(key), leaf, box)) for key, member in members]
    return box(kind_of(tree), made)


# ---- samples ---------------------------------------------------------------------------------------------------------


def storable(array: Any) -> Any:
    """An array as NumPy can name it: the data of a typed key, and what is narrower than NumPy knows as a wider one."""
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(array)
    if np.dtype(array.dtype).kind in _NUMPYS:
        return array
    return array.astype(jnp.float32 if jnp.issubdtype(array.dtype, jnp.floating) else jnp.int8)


def describe(tree: Tree, name_of: Callable[[str], str], like: Any = None) -> Node:
    """How each leaf `(nchain, *shape)` of a tree is stored in a name of its own, which `name_of` makes of its path.

    `like`: the array that they all are a part of, one behind the other, where they fit; then `name_of` is asked for
    those that don't.
    """
    start = 0

    def leaf(path: str, array: Any) -> Leaf:
        nonlocal start
        array = jax.eval_shape(storable, array)
        shape, dtype = tuple(array.shape[1:]), np.dtype(array.dtype)
        begin, start = start, start + int(np.prod(shape, dtype=int))
        if like is not None and fits(dtype, like.dtype):
            return Leaf("p", dtype_to_text(dtype), shape, begin)
        return Leaf(name_of(path), dtype_to_text(dtype), shape)

    return _mapped(tree, "", leaf, _branch)  # type: ignore[no-any-return]


def _branch(kind: Kind, members: list[tuple[str | int, Node]]) -> Branch:
    keys = tuple(key for key, _ in members) if kind == "dict" else ()
    if len(set(keys)) < len(keys):
        raise NotStorable(f"the keys {list(keys)} of a pytree aren't different as text")
    return Branch(kind, tuple(member for _, member in members), keys)


def fits(dtype: np.dtype[np.generic], whole: np.dtype[np.generic]) -> bool:
    """Whether each number of a dtype is the same in another one."""
    return dtype == whole or np.can_cast(dtype, whole, "safe")


def ravelled(tree: Tree) -> Any:
    """All leaves `(nchain, *shape)` one behind the other, `(nchain, dim)`, in a dtype for all of them.

    Numbers that aren't the same in it are rounded: integers among floats, for example.
    """
    leaves = [storable(leaf) for leaf in jax.tree.leaves(tree)]
    if not leaves:
        raise EpochMismatch("a position without a number in it can't be stored")
    flat = [leaf.reshape(leaf.shape[0], -1) for leaf in leaves]
    dtype = jnp.result_type(*(leaf.dtype for leaf in flat))
    if dtype == jnp.bool_:
        dtype = jnp.dtype(jnp.int8)
    return jnp.concatenate([leaf.astype(dtype) for leaf in flat], axis=1)


# ---- states ----------------------------------------------------------------------------------------------------------


def settled(tree: Tree) -> Tree:
    """The same arrays, none of them of a weak type: so those that come back from a file are no others to JAX."""
    return jax.tree.map(_settled, tree)


def _settled(leaf: Any) -> Any:
    array = jnp.asarray(leaf)
    return (
        array if jnp.issubdtype(array.dtype, jax.dtypes.prng_key) else jax.lax.convert_element_type(array, array.dtype)
    )


def plain(tree: Tree) -> Any:
    """A state as dicts, lists, tuples, None and arrays; `restored` gives it back."""
    return _mapped(tree, "", lambda _, leaf: storable(leaf), _plain_box)


def _plain_box(kind: Kind, members: list[tuple[str | int, Any]]) -> Any:
    if kind == "none":
        return None
    if kind == "dict":
        named = {escaped(str(key)): member for key, member in members}
        if len(named) < len(members):
            raise NotStorable(f"the keys {[key for key, _ in members]} of a pytree aren't different as text")
        return named
    made = [member for _, member in members]
    return made if kind == "list" else tuple(made)


def escaped(name: str) -> str:
    """A name that HDF5 can have, another one for each."""
    for letter in "%/\0":
        name = name.replace(letter, f"%{ord(letter):02X}")
    return {"": "%", ".": "%2E"}.get(name, name)


def restored(stored: object, like: Tree) -> Tree:
    """The state that `plain` took apart, in the containers and with the dtypes of another one of its kind.

    Raises:
        EpochMismatch: it is of another kind; the message says where.
    """
    leaves: list[Any] = []
    _collect(stored, like, "state", leaves)
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _collect(stored: object, like: Tree, path: str, leaves: list[Any]) -> None:
    members = members_of(like)
    if members is None:
        leaves.append(_restored_leaf(stored, like, path))
        return
    kind = kind_of(like)
    keys = [escaped(str(key)) for key, _ in members]
    found = stored.values() if isinstance(stored, dict) else stored if isinstance(stored, (list, tuple)) else ()
    theirs = list(stored) if isinstance(stored, dict) else [str(i) for i in range(len(found))]
    if _kind_stored(stored) != kind or theirs != keys:
        raise EpochMismatch(
            f"the run's {path} is a {_kind_stored(stored)} of {theirs}, and the kernel's a {kind} of {keys}: "
            f"continue with the kernel that the run was begun with"
        )
    for key, part, (_, member) in zip(keys, found, members, strict=True):
        _collect(part, member, f"{path}.{key}", leaves)


def _kind_stored(stored: object) -> str:
    return "none" if stored is None else type(stored).__name__


def _restored_leaf(stored: object, like: Any, path: str) -> Any:
    expected = jax.eval_shape(storable, like)
    ours = f"{expected.dtype}{list(expected.shape)}"
    theirs = f"{stored.dtype}{list(stored.shape)}" if isinstance(stored, np.ndarray) else _kind_stored(stored)
    if theirs != ours:
        raise EpochMismatch(
            f"the run's {path} is {theirs}, and the kernel's {ours}: continue with the kernel, the number of chains "
            f"and the jax_enable_x64 that the run was begun with"
        )
    if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.asarray(stored), impl=_key_impl(like))
    return jnp.asarray(stored, dtype=like.dtype)


def _key_impl(like: Any) -> Any:
    """The generator of a typed key, of which only the shape may be there."""
    found: list[Any] = []
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), like)
    return found[0]
