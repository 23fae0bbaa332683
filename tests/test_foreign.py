"""Epochs from files that others wrote, or that a tool has changed."""

import resource
import struct

import h5py
import numpy as np
import pytest
from hypothesis import given, settings

import storable
from posterity._format.flatten import MAX_DEPTH
from posterity._format.foreign_hdf5 import choose_epoch, read_foreign_epoch
from posterity.errors import Damaged

TEXT = h5py.string_dtype("utf-8")


def write_like_jexplore(group, epoch):
    """As jexplore does it: contiguous datasets, text of variable length, lists as groups "0", "1", ..."""
    for name, value in epoch.items():
        if isinstance(value, dict):
            write_like_jexplore(group.create_group(name), value)
        elif isinstance(value, list):
            write_like_jexplore(group.create_group(name), {str(i): member for i, member in enumerate(value)})
        elif isinstance(value, str):
            group.create_dataset(name, data=value, dtype=TEXT)
        else:
            group.create_dataset(name, data=value)


def jexplore_epoch(n=3):
    rng = np.random.default_rng(n)
    cycle = np.array([(b"stretch", 3, 0.5), (b"walk", 1, 0.25)], [("name", "S50"), ("incycle", "i8"), ("weight", "f8")])
    return {
        "covs": rng.normal(size=(4, 2, 2)),
        "samples": {"p": rng.normal(size=(4, 2, n)), "ll": rng.normal(size=(4, 1, n))},
        "cycle": cycle,
        "sampling": {"temperature": np.array(1.5), "n": np.array(7), "class": "jexplore.MH"},
        "class": "jexplore.epochs.Epoch",
        "stats": {"steps": np.arange(4), "stats": [{"i": np.array(i)} for i in range(12)]},
        "note": "größer als π",
    }


def assert_read(got, expected):
    """As it was, but for the order of a dict's items: HDF5 gives them in the order of their names."""
    if isinstance(expected, dict):
        assert set(got) == set(expected)
        for name, value in expected.items():
            assert_read(got[name], value)
    elif isinstance(expected, (list, tuple)):
        assert type(got) is type(expected)
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            assert_read(one, other)
    else:
        storable.assert_same(got, expected)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.h5"


@pytest.fixture
def file(path):
    """A file to be filled by hand, with an epoch 0 in it."""
    with h5py.File(path, "w") as file:
        file.create_group("epoch_0")
        yield file


def refused(file, match):
    """The file as it is now can't be read, and the message names it."""
    path = file.filename
    file.close()
    with pytest.raises(Damaged, match=match) as caught:
        read_foreign_epoch(path, 0)
    assert path in str(caught.value)


# ---- which epoch -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("iepoch", "expected"), [(9, 9), (11, 11), (2, 2), (-1, 11), (-2, 10), (-3, 9), (-4, 2)])
def test_an_epoch_is_chosen_by_its_index(iepoch, expected):
    """Negative numbers count from the last by index, whatever the order that the file gives."""
    assert choose_epoch([10, 9, 2, 11], iepoch, "x") == expected


@pytest.mark.parametrize(
    ("indices", "iepoch", "says"),
    [
        ([3, 1], 2, "x has no epoch 2; it has 1, 3"),
        ([3, 1], -3, "x has no epoch -3; it has 1, 3"),
        ([], -1, "x has no epoch -1; it has none"),
        (range(30), 99, r"it has 0, 1, .*, 19, \.\.\.$"),
    ],
)
def test_an_epoch_that_is_not_there_is_an_index_error(indices, iepoch, says):
    """The message names the epochs that there are, some of them if they are many."""
    with pytest.raises(IndexError, match=says):
        choose_epoch(list(indices), iepoch, "x")


def test_the_last_epoch_is_the_last_by_index(path):
    """Of epochs 9 and 11, the last is 11, though its name comes first; other items aren't epochs."""
    with h5py.File(path, "w") as file:
        for index in (9, 11):
            write_like_jexplore(file.create_group(f"epoch_{index}"), {"i": np.array(index)})
        for name in ("epoch_x", "epoch_", "epochs_99", "epoch_-3", "epoch_٣"):
            file.create_group(name)
    assert read_foreign_epoch(path, -1)["i"] == 11
    assert read_foreign_epoch(path, -2)["i"] == 9
    with pytest.raises(IndexError, match=r"it has 9, 11$"):
        read_foreign_epoch(path, -3)


