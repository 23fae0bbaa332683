"""Every I/O call fails once, and the process is killed at I/O calls: nothing that was told to be durable is lost."""

import errno
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest

from faulty import (
    BURN,
    CHANGES,
    LENGTHS,
    FaultyDisk,
    Workers,
    backend_on,
    epoch,
    options_of,
    persistently,
    samples,
    work,
    write_half,
)
from posterity import DefaultBackend, SnapshotExpired, open_run
from posterity._system.disk import Disk
from smallchunks import small_chunks

GROUPINGS = [(1, 0, "None"), (3, 1, "None"), (3, 1, "gzip"), (2, 2, "None")]  # options, as text for a process


@pytest.fixture(autouse=True)
def _small_chunks():
    with small_chunks():
        yield


def fail(disk, name, args, *, code, half=False):
    if half:
        write_half(disk, name, args)
    raise OSError(code, os.strerror(code), name)


def read_again(outdir):
    with DefaultBackend(outdir=outdir) as backend:
        return backend.status.epochs, backend.burn, backend.get_samples(verify=True)


def check_files(outdir):
    """h5py reads all of every published file, and no temporary name is left."""
    assert [path.name for path in outdir.iterdir() if path.name.startswith(".")] == []
    for path in outdir.glob("*.h5"):
        with h5py.File(path) as file:
            file.visititems(lambda _, item: item[()] if isinstance(item, h5py.Dataset) else None)


FAULTS = {
    "full disk": partial(fail, code=errno.ENOSPC),
    "full disk, half written": partial(fail, code=errno.ENOSPC, half=True),
    "I/O error": partial(fail, code=errno.EIO),
}


def check_failing(folder, fault, at, options):
    """Run the workload on a disk whose call number `at` fails; returns how many calls it makes."""
    disk = FaultyDisk(folder, fault, at)
    with backend_on(disk, retry_after_s=0.001, **options) as backend:
        work(backend)
        np.testing.assert_array_equal(backend.get_samples(verify=True)["p"], samples(len(LENGTHS), BURN))
    nepochs, burn, found = read_again(disk.folder)
    assert (nepochs, burn) == (len(LENGTHS), BURN)
    np.testing.assert_array_equal(found["p"], samples(len(LENGTHS), BURN))
    check_files(disk.folder)
    return disk.ncalls


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("grouping", GROUPINGS, ids=str)
@pytest.mark.timeout(300)
def test_any_one_call_may_fail(tmp_path, fault, grouping, caplog):
    """Whichever call of the writer fails, it goes on by itself, and each epoch is written exactly once."""
    caplog.set_level("CRITICAL")
    options = options_of(*grouping)
    at, ncalls = 0, 1
    while at <= ncalls:
        ncalls = check_failing(tmp_path / f"run-{at}", fault, at, options)
        at += 1
    assert at > 100


# ---- kills -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workers():
    with Workers() as workers:
        yield workers


def killed(workers, outdir, grouping, **kill):
    """Run the workload in a process that is killed at a call; what it said was durable."""
    said = workers.work(outdir, *grouping, **kill)
    return max((tuple(words) for words in said if words[0] not in ("opened", "calls")), default=(0, 0))


def count_calls(workers, outdir, grouping, counted):
    """How many calls the whole workload makes."""
    return workers.work(outdir, *grouping, counted=counted)[-1][1]


def check_left(outdir, nepochs, burn):
    """What was durable is there, the rest up to some whole epoch; no temporary name is left."""
    found_epochs, found_burn, found = read_again(outdir)
    assert found_epochs >= nepochs
    assert found_burn >= burn
    expected = samples(found_epochs, found_burn) if found_epochs else np.empty((2, 2, 0))
    np.testing.assert_array_equal(np.empty((2, 2, 0)) if found is None else found["p"], expected)
    check_files(outdir)


def check_whole(outdir):
    """The run is as it is when nobody was killed."""
    nepochs, burn, found = read_again(outdir)
    assert (nepochs, burn) == (len(LENGTHS), BURN)
    np.testing.assert_array_equal(found["p"], samples(len(LENGTHS), BURN))
    check_files(outdir)


def check_killed(workers, outdir, grouping, **kill):
    """Kill the workload at a call: what was durable is there, and it goes on to the same end."""
    durable = killed(workers, outdir, grouping, **kill)
    if outdir.exists():
        check_left(outdir, *durable)
    assert killed(workers, outdir, grouping) == (len(LENGTHS), BURN)
    check_whole(outdir)


def killed_openings(workers, folder, grouping, at, counted):
    """Kill the workload at a call, then at each call of the next opening: what to check, each time."""
    left, whole = folder / "left", folder / "whole"
    durable = killed(workers, left, grouping, kill_at=at, counted=counted)
    if not left.exists():
        return
    shutil.copytree(left, whole)
    (_, ncalls), *_ = workers.work(whole, *grouping, opening=True, counted=counted)
    for again_at in range(1, 1 + ncalls):
        outdir = folder / f"run-{again_at}"
        shutil.copytree(left, outdir)
        yield again_at, partial(check_killed_opening, workers, outdir, grouping, durable, again_at, counted)
        shutil.rmtree(outdir)


