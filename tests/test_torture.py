"""`scripts/torture` as a whole: it tries each kind of fault, and says how many were survived."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "torture.py"
KINDS = [
    "failing calls",
    "broken disks",
    "short writes",
    "failing openings",
    "full disks",
    "kills",
    "kills while opening",
    "damage",
    "power cuts",
]
# A single one of these takes 10 s or more; `test_killed_sampler` and `test_readers_elsewhere` try the first two.
LONG = ["killed samplers", "readers elsewhere", "soak"]


def table(*args):
    """The table that the script ends with: of each kind how many were tried, survived and lost."""
    done = subprocess.run([sys.executable, SCRIPT, *args], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = re.findall(r"^\| ([a-z ]+) \| (\d+) \| (\d+) \| (\d+) \|$", done.stdout, re.MULTILINE)
    return {name: tuple(map(int, numbers)) for name, *numbers in rows}


@pytest.mark.timeout(300)
def test_each_kind_of_fault_is_tried():
    """With two faults of each kind the table has a line for each, and nothing is lost. The long kinds are left out."""
    found = table("--most", "2", "--minutes", "0.01", *KINDS)
    assert found == dict.fromkeys(KINDS, (2, 2, 0))


def test_no_kind_is_forgotten():
    """The kinds that are tried here, and those that are too long for it, are all that there are."""
    done = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True, check=True)
    assert f"{', '.join([*KINDS, *LONG])} (default: all)" in " ".join(done.stdout.split())


def test_a_loss_is_told():
    """What doesn't survive is counted, and shown with its cause; the next fault is tried all the same."""
    code = """if True:
    import sys
    sys.path.insert(0, sys.argv[1])
    import torture
    def fails():
        raise AssertionError("an epoch is gone")
    torture.COUNTED["damage"] = lambda folder: iter([("this one", fails), ("another", lambda: None)])
    print(torture.tried("damage", 0, 0, None))
    """
    done = subprocess.run([sys.executable, "-c", code, SCRIPT.parent], capture_output=True, text=True, check=False)
    assert "LOST: damage: this one\n" in done.stdout, done.stderr
    assert "an epoch is gone" in done.stdout
    assert done.stdout.endswith("(2, 1)\n")
