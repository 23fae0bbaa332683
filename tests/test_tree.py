"""Taking a dict apart and putting it together again."""

import collections
import enum
from typing import NamedTuple

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import storable
from posterity._format.dtypes import dtype_from_text, dtype_to_text
from posterity._format.flatten import MAX_DEPTH, Item, flatten, restore
from posterity.errors import Damaged, NotStorable


def round_trip(epoch):
    items, leaves = flatten(epoch)
    return restore(items, [storable.to_memory(leaf).copy() for leaf in leaves])


def nested(depth):
    value = {}
    for _ in range(depth):
        value = {"in": value}
    return value


class Colour(enum.IntEnum):
    RED = 3


class Text(str):
    __slots__ = ()


class Point(NamedTuple):
    x: int
    y: int


OVERLAPPING = np.dtype({"names": ["a", "b"], "formats": ["i4", "i4"], "offsets": [0, 2]})
PADDED = np.dtype({"names": ["a", "b"], "formats": ["i1", "f8"], "offsets": [3, 8], "itemsize": 24})
NESTED = np.dtype([("at", "<i4", (2, 3)), ("in", [("flag", "?"), ("deep", PADDED)], (2,))])
TITLED = np.dtype([(("what it is", "a"), "f8"), ("b", "i4")])


# ---- round trips -----------------------------------------------------------------------------------------------------


@given(storable.EPOCHS)
@settings(max_examples=400)
def test_an_epoch_comes_back_as_it_went_in(epoch):
    """Whatever a dict may hold is equal in value, type and order after it was taken apart and put together."""
    storable.assert_same(round_trip(epoch), epoch)


@given(storable.EPOCHS, storable.EPOCHS)
@settings(max_examples=100)
def test_the_file_gives_back_what_was_written(tmp_path_factory, one, other):
    """Two epochs written to one real file come back from it, by our reader, as they went in."""
    disk = storable.folder(tmp_path_factory)
    storable.write_file(disk, "x.h5", {3: one, 12: other})
    got = storable.read_file(disk, "x.h5")
    disk.leave()
    storable.assert_same(got, {3: one, 12: other})


@given(storable.EPOCHS)
@settings(max_examples=100)
def test_h5py_reads_the_same_values(tmp_path_factory, epoch):
    """Plain h5py finds each item at its path, with the dtype and the values that the array had."""
    disk = storable.folder(tmp_path_factory)
    storable.write_file(disk, "x.h5", {0: epoch})
    disk.leave()
    items, leaves = flatten(epoch)
    with h5py.File(disk.folder / "x.h5", "r") as file:
        found = []
        file["epoch_0"].visit(found.append)
        assert set(found) == {item.path for item in items}
        arrays = [item for item in items if item.is_array]
        assert {item.path for item in items} - {item.path for item in arrays} == {
            path for path in found if isinstance(file["epoch_0"][path], h5py.Group)
        }
        for item, leaf in zip(arrays, leaves, strict=True):
            node = file["epoch_0"][item.path]
            assert node.shape == leaf.shape
            assert node.dtype == leaf.dtype
            got, expected = node[...], storable.to_memory(leaf)
            if item.kind.endswith(":raw"):
                got, expected = got.view(dtype_from_text(item.was)), expected.view(dtype_from_text(item.was))
            storable.assert_same(got, expected, item.path)


@given(storable.EPOCHS)
@settings(max_examples=60)
def test_h5py_can_add_to_a_file(tmp_path_factory, epoch):
    """The metadata are whole: h5py opens the file to write, adds to every group, and what was there stays."""
    disk = storable.folder(tmp_path_factory)
    storable.write_file(disk, "x.h5", {0: epoch})
    added = np.arange(5)
    with h5py.File(disk.folder / "x.h5", "r+") as file:
        groups = [file]
        file.visititems(lambda _, node: groups.append(node) if isinstance(node, h5py.Group) else None)
        for group in groups:
            group["an item that was added"] = added
            group.attrs["and this"] = "too"
    with h5py.File(disk.folder / "x.h5", "r") as file:
        names = []
        file.visit(names.append)
        assert sum(name.endswith("an item that was added") for name in names) == len(groups)
        np.testing.assert_array_equal(file["an item that was added"], added)
    storable.assert_same(storable.read_file(disk, "x.h5"), {0: epoch})
    disk.leave()


