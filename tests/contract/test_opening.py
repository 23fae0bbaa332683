"""Opening: what a folder may hold, what may be asked for, and whose the folder is."""

import logging
import os
import socket
from pathlib import Path

import h5py
import numpy as np
import pytest
from drivers import flushed

from known import assert_same, epoch_dict, joined, run_of
from posterity import (
    EpochMismatch,
    ForeignFiles,
    PosterityError,
    RunExists,
    RunLocked,
    State,
    UnknownOption,
)

RUN = run_of([4, 3, 5])


async def write_run(driver, outdir, epochs=RUN, **options):
    async with await driver.open(outdir=outdir, **options) as backend:
        for epoch in epochs:
            await backend.ingest(epoch)


async def read_all(driver, outdir, **options):
    async with await driver.open(outdir=outdir, **options) as backend:
        return await backend.get_samples()


# ---- options -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("epoch_per_file", "epochs_per_file"),
        ("in_mem_epochs", "inmem_epochs"),
        ("modus", "mode"),
        ("on_ful", "on_full"),
    ],
)
async def test_unknown_option_names_the_nearest(driver, outdir, given, meant):
    """An option that doesn't exist is an error that names the one that was meant, and nothing is opened."""
    with pytest.raises(UnknownOption, match=f"{given}.*{meant}") as caught:
        await driver.open(outdir=outdir, **{given: 1})
    assert isinstance(caught.value, (PosterityError, TypeError))
    assert not outdir.exists()


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("burn", -1, ValueError),
        ("burn", 1.5, TypeError),
        ("burn", True, TypeError),
        ("epochs_per_file", 0, ValueError),
        ("epochs_per_file", "2", TypeError),
        ("inmem_epochs", -1, ValueError),
        ("save_stats", "yes", TypeError),
        ("mode", "r", TypeError),
        ("on_full", "drop", TypeError),
        ("max_pending_bytes", 0, ValueError),
        ("retry_after_s", float("nan"), ValueError),
        ("outfile_fmt", "epochs.h5", ValueError),
        ("outfile_fmt", "%d_%d.h5", ValueError),
        ("outfile_fmt", "%s.h5", ValueError),
        ("outfile_fmt", "../epochs_%d.h5", ValueError),
        ("outfile_fmt", "/tmp/epochs_%d.h5", ValueError),
        ("outfile_fmt", ".epochs_%d.h5", ValueError),
    ],
)
async def test_bad_values_are_refused_at_once(driver, outdir, option, value, error):
    """A value of the wrong type or out of its range is an error at opening that names the option."""
    with pytest.raises(error, match=option):
        await driver.open(**{"outdir": outdir, option: value})
    assert not outdir.exists()


@pytest.mark.parametrize("kind", [str, Path, os.fsencode], ids=["str", "Path", "bytes"])
async def test_outdir_may_be_any_path(driver, outdir, kind):
    """The folder may be given as text, as bytes or as a `Path`, and parents are made as needed."""
    folder = outdir / "deep" / "ünder"
    await write_run(driver, kind(folder), RUN[:1])
    assert (folder / "epochs_1.h5").is_file()


async def test_numpy_integers_are_integers(driver, outdir):
    """Counts computed with NumPy are taken."""
    async with await driver.open(np.int64(2), outdir=outdir, epochs_per_file=np.uint8(2)) as backend:
        for epoch in RUN:
            await backend.ingest(epoch)
        await backend.set_burn(np.int32(3))
        assert backend.burn == 3
        np.testing.assert_array_equal((await backend.get_samples())["p"], joined(RUN)[:, :, 3:])


async def test_relative_outdir_is_where_it_was_at_opening(driver, tmp_path, monkeypatch):
    """A relative `outdir` means a folder below the working directory of the moment of opening."""
    monkeypatch.chdir(tmp_path)
    backend = await driver.open(outdir="run")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    await backend.ingest(RUN[0])
    await backend.close()
    assert (tmp_path / "run" / "epochs_1.h5").is_file()
    assert list((tmp_path / "elsewhere").iterdir()) == []


async def test_options_may_be_read_from_status_and_repr(driver, outdir):
    """A backend that was just opened is running, empty, and its repr tells the folder and the state."""
    async with await driver.open(outdir=outdir) as backend:
        assert backend.status.state is State.RUNNING
        assert (backend.status.epochs, backend.status.samples, backend.burn) == (0, 0, 0)
        assert str(outdir) in repr(backend)
        assert "running" in repr(backend)


