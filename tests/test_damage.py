"""Damage: whatever byte is another one, it is found and named, and the rest stays readable; and repair loses nothing."""

import shutil

import h5py
import numpy as np
import pytest

from known import assert_same, epoch_dict
from posterity import (
    Damaged,
    DefaultBackend,
    ForeignFiles,
    PosterityError,
    RunLocked,
    SnapshotExpired,
    open_run,
    repair,
    verify,
)
from posterity._model.file_names import JOURNAL
from smallchunks import small_chunks

LENGTHS = [3, 4, 5, 3, 4]
BURN = 2


def epochs():
    first = 0
    for index, nsamples in enumerate(LENGTHS):
        yield epoch_dict(first, nsamples, state={"index": index})
        first += nsamples


OPTIONS = [{}, {"compression": "gzip"}]


def write(folder, options):
    with small_chunks(), DefaultBackend(outdir=folder, epochs_per_file=2, **options) as backend:
        for epoch in epochs():
            backend.ingest(epoch)
        backend.flush()
        backend.set_burn(BURN)
    return folder


@pytest.fixture(scope="module", params=OPTIONS, ids=["plain", "compressed"])
def whole(request, tmp_path_factory):
    """A run of five epochs in three files, closed."""
    return write(tmp_path_factory.mktemp("damage") / "run", request.param)