# ---- what jexplore writes --------------------------------------------------------------------------------------------


def test_an_epoch_of_jexplores_is_read(path):
    """Arrays, 0-d arrays, structured arrays, text, nested dicts and lists come back with equal values."""
    epoch = jexplore_epoch()
    with h5py.File(path, "w") as file:
        write_like_jexplore(file.create_group("epoch_0"), epoch)
    assert_read(read_foreign_epoch(path, 0), epoch)
    assert_read(read_foreign_epoch(str(path), -1), epoch)


@pytest.mark.parametrize("n", [1, 2, 10, 11, 101])
def test_a_long_list_comes_back_in_order(path, n):
    """Members of a list come back by number, and not in the order of their names as text."""
    with h5py.File(path, "w") as file:
        write_like_jexplore(file.create_group("epoch_0"), {"list": [np.array(i) for i in range(n)]})
    assert [int(member) for member in read_foreign_epoch(path, 0)["list"]] == list(range(n))


@pytest.mark.parametrize("texts", [["a", "Ωβ", ""], [], [["a", "b"], ["c", "dd"]]])
def test_an_array_of_text_is_read(file, path, texts):
    """Text of variable length in an array becomes an array of text."""
    file["epoch_0"].create_dataset("texts", data=np.array(texts, object), dtype=TEXT)
    file.close()
    got = read_foreign_epoch(path, 0)["texts"]
    assert got.dtype.kind == "U"
    assert got.tolist() == texts


def test_text_of_fixed_length_is_read(file, path):
    """One text of fixed length is a str, several are an array of bytes as they are in the file."""
    file["epoch_0"]["one"] = np.bytes_(b"ab")
    file["epoch_0"]["more"] = np.array([b"ab", b"c"])
    file.close()
    got = read_foreign_epoch(path, 0)
    assert got["one"] == "ab"
    assert got["more"].tolist() == [b"ab", b"c"]


def test_an_empty_dataspace_is_none(file, path):
    """A dataset without a dataspace is None, whatever its attributes say."""
    file["epoch_0"]["nothing"] = h5py.Empty("f8")
    file["epoch_0"]["nothing"].attrs["kind"] = "array"
    file.close()
    assert read_foreign_epoch(path, 0) == {"nothing": None}


def test_compressed_data_are_read(file, path):
    """A file that a tool has repacked in chunks, compressed as far as it goes, is read."""
    array = np.zeros((100, 1000))
    file["epoch_0"].create_dataset("x", data=array, chunks=(100, 1000), compression="gzip", compression_opts=9)
    file.close()
    np.testing.assert_array_equal(read_foreign_epoch(path, 0)["x"], array)


# ---- ours, after a tool has copied it --------------------------------------------------------------------------------


@given(storable.EPOCHS)
@settings(max_examples=100)
def test_our_epochs_survive_being_copied(tmp_path_factory, epoch):
    """A file of ours whose content was copied by h5py gives back all that was in it, but for the order of dicts."""
    disk = storable.folder(tmp_path_factory)
    storable.write_file(disk, "x.h5", {4: epoch})
    disk.leave()
    with h5py.File(disk.folder / "x.h5") as ours, h5py.File(disk.folder / "copy.h5", "w") as copy:
        copy.attrs.update(ours.attrs)
        ours.copy("epoch_4", copy)
    assert_read(read_foreign_epoch(disk.folder / "copy.h5", -1), epoch)


# ---- hostile files ---------------------------------------------------------------------------------------------------


def test_what_is_no_hdf5_file_is_damaged(path):
    """Any bytes are refused, and the message names the file."""
    path.write_bytes(b"not HDF5 at all" * 100)
    with pytest.raises(Damaged, match=r"x\.h5 can't be read as HDF5"):
        read_foreign_epoch(path, 0)