@pytest.mark.parametrize(
    "value",
    [
        pytest.param({}, id="empty dict"),
        pytest.param([], id="empty list"),
        pytest.param((), id="empty tuple"),
        pytest.param([[], {}, (), None], id="empty boxes in a list"),
        pytest.param({"b": 1, "a": {"z": {}, "c": None}}, id="nested dicts, in the order given"),
        pytest.param(list(range(25)), id="more than ten numbers"),
        pytest.param([{"i": i} for i in range(25)], id="more than ten dicts"),
        pytest.param([None] * 101, id="more than a hundred"),
        pytest.param(["b", "", "ä€", "a\0b"], id="texts"),
        pytest.param(["a\0", "b"], id="texts, one with a NUL at its end"),
        pytest.param([1, 2**63], id="ints, one beyond 64 bits with a sign"),
        pytest.param([1, 2.0], id="an int and a float"),
        pytest.param([True, 1], id="a bool and an int"),
        pytest.param([[1, 2], [3]], id="ragged"),
        pytest.param((1, 2), id="tuple of numbers"),
        pytest.param(("a", "b"), id="tuple of texts"),
        pytest.param(([1], (2,)), id="tuple of boxes"),
        pytest.param([True, False], id="bools"),
        pytest.param([1j, float("nan")], id="complex and NaN"),
        pytest.param([np.float64(1), np.float64(2)], id="list of NumPy numbers"),
        pytest.param([b"", b"a\0"], id="list of bytes"),
        pytest.param(-(2**200), id="a huge negative int"),
        pytest.param(2**64 - 1, id="the largest of 64 bits"),
        pytest.param(-0.0, id="minus zero"),
        pytest.param("", id="empty text"),
        pytest.param("a\0\0", id="text with NULs at its end"),
        pytest.param("日本語", id="text beyond ASCII"),
        pytest.param(b"", id="empty bytes"),
        pytest.param(b"\0\xff\0", id="bytes with NULs"),
        pytest.param(np.float32(1.5), id="a NumPy number"),
        pytest.param(np.bool_(True), id="a NumPy bool"),
        pytest.param(np.str_("ä"), id="a NumPy text"),
        pytest.param(np.str_(""), id="an empty NumPy text"),
        pytest.param(np.bytes_(b"ab"), id="NumPy bytes"),
        pytest.param(np.datetime64("2026-01-02T03:04:05", "s"), id="a date"),
        pytest.param(np.array(3.0), id="0-d"),
        pytest.param(np.zeros((3, 0, 2)), id="zero-size"),
        pytest.param(np.zeros((0, 2), "M8[s]"), id="zero-size dates"),
        pytest.param(np.array([], "U3"), id="zero-size text"),
        pytest.param(np.array(["a", "bb", "ä€"]), id="array of text"),
        pytest.param(np.array(["a"], "U9"), id="array of text with room"),
        pytest.param(np.array(["a", "bb"], ">U4"), id="big-endian text"),
        pytest.param(np.array("abc"), id="0-d text"),
        pytest.param(np.array([b"a", b"b\0c"], "S5"), id="array of bytes"),
        pytest.param(np.arange(4, dtype=">i2"), id="big-endian"),
        pytest.param(np.arange(3, dtype=np.longdouble) / 3, id="longdouble"),
        pytest.param(np.arange(3, dtype=np.clongdouble) * 1j / 3, id="complex longdouble"),
        pytest.param(np.arange(3, dtype=np.float16), id="float16"),
        pytest.param(np.array([True, False]), id="array of bools"),
        pytest.param(np.zeros(2, PADDED), id="padded"),
        pytest.param(np.zeros((2, 2), NESTED), id="nested structured"),
        pytest.param(np.zeros(3, TITLED), id="fields with titles"),
        pytest.param(np.zeros(3, [("name", "S50"), ("incycle", "i8"), ("weight", "f8")])[0], id="one record"),
        pytest.param(np.zeros(2, [("when", "M8[s]"), ("what", "U5")]), id="structured, with types that HDF5 hasn't"),
        pytest.param(np.zeros(2, "V7"), id="plain bytes"),
        pytest.param(
            np.zeros(2, [("a", h5py.string_dtype("utf-8", 3))]), id="structured, with what h5py adds to a dtype"
        ),
        pytest.param(np.zeros(2, h5py.enum_dtype({"no": 0, "yes": 1})), id="an enumeration of h5py's"),
        pytest.param(np.arange(24.0).reshape(2, 3, 4)[::-1, ::2, 1:], id="a view"),
        pytest.param(np.asfortranarray(np.arange(6.0).reshape(2, 3)), id="Fortran order"),
        pytest.param(np.broadcast_to(np.float64(2), (3, 2)), id="broadcast"),
        pytest.param(np.zeros((1,) * 32), id="as many axes as HDF5 has"),
        pytest.param(np.zeros(2, [(f"f{i}", "?") for i in range(400)]), id="many fields"),
        pytest.param(np.zeros(2, [(f"f{i}", "?") for i in range(1500)]), id="more fields than a header holds"),
    ],
)
def test_a_value_comes_back(disk, value):
    """A value of each kind comes back from a real file as it went in."""
    storable.write_file(disk, "x.h5", {0: {"value": value, "after": 1}})
    storable.assert_same(storable.read_file(disk, "x.h5"), {0: {"value": value, "after": 1}})


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (collections.OrderedDict(a=1), {"a": 1}),
        (collections.defaultdict(list, a=1), {"a": 1}),
        (Colour.RED, 3),
        (Text("a"), "a"),
        (np.ma.array([1.0]).data, np.array([1.0])),
        (np.rec.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]).view(np.ndarray)["a"], np.array([1], "i4")),
    ],
)
def test_a_kind_of_a_plain_type_comes_back_as_the_plain_type(value, plain):
    """Subclasses of dict, int and str are stored as what they are kinds of."""
    storable.assert_same(round_trip({"x": value}), {"x": plain})


