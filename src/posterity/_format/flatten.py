"""What a dict may hold, as a flat list of arrays and back.

An epoch is a dict that may nest and may hold numbers, text, None, lists. On disk there are only groups and arrays.
`flatten` takes the dict apart into `Item`s, each with its path, and the arrays that belong to them; `restore` puts it
together again, equal in value, type and order. The items name no numbers: equal items mean an equal layout.

Up the stream: `epoch`, which is handed the dict. Down the stream: `layout`, which gives each array its place in a file.
"""

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias, cast, runtime_checkable

import msgspec
import numpy as np

from posterity._system.arrays import Array
from posterity.errors import Damaged, NotStorable

from .dtypes import dtype_from_text, dtype_to_text

if TYPE_CHECKING:
    import numpy.typing as npt

MAX_DEPTH = 32
MAX_AXES = 32
_LONGEST_DTYPE = 60_000
_LONGEST_HDF5_DTYPE = 8000
_WORTH_PADDING = 1 << 20
_BOXES = ("dict", "list", "tuple", "none")
_LISTED: dict[type, str] = {bool: "bool", int: "int", float: "float", complex: "complex", str: "str"}


@runtime_checkable
class DeviceArray(Protocol):
    """An array that may live on a device, such as JAX's: it has a shape and a dtype before it has numbers."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its length along each axis."""

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """What its numbers are."""

    @property
    def nbytes(self) -> int:
        """The bytes of its numbers."""

    def __array__(self) -> Array: ...


Leaf: TypeAlias = "Array | DeviceArray"


class Item(msgspec.Struct, frozen=True, array_like=True):
    """One place in an epoch.

    `path`: names joined by "/". `kind`: what the Python object was. `dtype`, `shape`: of the array as it is stored,
    none for a container. `was`: the dtype that the array had, where it is stored as another one.
    """

    path: str
    kind: str = "array"
    dtype: str = ""
    shape: tuple[int, ...] = ()
    was: str = ""

    @property
    def is_array(self) -> bool:
        """Whether numbers belong to it: the others are groups."""
        return self.dtype != ""


def flatten(epoch: dict[str, object]) -> tuple[list[Item], list[Leaf]]:
    """Take an epoch apart: its items in order, and one array for each item that is one.

    Nothing is copied: the arrays are the caller's own, where they can be stored as they are.

    Raises:
        NotStorable: an item can't be stored; the message gives its path and a way out.
    """
    items: list[Item] = []
    leaves: list[Leaf] = []
    _flatten_members(epoch.items(), "", items, leaves, 0)
    return items, leaves


def flatten_part(value: object, path: str) -> tuple[list[Item], list[Leaf]]:
    """As `flatten`, of what an epoch has at a path."""
    items: list[Item] = []
    leaves: list[Leaf] = []
    _flatten_value(value, path, items, leaves, path.count("/"))
    return items, leaves


def restore(items: Iterable[Item], arrays: Iterable[Array]) -> dict[str, object]:
    """Put an epoch together again from its items and their arrays, which become part of it.

    Raises:
        Damaged: an item and its array contradict each other.
    """
    root: dict[str, object] = {}
    boxes: dict[str, dict[str, object]] = {"": root}
    kinds: list[tuple[str, str]] = []
    supply = iter(arrays)
    for item in items:
        parent, _, name = item.path.rpartition("/")
        if item.is_array:
            boxes[parent][name] = _restored(item, next(supply))
        elif item.kind == "none":
            boxes[parent][name] = None
        else:
            boxes[item.path] = boxes[parent][name] = {}
            kinds.append((item.path, item.kind))
    for path, kind in reversed(kinds):
        if kind != "dict":
            parent, _, name = path.rpartition("/")
            members = list(boxes[path].values())
            boxes[parent][name] = members if kind == "list" else tuple(members)
    return root


def _flatten_members(
    members: Iterable[tuple[object, object]], prefix: str, items: list[Item], leaves: list[Leaf], depth: int
) -> None:
    if depth > MAX_DEPTH:
        raise NotStorable(f"{prefix[:60]}...: nested deeper than {MAX_DEPTH}, or holds itself")
    for name, value in members:
        _check_name(name, prefix)
        _flatten_value(value, f"{prefix}{name}", items, leaves, depth)


