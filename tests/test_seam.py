"""One module makes every call that touches the run folder: what the tests break there is all that there is to break."""

import json
import re
import shutil
import subprocess
import sys

import pytest

WORKLOAD = """
import json, os, sys

folder = sys.argv[1]
found = {}


def is_of_run(arg):
    if isinstance(arg, bytes):
        arg = os.fsdecode(arg)
    if not isinstance(arg, str):
        return False
    return arg.startswith(folder) or os.path.basename(arg).lstrip(".").startswith(("epochs_", "posterity."))


def hook(event, args):
    if event == "open" or event.startswith(("os.", "shutil.")):
        if any(map(is_of_run, args)) and not str(args[0]).endswith(".py"):
            caller = sys._getframe(1).f_globals["__name__"]
            found.setdefault(caller.removesuffix("._local"), set()).add(event)  # Python 3.13: pathlib._local


import numpy as np
from posterity import DefaultBackend, open_run, read_epoch, verify

sys.addaudithook(hook)

with DefaultBackend(outdir=folder, epochs_per_file=2) as backend:
    for i in range(5):
        backend.ingest({"samples": {"p": np.full((2, 2, 10), float(i))}, "stats": {"n": i}})
    backend.flush(publish=True)
    backend.set_burn(15)
    backend.flush()
    backend.get_samples(verify=True)
with DefaultBackend(outdir=folder, epochs_per_file=2) as backend:
    backend.ingest({"samples": {"p": np.zeros((2, 2, 10))}})
    with open_run(folder) as run:
        run.get_samples()
    backend.load()
    backend.reset()
    backend.ingest({"samples": {"p": np.zeros((2, 2, 10))}})
read_epoch(folder + "/epochs_1.h5")
assert verify(folder).is_good
print(json.dumps({name: sorted(events) for name, events in found.items()}))
"""


def test_one_module_touches_the_folder(tmp_path):
    """Of all that Python reports of opening, renaming and removing, each call in the run folder is made by `disk`."""
    done = subprocess.run(
        [sys.executable, "-c", WORKLOAD, str(tmp_path / "run")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    callers = {name for name, events in found.items() if set(events) - {"os.listdir"}}
    assert callers - {"pathlib"} == {"posterity._system.disk"}, found
    assert {"open", "os.rename", "os.link", "os.remove"} <= set(found["posterity._system.disk"])
    assert set(found.get("pathlib", ())) <= {"os.mkdir"}, found  # the folder itself, from `Disk.enter`


STRACE = [shutil.which("strace") or "strace", "-f", "-qq", "-e", "trace=%file"]


def can_trace():
    try:
        return subprocess.run([*STRACE, "true"], capture_output=True, check=False, timeout=30).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


@pytest.mark.skipif(not can_trace(), reason="strace isn't there, or may not trace")
def test_no_library_touches_the_folder(tmp_path):
    """What the system sees: files of the run are opened to be written by their names in the open folder, never by a path.

    The disk module alone does it so; libhdf5 would go by the path.
    """
    trace, folder = tmp_path / "trace", tmp_path / "run"
    command = [*STRACE, "-o", str(trace), sys.executable, "-c", WORKLOAD, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    changes = re.compile(r"O_WRONLY|O_RDWR|O_CREAT|rename|link|truncate|mknod")
    lines = [line for line in trace.read_text().splitlines() if changes.search(line)]
    assert [line for line in lines if str(folder) in line and "mkdir" not in line and "readlink" not in line] == []
    assert any("epochs_1.h5" in line for line in lines)
