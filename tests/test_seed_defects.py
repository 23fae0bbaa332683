"""The defects of jexplore 0.0.3's `DefaultBackend`, one test each: ours doesn't have it."""

import errno

import h5py
import numpy as np
import pytest

from known import assert_same, epoch_dict, joined, numbers, run_of
from posterity import DefaultBackend, EpochMismatch, UnknownOption, WriteFailed, read_epoch
from posterity._system.disk import Disk

RUN = run_of([4, 3, 5])


@pytest.fixture
def outdir(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def backend(outdir):
    """A run of three epochs."""
    with DefaultBackend(outdir=outdir) as backend:
        for epoch in RUN:
            backend.ingest(epoch)
        yield backend


@pytest.fixture
def full_disk(monkeypatch):
    """Writing fails until this set is emptied."""
    full = {True}
    reserve = Disk.reserve

    def refuse(disk, fd, offset, nbytes):
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        reserve(disk, fd, offset, nbytes)

    monkeypatch.setattr(Disk, "reserve", refuse)
    return full


def test_the_last_epoch_is_the_last_by_index(outdir):
    """Epoch -1 of a file with the epochs 0 to 11 is epoch 11, and not epoch 9."""
    with DefaultBackend(outdir=outdir, epochs_per_file=12) as backend:
        for epoch in run_of([2] * 12):
            backend.ingest(epoch)
    assert_same(DefaultBackend.read_epoch(outdir / "epochs_1.h5"), epoch_dict(22, 2))
    np.testing.assert_array_equal(DefaultBackend.load_epoch(outdir / "epochs_1.h5").last["p"][0, 0], 23_000)


def test_long_lists_keep_their_order(outdir):
    """A list of more than ten comes back in its own order, and not in that of text, from a file too."""
    members = [np.arange(i) for i in range(25)]
    with DefaultBackend(outdir=outdir) as backend:
        backend.ingest({**RUN[0], "list": members, "texts": [f"{i}" for i in range(12)]})
        assert_same(backend.get()["list"], members)
    assert_same(read_epoch(outdir / "epochs_1.h5")["list"], members)
    assert_same(read_epoch(outdir / "epochs_1.h5")["texts"], [f"{i}" for i in range(12)])


def test_thinning_goes_on_over_epochs(backend):
    """Every fifth sample of the run, not every fifth of each epoch."""
    np.testing.assert_array_equal(backend.get_samples(thin=5)["p"], joined(RUN)[:, :, ::5])


@pytest.mark.parametrize("call", [lambda b: b.set_burn(3), lambda b: b.update(), lambda b: b.clean()])
def test_an_empty_registry_is_no_error(outdir, call):
    """`set_burn`, `update` and `clean` work before the first epoch."""
    with DefaultBackend(outdir=outdir) as backend:
        call(backend)
        backend.ingest(RUN[0])
        assert backend.get_samples()["p"].shape[2] == 4 - backend.burn


def test_no_samples_are_none(outdir):
    """`get_samples` gives None where nothing is left, flattened or not."""
    with DefaultBackend(outdir=outdir) as backend:
        assert backend.get_samples() is None
        backend.ingest(RUN[0])
        backend.clean()
        assert backend.get_samples(flatten=True) is None


def test_a_run_can_be_resumed(backend, outdir):
    """A second backend on the folder goes on where the first one was closed."""
    backend.close()
    with DefaultBackend(outdir=outdir) as again:
        np.testing.assert_array_equal(again.load().last["p"], joined(RUN)[:, :, -1])
        again.ingest(epoch_dict(12, 2))
        np.testing.assert_array_equal(again.get_samples()["p"], numbers(0, 14))


def test_the_newest_epochs_reach_the_disk(outdir):
    """Epochs that stay in memory are on disk when the run was closed."""
    with DefaultBackend(outdir=outdir, inmem_epochs=10) as backend:
        for epoch in RUN:
            backend.ingest(epoch)
    for i, epoch in enumerate(RUN):
        assert_same(read_epoch(outdir / f"epochs_{i + 1}.h5"), epoch)


def test_update_writes_all_there_is_to_write(outdir, full_disk):
    """`update` writes every epoch that belongs on disk, however many wait."""
    with DefaultBackend(outdir=outdir, inmem_epochs=1, retry_after_s=0.01) as backend:
        for epoch in RUN:
            backend.ingest(epoch)
        with pytest.raises(WriteFailed):
            backend.update()
        full_disk.clear()
        while True:
            try:
                backend.update()
                break
            except WriteFailed:
                continue
        assert backend.status.epochs_on_disk == 2


def test_one_failed_write_does_not_poison_the_later_ones(outdir, full_disk):
    """After a failed write all epochs are written, and read back as they were."""
    with DefaultBackend(outdir=outdir, retry_after_s=0.01, epochs_per_file=2) as backend:
        backend.ingest(RUN[0])
        with pytest.raises(WriteFailed):
            backend.flush()
        full_disk.clear()
        backend.ingest(RUN[1])
        backend.ingest(RUN[2])
    with DefaultBackend(outdir=outdir) as again:
        np.testing.assert_array_equal(again.get_samples(verify=True)["p"], joined(RUN))


def test_burning_shrinks_files(outdir):
    """What is burned takes no room on disk after a flush."""
    with DefaultBackend(outdir=outdir, epochs_per_file=2) as backend:
        backend.ingest(epoch_dict(0, 1000))
        backend.ingest(epoch_dict(1000, 1000))
        backend.flush()
        size = (outdir / "epochs_1.h5").stat().st_size
        backend.set_burn(1900)
        backend.flush()
        assert (outdir / "epochs_1.h5").stat().st_size < 0.2 * size


def test_reset_empties_the_registry(backend):
    """After `reset` there is no epoch, and the next one is number 0."""
    backend.reset()
    assert backend.get_samples() is None
    assert backend.ingest_nowait(RUN[0]).index == 0


def test_reset_deletes_nobody_elses_files(backend, outdir):
    """A foreign file that matches the pattern outlives `reset`."""
    backend.flush()
    with h5py.File(outdir / "epochs_77.h5", "w") as file:
        file["precious"] = 1
    backend.reset()
    assert [path.name for path in outdir.glob("*.h5")] == ["epochs_77.h5"]


def test_get_returns_memory_of_its_own(outdir):
    """Changing what `get` returned changes nothing in the run."""
    with DefaultBackend(outdir=outdir, inmem_epochs=1) as backend:
        backend.ingest(RUN[0])
        backend.get()["samples"]["p"].fill(-1)
        assert_same(backend.get(), RUN[0])


def test_missing_stats_are_no_error(outdir):
    """`get_stats` leaves out an epoch that has none."""
    with DefaultBackend(outdir=outdir) as backend:
        backend.ingest({"samples": RUN[0]["samples"]})
        backend.ingest(RUN[1])
        assert list(backend.get_stats()) == ["epoch_1"]


def test_unknown_options_are_refused(outdir):
    """A misspelt option is an error that names the right one."""
    with pytest.raises(UnknownOption, match="epochs_per_file"):
        DefaultBackend(outdir=outdir, epochs_per_files=3)


def test_a_path_is_a_path(outdir):
    """`pathlib.Path` is taken for the folder and for a file."""
    with DefaultBackend(outdir=outdir) as backend:
        backend.ingest(RUN[0])
    assert_same(DefaultBackend.read_epoch(outdir / "epochs_1.h5"), RUN[0])


def test_python_numbers_can_be_stored(outdir):
    """Numbers of Python's own, None and text are stored and come back as they were, from the file."""
    epoch = {**RUN[0], "numbers": {"int": 3, "float": 0.5, "bool": True, "big": 2**80, "none": None, "text": "é"}}
    with DefaultBackend(outdir=outdir) as backend:
        backend.ingest(epoch)
    assert_same(read_epoch(outdir / "epochs_1.h5"), epoch)


def test_a_changed_number_of_chains_is_refused(backend):
    """An epoch with another number of chains is refused at `ingest`, and reading goes on; NaN is data."""
    with pytest.raises(EpochMismatch, match="chains"):
        backend.ingest(epoch_dict(12, 2, nchain=5))
    backend.ingest({"samples": {"p": np.full((3, 2, 1), np.nan)}})
    assert np.isnan(backend.get_samples()["p"][:, :, 12:]).all()
