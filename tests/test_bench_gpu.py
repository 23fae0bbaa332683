"""The benchmark for accelerators runs on any device of JAX's, and says which one it was."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("jax")

import jax

SCRIPT = Path(__file__).parents[1] / "scripts" / "bench_gpu.py"
SMALL = ["--epochs=2", "--megabytes=1", "--epoch-s=0.02", "--repetitions=1"]


@pytest.mark.timeout(180)
def test_it_measures_all_ways(tmp_path):
    """All four ways of keeping epochs are timed; on a CPU there is no verdict; nothing is left behind."""
    command = [sys.executable, "-W", "error", str(SCRIPT), *SMALL, "--folder", str(tmp_path), "--json", "found.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["machine"]["platform"] == jax.devices()[0].platform
    assert set(found["medians"]) == {"nothing", "posterity", "in the loop", "naive thread"}
    for timings in found["runs"].values():
        assert len(timings) == 1
        assert 0 < timings[0]["step_p50_s"] <= timings[0]["step_max_s"] < timings[0]["wall_s"] <= timings[0]["done_s"]
    assert done.stdout.count("no verdict") == 2 * (not found["is_accelerator"])
    assert [path.name for path in tmp_path.iterdir()] == ["found.json"]
