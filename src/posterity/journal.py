"""The journal: the run's one source of truth, a file of records that are appended and synced.

What is appended together is a *batch*: it is there as a whole or it never happened. A batch is

    marker (4 bytes) | length of the body (u32) | XXH3 of the body, seeded with the batch's offset (u64) | body

and its body is a MessagePack list of records. The file begins with a magic number and the format's version. A batch
at the end that isn't whole is an append that a crash cut short: it is dropped. A bad one before good ones is damage.

Up the stream: `store` appends. Down the stream: `recovery` replays.
"""

import struct
from collections.abc import Sequence
from typing import TypeAlias

import msgspec
import xxhash

from .disk import Disk
from .errors import Damaged, NewerFormat

NAME = "posterity.journal"
NEW_NAME = ".posterity.journal.new"
VERSION = 1
_MAGIC = b"POSTjrnl"
_HEADER = struct.Struct("<8sII")
_MARKER = b"\xb5\x0aPb"
_BATCH = struct.Struct("<4sIQ")


class Record(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One change of the run."""


class Began(Record, frozen=True, tag=0):
    """The run starts empty: its first record, or a reset."""

    run_id: bytes
    generation: int
    outfile_fmt: str
    burn: int
    asked_burn: int
    began_at: float


class Grouped(Record, frozen=True, tag=1):
    """From epoch `start` on, files take `epochs_per_file` epochs, the first of them goes to file `number`."""

    start: int
    number: int
    epochs_per_file: int


class Described(Record, frozen=True, tag=2):
    """A layout, numbered in the order in which they come; `spec` is what `layout.layout_of` takes."""

    spec: bytes


class Place(msgspec.Struct, frozen=True, array_like=True):
    """Where an epoch's numbers are: in file `number`, as it was after `rewrite` rewrites, from offset `base` on.

    `cut`: how many of its first samples aren't there. `sums`: a checksum of 8 bytes for each array.
    """

    number: int
    rewrite: int
    base: int
    cut: int
    layout: int
    sums: bytes


class Stored(Record, frozen=True, tag=3):
    """An epoch is in its file and synced."""

    index: int
    first: int
    nsamples: int
    nbytes: int
    place: Place


class Passed(Record, frozen=True, tag=4):
    """An epoch was burned before it was written."""

    index: int
    first: int
    nsamples: int


class Burned(Record, frozen=True, tag=5):
    """Samples before position `burn` are discarded."""

    burn: int
    asked_burn: int


class Published(Record, frozen=True, tag=6):
    """A file is complete and about to get its name; it ends before epoch `stop`. Number 0: so are all before `stop`."""

    number: int
    stop: int


class Rewritten(Record, frozen=True, tag=7):
    """A file was written anew, and is about to take the place of the old one; `places` of the epochs from `start` on.

    `filling`: more epochs will be added to it. An epoch without a place lost all its samples.
    """

    number: int
    rewrite: int
    start: int
    filling: bool
    places: list[Place | None]


class Dropped(Record, frozen=True, tag=8):
    """The files of the epochs before `stop` are about to be removed."""

    stop: int


AnyRecord: TypeAlias = Began | Grouped | Described | Stored | Passed | Burned | Published | Rewritten | Dropped
_decoder = msgspec.msgpack.Decoder(list[AnyRecord])
_encoder = msgspec.msgpack.Encoder()


def encode_header() -> bytes:
    """The first bytes of a journal."""
    return _HEADER.pack(_MAGIC, VERSION, 0)


def encode_batch(records: Sequence[Record], offset: int) -> bytes:
    """Records as the bytes of a batch that begins at `offset`."""
    body = _encoder.encode(records)
    return _BATCH.pack(_MARKER, len(body), xxhash.xxh3_64_intdigest(body, offset)) + body


def decode(data: bytes) -> tuple[list[AnyRecord], int]:
    """All records, and the offset at which the next batch belongs.

    Raises:
        NewerFormat: a later version wrote it.
        Damaged: it isn't a journal, or it was damaged before good records.
    """
    if len(data) < _HEADER.size or data[:8] != _MAGIC:
        raise Damaged(f"{NAME} isn't a journal of posterity: its first bytes are {data[:8]!r}")
    version = _HEADER.unpack_from(data)[1]
    if version > VERSION:
        raise NewerFormat(f"{NAME} has format {version}, and this posterity knows {VERSION}; use a later posterity")
    if version < 1:
        raise Damaged(f"{NAME} says that its format is {version}: its header is damaged")
    view = memoryview(data)
    records, end = _decode_batches(view, 0, _HEADER.size)
    _refuse_later_batches(data, view, end)
    return records, end


def _decode_batches(view: memoryview, start: int, offset: int) -> tuple[list[AnyRecord], int]:
    """The whole batches from `offset` of the file on, and where they end; `start`: where the view is in the file."""
    records: list[AnyRecord] = []
    while (body := _body_at(view, offset, start)) is not None:
        try:
            records += _decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Damaged(f"{NAME} holds a record at offset {offset} that makes no sense: {error}") from error
        offset += _BATCH.size + len(body)
    return records, offset


def _body_at(view: memoryview, offset: int, start: int = 0) -> memoryview | None:
    """The body of the batch at an offset of the file; None if there is no whole one."""
    at = offset - start
    if len(view) - at < _BATCH.size:
        return None
    marker, length, digest = _BATCH.unpack_from(view, at)
    body = view[at + _BATCH.size : at + _BATCH.size + length]
    if marker != _MARKER or len(body) < length or xxhash.xxh3_64_intdigest(body, offset) != digest:
        return None
    return body


def _refuse_later_batches(data: bytes, view: memoryview, end: int) -> None:
    at = data.find(_MARKER, end + 1)
    while at != -1:
        if _body_at(view, at) is not None:
            raise Damaged(
                f"{NAME} is damaged at offset {end}: good records follow at {at}. The samples are in the files; "
                f"move the journal away to have it rebuilt from them"
            )
        at = data.find(_MARKER, at + 1)


class Journal:
    """An open journal. One thread appends."""

    def __init__(self, disk: Disk, fd: int, end: int) -> None:
        self._disk = disk
        self._fd = fd
        self.end = end
        self.is_broken = False

    @classmethod
    def create(cls, disk: Disk, records: Sequence[Record]) -> "Journal":
        """A new journal that begins with these records, put in the place of one that is there, in one step."""
        header = encode_header()
        data = header + encode_batch(records, len(header))
        fd = disk.create(NEW_NAME)
        try:
            disk.reserve(fd, 0, len(data))
            disk.write_at(fd, 0, [data])
            disk.sync(fd)
            disk.replace(NEW_NAME, NAME)
            disk.sync_names()
        except OSError:
            disk.close(fd)
            raise
        return cls(disk, fd, len(data))

    @classmethod
    def open(cls, disk: Disk, end: int) -> "Journal":
        """Go on with a journal whose good records end at `end`; what a crash left behind them is cut off.

        It is synced: the last records may be those of a process that was killed before it could.
        """
        fd = disk.open(NAME, write=True)
        try:
            if disk.size(fd) > end:
                disk.truncate(fd, end)
            disk.sync(fd)
        except OSError:
            disk.close(fd)
            raise
        return cls(disk, fd, end)

    def append(self, records: Sequence[Record]) -> None:
        """Add records as one batch. They survive a power cut on return.

        Raises:
            OSError: nothing was added. After an error other than a full disk the file isn't to be written again:
                `is_broken`, and `create` must make a new one.
        """
        data = encode_batch(records, self.end)
        try:
            self._disk.write_at(self._fd, self.end, [data])
            self._disk.sync_data(self._fd)
        except OSError:
            self.is_broken = True
            raise
        self.end += len(data)

    def close(self) -> None:
        """Give the file back."""
        self._disk.close(self._fd)


def read(disk: Disk) -> bytes | None:
    """The journal's bytes, or None if there is none."""
    try:
        fd = disk.open(NAME)
    except FileNotFoundError:
        return None
    try:
        data = bytearray(disk.size(fd))
        return bytes(data[: disk.read_at(fd, 0, memoryview(data))])
    finally:
        disk.close(fd)


class Follower:
    """Reads a journal that somebody else may be writing, each time only what is new."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._fd: int | None = None
        self._end = 0

    def read_new(self) -> tuple[bool, list[AnyRecord]]:
        """The records since the last time; True with all of them if it is another journal than then.

        A batch that isn't whole is being written: it comes the next time.

        Raises:
            FileNotFoundError: there is no journal.
            Damaged, NewerFormat: see `decode`.
        """
        fd = self._disk.open(NAME)
        if self._fd is not None and self._disk.is_same(fd, self._fd):
            self._disk.close(fd)
            data = self._read(self._fd, self._end)
            records, self._end = _decode_batches(memoryview(data), self._end, self._end)
            return False, records
        self.close()
        self._fd = fd  # kept open: as long as it is, no other journal can look like this one
        records, self._end = decode(self._read(fd, 0))
        return True, records

    def _read(self, fd: int, start: int) -> bytes:
        data = bytearray(max(0, self._disk.size(fd) - start))
        return bytes(data[: self._disk.read_at(fd, start, memoryview(data))])

    def close(self) -> None:
        """Let go of the file; idempotent."""
        if self._fd is not None:
            self._disk.close(self._fd)
            self._fd = None
