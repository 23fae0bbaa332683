"""One file of epochs: written, sealed, walked and read."""

import errno
import struct

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import storable
from posterity._format import file_writer, row_reader
from posterity._format.checksum import data_sum
from posterity._format.file_header import FileHead
from posterity._format.file_reader import Reader
from posterity._format.file_writer import EpochFile
from posterity._format.flatten import flatten
from posterity._format.frame import FRAME_HEAD, PAGE, Stamp
from posterity._format.layout import LARGE, layout_of
from posterity._format.row_reader import Scratch
from posterity._format.rows import Rows, rows_of
from posterity._format.schema import encode_items
from posterity._system.disk import Disk
from posterity.errors import Damaged, NewerFormat

HEAD = storable.HEAD
FIRST_REGION = 128


def laid_out(epoch):
    items, leaves = flatten(epoch)
    return layout_of(encode_items(items)), [storable.to_memory(leaf) for leaf in leaves]


def epoch_of(index, nsamples=10):
    """A small epoch whose numbers tell which it is."""
    return {"samples": {"p": np.full((2, 3, nsamples), float(index))}, "name": f"epoch {index}"}


def stamp_of(index, head=HEAD):
    return Stamp(head.run_id, head.generation, index, 10 * index, 10, 0)


def append(file, index, epoch=None):
    layout, arrays = laid_out(epoch or epoch_of(index))
    region = file.append(stamp_of(index, file.head), layout, arrays)
    file.flush()
    return region


@pytest.fixture
def file(disk):
    """A file that is filling up, with epochs 0, 1 and 2."""
    file = EpochFile.create(disk, "x", HEAD)
    for index in range(3):
        append(file, index)
    yield file
    file.flush()
    file.close()


def indices(disk, name="x", start=FIRST_REGION):
    """The epochs that are found by walking, each checked."""
    with Reader.open(disk, name) as reader:
        found = []
        for base, frame in reader.walk(start):
            region = reader.region(base, frame)
            for i in range(len(region.layout.leaves)):
                reader.read_array(region, i, verify=True)
            found.append(frame.epoch)
        return found


def overwrite(disk, name, offset, data):
    fd = disk.open(name, write=True)
    disk.write_at(fd, offset, [data])
    disk.close(fd)


def cut(disk, name, nbytes):
    fd = disk.open(name, write=True)
    disk.truncate(fd, nbytes)
    disk.close(fd)


# ---- whose it is -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "head", [HEAD, FileHead(bytes(16), 0, 0, 0), FileHead(b"\xff" * 16, 2**32 - 1, 2**64 - 1, 2**32 - 1)]
)
def test_a_new_file_says_whose_it_is(disk, head):
    """The head is the first thing that is written."""
    file = EpochFile.create(disk, "x", head)
    file.flush()
    file.close()
    with Reader.open(disk, "x") as reader:
        assert reader.read_head() == head


def test_the_head_stays_when_the_file_is_sealed(disk, file):
    """An HDF5 file of ours still says whose it is."""
    file.seal()
    file.flush()
    with Reader.open(disk, "x") as reader:
        assert reader.read_head() == HEAD


@pytest.mark.parametrize("data", [b"", b"short", bytes(200), b"\x89HDF\r\n\x1a\n" + bytes(300)])
def test_a_file_of_others_has_no_head(tmp_path, disk, data):
    """What we didn't write isn't taken for ours."""
    (tmp_path / "x").write_bytes(data)
    with Reader.open(disk, "x") as reader:
        assert reader.read_head() is None


@pytest.mark.parametrize("offset", range(64, 120))
def test_a_damaged_head_is_none(disk, file, offset):
    """Each wrong byte of the head is noticed."""
    with Reader.open(disk, "x") as reader:
        byte = reader._read(offset, 1)[0]
    overwrite(disk, "x", offset, bytes([byte ^ 0x10]))
    with Reader.open(disk, "x") as reader:
        assert reader.read_head() is None


