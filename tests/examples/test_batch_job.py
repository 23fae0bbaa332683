"""The batch job, in a queue of our own: it is warned, killed and queued again, and the chain is that of one long job."""

import contextlib
import importlib.util
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import emcee
import numpy as np
import pytest

from posterity import DefaultBackend, open_run

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs/examples/batch_job.py"
JOB_SCRIPT = ROOT / "docs/examples/batch_job.sbatch"
PAGE = ROOT / "docs/how-to/run-in-a-batch-queue.md"
SIZE = ("--epochs", "4", "--steps", "1200")

pytestmark = pytest.mark.timeout(300)  # each round starts Python anew, and the machine may be busy


class Queue:
    """A batch queue for one job: it starts the job script, and notes whether that asks to be queued again."""

    def __init__(self, folder):
        self.outdir = folder / "run"
        self._asked = folder / "asked"
        self._bin = folder / "bin"
        self._bin.mkdir()
        self._command("python", f'exec "{sys.executable}" -W error "$@"')
        self._command("scontrol", f'echo "$*" >> "{self._asked}"')

    def _command(self, name, line):
        path = self._bin / name
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)

    def start(self, *options):
        """Start the job, as Slurm does: the script, in a session of its own."""
        self._asked.unlink(missing_ok=True)
        path = f"{self._bin}:{os.environ['PATH']}"
        return Round(
            ["bash", JOB_SCRIPT, "--outdir", self.outdir, *SIZE, *options],
            cwd=ROOT,
            env={**os.environ, "PATH": path, "SLURM_JOB_ID": "4711"},
        )

    @property
    def is_asked_to_requeue(self):
        return self._asked.exists() and self._asked.read_text() == "requeue 4711\n"

    def chain(self):
        """What is in the run folder; every checksum is looked at."""
        with open_run(self.outdir) as run:
            return run.get_samples(pars=["p", "lp"], verify=True)


class Round(subprocess.Popen):
    """The job from one start to its end; it and all that it started are killed at the latest when the block is left."""

    def __init__(self, command, **options):
        super().__init__(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            **options,
        )
        self.told = ""

    def wait_for(self, word):
        """Wait until the job tells something that begins with a word; False if it ends first."""
        for line in self.stdout:
            self.told += line
            if line.startswith(word):
                return True
        return False

    def end(self):
        """Wait for the end; returns the exit code."""
        self.told += self.stdout.read()
        return self.wait()

    def kill_all(self):
        """Kill the shell and the job, as Slurm does after the grace period."""
        with contextlib.suppress(ProcessLookupError):  # they have ended
            os.killpg(self.pid, signal.SIGKILL)

    def __exit__(self, *error):
        self.kill_all()
        super().__exit__(*error)


@pytest.fixture
def queue(tmp_path):
    return Queue(tmp_path)


@pytest.fixture(scope="module")
def long_job(tmp_path_factory):
    """A job that nobody interrupts: its chain, and how long it took."""
    queue = Queue(tmp_path_factory.mktemp("long"))
    start = time.monotonic()
    with queue.start() as job:
        assert job.end() == 0, job.told
    return queue.chain(), time.monotonic() - start


def assert_same(chain, expected):
    """Bit for bit: equal numbers could hide a -0.0 or a NaN."""
    assert chain["p"].shape == (40, 10, 4 * 1200)
    for name in expected:
        assert chain[name].tobytes() == expected[name].tobytes(), name


@pytest.mark.parametrize(("options", "code"), [((), 143), (("--finish-epoch",), 75)], ids=["flush", "finish epoch"])
def test_the_time_limit(queue, long_job, options, code):
    """Warned by SIGTERM in each round, the job asks to be queued again until all is there, and the chain is that of one long job."""
    codes = []
    while not codes or codes[-1] != 0:
        with queue.start(*options) as job:
            if job.wait_for("epoch") and job.wait_for("epoch"):
                job.terminate()  # the shell alone gets it
            codes.append(job.end())
        assert codes[-1] in (0, code), job.told
        assert queue.is_asked_to_requeue is (codes[-1] == code)
        with open_run(queue.outdir) as run, run.snapshot() as snapshot:
            assert f"epoch {snapshot.nepochs + 1} of" not in job.told, "an epoch that it told isn't there"
        assert not list(queue.outdir.glob(".*")), "what was left half done"
    assert len(codes) > 1
    assert_same(queue.chain(), long_job[0])


