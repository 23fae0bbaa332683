"""Files with compressed epochs: others read them, damage is found, a full disk leaves nothing, bombs don't explode."""

import errno
import io
import shutil
import subprocess
import threading
import tracemalloc

import h5py
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

import storable
from posterity._format import layout
from posterity._format.checksum import data_sum
from posterity._format.codec import Packing
from posterity._format.file_header import FileHead
from posterity._format.file_reader import Reader
from posterity._format.file_writer import EpochFile
from posterity._format.flatten import flatten, restore
from posterity._format.frame import Stamp
from posterity._format.hdf5 import FixedArray
from posterity._format.layout import MOST_PACKED, PACKED_VERSION, layout_of, packed_layout
from posterity._format.row_reader import Scratch
from posterity._format.rows import rows_of
from posterity._format.schema import encode_items
from posterity._system import parallel
from posterity._system.disk import Disk
from posterity.errors import Damaged
from smallchunks import small_chunks

HEAD = storable.HEAD._replace(version=PACKED_VERSION)
PACKINGS = [Packing("gzip", 1, False), Packing("gzip", 6, True), Packing("zstd", 1, False), Packing("zstd", 3, True)]
packings = pytest.mark.parametrize("packing", PACKINGS, ids=str)
GZIP = PACKINGS[0]


@pytest.fixture(autouse=True)
def _small_chunks():
    with small_chunks():
        yield


@pytest.fixture
def full_size():
    """Chunks as large as they are."""
    with small_chunks(layout.LARGE, 1 << 19, 1 << 22):
        yield


def laid_out(epoch, packing):
    items, leaves = flatten(epoch)
    return packed_layout(layout_of(encode_items(items)), packing), [storable.to_memory(leaf) for leaf in leaves]


def stamp_of(index, head=HEAD):
    return Stamp(head.run_id, head.generation, index, 10 * index, 10, 0)


def append(file, index, epoch, packing):
    return file.append(stamp_of(index, file.head), *laid_out(epoch, packing))


def walk_of(nchain=4, dim=3, nsamples=50, seed=0):
    """A chain that stays where it is three times out of four."""
    rng = np.random.default_rng(seed)
    steps = rng.normal(size=(nchain, 1, nsamples)) * (rng.random((nchain, 1, nsamples)) < 0.25)
    return np.cumsum(steps, axis=2) + np.arange(dim)[:, None]


def epoch_of(index):
    return {
        "samples": {"p": walk_of(seed=index), "ll": walk_of(dim=1, seed=index + 100).astype("f4")},
        "noise": np.random.default_rng(index).normal(size=100),
        "zeros": np.zeros(10_000),
        "text": "x" * 100,
        "small": np.arange(2.0),
        "empty": np.empty((3, 0)),
        "index": index,
    }


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.h5"


def write(path, epochs, packing, head=HEAD):
    disk = Disk(path.parent)
    disk.enter()
    file = EpochFile.create(disk, path.name, head)
    regions = [append(file, index, epoch, packing) for index, epoch in enumerate(epochs)]
    file.seal()
    file.flush()
    file.close()
    disk.leave()
    return regions


def read(path, *, verify=True):
    disk = Disk(path.parent)
    disk.enter()
    try:
        with Reader.open(disk, path.name) as reader:
            found = {}
            for base, frame in reader.walk():
                region = reader.region(base, frame)
                arrays = [reader.read_array(region, i, verify=verify) for i in range(len(region.layout.leaves))]
                found[frame.epoch] = restore(region.layout.items, arrays)
            return found
    finally:
        disk.leave()


