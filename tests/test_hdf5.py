"""The HDF5 format, as far as we write it ourselves."""

import shutil
import subprocess

import h5py
import numpy as np
import pytest

from posterity._format import hdf5
from posterity._format.lookup3 import checksum, worked_out

# What `driver5` of lookup3.c prints, for an initial value of 0.
VECTORS = [
    (b"", 0xDEADBEEF),
    (b"Four score and seven years ago", 0x17770551),
]


@pytest.mark.parametrize(("data", "expected"), VECTORS)
def test_the_checksum_is_lookup3(data, expected):
    """The checksum gives the values that Bob Jenkins' own test program prints."""
    assert checksum(data) == expected


@pytest.mark.parametrize("length", [*range(40), 1000, 100_000])
def test_both_ways_give_the_same_checksum(length):
    """libhdf5's function and ours agree; where libhdf5's can't be found, ours is taken."""
    data = bytes(i * i % 251 for i in range(length))
    assert checksum(data) == worked_out(data)


@pytest.mark.parametrize("length", range(40))
def test_the_checksum_sees_each_byte(length):
    """Of data of each length, another byte anywhere, or one more at the end, gives another checksum."""
    data = bytes(range(100, 100 + length))
    others = {checksum(data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :]) for i in range(length)}
    others.add(checksum(data + b"\0"))
    assert checksum(data) not in others
    assert len(others) == length + 1


def file_of(links, attributes=b"", before=b""):
    """A file whose root group has these members; `before` lies between superblock and root group."""
    root = hdf5.group(links, attributes)
    at = hdf5.SUPERBLOCK_SIZE + len(before)
    return hdf5.superblock(at, at + len(root)) + before + root


@pytest.mark.parametrize("n", [0, 1, 8, 9, 300])
def test_a_group_of_any_size_is_read(tmp_path, n):
    """h5py lists the members of a group, however many they are, and opens each of them."""
    child = hdf5.group([])
    names = [f"epoch_{i}" for i in range(n)]
    data = file_of([(name, hdf5.SUPERBLOCK_SIZE) for name in names], before=child)
    (tmp_path / "x.h5").write_bytes(data)
    with h5py.File(tmp_path / "x.h5", "r") as file:
        assert set(file) == set(names)
        assert all(isinstance(file[name], h5py.Group) and len(file[name]) == 0 for name in names)


@pytest.mark.parametrize("n", [0, 1, 9, 300])
def test_a_groups_size_is_known_before(n):
    """The size that is reckoned with is the size that it has."""
    names = [f"näme_{i}" for i in range(n)]
    attributes = hdf5.number_attribute("a", 1) + hdf5.text_attribute("b", "c")
    header = hdf5.group([(name, 2**40 + i) for i, name in enumerate(names)], attributes)
    assert hdf5.group_size(names, len(attributes)) == len(header)


@pytest.mark.parametrize("n", [0, 1, 9, 300])
def test_h5dump_reads_it_too(tmp_path, n):
    """The HDF Group's own tool lists the same members."""
    h5dump = shutil.which("h5dump")
    if h5dump is None:
        pytest.skip("h5dump isn't installed")
    data = file_of([(f"epoch_{i}", hdf5.SUPERBLOCK_SIZE) for i in range(n)], before=hdf5.group([]))
    (tmp_path / "x.h5").write_bytes(data)
    done = subprocess.run([h5dump, "-n", str(tmp_path / "x.h5")], capture_output=True, text=True, check=True)
    assert {word for word in done.stdout.split() if word.startswith("/epoch")} == {f"/epoch_{i}" for i in range(n)}


@pytest.mark.parametrize("text", ["", "a", "ab cd", "äöü€", "x" * 5000])
def test_text_in_an_attribute_is_read(tmp_path, text):
    """h5py gives the text of an attribute as it was."""
    (tmp_path / "x.h5").write_bytes(file_of([], hdf5.text_attribute("näme", text)))
    with h5py.File(tmp_path / "x.h5", "r") as file:
        value = file.attrs["näme"]
        assert h5py.check_string_dtype(file.attrs.get_id("näme").dtype).encoding == "utf-8"
        assert (value.decode() if isinstance(value, bytes) else value) == text