def test_nothing_is_copied_that_can_stay():
    """Taking apart gives the caller's own arrays."""
    array = np.zeros(3)
    assert flatten({"a": {"b": array}})[1][0] is array


def test_the_items_are_in_order_with_their_paths():
    """Each item says its path, kind, dtype and shape; a group comes before what is in it."""
    items, leaves = flatten(
        {"s": {"p": np.zeros((2, 1, 3))}, "l": [1, "a"], "n": None, "t": "äö", "u": np.array(["a"])}
    )
    assert items == [
        Item("s", "dict"),
        Item("s/p", "array", "<f8", (2, 1, 3)),
        Item("l", "list"),
        Item("l/0", "int", "<i8", ()),
        Item("l/1", "str", "|S1", ()),
        Item("n", "none"),
        Item("t", "str", "|S4", ()),
        Item("u", "array:text", "|S1", (1,), "<U1"),
    ]
    assert len(leaves) == 5


def test_text_order_of_a_lists_members_is_their_own():
    """The names of a list's members are padded, so that who sorts them as text has them in order."""
    names = [item.path for item in flatten({"l": [None] * 120})[0][1:]]
    assert names == sorted(names)
    assert names[11] == "l/011"


# ---- what is refused -------------------------------------------------------------------------------------------------


class NotAnArray:
    pass