def check_killed_opening(workers, outdir, grouping, durable, at, counted):
    """Kill the process that opens a run at a call: what was durable is there, and it goes on to the same end."""
    assert workers.work(outdir, *grouping, kill_at=at, opening=True, counted=counted) == []
    check_left(outdir, *durable)
    assert killed(workers, outdir, grouping) == (len(LENGTHS), BURN)
    check_whole(outdir)


# Where a process is killed at another call than a change, it leaves what the change before it left: so the tests kill at
# the changes. scripts/torture kills at all calls.


@pytest.mark.parametrize("grouping", GROUPINGS[:3], ids=str)
@pytest.mark.timeout(300)
def test_the_process_may_be_killed_at_any_call(tmp_path, workers, grouping):
    """What was durable is there, the rest up to some whole epoch; the run goes on to the same end."""
    for at in range(1, 1 + count_calls(workers, tmp_path / "whole", grouping, CHANGES)):
        check_killed(workers, tmp_path / f"run-{at}", grouping, kill_at=at, counted=CHANGES)


@pytest.mark.parametrize("grouping", GROUPINGS[:3:2], ids=str)
@pytest.mark.timeout(300)
def test_the_process_that_opens_a_run_may_be_killed_too(tmp_path, workers, grouping):
    """What a kill left is cleared up by whoever gets to the end of it, and the run goes on to the same end."""
    nkills = 0
    for at in range(3, 1 + count_calls(workers, tmp_path / "whole", grouping, CHANGES), 12):
        folder = tmp_path / f"killed-{at}"
        for _, check in killed_openings(workers, folder, grouping, at, CHANGES):
            check()
            nkills += 1
    assert nkills > 20


def check_opening_that_fails(left, outdir, fault, at, durable):
    """Open a run while a call fails: that is told, or does no harm, and the next opening finds all; the calls made."""
    shutil.copytree(left, outdir)
    disk = FaultyDisk(outdir, fault, at, opening=True)
    try:
        backend_on(disk).close()
    except OSError:
        assert disk.ncalls >= at
    check_left(outdir, *durable)
    return disk.ncalls


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_call_may_fail_while_a_run_is_opened(tmp_path, workers, fault, caplog):
    """Whichever call fails, nothing is lost by it: who opens the run again has all that was durable."""
    caplog.set_level("CRITICAL")
    grouping = GROUPINGS[1]
    for killed_at in range(7, count_calls(workers, tmp_path / "whole", grouping, CHANGES), 17):
        left = tmp_path / f"left-{killed_at}"
        durable = killed(workers, left, grouping, kill_at=killed_at, counted=CHANGES)
        at, ncalls = 0, 1
        while at <= ncalls:
            ncalls = check_opening_that_fails(left, tmp_path / f"run-{killed_at}-{at}", fault, at, durable)
            at += 1


# ---- what a reader sees meanwhile ------------------------------------------------------------------------------------


class LateSync(Disk):
    """A disk on which the journal's next sync fails, after somebody looked."""

    code = 0
    look = staticmethod(lambda: None)

    def sync_data(self, fd):
        if self.code:
            code, self.code = self.code, 0
            self.look()
            raise OSError(code, os.strerror(code))
        super().sync_data(fd)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("nbefore", [1, 3], ids=["same file", "new file"])
def test_a_record_that_was_never_synced_may_be_seen(tmp_path, code, nbefore):
    """A reader that saw an epoch whose record never was synced gets its numbers, or an error; never those of another."""
    disk = LateSync(tmp_path / "run")
    with backend_on(disk, epochs_per_file=3, retry_after_s=0.001) as backend:
        for index in range(nbefore):
            backend.ingest(epoch(index))
            backend.flush()
        first = sum(LENGTHS[:nbefore])
        with open_run(disk.folder) as run:
            seen = []

            def look():
                seen.append(run.snapshot())
                backend.set_burn(first + 1)  # what is tried next is another epoch

            disk.look, disk.code = look, code
            backend.ingest(epoch(nbefore))
            persistently(backend.flush)
            backend.ingest(epoch(nbefore + 1))
            backend.flush()
            assert seen[0].nepochs == nbefore + 1
            with seen[0] as snapshot, pytest.raises(SnapshotExpired):
                snapshot.get(nbefore)
            np.testing.assert_array_equal(run.get_samples()["p"], samples(nbefore + 2, first + 1))


# ---- epochs that never come from their device ------------------------------------------------------------------------


class LostArray:
    """An array of a device whose computation failed."""

    shape, dtype, nbytes, ndim, size = (2, 2, 3), np.dtype(float), 96, 3, 12

    def is_ready(self):
        return False

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("out of memory on the device")


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from faulty import LENGTHS, backend_on, epoch
from test_faults import LostArray
from posterity import DefaultBackend, SnapshotExpired, open_run
from posterity._system.disk import Disk

backend = DefaultBackend(outdir=sys.argv[1], epochs_per_file=2, inmem_epochs=9)
for index in range(3):
    backend.ingest(epoch(index))
backend.ingest_dict({**epoch(3), "samples": {"p": LostArray()}}, copy=False)
"""


def test_epochs_before_one_that_never_comes_are_stored(tmp_path):
    """An epoch that can't be fetched is named, the process ends with 74, and the epochs before it are on disk."""
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "run"), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 74, done.stderr
    assert "1 epochs of" in done.stderr
    assert "out of memory on the device" in done.stderr
    nepochs, _, found = read_again(tmp_path / "run")
    assert nepochs == 3
    np.testing.assert_array_equal(found["p"], samples(3, 0))