def undone(dataset):
    """What HDF5's filters would make of a dataset's chunks: zstd isn't among those that it has by itself."""
    filters = dataset.id.get_create_plist()
    assert filters.get_nfilters() == 1 + dataset.shuffle
    assert filters.get_filter(filters.get_nfilters() - 1)[0] == 32015
    array = np.zeros(dataset.shape, dataset.dtype)
    for k in range(dataset.id.get_num_chunks()):
        info = dataset.id.get_chunk_info(k)
        mask, raw = dataset.id.read_direct_chunk(info.chunk_offset)
        if not mask:
            raw = np.frombuffer(zstandard.decompress(raw), np.uint8)
            if dataset.shuffle:
                raw = np.ascontiguousarray(raw.reshape(dataset.dtype.itemsize, -1).T).reshape(-1)
        block = np.frombuffer(bytes(raw), dataset.dtype).reshape(dataset.chunks)
        place = tuple(
            slice(at, min(at + part, n))
            for at, part, n in zip(info.chunk_offset, dataset.chunks, dataset.shape, strict=True)
        )
        array[place] = block[tuple(slice(part.stop - part.start) for part in place)]
    return array


# ---- what is written is read -----------------------------------------------------------------------------------------


@packings
def test_what_is_written_is_read(path, packing):
    """Value for value and type for type, each checksum looked at; and it takes less room."""
    epochs = [epoch_of(index) for index in range(3)]
    regions = write(path, epochs, packing)
    for index, epoch in read(path).items():
        storable.assert_same(epoch, epochs[index])
    assert all(region.layout.grids for region in regions)
    assert all(region.size < sum(region.layout.nbytes) for region in regions)


@packings
def test_others_read_it(path, packing):
    """For h5py it is an ordinary HDF5 file, in chunks, with filters that have their registered numbers."""
    epochs = [epoch_of(index) for index in range(3)]
    write(path, epochs, packing)
    with h5py.File(path) as file:
        for index, epoch in enumerate(epochs):
            group = file[f"epoch_{index}"]
            assert (file.attrs["posterity_format"], group.attrs["posterity_format"]) == (2, 2)
            for name in ("samples/p", "samples/ll", "noise", "zeros", "small", "empty"):
                array = epoch["samples"][name[8:]] if name.startswith("samples") else epoch[name]
                dataset = group[name]
                assert dataset.chunks is None or dataset.shuffle == packing.shuffle
                assert dataset.attrs["xxh3_64"] == data_sum(array.tobytes())
                found = dataset[()] if packing.codec == "gzip" or dataset.chunks is None else undone(dataset)
                np.testing.assert_array_equal(found, array)
            assert (group["samples/p"].compression == "gzip") is (packing.codec == "gzip")
            assert group["samples/p"].id.get_num_chunks() > 3
            assert (group["small"].chunks, group["empty"].chunks) == (None, None)


