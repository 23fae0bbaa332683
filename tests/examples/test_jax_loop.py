"""The JAX loops: killed at a random moment, continued, and compared bit for bit with a run that nobody interrupted."""

import hashlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import pytest

from posterity import open_run
from posterity.pytrees import get_positions

EXAMPLE = Path(__file__).parents[2] / "docs/examples/jax_loop.py"
NSTEPS = 100
# Which loop is killed -> which one continues: each of them is both.
PAIRS = {"blocking": "asyncio", "asyncio": "trio", "trio": "blocking"}

pytestmark = pytest.mark.timeout(600)  # each process compiles NUTS, or reads what another one compiled


class Example(subprocess.Popen):
    """The example as a process of its own, which is killed at the latest when the block is left."""

    def __init__(self, *arguments, cache):
        compiled = {
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_COMPILATION_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        super().__init__(
            [sys.executable, "-W", "error", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | compiled,
        )

    def wait_for(self, beginning):
        """Wait until it prints a line that begins like this."""
        printed = []
        for line in self.stdout:
            printed.append(line)
            if line.startswith(beginning):
                return
        raise AssertionError(f"it ended first, with {self.wait()}: {''.join(printed)}")

    def ends_well(self):
        """Wait for the end; return what it printed."""
        printed = self.communicate()[0]
        assert self.returncode == 0, printed
        return printed

    def __exit__(self, *error):
        self.kill()
        super().__exit__(*error)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Start the example."""
    cache = tmp_path_factory.mktemp("compiled")

    def start(outdir, loop, epochs):
        options = ("--outdir", outdir, "--loop", loop, "--epochs", epochs, "--nsteps", NSTEPS, "--nwarmup", 100)
        return Example(EXAMPLE, *options, cache=cache)

    return start


def stored_epochs(outdir):
    """How many epochs a run has; none if it was killed before the first one was written."""
    try:
        with open_run(outdir) as run, run.snapshot() as snapshot:
            return snapshot.nepochs
    except FileNotFoundError:
        return 0


@pytest.fixture(scope="module")
def killed_runs(start, tmp_path_factory):
    """For each loop: the folder of a run that was killed in it and continued in another, and the epochs it has now."""
    runs = {}
    for killed_loop, next_loop in PAIRS.items():
        outdir = tmp_path_factory.mktemp("runs") / killed_loop
        with start(outdir, killed_loop, 10_000) as process:
            process.wait_for(f"handed over {random.randint(1, 8)} epochs")
            time.sleep(random.uniform(0, 0.05))  # to hit any part of an epoch; nothing waits for this
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
        stored = stored_epochs(outdir)
        nepochs = stored + 5
        with start(outdir, next_loop, nepochs) as process:
            printed = process.ends_well()
        continued = re.search(r"continuing after (\d+) epochs", printed)
        # A few more may have been in a file already, and their records not in the journal yet.
        assert stored <= (int(continued[1]) if continued else 0) < nepochs, printed
        runs[killed_loop] = outdir, nepochs
    return runs


@pytest.fixture(scope="module")
def whole_run(start, killed_runs, tmp_path_factory):
    """The folder of a run that nobody interrupted, as long as the longest of the others."""
    outdir = tmp_path_factory.mktemp("runs") / "whole"
    with start(outdir, "blocking", max(nepochs for _, nepochs in killed_runs.values())) as process:
        process.ends_well()
    return outdir


def bits(value, path="epoch"):
    """What an epoch is made of, as dtypes, shapes and hashes: equal numbers could hide a -0.0 or a NaN."""
    if isinstance(value, dict):
        members = [bits(member, f"{path}/{name}") for name, member in value.items()]
        return {name: found for member in members for name, found in member.items()}
    if not hasattr(value, "tobytes"):
        return {path: value}
    return {path: (value.dtype, value.shape, hashlib.sha256(value.tobytes()).hexdigest())}


@pytest.mark.parametrize("loop", PAIRS)
def test_a_killed_chain_goes_on_as_if_it_had_never_stopped(killed_runs, whole_run, loop):
    """Each array of each epoch, with the key and the chains' states, is bit for bit that of the run that nobody killed."""
    outdir, nepochs = killed_runs[loop]
    with open_run(outdir) as killed, open_run(whole_run) as whole:
        assert killed.snapshot().epochs == range(nepochs)
        for index in range(nepochs):
            assert bits(killed.get(index)) == bits(whole.get(index)), index


def test_an_epoch_holds_what_the_next_one_depends_on(whole_run):
    """Anyone finds in the HDF5 file: samples as (nchain, dim, nsamples), keys, states and tuning."""
    with h5py.File(whole_run / "epochs_1.h5") as file:
        epoch = file["epoch_0"]
        assert epoch["samples/p"].shape == (4, 5, NSTEPS)
        told = {"acceptance_rate", "diverging", "energy", "is_turning", "lp", "n_steps", "tree_depth"}
        assert {name: item.shape for name, item in epoch["samples"].items() if name != "p"} == dict.fromkeys(
            told, (4, 1, NSTEPS)
        )
        assert epoch["state/key"].shape == (4, 2)
        assert epoch["state/chains/position"].shape == (4, 5)
        assert epoch["state/tuning/inverse_mass_matrix"].shape == (4, 5, 5)


def test_the_parameters_come_back_by_name(whole_run):
    """Each is an array (nchain, nsamples), in the order of "p"; and the run says what they are called."""
    with open_run(whole_run) as run:
        x, p = get_positions(run), run.get_samples()["p"]
        assert [parameter.name for parameter in run.metadata.parameters["p"]] == list(x)
    assert sorted(x) == sorted(["m", "b", "P_b", "Y_b", "log V_b"])
    assert all((x[name] == p[:, i]).all() for i, name in enumerate(x))


# The example with a device that goes on only when a task of the event loop says so.
WITH_GATES = """
import sys, threading
import anyio, jax.numpy as jnp
sys.path.insert(0, sys.argv[1])
import jax_loop

gate, asked = threading.Event(), threading.Event()

def wait():
    asked.set()
    assert gate.wait(60), "the event loop is held up"
    gate.clear()

class Gated(jax_loop.Kernel):
    def start(self, key):
        wait()
        return self.like(key)

    def like(self, key):
        return jnp.zeros(1)

    def move(self, state):
        return state, state[:, None], None

    def sample_epoch(self, *args):
        wait()
        return super().sample_epoch(*args)

async def main(args):
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(open_gates, args.epochs + 1)
        await jax_loop.sample_async(args)

async def open_gates(n):
    for _ in range(n):
        while not asked.is_set():
            await anyio.sleep(0.001)
        asked.clear()
        gate.set()

jax_loop.nuts = lambda args: Gated()
args = jax_loop.argparse.Namespace(outdir=sys.argv[3], epochs=3, nsteps=1, nchain=1, nwarmup=0, seed=0)
anyio.run(main, args, backend=sys.argv[2])
"""


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_the_event_loop_is_free_while_the_device_computes(tmp_path, loop):
    """Warm-up and epochs are computed while other tasks run: here they wait for one of them."""
    with Example("-c", WITH_GATES, EXAMPLE.parent, loop, tmp_path / "run", cache=tmp_path) as process:
        process.ends_well()
    with open_run(tmp_path / "run") as run:
        assert run.snapshot().nepochs == 3