@pytest.mark.parametrize(
    ("value", "says"),
    [
        pytest.param(NotAnArray(), "NotAnArray", id="any object"),
        pytest.param({1, 2}, "set", id="set"),
        pytest.param(range(3), "range", id="range"),
        pytest.param(bytearray(b"a"), "bytearray", id="bytearray"),
        pytest.param(Point(1, 2), "Point", id="namedtuple"),
        pytest.param(np.array([{}, None]), "Python objects", id="array of objects"),
        pytest.param(np.zeros(2, [("a", "O")]), "Python objects", id="structured with objects"),
        pytest.param(np.ma.array([1.0], mask=[True]), "mask", id="masked array"),
        pytest.param(np.zeros(2, OVERLAPPING), "can't name the dtype", id="overlapping fields"),
        pytest.param(np.zeros(2, np.dtype([])), "no bytes", id="no fields"),
        pytest.param(np.zeros(2, "V0"), "no bytes", id="void of no bytes"),
        pytest.param("a\ud800", "UTF-8", id="half a surrogate"),
        pytest.param(["ok", "a\ud800"], "UTF-8", id="half a surrogate in a list"),
        pytest.param(np.array(["a\ud800"]), "UTF-8", id="half a surrogate in an array"),
        pytest.param(np.zeros((1,) * 33), "32", id="more axes than HDF5 has"),
        pytest.param(np.zeros((1,) * 32, "M8[s]"), "32", id="more axes than HDF5 has, as bytes"),
        pytest.param(np.zeros(1, [(f"f{i}", "i1") for i in range(5000)]), "fields", id="too many fields"),
        pytest.param(nested(MAX_DEPTH + 1), "nested deeper", id="too deep"),
    ],
)
def test_what_cannot_be_stored_is_refused_by_its_path(value, says):
    """An item that can't be stored raises `NotStorable`, a `TypeError`, which says where it is and what is wrong."""
    with pytest.raises(NotStorable, match="deep/1/bad") as caught:
        flatten({"deep": [0, {"bad": value}]})
    assert says in str(caught.value)
    assert isinstance(caught.value, TypeError)


@pytest.mark.skipif(not hasattr(np.dtypes, "StringDType"), reason="NumPy 2 has strings of variable length")
def test_strings_of_variable_length_are_refused():
    """NumPy's variable-length strings have no bytes of their own, and are refused by path."""
    with pytest.raises(NotStorable, match=r"^x: .*text"):
        flatten({"x": np.array(["a"], np.dtypes.StringDType())})


def test_a_dict_that_holds_itself_is_refused():
    """A circle ends in an error and not in a full stack."""
    circle = {}
    circle["again"] = circle
    with pytest.raises(NotStorable, match="holds itself"):
        flatten(circle)


@pytest.mark.parametrize("name", [1, None, "", ".", "a/b", "a\0", "\ud800", "x" * 1001])
def test_a_name_that_hdf5_cannot_have_is_refused(name):
    """A name is text without '/' and NUL, of 1 to 1000 characters."""
    with pytest.raises(NotStorable, match="at/"):
        flatten({"at": {name: 1}})


@pytest.mark.parametrize("name", ["..", "a.b", "x" * 1000, "\N{GREEK SMALL LETTER OMEGA}" * 1000, "  ", "\n", "-1"])
def test_an_odd_name_comes_back(disk, name):
    """A name that is merely odd is kept."""
    storable.write_file(disk, "x.h5", {0: {name: {name: 1}}})
    storable.assert_same(storable.read_file(disk, "x.h5"), {0: {name: {name: 1}}})
    with h5py.File(disk.folder / "x.h5") as file:
        assert file["epoch_0"][name][name][()] == 1


# ---- arrays of a device ----------------------------------------------------------------------------------------------


class DeviceArray:
    """An array as JAX's are to us: a shape and a dtype, and numbers only when they are asked for."""

    def __init__(self, array):
        self.array = array
        self.shape = array.shape
        self.dtype = array.dtype
        self.nbytes = array.nbytes
        self.fetched = 0

    def __array__(self, dtype=None, copy=None):
        self.fetched += 1
        return self.array


def test_an_array_of_a_device_stays_there():
    """Taking apart looks at its shape and dtype, and doesn't fetch it."""
    leaf = DeviceArray(np.zeros((2, 3), np.float32))
    items, leaves = flatten({"x": leaf})
    assert items == [Item("x", "array", "<f4", (2, 3))]
    assert leaves == [leaf]
    assert leaf.fetched == 0