def test_a_file_of_a_later_version_is_named(disk, file):
    """A head with a higher format version, whole otherwise, raises `NewerFormat` with both versions."""
    with Reader.open(disk, "x") as reader:
        head = bytearray(reader._read(64, 56))
    struct.pack_into("<I", head, 8, 4)
    struct.pack_into("<Q", head, 48, data_sum(bytes(head[:48])))
    overwrite(disk, "x", 64, bytes(head))
    with Reader.open(disk, "x") as reader, pytest.raises(NewerFormat, match=r"x has format 4.* knows 3"):
        reader.read_head()


# ---- looking for epochs in a damaged file --------------------------------------------------------------------------


def scanned(disk, name="x"):
    """Which epochs are found in a file, and at how many places others must have been."""
    with Reader.open(disk, name) as reader:
        frames, damaged = reader.scan()
    return [frame.epoch for _, frame in frames], len(damaged)


def bases(disk):
    with Reader.open(disk, "x") as reader:
        return [base for base, _ in reader.walk()]


@pytest.mark.parametrize("is_sealed", [False, True])
@pytest.mark.parametrize(
    ("hit", "expected"), [([], [0, 1, 2]), ([0], [1, 2]), ([1], [0, 2]), ([0, 1], [2]), ([2], [0, 1]), ([0, 1, 2], [])]
)
def test_epochs_behind_a_damaged_one_are_found(disk, file, is_sealed, hit, expected):
    """A damaged frame hides no other; at the end of a file that was never sealed it was merely being written."""
    if is_sealed:
        file.seal()
        file.flush()
    found = bases(disk)
    for which in hit:
        overwrite(disk, "x", found[which] + 40, b"\xff")
    places = 0 if not hit else 1
    if not is_sealed and 2 in hit:
        places = 0
    assert scanned(disk) == (expected, places)


