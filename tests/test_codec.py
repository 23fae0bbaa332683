"""Codecs: what is compressed comes back, is what HDF5's filters make of it, and can't be a bomb."""

import builtins
import io
import sys
import tracemalloc
import zlib

import h5py
import numpy as np
import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st

from posterity._format.codec import DEFAULT_LEVEL, LEVELS, Packing, check_codec, known_codecs
from posterity.errors import Damaged, MissingExtra

PACKINGS = [Packing(codec, DEFAULT_LEVEL[codec], shuffle) for codec in ("gzip", "zstd") for shuffle in (False, True)]
packings = pytest.mark.parametrize("packing", PACKINGS, ids=str)


def as_bytes(array):
    return array.reshape(-1).view(np.uint8)


def unpacked(packing, packed, nbytes, itemsize):
    return packing.unpacker(itemsize)(np.frombuffer(packed, np.uint8), nbytes)


@packings
@given(
    itemsize=st.sampled_from([1, 2, 3, 8, 16, 100]),
    n=st.integers(1, 300),
    nvalues=st.integers(1, 3),
    seed=st.integers(0, 99),
)
@example(itemsize=2, n=6, nvalues=1, seed=0)  # gzip makes as many bytes of it
def test_what_is_compressed_comes_back(packing, itemsize, n, nvalues, seed):
    """Bytes with or without any order in them, and numbers of any size."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 256, (nvalues, itemsize), np.uint8)
    raw = as_bytes(values[rng.integers(0, nvalues, n)])
    packed = packing.packer(itemsize)(raw)
    if packed is not raw:
        assert len(packed) < len(raw)
        np.testing.assert_array_equal(unpacked(packing, packed, len(raw), itemsize), raw)


@packings
def test_what_hardly_becomes_smaller_is_kept_as_it_is(packing):
    """Noise is stored raw: to bring it back would take time for nothing."""
    raw = np.random.default_rng(0).integers(0, 256, 10_000, np.uint8)
    assert packing.packer(1)(raw) is raw


@pytest.mark.parametrize("codec", LEVELS)
def test_every_level_works(codec):
    """Each level that may be asked for is one that the codec has."""
    raw = np.zeros(1000, np.uint8)
    for level in LEVELS[codec]:
        packing = Packing(codec, level, False)
        assert not unpacked(packing, packing.packer(1)(raw), 1000, 1).any()


@pytest.mark.parametrize("shuffle", [False, True])
def test_gzip_is_the_filter_of_hdf5(shuffle):
    """A chunk that libhdf5 compressed is brought back by ours."""
    array = np.repeat(np.arange(100.0), 3)
    file = io.BytesIO()
    with h5py.File(file, "w") as f:
        f.create_dataset("x", data=array, chunks=(300,), compression="gzip", shuffle=shuffle)
    with h5py.File(file) as f:
        _, packed = f["x"].id.read_direct_chunk((0,))
    raw = unpacked(Packing("gzip", 1, shuffle), packed, array.nbytes, 8)
    np.testing.assert_array_equal(raw.view(float), array)


@packings
@pytest.mark.parametrize("off", [-8, 8])
def test_another_size_is_damage(packing, off):
    """What comes to more or fewer bytes than it should is refused."""
    packed = packing.packer(8)(np.zeros(800, np.uint8))
    with pytest.raises(Damaged, match="another size"):
        unpacked(packing, packed, 800 + off, 8)


@packings
@pytest.mark.parametrize("packed", [b"", b"garbage", b"\x28\xb5\x2f\xfd", zlib.compress(bytes(80))[:9]])
def test_what_is_not_compressed_is_damage(packing, packed):
    """Anything else raises the error of damaged files, and no error of the codec's."""
    with pytest.raises(Damaged):
        unpacked(packing, packed, 80, 8)


@pytest.mark.parametrize("codec", LEVELS)
def test_a_bomb_is_not_exploded(codec):
    """A megabyte that would be a gigabyte takes no more memory than it was allowed."""
    bomb = zlib.compress(bytes(1 << 28), 9) if codec == "gzip" else zstandard.compress(bytes(1 << 28))
    unpack = Packing(codec, 1, False).unpacker(1)
    tracemalloc.start()
    try:
        with pytest.raises(Damaged):
            unpack(np.frombuffer(bomb, np.uint8), 1000)
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
    finally:
        tracemalloc.stop()


def test_a_zstd_frame_that_keeps_its_size_secret_is_refused():
    """Others may leave the size out; ours never do, and without it nothing bounds what comes out."""
    secret = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1 << 20))
    with pytest.raises(Damaged, match="another size"):
        unpacked(Packing("zstd", 1, False), secret, 1000, 1)


def test_without_the_extra_zstd_is_refused(monkeypatch):
    """The error is an ImportError, and says what to install."""
    monkeypatch.setitem(sys.modules, "zstandard", None)
    assert known_codecs() == ["gzip"]
    check_codec("gzip")
    with pytest.raises(MissingExtra, match=r"pip install 'posterity\[zstd\]'") as caught:
        check_codec("zstd")
    assert isinstance(caught.value, ImportError)


def test_nothing_is_imported_for_gzip(monkeypatch):
    """Who asks for no zstd needs none."""
    real = builtins.__import__

    def no_zstd(name, *args, **kwargs):
        assert name != "zstandard"
        return real(name, *args, **kwargs)

    monkeypatch.setitem(sys.modules, "zstandard", None)
    monkeypatch.setattr(builtins, "__import__", no_zstd)
    raw = np.zeros(100, np.uint8)
    packing = Packing("gzip", 1, True)
    assert not unpacked(packing, packing.packer(4)(raw), 100, 4).any()
