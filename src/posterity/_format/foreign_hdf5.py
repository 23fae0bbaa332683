"""Epochs from HDF5 files that others wrote: jexplore, or ours after a tool has repacked them.

These are read with h5py, and they may be hostile: links that lead out of the file or in circles, datasets whose data
lie elsewhere, and shapes larger than the file could hold are refused.

Up the stream: any file. Down the stream: `single_file.read_epoch`, `ingest` of a path.
"""

import mmap
import os
import re
import struct
from pathlib import Path

import h5py
import numpy as np

from posterity.errors import Damaged

from .flatten import MAX_DEPTH, Item, restore

_PREFIX = "epoch_"
_ARRAY_KINDS = frozenset(
    ["array", "scalar", "int", "float", "complex", "bool", "str", "bytes", "bigint", "empty", "list", "tuple"]
)
_MOST_COMPRESSED = 1100  # deflate can't do better than 1032 : 1
_TEXT_HEAP = re.compile(rb"GCOL\x01")
_TEXT_HEAP_HEAD = struct.Struct("<8xQ")
_TEXT_HEAP_ITEM = struct.Struct("<H6xQ")


def choose_epoch(indices: list[int], iepoch: int, where: str) -> int:
    """The index of the epoch meant: itself, or counted from the last by index if negative.

    Raises:
        IndexError: there is no such epoch; the message names those there are.
    """
    indices = sorted(indices)
    if iepoch >= 0 and iepoch in indices:
        return iepoch
    if iepoch < 0 and len(indices) >= -iepoch:
        return indices[iepoch]
    there = ", ".join(map(str, indices[:20])) + (", ..." if len(indices) > 20 else "")
    raise IndexError(f"{where} has no epoch {iepoch}; it has {there or 'none'}")


def read_foreign_epoch(path: str | os.PathLike[str], iepoch: int) -> dict[str, object]:
    """One epoch of an HDF5 file, as a dict of arrays that are the caller's own.

    Raises:
        IndexError: the file has no such epoch.
        Damaged: the file can't be read, or isn't to be trusted.
    """
    name = os.fspath(path)
    try:
        with h5py.File(name, "r", locking=False) as file:
            return _read(file, iepoch, str(name))
    except FileNotFoundError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        if isinstance(error, Damaged):
            raise
        raise Damaged(f"{name} can't be read as HDF5: {error}") from error


def _read(file: h5py.File, iepoch: int, name: str) -> dict[str, object]:
    numbers = [key[len(_PREFIX) :] for key in file if key.startswith(_PREFIX)]
    indices = [int(number) for number in numbers if number.isascii() and number.isdigit()]
    chosen = choose_epoch(indices, iepoch, name)
    reader = _EpochReader(file, name, Path(name).stat().st_size)
    value = reader.read(f"{_PREFIX}{chosen}", file, 0)
    if not isinstance(value, dict):
        raise Damaged(f"{name}: epoch {chosen} isn't a group with members")
    return value


