"""Kinds of epochs: what epochs that are built alike have in common, worked out once.

A sampler hands over thousands of epochs that differ in their numbers only. To take one apart and check each part costs
more than all else in a hand-over of small ones. So an epoch that is built like an earlier one is recognised: one walk
through it, which compares types, names, dtypes and shapes, and collects its arrays.

Up the stream: `flatten` takes an epoch apart. Down the stream: `prepare` asks here first.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from posterity._format.flatten import Item, Leaf, flatten_part
from posterity._format.layout import Layout, layout_of
from posterity._format.schema import encode_items
from posterity._system.arrays import Array
from posterity.errors import NotStorable

_MOST_KINDS = 4
_ARRAY, _DICT, _SAME, _NUMBER, _OTHER = range(5)
_Step: TypeAlias = tuple[type, int, Any, Any]  # of a value: its type, what to do, with what
_Pattern: TypeAlias = tuple[tuple[str, ...], tuple[_Step, ...]]  # the names in a dict, and their values
_NUMBERS: dict[type, type[np.generic]] = {bool: np.bool_, float: np.float64, complex: np.complex128}


class Kind:
    """What equal epochs share. `shapes`: of each name of samples its dim and dtype; `nbytes`: of all arrays."""

    __slots__ = ("_layout", "_pattern", "is_in_memory", "items", "nbytes", "nchain", "nsamples", "shapes")

    def __init__(
        self,
        items: list[Item],
        leaves: Sequence[Leaf],
        nchain: int,
        nsamples: int,
        shapes: dict[str, tuple[int, str]],
    ) -> None:
        self.items = items
        self.nchain = nchain
        self.nsamples = nsamples
        self.shapes = shapes
        self.nbytes = sum(leaf.nbytes for leaf in leaves)
        self.is_in_memory = all(isinstance(leaf, np.ndarray) for leaf in leaves)
        self._layout: Layout | None = None
        self._pattern: _Pattern | None = None

    @property
    def layout(self) -> Layout:
        """Where the parts of such an epoch lie in a file."""
        if self._layout is None:
            self._layout = layout_of(encode_items(self.items))
        return self._layout

    def learn(self, data: dict[str, object], leaves: Sequence[Leaf]) -> None:
        """Note how an epoch of this kind is built, so that the next one is recognised."""
        self._pattern = _Learning(self.items, leaves).members(data)

    def recognise(self, data: dict[str, object]) -> list[Leaf] | None:
        """The arrays of an epoch, if it is of this kind; None says only that it wasn't recognised."""
        leaves: list[Leaf] = []
        return leaves if self._pattern is not None and _collect(data, self._pattern, leaves) else None


class Kinds:
    """The kinds of epochs that a backend saw last. Any thread may use it: what it knows is exchanged in one step."""

    def __init__(self) -> None:
        self._learned: tuple[Kind, ...] = ()
        self._last: Kind | None = None

    def recognise(self, data: dict[str, object]) -> tuple[Kind, list[Leaf]] | None:
        """The kind of an epoch, and its arrays."""
        for kind in self._learned:
            leaves = kind.recognise(data)
            if leaves is not None:
                return kind, leaves
        return None

    def note(self, kind: Kind, data: dict[str, object], leaves: Sequence[Leaf]) -> None:
        """An epoch wasn't recognised. A kind that comes twice in a row is worth learning."""
        if self._last is not None and self._last.items == kind.items:
            kind.learn(data, leaves)
            self._learned = (kind, *self._learned[: _MOST_KINDS - 1])
        self._last = kind


def _collect(members: dict[str, object], pattern: _Pattern, leaves: list[Leaf]) -> bool:
    """Whether a dict is built as the pattern says; its arrays are appended."""
    names, steps = pattern
    if tuple(members) != names:
        return False
    for given, (kind, what, first, second) in zip(members.values(), steps, strict=True):
        if type(given) is not kind:
            return False
        value: Any = given
        if what == _ARRAY:
            fits = value.shape == first and value.dtype == second
            leaves.append(value)
        elif what == _SAME:
            fits = value == first
            leaves.extend(second)
        elif what == _DICT:
            fits = _collect(value, first, leaves)
        elif what == _NUMBER:
            fits = True
            leaves.append(np.array(value, first))
        else:
            fits = _collect_other(value, first, leaves)
        if not fits:
            return False
    return True


def _collect_other(value: object, items: list[Item], leaves: list[Leaf]) -> bool:
    """For what isn't looked at in a shorter way: take it apart, and compare."""
    try:
        found, arrays = flatten_part(value, items[0].path)
    except NotStorable:
        return False  # the long way says so, with the path
    leaves += arrays
    return found == items


class _Learning:
    """Goes through an epoch and the items that it was taken apart into, side by side."""

    def __init__(self, items: Sequence[Item], leaves: Sequence[Leaf]) -> None:
        self._items = items
        self._leaves = leaves
        self._at = 0
        self._leaf = 0

    def members(self, group: dict[str, object]) -> _Pattern:
        """The pattern of a dict."""
        return tuple(group), tuple(self._step(value) for value in group.values())

    def _step(self, value: object) -> _Step:
        first, leaf = self._at, self._leaf
        item = self._items[first]
        kind = type(value)
        self._at += 1
        if kind is dict:
            group: Any = value
            return kind, _DICT, self.members(group), None
        while self._at < len(self._items) and self._items[self._at].path.startswith(f"{item.path}/"):
            self._at += 1
        self._leaf += sum(part.is_array for part in self._items[first : self._at])
        if item.is_array and self._leaves[leaf] is value:
            array: Any = value
            return kind, _ARRAY, array.shape, array.dtype
        if kind in (str, bytes, type(None)):
            return kind, _SAME, value, [_frozen(part) for part in self._leaves[leaf : self._leaf]]
        if kind in _NUMBERS:
            return kind, _NUMBER, _NUMBERS[kind], None
        return kind, _OTHER, list(self._items[first : self._at]), None


def _frozen(leaf: Leaf) -> Array:
    """An array that all epochs of a kind share."""
    array = np.array(leaf)
    array.flags.writeable = False
    return array