# ---- a folder without a run --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["a", "x", "w"])
async def test_folder_is_not_made_before_it_is_needed(driver, outdir, mode):
    """A run that never got an epoch leaves no trace on disk, whatever was asked of it."""
    async with await driver.open(burn=3, outdir=outdir, mode=mode) as backend:
        await backend.set_burn(5)
        await backend.clean()
        await backend.update()
        await backend.flush()
        assert await backend.get_samples() is None
    assert not outdir.exists()


async def test_folder_is_not_touched_while_epochs_are_in_memory_only(driver, outdir):
    """The folder is made when the first epoch must be written, and not before."""
    async with await driver.open(outdir=outdir, inmem_epochs=2) as backend:
        await backend.ingest(RUN[0])
        await backend.ingest(RUN[1])
        await backend.update()
        assert not outdir.exists()
        await backend.ingest(RUN[2])
        await backend.update()
        assert outdir.is_dir()


async def test_other_files_in_the_folder_are_left_alone(driver, outdir):
    """Files that don't match `outfile_fmt` may lie in the run folder."""
    outdir.mkdir()
    (outdir / "notes.txt").write_text("mine")
    (outdir / "epochs_x.h5").write_text("mine")
    await write_run(driver, outdir)
    assert (outdir / "notes.txt").read_text() == "mine"
    assert (outdir / "epochs_x.h5").read_text() == "mine"


@pytest.mark.parametrize("mode", ["a", "x", "w"])
async def test_foreign_files_make_opening_fail(driver, outdir, mode):
    """A file that matches `outfile_fmt` and isn't the run's is named, with the ways out, and stays as it is."""
    outdir.mkdir()
    with h5py.File(outdir / "epochs_7.h5", "w") as file:
        file["x"] = 1
    before = (outdir / "epochs_7.h5").read_bytes()
    with pytest.raises(ForeignFiles, match=r"epochs_7\.h5.*outdir.*outfile_fmt") as caught:
        await driver.open(outdir=outdir, mode=mode)
    assert isinstance(caught.value, FileExistsError)
    assert {path.name: path.read_bytes() for path in outdir.iterdir()} == {"epochs_7.h5": before}


async def test_foreign_files_beside_a_run_make_opening_fail(driver, outdir):
    """A foreign file that turned up beside a run is named, and neither it nor the run is changed."""
    await write_run(driver, outdir)
    (outdir / "epochs_9.h5").write_bytes(b"somebody else's")
    before = {path.name: path.read_bytes() for path in outdir.glob("*.h5")}
    with pytest.raises(ForeignFiles, match=r"epochs_9\.h5"):
        await driver.open(outdir=outdir)
    assert {path.name: path.read_bytes() for path in outdir.glob("*.h5")} == before
    (outdir / "epochs_9.h5").unlink()
    np.testing.assert_array_equal((await read_all(driver, outdir))["p"], joined(RUN))


async def test_a_foreign_file_that_turns_up_later_is_never_replaced(driver, outdir):
    """A name that somebody else took in the meantime stays theirs; the run says so and goes on once it is free."""
    async with await driver.open(outdir=outdir, retry_after_s=0.01, retry_at_most_s=0.01) as backend:
        await backend.ingest(RUN[0])
        await backend.flush(publish=True)
        theirs = outdir / "epochs_2.h5"
        theirs.write_bytes(b"somebody else's")
        await backend.ingest(RUN[1])
        with pytest.raises(OSError, match=r"epochs_2\.h5"):
            await backend.flush(publish=True)
        assert theirs.read_bytes() == b"somebody else's"
        theirs.rename(outdir / "theirs.bin")
        await flushed(backend, publish=True)
    assert (outdir / "theirs.bin").read_bytes() == b"somebody else's"
    np.testing.assert_array_equal((await read_all(driver, outdir))["p"], joined(RUN[:2]))


# ---- a folder with a run -----------------------------------------------------------------------------------------------


