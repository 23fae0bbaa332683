"""Readers in other processes, without pause, over a run that is written, burned, reset, killed and opened again."""

import os
import random
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import elsewhere
from elsewhere import CALLS, check_answer, check_registry, epoch, is_refused, numbers, question, say
from posterity import DefaultBackend, SnapshotExpired, open_run
from posterity._reading.followed_run import FollowedRun
from posterity._reading.run import Run
from posterity._system.disk import Disk

SCRIPT = Path(elsewhere.__file__)
NOBODY = 65534
EVERYTHING = {"burn": 0, "thin": 1, "pars": ["p", "ll"], "mask": ..., "flatten": False, "verify": True}


class Process:
    """A writer or a reader that runs elsewhere."""

    def __init__(self, *arguments, script=SCRIPT):
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed with the process
        self._said = []
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", str(script), *map(str, arguments)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
        )  # fmt: skip
        self.pid = self._process.pid

    def steps(self, n=1):
        """Wait until it has said so many more lines."""
        for _ in range(n):
            line = self._process.stdout.readline()
            assert line, self._complaints()
            self._said.append(line.strip())

    def says(self, *lines):
        """Wait until it has said all of this."""
        while not set(lines) <= set(self._said):
            self.steps()

    def _complaints(self):
        self._errors.seek(0)
        return self._errors.read()

    def signal(self, number):
        self._process.send_signal(number)

    def end(self):
        """Have it end by itself; the last that it says."""
        said, _ = self._process.communicate()
        assert self._process.returncode == 0, self._complaints()
        return said.splitlines()[-1]

    def kill(self):
        self._process.kill()
        self._process.communicate()

    def close(self):
        self.kill()
        self._errors.close()


@contextmanager
def processes():
    """Starts processes, and sees to it that none is left."""
    started = []

    def start(*arguments, **options):
        started.append(Process(*arguments, **options))
        return started[-1]

    try:
        yield start
    finally:
        for process in started:
            process.close()


@pytest.fixture
def start():
    with processes() as start:
        yield start


@pytest.fixture
def outdir(tmp_path):
    return tmp_path / "run"


def written(outdir, nepochs=10, **options):
    """A run of some epochs of equal length, still open."""
    backend = DefaultBackend(outdir=outdir, **options)
    for index in range(nepochs):
        backend.ingest(epoch("equal", 0, index))
    backend.flush()
    return backend


def ask_all(snapshot, kind="equal", rng=None):
    """Everything that can be asked of a snapshot is answered exactly."""
    registry = snapshot.registry
    rng = rng or random.Random(1)
    check_registry(kind, registry, rng)
    questions = [("get_samples", EVERYTHING), *(question(rng, registry) for _ in range(20))]
    for name, asked in questions:
        if is_refused(name, asked, registry) is None:
            check_answer(kind, name, asked, registry, getattr(snapshot, name)(**asked))


# ---- the storm -------------------------------------------------------------------------------------------------------


def storm(outdir, start, kind, seed, nkills):
    """Readers of all faces over a run whose writer is killed again and again."""
    rng = random.Random(seed)
    writer = start("write", outdir, kind, rng.random())
    while not (outdir / "posterity.journal").exists():
        writer.steps()
    readers = [start("read", outdir, kind, rng.random(), face) for face in ("blocking", "asyncio", "trio")]
    for reader in readers:
        reader.says("open")
    for _ in range(nkills):
        stopped = rng.choice(readers)
        stopped.signal(signal.SIGSTOP)
        writer.steps(rng.randrange(10, 120))
        writer.kill()
        stopped.signal(signal.SIGCONT)
        with open_run(outdir) as run, run.snapshot() as snapshot:
            ask_all(snapshot, kind, rng)  # nobody writes: nothing expires
        writer = start("write", outdir, kind, rng.random())
    wanted = [f"first {what}" for what in (*CALLS, "updates", "expired")]
    with ThreadPoolExecutor() as threads:
        waiting = [threads.submit(reader.says, *wanted) for reader in readers]
        while not all(end.done() for end in waiting):
            writer.steps()
    for end in waiting:
        end.result()
    for reader in readers:
        say(reader.end())


@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", ["equal", "unequal"])
def test_each_snapshot_is_exact_or_has_expired(outdir, start, kind):
    """Whatever becomes of a run and of its writer, readers get exact numbers or `SnapshotExpired`, and nothing else."""
    seed = random.randrange(2**32)
    say(f"seed {seed}")
    storm(outdir, start, kind, seed, nkills=4)


