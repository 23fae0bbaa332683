"""A disk that fails for good, from its n-th call on, and is mended: nothing is lost, and everybody is told meanwhile."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest

from faulty import AILMENTS, BrokenDisk, backend_on, options_of, short_writes
from known import epoch_dict, numbers
from posterity import DefaultBackend, MailboxFull, State, WriteFailed, open_run, verify
from posterity._system.disk import is_full
from test_faults import GROUPINGS, check_files

NEPOCHS = 6
NSAMPLES = 5
BURN = 2 * NSAMPLES + 2
MOST = 3


def epoch(index):
    return epoch_dict(index * NSAMPLES, NSAMPLES)


class Sampler:
    """Ingests, burns and flushes, and looks at everything when the disk fails."""

    def __init__(self, backend, disk, caplog):
        self.backend = backend
        self.ledger = backend._service.ledger
        self.disk = disk
        self.caplog = caplog
        self.receipts = []
        self.nepochs = 0
        self.has_looked = False

    def work(self):
        for step in range(NEPOCHS):
            if self.nepochs <= step:
                self.ingest()
            if step == 3:
                self.burn()
            if not self.flush(publish=step == 4):
                self.look_while_it_lasts()
                self.look_when_it_is_mended()
        if self.disk.has_failed and not self.disk.is_mended:
            self.look_while_it_lasts()
            self.look_when_it_is_mended()

    def ingest(self):
        self.receipts.append(self.backend.ingest_nowait(epoch(self.nepochs)))
        self.nepochs += 1

    def burn(self):
        if self.backend.burn < BURN:
            self.backend.set_burn(BURN)

    def flush(self, publish):
        """Whether it worked; else it tells why."""
        try:
            self.backend.flush(publish=publish)
        except WriteFailed as error:
            cause = error.__cause__
        else:
            return True
        assert cause.errno == self.disk.ailment.code
        return False

    def expected(self):
        return numbers(self.backend.burn, self.nepochs * NSAMPLES - self.backend.burn)

    def look_while_it_lasts(self):
        """Nothing is acknowledged, the mailbox is bounded, and each way to ask tells what is wrong."""
        self.has_looked = True
        backend, ledger, code = self.backend, self.ledger, self.disk.ailment.code
        told = os.strerror(code)
        durable = [receipt.durable.done for receipt in self.receipts]
        self.burn()
        self.fill()
        failures = ledger.failures
        assert ledger.wait(lambda: ledger.has_failed(failures + 2), 30)  # nobody asks for these attempts
        assert self.fill().__cause__.errno == code
        assert [receipt.durable.done for receipt in self.receipts[: len(durable)]] == durable
        assert not any(receipt.durable.done for receipt in self.receipts[len(durable) :])
        assert not self.flush(publish=False)
        status = backend.status
        assert status.state is State.WAITING
        assert told in status.last_error
        assert 0 < status.queued_epochs <= MOST
        assert 0 < status.queued_bytes <= ledger.options.max_pending_bytes
        assert any(told in line.getMessage() for line in self.caplog.records if line.name.startswith("posterity."))
        with pytest.raises(MailboxFull, match=told):
            backend.ingest(epoch(self.nepochs), timeout_s=0)
        np.testing.assert_array_equal(backend.get_samples(verify=True)["p"], self.expected())
        self.look_from_elsewhere(ndurable=sum(durable))

    def look_from_elsewhere(self, ndurable):
        """A reader in another process sees all that was acknowledged, and exact numbers."""
        if not (self.disk.folder / "posterity.journal").exists():
            assert ndurable == 0
            return
        with open_run(self.disk.folder) as run, run.snapshot() as snapshot:
            registry = snapshot.registry
            assert registry.next_index >= ndurable
            if registry.nsamples_left:
                expected = numbers(registry.burn, registry.nsamples - registry.burn)
                np.testing.assert_array_equal(snapshot.get_samples(verify=True)["p"], expected)

    def fill(self):
        """Hand over until there is no room; the error that told so."""
        for _ in range(3 * MOST):
            try:
                self.ingest()
            except MailboxFull as error:
                return error
        raise AssertionError("the mailbox has no end")

    def look_when_it_is_mended(self):
        """Who waits for room gets it, and all is written, without anyone's help."""
        ledger = self.ledger
        with ThreadPoolExecutor() as threads:
            waiting = None
            if ledger.options.on_full == "wait":
                waiting = threads.submit(self.backend.ingest, epoch(self.nepochs))
                assert ledger.wait(lambda: ledger._room._waiting, 30)
                assert not waiting.done()
            self.disk.mend()
            if waiting is not None:
                waiting.result(30)
                self.nepochs += 1
        assert ledger.wait(lambda: ledger.pending[0] == 0 and ledger.fault is None, 30)
        assert self.flush(publish=False)
        assert self.backend.status.state is State.RUNNING
        assert self.backend.status.last_error is None
        assert all(receipt.durable.done for receipt in self.receipts)


