"""A disk that stalls holds up neither a thread that only samples, nor an event loop, nor one that reads."""

import statistics

import pytest

import stalling

DELAY_S = 0.5  # long, as other processes make gaps, too


@pytest.mark.parametrize("measure", stalling.MEASURES.values(), ids=stalling.MEASURES)
def test_a_stalling_disk_stalls_nobody_else(tmp_path, measure):
    """With each call of the writer taking long, no gap and no small read comes near to one of them."""
    with stalling.Run(tmp_path / "run", DELAY_S, 15_000_000) as run:
        longest = measure(run)
    assert len(longest) >= 4
    assert statistics.median(longest) < DELAY_S / 2
