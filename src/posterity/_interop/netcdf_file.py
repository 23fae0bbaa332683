"""A netCDF4 file that is written. Needs the extra `netcdf`.

libhdf5 can take the process with it when a write fails, so it writes through a file of ours, which keeps errors from
it and raises them afterwards.

Up the stream: `export` says what to write.
"""

import errno
import io
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np

from posterity._reading.variables import Plain
from posterity._system.arrays import Array
from posterity.errors import MissingExtra

try:
    import h5netcdf
except ImportError as error:
    raise MissingExtra("netCDF needs the package h5netcdf: pip install 'posterity[netcdf]'") from error

_METADATA_BYTES = 1 << 20


class NetcdfFile:
    """A new netCDF4 file. Leaving its `with` writes what is left and syncs it.

    `level`: gzip's; None: no compression. `nbytes`: of all numbers, where that is known; room for them is reserved.
    """

    chunk_bytes = 1 << 20  # what HDF5 keeps of a variable in memory

    def __init__(self, path: Path, level: int | None, nbytes: int | None) -> None:
        if level is not None and not 1 <= level <= 9:
            raise ValueError(f"compression must be gzip's level, 1 to 9, got {level}")
        self._level = level
        self._disk = _Surface(path, 0 if nbytes is None else nbytes + _METADATA_BYTES)
        try:
            self._file = h5netcdf.File(self._disk, "w")
        except BaseException:
            self._disk.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._close(is_whole=kind is None)
        finally:
            self._disk.close()

    def _close(self, *, is_whole: bool) -> None:
        try:
            self._file.close()
        except (OSError, RuntimeError):
            if is_whole and self._disk.error is None:
                raise
        if is_whole:
            self._disk.check()
            self._disk.finish()

    def group(self, name: str, attributes: Mapping[str, Plain]) -> None:
        """Make a group."""
        self._file.create_group(name).attrs.update(attributes)
        self._disk.check()

    def define(
        self, group: str, name: str, dims: Mapping[str, int], like: Array, attributes: Mapping[str, Plain], chunk: int
    ) -> None:
        """Make a variable; see `export.Sink`."""
        there = self._file[group]
        for dim, length in dims.items():
            if dim not in there.dimensions:
                there.dimensions[dim] = length
        options: dict[str, Any] = {}
        if self._level is not None and np.prod([*dims.values()]) > 0:
            shape = tuple(chunk if dim == "draw" else length for dim, length in dims.items())
            options = {"chunks": shape, "compression": "gzip", "compression_opts": self._level}
        variable = there.create_variable(name, tuple(dims), _netcdf_dtype(like.dtype), **options)
        variable.attrs.update(attributes)
        if like.dtype.kind == "b":
            variable.attrs["dtype"] = "bool"  # so xarray knows it again
        self._disk.check()

    def write(self, group: str, name: str, where: tuple[slice, ...], values: Array) -> None:
        """Store some of a variable's numbers.

        Raises:
            OSError: the disk is full, or broken.
        """
        if values.dtype.kind == "U":
            values = values.astype(object)
        elif (dtype := _netcdf_dtype(values.dtype)) != values.dtype:
            values = values.astype(dtype)
        self._file[group][name][where] = np.ascontiguousarray(values)
        self._disk.check()


def _netcdf_dtype(dtype: "np.dtype[np.generic]") -> Any:
    """The nearest that netCDF has."""
    if dtype.kind == "U":
        return h5py.string_dtype()
    if dtype.kind == "b":
        return np.dtype(np.int8)
    if dtype == np.float16:
        return np.dtype(np.float32)
    return dtype.newbyteorder("=")


class _Surface(io.RawIOBase):
    """A file as libhdf5 sees it: one whose disk never fails. What did fail is kept in `error`."""

    def __init__(self, path: Path, nbytes: int) -> None:
        self.error: BaseException | None = None
        self._at = 0
        self._size = 0  # as libhdf5 sees it: room that is reserved doesn't count
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        if nbytes:
            try:
                os.posix_fallocate(self._fd, 0, nbytes)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    self.close()
                    raise

    def check(self) -> None:
        """Raise what failed."""
        if self.error is not None:
            raise self.error

    def finish(self) -> None:
        """Give back room that nobody needed, and wait until all survives a power cut."""
        os.ftruncate(self._fd, self._size)
        os.fsync(self._fd)

    def close(self) -> None:
        """Give the descriptor back."""
        if not self.closed:
            os.close(self._fd)
        super().close()

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_CUR:
            offset += self._at
        elif whence == os.SEEK_END:
            offset += self._size
        self._at = offset
        return offset

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        try:
            n = os.preadv(self._fd, [view], self._at)
        except BaseException as error:  # noqa: BLE001  # a Ctrl-C too: it is raised by `check`
            self._note(error)
            n = len(view)
        self._at += n
        return n

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        done = 0
        try:
            while done < len(view) and self.error is None:
                done += os.pwrite(self._fd, view[done:], self._at + done)
        except BaseException as error:  # noqa: BLE001  # a Ctrl-C too: it is raised by `check`
            self._note(error)
        self._at += len(view)
        self._size = max(self._size, self._at)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        self._size = size = self._at if size is None else size
        try:
            os.ftruncate(self._fd, size)
        except BaseException as error:  # noqa: BLE001  # a Ctrl-C too: it is raised by `check`
            self._note(error)
        return size

    def _note(self, error: BaseException) -> None:
        if self.error is None:
            self.error = error
