"""`tail`: how a run grows, seen from its folder."""

import itertools

import msgspec
import numpy as np
import pytest
from arviz_stats.base import array_stats
from runs import draws, write_run

from posterity import Diagnosis
from posterity.pulse import Pulse, follow


def pulses(out):
    """What `tail --json` printed: a document a line."""
    return [msgspec.json.decode(line, type=Pulse) for line in out.splitlines()]


def test_tail_tells_how_the_run_is(cli, run):
    """Once: what is there, how long ago it was written, and how far the chains have converged."""
    (pulse,) = pulses(cli("tail", run, "--once", "--json"))
    assert (pulse.epochs, pulse.samples, pulse.samples_left, pulse.burn) == (6, 300, 300, 0)
    assert pulse.samples_per_s is None
    assert pulse.writer is None
    assert 0 <= pulse.lag_s < 60
    p = draws(300)
    expected = [float(array_stats.rhat(p[:, i], chain_axis=0, draw_axis=1, method="split")) for i in range(2)]
    assert pulse.diagnostics.rhat["p"] == pytest.approx(expected)
    line = cli("tail", run, "--once")
    assert "6 epochs  300 samples" in line
    assert "R-hat" in line
    assert "nobody writes it" in line


def test_tail_ends_when_the_run_is_closed(cli, tmp_path):
    """Who was there first sees the writer, the new epochs and their speed, and the end."""
    outdir = tmp_path / "run"
    backend = write_run(outdir, nepochs=2, close=False)
    seen = []
    for pulse in itertools.islice(follow(outdir, every_s=0.15, diagnosis=Diagnosis()), 3):
        seen.append(pulse)
        if len(seen) == 1:
            backend.ingest({"samples": {"p": np.ones((4, 2, 50)), "ll": np.ones((4, 1, 50))}})
            backend.flush()
        elif len(seen) == 2:
            backend.close()
    assert [pulse.epochs for pulse in seen] == [2, 3, 3]
    assert seen[1].samples_per_s > 0
    assert seen[1].bytes_per_s > seen[1].samples_per_s
    assert [pulse.writer is not None for pulse in seen] == [True, True, False]
    assert [pulse.diagnostics.nsamples for pulse in seen] == [100, 150, 150]
    assert "nobody writes it" in cli("tail", outdir, "--until-closed").splitlines()[-1]


def test_a_reset_begins_the_speed_anew(tmp_path):
    """It isn't below nothing."""
    with write_run(tmp_path / "run", close=False) as backend:
        looks = follow(tmp_path / "run", every_s=0.01)
        next(looks)
        backend.reset()
        backend.ingest({"samples": {"p": draws(10)}})
        backend.flush()
        after = next(looks)
        looks.close()
    assert (after.epochs, after.samples, after.samples_per_s) == (1, 10, None)


def test_tail_waits_for_convergence(cli, run):
    """With --rhat and --ess the exit code tells whether they were met."""
    cli("tail", run, "--rhat", 1.2, "--ess", 50, "--every", 0.01)
    cli("tail", run, "--ess", 1e9, "--until-closed", code=1)
    cli("tail", run, "--ess", 1e9, "--once", code=1)


def test_tail_can_leave_the_samples_alone(cli, run):
    """--bare reads nothing but the journal."""
    for path in run.glob("*.h5"):
        path.unlink()
    (pulse,) = pulses(cli("tail", run, "--once", "--bare", "--json"))
    assert pulse.epochs == 6
    assert pulse.diagnostics is None
    cli("tail", run, "--bare", "--ess", 10, code=2)


def test_tail_of_samples_that_arent_there_ends_with_2(cli, run):
    cli("tail", run, "--pars", "q", "--once", code=2)
    assert "it has p, ll" in cli.errors