def check_lasting(folder, ailment, at, options, caplog):
    """Run a workload on a disk that fails from call `at` on, until it is mended; how many calls
    that makes, and whether anybody was concerned."""
    disk = BrokenDisk(folder, ailment, at)
    caplog.records.clear()
    on_full = "wait" if at % 2 else "raise"
    options = {
        "max_pending_epochs": MOST,
        "on_full": on_full,
        "retry_after_s": 0.001,
        "retry_at_most_s": 0.01,
        **options,
    }
    try:
        with backend_on(disk, **options) as backend:
            watch_removals(disk, backend._service)
            sampler = Sampler(backend, disk, caplog)
            try:
                sampler.work()
            finally:
                disk.mend()  # so that closing doesn't wait for it
        assert disk.wrongs == [], disk.wrongs
    finally:
        disk.give_up()
    check_written_once(folder, sampler.nepochs)
    return disk.ncalls, sampler.has_looked


def watch_removals(disk, service):
    """If the disk fails otherwise than for want of room, files go when all else was done that was to be done.

    What was going when all was still well is tried again.
    """
    store, ledger, going = service.store, service.ledger, set()

    def may_remove(name):
        is_well = ledger.fault is None or is_full(ledger.fault.error)
        return is_well or name in going or len(store.catalog.places) == ledger.registry.next_index

    disk.may_remove = may_remove
    disk.note_failure = lambda: going.update(chore.name for chore in store._chores._waiting)


def check_written_once(folder, nepochs):
    """Each epoch is in one file; h5py reads all of them, and so do we, every checksum included."""
    check_files(folder)
    written = []
    for path in folder.glob("*.h5"):
        with h5py.File(path) as file:
            written += [int(name.removeprefix("epoch_")) for name in file]
    assert len(written) == len(set(written))
    assert verify(folder).is_good
    with DefaultBackend(outdir=folder) as backend:
        assert (backend.status.epochs, backend.burn) == (nepochs, BURN)
        np.testing.assert_array_equal(backend.get_samples(verify=True)["p"], numbers(BURN, nepochs * NSAMPLES - BURN))
        assert set(range(2, nepochs)) <= set(written)


@pytest.mark.parametrize("ailment", AILMENTS.values(), ids=AILMENTS)
@pytest.mark.parametrize("grouping", GROUPINGS, ids=str)
@pytest.mark.timeout(300)
def test_a_disk_that_fails_until_it_is_mended(tmp_path, ailment, grouping, caplog):
    """Nothing is acknowledged while it lasts, and everybody is told; then each epoch is written once, by itself."""
    options = options_of(*grouping)
    ncalls, _ = check_lasting(tmp_path / "whole", ailment, 10**9, options, caplog)
    tried = range(1 + options["epochs_per_file"], ncalls, 11)
    looks = sum(check_lasting(tmp_path / f"run-{at}", ailment, at, options, caplog)[1] for at in tried)
    assert looks > len(tried) / 2  # it also fails when all is done, and nobody is concerned


@pytest.mark.parametrize("grouping", GROUPINGS, ids=str)
def test_a_system_that_writes_less_than_asked(tmp_path, grouping, caplog):
    """A write that the system does by half is gone on with; nobody is told, and nothing is missing."""
    options = options_of(*grouping)
    with short_writes(1, for_good=True) as calls:
        check_lasting(tmp_path / "run", AILMENTS["full disk"], 10**9, options, caplog)
        assert next(calls) > 100
    assert not [line for line in caplog.records if line.levelname in ("ERROR", "CRITICAL")]


GREEDY = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import numpy as np
from faulty import AILMENTS, BrokenDisk, backend_on
from posterity import MailboxFull

MB = 1 << 20
page = os.sysconf("SC_PAGE_SIZE")


def used():
    return int(Path("/proc/self/statm").read_text().split()[1]) * page


disk = BrokenDisk(Path(sys.argv[1]), AILMENTS[sys.argv[3]], 60)
p = np.random.default_rng(1).normal(size=(4, 4, MB // 64))  # 2 MB
options = {"max_pending_bytes": 16 * MB, "epochs_per_file": 4, "retry_after_s": 0.001, "retry_at_most_s": 0.001}
backend = backend_on(disk, on_full="raise", **options)
ledger = backend._service.ledger
before, nrefused, npassed, most = used(), 0, 0, 0
while nrefused < 100:
    try:
        backend.ingest({"samples": {"p": p}})
        npassed += 1
    except MailboxFull:
        nrefused += 1
        failures = ledger.failures
        ledger.wait(lambda: ledger.has_failed(failures) or not ledger.pending[0], 30)
    assert backend.status.queued_bytes <= 16 * MB
    most = max(most, used())
assert disk.has_failed and npassed >= 8, npassed
disk.mend()
backend.close()
assert (most - before) / MB < 5 * 16, (most - before) / MB
"""


@pytest.mark.parametrize("ailment", ["full disk", "I/O error"])
def test_memory_is_bounded_while_the_disk_fails(tmp_path, ailment):
    """However long a disk fails, and however often writing is tried, no more is kept than the mailbox may hold."""
    command = [sys.executable, "-c", GREEDY, str(tmp_path / "run"), str(Path(__file__).parent), ailment]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