def test_sigkill_at_random_moments(queue, long_job):
    """Killed at any moment, with a SIGTERM just before or without, the job goes on, and the chain is that of one long job."""
    chain, took_s = long_job
    rng = random.Random(4711)
    codes, done, were_done = [], 0, set()
    while not codes or codes[-1] != 0:
        with queue.start(*rng.choice([(), ("--finish-epoch",)])) as job:
            if not done:
                job.wait_for("epoch 2")
            else:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    job.wait(rng.uniform(0.2, 0.8) * took_s * (1 + len(codes) / 5))
            if rng.random() < 0.5:
                job.terminate()
            job.kill_all()
            codes.append(job.end())
        assert codes[-1] in (0, -signal.SIGKILL), job.told
        if done or (queue.outdir / "posterity.journal").exists():
            with open_run(queue.outdir) as run, run.snapshot() as snapshot:
                assert snapshot.nepochs >= done, "what was there is gone"
                done = snapshot.nepochs
            were_done.add(done)
    assert were_done & {1, 2, 3}, "no round began in the middle of the run"
    assert_same(queue.chain(), chain)


def test_a_job_that_is_done(queue):
    """Started again when all is there, the job ends well, asks for nothing, and leaves the files as they are."""
    states = []
    for _ in range(2):
        with queue.start("--epochs", "2") as job:
            assert job.end() == 0, job.told
        assert not queue.is_asked_to_requeue
        files = [path for path in sorted(queue.outdir.iterdir()) if path.name != "posterity.lock"]
        states.append([(path.name, path.stat().st_mtime_ns, path.read_bytes()) for path in files])
    assert "epoch 1 of" not in job.told
    assert states[0] == states[1]


def test_a_job_that_is_started_twice(queue):
    """While another process writes the run, the job ends with an error that says which, and isn't queued again."""
    with DefaultBackend(outdir=queue.outdir) as backend:
        backend.ingest({"samples": {"p": np.zeros((40, 10, 5))}})
        backend.flush()
        with queue.start() as job:
            assert job.end() == 1
    assert f"is written by process {os.getpid()}" in job.told
    assert not queue.is_asked_to_requeue


@pytest.mark.parametrize("has_blobs", [False, True])
def test_the_state_of_emcee(tmp_path, has_blobs):
    """The state that emcee gives comes back from an epoch in a fresh backend: the same types, and the same bits."""
    spec = importlib.util.spec_from_file_location("batch_job", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    sampler = emcee.EnsembleSampler(40, 10, lambda x: (-0.5 * x @ x, x[0]) if has_blobs else -0.5 * x @ x)
    state = sampler.run_mcmc(example.first_state(), 3)
    with DefaultBackend(outdir=tmp_path / "run") as backend:
        backend.ingest(example.epoch_of(sampler, state))
    with open_run(tmp_path / "run") as run:
        found = emcee.State(**run.load().state)

    for name in ("coords", "log_prob", "blobs"):
        was, now = getattr(state, name), getattr(found, name)
        assert type(now) is type(was)
        if was is not None:
            assert (now.dtype, now.shape, now.tobytes()) == (was.dtype, was.shape, was.tobytes())
    assert (found.blobs is not None) is has_blobs
    assert [type(part) for part in found.random_state] == [type(part) for part in state.random_state]
    for now, was in zip(found.random_state, state.random_state, strict=True):
        np.testing.assert_array_equal(now, was)
    generator = np.random.RandomState()
    generator.set_state(found.random_state)  # emcee would take a state that it can't read for none, and say nothing
    np.testing.assert_array_equal(generator.rand(1000), sampler._random.rand(1000))


def test_the_page_shows_the_job_script():
    """The job script in the how-to page is the one that was tested."""
    assert f"```sh\n{JOB_SCRIPT.read_text()}```" in PAGE.read_text()