@pytest.mark.parametrize("nchunks", [1, 1024, 1025, 5000])
def test_h5dump_reads_it(path, nchunks):
    """The tool of an older HDF5 too, also with more chunks than libhdf5 would put on a page of its index."""
    if shutil.which("h5dump") is None:
        pytest.skip("h5dump isn't installed")
    write(path, [{"p": np.arange(32 * nchunks, dtype="<i8") // 3}], GZIP)
    done = subprocess.run(
        ["h5dump", "-y", "-w", "1", "-d", "/epoch_0/p", path], capture_output=True, text=True, check=True
    )
    numbers = done.stdout.partition("DATA {")[2].partition("}")[0].replace(",", " ").split()
    assert list(map(int, numbers)) == [i // 3 for i in range(32 * nchunks)]


@pytest.mark.parametrize("packing", PACKINGS[1:3], ids=str)
@given(storable.EPOCHS, st.integers(0, 1 << 30))
@settings(max_examples=120)
def test_any_epoch_comes_back(tmp_path_factory, packing, epoch, seed):
    """All that can be stored can be stored compressed, and h5py opens each dataset of it."""
    rng = np.random.default_rng(seed)
    epoch = {**epoch, "filled": storable.fill(np.dtype([("a", "u1"), ("b", "<f8")], align=True), (5, 6), rng)}
    path = tmp_path_factory.mktemp("any") / "x.h5"
    (region,) = write(path, [epoch], packing)
    assert region.layout.grids
    storable.assert_same(read(path)[0], epoch)
    if packing.codec == "gzip":
        with h5py.File(path) as file:
            file.visititems(lambda _, node: node[()] is None if isinstance(node, h5py.Dataset) else None)
    shutil.rmtree(path.parent)


@packings
@pytest.mark.parametrize("chains", [None, [0], [3, 1, 1], []])
@pytest.mark.parametrize(("start", "thin"), [(0, 1), (0, 7), (33, 1), (31, 40), (49, 1)])
@pytest.mark.parametrize("most", [None, 1, 20])
def test_samples_are_read_as_numpy_indexes(path, packing, chains, start, thin, most):
    """Any chains, from any sample to any other, thinned, are `array[chains, :, start::thin]`."""
    array = walk_of(nsamples=90)
    write(path, [{"p": array}], packing)
    expected = (array if chains is None else array[chains])[:, :, start::thin][:, :, :most]
    into = np.zeros((expected.shape[0] * 3, expected.shape[2] + 2))
    disk = Disk(path.parent)
    disk.enter()
    with Reader.open(disk, path.name) as reader:
        region = reader.region(*next(reader.walk()))
        reader.read_samples(region, 0, rows_of(chains, 4, 3), into[:, 1:-1], start=start, thin=thin, scratch=Scratch())
    disk.leave()
    np.testing.assert_array_equal(into[:, 1:-1].reshape(expected.shape), expected)
    assert not into[:, [0, -1]].any()


def test_reading_few_chains_reads_few_chunks(path):
    """What isn't asked for isn't read, neither other chains nor earlier samples."""

    class CountingDisk(Disk):
        count = 0

        def read_at(self, fd, offset, into):
            self.count += into.nbytes
            return super().read_at(fd, offset, into)

    array = np.random.default_rng(0).normal(size=(20, 3, 1000))
    (region,) = write(path, [{"p": array}], GZIP)
    disk = CountingDisk(path.parent)
    disk.enter()
    with Reader.open(disk, path.name) as reader:
        reader.packed(region)
        for chains, start, thin, part in [([7], 0, 1, 1 / 20), (None, 995, 1, 0.032), ([1, 2], 500, 100, 0.03)]:
            disk.count = 0
            n = len(range(start, 1000, thin))
            into = np.empty((3 * (20 if chains is None else len(chains)), n))
            reader.read_samples(region, 0, rows_of(chains, 20, 3), into, start=start, thin=thin, scratch=Scratch())
            assert disk.count < 1.5 * part * array.nbytes
    disk.leave()


@pytest.mark.parametrize("ncores", [1, 2, 7])
def test_the_number_of_cores_does_not_matter(path, monkeypatch, ncores):
    """The bytes of a file are the same, and it is read the same."""
    monkeypatch.setattr(parallel, "count_cores", lambda: ncores)
    write(path, [epoch_of(0)], GZIP)
    monkeypatch.setattr(parallel, "count_cores", lambda: 3)
    write(path.with_name("y.h5"), [epoch_of(0)], GZIP)
    assert path.read_bytes() == path.with_name("y.h5").read_bytes()
    storable.assert_same(read(path)[0], epoch_of(0))


def test_the_disk_is_met_by_one_thread(path, monkeypatch):
    """Chunks are compressed by others; who writes is who was asked to."""
    writers, packers = set(), set()
    write_at, take = Disk.write_at, layout.Grid.take

    def noting_write_at(*args):
        writers.add(threading.current_thread())
        write_at(*args)

    def noting_take(*args):
        packers.add(threading.current_thread().name)
        return take(*args)

    monkeypatch.setattr(Disk, "write_at", noting_write_at)
    monkeypatch.setattr(layout.Grid, "take", noting_take)
    monkeypatch.setattr(parallel, "count_cores", lambda: 2)
    write(path, [epoch_of(0)], GZIP)
    assert writers == {threading.main_thread()}
    assert packers <= {"posterity-crew-0", "posterity-crew-1"}


@pytest.mark.parametrize("packing", [GZIP, PACKINGS[2]], ids=str)
def test_there_is_no_second_copy_of_an_epoch(path, packing, full_size, monkeypatch):
    """Writing and reading take a few megabytes, however large the epoch is."""
    monkeypatch.setattr(parallel, "count_cores", lambda: 4)
    array = np.random.default_rng(0).normal(size=(3, 10, 200_000))
    disk = Disk(path.parent)
    disk.enter()
    file = EpochFile.create(disk, path.name, HEAD)
    layout, arrays = laid_out({"p": array}, packing)
    tracemalloc.start()
    try:
        region = file.append(stamp_of(0), layout, arrays)
        assert tracemalloc.get_traced_memory()[1] < array.nbytes / 2
        file.close()
        into = np.empty((10, 200_000))
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        with Reader.open(disk, path.name) as reader:
            reader.read_samples(region, 0, rows_of([1], 3, 10), into, start=0, thin=1, scratch=Scratch())
        assert tracemalloc.get_traced_memory()[1] - before < array.nbytes / 4
    finally:
        tracemalloc.stop()
        disk.leave()
    np.testing.assert_array_equal(into, array[1])


# ---- room ------------------------------------------------------------------------------------------------------------


class SmallDisk(Disk):
    """A disk on which files may be so long and no longer."""

    most = 1 << 60

    def reserve(self, fd, offset, nbytes):
        if offset + nbytes > self.most:
            raise OSError(errno.ENOSPC, "No space left on device")
        super().reserve(fd, offset, nbytes)


@packings
def test_a_full_disk_leaves_nothing_of_an_epoch(path, packing):
    """How much room is needed is known too late; what was taken is given back, and the next attempt works."""
    disk = SmallDisk(path.parent)
    disk.enter()
    file = EpochFile.create(disk, path.name, HEAD)
    end = append(file, 0, epoch_of(0), packing).end
    size = append(file, 1, epoch_of(1), packing).size
    file.flush()
    file.close()
    file = EpochFile.reopen(disk, path.name, HEAD, regions_of(disk, path.name)[:1])
    for most in (end, end + 100, end + size // 2, end + size - 1):
        disk.most = most
        with pytest.raises(OSError, match="No space"):
            append(file, 1, epoch_of(1), packing)
        assert file.end == path.stat().st_size == end
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("posterity-crew")]
    disk.most = 1 << 60
    append(file, 1, epoch_of(1), packing)
    file.seal()
    file.flush()
    file.close()
    disk.leave()
    for index, epoch in read(path).items():
        storable.assert_same(epoch, epoch_of(index))


def regions_of(disk, name):
    with Reader.open(disk, name) as reader:
        return [(frame.epoch, reader.region(base, frame)) for base, frame in reader.walk()]


# ---- going on --------------------------------------------------------------------------------------------------------


def test_a_file_that_was_left_filling_is_gone_on_with(path):
    """Packed epochs and others lie side by side, in a file of the version that it had."""
    disk = Disk(path.parent)
    disk.enter()
    file = EpochFile.create(disk, path.name, HEAD)
    append(file, 0, epoch_of(0), GZIP)
    file.flush()
    file.close()
    file = EpochFile.reopen(disk, path.name, HEAD._replace(version=1), regions_of(disk, path.name))
    assert file.takes_packed
    items, leaves = flatten(epoch_of(1))
    file.append(stamp_of(1), layout_of(encode_items(items)), [storable.to_memory(leaf) for leaf in leaves])
    append(file, 2, epoch_of(2), PACKINGS[3])
    file.seal()
    file.flush()
    file.close()
    for index, epoch in read(path).items():
        storable.assert_same(epoch, epoch_of(index))
    with Reader.open(disk, path.name) as reader:
        assert reader.is_sealed(regions_of(disk, path.name))
    with h5py.File(path) as h5:
        assert [h5[f"epoch_{i}"].attrs["posterity_format"] for i in range(3)] == [2, 1, 2]
    disk.leave()


@pytest.mark.parametrize("head", [HEAD, storable.HEAD])
def test_a_file_says_whether_it_takes_packed_epochs(path, head):
    """Its format version says so, to those too who know only the first."""
    disk = Disk(path.parent)
    disk.enter()
    file = EpochFile.create(disk, path.name, head)
    file.flush()
    file.close()
    with Reader.open(disk, path.name) as reader:
        assert reader.read_head() == head
    again = EpochFile.reopen(disk, path.name, HEAD, [])
    assert again.takes_packed == (head is HEAD)
    again.flush()
    again.close()
    disk.leave()


@packings
def test_an_epoch_is_copied_as_it_is(path, packing):
    """Into another file, at another place, without being brought back; h5py finds its chunks there."""
    write(path, [epoch_of(0), epoch_of(1)], packing)
    disk = Disk(path.parent)
    disk.enter()
    file = EpochFile.create(disk, "y.h5", HEAD)
    with Reader.open(disk, path.name) as reader:
        regions = [reader.region(base, frame) for base, frame in reader.walk()]
        moved = [file.copy(stamp_of(i), regions[i], reader) for i in (1, 0)]
    file.seal()
    file.flush()
    file.close()
    assert [region.size for region in moved] == [regions[1].size, regions[0].size]
    assert moved[0].base != regions[1].base
    for index, epoch in read(path.with_name("y.h5")).items():
        storable.assert_same(epoch, epoch_of(index))
    with h5py.File(path.with_name("y.h5")) as h5:
        for index in range(2):
            dataset = h5[f"epoch_{index}/samples/p"]
            found = dataset[()] if packing.codec == "gzip" else undone(dataset)
            np.testing.assert_array_equal(found, epoch_of(index)["samples"]["p"])
    with Reader.open(disk, "y.h5") as reader:
        assert all(reader.is_whole(base, frame) for base, frame in reader.walk())
        assert reader.is_sealed(regions_of(disk, "y.h5"))
    disk.leave()


# ---- damage ----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=[PACKINGS[1], PACKINGS[2]], ids=str)
def small(request, path):
    """A file of one small epoch, and its region."""
    (region,) = write(path, [{"p": walk_of(2, 2, 40), "i": 7}], request.param)
    return region


def is_whole(path, data):
    path.write_bytes(data)
    disk = Disk(path.parent)
    disk.enter()
    try:
        with Reader.open(disk, path.name) as reader:
            frame = reader.frame_at(region_base(path))
            return frame is not None and reader.is_whole(region_base(path), frame)
    finally:
        disk.leave()


def region_base(path):
    return 128


def test_every_wrong_byte_of_a_region_is_found(path, small):
    """Whether it is in the frame, in what HDF5 reads, in the index or in a chunk; but for the few bytes of padding."""
    good = path.read_bytes()
    assert is_whole(path, good)
    disk = Disk(path.parent)
    disk.enter()
    missed = []
    for at in range(small.base, small.end):
        data = bytearray(good)
        data[at] ^= 0x41
        if is_whole(path, data):
            missed.append(at)
    disk.leave()
    assert len(missed) < 8
    assert not any(good[at] for at in missed)


def test_reading_finds_every_wrong_byte_of_chunks_and_index(path, small):
    """Also without being asked to verify: a part of a chunk can't be brought back by itself."""
    good = path.read_bytes()
    disk = Disk(path.parent)
    disk.enter()
    index_at = small.base + small.layout.index_at
    places = [
        *range(index_at, index_at + small.layout.index_size, 3),
        *range(small.base + small.layout.size, small.end - 8),
    ]
    for at in places:
        data = bytearray(good)
        data[at] ^= 0x41
        path.write_bytes(data)
        with Reader.open(disk, path.name) as reader:
            into = np.empty((4, 40))
            with pytest.raises(Damaged, match=r"x\.h5 is damaged.*the epoch at offset 128"):
                reader.read_samples(small, 0, rows_of(None, 2, 2), into, start=0, thin=1, scratch=Scratch())
            with pytest.raises(Damaged):
                reader.read_array(small, 0, verify=False)
    disk.leave()


def copied(path, region, at):
    """Copy an epoch of which one byte was changed; returns its region in the new file."""
    data = bytearray(path.read_bytes())
    data[at] ^= 0x41
    path.write_bytes(data)
    disk = Disk(path.parent)
    disk.enter()
    file = EpochFile.create(disk, "y.h5", HEAD)
    file.append(stamp_of(9), *laid_out({"x": np.arange(3.0)}, GZIP))
    with Reader.open(disk, path.name) as reader:
        moved = file.copy(stamp_of(0), region, reader)
    file.flush()
    file.close()
    assert moved.base != region.base
    with Reader.open(disk, "y.h5") as reader:
        assert reader.region(moved.base, reader.frame_at(moved.base)) == moved
        start = region.base + region.layout.size
        assert reader._read(moved.base + moved.layout.size, region.end - start) == data[start : region.end]
    disk.leave()
    return moved


def test_what_is_damaged_stays_so_when_it_is_copied(path, small):
    """It is taken over byte by byte, with the checksums that it had: an entry of the index, or a chunk."""
    good = path.read_bytes()
    grid = small.layout.grids[0]
    index_at = small.base + small.layout.index_at
    entries = range(index_at + 42, index_at + FixedArray(grid.nchunks, grid.chunk_nbytes).size - 4)
    for at in [*entries, small.base + small.layout.size + 5]:
        path.write_bytes(good)
        moved = copied(path, small, at)
        disk = Disk(path.parent)
        disk.enter()
        with Reader.open(disk, "y.h5") as reader:
            frame = reader.frame_at(moved.base)
            with pytest.raises(Damaged):
                reader.read_array(moved, 0, verify=True)
            assert restored(reader, moved) == 7
            assert not reader.is_whole(moved.base, frame)
        disk.leave()


def restored(reader, region):
    """The small number that is stored beside the chunks."""
    return int(reader.read_array(region, 1, verify=True))


def test_an_index_that_can_be_made_again_is(path, small):
    """Of its head nothing is taken over: the copy is good."""
    moved = copied(path, small, small.base + small.layout.index_at + 5)
    disk = Disk(path.parent)
    disk.enter()
    with Reader.open(disk, "y.h5") as reader:
        np.testing.assert_array_equal(reader.read_array(moved, 0, verify=True), walk_of(2, 2, 40))
    disk.leave()


def test_a_file_that_ends_early_is_damaged(path, small):
    """Wherever it was cut off."""
    good = path.read_bytes()
    disk = Disk(path.parent)
    disk.enter()
    for end in range(small.base, small.end, 7):
        path.write_bytes(good[:end])
        with Reader.open(disk, path.name) as reader, pytest.raises(Damaged):
            reader.read_array(small, 0, verify=True)
    disk.leave()


# ---- hostile files ---------------------------------------------------------------------------------------------------


def test_what_can_be_had_from_a_file_is_bounded(path, full_size):
    """However well an epoch can be compressed, its region is long enough for it: more than that is refused."""
    (region,) = write(path, [{"p": np.zeros((2, 2, 1 << 16))}], PACKINGS[2])
    assert region.size >= (1 << 21) // MOST_PACKED > 10 * int(sum(read_tables(path, region)[0].sizes))
    disk = Disk(path.parent)
    disk.enter()
    bomb = laid_out({"p": np.zeros((2, 2, 1 << 17))}, PACKINGS[2])[0]
    with Reader.open(disk, path.name) as reader:
        for layout, size in [(bomb, region.size), (region.layout, region.size - 2048)]:
            with pytest.raises(Damaged, match="claims more"):
                reader.packed(region._replace(layout=layout, sums=(*region.sums[:-1], size)))
        with pytest.raises(Damaged, match="ends before"):
            reader.packed(region._replace(sums=(*region.sums[:-1], 1 << 62)))
    disk.leave()


def read_tables(path, region):
    at = region.base + region.layout.index_at
    return region.layout.decode_index(path.read_bytes()[at : at + region.layout.index_size])


def forged(path, region, change):
    """The region with another index, all checksums right."""
    data = bytearray(path.read_bytes())
    at = region.base + region.layout.index_at
    index = change(bytes(data[at : at + region.layout.index_size]))
    data[at : at + len(index)] = index
    path.write_bytes(data)
    return region._replace(sums=(*region.sums[:-2], data_sum(index), region.sums[-1]))


@pytest.mark.parametrize(
    ("field", "value"),
    [("addresses", 0), ("addresses", 2**64 - 1), ("addresses", 127), ("sizes", 2**23), ("sizes", 0)],
)
def test_chunks_elsewhere_are_not_read(path, small, field, value):
    """An index that leads out of its region, or to more than a chunk, is damage, though its checksum is right."""

    def change(index):
        tables = small.layout.decode_index(index)
        table = tables[0]._replace(**{field: np.full_like(getattr(tables[0], field), value)})
        return small.layout._index.encode(small.base + small.layout.index_at, {0: table})

    region = forged(path, small, change)
    disk = Disk(path.parent)
    disk.enter()
    with (
        Reader.open(disk, path.name) as reader,
        pytest.raises(Damaged, match=r"contradicts itself|isn't what was written"),
    ):
        reader.read_array(region, 0, verify=False)
    disk.leave()


@pytest.mark.parametrize("mask", [1, 2, 3, 4])
def test_chunks_that_claim_to_be_raw_are_damage(path, small, mask):
    """Such a chunk has its full length, and went through no filter at all."""

    def change(index):
        tables = small.layout.decode_index(index)
        masks = np.full_like(tables[0].masks, mask)
        return small.layout._index.encode(small.base + small.layout.index_at, {0: tables[0]._replace(masks=masks)})

    region = forged(path, small, change)
    disk = Disk(path.parent)
    disk.enter()
    with Reader.open(disk, path.name) as reader, pytest.raises(Damaged, match="contradicts itself"):
        reader.read_array(region, 0, verify=False)
    disk.leave()


ITEMS = encode_items(flatten({"p": np.zeros((2, 2, 50))})[0])


@pytest.mark.parametrize(
    "change",
    [
        {"chunks": []},
        {"chunks": [[]]},
        {"chunks": [[2, 2, 51]]},
        {"chunks": [[2, 2]]},
        {"chunks": [[0, 2, 50]]},
        {"chunks": [[2, 2, 50], []]},
        {"codec": "lzf"},
        {"level": 0},
        {"level": 23},
        {"level": "high"},
        {"shuffle": None},
        {"more": 1},
        {"items": [["p", "array", "<f8", [1 << 40, 1, 1], ""]], "chunks": [[1 << 30, 1, 1]]},
    ],
)
def test_a_description_that_makes_no_sense_is_damage(change):
    """Whatever a packed layout says, it isn't believed."""
    msgspec = pytest.importorskip("msgspec")
    good = msgspec.msgpack.decode(packed_layout(layout_of(ITEMS), Packing("gzip", 1, False)).spec)
    layout_of(msgspec.msgpack.encode(good))
    with pytest.raises(Damaged):
        layout_of(msgspec.msgpack.encode({**good, **change}))


@given(st.binary(max_size=50))
def test_any_bytes_are_no_description(tail):
    """Bytes that begin as a packed layout does, and go on as they like."""
    for first in range(0x80, 0x90):
        with pytest.raises(Damaged):
            layout_of(bytes([first]) + tail)


def test_an_epoch_without_large_arrays_is_laid_out_as_ever():
    """It has nothing that could be packed, and its layout is of the first version."""
    plain = layout_of(encode_items(flatten({"x": 1, "y": "text"})[0]))
    assert packed_layout(plain, GZIP) is plain


def test_the_memory_of_a_file_object_is_not_needed(path):
    """h5py reads a compressed file from memory as well as from a path."""
    write(path, [epoch_of(0)], GZIP)
    with h5py.File(io.BytesIO(path.read_bytes())) as file:
        np.testing.assert_array_equal(file["epoch_0/zeros"][()], np.zeros(10_000))


def test_a_file_of_nobody_is_written_as_ever(tmp_path):
    """Stats that are saved to a file of their own aren't compressed."""
    disk = Disk(tmp_path)
    disk.enter()
    file = EpochFile.create(disk, "x", FileHead(bytes(16), 0, 0, 0))
    assert not file.takes_packed
    file.flush()
    file.close()
    disk.leave()
