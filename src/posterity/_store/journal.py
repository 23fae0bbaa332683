"""The journal: the run's one source of truth, a file of records that are appended and synced.

What is appended together is a *batch*: it is there as a whole or it never happened. A batch is

    marker (4 bytes) | length of the body (u32) | XXH3 of the body, seeded with the batch's offset (u64) | body

and its body is a MessagePack list of records. The file begins with a magic number and the format's version. A batch
at the end that isn't whole is an append that a crash cut short: it is dropped. A bad one before good ones is damage.

Up the stream: `store` appends `records`. Down the stream: `recovery` replays.
"""

import os
import struct
from collections.abc import Sequence

import msgspec
import xxhash

from posterity._format.schema import is_packed
from posterity._model.file_names import JOURNAL, NEW_JOURNAL
from posterity._system.disk import Disk
from posterity._system.uncopyable import Uncopyable
from posterity.errors import Damaged, NewerFormat

from .lock import hold
from .records import Annotated, AnyRecord, Described, Record

VERSION = 3
_PLAIN_VERSION, _PACKED_VERSION, _METADATA_VERSION = 1, 2, 3
_MAGIC = b"POSTjrnl"
_HEADER = struct.Struct("<8sII")
_MARKER = b"\xb5\x0aPb"
_BATCH = struct.Struct("<4sIQ")

_decoder = msgspec.msgpack.Decoder(list[AnyRecord])
_encoder = msgspec.msgpack.Encoder()


def encode_header(version: int = _PLAIN_VERSION) -> bytes:
    """The first bytes of a journal. Packed layouts came with version 2, metadata with version 3."""
    return _HEADER.pack(_MAGIC, version, 0)


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
    return _decode_whole(data)[:2]


def version_of(data: bytes) -> int:
    """The format that a good journal is written in."""
    return int(_HEADER.unpack_from(data)[1])


def _decode_whole(data: bytes) -> tuple[list[AnyRecord], int, int]:
    """As `decode`, and the offset of the last batch."""
    if len(data) < _HEADER.size or data[:8] != _MAGIC:
        raise Damaged(f"{JOURNAL} isn't a journal of posterity: its first bytes are {data[:8]!r}")
    version = _HEADER.unpack_from(data)[1]
    if version > VERSION:
        raise NewerFormat(f"{JOURNAL} has format {version}, and this posterity knows {VERSION}; use a later posterity")
    if version < 1:
        raise Damaged(f"{JOURNAL} says that its format is {version}: its header is damaged")
    view = memoryview(data)
    records, end, last = _decode_batches(view, 0, _HEADER.size)
    at = _later_batch(data, view, 0, end)
    if at is not None:
        raise Damaged(
            f"{JOURNAL} is damaged at offset {end}: good records follow at {at}. The samples are in the files; "
            f"`posterity.repair` rebuilds it from them"
        )
    if records and (version == _METADATA_VERSION) != any(isinstance(record, Annotated) for record in records):
        raise Damaged(f"{JOURNAL} says that its format is {version}, and it isn't: its header is damaged")
    return records, end, last


def _decode_batches(view: memoryview, start: int, offset: int) -> tuple[list[AnyRecord], int, int]:
    """The whole batches from `offset` of the file on, where they end, and where the last of them begins.

    `start`: where the view is in the file.
    """
    records: list[AnyRecord] = []
    last = offset
    while (body := _body_at(view, offset, start)) is not None:
        try:
            records += _decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Damaged(f"{JOURNAL} holds a record at offset {offset} that makes no sense: {error}") from error
        last, offset = offset, offset + _BATCH.size + len(body)
    return records, offset, last


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


def _later_batch(data: bytes, view: memoryview, start: int, end: int) -> int | None:
    """Where in the file a whole batch follows one at `end` that isn't; `start`: where the view is in the file."""
    at = data.find(_MARKER, end - start + 1)
    while at != -1:
        if _body_at(view, start + at, start) is not None:
            return start + at
        at = data.find(_MARKER, at + 1)
    return None


def salvage(data: bytes) -> list[AnyRecord]:
    """The records before the first damage."""
    try:
        return _decode_batches(memoryview(data), 0, _HEADER.size)[0]
    except Damaged:
        return []


