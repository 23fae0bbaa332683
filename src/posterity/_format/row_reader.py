"""Rows of one array in a file: short ones many at a time, long ones each by itself, all of them for a checksum.

A row is one dimension of one chain, see `rows`. What is read goes through memory that stays in the CPU's cache, or
straight to where it belongs.

Down the stream: `file_reader` knows where in a file the arrays are.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import xxhash

from posterity._system.aligned import empty_bytes
from posterity._system.arrays import Array
from posterity._system.disk import Disk
from posterity.errors import Damaged

from .checksum import as_bytes, data_sum
from .rows import Rows, overlap, pieces_of

_SLAB = 1 << 20
_WORTH_SKIPPING = 1 << 15  # bytes that take longer to copy than a call to the system
LONG_ROW = 1 << 15  # bytes that the system may as well put where they belong


class Scratch:
    """Memory that what is read passes through, again and again. One for each thread."""

    def __init__(self) -> None:
        self._memory: Array = np.empty(0, np.uint8)

    def take(self, nbytes: int) -> Array:
        """So many bytes; what was taken before is gone."""
        if self._memory.nbytes < nbytes:
            self._memory = empty_bytes(max(nbytes, _SLAB))
        return self._memory[:nbytes]


class Place(NamedTuple):
    """Where an array's rows are in the file, and which samples of each row are wanted: `n` of `start::thin`."""

    offset: int
    dtype: "np.dtype[np.generic]"
    nsamples: int
    start: int
    thin: int
    n: int

    @property
    def stop(self) -> int:
        """The sample after the last one that is wanted."""
        return self.start + (self.n - 1) * self.thin + 1

    @property
    def row_bytes(self) -> int:
        """How far each row is from the next."""
        return self.nsamples * self.dtype.itemsize

    @property
    def skipped_bytes(self) -> int:
        """What nobody asked for at the head and at the end of each row."""
        return self.row_bytes - (self.stop - self.start) * self.dtype.itemsize

    @property
    def is_worth_a_call(self) -> bool:
        """Whether each row is read by itself: much of it is left out, or it is long and goes where it belongs."""
        if self.row_bytes > _SLAB or self.skipped_bytes >= _WORTH_SKIPPING:
            return True
        return self.thin == 1 and self.row_bytes - self.skipped_bytes >= LONG_ROW

    def chosen(self, values: Array, column: int) -> tuple[Array, int]:
        """What is wanted of the samples from `column` on, and which column of the result comes first in it."""
        done = max(0, -(-(column - self.start) // self.thin))
        return values[:, self.start + done * self.thin - column : max(0, self.stop - column) : self.thin], done


class RowReader:
    """Reads rows from an open file into memory that it is given."""

    def __init__(self, disk: Disk, fd: int, name: str) -> None:
        self._disk = disk
        self._fd = fd
        self._name = name

    def fill(self, offset: int, memory: Array) -> None:
        """Read as many bytes as there is memory.

        Raises:
            Damaged: the file ends before.
        """
        if self._disk.read_at(self._fd, offset, memory.data) < memory.nbytes:
            raise Damaged(f"{self._name} ended while it was read, at offset {offset}")

    def fill_checked(self, offset: int, memory: Array) -> int:
        """Read piece by piece, each of which passes through the checksum while it is in the CPU's cache."""
        if memory.nbytes <= _SLAB:
            self.fill(offset, memory)
            return data_sum(memory.data)
        digest = xxhash.xxh3_64()
        for done in range(0, memory.nbytes, _SLAB):
            piece = memory[done : done + _SLAB]
            self.fill(offset + done, piece)
            digest.update(piece.data)
        return digest.intdigest()

    def copy(self, place: Place, rows: Sequence[Rows], into: Array, scratch: Scratch) -> None:
        """The samples that are wanted, of the rows that are; `rows` says which rows of `into` they become.

        Raises:
            Damaged: the file ends before.
        """
        if place.is_worth_a_call:
            self._copy_rows(place, rows, into, scratch)
        else:
            self._copy_slabs(place, rows, into, scratch)

    def _copy_slabs(self, place: Place, rows: Sequence[Rows], into: Array, scratch: Scratch) -> None:
        """Many short rows at a time. The way through memory that is in the CPU's cache costs nothing."""
        for at, first, count in pieces_of(rows, max(1, _SLAB // place.row_bytes)):
            values = self._values(place.offset + first * place.row_bytes, count, place, scratch)
            into[at : at + count] = values[:, place.start : place.stop : place.thin]

    def _copy_rows(self, place: Place, rows: Sequence[Rows], into: Array, scratch: Scratch) -> None:
        """One row after the other, without what comes before the first sample and after the last."""
        offset, row_bytes = place.offset + place.start * place.dtype.itemsize, place.row_bytes
        if place.thin == 1 and into.dtype == place.dtype:
            for at, first, count in rows:
                begin = offset + first * row_bytes
                mine = [row.data for row in into[at : at + count].view(np.uint8)]
                if not self._disk.read_rows(self._fd, begin, row_bytes, mine):
                    raise Damaged(f"{self._name} ended while it was read, at offset {begin}")
            return
        step = max(1, _SLAB // (place.thin * place.dtype.itemsize)) * place.thin
        for at, first, count in rows:
            for k in range(count):
                for column in range(place.start, place.stop, step):
                    n = min(step, place.stop - column)
                    begin = place.offset + (first + k) * row_bytes + column * place.dtype.itemsize
                    values = self._values(begin, 1, place, scratch, n)[:, :: place.thin]
                    done = (column - place.start) // place.thin
                    into[at + k : at + k + 1, done : done + values.shape[1]] = values

    def copy_checked(self, place: Place, nrows: int, rows: Sequence[Rows], into: Array, scratch: Scratch) -> int:
        """All rows in their order, through the checksum, while they are in the CPU's cache; returns that."""
        digest = xxhash.xxh3_64()
        most = max(1, _SLAB // place.row_bytes)
        step = max(1, _SLAB // place.dtype.itemsize)
        for first in range(0, nrows, most):
            count = min(most, nrows - first)
            for column in range(0, place.nsamples, step):
                n = min(step, place.nsamples - column)
                begin = place.offset + first * place.row_bytes + column * place.dtype.itemsize
                values = self._values(begin, count, place, scratch, n)
                digest.update(as_bytes(values))
                chosen, done = place.chosen(values, column)
                if chosen.shape[1]:
                    for run in overlap(rows, first, count):
                        mine = chosen[run.first - first : run.first - first + run.n]
                        into[run.at : run.at + run.n, done : done + mine.shape[1]] = mine
        return digest.intdigest()

    def _values(self, offset: int, nrows: int, place: Place, scratch: Scratch, nsamples: int | None = None) -> Array:
        """Whole rows, or a part of one, in memory that is used again."""
        n = place.nsamples if nsamples is None else nsamples
        memory = scratch.take(nrows * n * place.dtype.itemsize)
        self.fill(offset, memory)
        return memory.view(place.dtype).reshape(nrows, n)
