"""Real files that were changed at random are read, or refused by an error of ours: no crash, no hang, little memory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import mutated

KINDS = {"jexplore": 800, "ours": 400, "repacked": 400, "file": 300, "journal": 150}


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("kind", "count"), KINDS.items(), ids=KINDS)
def test_only_our_errors_come_out(tmp_path, kind, count):
    """Whatever is changed in a file of jexplore's, of ours, of a tool's, or in a journal."""
    done = subprocess.run(
        [sys.executable, mutated.__file__, kind, tmp_path, "0", str(count)],
        env={**os.environ, "MALLOC_ARENA_MAX": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{kind}, seed {done.stdout.split()[-1]}: {done.stderr}"
    assert done.stdout.split() == [str(seed) for seed in range(count)]


def test_a_flipped_bit_that_made_libhdf5_go_round_for_ever(tmp_path):
    """A text that seems longer than it is leads to a free item of no length; it is refused, and libhdf5 isn't asked."""
    data = bytearray((Path(__file__).parent / "fixtures" / "jexplore-0.0.3" / "epochs_2.h5").read_bytes())
    data[8520] = 0x7F
    (tmp_path / "x.h5").write_bytes(data)
    code = (
        "import sys; from posterity import Damaged, DefaultBackend\n"
        "try:\n    DefaultBackend.read_epoch(sys.argv[1])\n"
        "except Damaged as error:\n    sys.exit('texts of variable length at offset 8448 are damaged' not in str(error))"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "x.h5"], timeout=50, check=False)
    assert done.returncode == 0
