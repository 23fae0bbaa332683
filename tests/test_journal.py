"""The journal: batches of records that are there as a whole, or never happened."""

import errno

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posterity._model.file_names import JOURNAL
from posterity._store import journal
from posterity._store.journal import Journal, decode, encode_batch, encode_header
from posterity._store.records import (
    Annotated,
    Began,
    Burned,
    Described,
    Dropped,
    Grouped,
    Passed,
    Place,
    Published,
    Rewritten,
    Stored,
)
from posterity._system.disk import Disk
from posterity.errors import Damaged, NewerFormat, RunLocked

BEGAN = Began(b"0123456789abcdef", 0, "epochs_%d.h5", 0, 0, 1e9)
PLACE = Place(1, 0, 128, 0, 0, b"12345678")
BATCHES = [
    [BEGAN, Annotated('{"host":"h"}'), Grouped(0, 1, 2)],
    [Described(b"spec"), Stored(0, 0, 10, 800, PLACE), Passed(1, 10, 5)],
    [Burned(12, 10), Published(1, 2)],
    [Rewritten(1, 1, 0, False, [None, PLACE]), Dropped(1)],
]
RECORDS = [record for batch in BATCHES for record in batch]


def encoded(batches):
    """A journal with these batches, and the offsets at which they begin and end."""
    data, offsets = encode_header(journal.VERSION), []
    for batch in batches:
        offsets.append(len(data))
        data += encode_batch(batch, len(data))
    return data, [*offsets, len(data)]


DATA, OFFSETS = encoded(BATCHES)


# ---- records as bytes ------------------------------------------------------------------------------------------------


def test_records_come_back_from_their_bytes():
    """Each kind of record decodes to an equal one, in order, and the end is where the next batch belongs."""
    assert decode(DATA) == (RECORDS, len(DATA))
    assert {type(record) for record in RECORDS} == set(journal.AnyRecord.__args__)


def test_a_new_journal_is_empty():
    """A journal with nothing but its header has no records."""
    assert decode(encode_header()) == ([], len(encode_header()))


@pytest.mark.parametrize("cut", range(OFFSETS[-2], OFFSETS[-1]))
def test_a_torn_tail_is_an_append_that_never_happened(cut):
    """Wherever the last batch was cut short, the ones before it are there, and the next belongs behind them."""
    assert decode(DATA[:cut]) == (RECORDS[:-2], OFFSETS[-2])


@pytest.mark.parametrize("cut", range(OFFSETS[-2], OFFSETS[-1]))
@pytest.mark.parametrize("filler", [b"\0", b"\xff"])
def test_a_tail_of_which_a_part_was_not_written_is_none(cut, filler):
    """A last batch whose size is there but not all of its bytes is an append that never happened, too."""
    torn = DATA[:cut].ljust(len(DATA), filler)
    if torn != DATA:
        assert decode(torn) == (RECORDS[:-2], OFFSETS[-2])


@pytest.mark.parametrize("bit", range(8 * OFFSETS[-2], 8 * OFFSETS[-1]))
def test_a_flipped_bit_in_the_last_batch_drops_it(bit):
    """Damage in the last batch can't be told from a torn append."""
    assert decode(flipped(DATA, bit)) == (RECORDS[:-2], OFFSETS[-2])