async def test_a_run_is_continued_with_one_warning(driver, outdir, caplog):
    """Mode "a" goes on where the run ended, and one WARNING says what is there."""
    await write_run(driver, outdir, RUN[:2], burn=2)
    caplog.clear()
    async with await driver.open(outdir=outdir) as backend:
        warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert len(warnings) == 1
        assert all(word in warnings[0].getMessage() for word in (str(outdir), "2 epochs", "7 samples", "2 of them"))
        await backend.ingest(RUN[2])
        np.testing.assert_array_equal((await backend.get_samples())["p"], joined(RUN)[:, :, 2:])
        for i, epoch in enumerate(RUN[1:], 1):
            assert_same(await backend.get(i), epoch)


async def test_a_fresh_folder_gives_no_warning(driver, outdir, caplog):
    """Nothing is there, so nothing is said."""
    await write_run(driver, outdir)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_mode_x_refuses_a_run(driver, outdir):
    """Mode "x" refuses a folder that holds a run, and leaves it as it is."""
    await write_run(driver, outdir)
    with pytest.raises(RunExists, match=r"mode='a'.*'w'") as caught:
        await driver.open(outdir=outdir, mode="x")
    assert isinstance(caught.value, FileExistsError)
    np.testing.assert_array_equal((await read_all(driver, outdir))["p"], joined(RUN))


async def test_mode_x_starts_a_run(driver, outdir):
    """Mode "x" is for a folder without a run."""
    await write_run(driver, outdir, mode="x")
    np.testing.assert_array_equal((await read_all(driver, outdir))["p"], joined(RUN))


async def test_mode_w_replaces_the_run_at_the_first_write(driver, outdir):
    """Mode "w" is empty from the start, and on disk only the new run is left once it is written."""
    await write_run(driver, outdir, burn=4)
    fresh = epoch_dict(100, 6, nchain=5, dim=4)
    async with await driver.open(outdir=outdir, mode="w") as backend:
        assert await backend.get_samples() is None
        assert backend.burn == 0
        await backend.ingest(fresh)
        assert_same(await backend.get(0), fresh)
    assert [path.name for path in sorted(outdir.glob("*.h5"))] == ["epochs_1.h5"]
    assert_same(await driver.read_epoch(outdir / "epochs_1.h5"), fresh)
    np.testing.assert_array_equal((await read_all(driver, outdir))["p"], fresh["samples"]["p"])


@pytest.mark.parametrize("inmem_epochs", [0, 3])
async def test_mode_w_keeps_the_old_run_until_something_is_written(driver, outdir, inmem_epochs):
    """As long as nothing of the new run must be written, the old one is still there."""
    await write_run(driver, outdir)
    async with await driver.open(outdir=outdir, mode="w", inmem_epochs=inmem_epochs) as backend:
        await backend.update()
        assert_same(await driver.read_epoch(outdir / "epochs_2.h5"), RUN[1])
    np.testing.assert_array_equal((await read_all(driver, outdir))["p"], joined(RUN))


async def test_the_larger_burn_holds(driver, outdir):
    """Of the stored burn and the one given at opening the larger one holds."""
    await write_run(driver, outdir, burn=5)
    async with await driver.open(burn=2, outdir=outdir) as backend:
        assert backend.burn == 5
        np.testing.assert_array_equal((await backend.get_samples())["p"], joined(RUN)[:, :, 5:])
    async with await driver.open(burn=8, outdir=outdir) as backend:
        assert backend.burn == 8
        np.testing.assert_array_equal((await backend.get_samples())["p"], joined(RUN)[:, :, 8:])
    async with await driver.open(outdir=outdir) as backend:
        assert backend.burn == 8


async def test_what_belongs_to_the_session(driver, outdir):
    """`save_stats` and `inmem_epochs` may be others in each session."""
    await write_run(driver, outdir, RUN[:1], save_stats=False)
    async with await driver.open(outdir=outdir, inmem_epochs=5) as backend:
        await backend.ingest(RUN[1])
        await backend.update()
        assert (backend.status.epochs, backend.status.epochs_on_disk) == (2, 1)
        assert list(await backend.get_stats()) == ["epoch_1"]


