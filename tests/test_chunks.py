"""How large arrays are cut into chunks, and the index that says where each chunk is."""

import math

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from posterity._format import hdf5
from posterity._format.chunks import MOST_CHUNK, TARGET, Grid, Index, Note, chunk_shape, following

LENGTHS = st.integers(1, 10) | st.integers(1, 1_000_000)


@pytest.mark.parametrize(
    ("shape", "itemsize", "expected"),
    [
        ((64, 10, 1000), 8, (6, 10, 1000)),  # several whole chains
        ((4, 10, 200_000), 8, (1, 10, 6452)),  # a stretch of one chain, all its dims
        ((4, 1, 1_000_000), 8, (1, 1, 62_500)),
        ((2, 5000, 1000), 8, (1, 65, 1000)),  # some dims of one chain
        ((1_000_000,), 8, (62_500,)),
        ((3, 300_000), 4, (1, 100_000)),
        ((10, 200, 200), 8, (1, 200, 200)),
        ((20_000,), 1, (20_000,)),
        ((10,), 1 << 19, (1,)),
        ((10,), (1 << 19) + 1, ()),
        ((), 8, ()),
    ],
)
def test_the_shape_of_a_chunk(shape, itemsize, expected):
    """Whole chains if it can be, else a stretch of one."""
    assert chunk_shape(shape, itemsize) == expected


@given(st.lists(LENGTHS, min_size=1, max_size=5), st.sampled_from([1, 2, 8, 16, 1000, 1 << 19]))
def test_a_chunk_is_never_large_and_seldom_small(shape, itemsize):
    """Of an array of many chunks each holds a quarter of what it may, at least."""
    chunk = chunk_shape(tuple(shape), itemsize)
    assert all(0 < part <= length for part, length in zip(chunk, shape, strict=True))
    nbytes = itemsize * math.prod(chunk)
    assert nbytes <= TARGET
    assert nbytes >= min(TARGET // 4, itemsize * math.prod(shape))


SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=7)


@st.composite
def grids(draw, shapes=SHAPES):
    shape = draw(shapes)
    chunk = tuple(draw(st.integers(1, length)) for length in shape)
    return Grid(shape, draw(st.sampled_from([1, 2, 3, 8, 16])), chunk)


def numbers(grid):
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 256, grid.nbytes, np.uint8)
    return raw.view(np.dtype((np.void, grid.itemsize))).reshape(grid.shape)


@given(grids())
def test_an_array_is_the_sum_of_its_chunks(grid):
    """Taken apart and put together again it is what it was; each chunk has the full size."""
    array = numbers(grid)
    again = np.zeros_like(array)
    for k in range(grid.nchunks):
        raw = grid.take(array, k)
        assert raw.nbytes == grid.chunk_nbytes
        grid.put(again, k, raw)
    assert again.tobytes() == array.tobytes()


def test_bytes_between_fields_are_kept():
    """NumPy doesn't copy them; our checksum counts them."""
    array = np.frombuffer(np.random.default_rng(0).bytes(160), np.dtype([("a", "u1"), ("b", "<f8")], align=True))
    grid = Grid((10,), 16, (4,))
    again = np.zeros(10, array.dtype)
    for k in range(3):
        grid.put(again, k, grid.take(array, k))
    assert again.tobytes() == array.tobytes()