def flipped(data, bit):
    bad = bytearray(data)
    bad[bit // 8] ^= 1 << bit % 8
    return bytes(bad)


@pytest.mark.parametrize("bit", range(8 * OFFSETS[0], 8 * OFFSETS[-2], 3))
def test_a_flipped_bit_before_good_records_is_damage(bit):
    """Damage in front of a good batch isn't a shorter run: it raises, with both places, and says what to do."""
    with pytest.raises(Damaged, match=r"damaged at offset \d+: good records follow at \d+.*repair"):
        decode(flipped(DATA, bit))


@pytest.mark.parametrize("bit", range(8 * len(encode_header())))
def test_a_flipped_bit_in_the_header_is_damage(bit):
    """A damaged header raises; it may look like a later version's, and never passes for ours."""
    if bit < 8 * 12:
        with pytest.raises((Damaged, NewerFormat)):
            decode(flipped(DATA, bit))


@pytest.mark.parametrize("n", range(len(encode_header())))
def test_a_journal_without_its_header_is_damage(n):
    """A journal is made in one step: one that ends within its header was damaged."""
    with pytest.raises(Damaged, match="isn't a journal"):
        decode(DATA[:n])


def test_a_batch_belongs_to_its_place():
    """A good batch that was copied to another place isn't taken for one."""
    copied = DATA + DATA[OFFSETS[1] : OFFSETS[2]]
    assert decode(copied) == (RECORDS, len(DATA))


def test_a_later_version_is_named():
    """A journal of a later posterity raises `NewerFormat`, with both versions."""
    data = journal._HEADER.pack(b"POSTjrnl", 4, 0) + DATA[16:]
    with pytest.raises(NewerFormat, match="has format 4, and this posterity knows 3"):
        decode(data)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc0",
        b"\x91" * 20_000,
        msgspec.msgpack.encode([[99, 1]]),
        msgspec.msgpack.encode([[2, "text"]]),
        msgspec.msgpack.encode([[2]]),
        msgspec.msgpack.encode([[2, b"spec", 5]]),
        msgspec.msgpack.encode([[0, b"id", 0, "x", 0, 0]]),
        b"\x91\x97\x00\xc4\x02id\x00\xa2\xff\xfe\x00\x00\xcb" + bytes(8),
    ],
)
def test_a_whole_batch_that_makes_no_sense_is_damage(body):
    """A batch with a right checksum and records that aren't ours raises `Damaged`."""
    with pytest.raises(Damaged, match="makes no sense"):
        decode(encode_header() + batch_of(body, 16))


def batch_of(body, offset):
    return journal._BATCH.pack(journal._MARKER, len(body), journal.xxhash.xxh3_64_intdigest(body, offset)) + body


@given(st.binary(max_size=60))
def test_any_body_is_records_or_damage(body):
    """Whatever a hostile journal holds, nothing but records or `Damaged` comes out."""
    try:
        records, _ = decode(encode_header() + batch_of(body, 16))
    except Damaged:
        return
    assert all(isinstance(record, journal.Record) for record in records)


@given(st.binary(max_size=200))
def test_any_tail_is_dropped(tail):
    """Whatever a crash left behind the good records, they are there."""
    assert decode(DATA + tail) == (RECORDS, len(DATA))


def test_many_markers_in_a_torn_tail_cost_little():
    """A tail made to look like a thousand batches, each claiming all that follows, is dropped."""
    fake = journal._MARKER + (2**20).to_bytes(4, "little") + bytes(8)
    assert decode(DATA + fake * 1000) == (RECORDS, len(DATA))


# ---- on disk ---------------------------------------------------------------------------------------------------------


def content(disk):
    return decode(journal.read(disk))[0]


@pytest.fixture
def log(disk):
    """A journal with the first two batches."""
    log = Journal.create(disk, BATCHES[0])
    log.append(BATCHES[1])
    yield log
    log.close()


def test_without_a_journal_there_is_none(disk):
    """A folder without a journal gives None."""
    assert journal.read(disk) is None


def test_what_is_appended_is_read(disk, log):
    """Records are there when the call returns; the journal has its name, and no other file is left."""
    assert content(disk) == [*BATCHES[0], *BATCHES[1]]
    assert disk.names() == [JOURNAL]


def test_a_journal_is_gone_on_with(disk, log):
    """Records appended after opening again come behind the old ones."""
    log.close()
    again = Journal.held(disk)
    again.go_on(decode(journal.read(disk))[1])
    again.append(BATCHES[2])
    again.close()
    assert content(disk) == [*BATCHES[0], *BATCHES[1], *BATCHES[2]]


def test_a_journal_that_is_open_is_locked(disk, log):
    """Whatever became of the lock's file: nobody else goes on with it, until it is closed."""
    end = decode(journal.read(disk))[1]
    with pytest.raises(RunLocked, match="locked by another writer"):
        Journal.held(disk)
    log.close()
    log.close()
    again = Journal.held(disk)
    again.go_on(end)
    again.close()


def test_what_a_crash_left_behind_is_cut_off(disk, log):
    """Opening again cuts a torn tail off, however long it was: it can't be mistaken for damage later."""
    with (disk.folder / JOURNAL).open("ab") as file:
        file.write(encode_batch(BATCHES[3], log.end)[:-1] + b"\xff" * 1000)
    log.close()
    again = Journal.held(disk)
    again.go_on(decode(journal.read(disk))[1])
    assert (disk.folder / JOURNAL).stat().st_size == again.end
    again.append(BATCHES[2])
    again.close()
    assert content(disk) == [*BATCHES[0], *BATCHES[1], *BATCHES[2]]


