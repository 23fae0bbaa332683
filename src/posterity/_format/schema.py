"""The description of an epoch's layout, as bytes: equal bytes, equal layout.

The journal and the frames have it. It is a list of the epoch's items, or if some of their arrays are packed a map.

Up the stream: `flatten` gives the items. Down the stream: `layout` works out where everything lies.
"""

from collections.abc import Sequence

import msgspec

from posterity.errors import Damaged

from .codec import Codec
from .flatten import Item

_items_decoder = msgspec.msgpack.Decoder(list[Item])


class PackedSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Items, how their large arrays are packed, and of each array the shape of its chunks: none if it isn't packed."""

    codec: Codec
    level: int
    shuffle: bool
    chunks: list[tuple[int, ...]]
    items: list[Item]


_packed_decoder = msgspec.msgpack.Decoder(PackedSpec)


def encode_items(items: Sequence[Item]) -> bytes:
    """Items as the bytes that stand for their layout: equal bytes, equal layout."""
    return msgspec.msgpack.encode(items)


def decode_items(spec: bytes) -> list[Item]:
    """The items that `encode_items` wrote.

    Raises:
        Damaged: the bytes aren't such items, or contradict themselves.
    """
    try:
        items = _items_decoder.decode(spec)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Damaged(f"an epoch's description can't be read: {error}") from error
    _check_items(items)
    return items


def is_packed(spec: bytes) -> bool:
    """Whether the bytes stand for a packed layout: they are a map, and no list."""
    return spec[:1] >= b"\x80" and spec[:1] < b"\x90"


def decode_packed(spec: bytes) -> PackedSpec:
    """What the bytes of a packed layout say.

    Raises:
        Damaged: the bytes aren't such a description, or contradict themselves.
    """
    try:
        packed = _packed_decoder.decode(spec)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Damaged(f"an epoch's description can't be read: {error}") from error
    _check_items(packed.items)
    return packed


def _check_items(items: Sequence[Item]) -> None:
    groups = {""}
    seen = {""}
    for item in items:
        parent = item.path.rpartition("/")[0]
        if parent not in groups or item.path in seen or min(item.shape, default=0) < 0:
            raise Damaged(f"an epoch's description contradicts itself at {item.path[:80]!r}")
        seen.add(item.path)
        if not item.is_array and item.kind != "none":
            groups.add(item.path)
