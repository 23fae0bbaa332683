"""The flow on Dask, on a real cluster of processes: watched, stopped, killed and interrupted while it samples."""

import contextlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from posterity import DefaultBackend, open_run

EXAMPLE = Path(__file__).parents[2] / "docs/examples/dask_flow.py"
NEVER = ("--min-ess", "1e12")  # the watcher never says stop
SOON = ("--max-rhat", "1.1", "--min-ess", "500", "--epochs", "1000000")  # nobody but the watcher says stop

pytestmark = pytest.mark.timeout(300)  # up to four processes start, and the machine may be busy


class Script(subprocess.Popen):
    """A script in a session of its own, to be used with `with`: it and all that it started are gone afterwards."""

    def __init__(self, folder, script, *args):
        super().__init__(
            [sys.executable, script, *args],
            env={**os.environ, "DASK_TEMPORARY_DIRECTORY": str(folder / "dask")},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.told = ""

    def wait_for(self, pattern):
        """Wait until it tells a line that a pattern matches, and return the match."""
        for line in self.stdout:
            self.told += line
            if match := re.match(pattern, line):
                return match
        raise AssertionError(f"{pattern!r} was never told: {self.told}")

    def end(self):
        """Wait until it and all that it started have ended: nobody has the pipe open then. Returns the exit code."""
        self.told += self.stdout.read()
        return self.wait()

    def __exit__(self, *error):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        super().__exit__(*error)


def start(folder, *args):
    """Start the example."""
    return Script(folder, EXAMPLE, "--outdir", folder / "flow", *args)


@pytest.fixture(scope="module")
def example():
    """The example as a module."""
    spec = importlib.util.spec_from_file_location("dask_flow", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def assert_uninterrupted(example, outdir, seed, nepochs=None):
    """A run is bit for bit what the sampler gives when nobody interrupts it."""
    with open_run(outdir) as run, run.snapshot() as snapshot:
        found = [snapshot.get(index) for index in range(snapshot.nepochs)]
    assert len(found) == nepochs or nepochs is None
    state = example.first_state(seed)
    for epoch in found:
        expected = example.sample_epoch(state)
        assert epoch["samples"]["p"].tobytes() == expected["samples"]["p"].tobytes()
        state = expected["state"]
        assert epoch["state"]["rng"] == state["rng"]


def test_the_watcher_stops_the_samplers(tmp_path, example):
    """The watcher reads the runs while they are sampled, and stops them when R-hat and ESS are good; then they are summed up."""
    with start(tmp_path, *SOON) as flow:
        looks = [tuple(map(float, flow.wait_for(r".*draws in each: R-hat ([\d.]+), ESS (\d+)$").groups()))]
        while looks[-1][0] > 1.1 or looks[-1][1] < 500:
            looks.append(tuple(map(float, flow.wait_for(r".*R-hat ([\d.]+), ESS (\d+)$").groups())))
        assert flow.end() == 0, flow.told
    samplers = re.findall(r"(run_\d): process (\d+) samples, from epoch 0", flow.told)
    assert sorted(name for name, _ in samplers) == ["run_0", "run_1"]
    assert samplers[0][1] != samplers[1][1], "each on a worker of its own"
    mean, sd = map(float, re.search(r"^mu +([-\d.]+) \+- ([\d.]+)$", flow.told, re.MULTILINE).groups())
    assert abs(mean - 4.4) < 2
    assert abs(sd - 3.3) < 1.5
    for seed in range(2):
        assert_uninterrupted(example, tmp_path / "flow" / f"run_{seed}", seed)


def test_a_worker_that_is_killed(tmp_path, example):
    """When a worker is killed, another one goes on with its run: nothing that was there is lost, and the run has no gap."""
    outdir = tmp_path / "flow/run_0"
    with start(tmp_path, *NEVER, "--epochs", "200", "--runs", "1") as flow:
        pid = int(flow.wait_for(r"run_0: process (\d+) samples, from epoch 0$")[1])
        flow.wait_for(r".*R-hat")  # the watcher has read the run
        os.kill(pid, signal.SIGKILL)
        with open_run(outdir) as run, run.snapshot() as snapshot:
            stored = snapshot.nepochs
        again = flow.wait_for(r"run_0: process (\d+) samples, from epoch (\d+)$")
        assert flow.end() == 0, flow.told
    assert int(again[1]) != pid
    assert 0 < stored <= int(again[2]) < 200
    assert f"{outdir} holds a run of {again[2]} epochs" in flow.told
    assert_uninterrupted(example, outdir, 0, nepochs=200)


def test_control_c(tmp_path, example):
    """Ctrl-C in the terminal ends the flow and its workers in good order: the run is complete, and nobody holds it."""
    with start(tmp_path, *NEVER, "--epochs", "1000000", "--runs", "1") as flow:
        flow.wait_for(r".*R-hat")
        os.killpg(flow.pid, signal.SIGINT)
        assert flow.end() == 1, flow.told
    assert "stopped" in flow.told
    assert "KeyboardInterrupt" not in flow.told
    stopped = re.search(r"run_0: process \d+ stops, after epoch (\d+)", flow.told)[1]
    with DefaultBackend(outdir=tmp_path / "flow/run_0") as backend:
        assert backend.status.epochs == int(stopped)
    assert_uninterrupted(example, tmp_path / "flow/run_0", 0)


LEFT_OPEN = """
    import sys
    import numpy as np
    from distributed import Client, LocalCluster, get_worker
    from posterity import DefaultBackend

    def sample(outdir):
        backend = DefaultBackend(outdir=outdir, inmem_epochs=100)
        for i in range(5):
            backend.ingest({"samples": {"p": np.full((4, 2, 10), float(i))}})
        get_worker().backend = backend

    if __name__ == "__main__":
        with (
            LocalCluster(n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0") as cluster,
            Client(cluster) as client,
        ):
            client.submit(sample, sys.argv[1]).result()
"""


def test_a_backend_that_a_task_leaves_open(tmp_path):
    """A worker that is closed with the cluster writes what its tasks left open, and ends."""
    script = tmp_path / "left_open.py"
    script.write_text(textwrap.dedent(LEFT_OPEN))
    with Script(tmp_path, script, tmp_path / "run") as flow:
        assert flow.end() == 0, flow.told
    with open_run(tmp_path / "run") as run:
        p = run.get_samples(verify=True)["p"]
    np.testing.assert_array_equal(p, np.broadcast_to(np.repeat(np.arange(5.0), 10), (4, 2, 50)))
    assert not list((tmp_path / "run").glob(".*"))
