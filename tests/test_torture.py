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
    "killed samplers",
    "readers elsewhere",
    "soak",
]


def table(*args):
    """The table that the script ends with: of each kind how many were tried, survived and lost."""
    done = subprocess.run([sys.executable, SCRIPT, *args], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = re.findall(r"^\| ([a-z ]+) \| (\d+) \| (\d+) \| (\d+) \|$", done.stdout, re.MULTILINE)
    return {name: tuple(map(int, numbers)) for name, *numbers in rows}


@pytest.mark.timeout(300)
def test_each_kind_of_fault_is_tried():
    """With one fault of each kind the table has a line for each, and nothing is lost."""
    found = table("--most", "1", "--minutes", "0.01", "--soak-minutes", "0.01", "--kills", "1")
    assert found == dict.fromkeys(KINDS, (1, 1, 0))


def test_a_loss_is_told():
    """What doesn't survive is counted, shown, and makes the exit code another one."""
    code = """if True:
    import sys
    from pathlib import Path
    sys.path.insert(0, str(Path(sys.argv[1]).parent))
    import torture

    def fails():
        raise AssertionError("an epoch is gone")

    torture.COUNTED["damage"] = lambda folder: iter([("good", lambda: None), ("bad", fails)])
    print(torture.tried("damage", 0, 0, 1, None))
    """
    done = subprocess.run([sys.executable, "-c", code, SCRIPT], capture_output=True, text=True, check=False)
    assert "LOST: damage: bad" in done.stdout, done.stderr
    assert "an epoch is gone" in done.stdout
    assert done.stdout.endswith("(2, 1)\n")
