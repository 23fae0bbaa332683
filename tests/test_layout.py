"""Where each part of an epoch lies in a file."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import storable
from posterity._format.checksum import as_bytes, data_sum
from posterity._format.flatten import Item, flatten
from posterity._format.frame import FRAME_HEAD, PAGE, Stamp, align, decode_frame, read_frame_size
from posterity._format.layout import LARGE, Layout, layout_of
from posterity._format.schema import decode_items, encode_items
from posterity.errors import Damaged

STAMP = Stamp(bytes(range(16)), 2, 5, 1000, 50, 7)


def laid_out(epoch):
    """The layout of an epoch, and its arrays as they will lie on disk."""
    items, leaves = flatten(epoch)
    return layout_of(encode_items(items)), [storable.to_memory(leaf) for leaf in leaves]


def sample(nsamples=4, dtype="<f8"):
    return {"samples": {"p": np.ones((2, 3, nsamples), dtype)}, "note": "text"}


# ---- places ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "to", "expected"), [(0, 8, 0), (1, 8, 8), (8, 8, 8), (9, 8, 16), (4095, 4096, 4096), (4097, 4096, 8192)]
)
def test_align_goes_up_to_the_next_multiple(offset, to, expected):
    """An offset that is a multiple already stays."""
    assert align(offset, to) == expected


@given(st.lists(storable.arrays(), max_size=6), st.lists(st.integers(0, 2 * LARGE), max_size=3))
@settings(max_examples=100)
def test_no_two_parts_of_an_epoch_overlap(small, sizes):
    """Headers and arrays lie one behind the other; large arrays begin at multiples of a page."""
    epoch = {f"s{i}": array for i, array in enumerate(small)} | {
        f"l{i}": np.zeros(n, "u1") for i, n in enumerate(sizes)
    }
    layout, arrays = laid_out(epoch)
    spans = sorted((layout.offsets[i], layout.offsets[i] + array.nbytes) for i, array in enumerate(arrays))
    ends = [layout.frame_size + layout.meta_size, *(end for _, end in spans)]
    assert all(start >= end for (start, _), end in zip(spans, ends, strict=False))
    assert ends[-1] <= layout.size
    assert layout.size % 8 == 0
    for i, array in enumerate(arrays):
        assert layout.nbytes[i] == array.nbytes
        assert layout.offsets[i] % (PAGE if array.nbytes >= LARGE else 8) == 0
    assert layout.align == (PAGE if any(n >= LARGE for n in sizes) else 8)


@pytest.mark.parametrize(("nbytes", "is_large"), [(0, False), (LARGE - 1, False), (LARGE, True), (LARGE + 1, True)])
def test_an_array_is_large_from_a_size_on(nbytes, is_large):
    """The size alone decides whether an array gets pages of its own, or lies among the small ones."""
    layout, _ = laid_out({"x": np.zeros(nbytes, "u1")})
    assert layout.large == ([0] if is_large else [])
    assert (layout.size - layout.small_size >= LARGE) is is_large


def test_paths_lead_to_arrays():
    """`by_path` numbers the arrays in their order."""
    layout, _ = laid_out({"a": {"x": 1, "y": None}, "b": [np.zeros(2), "t"]})
    assert layout.by_path == {"a/x": 0, "b/0": 1, "b/1": 2}


def test_equal_epochs_share_one_layout():
    """Epochs that differ in numbers only have the same layout object, worked out once."""
    one, _ = laid_out(sample())
    other, _ = laid_out(sample() | {"note": "test"})
    longer, _ = laid_out(sample(5))
    assert one is other
    assert longer is not one


# ---- items as bytes --------------------------------------------------------------------------------------------------


@given(storable.EPOCHS)
def test_items_come_back_from_their_bytes(epoch):
    """A description decodes to equal items."""
    items = flatten(epoch)[0]
    assert decode_items(encode_items(items)) == items


@pytest.mark.parametrize(
    "items",
    [
        pytest.param([Item("a/b", "int", "<i8")], id="no parent"),
        pytest.param([Item("a", "int", "<i8"), Item("a/b", "int", "<i8")], id="an array as parent"),
        pytest.param([Item("a", "none"), Item("a/b", "int", "<i8")], id="nothing as parent"),
        pytest.param([Item("a", "int", "<i8"), Item("a", "int", "<i8")], id="one path twice"),
        pytest.param([Item("", "dict")], id="no name"),
        pytest.param([Item("a", "array", "<i8", (-1,))], id="negative length"),
    ],
)
def test_items_that_contradict_themselves_are_damaged(items):
    """A description that no epoch can have is refused."""
    with pytest.raises(Damaged, match="contradicts itself"):
        decode_items(encode_items(items))


@pytest.mark.parametrize(
    "spec", [b"", b"\xc0", b"\x91\x01", b"not msgpack", b"\x91\x92\xa1a", b"\x91\x92\xa1\xff\xa4dict"]
)
def test_bytes_that_are_no_items_are_damaged(spec):
    """Bytes that decode to something else, or to nothing, are refused."""
    with pytest.raises(Damaged, match="can't be read"):
        layout_of(spec)


@pytest.mark.parametrize(
    "item",
    [
        pytest.param(Item("a", "array", "no dtype"), id="no dtype"),
        pytest.param(Item("a", "array", "O"), id="Python objects"),
        pytest.param(Item("a", "array", "<M8[s]"), id="a dtype that HDF5 hasn't"),
        pytest.param(Item("a", "array", "<f8", (2**63, 2**63)), id="more than a file can hold"),
        pytest.param(Item("a", "array", "<f8", (2**64 - 1,)), id="longer than numbers reach"),
        pytest.param(Item("a", "array", "<f8", (2**62, 0)), id="longer than numbers reach, and empty"),
        pytest.param(Item("a", "array", "V0", (2,)), id="elements of no bytes"),
        pytest.param(Item("a", "array", "<f8", (1,) * 33), id="more axes than HDF5 has"),
        pytest.param(Item("a", "array", "<f8", (1,) * 300), id="more axes than there are"),
        pytest.param(Item("x" * 70000, "none"), id="a long name"),
        pytest.param(Item("a", "k" * 70000, "<f8"), id="a long kind"),
    ],
)
def test_items_that_no_file_can_hold_are_damaged(item):
    """A description that can't be laid out is refused without memory being claimed."""
    with pytest.raises(Damaged):
        layout_of(encode_items([item]))


