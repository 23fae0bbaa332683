"""Codecs: how the bytes of a chunk are made fewer, and come back as they were.

They are those that HDF5's filters have, so that others read what we write: deflate is filter 1 ("gzip"), Zstandard the
registered filter 32015, shuffle filter 2. libhdf5 runs its filters inside its one lock. These here run without any
lock, and without the GIL.

Up the stream: whoever opens a backend says which one. Down the stream: `chunks`.
"""

import zlib
from collections.abc import Callable
from importlib import import_module
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from posterity.errors import Damaged, MissingExtra

Bytes: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]
Codec = Literal["gzip", "zstd"]
LEVELS = {"gzip": range(1, 10), "zstd": range(1, 23)}
DEFAULT_LEVEL = {"gzip": 1, "zstd": 1}
_SHUFFLE = 2
_FILTERS: dict[Codec, int] = {"gzip": 1, "zstd": 32015}
_LEAST_SAVED = 16  # a chunk of which not even this part is saved is read faster as it is


class Packing(NamedTuple):
    """How chunks are compressed. `shuffle`: the first bytes of all numbers come first, then the second, and so on."""

    codec: Codec
    level: int
    shuffle: bool

    def __str__(self) -> str:
        return f"{self.codec}, level {self.level}, {'with' if self.shuffle else 'without'} shuffle"

    def filters(self, itemsize: int) -> list[tuple[int, int]]:
        """HDF5's filters for numbers of a size, in the order in which they are applied, each with its one parameter."""
        first = [(_SHUFFLE, itemsize)] if self._shuffles(itemsize) else []
        return [*first, (_FILTERS[self.codec], self.level)]

    def packer(self, itemsize: int) -> Callable[[Bytes], bytes | Bytes]:
        """A function that compresses, for one thread. What hardly becomes smaller comes back as it was."""
        compress = _compressor(self.codec, self.level)

        def pack(raw: Bytes) -> bytes | Bytes:
            packed = compress(_shuffled(raw, itemsize) if self._shuffles(itemsize) else raw)
            return packed if len(raw) - len(packed) >= max(1, len(raw) // _LEAST_SAVED) else raw

        return pack

    def unpacker(self, itemsize: int) -> Callable[[Bytes, int], Bytes]:
        """A function that undoes it, for one thread; it must come to so many bytes.

        Raises:
            Damaged: it can't be undone, or comes to another number of bytes. No more memory than for these is taken.
        """
        decompress = _decompressor(self.codec)

        def unpack(packed: Bytes, nbytes: int) -> Bytes:
            raw = np.frombuffer(decompress(packed, nbytes), np.uint8)
            return _unshuffled(raw, itemsize) if self._shuffles(itemsize) else raw

        return unpack

    def _shuffles(self, itemsize: int) -> bool:
        return self.shuffle and itemsize > 1


def check_codec(codec: str) -> None:
    """Look whether a codec can be used here.

    Raises:
        MissingExtra: a package is missing; the message says how to install it.
    """
    if codec == "zstd":
        _zstandard()


def known_codecs() -> list[Codec]:
    """The codecs that can be used here."""
    try:
        check_codec("zstd")
    except MissingExtra:
        return ["gzip"]
    return ["gzip", "zstd"]


def _zstandard() -> Any:  # the module
    try:
        return import_module("zstandard")
    except ImportError as error:
        raise MissingExtra("zstd needs the package zstandard: pip install 'posterity[zstd]'") from error


def _compressor(codec: Codec, level: int) -> Callable[[Bytes], bytes]:
    match codec:
        case "zstd":
            compress: Callable[[Bytes], bytes] = _zstandard().ZstdCompressor(level=level).compress
            return compress
        case "gzip":
            return lambda raw: zlib.compress(raw.data, level)


def _decompressor(codec: Codec) -> Callable[[Bytes, int], bytes]:
    match codec:
        case "zstd":
            return _zstd_decompressor()
        case "gzip":
            return _inflated


def _zstd_decompressor() -> Callable[[Bytes, int], bytes]:
    zstandard = _zstandard()
    decompressor = zstandard.ZstdDecompressor()

    def decompress(packed: Bytes, nbytes: int) -> bytes:
        try:
            if zstandard.frame_content_size(packed) != nbytes:  # it would take as much memory as the frame asks for
                raise Damaged("a chunk comes to another size")
            raw: bytes = decompressor.decompress(packed, max_output_size=nbytes)
        except zstandard.ZstdError as error:
            raise Damaged(f"a chunk can't be decompressed: {error}") from error
        return raw

    return decompress


def _inflated(packed: Bytes, nbytes: int) -> bytes:
    stream = zlib.decompressobj()
    try:
        raw = stream.decompress(packed.data, nbytes + 1)
    except zlib.error as error:
        raise Damaged(f"a chunk can't be decompressed: {error}") from error
    if len(raw) != nbytes or not stream.eof:
        raise Damaged("a chunk comes to another size")
    return raw


def _shuffled(raw: Bytes, itemsize: int) -> Bytes:
    return np.ascontiguousarray(raw.reshape(-1, itemsize).T).reshape(-1)


def _unshuffled(raw: Bytes, itemsize: int) -> Bytes:
    return np.ascontiguousarray(raw.reshape(itemsize, -1).T).reshape(-1)