def test_a_file_that_is_not_there_is_not_found(path):
    """A missing file is a FileNotFoundError."""
    with pytest.raises(FileNotFoundError):
        read_foreign_epoch(path, 0)


def test_a_file_that_is_cut_short_is_damaged(path):
    """The end of a file is missing."""
    with h5py.File(path, "w") as file:
        write_like_jexplore(file.create_group("epoch_0"), {"x": np.arange(10_000.0)})
    with path.open("r+b") as raw:
        raw.truncate(50_000)
    with pytest.raises(Damaged, match=r"x\.h5"):
        read_foreign_epoch(path, 0)


def test_an_epoch_that_is_no_group_is_damaged(path):
    """A dataset with an epoch's name is none."""
    with h5py.File(path, "w") as file:
        file["epoch_0"] = 1.0
    with pytest.raises(Damaged, match="epoch 0 isn't a group"):
        read_foreign_epoch(path, 0)


def test_a_soft_link_is_not_followed(file):
    """A soft link, within an epoch or as one, is refused by its path."""
    file["elsewhere"] = 1.0
    file["epoch_0"]["x"] = h5py.SoftLink("/elsewhere")
    refused(file, "/epoch_0/x is a link that leads elsewhere")


def test_an_external_link_is_not_followed(file, tmp_path):
    """A link to another file is refused, though that file is there."""
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["secret"] = 1.0
    file["epoch_0"]["x"] = h5py.ExternalLink("other.h5", "/secret")
    refused(file, "/epoch_0/x is a link that leads elsewhere")


def test_an_epoch_that_is_a_link_is_not_followed(path):
    """The epoch itself must lie in the file."""
    with h5py.File(path, "w") as file:
        file.create_group("elsewhere")
        file["epoch_0"] = h5py.SoftLink("/elsewhere")
    with pytest.raises(Damaged, match="/epoch_0 is a link"):
        read_foreign_epoch(path, 0)


def test_data_in_another_file_are_not_read(file, tmp_path):
    """A dataset whose bytes lie in another file is refused."""
    (tmp_path / "secret").write_bytes(b"x" * 80)
    file["epoch_0"].create_dataset("x", (10,), "f8", external=[(str(tmp_path / "secret"), 0, 80)])
    refused(file, "the data of /epoch_0/x lie in other files")


def test_a_virtual_dataset_is_not_read(file, tmp_path):
    """A dataset made of pieces of other files is refused."""
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["secret"] = np.arange(10.0)
    layout = h5py.VirtualLayout((10,), "f8")
    layout[:] = h5py.VirtualSource(tmp_path / "other.h5", "secret", (10,))
    file["epoch_0"].create_virtual_dataset("x", layout)
    refused(file, "the data of /epoch_0/x lie in other files")


def test_a_group_that_holds_itself_ends(file):
    """A circle of hard links is noticed."""
    file["epoch_0"].create_group("a")["b"] = file["epoch_0"]
    refused(file, "/epoch_0/a/b is there twice, holds itself")


def test_a_group_with_many_names_is_not_read_many_times(file):
    """Thirty groups, each with two links to the next one, would be a thousand million."""
    group = file["epoch_0"]
    for depth in range(30):
        below = group.create_group("a")
        group["b"] = below
        group = below
        assert depth < MAX_DEPTH
    refused(file, "is there twice")


def test_a_dataset_with_many_names_is_not_read_many_times(file):
    """A thousand links to one dataset would need a thousand times its size."""
    file["epoch_0"]["x"] = np.zeros(1000)
    for i in range(1000):
        file["epoch_0"][f"x{i}"] = file["epoch_0"]["x"]
    refused(file, "is there twice")


def test_groups_that_are_too_deep_are_refused(file):
    """Nesting deeper than an epoch can be is refused before the stack is full."""
    group = file["epoch_0"]
    for _ in range(2000):
        group = group.create_group("in")
    refused(file, "nested deeper")


