"""Files that earlier versions and jexplore wrote must open for years: those in `fixtures` are never written again."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from fixture_epochs import BURN, EPOCHS
from known import assert_same
from posterity import Burned, DefaultBackend, NewerFormat, journal, open_run, read_epoch, verify

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture
def version_1(tmp_path):
    return shutil.copytree(FIXTURES / "version-1", tmp_path / "run")


def test_a_run_of_version_1_is_read(version_1):
    """All of it, by a reader, value for value and type for type."""
    assert verify(version_1).is_good
    with open_run(version_1) as run:
        with pytest.raises(Burned):
            run.get(0)
        for index in (1, 2):
            assert_same(run.get(index), EPOCHS[index])
        p = np.concatenate([epoch["samples"]["p"] for epoch in EPOCHS], axis=2)
        assert_same(run.get_samples(verify=True), {"p": p[:, :, BURN:]})


def test_a_run_of_version_1_goes_on(version_1):
    """It can be continued, too."""
    with DefaultBackend(outdir=version_1, epochs_per_file=2) as backend:
        assert backend.burn == BURN
        assert_same(backend.load().state, EPOCHS[2]["state"])
        backend.ingest(EPOCHS[0])
    assert verify(version_1).is_good
    with open_run(version_1) as run:
        assert_same(run.get(3), EPOCHS[0])


@pytest.mark.parametrize(("name", "index"), [("epochs_1.h5", 1), ("epochs_2.h5", 2)])
def test_a_file_of_version_1_is_read_alone(version_1, name, index):
    """A file without its journal says all of its epochs."""
    assert_same(read_epoch(version_1 / name, index), EPOCHS[index])


def test_a_journal_of_a_later_version_is_refused(version_1):
    """Its version stands in its header; the error says what to do."""
    path = version_1 / journal.NAME
    data = bytearray(path.read_bytes())
    data[8] = journal.VERSION + 1
    path.write_bytes(data)
    for opening in (open_run, lambda folder: DefaultBackend(outdir=folder)):
        with pytest.raises(NewerFormat, match="use a later posterity"):
            opening(version_1)


def test_a_file_of_jexplore_is_read():
    """An epoch as jexplore 0.0.3 wrote it: 4 chains of 5 samples in 2 dimensions, with all that belongs to it."""
    epoch = read_epoch(FIXTURES / "jexplore-0.0.3" / "epochs_2.h5")
    assert epoch["samples"]["p"].shape == (4, 2, 5)
    assert epoch["class"] == "jexplore.sampling.mh.EpochMH"
    assert {"samples", "covs", "cycle", "sampling", "stats"} <= epoch.keys()
    np.testing.assert_array_equal(epoch["sampling"]["temps"], [1.0, 2.0])
