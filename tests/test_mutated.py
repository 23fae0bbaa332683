"""Real files that were changed at random are read, or refused by an error of ours: no crash, no hang, little memory."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

import mutated
from posterity import Damaged, DefaultBackend, open_run
from posterity._model.file_names import JOURNAL
from posterity._store import journal
from posterity._store.records import Grouped, Stored

KINDS = {"jexplore": 800, "ours": 400, "repacked": 400, "file": 300, "journal": 150, "forged journal": 200}


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


@pytest.mark.parametrize("claim", ["a longer epoch", "more epochs than the file can hold"])
def test_a_journal_that_claims_too_much_is_damage(tmp_path, claim):
    """However right its checksums are, no memory is asked for that the files couldn't fill."""
    outdir = tmp_path / "run"
    with DefaultBackend(outdir=outdir) as backend:
        backend.ingest({"samples": {"p": np.zeros((1, 1, 1_000_000))}})
    records, _ = journal.decode((outdir / JOURNAL).read_bytes())
    at = next(i for i, record in enumerate(records) if isinstance(record, Stored))
    stored = records[at]
    if claim == "a longer epoch":
        records[at] = msgspec.structs.replace(stored, nsamples=1 << 50)
    else:
        places = [msgspec.structs.replace(stored.place, base=stored.place.base + 8 * i) for i in range(20)]
        more = [Stored(i, i * 1_000_000, 1_000_000, stored.nbytes, places[i]) for i in range(1, 20)]
        records[at + 1 : at + 1] = more
        grouped = next(i for i, record in enumerate(records) if isinstance(record, Grouped))
        records[grouped] = msgspec.structs.replace(records[grouped], epochs_per_file=20)
        records[-1] = msgspec.structs.replace(records[-1], stop=20)
    header = journal.encode_header(journal.VERSION)
    (outdir / JOURNAL).write_bytes(header + journal.encode_batch(records, len(header)))
    with open_run(outdir) as run, pytest.raises(Damaged, match=r"by the journal|more in it than it can hold"):
        run.get_samples()
