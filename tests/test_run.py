"""Reading a run from outside: `open_run`, while somebody writes it and after."""

import gc
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import anyio
import numpy as np
import pytest

import known
from known import epoch_dict
from posterity import Closed, Damaged, DefaultBackend, Epoch, SnapshotExpired, open_run
from posterity._format.flatten import flatten
from posterity._format.schema import encode_items
from posterity._model.file_names import JOURNAL
from posterity._model.registry import admit
from posterity._reading.followed_run import FollowedRun
from posterity._reading.run import Run, Watch
from posterity._store.catalog import pack_sums, replayed
from posterity._store.journal import Follower, Journal, decode
from posterity._store.records import Began, Burned, Described, Grouped, Passed, Place, Rewritten, Stored
from posterity._system.disk import Disk

NSAMPLES = 10

WRITER = """
import sys
import numpy as np
from posterity import DefaultBackend
backend = DefaultBackend(outdir=sys.argv[1], epochs_per_file=3)
n = backend.status.epochs * 10
for line in sys.stdin:
    command, _, number = line.strip().partition(" ")
    if command == "ingest":
        for _ in range(int(number)):
            p = np.arange(n, n + 10.0) + 1e6 * np.arange(6.0).reshape(2, 3, 1)
            backend.ingest({"samples": {"p": p}, "stats": {"n": n}})
            n += 10
        backend.flush()
    elif command == "burn":
        backend.set_burn(int(number))
        backend.flush()
    elif command == "reset":
        backend.reset()
        n = 0
    elif command == "close":
        backend.close()
    print("done", flush=True)
"""


def numbers(start, stop):
    """The samples of a run from one position to another."""
    return np.arange(start, stop, dtype=float) + 1e6 * np.arange(6.0).reshape(2, 3, 1)


class Writer:
    """A run that another process writes, step by step."""

    def __init__(self, outdir):
        self._process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(outdir)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def does(self, command):
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"

    def kill(self):
        self._process.kill()
        self.end()

    def end(self):
        self._process.communicate()


