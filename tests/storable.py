"""All that an epoch may hold, for hypothesis to choose from, and what it means that it came back as it went in."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from posterity._format.file_header import FileHead
from posterity._format.file_reader import Reader
from posterity._format.file_writer import EpochFile
from posterity._format.flatten import flatten, restore
from posterity._format.frame import Stamp
from posterity._format.layout import layout_of
from posterity._format.schema import encode_items
from posterity._system.disk import Disk

HEAD = FileHead(b"0123456789abcdef", 3, 7, 2)


def to_memory(leaf):
    """An array as it will lie on disk."""
    return np.ascontiguousarray(leaf).reshape(leaf.shape)


def write_file(disk, name, epochs, head=HEAD):
    """Write epochs, given by index, to a file of ours."""
    file = EpochFile.create(disk, name, head)
    try:
        first = 0
        for index, epoch in epochs.items():
            items, leaves = flatten(epoch)
            stamp = Stamp(head.run_id, head.generation, index, first, 10, 0)
            file.append(stamp, layout_of(encode_items(items)), [to_memory(leaf) for leaf in leaves])
            first += 10
        file.seal()
        file.sync()
    finally:
        file.close()


def read_file(disk, name):
    """The epochs of a file of ours, read at their offsets, with every checksum looked at."""
    epochs = {}
    with Reader.open(disk, name) as reader:
        for base, frame in reader.walk():
            region = reader.region(base, frame)
            arrays = [reader.read_array(region, i, verify=True) for i in range(len(region.layout.leaves))]
            epochs[frame.epoch] = restore(region.layout.items, arrays)
    return epochs


# ---- equality --------------------------------------------------------------------------------------------------------


def assert_same(got, expected, path=""):
    """Equal in type, order and value, all the way down; a number must have the very bits that it had."""
    assert type(got) is type(expected), f"{path}: {type(got)} came back for {type(expected)}"
    if isinstance(expected, dict):
        assert list(got) == list(expected), path
        for name, value in expected.items():
            assert_same(got[name], value, f"{path}/{name}")
    elif isinstance(expected, (list, tuple)):
        assert len(got) == len(expected), path
        for i, (one, other) in enumerate(zip(got, expected, strict=True)):
            assert_same(one, other, f"{path}/{i}")
    elif isinstance(expected, (np.ndarray, np.generic)):
        assert got.dtype == expected.dtype, path
        assert got.shape == expected.shape, path
        _assert_same_numbers(np.asarray(got), np.asarray(expected), path)
    else:
        assert repr(got) == repr(expected), path


def _assert_same_numbers(got, expected, path):
    if expected.dtype.names is not None:
        for name in expected.dtype.names:
            _assert_same_numbers(got[name], expected[name], f"{path}.{name}")
    elif expected.dtype.kind in "fc" and expected.dtype.itemsize > 8 * (1 + (expected.dtype.kind == "c")):
        np.testing.assert_array_equal(got, expected, err_msg=path)  # 10 of its 16 bytes are the number
    else:
        assert got.tobytes() == expected.tobytes(), path


# ---- what there is ---------------------------------------------------------------------------------------------------

_ORDERS = st.sampled_from("<>")
_CODES = ["b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16", "f16", "c32"]
_NUMBERS = st.builds(lambda order, code: np.dtype(order + code), _ORDERS, st.sampled_from(_CODES))
_DATES = st.builds(lambda order, code: np.dtype(order + code), _ORDERS, st.sampled_from(["M8[ns]", "M8[D]", "m8[25s]"]))
_BYTES = st.integers(1, 20).flatmap(lambda n: st.sampled_from([np.dtype(f"S{n}"), np.dtype(f"V{n}")]))
_TEXTS = st.builds(lambda order, n: np.dtype(f"{order}U{n}"), _ORDERS, st.integers(1, 8))
_FIELD_NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=5)


def _structured(parts):
    """A dtype with fields: packed, aligned as in C, or with room at its end."""
    fields = st.lists(st.tuples(_FIELD_NAMES, parts), min_size=1, max_size=4, unique_by=lambda field: field[0])
    return st.builds(_build_structured, fields, st.booleans(), st.integers(0, 9))


def _build_structured(fields, align, room):
    dtype = np.dtype(fields, align=align)
    names = dtype.names
    return np.dtype(
        {
            "names": names,
            "formats": [dtype.fields[name][0] for name in names],
            "offsets": [dtype.fields[name][1] for name in names],
            "itemsize": dtype.itemsize + room,
        }
    )


_SCALARS = _NUMBERS | _DATES | _BYTES | _TEXTS
DTYPES = st.recursive(
    _SCALARS,
    lambda parts: _structured(parts | st.builds(lambda part, n: np.dtype((part, (n, 2))), parts, st.integers(1, 3))),
    max_leaves=3,
)
_SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
_MOST_BYTES = 1000


def fill(dtype, shape, rng):
    """An array of random bits that mean something."""
    if dtype.names is not None:
        array = np.zeros(shape, dtype)
        for name in dtype.names:
            part = dtype.fields[name][0]
            array[name] = fill(part.base, (*shape, *part.shape), rng)
        return array
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    if dtype.kind == "U":
        letters = rng.choice(np.array(list("abz äß€𝄞\n")), (*shape, max(1, dtype.itemsize // 4)))
        return np.array(["".join(row) for row in letters.reshape(-1, letters.shape[-1])], dtype).reshape(shape)
    if dtype.kind in "fc" and dtype.itemsize > 8 * (1 + (dtype.kind == "c")):
        return rng.normal(size=shape).astype(dtype)
    raw = rng.integers(0, 256, (*shape, dtype.itemsize), np.uint8)
    return raw.reshape(-1).view(dtype).reshape(shape)


@st.composite
def arrays(draw, dtypes=DTYPES, shapes=_SHAPES):
    """Arrays of any dtype and shape; also views that aren't contiguous, of every kind."""
    dtype, shape = draw(dtypes), draw(shapes)
    while shape and dtype.itemsize * np.prod(shape) > _MOST_BYTES:
        shape = shape[1:]
    array = fill(dtype, shape, np.random.default_rng(draw(st.integers(0, 2**32))))
    view = draw(st.sampled_from(["plain", "plain", "reversed", "transposed", "strided", "repeated"]))
    if view == "transposed" or not shape:
        return array.T
    if view == "reversed":
        return array[::-1]
    if view == "strided":
        return np.repeat(array, 2, axis=-1)[..., ::2]
    if view == "repeated":
        return np.broadcast_to(array, (2, *shape))
    return array