@pytest.fixture
def run(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


def expected(index):
    epoch = list(epochs())[index]
    if index == 0:
        epoch["samples"] = {name: array[:, :, BURN:] for name, array in epoch["samples"].items()}
    return epoch


def readable(outdir):
    """The epochs that can be read; each is exact, or reading it says that it is damaged."""
    found = []
    with open_run(outdir) as run:
        for index in range(len(LENGTHS)):
            try:
                assert_same(run.get(index), expected(index))
                found.append(index)
            except (Damaged, SnapshotExpired):  # the latter for one that is in no file
                pass
    return found


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


def contents(outdir):
    """What lies in the folder, but for the lock and the journal."""
    return {path.name: path.read_bytes() for path in outdir.iterdir() if not path.name.startswith("posterity.")}


def test_a_good_run_has_no_problems(run):
    """Nothing is found where nothing is wrong, and nothing is repaired."""
    findings = verify(run)
    assert findings.is_good, str(findings)
    assert findings.nepochs == len(LENGTHS)
    assert findings.nbytes > 1000
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    assert str(repair(run)) == "there was nothing to repair"
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


@pytest.mark.parametrize("name", ["epochs_1.h5", "epochs_2.h5", "epochs_3.h5"])
@pytest.mark.timeout(300)
def test_every_region_of_a_file(run, name):
    """A byte that changed in a file is found, or no reader ever looks at it; at most its epoch can't be read."""
    size = (run / name).stat().st_size
    nfound = 0
    for at in range(0, size, 61):
        flip(run / name, at)
        found = verify(run)
        left = readable(run)
        if found.is_good:
            assert left == list(range(len(LENGTHS)))
            with h5py.File(run / name) as file:
                for group in file.values():
                    index = int(group.name.rpartition("_")[2])
                    np.testing.assert_array_equal(group["samples/p"][()], expected(index)["samples"]["p"])
        else:
            nfound += 1
            assert {problem.name for problem in found.problems} == {name}
            assert len(left) >= len(LENGTHS) - 1
        flip(run / name, at)
    assert nfound > size / 61 / 2
    assert verify(run).is_good


@pytest.mark.timeout(300)
def test_every_region_of_the_journal(run, tmp_path):
    """A journal with a byte that changed is found and repaired: every epoch is there again, and the burn."""
    size = (run / JOURNAL).stat().st_size
    for at in range(0, size, 29):
        damaged = shutil.copytree(run, tmp_path / f"run-{at}")
        flip(damaged / JOURNAL, at)
        before = contents(damaged)
        try:
            DefaultBackend(outdir=damaged).close()  # a torn last record is an append that never happened
        except Damaged as error:
            assert "posterity.journal" in str(error)  # noqa: PT017  # not every byte makes one
            assert not verify(damaged).is_good
            assert "written anew" in str(repair(damaged))
            assert before.items() <= contents(damaged).items()
        assert verify(damaged).is_good, f"{verify(damaged)} at {at}"
        assert readable(damaged) == list(range(len(LENGTHS)))
        with DefaultBackend(outdir=damaged, epochs_per_file=2) as backend:
            assert backend.burn == BURN
            backend.ingest(epoch_dict(sum(LENGTHS), 2))
            assert backend.get_samples()["p"].shape[2] == sum(LENGTHS) + 2 - BURN
        shutil.rmtree(damaged)


def test_a_damaged_journal_is_kept(run):
    """The old journal is beside the new one, and so is each older one."""
    for aside in ("posterity.journal.aside", "posterity.journal.aside1"):
        flip(run / JOURNAL, 30)
        damaged = (run / JOURNAL).read_bytes()
        repair(run)
        assert (run / aside).read_bytes() == damaged


def test_a_lost_journal_is_rebuilt(run):
    """Without a journal, the files say all but what was burned since."""
    (run / JOURNAL).unlink()
    assert [str(problem) for problem in verify(run).problems] == ["posterity.journal: there is no journal"]
    repair(run)
    assert verify(run).is_good
    with DefaultBackend(outdir=run, epochs_per_file=2) as backend:
        assert backend.status.epochs == len(LENGTHS)


def test_a_missing_file_is_named(run):
    """The epochs of a file that is gone are named; the others can be read, and a repair changes nothing of that."""
    (run / "epochs_2.h5").unlink()
    for _ in range(2):
        found = verify(run)
        assert [(problem.name, problem.epoch) for problem in found.problems] == [("epochs_2.h5", 2), ("epochs_2.h5", 3)]
        assert readable(run) == [0, 1, 4]
        repair(run)


def test_a_missing_file_and_no_journal(run):
    """With the journal lost too, the run opens again after a repair, with a hole that says what it is."""
    (run / "epochs_2.h5").unlink()
    (run / JOURNAL).unlink()
    with pytest.raises(Damaged, match=r"a file is missing"):
        DefaultBackend(outdir=run)
    done = repair(run)
    assert "epochs_3.h5 has epoch 4 where epoch 2 belongs; a file is missing" in done.lost
    assert readable(run) == [0, 1, 4]
    with DefaultBackend(outdir=run, epochs_per_file=2) as backend:
        assert backend.status.epochs == len(LENGTHS)
        with pytest.raises(Damaged, match=r"epoch 2 .* in no file"):
            backend.get(2)
        assert backend.get_samples(burn=sum(LENGTHS[:4]) - backend.burn)["p"].shape[2] == LENGTHS[4]


def test_a_destroyed_epoch_and_no_journal(run):
    """An epoch whose place in a file is destroyed is a hole, if no journal says what was there."""
    with open_run(run) as opened:
        base = opened._followed._catalog.places[2].base
    flip(run / "epochs_2.h5", base)
    (run / JOURNAL).unlink()
    with pytest.raises(Damaged, match=r"epochs_2\.h5 is damaged"):
        DefaultBackend(outdir=run)
    assert any("epochs_2.h5 is damaged at offset" in what for what in repair(run).lost)
    assert readable(run) == [0, 1, 3, 4]


def test_a_truncated_file(run):
    """A file that lost its end is named; what is before it can be read."""
    path = run / "epochs_3.h5"
    path.write_bytes(path.read_bytes()[:-900])
    assert {problem.name for problem in verify(run).problems} == {"epochs_3.h5"}
    assert set(readable(run)) >= {0, 1, 2, 3}


def test_an_empty_file(run):
    """A file without a byte is named."""
    (run / "epochs_1.h5").write_bytes(b"")
    assert {problem.name for problem in verify(run).problems} == {"epochs_1.h5"}
    assert readable(run) == [2, 3, 4]


def test_files_that_were_swapped(run):
    """Two files that changed their names are both named, and none gives the numbers of the other."""
    (run / "epochs_1.h5").rename(run / "x")
    (run / "epochs_2.h5").rename(run / "epochs_1.h5")
    (run / "x").rename(run / "epochs_2.h5")
    assert {problem.name for problem in verify(run).problems} == {"epochs_1.h5", "epochs_2.h5"}
    assert readable(run) == [4]


def test_a_foreign_file_is_set_aside(run):
    """A file of somebody else's that keeps the run from being opened gets another name, and nothing is lost of it."""
    (run / "epochs_7.h5").write_bytes(b"theirs")
    assert [problem.name for problem in verify(run).problems] == ["epochs_7.h5"]
    with pytest.raises(ForeignFiles):
        DefaultBackend(outdir=run)
    assert "epochs_7.h5.aside" in str(repair(run))
    assert (run / "epochs_7.h5.aside").read_bytes() == b"theirs"
    assert not (run / "epochs_7.h5").exists()
    with DefaultBackend(outdir=run, epochs_per_file=2) as backend:
        assert backend.status.epochs == len(LENGTHS)


def test_a_file_of_another_run_is_set_aside(run, tmp_path):
    """So does a file of another run, when no journal says which is the run's."""
    with DefaultBackend(outdir=tmp_path / "other") as backend:
        backend.ingest(epoch_dict(0, 3))
    shutil.copy(tmp_path / "other" / "epochs_1.h5", run / "epochs_8.h5")
    (run / JOURNAL).unlink()
    with pytest.raises(ForeignFiles):
        DefaultBackend(outdir=run)
    assert "epochs_8.h5 was set aside" in str(repair(run))
    assert readable(run) == list(range(len(LENGTHS)))


def test_a_run_that_is_written_is_not_repaired(tmp_path):
    """Repairing needs the right to write; looking doesn't."""
    with DefaultBackend(outdir=tmp_path / "run") as backend:
        backend.ingest(epoch_dict(0, 3))
        backend.flush()
        assert verify(tmp_path / "run").is_good
        with pytest.raises(RunLocked):
            repair(tmp_path / "run")


def test_what_is_no_run(tmp_path):
    """Where there is no run, both say so, and leave the folder as it is."""
    with pytest.raises(FileNotFoundError):
        verify(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError):
        repair(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileNotFoundError, match="holds no file of a run"):
        repair(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_errors_are_ours(run):
    """Whatever is flipped, only errors of ours come out of opening and reading."""
    rng = np.random.default_rng(5)
    names = [JOURNAL, "epochs_1.h5", "epochs_3.h5"]
    for _ in range(60):
        name = names[rng.integers(3)]
        data = (run / name).read_bytes()
        mutated = bytearray(data)
        for at in rng.integers(0, len(data), 3):
            mutated[at] = rng.integers(256)
        (run / name).write_bytes(mutated)
        try:
            readable(run)
            verify(run)
        except PosterityError:
            pass
        (run / name).write_bytes(data)


def shorten(path):
    with path.open("r+b") as file:
        file.truncate(600)


BREAKS = {
    "missing": lambda path: path.unlink(),
    "too short": shorten,
    "another file": lambda path: shutil.copy(path.parent / "epochs_2.h5", path),
}


@pytest.mark.parametrize("broken", BREAKS.values(), ids=BREAKS)
def test_a_burn_does_not_wait_for_a_file_that_is_gone(run, broken):
    """A burn that should cut a file that can't be read is kept; no other epoch waits for it, and nothing is deleted."""
    broken(run / "epochs_1.h5")
    before = {path.name for path in run.iterdir()}
    with DefaultBackend(outdir=run, epochs_per_file=2) as backend:
        backend.set_burn(LENGTHS[0] + 1)
        backend.ingest(epoch_dict(sum(LENGTHS), 3, state={"index": 5})).flush(publish=True)
    assert before <= {path.name for path in run.iterdir()}
    with open_run(run) as reader, reader.snapshot() as snapshot:
        for index in (2, 3, 4):
            assert_same(snapshot.get(index), expected(index))
        assert (snapshot.burn, snapshot.nepochs) == (LENGTHS[0] + 1, 6)
        assert snapshot.get(5)["state"] == {"index": 5}


@pytest.mark.parametrize("broken", BREAKS.values(), ids=BREAKS)
def test_a_run_goes_on_without_its_last_file(run, broken):
    """Where the file that the next epoch belongs to is gone or cut off, the run goes on in the next one."""
    broken(run / "epochs_3.h5")
    for index in (5, 6):
        with DefaultBackend(outdir=run, epochs_per_file=2) as backend:
            backend.ingest(epoch_dict(sum(LENGTHS), 3, state={"index": index})).flush(publish=True)
    assert {0, 1, 2, 3} <= set(readable(run))
    with open_run(run) as reader:
        assert [reader.get(index)["state"]["index"] for index in (5, 6)] == [5, 6]
    with h5py.File(run / "epochs_4.h5") as file:
        assert set(file) == {"epoch_5", "epoch_6"}