@pytest.fixture
def outdir(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def writer(outdir):
    writer = Writer(outdir)
    yield writer
    writer.end()


def test_there_must_be_a_run(outdir):
    """A folder that isn't there, or holds no run, is refused; neither is made nor touched."""
    with pytest.raises(FileNotFoundError, match="no folder"):
        open_run(outdir)
    outdir.mkdir()
    with pytest.raises(FileNotFoundError, match="no run"):
        open_run(outdir)
    assert list(outdir.iterdir()) == []


def test_each_snapshot_shows_what_was_flushed_before(outdir, writer):
    """A run that another process writes is read live, a file that is filling up too, with exact numbers."""
    writer.does("ingest 1")
    with open_run(outdir) as run:
        for total in (1, 2, 4, 9):
            np.testing.assert_array_equal(run.get_samples(verify=True)["p"], numbers(0, total * NSAMPLES))
            assert isinstance(run.load(), Epoch)
            assert run.get_stats([0]) == {"epoch_0": {"n": 0}}
            writer.does(f"ingest {({1: 1, 2: 2, 4: 5}).get(total, 1)}")
        writer.does("burn 35")
        np.testing.assert_array_equal(run.get_samples()["p"], numbers(35, 100))


def test_a_snapshot_gives_its_numbers_or_has_expired(outdir, writer):
    """What a burn or a reset took away since raises `SnapshotExpired`; what is left is exact."""
    writer.does("ingest 8")
    with open_run(outdir) as run:
        old = run.snapshot()
        writer.does("burn 42")
        with pytest.raises(SnapshotExpired):
            old.get_samples()
        with pytest.raises(SnapshotExpired):
            old.get(4)
        np.testing.assert_array_equal(old.get_samples(burn=42)["p"], numbers(42, 80))
        np.testing.assert_array_equal(old.get(7)["samples"]["p"], numbers(70, 80))
        writer.does("reset")
        writer.does("ingest 6")
        with pytest.raises(SnapshotExpired):
            old.get(7)
        np.testing.assert_array_equal(run.get_samples(verify=True)["p"], numbers(42, 60))


def test_a_run_goes_on_through_the_death_of_its_writer(outdir, writer):
    """The writer is killed and another one comes: the same `Run` goes on giving fresh snapshots."""
    writer.does("ingest 2")
    with open_run(outdir) as run:
        writer.kill()
        np.testing.assert_array_equal(run.get_samples()["p"], numbers(0, 20))
        second = Writer(outdir)
        second.does("ingest 3")
        np.testing.assert_array_equal(run.get_samples()["p"], numbers(0, 50))
        second.does("close")
        np.testing.assert_array_equal(run.get_samples()["p"], numbers(0, 50))
        second.end()


def test_a_reader_does_not_take_the_lock_away(outdir):
    """A reader in the writer's own process disturbs nobody: a second writer is refused all the same."""
    with DefaultBackend(outdir=outdir) as backend:
        backend.ingest({"samples": {"p": numbers(0, 10)}})
        backend.flush()
        with open_run(outdir) as run:
            np.testing.assert_array_equal(run.get_samples()["p"], numbers(0, 10))
        refused = subprocess.run(
            [sys.executable, "-c", WRITER, str(outdir)], input="", capture_output=True, text=True, check=False
        )
        assert "RunLocked" in refused.stderr


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_it_can_be_awaited(outdir, writer, backend):
    """The awaited face has the same reads, and the same updates, on both event loops."""
    writer.does("ingest 2")

    async def read():
        async with open_run(outdir).asynchronous as run:
            np.testing.assert_array_equal((await run.get_samples())["p"], numbers(0, 20))
            async for snapshot in run.updates(every_s=0.01):
                async with snapshot:
                    np.testing.assert_array_equal((await snapshot.get(1))["samples"]["p"], numbers(10, 20))
                if snapshot.nepochs == 3:
                    break
                await anyio.to_thread.run_sync(writer.does, "ingest 1")
            async with run.snapshot() as snapshot:
                assert snapshot.nsamples == 30

    anyio.run(read, backend=backend)


def test_a_damaged_file_is_named(outdir, writer):
    """With `verify`, a flipped bit in a file is found and the file is named; other epochs stay readable."""
    writer.does("ingest 6")
    path = outdir / "epochs_2.h5"
    data = bytearray(path.read_bytes())
    at = data.find(np.float64(35.0).tobytes())
    data[at] ^= 1
    path.write_bytes(data)
    with open_run(outdir) as run:
        with pytest.raises(Damaged, match=r"epochs_2\.h5"):
            run.get_samples(verify=True)
        np.testing.assert_array_equal(run.get(5)["samples"]["p"], numbers(50, 60))


# ---- a run that comes, goes and is replaced --------------------------------------------------------------------------


@pytest.fixture
def backend(outdir):
    """A run of three epochs that this process writes."""
    with DefaultBackend(outdir=outdir) as backend:
        for first in (0, 10, 20):
            backend.ingest(epoch_dict(first, 10))
        backend.flush()
        yield backend


@pytest.fixture
def run(backend, outdir):
    with open_run(outdir) as run:
        yield run


def assert_shows(run, start, stop):
    np.testing.assert_array_equal(run.get_samples(verify=True)["p"], known.numbers(start, stop - start))


def test_who_comes_first_can_wait(outdir, monkeypatch):
    """With `wait_s` a run may be opened before there is one."""
    waits = threading.Event()

    def sleep(seconds):
        waits.set()
        time.sleep(seconds)

    monkeypatch.setattr("posterity._reading.followed_run.time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
    opened = []
    opening = threading.Thread(target=lambda: opened.append(open_run(outdir, wait_s=50)))
    opening.start()
    assert waits.wait(30)
    assert not outdir.exists()
    with DefaultBackend(outdir=outdir) as backend:
        backend.ingest(epoch_dict(0, 10))
        backend.flush()
        opening.join()
        with opened[0] as run:
            assert_shows(run, 0, 10)


def test_waiting_has_an_end(outdir):
    """A run that doesn't come in time is missing as it would be at once."""
    with pytest.raises(FileNotFoundError, match="no folder"):
        open_run(outdir, wait_s=0.01)
    assert not outdir.exists()


def test_what_went_away_is_missing(outdir, run):
    """When the folder is removed, new snapshots say so, and old ones have expired."""
    with run.snapshot() as snapshot:
        shutil.rmtree(outdir)
        with pytest.raises(SnapshotExpired, match=r"epochs_1\.h5 is missing"):
            snapshot.get(0)
        for ask in (run.snapshot, run.get_samples, lambda: next(run.updates())):
            with pytest.raises(FileNotFoundError, match="no run, or it went away"):
                ask()


def test_a_folder_that_is_moved_is_followed(outdir, backend, run):
    """A `Run` goes on with its folder, wherever that is moved to."""
    outdir.rename(outdir.with_name("moved"))
    backend.ingest(epoch_dict(30, 10))
    backend.flush()
    assert_shows(run, 0, 40)


def test_another_folder_in_its_place_is_another_run(outdir, backend, run):
    """Who had the folder that was removed open has no run any more; who opens it again has the new one."""
    backend.close()
    shutil.rmtree(outdir)
    with DefaultBackend(outdir=outdir) as other:
        other.ingest(epoch_dict(500, 10))
        other.flush()
        with pytest.raises(FileNotFoundError):
            run.snapshot()
        with open_run(outdir) as again:
            assert_shows(again, 500, 510)


def test_another_run_in_the_same_folder_is_shown(outdir, backend, run):
    """When somebody empties the folder and begins another run in it, old snapshots expire and new ones show that."""
    updates = run.updates(every_s=0.01)
    old = next(updates)
    backend.close()
    for path in outdir.iterdir():
        path.unlink()
    with DefaultBackend(outdir=outdir) as other:
        other.ingest(epoch_dict(500, 10))
        other.ingest(epoch_dict(510, 20))
        other.flush()
        with pytest.raises(SnapshotExpired):
            old.get(0)
        assert_shows(run, 500, 530)
        assert_shows(next(updates), 500, 530)  # of as many samples as before, and not the same ones
        updates.close()


def test_a_replaced_run_is_shown(outdir, backend, run):
    """A run that `mode="w"` replaces is there for readers until the new one has an epoch on disk."""
    backend.close()
    with DefaultBackend(outdir=outdir, mode="w") as other, run.snapshot() as old:
        assert_shows(run, 0, 30)
        other.ingest(epoch_dict(70, 10))
        other.flush()
        assert_shows(run, 70, 80)
        with pytest.raises(SnapshotExpired):
            old.get(0)


# ---- the journal, followed -------------------------------------------------------------------------------------------

RUN_ID = b"0123456789abcdef"
SPEC = encode_items(flatten({"samples": {"p": np.zeros((2, 2, 10))}})[0])


def stored(index, rewrite=0):
    place = Place(index // 10 + 1, rewrite, 128 + 4096 * (index % 10), 0, 0, pack_sums((7,)))
    return Stored(index, 10 * index, 10, 400, place)


def journal_of(disk, nepochs, generation=0):
    """A journal that speaks of epochs; there are no files."""
    start = [Began(RUN_ID, generation, "epochs_%d.h5", 0, 0, 1e9), Grouped(0, 1, 10), Described(SPEC)]
    return Journal.create(disk, [*start, *map(stored, range(nepochs))])


class CountingDisk(Disk):
    """Counts the bytes that are read."""

    nbytes = 0

    def read_at(self, fd, offset, into):
        done = super().read_at(fd, offset, into)
        self.nbytes += done
        return done


@pytest.fixture
def follower(disk):
    follower = Follower(disk)
    yield follower
    follower.close()


def test_only_what_is_new_is_read(tmp_path):
    """However long the journal is, looking at it again reads a few bytes, and those that came since."""
    disk = CountingDisk(tmp_path)
    disk.enter()
    journal = journal_of(disk, 1000)
    follower = Follower(disk)
    assert len(follower.read_new()[1]) == 1003
    for records in ([], [], [stored(1000)], [], [stored(1001), stored(1002)]):
        end, disk.nbytes = journal.end, 0
        if records:
            journal.append(records)
        assert follower.read_new() == (False, records)
        assert disk.nbytes <= journal.end - end + 16
    for closed in (follower, journal):
        closed.close()
    disk.leave()


def test_a_batch_that_is_being_written_comes_later(disk, follower):
    """Half a batch at the end is no record and no damage; when it is whole, it is read."""
    journal = journal_of(disk, 1)
    follower.read_new()
    end = journal.end
    journal.append([stored(1)])
    path = disk.folder / JOURNAL
    whole = path.read_bytes()
    with path.open("r+b") as file:
        for cut in (end + 1, end + 20, len(whole) - 1):
            file.truncate(cut)
            assert follower.read_new() == (False, [])
            file.seek(0)
            file.write(whole)
            file.flush()
            file.truncate(cut)
        file.seek(0)
        file.write(whole)
    assert follower.read_new() == (False, [stored(1)])
    journal.close()


def test_what_a_crash_cut_short_is_forgotten(disk, follower):
    """The next writer cuts off half a batch and goes on; the reader, who saw it, goes on with what comes."""
    journal = journal_of(disk, 1)
    end = journal.end
    journal.append([stored(1), stored(2)])
    journal.close()
    os.truncate(disk.folder / JOURNAL, journal.end - 1)
    assert len(follower.read_new()[1]) == 4
    journal = Journal.held(disk)
    journal.go_on(end)
    journal.append([Passed(1, 10, 10)])
    assert follower.read_new() == (False, [Passed(1, 10, 10)])
    journal.close()


def test_another_journal_is_read_from_the_beginning(disk, follower):
    """A journal that took the place of the old one is another, even one of the same length."""
    for generation in (0, 1, 2):
        journal_of(disk, 5, generation).close()
        is_new, records = follower.read_new()
        assert is_new
        assert records[0].generation == generation


@pytest.mark.parametrize("nepochs", [2, 5, 9])
def test_a_journal_that_was_overwritten_is_another(disk, follower, nepochs):
    """Somebody copies another journal over it, of any length: it isn't taken for the old one gone on."""
    journal_of(disk, 5).close()
    follower.read_new()
    path = disk.folder / JOURNAL
    inode = path.stat().st_ino
    (disk.folder / "other").mkdir()
    other = Disk(disk.folder / "other")
    other.enter()
    journal_of(other, nepochs, generation=1).close()
    path.write_bytes((other.folder / JOURNAL).read_bytes())
    assert path.stat().st_ino == inode
    is_new, records = follower.read_new()
    assert is_new
    assert len(records) == 3 + nepochs
    other.leave()


def test_damage_is_said_each_time(disk):
    """A damaged journal is refused as often as it is looked at, not taken for one that doesn't go on; then mended."""
    journal = journal_of(disk, 1)
    with Run(FollowedRun(disk)) as run:
        assert run.snapshot().nepochs == 1
        at = journal.end + 30
        journal.append([stored(1)])
        journal.append([stored(2)])
        path = disk.folder / JOURNAL
        good = path.read_bytes()
        for damaged in (good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :], b"not a journal", b""):
            path.write_bytes(damaged)
            for _ in range(2):
                with pytest.raises(Damaged):
                    run.snapshot()
        path.write_bytes(good)
        assert run.snapshot().nepochs == 3
        journal.append([stored(7)])  # not the epoch that belongs there
        for _ in range(2):
            with pytest.raises(Damaged, match="epoch 7"):
                run.snapshot()
    journal.close()


def test_a_shorter_journal_that_says_the_same_changes_nothing(outdir, backend, run):
    """When the writer starts its journal anew, snapshots from before and after it can be read, and updates go on."""
    updates = run.updates(every_s=0.01)
    assert next(updates).nepochs == 3
    old = run.snapshot()
    backend.close()
    disk = Disk(outdir)
    disk.enter()
    records, _ = decode((outdir / JOURNAL).read_bytes())
    Journal.create(disk, list(replayed(records).records())).close()
    disk.leave()
    assert_shows(run, 0, 30)
    with DefaultBackend(outdir=outdir) as other:
        other.set_burn(15)
        other.ingest(epoch_dict(30, 10))
        other.flush()
        assert next(updates).nepochs == 4
        assert_shows(run, 15, 40)
        np.testing.assert_array_equal(old.get_samples(burn=15)["p"], known.numbers(15, 15))
        with pytest.raises(SnapshotExpired):
            old.get_samples(burn=14)
    old.release()


def test_a_snapshot_costs_what_is_new(tmp_path):
    """A fresh snapshot of a run of 100,000 epochs costs about what it costs of 1,000."""
    costs = {}
    for nepochs in (1000, 100_000):
        folder = tmp_path / str(nepochs)
        folder.mkdir()
        disk = Disk(folder)
        disk.enter()
        journal = journal_of(disk, nepochs)
        with Run(FollowedRun(disk)) as run:
            run.snapshot().release()
            costs[nepochs] = min(cost_of_news(journal, run, index) for index in range(nepochs, nepochs + 50))
        journal.close()
    assert costs[100_000] < 10 * costs[1000], costs  # it was 80 times as much when the registry was made anew


def cost_of_news(journal, run, index):
    journal.append([stored(index), Burned(index, 0)])
    start = time.perf_counter()
    snapshot = run.snapshot()
    cost = time.perf_counter() - start
    assert (snapshot.nepochs, snapshot.burn) == (index + 1, index)
    return cost


def test_older_snapshots_keep_their_registry(disk):
    """The registry of a snapshot is as it was, whatever is added to, rewritten in or dropped from the run later."""
    journal = journal_of(disk, 3)
    with Run(FollowedRun(disk)) as run:
        old = run.snapshot().registry
        places = [None, *(Place(1, 1, 128 + i, 4, 0, pack_sums((7,))) for i in range(3))]
        journal.append([stored(3), Burned(14, 14), Rewritten(1, 1, 0, True, places)])
        new = run.snapshot().registry
        assert (len(old.entries), list(old.cuts), old.burn) == (3, [0, 0, 0], 0)
        assert (len(new.entries), list(new.cuts), new.burn) == (4, [10, 4, 4, 4], 14)
        journal.append([stored(4, rewrite=1)])
        assert list(run.snapshot().registry.cuts) == [10, 4, 4, 4, 0]
        assert list(new.cuts) == [10, 4, 4, 4]
    journal.close()


def test_a_registry_to_go_on_from_shares_nothing(disk):
    """What the writer adds to the registry that it found changes nothing of what the journal says, nor the other way."""
    journal_of(disk, 2).close()
    catalog = replayed(decode((disk.folder / JOURNAL).read_bytes())[0])
    ours = admit(catalog.registry(), 5, 100)
    catalog.apply(stored(2))
    catalog.apply(stored(3))
    assert [entry.nsamples for entry in ours.entries] == [10, 10, 5]
    assert [entry.nsamples for entry in catalog.shown().entries] == [10, 10, 10, 10]
    assert catalog.shown() == catalog.registry()
    assert catalog.shown().entries._items is not catalog.registry().entries._items


# ---- updates ---------------------------------------------------------------------------------------------------------


def test_updates_come_until_it_is_closed(outdir, writer):
    """`updates` gives a snapshot for each change that it sees, and ends with the `Run`."""
    writer.does("ingest 1")
    run = open_run(outdir)
    seen = []
    begun, grown = threading.Event(), threading.Event()

    def listen():
        for snapshot in run.updates(every_s=0.01):
            seen.append(snapshot.nsamples)
            begun.set()
            if snapshot.nsamples == 30:
                grown.set()

    listener = threading.Thread(target=listen)
    listener.start()
    assert begun.wait(30)
    writer.does("ingest 2")
    assert grown.wait(30)
    run.close()
    listener.join()
    assert seen in ([10, 30], [10, 20, 30])
    with pytest.raises(Closed):
        run.snapshot()


def test_the_first_update_comes_at_once(run):
    """What is there already is news, and nobody waits for it."""
    updates = run.updates(every_s=3600)
    assert next(updates).nepochs == 3
    updates.close()


def test_who_is_slow_waits_no_longer(run, monkeypatch):
    """The next look is due so long after the last one, however long the reader took over what it saw."""
    now = [100.0]
    monkeypatch.setattr("posterity._reading.run.time", SimpleNamespace(monotonic=lambda: now[0]))
    watch = Watch(run, 1, every_s=10)
    pauses = [watch.pause_s()]
    watch.look()
    for now[0] in (100.0, 104.0, 125.0):
        pauses.append(watch.pause_s())
    assert pauses == [0, 10, 6, 0]


def test_small_changes_are_no_news(backend, run):
    """`min_samples` have to come, or a burn, or a new run."""
    watch = Watch(run, 15, every_s=0)

    def look():
        found = watch.look()
        if found is None:
            return None
        snapshot, watch.seen = found
        return snapshot.nepochs, snapshot.burn, snapshot.nsamples

    assert look() == (3, 0, 30)
    assert look() is None
    backend.ingest(epoch_dict(30, 10))
    backend.flush()
    assert look() is None
    backend.ingest(epoch_dict(40, 10))
    backend.flush()
    assert look() == (5, 0, 50)
    backend.set_burn(1)
    backend.flush()
    assert look() == (5, 1, 49)
    backend.reset()
    assert look() == (0, 1, 0)


def test_closing_ends_updates_that_wait(run):
    """However seldom they look."""
    updates = run.updates(every_s=3600)
    next(updates)
    closing = threading.Timer(0.0, run.close)
    closing.start()
    assert list(updates) == []
    closing.join()


def test_a_close_between_two_steps_ends_updates(run, monkeypatch):
    """Updates end, and raise nothing, when the run is closed just as they look."""
    look = run._look
    monkeypatch.setattr(run, "_look", lambda: (run.close(), look()))
    assert list(run.updates()) == []


def test_updates_hold_no_snapshot_that_nobody_has(run):
    """The snapshot is let go with the next one, and when the iterator is closed or dropped."""
    updates = run.updates()
    next(updates)
    assert len(run._followed._given) == 1
    updates.close()
    assert not run._followed._given
    for snapshot in run.updates():
        assert snapshot.nepochs == 3
        break
    del snapshot
    gc.collect()
    assert not run._followed._given


async def test_an_awaited_update_is_let_go_with_the_next_one(backend, run):
    """The snapshot is released when the next one is asked for, or the iterator is closed; not when it is dropped."""
    updates = run.asynchronous.updates(every_s=0.001)
    first = await anext(updates)
    backend.ingest(epoch_dict(30, 10))
    backend.flush()
    await anext(updates)
    with pytest.raises(Closed):
        await first.get(0)
    await updates.aclose()
    assert not run._followed._given
    async with await anext(run.asynchronous.updates()) as snapshot:
        assert (await snapshot.get(3))["samples"]["p"].shape[2] == 10
    assert not run._followed._given


async def test_closing_ends_awaited_updates(run):
    """However seldom they look, and whoever closes the run."""
    seen = []

    async def listen():
        async for snapshot in run.asynchronous.updates(every_s=3600):
            seen.append(snapshot.nepochs)
            looking.set()

    looking = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listen)
        await looking.wait()
        run.close()
    assert seen == [3]


async def test_a_cancelled_wait_loses_no_update(run, monkeypatch):
    """What was looked at for a task that was cancelled meanwhile is news for the next one who asks."""
    look = run._look

    def look_and_cancel():
        found = look()
        anyio.from_thread.run_sync(scope.cancel)
        return found

    updates = run.asynchronous.updates()
    monkeypatch.setattr(run, "_look", look_and_cancel)
    with anyio.CancelScope() as scope:
        await anext(updates)
        await anyio.sleep_forever()
    monkeypatch.setattr(run, "_look", look)
    if updates._given is None:  # it was cancelled in the middle, not after
        assert (await anext(updates)).nepochs == 3


# ---- closing ---------------------------------------------------------------------------------------------------------


def open_names():
    """What files and folders this process has open."""
    return [str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]


def test_a_snapshot_outlives_its_run(outdir, backend, run):
    """Once closed, a run gives no snapshots; those it gave can be read until they are released, and not longer."""
    backend.close()
    first, second = run.snapshot(), run.snapshot()
    run.close()
    run.close()
    with pytest.raises(Closed):
        run.snapshot()
    assert_shows(first, 0, 30)
    first.release()
    assert str(outdir) in open_names()
    assert_shows(second, 0, 30)
    del second
    assert str(outdir) not in open_names()


def test_a_snapshot_of_a_closed_run_expires_too(backend, run):
    """It can't learn any more where an epoch went, and says so."""
    snapshot = run.snapshot()
    run.close()
    backend.set_burn(15)
    backend.update()
    with pytest.raises(SnapshotExpired, match="is missing"):
        snapshot.get(0)
    snapshot.release()


def test_closing_waits_for_nobody(outdir, backend, run):
    """A run that another thread reads from just now is closed at once, and given back when that one is done."""
    backend.close()
    with run._followed._guard:
        run.close()
        assert str(outdir) in open_names()
    with pytest.raises(Closed):
        run.snapshot()
    assert str(outdir) not in open_names()


@pytest.mark.parametrize("backend_name", ["asyncio", "trio"])
def test_a_cancelled_task_closes_the_run(outdir, backend, backend_name):
    """Leaving `async with` in a scope that was cancelled closes the run all the same."""

    backend.close()

    async def read():
        with anyio.CancelScope() as scope:
            async with open_run(outdir).asynchronous as run:
                scope.cancel()
                await run.get_samples()
        assert str(outdir) not in open_names()
        with pytest.raises(Closed):
            run.blocking.snapshot()

    anyio.run(read, backend=backend_name)


def test_no_descriptor_is_lost(outdir, backend):
    """Not by snapshots, fresh, expired or dropped, nor by updates, nor by runs that nobody closed."""
    with open_run(outdir) as run:
        before = sorted(open_names())
        for i in range(2000):
            snapshot = run.snapshot()
            newest = snapshot.nepochs - 1
            assert snapshot.get(newest)["samples"]["p"].shape[2] == 10
            if i % 100 == 0:
                backend.clean()
                backend.ingest(epoch_dict(0, 10))
                backend.update()
                with pytest.raises(SnapshotExpired):
                    snapshot.get(newest)
                next(run.updates())
                open_run(outdir).get_samples()
        del snapshot
        assert sorted(open_names()) == before


FORKED = """
import os, sys, threading
from posterity import open_run
run = open_run(sys.argv[1])
held = threading.Event()
def hold():
    with run._followed._guard:
        held.set()
        over.wait()
over = threading.Event()
holder = threading.Thread(target=hold)
holder.start()
held.wait()
child = os.fork()
if child == 0:
    os._exit(0 if run.get_samples(verify=True)["p"].shape[2] == 30 else 1)
_, status = os.waitpid(child, 0)
over.set()
holder.join()
assert run.get_samples()["p"].shape[2] == 30
run.close()
sys.exit(status)
"""


def test_a_forked_child_can_read(outdir, backend):
    """A child that was forked while another thread took a snapshot takes its own."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED, str(outdir)],
        capture_output=True, text=True, check=False, timeout=50,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