def test_a_reader_that_stood_still_goes_on(outdir, start):
    """A process that is stopped in the middle of reading holds up nobody; when it goes on, so does the run for it."""
    with written(outdir, epochs_per_file=3) as backend:
        reader = start("read", outdir, "equal", 1, "blocking")
        reader.says("first get_samples")
        reader.signal(signal.SIGSTOP)
        for index in range(10, 40):
            backend.ingest(epoch("equal", 0, index))
        backend.set_burn(455)
        backend.update()
        assert {path.name for path in outdir.glob("*.h5")} == {f"epochs_{i}.h5" for i in range(8, 14)}
        backend.reset()
    with DefaultBackend(outdir=outdir, mode="w") as backend:
        backend.ingest(epoch("equal", 2, 0))
        backend.update()
        assert {path.name for path in outdir.iterdir() if ".h5" in path.name} == {"epochs_1.h5"}
        reader.signal(signal.SIGCONT)
        reader.says("generation 2")
        reader.end()


# ---- a reader leaves no trace ----------------------------------------------------------------------------------------


class OnlyRead(Disk):
    """A disk that can't be changed, nor locked."""

    def open(self, name, *, write=False):
        assert not write
        assert name != "posterity.lock"
        return super().open(name)

    def _refuse(self, *_args, **_kwargs):
        raise AssertionError("a reader changes nothing")

    create = open_or_create = reserve = write_at = sync = sync_data = sync_names = _refuse
    truncate = publish = replace = remove = _refuse


def look_of(folder):
    """All that a change of a folder would show in."""
    looks = {path.name: path.stat() for path in (folder, *folder.iterdir())}
    return {name: (look.st_ino, look.st_size, look.st_mtime_ns, look.st_ctime_ns) for name, look in looks.items()}


def test_a_reader_writes_nothing(outdir):
    """No reading call makes, changes or locks a file; names, sizes and times in the folder stay as they were."""
    with written(outdir, epochs_per_file=3):
        before = look_of(outdir)
        disk = OnlyRead(outdir)
        disk.enter()
        with Run(FollowedRun(disk)) as run:
            for _ in range(20):
                with run.snapshot() as snapshot:
                    ask_all(snapshot)
            assert next(run.updates()).nepochs == 10
        assert look_of(outdir) == before


READ_ONLY = """
import os, sys
from posterity import open_run
from elsewhere import numbers
if os.geteuid() == 0:
    os.setegid({nobody}), os.seteuid({nobody})
try:
    open(os.path.join(sys.argv[1], "try"), "w")
except PermissionError:
    pass
else:
    sys.exit("the folder isn't read-only")
with open_run(sys.argv[1]) as run:
    assert (run.get_samples(verify=True)["p"] == numbers(0, range(200))).all()
    run.load()
    assert len(run.get_stats()) == 10
"""


def test_a_run_can_be_read_by_who_may_not_write_it():
    """Somebody else's folder, without permission to write, is read like one's own, while it is written."""
    with tempfile.TemporaryDirectory() as parent:  # not tmp_path, which is closed to others
        outdir = Path(parent) / "run"
        Path(parent).chmod(0o755)
        with written(outdir):
            outdir.chmod(0o555)
            done = subprocess.run(
                [sys.executable, "-c", READ_ONLY.format(nobody=NOBODY), str(outdir)],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(SCRIPT.parent), *sys.path]))},
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            outdir.chmod(0o755)
        assert done.returncode == 0, done.stderr


def test_a_snapshot_keeps_no_file(outdir):
    """The files that a burn takes go at once, whatever snapshots readers have of them."""
    with written(outdir) as backend, open_run(outdir) as run, run.snapshot() as snapshot:
        assert snapshot.nsamples == 200
        backend.set_burn(120)
        backend.update()
        assert {path.name for path in outdir.glob("*.h5")} == {f"epochs_{i}.h5" for i in range(7, 11)}
        with pytest.raises(SnapshotExpired, match="epoch 0 was burned since"):
            snapshot.get_samples()
        np.testing.assert_array_equal(snapshot.get_samples(burn=120)["p"], numbers(0, range(120, 200)))
        np.testing.assert_array_equal(run.get_samples()["p"], numbers(0, range(120, 200)))