class _EpochReader:
    def __init__(self, file: h5py.File, name: str, size: int) -> None:
        self._name = name
        self._size = size
        self._seen: set[int] = set()
        self._is_ours = "posterity_format" in file.attrs
        self._are_texts_checked = False

    def read(self, key: str, parent: h5py.Group, depth: int) -> object:
        path = f"{parent.name.rstrip('/')}/{key}"
        if not isinstance(parent.get(key, getlink=True), h5py.HardLink):
            raise Damaged(f"{self._name}: {path} is a link that leads elsewhere; it isn't followed")
        node = parent[key]
        if not isinstance(node, (h5py.Dataset, h5py.Group)):
            raise Damaged(f"{self._name}: {path} is neither a group nor a dataset")
        address = h5py.h5o.get_info(node.id).addr
        if address in self._seen or depth > MAX_DEPTH:
            raise Damaged(f"{self._name}: {path} is there twice, holds itself, or is nested deeper than {MAX_DEPTH}")
        self._seen.add(address)
        if isinstance(node, h5py.Dataset):
            self._check_dataset(node, path)
            return self._to_value(node, path)
        members = {name: self.read(name, node, depth + 1) for name in node}
        return self._to_box(node, members)

    def _check_dataset(self, node: h5py.Dataset, path: str) -> None:
        if node.is_virtual or node.external:
            raise Damaged(f"{self._name}: the data of {path} lie in other files; they aren't read")
        if node.dtype.hasobject and h5py.check_string_dtype(node.dtype) is None:
            raise Damaged(f"{self._name}: {path} holds data of variable length, or references, which an epoch can't")
        stored = min(node.id.get_storage_size(), self._size)
        most = stored if node.chunks is None else stored * _MOST_COMPRESSED
        if node.size is not None and node.size * node.dtype.itemsize > most:
            raise Damaged(f"{self._name}: {path} claims {node.shape} of {node.dtype}, more than the file can hold")

    def _to_value(self, node: h5py.Dataset, path: str) -> object:
        if node.shape is None:
            return None
        kind = self._attribute(node, "kind") or ("array" if self._is_ours else "")
        text = h5py.check_string_dtype(node.dtype)
        if text is not None and node.dtype.hasobject:
            texts = self._read_texts(node, path)
            return texts[0] if node.shape == () else np.array(texts, dtype=str).reshape(node.shape)
        array = np.array(node[...])
        if kind.partition(":")[0] in _ARRAY_KINDS:
            item = Item("x", kind, array.dtype.str, array.shape, self._attribute(node, "dtype"))
            try:
                return restore([item], [array])["x"]
            except Damaged as error:
                raise Damaged(f"{self._name}: {path}: {error}") from error
        return array.item().decode() if text is not None and node.shape == () else array

    def _read_texts(self, node: h5py.Dataset, path: str) -> list[str]:
        """Texts of variable length, one by one: a file can say that all of them are the same long one."""
        self._check_texts()
        texts, total = [], 0
        for index in np.ndindex(node.shape):
            text = node[index]
            total += len(text)
            if total > self._size:
                raise Damaged(f"{self._name}: the texts of {path} are more than the file can hold")
            texts.append(text.decode())
        if len(texts) * max(map(len, texts), default=0) > 64 * self._size:
            raise Damaged(f"{self._name}: the texts of {path}, one very long, can't be one array")
        return texts

    def _to_box(self, node: h5py.Group, members: dict[str, object]) -> object:
        kind = self._attribute(node, "kind")
        if kind == "none":
            return None
        if kind in ("list", "tuple") or (kind == "" and self._looks_like_list(members)):
            values = [members[name] for name in sorted(members, key=int)]
            return tuple(values) if kind == "tuple" else values
        return members

    def _looks_like_list(self, members: dict[str, object]) -> bool:
        """jexplore names the members of a list "0", "1", ... and writes an empty one as an empty group."""
        if self._is_ours:
            return False
        names = {str(i) for i in range(len(members))}
        return set(members) == names

    def _attribute(self, node: h5py.Group | h5py.Dataset, name: str) -> str:
        if name not in node.attrs:
            return ""
        if node.attrs.get_id(name).dtype.hasobject:
            self._check_texts()
        value = node.attrs[name]
        return value.decode() if isinstance(value, bytes) else str(value)

    def _check_texts(self) -> None:
        """Walk through all texts of variable length, once: libhdf5 goes round for ever at a free item of no length."""
        if self._are_texts_checked:
            return
        self._are_texts_checked = True
        with open(self._name, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for match in _TEXT_HEAP.finditer(data):
                start = match.start()
                if not _are_texts_whole(data, start):
                    raise Damaged(f"{self._name}: the texts of variable length at offset {start} are damaged")


def _are_texts_whole(data: mmap.mmap, start: int) -> bool:
    """Whether each item of a heap of texts ends within it, and is followed by another one, or by its end."""
    if start + _TEXT_HEAP_HEAD.size > len(data):
        return True  # libhdf5 refuses it
    end = start + _TEXT_HEAP_HEAD.unpack_from(data, start)[0]
    at = start + _TEXT_HEAP_HEAD.size
    while at + _TEXT_HEAP_ITEM.size <= min(end, len(data)):
        index, size = _TEXT_HEAP_ITEM.unpack_from(data, at)
        at += -(-size // 8) * 8 + _TEXT_HEAP_ITEM.size if index else size
        if at > end or (index == 0 and size < _TEXT_HEAP_ITEM.size):
            return False
    return True