async def test_epochs_per_file_holds_from_the_next_file_on(driver, outdir):
    """Files that are there keep content and name; a changed grouping starts at the next unused number."""
    epochs = run_of([2] * 8)
    await write_run(driver, outdir, epochs[:3], epochs_per_file=2)
    before = {path.name: path.read_bytes() for path in outdir.glob("*.h5")}
    await write_run(driver, outdir, epochs[3:], epochs_per_file=3)
    held = {}
    for path in outdir.glob("*.h5"):
        with h5py.File(path) as file:
            held[path.name] = set(file)
    assert held == {
        "epochs_1.h5": {"epoch_0", "epoch_1"},
        "epochs_2.h5": {"epoch_2"},
        "epochs_3.h5": {"epoch_3", "epoch_4", "epoch_5"},
        "epochs_4.h5": {"epoch_6", "epoch_7"},
    }
    assert before.items() <= {path.name: path.read_bytes() for path in outdir.glob("*.h5")}.items()
    np.testing.assert_array_equal((await read_all(driver, outdir))["p"], joined(epochs))


async def test_outfile_fmt_belongs_to_the_run(driver, outdir):
    """A run keeps the names of its files: leaving the option out takes them over, another one is refused."""
    await write_run(driver, outdir, RUN[:1], outfile_fmt="chain-%03d.hdf5")
    await write_run(driver, outdir, RUN[1:2])
    with pytest.raises(ValueError, match=r"chain-%03d\.hdf5"):
        await driver.open(outdir=outdir, outfile_fmt="epochs_%d.h5")
    await write_run(driver, outdir, RUN[2:], outfile_fmt="chain-%03d.hdf5")
    assert sorted(path.name for path in outdir.glob("*5")) == [f"chain-{i:03d}.hdf5" for i in (1, 2, 3)]
    np.testing.assert_array_equal((await read_all(driver, outdir))["p"], joined(RUN))


@pytest.mark.parametrize("other", [{"nchain": 4}, {"dim": 3}])
async def test_shapes_belong_to_the_run(driver, outdir, other):
    """The number of chains and each name's dim hold in later sessions too, until `reset`."""
    await write_run(driver, outdir)
    async with await driver.open(outdir=outdir) as backend:
        with pytest.raises(EpochMismatch):
            await backend.ingest(epoch_dict(12, 2, **other))
        await backend.reset()
        await backend.ingest(epoch_dict(0, 2, **other))
        assert_same(await backend.get(), epoch_dict(0, 2, **other))


async def test_a_moved_folder_is_the_same_run(driver, outdir, tmp_path):
    """The paths in a run are relative: it can be moved."""
    await write_run(driver, outdir)
    outdir.rename(tmp_path / "moved")
    np.testing.assert_array_equal((await read_all(driver, tmp_path / "moved"))["p"], joined(RUN))


# ---- one writer --------------------------------------------------------------------------------------------------------


async def test_a_second_opening_is_refused(driver, outdir):
    """While a run is open, a second opening is refused and says who holds it, since when, and where it was opened."""
    async with await driver.open(outdir=outdir) as backend:
        await backend.ingest(RUN[0])
        await backend.flush()
        with pytest.raises(RunLocked) as caught:
            await driver.open(outdir=outdir)
        assert isinstance(caught.value, BlockingIOError)
        told = str(caught.value)
        assert all(word in told for word in (str(os.getpid()), socket.gethostname(), "since 20", ".py:"))
        await backend.ingest(RUN[1])
        await backend.flush()
    np.testing.assert_array_equal((await read_all(driver, outdir))["p"], joined(RUN[:2]))


async def test_a_second_opening_under_another_name_is_refused(driver, outdir, tmp_path):
    """A symbolic link to a folder that is open is that folder."""
    async with await driver.open(outdir=outdir) as backend:
        await backend.ingest(RUN[0])
        await backend.flush()
        (tmp_path / "alias").symlink_to(outdir)
        with pytest.raises(RunLocked):
            await driver.open(outdir=tmp_path / "alias")


async def test_a_second_backend_on_a_folder_that_is_not_there_yet(driver, outdir):
    """A folder has one backend in a process from opening on, also before anything is written to it."""
    first = await driver.open(outdir=outdir)
    with pytest.raises(RunLocked, match="written by process"):
        await driver.open(outdir=outdir)
    await first.ingest(RUN[0])
    await first.close()
    np.testing.assert_array_equal((await read_all(driver, outdir))["p"], joined(RUN[:1]))


async def test_closing_lets_the_next_one_in(driver, outdir):
    """A run can be opened as soon as `close` returned."""
    for i, epoch in enumerate(RUN):
        async with await driver.open(outdir=outdir) as backend:
            await backend.ingest(epoch)
            assert backend.status.epochs == i + 1
    np.testing.assert_array_equal((await read_all(driver, outdir))["p"], joined(RUN))