def test_a_new_journal_takes_the_place_of_the_old_one(disk, log):
    """Who has the old one open goes on reading that."""
    fd = disk.open(JOURNAL)
    new = Journal.create(disk, [BEGAN, Passed(0, 0, 3)])
    memory = bytearray(disk.size(fd))
    disk.read_at(fd, 0, memoryview(memory))
    disk.close(fd)
    new.append([Burned(3, 3)])
    new.close()
    assert decode(bytes(memory))[0] == [*BATCHES[0], *BATCHES[1]]
    assert content(disk) == [BEGAN, Passed(0, 0, 3), Burned(3, 3)]


class FailingDisk(Disk):
    """A disk on which one kind of call fails, some bytes into it if it writes."""

    failing = ""
    written = 0

    def _fail(self, name):
        if self.failing == name:
            raise OSError(errno.EIO, "Input/output error")

    def write_at(self, fd, offset, buffers):
        if self.failing == "write_at":
            super().write_at(fd, offset, [b"".join(map(bytes, buffers))[: self.written]])
        self._fail("write_at")
        super().write_at(fd, offset, buffers)

    def reserve(self, fd, offset, nbytes):
        self._fail("reserve")
        super().reserve(fd, offset, nbytes)

    def sync(self, fd):
        self._fail("sync")
        super().sync(fd)

    def sync_data(self, fd):
        self._fail("sync_data")
        super().sync_data(fd)

    def sync_names(self):
        self._fail("sync_names")
        super().sync_names()

    def replace(self, name, as_name):
        self._fail("replace")
        super().replace(name, as_name)

    def truncate(self, fd, nbytes):
        self._fail("truncate")
        super().truncate(fd, nbytes)


@pytest.fixture
def failing_disk(tmp_path):
    disk = FailingDisk(tmp_path)
    disk.enter()
    yield disk
    disk.leave()


@pytest.mark.parametrize("written", [0, 1, 10, 20, 30])
def test_an_append_that_failed_leaves_the_earlier_records(failing_disk, written):
    """After a failed write the journal is broken, and what it held before is readable."""
    log = Journal.create(failing_disk, BATCHES[0])
    failing_disk.failing, failing_disk.written = "write_at", written
    with pytest.raises(OSError, match="Input/output"):
        log.append(BATCHES[1])
    log.close()
    assert log.is_broken
    assert content(failing_disk) == BATCHES[0]


def test_an_append_that_was_not_synced_failed(failing_disk):
    """After a failed sync the journal is broken: nobody knows what of it survives a power cut."""
    log = Journal.create(failing_disk, BATCHES[0])
    end = log.end
    failing_disk.failing = "sync_data"
    with pytest.raises(OSError, match="Input/output"):
        log.append(BATCHES[1])
    log.close()
    assert log.is_broken
    assert log.end == end


def test_an_append_that_worked_breaks_nothing(disk, log):
    """A journal isn't broken as long as nothing failed."""
    assert not log.is_broken


@pytest.mark.parametrize("call", ["reserve", "write_at", "sync", "replace"])
def test_a_new_journal_that_failed_leaves_the_old_one(failing_disk, call):
    """Until the new journal has its name, the old one is there, whole; and no descriptor is left."""
    Journal.create(failing_disk, BATCHES[0]).close()
    failing_disk.failing = call
    with pytest.raises(OSError, match="Input/output"):
        Journal.create(failing_disk, [BEGAN])
    assert content(failing_disk) == BATCHES[0]


def test_a_new_journal_whose_name_was_not_synced_failed(failing_disk):
    """The folder is synced before a new journal counts; it can be tried again."""
    failing_disk.failing = "sync_names"
    with pytest.raises(OSError, match="Input/output"):
        Journal.create(failing_disk, BATCHES[0])
    failing_disk.failing = ""
    Journal.create(failing_disk, BATCHES[0]).close()
    assert content(failing_disk) == BATCHES[0]


@pytest.mark.parametrize("call", ["truncate", "sync"])
def test_no_descriptor_is_left_when_a_journal_cannot_be_gone_on_with(failing_disk, call):
    """A failure while a torn tail is cut off gives the descriptor back."""
    Journal.create(failing_disk, BATCHES[0]).close()
    with (failing_disk.folder / JOURNAL).open("ab") as file:
        file.write(b"torn")
    failing_disk.failing = call
    log = Journal.held(failing_disk)
    with pytest.raises(OSError, match="Input/output"):
        log.go_on(decode(journal.read(failing_disk))[1])
    log.close()