@given(grids(hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=9)), st.data())
def test_samples_come_from_the_chunks_that_have_them(grid, data):
    """Any chains, from any sample to any other, thinned; no chunk is read that has none of them."""
    nchain, dim, nsamples = grid.shape
    chains = data.draw(st.lists(st.integers(0, nchain - 1), max_size=8))
    start, thin = data.draw(st.integers(0, nsamples - 1)), data.draw(st.integers(1, 10))
    array = numbers(grid)
    samples = range(start, nsamples, thin)[: data.draw(st.integers(1, 10))]
    expected = array[chains][:, :, samples]
    into = np.zeros(expected.shape, array.dtype)
    chosen = list(grid.with_samples(chains, start, thin, len(samples)))
    for k in chosen:
        grid.put_samples(into, k, grid.take(array, k), chains, start, thin)
    assert into.tobytes() == expected.tobytes()
    needed = {
        tuple(i // part for i, part in zip((chain, row, sample), grid.chunk, strict=True))
        for chain in chains for row in range(dim) for sample in samples
    }  # fmt: skip
    assert {tuple(map(int, np.unravel_index(k, grid.counts))) for k in chosen} == needed
    assert len(chosen) == len(needed)


@given(st.integers(0, 50), st.integers(0, 50), st.integers(1, 9))
def test_following(at, start, thin):
    """The first of those that are taken which isn't before a sample."""
    assert following(at, start, thin) == next(i for i in range(start, 200, thin) if i >= at)


@pytest.mark.parametrize("chunk", [(), (2, 2), (0,), (11,), (-1,)])
def test_chunks_that_do_not_fit_are_refused(chunk):
    """A file may say anything."""
    with pytest.raises(ValueError, match="can't be cut"):
        Grid((10,), 8, chunk)


def test_chunks_that_are_too_large_are_refused():
    """Whoever reads a chunk has it in memory as a whole."""
    with pytest.raises(ValueError, match="larger than"):
        Grid((MOST_CHUNK,), 2, (MOST_CHUNK,))


# ---- the index -------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 30), min_size=1, max_size=3), st.integers(1, MOST_CHUNK), st.data())
def test_the_index_tells_what_it_was_told(counts, chunk_nbytes, data):
    """Of each chunk where it is, how long, whether it is compressed, and its checksum."""
    grids = {2 * i: Grid((n * chunk_nbytes,), 1, (chunk_nbytes,), 1 + i % 2) for i, n in enumerate(counts)}
    index = Index(grids)
    notes = [
        Note(data.draw(st.integers(0, chunk_nbytes)), data.draw(st.booleans()), data.draw(st.integers(0, 2**64 - 1)))
        for _ in range(sum(counts))
    ]
    encoded = index.encode(1000, index.tables(5000, notes))
    assert len(encoded) == index.size
    at, left = 5000, iter(notes)
    for i, table in index.decode(encoded).items():
        for k, note in zip(range(grids[i].nchunks), left, strict=False):
            assert (table.addresses[k], table.sizes[k], table.sums[k]) == (at, note.nbytes, note.sum)
            assert table.masks[k] == ((1, 3)[i // 2 % 2] if note.is_raw else 0)
            at += note.nbytes


@pytest.mark.parametrize("nchunks", [1, 7, 1024, 1025, 3000])
@pytest.mark.parametrize("shuffle", [False, True])
def test_headers_and_index_are_those_of_libhdf5(tmp_path, nchunks, shuffle):
    """Byte by byte what it writes itself, as long as it doesn't write its index in pages."""
    path = tmp_path / "x.h5"
    with h5py.File(path, "w", libver=("v110", "v110")) as file:
        dataset = file.create_dataset("x", (2 * nchunks,), "<f8", chunks=(2,), compression="gzip", compression_opts=3, shuffle=shuffle)  # fmt: skip
        dataset[...] = np.arange(2.0 * nchunks)
        found = [dataset.id.get_chunk_info(k) for k in range(nchunks)]
    data = path.read_bytes()
    filters = [(2, 8), (1, 3)] if shuffle else [(1, 3)]
    assert hdf5._pipeline(filters) in data
    layout = hdf5._in_chunks(hdf5.Chunked((2,), nchunks, filters), 8)
    if nchunks == 1:  # libhdf5 has no index then; a reader takes one all the same
        return
    address = data.find(b"FAHD")
    assert layout[4:-1] in data
    if nchunks > 1024:
        return
    assert layout[4:] + address.to_bytes(8, "little") in data
    table = hdf5.ChunkTable(
        *(np.array([getattr(one, name) for one in found]) for name in ("byte_offset", "size", "filter_mask"))
    )
    array = hdf5.FixedArray(nchunks, 16)
    block = data.find(b"FADB")
    mine = array.encode(address, table)
    assert mine[:16] == data[address : address + 16]
    assert mine[16 + 12 + 14 : -4] == data[block + 14 : block + 14 + len(mine) - 16 - 12 - 14 - 4]