_INTS = st.integers() | st.integers(-(2**70), 2**70) | st.sampled_from([2**63 - 1, 2**63, -(2**63), 2**64 - 1, 2**64])
_FLOATS = st.floats()
_COMPLEX = st.complex_numbers()
_TEXT = st.text(max_size=12) | st.sampled_from(["", "\0", "a\0", "\0a", "Ωμέγα", "𝄞", "0x12", "x" * 300])
PLAIN = st.none() | st.booleans() | _INTS | _FLOATS | _COMPLEX | _TEXT | st.binary(max_size=12)
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=8).filter(
    lambda name: name != "."
)
_LISTED = (
    st.lists(_INTS)
    | st.lists(_FLOATS)
    | st.lists(_TEXT)
    | st.lists(st.booleans())
    | st.lists(_COMPLEX)
    | st.lists(PLAIN)
)
_LEAVES = PLAIN | _LISTED | arrays() | arrays(_SCALARS, st.just(())).map(lambda array: array[()])


def _boxes(values):
    lists = st.lists(values, max_size=3) | st.lists(PLAIN, min_size=9, max_size=12)
    return st.dictionaries(NAMES, values, max_size=3) | lists | lists.map(tuple)


VALUES = st.recursive(_LEAVES, _boxes, max_leaves=5)
EPOCHS = st.dictionaries(NAMES, VALUES, max_size=3)


def folder(tmp_path_factory):
    """A new folder for one example, entered."""
    disk = Disk(tmp_path_factory.mktemp("example"))
    disk.enter()
    return disk