# ---- frames ----------------------------------------------------------------------------------------------------------


def encoded(epoch, base=4096, stamp=STAMP):
    layout, arrays = laid_out(epoch)
    return layout, bytes(layout.encode_head(base, stamp, arrays, [data_sum(as_bytes(array)) for array in arrays]))


@given(storable.EPOCHS, st.integers(0, 2**40).map(lambda n: n * 8))
def test_a_frame_tells_its_epoch(epoch, base):
    """A frame that is read at its place gives back the stamp, the description and the checksums."""
    layout, head = encoded(epoch, base)
    frame = decode_frame(head, base)
    sums = tuple(data_sum(storable.to_memory(leaf).tobytes()) for leaf in flatten(epoch)[1])
    assert (frame.size, frame.region_size) == (layout.frame_size, layout.size)
    stamp = Stamp(frame.run_id, frame.generation, frame.epoch, frame.first, frame.nsamples, frame.cut)
    assert (stamp, frame.spec, frame.sums) == (STAMP, layout.spec, sums)
    assert read_frame_size(head[:FRAME_HEAD]) == frame.size


def test_a_frame_with_any_bit_wrong_is_none():
    """Each flipped bit of a frame is noticed."""
    layout, head = encoded(sample())
    for bit in range(8 * layout.frame_size):
        bad = bytearray(head)
        bad[bit // 8] ^= 1 << bit % 8
        assert decode_frame(bytes(bad), 4096) is None


def test_a_frame_that_is_cut_short_is_none():
    """A frame that isn't whole is none, wherever it was cut."""
    layout, head = encoded(sample())
    assert decode_frame(head[: layout.frame_size], 4096) is not None
    assert all(decode_frame(head[:n], 4096) is None for n in range(layout.frame_size))


def test_a_frame_at_another_place_is_none():
    """A frame belongs to its offset: a copy of it elsewhere, in the data of another epoch say, is none."""
    _, head = encoded(sample(), base=4096)
    assert decode_frame(head, 8192) is None


@pytest.mark.parametrize(
    ("offset", "form", "value"),
    [
        pytest.param(24, "<Q", 0, id="a region of no length"),
        pytest.param(24, "<Q", 100, id="a region shorter than its frame"),
        pytest.param(56, "<Q", 50, id="more cut than there was"),
    ],
)
def test_a_frame_that_lies_about_itself_is_none(offset, form, value):
    """A frame with a right checksum and numbers that can't be is none: walking from it would not end."""
    layout, head = encoded(sample())
    bad = bytearray(head[: layout.frame_size])
    struct.pack_into(form, bad, offset, value)
    bad[-8:] = struct.pack("<Q", data_sum(bytes(bad[:-8])))
    assert decode_frame(bytes(bad), 4096) is None


@pytest.mark.parametrize("head", [b"", b"POSTepch", bytes(FRAME_HEAD), b"POSTepch" + b"\xff" * (FRAME_HEAD - 8)])
def test_bytes_that_begin_no_frame_have_no_frame_size(head):
    """Other bytes aren't taken for a frame."""
    assert read_frame_size(head) is None


def test_small_arrays_are_in_the_head_and_large_ones_are_not():
    """What is written of an epoch before its large arrays holds each small one at its offset."""
    epoch = {"a": np.arange(5), "b": np.full(LARGE, 7, "u1"), "c": "text"}
    layout, head = encoded(epoch)
    assert len(head) == layout.small_size == layout.offsets[1] == align(len(head), PAGE)
    assert head[layout.offsets[0] :][:40] == np.arange(5).tobytes()
    assert head[layout.offsets[2] :][:4] == b"text"


@pytest.mark.parametrize("order", [(0, 4096), (4096, 0), (4096, 4096)])
def test_what_is_kept_for_later_depends_on_the_base(order):
    """A layout used at several places of a file encodes the same bytes there as a fresh one does."""
    epoch = {"a": {"b": {"c": 1}}, "x": 2.0}
    layout, arrays = laid_out(epoch)
    for base in order:
        fresh = Layout(layout.spec)
        assert layout.encode_head(base, STAMP, arrays, [1, 2]) == fresh.encode_head(base, STAMP, arrays, [1, 2])


# ---- checksums -------------------------------------------------------------------------------------------------------


def test_the_checksum_is_xxh3():
    """XXH3 of nothing, with 64 bits, has the value that its specification gives."""
    assert data_sum(b"") == 0x2D06800538D394C2


@given(storable.arrays())
def test_the_bytes_of_an_array_are_its_memory(array):
    """An array of any dtype is seen as the bytes that it consists of, and nothing is copied."""
    memory = storable.to_memory(array)
    seen = as_bytes(memory)
    assert seen.tobytes() == memory.tobytes()
    assert seen.nbytes == 0 or np.shares_memory(np.frombuffer(seen, "u1"), memory.reshape(-1).view("u1"))