@pytest.fixture
def little_memory():
    """Half a gigabyte more than is used now: whoever claims more gets an error."""
    with open("/proc/self/statm") as statm:
        used = int(statm.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 29), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"shape": (1 << 37,)}, id="contiguous"),
        pytest.param({"shape": (1 << 37,), "chunks": (1 << 10,)}, id="in chunks"),
        pytest.param({"shape": (1 << 37,), "chunks": (1 << 10,), "compression": "gzip"}, id="compressed"),
        pytest.param({"shape": (1 << 20,), "chunks": (1 << 10,)}, id="in chunks of which none is there"),
        pytest.param({"shape": (1 << 40, 1 << 20)}, id="more than addresses reach"),
    ],
)
def test_more_data_than_the_file_can_hold_are_refused(file, little_memory, options):
    """A shape that is claimed is believed only as far as the file goes; no memory is asked for before."""
    file["epoch_0"].create_dataset("x", dtype="f8", **options)
    refused(file, "/epoch_0/x claims .* more than the file can hold")


def test_texts_that_are_all_the_same_long_one_are_refused(path, little_memory):
    """A thousand references to one text of a megabyte would be a gigabyte."""
    with h5py.File(path, "w") as file:
        texts = file.create_group("epoch_0").create_dataset("t", data=["x" * (1 << 20), *["y"] * 999], dtype=TEXT)
        offset = texts.id.get_offset()
    data = bytearray(path.read_bytes())
    data[offset : offset + 16_000] = data[offset : offset + 16] * 1000
    path.write_bytes(data)
    with pytest.raises(Damaged, match="texts of /epoch_0/t are more than the file can hold"):
        read_foreign_epoch(path, 0)


def test_a_long_text_among_many_is_no_array(file, little_memory):
    """An array of text takes the room of the longest one for each."""
    texts = ["x" * 100_000, *["y"] * 10_000]
    file["epoch_0"].create_dataset("t", data=texts, dtype=TEXT)
    refused(file, "texts of /epoch_0/t, one very long")


@pytest.mark.parametrize("dtype", [h5py.vlen_dtype("f8"), h5py.ref_dtype, np.dtype([("a", TEXT)])], ids=str)
def test_data_that_no_epoch_can_hold_are_refused(file, dtype):
    """Arrays of variable length and references are refused, before they are read."""
    file["epoch_0"].create_dataset("x", (3,), dtype)
    refused(file, "/epoch_0/x holds data of variable length")


def test_a_named_type_is_refused(file):
    """What is neither a group nor a dataset is no part of an epoch."""
    file["epoch_0"]["type"] = np.dtype("f8")
    refused(file, "/epoch_0/type is neither a group nor a dataset")


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("array:raw", np.zeros((2, 7), "u1")),
        ("array:text", np.zeros(2)),
        ("list:str", np.zeros(2)),
        ("str", np.array(b"\xff")),
        ("bigint", np.array(b"no number")),
    ],
)
def test_attributes_that_contradict_the_data_are_damage(file, kind, value):
    """What the attributes say of a dataset can't be so."""
    file["epoch_0"]["x"] = value
    file["epoch_0"]["x"].attrs["kind"] = kind
    file["epoch_0"]["x"].attrs["dtype"] = "<M8[s]"
    refused(file, r"x\.h5: /epoch_0/x: ")


@pytest.mark.parametrize("kind", ["list", "tuple"])
def test_a_list_with_members_that_are_not_numbered_is_damage(file, kind):
    """The members of a list have numbers as names."""
    file["epoch_0"].create_group("l")["a"] = 1.0
    file["epoch_0"]["l"].attrs["kind"] = kind
    refused(file, r"x\.h5 can't be read")


def test_a_superblock_that_lies_is_damage(path):
    """A file that says that its root group is elsewhere is refused."""
    with h5py.File(path, "w", libver="latest") as file:
        file.create_group("epoch_0")
    data = bytearray(path.read_bytes())
    struct.pack_into("<Q", data, 36, 1 << 60)
    path.write_bytes(data)
    with pytest.raises(Damaged, match=r"x\.h5 can't be read"):
        read_foreign_epoch(path, 0)
