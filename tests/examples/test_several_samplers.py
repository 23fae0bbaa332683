"""The example `several_samplers`, run as a user would, interrupted and run again; then the run folders are read."""

import asyncio
import contextlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest

from posterity import DefaultBackend, open_run

pytest.importorskip("arviz_stats")
pytest.importorskip("emcee")

SCRIPT = Path(__file__).parents[2] / "docs" / "examples" / "several_samplers.py"
LOOPS = ["asyncio", "trio"]
KINDS = ["threads", "processes", "generators"]
EACH_KIND = {"threads": 1, "processes": 1, "generators": 1}
NEVER = ("--rhat", 0)

HANDED_OVER = re.compile(r"(\w+_\d): epoch (\d+) handed over")
LOOK = re.compile(r"(\d+) steps, (\d+) chains: R-hat ([\d.]+), ESS (\d+), slope ([\d.]+)")
OTHER_LINES = re.compile(
    r"converged|not converged after .*|SIG\w+: stopping the samplers|\S+: \d+ epochs, .*|.* \+/- .*|"
    r"\S+ holds a run of \d+ epochs and .*; it is continued"
)

pytestmark = pytest.mark.timeout(180)  # several processes, each with the import of emcee


class Script:
    """The example in a process and a process group of its own, and all that it and its children print."""

    def __init__(self, outdir, *args, **samplers):
        counts = [f"--{kind}={samplers.get(kind, 0)}" for kind in KINDS]
        self.lines = []
        self.seen_children = set()
        self.process = subprocess.Popen(
            [sys.executable, SCRIPT, "--verbose", "--outdir", outdir, *counts, *map(str, args)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"PYTHONWARNINGS": "error", "PYTHONUNBUFFERED": ""},  # a line is one write
            start_new_session=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, failed, *_):
        for pid in {*self.seen_children, *self.children(), self.process.pid} if failed else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.stdout.close()
        self.process.wait()

    def end(self):
        """Wait for the end, also of its children; returns the exit code."""
        self.lines += self.process.stdout.read().splitlines()
        return self.process.wait()

    def wait_until(self, condition):
        """Wait until what it has printed fulfils a condition."""
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            if condition():
                return
        raise AssertionError("\n".join(self.lines))

    def wait_for_epochs(self, n, samplers=3):
        """Wait until each sampler has handed over so many epochs since the start."""
        self.wait_until(lambda: sum(len(epochs) >= n for epochs in self.handed_over().values()) == samplers)

    def wait_for_line(self, line, times):
        """Wait until it has printed a line so many times."""
        self.wait_until(lambda: self.lines.count(line) == times)

    def handed_over(self):
        """Which epochs each sampler said that it had handed over."""
        found = {}
        for line in self.lines:
            if match := HANDED_OVER.fullmatch(line):
                found.setdefault(match[1], []).append(int(match[2]))
        return found

    def looks(self):
        """What it printed each time it looked at all the runs."""
        return [match.groups() for match in map(LOOK.fullmatch, self.lines) if match]

    def odd_lines(self):
        """All that isn't one of the lines which it is meant to print."""
        return [line for line in self.lines if not any(p.fullmatch(line) for p in (HANDED_OVER, LOOK, OTHER_LINES))]

    def children(self):
        """The processes of its samplers; trio starts them in a thread."""
        found = []
        for task in Path(f"/proc/{self.process.pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):  # that thread has just ended
                found += map(int, task.read_text().split())
        self.seen_children.update(found)
        return found


def stored(outdir):
    """The samples of each run in a folder that has some: whole epochs, every checksum looked at."""
    found = {}
    for folder in sorted(outdir.iterdir()):
        with open_run(folder) as run:
            samples = run.get_samples(verify=True)
            if samples is not None:  # a sampler that was killed may have a run, and no epoch in it yet
                found[folder.name] = samples["p"]
                assert samples["p"].shape[2] == 200 * run.snapshot().nepochs
    return found


def assert_all_there(outdir, handed_over, before=None):
    """What was handed over, in this process and before it, is what the run folders hold; all is published."""
    assert list(outdir.glob("*/.*")) == []
    done = {name: p.shape[2] // 200 for name, p in (before or {}).items()}
    there = stored(outdir)
    expected = {name: list(range(done.get(name, 0), p.shape[2] // 200)) for name, p in there.items()}
    assert handed_over == expected
    for name, p in (before or {}).items():
        np.testing.assert_array_equal(there[name][:, :, : p.shape[2]], p)
    return there


def is_free(outdir):
    """Whether nobody writes the runs any more."""
    for folder in outdir.iterdir():
        with DefaultBackend(outdir=folder):
            pass
    return True


@pytest.fixture(scope="module")
def example():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("several_samplers", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def never_stopped(example, tmp_path_factory):
    """The chains of runs of which nobody stopped the samplers, by the names of the runs."""
    folder = tmp_path_factory.mktemp("never stopped")

    def run_emcee(name, nepochs):
        with DefaultBackend(outdir=folder / name) as backend:

            def check():
                if backend.status.epochs == nepochs:
                    raise InterruptedError

            with pytest.raises(InterruptedError):
                example.sample_with_emcee(backend, name, check)
            return backend.get_samples()["p"]

    async def run_metropolis(name, nepochs):
        async with aclosing(example.metropolis(example.first_walkers(name), name, 0)) as epochs:
            return np.concatenate([(await anext(epochs))["samples"]["p"] for _ in range(nepochs)], axis=2)

    return {
        "threads_0": run_emcee("threads_0", 12),
        "processes_0": run_emcee("processes_0", 12),
        "generators_0": asyncio.run(run_metropolis("generators_0", 12)),
    }


@pytest.fixture(scope="module")
def posterior(example):
    """The means and widths of the posterior, integrated on a grid: no sampler had a hand in it."""
    axes = [np.linspace(-0.5, 4.5, 60), np.linspace(350, 480, 60), np.linspace(-1, 2, 40)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    log_p = example.log_posterior(grid)
    weights = np.exp(log_p - log_p.max())
    mean = np.average(grid, axis=0, weights=weights)
    return mean, np.sqrt(np.average((grid - mean) ** 2, axis=0, weights=weights))


# ---- to the stop -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("kind", KINDS)
def test_samplers_of_each_kind_run_until_they_have_converged(kind, loop, posterior, tmp_path):
    """Two samplers stop by themselves; the numbers printed then follow from the files, and the posterior is right."""
    from arviz_stats.base import array_stats

    with Script(tmp_path, "--loop", loop, "--rhat", 1.05, "--ess", 300, **{kind: 2}) as script:
        assert script.end() == 0, script.lines
    assert script.odd_lines() == []
    runs = assert_all_there(tmp_path, script.handed_over())
    steps, nchains, rhat, ess, _ = script.looks()[-1]
    n = int(steps)
    chains = np.concatenate([p[:, :, n // 2 : n : 5] for p in runs.values()])
    assert int(nchains) == len(chains) == 16
    assert f"{array_stats.rhat(chains, chain_axis=0, draw_axis=2).max():.4f}" == rhat
    assert f"{array_stats.ess(chains, chain_axis=0, draw_axis=2).min():.0f}" == ess
    assert float(rhat) <= 1.05
    assert float(ess) >= 300
    mean, width = posterior
    assert np.all(np.abs(chains.mean(axis=(0, 2)) - mean) < 0.4 * width)


# ---- interrupted -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("loop", "number"), [("asyncio", signal.SIGINT), ("trio", signal.SIGTERM)])
def test_an_interrupted_run_is_whole_and_goes_on_as_if_it_never_was(loop, number, never_stopped, tmp_path):
    """SIGINT to the process, a rerun, and SIGINT or SIGTERM twice to it and its children: each time exactly what was
    handed over is stored, and in the end the chains are those of runs that were never stopped."""
    with Script(tmp_path, "--loop", loop, *NEVER, **EACH_KIND) as script:
        script.wait_for_epochs(2)
        os.kill(script.process.pid, signal.SIGINT)
        assert script.end() == 130, script.lines
    assert script.odd_lines() == []
    before = assert_all_there(tmp_path, script.handed_over())

    with Script(tmp_path, "--loop", loop, *NEVER, **EACH_KIND) as script:
        script.wait_for_epochs(1)
        [child] = script.children()
        os.kill(child, signal.SIGSTOP)  # as long as it stands still, the script can't end
        os.kill(child, number)
        for times in (1, 2):
            os.killpg(script.process.pid, number)
            script.wait_for_line(f"{number.name}: stopping the samplers", times)
        os.kill(child, signal.SIGCONT)
        assert script.end() == 128 + number, script.lines
    assert script.odd_lines() == []
    runs = assert_all_there(tmp_path, script.handed_over(), before)

    for name, p in runs.items():
        n = min(p.shape[2], never_stopped[name].shape[2])
        np.testing.assert_array_equal(p[:, :, :n], never_stopped[name][:, :, :n])
    assert is_free(tmp_path)


# ---- killed ------------------------------------------------------------------------------------------------------------


def test_a_sampler_in_a_process_ends_when_its_parent_was_killed(tmp_path):
    """SIGKILL to the parent: a sampler in a process stops by itself, and all that it handed over is stored."""
    with Script(tmp_path, *NEVER, processes=1) as script:
        script.wait_for_epochs(2, samplers=1)
        assert len(script.children()) == 1
        os.kill(script.process.pid, signal.SIGKILL)
        assert script.end() == -signal.SIGKILL  # what they print ends when they have ended
    assert script.odd_lines() == []
    assert_all_there(tmp_path, script.handed_over())


def test_a_sampler_that_dies_stops_the_others(tmp_path):
    """SIGKILL to a sampler in a process: the script fails and says why, and the other runs are closed and whole."""
    with Script(tmp_path, *NEVER, processes=1, generators=1) as script:
        script.wait_for_epochs(2, samplers=2)
        [child] = script.children()
        os.kill(child, signal.SIGKILL)
        assert script.end() == 1, script.lines
    assert any("the sampler of processes_0" in line and "SIGKILL" in line for line in script.lines), script.lines
    handed_over = script.handed_over()
    del handed_over["processes_0"]  # not flushed: how many of its epochs are there is the kill's choice
    there = {name: list(range(p.shape[2] // 200)) for name, p in stored(tmp_path).items() if name != "processes_0"}
    assert handed_over == there
    assert is_free(tmp_path)
