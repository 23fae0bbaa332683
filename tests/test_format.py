"""Files that earlier versions and jexplore wrote must open for years: those in `fixtures` are never written again."""

import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from fixture_epochs import BURN, EPOCHS, METADATA, PACKED_EPOCHS
from known import assert_same
from posterity import Burned, DefaultBackend, Metadata, NewerFormat, open_run, read_epoch, verify
from posterity._format.file_reader import Reader
from posterity._model.file_names import JOURNAL
from posterity._store import journal
from posterity._system.disk import Disk

FIXTURES = Path(__file__).parent / "fixtures"


VERSIONS = {"version-1": EPOCHS, "version-2": PACKED_EPOCHS, "version-3": EPOCHS}


def version_of(path):
    """The format version in the head of a file, or of the journal."""
    return struct.unpack_from("<I", path.read_bytes(), 8 if path.name == JOURNAL else 72)[0]


def cut(epoch, burned):
    return {**epoch, "samples": {name: array[:, :, burned:] for name, array in epoch["samples"].items()}}


@pytest.fixture
def version_1(tmp_path):
    return shutil.copytree(FIXTURES / "version-1", tmp_path / "run")


@pytest.fixture(params=VERSIONS)
def version(request, tmp_path):
    """A run of an earlier version, and its epochs."""
    return shutil.copytree(FIXTURES / request.param, tmp_path / "run"), VERSIONS[request.param]


def test_a_run_of_an_earlier_version_is_read(version):
    """All of it, by a reader, value for value and type for type."""
    folder, epochs = version
    assert verify(folder).is_good
    with open_run(folder) as run:
        first = 0
        for index, epoch in enumerate(epochs):
            nsamples = epoch["samples"]["p"].shape[2]
            if first + nsamples <= BURN:
                with pytest.raises(Burned):
                    run.get(index)
            else:
                assert_same(run.get(index), cut(epoch, max(0, BURN - first)))
            first += nsamples
        p = np.concatenate([epoch["samples"]["p"] for epoch in epochs], axis=2)
        assert_same(run.get_samples(verify=True), {"p": p[:, :, BURN:]})


def test_a_run_of_an_earlier_version_goes_on(version):
    """It can be continued, too, and its files be written anew."""
    folder, epochs = version
    with DefaultBackend(outdir=folder, epochs_per_file=2) as backend:
        assert backend.burn == BURN
        assert_same(backend.load().state, epochs[2]["state"])
        backend.ingest(epochs[0])
        nsamples = epochs[0]["samples"]["p"].shape[2]
        backend.set_burn(nsamples + 1)
    assert verify(folder).is_good
    with open_run(folder) as run:
        assert_same(run.get(1), cut(epochs[1], 1))
        assert_same(run.get(2), epochs[2])
        assert_same(run.get(3), epochs[0])


@pytest.mark.parametrize(("name", "index"), [("epochs_1.h5", 1), ("epochs_2.h5", 2)])
def test_a_file_of_an_earlier_version_is_read_alone(version, name, index):
    """A file without its journal says all of its epochs."""
    folder, epochs = version
    assert_same(read_epoch(folder / name, index), epochs[index])


@pytest.mark.parametrize(("name", "codec"), [("epochs_1.h5", "gzip"), ("epochs_2.h5", "zstd")])
def test_files_of_version_2_are_compressed(tmp_path, name, codec):
    """They show what is read above: each has arrays in chunks, and one in more than one chunk."""
    disk = Disk(shutil.copytree(FIXTURES / "version-2", tmp_path / "run"))
    disk.enter()
    with Reader.open(disk, name) as reader:
        *_, (base, frame) = reader.walk()
        layout = reader.region(base, frame).layout
    disk.leave()
    assert layout.packing.codec == codec
    assert len(layout.grids) == 6
    assert max(grid.nchunks for grid in layout.grids.values()) > 1


@pytest.mark.parametrize("without", [[], [JOURNAL], [JOURNAL, "epochs_2.h5"]], ids=len)
def test_metadata_of_version_3_are_read(tmp_path, without):
    """From the journal, or from the files if it is lost; a number that is none comes back as such."""
    folder = shutil.copytree(FIXTURES / "version-3", tmp_path / "run")
    for name in without:
        (folder / name).unlink()
    with DefaultBackend(outdir=folder) as backend:
        assert repr(backend.metadata) == repr(METADATA)
    with open_run(folder) as run:
        assert repr(run.metadata) == repr(METADATA)


@pytest.mark.parametrize("name", ["version-1", "version-2"])
def test_a_run_of_an_earlier_version_stays_one(tmp_path, name):
    """Who goes on with it and gives no metadata disturbs nobody who knows no others; its start is known."""
    folder = shutil.copytree(FIXTURES / name, tmp_path / "run")
    with DefaultBackend(outdir=folder, epochs_per_file=2) as backend:
        backend.ingest(VERSIONS[name][0])
        began_at = backend.metadata.started_at
        assert backend.metadata == Metadata(started_at=began_at)
        assert began_at > 1.7e9
    assert {version_of(path) for path in folder.glob("*.h5")} <= {1, int(name[-1])}
    assert version_of(folder / JOURNAL) == int(name[-1])


@pytest.mark.parametrize("name", ["version-1", "version-2"])
def test_a_run_of_an_earlier_version_gets_metadata(tmp_path, name):
    """Given later they are kept: in a journal of the present version, and in the files that are written from then on."""
    folder = shutil.copytree(FIXTURES / name, tmp_path / "run")
    with DefaultBackend(outdir=folder, epochs_per_file=2, parameters=["a", "b", "c"], chains={"walker": 2}) as backend:
        backend.flush()
        assert version_of(folder / JOURNAL) == 3
        backend.ingest(VERSIONS[name][0])
        given = backend.metadata
    assert [version_of(folder / f"epochs_{n}.h5") for n in (1, 2)] == [int(name[-1]), 3]
    assert verify(folder).is_good
    with open_run(folder) as run:
        assert run.metadata == given
        assert [each.name for each in given.parameters["p"]] == ["a", "b", "c"]


def test_a_journal_of_a_later_version_is_refused(version_1):
    """Its version stands in its header; the error says what to do."""
    path = version_1 / JOURNAL
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
