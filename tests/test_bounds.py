"""What is written can be read: each number has one bound, where it comes in and where it is read again."""

import math
import sys

import numpy as np
import pytest

from known import epoch_dict
from posterity import DefaultBackend, open_run, verify
from posterity._model.bounds import MOST

WAYS_IN = {
    "burn at opening": lambda folder, n: DefaultBackend(n, outdir=folder),
    "burn of NumPy's": lambda folder, n: DefaultBackend(np.uint64(n), outdir=folder),
    "set_burn": lambda folder, n: burned(DefaultBackend(outdir=folder), n),
    "epochs_per_file": lambda folder, n: DefaultBackend(outdir=folder, epochs_per_file=n),
    "inmem_epochs": lambda folder, n: DefaultBackend(outdir=folder, inmem_epochs=n),
    "max_pending_bytes": lambda folder, n: DefaultBackend(outdir=folder, max_pending_bytes=n),
}


def burned(backend, n):
    try:
        backend.set_burn(n)
    except ValueError:
        backend.close()
        raise
    return backend


@pytest.mark.parametrize("way", WAYS_IN)
@pytest.mark.parametrize("n", [1, MOST - 1, MOST])
def test_what_is_taken_can_be_read_again(tmp_path, way, n):
    """By a reader, and by who goes on; after two epochs, and after two more."""
    folder = tmp_path / "run"
    for i in range(2):
        with WAYS_IN[way](folder, n) if i == 0 else DefaultBackend(outdir=folder) as backend:
            backend.ingest(epoch_dict(20 * i, 10))
            backend.ingest(epoch_dict(20 * i + 10, 10))
            backend.flush()
            assert backend.status.epochs == 2 * i + 2
        assert verify(folder).is_good
        with open_run(folder) as run:
            assert run.snapshot().nepochs == 2 * i + 2


@pytest.mark.parametrize("way", WAYS_IN)
@pytest.mark.parametrize("n", [MOST + 1, sys.maxsize, 2**63, 2**64, 2**70])
def test_what_is_beyond_is_refused_at_the_call(tmp_path, way, n):
    """The value and the bounds are named; what is stored already is untouched, and the run goes on."""
    folder = tmp_path / "run"
    with DefaultBackend(outdir=folder) as backend:
        backend.ingest(epoch_dict(0, 10))
    if n >= 2**64 and way == "burn of NumPy's":
        return  # NumPy has no such number
    with pytest.raises(ValueError, match=rf"must be \d to 2\*\*62, got {n}$"):
        WAYS_IN[way](folder, n)
    with DefaultBackend(outdir=folder) as backend:
        assert backend.get_samples()["p"].shape[2] == 10


@pytest.mark.parametrize("seconds", [0.0, 1e300, math.inf])
def test_times_without_end_are_taken(tmp_path, seconds):
    """As long as it takes: to open, to hand over, to wait, to close."""
    folder = tmp_path / "run"
    with DefaultBackend(outdir=folder, exit_timeout_s=seconds, retry_at_most_s=max(seconds, 1.0)) as backend:
        backend.ingest(epoch_dict(0, 10), timeout_s=seconds)
        receipt = backend.ingest_nowait(epoch_dict(10, 10))
        backend.flush()
        receipt.durable.wait(seconds)
        backend.close(max(seconds, 60.0))
    with open_run(folder, wait_s=seconds) as run:
        assert run.get_samples()["p"].shape[2] == 20


@pytest.mark.parametrize("option", ["exit_timeout_s", "retry_after_s", "retry_at_most_s"])
@pytest.mark.parametrize("seconds", [-1.0, math.nan])
def test_times_that_are_none_are_refused(tmp_path, option, seconds):
    """At the call, and nothing is made."""
    with pytest.raises(ValueError, match=f"{option} must be at least"):
        DefaultBackend(outdir=tmp_path / "run", **{option: seconds})
    assert not (tmp_path / "run").exists()