@pytest.mark.parametrize(
    ("dtype", "says"),
    [("key<fry>", "key_data"), ("torch.float32", r"numpy\(force=True\)"), (np.dtype("V2"), "convert it")],
)
def test_an_array_of_a_device_without_plain_numbers_is_refused(dtype, says):
    """Random keys and types that NumPy can't name are refused by path, with a way out."""
    leaf = DeviceArray(np.zeros(2))
    leaf.dtype = dtype
    with pytest.raises(NotStorable, match=rf"^a/x: .*{says}"):
        flatten({"a": {"x": leaf}})


# ---- dtypes as text --------------------------------------------------------------------------------------------------


@given(storable.DTYPES)
@settings(max_examples=300)
def test_a_dtype_comes_back_from_its_text(dtype):
    """The text of a dtype gives an equal one."""
    assert dtype_from_text(dtype_to_text(dtype)) == dtype


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no dtype",
        "O",
        "[('a', 'O')]",
        "[('a', '<f8', __import__('os').system('x'))]",
        "[" * 1000,
        "(" * 100_000,
        "[('a', '<f8'",
        "['a']",
        "[()]",
        "()",
        "[('a',)]",
        "[('a', 1)]",
        "[('a', '<f8', -1)]",
        "[('a', '<f8', 10**30)]",
        "('<f8', (1, 'a'))",
        "<f8,O",
        "{'names': ['a']}",
        "V-1",
    ],
)
def test_text_that_is_no_dtype_of_plain_bytes_is_refused(text):
    """Hostile text raises ValueError, runs nothing, and never gives a dtype that holds Python objects."""
    try:
        dtype = dtype_from_text(text)
    except ValueError:
        return
    pytest.fail(f"{text!r} gave {dtype!r}")


@given(st.text("[](){}'\"<>=|,.*: 0123456789OVSUMmfiuc\n", max_size=30))
@settings(max_examples=300)
def test_any_text_is_a_dtype_or_a_value_error(text):
    """Whatever the text, what comes out is a dtype without Python objects, or a ValueError."""
    try:
        dtype = dtype_from_text(text)
    except ValueError:
        return
    assert not dtype.hasobject


# ---- putting together what nobody wrote ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "array", "was"),
    [
        ("str", np.array(b"\xff"), ""),
        ("bigint", np.array(b"nothing"), ""),
        ("list:str", np.array([b"\xff"]), ""),
        ("list:str", np.array([1]), ""),
        ("float", np.zeros(3), ""),
        ("array:text", np.array([b"\xff"]), "<U1"),
        ("array:text", np.array([b"a"]), "<U1000000000"),
        ("array:text", np.array([b"a"]), "O"),
        ("array:text", np.array([b"a"]), "<f8"),
        ("array:text", np.array([1]), "<U1"),
        ("array:raw", np.zeros((2, 8), np.uint8), "<M8[no]"),
        ("array:raw", np.zeros((2, 8), np.uint8), "O"),
        ("array:raw", np.zeros((2, 7), np.uint8), "<M8[s]"),
        ("array:raw", np.zeros((2, 8), np.uint8), ""),
    ],
)
def test_an_item_that_contradicts_its_array_is_damaged(kind, array, was):
    """What a hostile file says of an array raises `Damaged`, with the path, before memory is claimed for it."""
    with pytest.raises(Damaged, match="'in/x'"):
        restore([Item("in", "dict"), Item("in/x", kind, array.dtype.str, array.shape, was)], [array])


def test_a_long_text_among_many_short_ones_takes_no_room_for_each():
    """A list of texts isn't padded to the longest one where that is much more than the texts are."""
    texts = ["x" * 100_000, *["a"] * 1000]
    assert sum(leaf.nbytes for leaf in flatten({"x": texts})[1]) < 2 * sum(map(len, texts))
    storable.assert_same(round_trip({"x": texts}), {"x": texts})
