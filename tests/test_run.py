"""Reading a run from outside: `open_run`, while somebody writes it and after."""

import subprocess
import sys
import threading

import anyio
import numpy as np
import pytest

from posterity import Closed, Damaged, DefaultBackend, Epoch, SnapshotExpired, open_run

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


def test_updates_come_until_it_is_closed(outdir, writer):
    """`updates` gives a snapshot for each change that it sees, and ends with the `Run`."""
    writer.does("ingest 1")
    run = open_run(outdir)
    seen = []
    first, second = threading.Event(), threading.Event()

    def listen():
        for snapshot in run.updates(every_s=0.01):
            seen.append(snapshot.nsamples)
            (first if len(seen) == 1 else second).set()

    listener = threading.Thread(target=listen)
    listener.start()
    assert first.wait(30)
    writer.does("ingest 2")
    assert second.wait(30)
    run.close()
    listener.join()
    assert seen == [10, 30]
    with pytest.raises(Closed):
        run.snapshot()


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