def _check_name(name: object, prefix: str) -> None:
    if not isinstance(name, str):
        raise NotStorable(f"{prefix}{name!r}: a name must be a str, not {type(name).__name__}; use str({name!r})")
    if not name or name == "." or "/" in name or "\0" in name:
        raise NotStorable(f"{prefix}{name!r}: HDF5 can't have this name (empty, '.', or with '/' or NUL in it)")
    if not _is_utf8(name):
        raise NotStorable(f"{prefix}{name!r}: a name must be text that UTF-8 can encode")
    if len(name) > 1000:
        raise NotStorable(f"{prefix}{name[:40]}...: a name may have 1000 characters at most")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _flatten_value(value: object, path: str, items: list[Item], leaves: list[Leaf], depth: int) -> None:
    if isinstance(value, (np.ndarray, np.generic)):
        _flatten_array(value, path, items, leaves)
    elif isinstance(value, dict):
        items.append(Item(path, "dict"))
        _flatten_members(value.items(), f"{path}/", items, leaves, depth + 1)
    elif isinstance(value, (list, tuple)):
        _flatten_list(value, path, items, leaves, depth)
    elif value is None:
        items.append(Item(path, "none"))
    elif isinstance(value, (bool, int, float, complex, str, bytes)):
        _flatten_plain(value, path, items, leaves)
    elif isinstance(value, DeviceArray):
        _flatten_device(value, path, items, leaves)
    else:
        raise NotStorable(
            f"{path}: can't store {_type_name(value)}; give NumPy arrays, numbers, text, None, dicts, lists"
        )


def _type_name(value: object) -> str:
    kind = type(value)
    return f"a {kind.__module__}.{kind.__qualname__}"


def _flatten_list(value: Sequence[object], path: str, items: list[Item], leaves: list[Leaf], depth: int) -> None:
    """A list of plain numbers or of text is one array; any other is a group.

    The names of a group's members are padded with zeros: in text order, which is how others read them, they are in
    their own.
    """
    box = "list" if type(value) is list else "tuple"
    if type(value) not in (list, tuple):
        raise NotStorable(f"{path}: can't store {_type_name(value)}; use a dict, or a plain list")
    kinds = {type(member) for member in value}
    if len(kinds) == 1:
        listed = _LISTED.get(kinds.pop())
        array = _listed_array(value, listed)
        if array is not None:
            items.append(Item(path, f"{box}:{listed}", dtype_to_text(array.dtype), array.shape))
            leaves.append(array)
            return
    items.append(Item(path, box))
    width = len(str(len(value) - 1))
    members = ((f"{i:0{width}d}", member) for i, member in enumerate(value))
    _flatten_members(members, f"{path}/", items, leaves, depth + 1)


def _listed_array(value: Sequence[object], listed: str | None) -> Array | None:
    """The list as one array, or None where that would change a value."""
    if listed is None:
        return None
    if listed == "int":
        return np.array(value, np.int64) if all(_is_int64(member) for member in value) else None
    if listed == "str":
        texts = [member.encode() for member in value if isinstance(member, str) and _is_utf8(member)]
        longest = max(1, *map(len, texts))
        if len(texts) < len(value) or any(text.endswith(b"\0") for text in texts):
            return None
        if longest * len(texts) > _WORTH_PADDING + 4 * sum(map(len, texts)):
            return None  # one long text among many short ones
        return np.array(texts, f"S{longest}")
    return np.array(value, listed)


def _flatten_plain(value: object, path: str, items: list[Item], leaves: list[Leaf]) -> None:
    kind, array = _plain_array(value, path)
    items.append(Item(path, kind, dtype_to_text(array.dtype), array.shape))
    leaves.append(array)


def _is_int64(value: object) -> bool:
    return isinstance(value, int) and -(2**63) <= value < 2**63


def _plain_array(value: object, path: str) -> tuple[str, Array]:
    if isinstance(value, bool):
        return "bool", np.array(value)
    if isinstance(value, int):
        if _is_int64(value):
            return "int", np.array(value, np.int64)
        if 0 <= value < 2**64:
            return "int", np.array(value, np.uint64)
        return "bigint", _bytes_array(hex(value).encode())
    if isinstance(value, float):
        return "float", np.array(value, np.float64)
    if isinstance(value, complex):
        return "complex", np.array(value, np.complex128)
    if isinstance(value, bytes):
        return "bytes", np.frombuffer(value, np.uint8)
    if isinstance(value, str) and _is_utf8(value):
        return ("str", _bytes_array(value.encode())) if value else ("empty", _bytes_array(b"\0"))
    raise NotStorable(f"{path}: text that UTF-8 can't encode: {value!r:.60}; store it as bytes")


def _bytes_array(text: bytes) -> Array:
    """A 0-d array of fixed-length text that keeps NULs at its end."""
    return np.frombuffer(text, f"S{len(text)}").reshape(())


def _flatten_array(value: Array | np.generic, path: str, items: list[Item], leaves: list[Leaf]) -> None:
    masked = sys.modules.get("numpy.ma")  # whoever has such an array has imported it; NumPy itself does so late
    if masked is not None and isinstance(value, masked.MaskedArray):
        raise NotStorable(f"{path}: a masked array would lose its mask; store .data and .mask, or .filled()")
    kind = "scalar" if isinstance(value, np.generic) else "array"
    array = np.asarray(value)
    was = ""
    if array.dtype.kind == "U":
        array, was = _encode_text(array, path), array.dtype.str
        kind += ":text"
    elif not _has_hdf5_type(array.dtype, path):
        was = dtype_to_text(array.dtype)
        array = np.ascontiguousarray(array).reshape((*array.shape, 1)).view(np.uint8)
        kind += ":raw"
    if array.ndim > MAX_AXES:
        raise NotStorable(f"{path}: an array of {value.ndim} axes; HDF5 has {MAX_AXES} at most, reshape it")
    items.append(Item(path, kind, dtype_to_text(array.dtype), array.shape, was))
    leaves.append(array)


