"""Small epochs that are encoded together have the bytes that they have one by one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import storable
from fixture_epochs import EPOCHS
from posterity import DefaultBackend, open_run
from posterity._format.batch_encoder import encode_alike, most_together
from posterity._format.checksum import as_bytes, data_sum
from posterity._format.file_writer import EpochFile
from posterity._format.flatten import flatten
from posterity._format.frame import Stamp
from posterity._format.layout import LARGE, encode_packed, layout_of
from posterity._format.lookup3 import _worked_out_of_each, checksums
from posterity._format.schema import encode_items

RUN_ID = bytes(range(16))


def laid_out(epoch, n):
    """The layout of an epoch, and the arrays of `n` like it that differ in each byte."""
    items, leaves = flatten(epoch)
    rng = np.random.default_rng(n)
    epochs = []
    for _ in range(n):
        arrays = [np.empty(leaf.shape, leaf.dtype) for leaf in map(storable.to_memory, leaves)]
        for array in arrays:
            as_bytes(array)[:] = rng.bytes(array.nbytes)
        epochs.append(arrays)
    return layout_of(encode_items(items)), epochs


def one_by_one(layout, base, first, epochs):
    """The same epochs as each is encoded for itself."""
    parts = []
    for i, arrays in enumerate(epochs):
        stamp = first._replace(epoch=first.epoch + i, first=first.first + i * first.nsamples)
        head = layout.encode_head(base + i * layout.size, stamp, arrays, [data_sum(array) for array in arrays])
        parts.append(bytes(head).ljust(layout.size, b"\0"))
    return b"".join(parts)


def assert_alike(epoch, n, base=128, first=7):
    """Both ways lead to the same bytes and checksums."""
    layout, epochs = laid_out(epoch, n)
    stamp = Stamp(RUN_ID, 2, first, 1000 * first, 10, 0)
    memory, sums = encode_alike(layout, base, stamp, epochs)
    assert memory == one_by_one(layout, base, stamp, epochs)
    assert sums.tolist() == [[data_sum(array) for array in arrays] for arrays in epochs]


TABLE = np.zeros(3, [("name", "S50"), ("incycle", "<i8"), ("weight", "<f8")])
CASES = [
    pytest.param({"samples": {"p": np.zeros((4, 3, 10))}}, id="only p"),
    pytest.param({"samples": {"p": np.zeros((4, 3, 1), "f4")}}, id="a size that is no multiple of 8"),
    pytest.param(EPOCHS[1], id="all kinds of items"),
    pytest.param({"cycle": TABLE, "class": "a.b", "empty": "", "words": ["a", "\u03b2"]}, id="tables and text"),
    pytest.param({"a": np.zeros(0), "b": np.zeros((2, 0, 3), TABLE.dtype), "c": 1.0}, id="arrays without elements"),
    pytest.param({"n": 1, "x": 2.0, "is": True, "z": 1j, "big": 2**80, "none": None}, id="scalars"),
]


@pytest.mark.parametrize("n", [1, 2, 5, 100])
@pytest.mark.parametrize("epoch", CASES)
def test_together_and_one_by_one_give_the_same_bytes(epoch, n):
    """However many there are, and whatever an epoch holds."""
    assert_alike(epoch, n)


@given(
    storable.EPOCHS.filter(lambda epoch: any(item.is_array for item in flatten(epoch)[0])),
    st.integers(1, 6),
    st.integers(0, 2**40).map(lambda n: n * 8),
    st.integers(0, 2**40),
)
@settings(max_examples=60)
def test_any_epochs_have_the_same_bytes_anywhere(epoch, n, base, first):
    """Epochs that hypothesis thinks of, at any place of a file and of the run."""
    assert_alike(epoch, n, base, first)


def test_what_is_kept_for_later_depends_on_place_and_number():
    """Templates that were joined for other epochs aren't taken for those of these."""
    for base, n in [(128, 5), (136, 5), (128, 6), (128, 5)]:
        assert_alike(EPOCHS[0], n, base)


def test_checksums_of_rows_can_be_worked_out():
    """Where libhdf5's function can't be found, ours gives the same for each row."""
    rows = np.random.default_rng(0).integers(0, 256, (7, 300), np.uint8)
    for start, end in [(0, 300), (3, 250), (17, 18)]:
        assert checksums(rows, start, end) == _worked_out_of_each(rows, start, end)


def test_what_is_large_or_packed_goes_one_by_one():
    """Large arrays begin at pages, and packed ones anywhere: such epochs aren't encoded together."""
    small, _ = laid_out({"p": np.zeros(10)}, 1)
    large, _ = laid_out({"p": np.zeros(LARGE, "u1")}, 1)
    many, _ = laid_out({f"p{i}": np.zeros(LARGE - 1, "u1") for i in range(5)}, 1)
    packing = ("gzip", 1, True)
    assert most_together(small) > 100
    assert [most_together(layout) for layout in (large, many)] == [0, 0]
    assert most_together(layout_of(encode_packed(large, packing))) == 0


def test_a_file_is_the_same_either_way(disk):
    """What is added together and what is added one by one makes the same file, sealed and all."""
    layout, epochs = laid_out(EPOCHS[2], 9)
    first = Stamp(storable.HEAD.run_id, storable.HEAD.generation, 3, 30, 10, 0)
    together, alone = (EpochFile.create(disk, name, storable.HEAD) for name in ("together", "alone"))
    bases, sums = together.append_alike(first, layout, epochs)
    for i, (arrays, base) in enumerate(zip(epochs, bases, strict=True)):
        region = alone.append(first._replace(epoch=3 + i, first=30 + 10 * i), layout, arrays)
        assert (region.base, region.sums) == (base, tuple(sums[i].tolist()))
    for file in (together, alone):
        file.seal()
        file.sync()
        file.close()
    assert (disk.folder / "together").read_bytes() == (disk.folder / "alone").read_bytes()


def test_a_run_of_changing_epochs_is_stored_as_it_was(tmp_path):
    """Equal epochs beside others, cut ones and burned ones: each is read as it was ingested, in a run opened again."""
    sizes = [4] * 9 + [5, 4, 6] + [4] * 6 + [3000] + [5] * 11
    epochs = [{"samples": {"p": np.full((2, 3, n), float(i))}, "note": "text"} for i, n in enumerate(sizes)]
    with DefaultBackend(outdir=tmp_path, epochs_per_file=7, inmem_epochs=100) as backend:
        for epoch in epochs:
            backend.ingest(epoch)
        backend.set_burn(21)
    with open_run(tmp_path) as run:
        for i in range(6, len(epochs)):
            assert np.array_equal(run.get(i)["samples"]["p"], epochs[i]["samples"]["p"])
        assert run.get_samples()["p"].shape == (2, 3, sum(sizes) - 21)
    assert DefaultBackend.read_epoch(tmp_path / "epochs_1.h5", 5)["samples"]["p"].shape == (2, 3, 3)