class Journal(Uncopyable):
    """An open journal. One thread appends."""

    def __init__(self, disk: Disk, fd: int, end: int, version: int) -> None:
        self._disk = disk
        self._fd: int | None = fd
        self.end = end
        self.is_broken = False
        self._takes(version)

    def _takes(self, version: int) -> None:
        """What there may be in a journal of a version."""
        self.takes_packed = version >= _PACKED_VERSION
        self.takes_metadata = version >= _METADATA_VERSION

    @classmethod
    def create(cls, disk: Disk, records: Sequence[Record], *, takes_packed: bool = False) -> "Journal":
        """A new journal that begins with these records, put in the place of one that is there, in one step.

        `takes_packed`: packed layouts will be described in it.
        """
        takes_packed |= any(isinstance(record, Described) and is_packed(record.spec) for record in records)
        version = _PACKED_VERSION if takes_packed else _PLAIN_VERSION
        if any(isinstance(record, Annotated) for record in records):
            version = _METADATA_VERSION
        header = encode_header(version)
        data = header + encode_batch(records, len(header))
        fd = disk.create(NEW_JOURNAL)
        log = cls(disk, fd, len(data), version)
        try:
            hold(disk, fd, NEW_JOURNAL, log)
            disk.reserve(fd, 0, len(data))
            disk.write_at(fd, 0, [data])
            disk.sync(fd)
            disk.replace(NEW_JOURNAL, JOURNAL)
            disk.sync_names()
        except BaseException:
            log.close()
            raise
        return log

    @classmethod
    def held(cls, disk: Disk) -> "Journal | None":
        """The journal that is there, locked before anything is learned from it, to `go_on` with; None if there is none.

        Raises:
            RunLocked: another writer has it.
        """
        try:
            fd = disk.open(JOURNAL, write=True)
        except FileNotFoundError:
            return None
        log = cls(disk, fd, 0, _PLAIN_VERSION)
        try:
            hold(disk, fd, JOURNAL, log)
        except BaseException:
            log.close()
            raise
        return log

    def go_on(self, end: int) -> None:
        """Go on with a journal whose good records end at `end`; what a crash left behind them is cut off.

        It is synced: the last records may be those of a process that was killed before it could.
        """
        assert self._fd is not None
        if self._disk.size(self._fd) > end:
            self._disk.truncate(self._fd, end)
        self._disk.sync(self._fd)
        header = bytearray(_HEADER.size)
        self._disk.read_at(self._fd, 0, memoryview(header))
        self._takes(_HEADER.unpack(header)[1])
        self.end = end

    def append(self, records: Sequence[Record]) -> None:
        """Add records as one batch. They survive a power cut on return.

        Raises:
            OSError: nothing was added. After an error other than a full disk the file isn't to be written again:
                `is_broken`, and `create` must make a new one.
        """
        assert self._fd is not None
        data = encode_batch(records, self.end)
        try:
            self._disk.write_at(self._fd, self.end, [data])
            self._disk.sync_data(self._fd)
        except OSError:
            self.is_broken = True
            raise
        self.end += len(data)

    def close(self) -> None:
        """Give the file back; idempotent."""
        fd, self._fd = self._fd, None  # first: a fork just now must not close what has this number next
        if fd is not None:
            self._disk.unlock(fd)  # a forked child closes its copy by `forget`, never so
            self._disk.close(fd)

    def forget(self) -> None:
        """In a forked child: close the descriptor, which is locked for the parent."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


def read(disk: Disk) -> bytes | None:
    """The journal's bytes, or None if there is none."""
    try:
        fd = disk.open(JOURNAL)
    except FileNotFoundError:
        return None
    try:
        data = bytearray(disk.size(fd))
        return bytes(data[: disk.read_at(fd, 0, memoryview(data))])
    finally:
        disk.close(fd)


class Follower(Uncopyable):
    """Reads a journal that somebody else may be writing, each time only what is new."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._fd: int | None = None
        self._end = 0
        self._last = (0, b"")

    def read_new(self) -> tuple[bool, list[AnyRecord]]:
        """The records since the last time; True with all of them if it is another journal than then.

        A batch that isn't whole is being written: it comes the next time. After an error all of it is read anew.

        Raises:
            FileNotFoundError: there is no journal.
            Damaged, NewerFormat: see `decode`.
        """
        # By its name each time: another one may have taken its place, and a network file system asks the server then.
        fd = self._disk.open(JOURNAL)
        try:
            new = self._read_on(fd)
            records = self._read_all(fd) if new is None else new
        except BaseException:
            self._disk.close(fd)
            self.close()
            raise
        before, self._fd = self._fd, fd  # kept open: as long as it is, no other journal can look like this one
        if before is not None:
            self._disk.close(before)
        return new is None, records

    def _read_on(self, fd: int) -> list[AnyRecord] | None:
        """The records since the last time; None if it is another journal, or isn't as it was."""
        at, head = self._last
        if not self._is_known(fd) or self._read(fd, at, len(head)) != head:
            return None
        data = self._read(fd, self._end)
        view = memoryview(data)
        records, end, last = _decode_batches(view, self._end, self._end)
        if _later_batch(data, view, self._end, end) is not None:
            return None  # it is damaged, or was cut off and went on while it was read
        if end > self._end:
            self._note(data, self._end, end, last)
        return records

    def _is_known(self, fd: int) -> bool:
        try:
            return self._fd is not None and self._disk.is_same(fd, self._fd)
        except OSError:
            return False  # on a network file system: somebody else took the old one away

    def _read_all(self, fd: int) -> list[AnyRecord]:
        data = self._read(fd, 0)
        records, end, last = _decode_whole(data)
        self._note(data, 0, end, last)
        return records

    def _note(self, data: bytes, start: int, end: int, last: int) -> None:
        self._end = end
        self._last = (last, data[last - start :][: _BATCH.size])

    def _read(self, fd: int, start: int, most: int | None = None) -> bytes:
        there = max(0, self._disk.size(fd) - start)
        data = bytearray(there if most is None else min(there, most))
        return bytes(data[: self._disk.read_at(fd, start, memoryview(data))])

    def close(self) -> None:
        """Let go of the file, and forget what was read; idempotent."""
        fd, self._fd = self._fd, None
        if fd is not None:
            self._disk.close(fd)

    def __del__(self) -> None:
        self.close()