def _encode_text(array: Array, path: str) -> Array:
    """As UTF-8, a byte for each letter at least: reading it can't take much more memory than the file has."""
    try:
        encoded = np.char.encode(cast("npt.NDArray[np.str_]", array), "utf-8")
    except UnicodeEncodeError as error:
        raise NotStorable(f"{path}: text that UTF-8 can't encode: {error}") from error
    return np.asarray(encoded, f"S{max(1, encoded.dtype.itemsize, array.dtype.itemsize // 4)}")


def _has_hdf5_type(dtype: np.dtype[np.generic], path: str) -> bool:
    """Whether HDF5 has this type. If not, its bytes are stored as they are.

    Raises:
        NotStorable: the bytes alone don't say what they mean.
    """
    if dtype.hasobject or dtype.kind == "T":
        raise NotStorable(f"{path}: an array of dtype {dtype} holds Python objects; convert it to numbers or to text")
    if dtype.itemsize == 0:
        raise NotStorable(f"{path}: an array of dtype {dtype!r} has no bytes to store")
    try:
        same = dtype_from_text(dtype_to_text(dtype)) == dtype
    except (TypeError, ValueError):
        same = False
    if not same:
        raise NotStorable(f"{path}: NumPy can't name the dtype {dtype} in a file; convert it, to float32 for example")
    length = len(dtype_to_text(dtype))
    if length > _LONGEST_DTYPE:
        raise NotStorable(f"{path}: a dtype of so many fields doesn't fit into a file; store them as several arrays")
    return dtype.kind in "?biufcSV" and length <= _LONGEST_HDF5_DTYPE and not _holds_foreign(dtype)


def _holds_foreign(dtype: np.dtype[np.generic]) -> bool:
    """Whether a part of the type is one that HDF5 hasn't: text of four bytes a letter, dates, long complex numbers."""
    if dtype.subdtype is not None:
        return _holds_foreign(dtype.subdtype[0])
    if dtype.fields is not None:
        return any(_holds_foreign(field[0]) for field in dtype.fields.values()) or not dtype.names
    return dtype.kind not in "?biufcSV" or (dtype.kind == "c" and dtype.itemsize > 16)


def _flatten_device(value: DeviceArray, path: str, items: list[Item], leaves: list[Leaf]) -> None:
    """An array of JAX and its like stays where it is; only its shape and dtype are looked at."""
    dtype = value.dtype
    if not isinstance(dtype, np.dtype):
        raise NotStorable(
            f"{path}: an array of {dtype}, which is no dtype of NumPy's; of a JAX key store jax.random.key_data(key), "
            f"of a PyTorch tensor x.numpy(force=True)"
        )
    if dtype.kind not in "?biufc":
        raise NotStorable(f"{path}: NumPy can't name the dtype {dtype} in a file; convert it, to float32 for example")
    items.append(Item(path, "array", dtype_to_text(dtype), tuple(value.shape)))
    leaves.append(value)


def _restored(item: Item, array: Array) -> object:
    try:
        return _to_object(item, array)
    except (ValueError, TypeError, AttributeError) as error:
        raise Damaged(f"{item.path!r} can't be what the file says it is, {item.kind!r}: {error}") from error


def _to_object(item: Item, array: Array) -> object:
    """The Python object that an array was."""
    kind, _, detail = item.kind.partition(":")
    if kind in ("array", "scalar"):
        if detail == "text":
            was = dtype_from_text(item.was)
            if was.kind != "U" or was.itemsize > 4 * array.dtype.itemsize:
                raise ValueError(f"{item.was} doesn't fit into {array.dtype}")
            text = np.char.decode(cast("npt.NDArray[np.bytes_]", array), "utf-8")
            array = np.asarray(text.astype(was).reshape(item.shape))
        elif detail == "raw":
            array = array.view(dtype_from_text(item.was)).reshape(item.shape[:-1])
        return array if kind == "array" else array[()]
    if kind in ("list", "tuple"):
        members = [text.decode() for text in array.tolist()] if detail == "str" else array.tolist()
        return members if kind == "list" else tuple(members)
    if kind in ("str", "bytes", "bigint"):
        data = array.tobytes()
        return data if kind == "bytes" else data.decode() if kind == "str" else int(data, 16)
    if kind == "empty":
        return ""
    return array.item()