def test_a_file_full_of_fakes_does_not_take_for_ever(disk):
    """A hostile file made of heads that each claim all that follows is given up, before it was read many times."""

    class CountingDisk(Disk):
        count = 0

        def read_at(self, fd, offset, into):
            self.count += into.nbytes
            return super().read_at(fd, offset, into)

    size = 1 << 20
    file = EpochFile.create(disk, "x", HEAD)
    file.flush()
    file.close()
    fakes = []
    for at in range(FIRST_REGION, size - 200, 96):
        spec_size = (size - at - 200) // 8 * 8
        frame_size = -(-(FRAME_HEAD + spec_size + 8) // 8) * 8
        fakes.append(struct.pack("<8sIII", b"POSTepch", frame_size, spec_size, 0).ljust(96, b"\0"))
    overwrite(disk, "x", FIRST_REGION, b"".join(fakes))
    counting = CountingDisk(disk.folder)
    counting.enter()
    with Reader.open(counting, "x") as reader, pytest.raises(Damaged, match="looks like epochs"):
        reader.scan()
    counting.leave()
    assert counting.count < 50 * size


# ---- filling up ------------------------------------------------------------------------------------------------------


def test_epochs_are_found_by_walking_before_the_file_is_sealed(disk, file):
    """What is in a file that is filling up needs no journal and no HDF5 to be found."""
    assert indices(disk) == [0, 1, 2]


def test_epochs_are_found_by_walking_after_the_file_is_sealed(disk, file):
    """Sealing changes nothing of what is in the file."""
    file.seal()
    file.flush()
    assert indices(disk) == [0, 1, 2]


def test_walking_can_begin_at_the_end_of_a_known_epoch(disk, file):
    """Only what comes after the known epochs is looked at."""
    end = file.end
    append(file, 3)
    assert indices(disk, start=end) == [3]


@given(st.lists(st.sampled_from([1, 100, LARGE // 48, LARGE // 48 + 1, 1000]), min_size=1, max_size=5))
@settings(max_examples=30)
def test_small_and_large_epochs_lie_side_by_side(tmp_path_factory, lengths):
    """Epochs with and without large arrays follow each other; a large array begins at a multiple of a page."""
    disk = storable.folder(tmp_path_factory)
    file = EpochFile.create(disk, "x", HEAD)
    for index, nsamples in enumerate(lengths):
        layout, arrays = laid_out(epoch_of(index, nsamples))
        base = file.append(stamp_of(index), layout, arrays).base
        assert all((base + layout.offsets[i]) % PAGE == 0 for i in layout.large)
    file.seal()
    file.flush()
    file.close()
    assert indices(disk) == list(range(len(lengths)))
    with h5py.File(disk.folder / "x") as h5:
        for index, nsamples in enumerate(lengths):
            node = h5[f"epoch_{index}/samples/p"]
            np.testing.assert_array_equal(node[...], np.full((2, 3, nsamples), float(index)))
            assert node.id.get_offset() % (PAGE if node.nbytes >= LARGE else 8) == 0
    disk.leave()


@pytest.mark.parametrize("lost", [1, 8, 100, 300, 500, 700])
def test_an_epoch_that_is_not_whole_is_not_found(disk, file, lost):
    """A file that ends within its last epoch has the epochs before it."""
    cut(disk, "x", file.end - lost)
    assert indices(disk) == [0, 1]


def test_the_place_that_was_given_leads_to_the_arrays(disk, file):
    """Base and checksums, as they are journaled, are those of the frame."""
    region = append(file, 3)
    with Reader.open(disk, "x") as reader:
        *_, (found, frame) = reader.walk()
    assert (found, frame.sums) == (region.base, region.sums)


class WritingDisk(Disk):
    """Notes where it is written."""

    def __init__(self, folder):
        super().__init__(folder)
        self.offsets = []

    def write_at(self, fd, offset, buffers):
        self.offsets.append(offset)
        super().write_at(fd, offset, buffers)


def test_a_large_epoch_is_the_same_slab_by_slab(tmp_path, monkeypatch):
    """Byte by byte it is what one write makes of it, with the same checksums; its head is written last."""
    disk = WritingDisk(tmp_path)
    disk.enter()
    rng = np.random.default_rng(0)
    epoch = {"samples": {"p": rng.random((2, 3, 2501)), "ll": rng.random((2, 1, 2501))}, "x": np.arange(5)}
    regions = []
    for name, slab in (("whole", 1 << 30), ("slabs", 10_000)):
        monkeypatch.setattr(file_writer, "_WORTH_PUSHING", slab)
        disk.offsets.clear()
        file = EpochFile.create(disk, name, HEAD)
        append(file, 0)
        end = file.end
        regions.append(append(file, 1, epoch))
        append(file, 2)
        file.seal()
        file.sync()
        file.close()
    first, second = disk.offsets.index(end), len(disk.offsets) - disk.offsets[::-1].index(end)
    assert max(disk.offsets[:first]) > regions[1].base + regions[1].layout.offsets[0] + 50_000
    assert second == first + 1
    assert regions[0] == regions[1]
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "slabs").read_bytes()
    disk.leave()


def test_checksums_that_were_known_are_kept(disk, file):
    """An epoch that is copied keeps its old checksums: damage done since stays to be seen."""
    layout, arrays = laid_out(epoch_of(3))
    known = tuple(range(len(arrays)))
    assert file.append(stamp_of(3), layout, arrays, known).sums == known
    file.flush()
    with pytest.raises(Damaged):
        indices(disk)


class FailingDisk(Disk):
    """A disk that writes some bytes and then fails, once."""

    fails = None

    def write_at(self, fd, offset, buffers):
        if self.fails is not None:
            written, self.fails = self.fails, None
            data = b"".join(bytes(buffer) for buffer in buffers)
            super().write_at(fd, offset, [data[:written]])
            raise OSError(errno.EIO, "Input/output error")
        super().write_at(fd, offset, buffers)

    def reserve(self, fd, offset, nbytes):
        if self.fails == 0:
            self.fails = None
            raise OSError(errno.ENOSPC, "No space left on device")
        super().reserve(fd, offset, nbytes)


@pytest.mark.parametrize("written", [0, 1, 50, 400, 600])
def test_an_append_that_failed_can_be_tried_again(tmp_path, written):
    """After a failure the epochs are as they were, and the next attempt writes over the failed one."""
    disk = FailingDisk(tmp_path)
    disk.enter()
    file = EpochFile.create(disk, "x", HEAD)
    append(file, 0)
    end, groups = file.end, dict(file.groups)
    disk.fails = written
    with pytest.raises(OSError, match=r"No space|Input/output"):
        append(file, 1)
    file.close()
    disk.fails = None
    with Reader.open(disk, "x") as reader:
        known = [(frame.epoch, reader.region(base, frame)) for base, frame in reader.walk()]
    file = EpochFile.reopen(disk, "x", HEAD, known[:1])
    assert (file.end, file.groups) == (end, groups)
    append(file, 1)
    append(file, 2)
    file.seal()
    file.flush()
    file.close()
    assert indices(disk) == [0, 1, 2]
    with h5py.File(tmp_path / "x") as h5:
        assert set(h5) == {"epoch_0", "epoch_1", "epoch_2"}
    disk.leave()


# ---- going on --------------------------------------------------------------------------------------------------------


def regions_of(disk, name="x"):
    with Reader.open(disk, name) as reader:
        return [(frame.epoch, reader.region(base, frame)) for base, frame in reader.walk()]


def test_a_file_that_was_left_filling_is_gone_on_with(disk, file):
    """A file is opened again, gets more epochs, and is sealed with all of them."""
    again = EpochFile.reopen(disk, "x", HEAD, regions_of(disk))
    append(again, 3)
    again.seal()
    again.flush()
    again.close()
    assert indices(disk) == [0, 1, 2, 3]
    with h5py.File(disk.folder / "x") as h5:
        assert len(h5) == 4


def test_what_lies_behind_the_known_epochs_is_cut_off(disk, file):
    """An epoch that a crash left unknown doesn't come back as the follower of the one that takes its place."""
    known = regions_of(disk)[:1]
    again = EpochFile.reopen(disk, "x", HEAD, known)
    append(again, 1)
    again.flush()
    again.close()
    assert indices(disk) == [0, 1]


def test_no_descriptor_is_left_when_a_file_cannot_be_gone_on_with(tmp_path):
    """A failure while the rest is cut off gives the descriptor back."""

    class Uncut(Disk):
        def truncate(self, fd, nbytes):
            raise OSError(errno.EIO, "Input/output error")

    disk = Uncut(tmp_path)
    disk.enter()
    file = EpochFile.create(disk, "x", HEAD)
    append(file, 0)
    append(file, 1)
    file.flush()
    file.close()
    with pytest.raises(OSError, match="Input/output"):
        EpochFile.reopen(disk, "x", HEAD, regions_of(disk)[:1])
    disk.leave()


# ---- as an HDF5 file -------------------------------------------------------------------------------------------------


def test_attributes_say_what_is_in_the_file(disk, file):
    """The root group says whose file it is, and each epoch which samples of the run it holds."""
    file.seal()
    file.flush()
    with h5py.File(disk.folder / "x") as h5:
        root = dict(h5.attrs)
        epoch = dict(h5["epoch_2"].attrs)
        sums = h5["epoch_2/samples/p"].attrs["xxh3_64"]
    run = HEAD.run_id.hex().encode()
    assert root == {"posterity_run": run, "posterity_format": 1, "generation": 3, "number": 7, "rewrite": 2}
    expected = {"generation": 3, "index": 2, "first": 20, "nsamples": 10, "burned": 0}
    assert epoch == {"posterity_run": run, "posterity_format": 1, **expected}
    assert sums == data_sum(np.full((2, 3, 10), 2.0).tobytes())


def test_a_file_without_epochs_is_an_hdf5_file(disk):
    """Sealing a file with nothing in it gives an empty HDF5 file."""
    file = EpochFile.create(disk, "x", HEAD)
    file.seal()
    file.flush()
    file.close()
    with h5py.File(disk.folder / "x") as h5:
        assert len(h5) == 0


def test_a_file_with_hundreds_of_epochs_is_an_hdf5_file(disk):
    """h5py lists hundreds of epochs in one file, and finds each."""
    file = EpochFile.create(disk, "x", HEAD)
    for index in range(300):
        append(file, index)
    file.seal()
    file.flush()
    file.close()
    with h5py.File(disk.folder / "x") as h5:
        assert set(h5) == {f"epoch_{i}" for i in range(300)}
        assert all(h5[f"epoch_{i}/samples/p"][1, 2, 9] == i for i in range(300))


# ---- reading ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def reader(disk, file):
    with Reader.open(disk, "x") as reader:
        yield reader


def last_region(reader):
    *_, (base, frame) = reader.walk()
    return reader.region(base, frame)


def test_damage_is_found_by_checksum_and_named(disk, reader):
    """One flipped bit in an array raises `Damaged` with the file and the path; without `verify` nobody looks."""
    region = last_region(reader)
    overwrite(disk, "x", region.base + region.layout.offsets[0] + 100, b"\x01")
    with pytest.raises(Damaged, match=r"x is damaged: 'samples/p' of the epoch at offset \d+: its xxh3_64"):
        reader.read_array(region, 0, verify=True)
    assert reader.read_array(region, 0, verify=False).shape == (2, 3, 10)
    assert reader.read_array(region, 1, verify=True).tobytes() == b"epoch 2"


def test_a_file_that_ends_too_early_is_damaged(disk, file):
    """An array that reaches beyond the end of its file raises `Damaged`, whichever way it is read."""
    with Reader.open(disk, "x") as reader:
        region = last_region(reader)
    cut(disk, "x", region.base + region.layout.offsets[0] + 100)
    with Reader.open(disk, "x") as reader:
        with pytest.raises(Damaged, match="the file ends before it"):
            reader.read_array(region, 0, verify=False)
        with pytest.raises(Damaged, match="the file ends before it"):
            reader.read_samples(region, 0, [Rows(0, 0, 6)], np.empty((6, 10)), start=0, thin=1, scratch=Scratch())


def test_a_file_that_is_cut_while_it_is_read_is_damaged(disk, reader):
    """A file that shrinks after it was opened gives an error and not old memory."""
    region = last_region(reader)
    cut(disk, "x", region.base)
    with pytest.raises(Damaged, match="ended while it was read"):
        reader.read_array(region, 0, verify=False)


def test_an_array_that_was_read_is_the_callers_own(reader):
    """Reading twice gives two arrays that can be written to."""
    region = last_region(reader)
    one, other = (reader.read_array(region, 0, verify=True) for _ in range(2))
    one[...] = -1
    assert (other == 2).all()


def test_a_frame_that_contradicts_its_description_is_damaged(reader):
    """A frame whose sizes aren't those of its description raises `Damaged`."""
    (base, frame), *_ = reader.walk()
    with pytest.raises(Damaged, match="contradicts itself"):
        reader.region(base, frame._replace(region_size=frame.region_size + 8))
    with pytest.raises(Damaged, match="contradicts itself"):
        reader.region(base, frame._replace(sums=frame.sums[1:]))


@given(st.binary(max_size=400), st.integers(0, 400))
def test_walking_any_bytes_ends(tmp_path_factory, data, start):
    """Walking through what nobody wrote finds nothing, and ends."""
    disk = storable.folder(tmp_path_factory)
    (disk.folder / "x").write_bytes(data)
    with Reader.open(disk, "x") as reader:
        assert list(reader.walk(start)) == []
    disk.leave()


# ---- reading samples -------------------------------------------------------------------------------------------------


def check_samples(disk, array, chains, start, thin, most=None):
    """Compare what is read with what NumPy's indexing gives."""
    file = EpochFile.create(disk, "s", HEAD)
    layout, arrays = laid_out({"p": array})
    region = file.append(stamp_of(0), layout, arrays)
    file.flush()
    file.close()
    expected = (array if chains is None else array[chains])[:, :, start::thin][:, :, :most]
    rows = rows_of(chains, array.shape[0], array.shape[1])
    with Reader.open(disk, "s") as reader:
        (found, frame), *_ = reader.walk()
        assert (found, frame.sums) == (region.base, region.sums)
        region = reader.region(found, frame)
        for verify in (False, True):
            into = np.zeros((expected.shape[0] * array.shape[1], expected.shape[2]), array.dtype)
            reader.read_samples(region, 0, rows, into, start=start, thin=thin, scratch=Scratch(), verify=verify)
            np.testing.assert_array_equal(into.reshape(expected.shape), expected)


@given(st.data())
@settings(max_examples=150)
def test_samples_are_read_as_numpy_indexes(tmp_path_factory, data):
    """Any chains, in any order and repeated, from any sample to any other, thinned: `array[chains, :, start::thin]`."""
    shape = data.draw(st.tuples(st.integers(1, 6), st.integers(0, 3), st.integers(1, 9)))
    chains = data.draw(st.none() | st.lists(st.integers(0, shape[0] - 1), max_size=8))
    start = data.draw(st.integers(0, shape[2] - 1))
    thin = data.draw(st.integers(1, 10))
    most = data.draw(st.integers(1, 9))
    disk = storable.folder(tmp_path_factory)
    array = np.arange(np.prod(shape), dtype=data.draw(st.sampled_from(["<f8", ">i2", "f4"]))).reshape(shape)
    with pytest.MonkeyPatch.context() as patched:
        # pieces of some samples, of some rows, or of the whole, and any start worth skipping or none
        patched.setattr(row_reader, "_SLAB", data.draw(st.sampled_from([1, 20, 50, 200, 1 << 20])))
        patched.setattr(row_reader, "_WORTH_SKIPPING", data.draw(st.sampled_from([0, 16, 1 << 20])))
        check_samples(disk, array, chains, start, thin, most)
    disk.leave()


def test_damage_outside_of_what_was_asked_for_is_found_too(disk, reader):
    """With `verify` the checksum is of the whole array, whichever rows are wanted; the error names the array."""
    region = last_region(reader)
    overwrite(disk, "x", region.base + region.layout.offsets[0] + 479, b"\x01")  # the last byte of the last row
    into = np.empty((1, 10))
    asked = {"start": 0, "thin": 1, "scratch": Scratch()}
    reader.read_samples(region, 0, [Rows(0, 0, 1)], into, **asked)
    assert (into == 2).all()
    with pytest.raises(Damaged, match=r"x is damaged: 'samples/p' of the epoch at offset \d+: its xxh3_64"):
        reader.read_samples(region, 0, [Rows(0, 0, 1)], into, **asked, verify=True)


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize(("slab", "skipping"), [(1 << 20, 1 << 20), (16, 1 << 20), (1 << 20, 0)])
def test_a_file_that_is_cut_while_samples_are_read_is_damaged(disk, reader, monkeypatch, slab, skipping, verify):
    """Whichever way the rows are fetched, a file that shrank gives an error and not old memory."""
    monkeypatch.setattr(row_reader, "_SLAB", slab)
    monkeypatch.setattr(row_reader, "_WORTH_SKIPPING", skipping)
    region = last_region(reader)
    cut(disk, "x", region.base + region.layout.offsets[0] + 100)
    with pytest.raises(Damaged, match="ended while it was read"):
        reader.read_samples(
            region, 0, [Rows(0, 0, 6)], np.empty((6, 9)), start=1, thin=1, scratch=Scratch(), verify=verify
        )


@pytest.mark.parametrize("chains", [None, [0], [2, 3], [3, 1, 1], []])
@pytest.mark.parametrize(("start", "thin"), [(0, 1), (8191, 3), (8192, 1), (39_999, 1), (12_345, 1000)])
def test_long_rows_are_read_piece_by_piece(disk, chains, start, thin):
    """Rows longer than what is worth skipping, and more of them than fit into a piece, are read as NumPy indexes."""
    array = np.random.default_rng(0).integers(0, 2**60, (4, 5, 40_000))
    check_samples(disk, array, chains, start, thin)
    check_samples(disk, array[:, :0], chains, start, thin)