@pytest.mark.parametrize("number", [0, 1, 2**32, 2**64 - 1])
def test_a_number_in_an_attribute_is_read(tmp_path, number):
    """h5py gives the number of an attribute, up to 64 bits; it is the last 8 bytes of the message."""
    message = hdf5.number_attribute("generation", number)
    (tmp_path / "x.h5").write_bytes(file_of([], message))
    with h5py.File(tmp_path / "x.h5", "r") as file:
        assert file.attrs["generation"] == number
    assert int.from_bytes(message[-8:], "little") == number


DTYPES = [
    "<f8",
    ">f4",
    "<f2",
    np.longdouble,
    "?",
    "i1",
    ">u8",
    "<c16",
    ">c8",
    "S7",
    "V5",
    [("a", "<i4"), ("b", "?", (2,))],
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3, 4), (0,), (2, 0, 3)])
def test_a_dataset_is_read(tmp_path, dtype, shape):
    """h5py finds shape, dtype, numbers, checksum and attributes of a contiguous dataset."""
    array = np.random.default_rng(1).integers(0, 2, (*shape, np.dtype(dtype).itemsize), np.uint8)
    array = array.reshape(-1).view(dtype).reshape(shape)
    header = hdf5.DatasetHeader(array.dtype, shape, hdf5.text_attribute("kind", "odd"), "our_sum")
    assert header.nbytes == array.nbytes
    at = hdf5.SUPERBLOCK_SIZE
    filled = header.fill(at + header.size, 2**63 + 5)
    assert len(filled) == header.size
    (tmp_path / "x.h5").write_bytes(file_of([("x", at)], before=filled + array.tobytes()))
    with h5py.File(tmp_path / "x.h5", "r") as file:
        node = file["x"]
        assert (node.shape, node.dtype) == (shape, array.dtype)
        assert node[...].tobytes() == array.tobytes()
        assert node.attrs["our_sum"] == 2**63 + 5
        assert node.attrs["kind"] == b"odd"
        assert node.chunks is None
        if array.size:
            assert node.id.get_offset() == at + header.size


@pytest.mark.parametrize("address", [8, 2**31, 2**40])
@pytest.mark.parametrize("extra", range(12))
def test_a_header_is_filled_in_many_times(address, extra):
    """The checksum of a header, kept for its constant part, is that of the whole header, whatever its length."""
    header = hdf5.DatasetHeader(np.dtype("f8"), (3,), hdf5.text_attribute("k" * (extra + 1), "v"), "s")
    for data_sum in (0, 7, 2**64 - 1):
        filled = header.fill(address, data_sum)
        assert int.from_bytes(filled[-4:], "little") == checksum(filled[:-4])


@pytest.mark.parametrize("damage", [60, 80, -1])
def test_a_flipped_bit_in_a_header_is_noticed(tmp_path, damage):
    """libhdf5 refuses a header whose checksum isn't right: it really looks at ours."""
    data = bytearray(file_of([("a", hdf5.SUPERBLOCK_SIZE)], before=hdf5.group([])))
    data[damage] ^= 1
    (tmp_path / "x.h5").write_bytes(data)
    with pytest.raises((OSError, RuntimeError, KeyError)), h5py.File(tmp_path / "x.h5", "r") as file:
        assert file["a"]


def test_text_and_bytes_have_types_of_their_own():
    """Equal dtypes that mean text and bytes are told apart, whichever came first."""
    plain, text = hdf5.type_message(np.dtype("S5")), hdf5.type_message(hdf5.utf8_dtype(5))
    assert plain != text
    assert hdf5.type_message(np.dtype("S5")) == plain
