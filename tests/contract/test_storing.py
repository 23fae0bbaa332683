"""Flush, reset and the files: what is where when which call returned."""

import os
import time

import anyio
import h5py
import numpy as np
import pytest
from drivers import flushed

from known import assert_same, epoch_dict, joined, run_of
from posterity import WriteFailed

RUN = run_of([4, 3, 5])
QUICK = {"retry_after_s": 0.01, "retry_at_most_s": 0.01}


def published(outdir):
    """What lies under the names that everybody may open: name -> epochs in it, as plain HDF5 has it."""
    found = {}
    for path in outdir.glob("*.h5"):
        with h5py.File(path) as file:
            found[path.name] = {name: file[name]["samples/p"][...] for name in file}
    return found


def hidden(outdir):
    return [path.name for path in outdir.iterdir() if path.name.startswith(".")]


# ---- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epochs_per_file", [1, 2, 3, 4, 100])
async def test_which_epoch_is_in_which_file(driver, outdir, epochs_per_file):
    """Epoch `i` goes to file `i // epochs_per_file + 1`, as a plain HDF5 group of the dict's layout."""
    epochs = run_of([2] * 7)
    async with await driver.open(outdir=outdir, epochs_per_file=epochs_per_file) as backend:
        for epoch in epochs:
            await backend.ingest(epoch)
    files = published(outdir)
    where = {name: file for file, names in files.items() for name in names}
    assert where == {f"epoch_{i}": f"epochs_{i // epochs_per_file + 1}.h5" for i in range(7)}
    for i, epoch in enumerate(epochs):
        np.testing.assert_array_equal(files[where[f"epoch_{i}"]][f"epoch_{i}"], epoch["samples"]["p"])
        assert_same(await driver.read_epoch(outdir / where[f"epoch_{i}"], i), epoch)
    assert hidden(outdir) == []


async def test_a_file_that_fills_up_has_another_name(driver, outdir):
    """A file gets its name when it is full; until then nobody finds a half-full one."""
    async with await driver.open(outdir=outdir, epochs_per_file=3) as backend:
        for i, epoch in enumerate(run_of([2] * 7)):
            await backend.ingest(epoch)
            await backend.flush()
            assert sorted(published(outdir)) == [f"epochs_{n + 1}.h5" for n in range((i + 1) // 3)]
            assert len(hidden(outdir)) == int((i + 1) % 3 > 0)
    assert sorted(published(outdir)) == ["epochs_1.h5", "epochs_2.h5", "epochs_3.h5"]
    assert hidden(outdir) == []


async def test_a_published_file_is_never_changed_in_place(driver, outdir):
    """Who has a published file open keeps what it saw: what changes is a new file under the same name."""
    epochs = run_of([200] * 3)
    async with await driver.open(outdir=outdir, epochs_per_file=3) as backend:
        for epoch in epochs[:2]:
            await backend.ingest(epoch)
        await backend.flush(publish=True)
        path = outdir / "epochs_1.h5"
        before, inode = path.read_bytes(), path.stat().st_ino
        with path.open("rb") as reader:
            await backend.ingest(epochs[2])
            await backend.flush(publish=True)
            assert path.stat().st_ino != inode
            await backend.set_burn(350)
            await backend.flush()
            assert reader.read() == before
        assert sorted(published(outdir)["epochs_1.h5"]) == ["epoch_1", "epoch_2"]


async def test_flush_with_publish(driver, outdir):
    """`flush(publish=True)` also publishes the file that is filling up; the run goes on in the same file."""
    async with await driver.open(outdir=outdir, epochs_per_file=4, inmem_epochs=2) as backend:
        for i, epoch in enumerate(RUN):
            await backend.ingest(epoch)
            await backend.flush(publish=True)
            assert {name: sorted(epochs) for name, epochs in published(outdir).items()} == {
                "epochs_1.h5": [f"epoch_{n}" for n in range(i + 1)]
            }
            await backend.flush(publish=True)
        np.testing.assert_array_equal((await backend.get_samples())["p"], joined(RUN))
    async with await driver.open(outdir=outdir, epochs_per_file=4) as backend:
        await backend.ingest(epoch_dict(12, 2))
    assert sorted(published(outdir)["epochs_1.h5"]) == ["epoch_0", "epoch_1", "epoch_2", "epoch_3"]


async def test_a_file_is_full_when_the_rest_of_it_is_burned(driver, outdir):
    """A file counts burned epochs as stored: it is published when each of its epochs was written or burned."""
    async with await driver.open(burn=5, outdir=outdir, epochs_per_file=3) as backend:
        for epoch in RUN:
            await backend.ingest(epoch)
        await backend.update()
        assert sorted(published(outdir)) == ["epochs_1.h5"]
        assert hidden(outdir) == []


async def test_the_files_have_the_modes_that_the_umask_gives(driver, outdir):
    """Files and folder can be read by whom the user's umask lets read them."""
    before = os.umask(0o027)
    try:
        async with await driver.open(outdir=outdir) as backend:
            await backend.ingest(RUN[0])
    finally:
        os.umask(before)
    assert outdir.stat().st_mode & 0o777 == 0o750
    assert (outdir / "epochs_1.h5").stat().st_mode & 0o777 == 0o640


# ---- flush -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inmem_epochs", [0, 5])
@pytest.mark.parametrize("epochs_per_file", [1, 2, 10])
async def test_what_was_flushed_survives_a_crash(driver, outdir, copy_of, inmem_epochs, epochs_per_file):
    """All that was ingested before `flush` is there when the run is opened after a crash, whole files or not."""
    epochs = run_of([4, 3, 5, 2, 6])
    async with await driver.open(outdir=outdir, inmem_epochs=inmem_epochs, epochs_per_file=epochs_per_file) as backend:
        for i, epoch in enumerate(epochs):
            await backend.ingest(epoch)
            await backend.flush()
            await backend.update()
            async with await driver.open(outdir=copy_of(outdir)) as crashed:
                for k in range(i + 1):
                    assert_same(await crashed.get(k), epochs[k])
                await crashed.ingest(epoch_dict(100, 2))
                np.testing.assert_array_equal(
                    (await crashed.get_samples(verify=True))["p"], joined([*epochs[: i + 1], epoch_dict(100, 2)])
                )


async def test_flush_of_nothing_returns(driver, outdir):
    """With nothing to write `flush` and `update` return at once."""
    async with await driver.open(outdir=outdir) as backend:
        await backend.flush()
        await backend.flush(publish=True)
        await backend.update()
        await backend.ingest(RUN[0])
        for _ in range(3):
            await backend.flush(publish=True)


async def test_flush_on_a_full_disk(driver, outdir, moody_disk):
    """`flush` raises with the disk's error; nothing is dropped, and all goes on by itself when there is room."""
    async with await driver.open(outdir=outdir, **QUICK) as backend:
        await backend.ingest(RUN[0])
        await backend.flush()
        moody_disk.fill()
        for epoch in RUN[1:]:
            await backend.ingest(epoch)
        for call in (backend.flush, backend.update):
            with pytest.raises(WriteFailed, match="No space left") as caught:
                await call()
            assert isinstance(caught.value, OSError)
            assert isinstance(caught.value.__cause__, OSError)
        assert backend.status.last_error is not None
        np.testing.assert_array_equal((await backend.get_samples())["p"], joined(RUN))
        receipt = backend.ingest_nowait(epoch_dict(12, 1))
        moody_disk.empty()
        await receipt.durable  # nobody asks, and yet it is written
        await backend.flush()
        assert backend.status.last_error is None
    async with await driver.open(outdir=outdir) as backend:
        np.testing.assert_array_equal((await backend.get_samples(verify=True))["p"], joined([*RUN, epoch_dict(12, 1)]))


async def test_flush_raises_for_attempts_since_the_call_only(driver, outdir, moody_disk):
    """A failure before the call doesn't make `flush` raise once the disk is well again."""
    async with await driver.open(outdir=outdir, **QUICK) as backend:
        moody_disk.fill()
        await backend.ingest(RUN[0])
        with pytest.raises(WriteFailed):
            await backend.flush()
        moody_disk.stop()
        await driver.call(moody_disk.was_reached.wait)  # the next attempt is under way
        moody_disk.empty()
        moody_disk.go_on()
        await backend.flush()


async def test_a_flush_makes_the_next_attempt_come_at_once(driver, outdir, moody_disk):
    """Who freed the disk and calls `flush` doesn't wait out the pause that the last failure made."""
    async with await driver.open(outdir=outdir, retry_after_s=20, retry_at_most_s=20) as backend:
        moody_disk.fill()
        await backend.ingest(RUN[0])
        with pytest.raises(WriteFailed):
            await backend.flush()
        moody_disk.empty()
        start = time.monotonic()
        await flushed(backend)
        assert time.monotonic() - start < 15
        assert backend.status.epochs_on_disk == 1


# ---- reset -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inmem_epochs", [0, 1, 5])
async def test_reset_starts_empty(driver, outdir, inmem_epochs):
    """After `reset` the run is empty, and the next epoch is number 0 in file 1."""
    async with await driver.open(outdir=outdir, inmem_epochs=inmem_epochs, epochs_per_file=2) as backend:
        for epoch in RUN:
            await backend.ingest(epoch)
        await backend.reset()
        assert (backend.status.epochs, backend.status.samples, backend.status.queued_epochs) == (0, 0, 0)
        assert await backend.get_samples() is None
        with pytest.raises(IndexError):
            await backend.get()
        with pytest.raises(IndexError):
            await backend.load()
        assert await backend.get_stats() == {}
        fresh = run_of([6], start=100)
        assert backend.ingest_nowait(fresh[0]).index == 0
        await backend.flush(publish=True)
        assert list(published(outdir)) == ["epochs_1.h5"]
        assert_same(await backend.get(0), fresh[0])
    async with await driver.open(outdir=outdir) as backend:
        np.testing.assert_array_equal((await backend.get_samples())["p"], joined(fresh))


async def test_reset_removes_the_runs_own_files_only(driver, outdir, caplog):
    """`reset` says what it removed, and touches nobody else's file, even one that matches the pattern."""
    async with await driver.open(outdir=outdir) as backend:
        for epoch in RUN:
            await backend.ingest(epoch)
        await backend.flush()
        for name in ("epochs_9.h5", "notes.txt", "epochs_1.h5.bak"):
            (outdir / name).write_text("mine")
        caplog.clear()
        await backend.reset()
        assert any("3 epochs" in record.getMessage() for record in caplog.records)
        assert sorted(path.name for path in outdir.glob("*.h5")) == ["epochs_9.h5"]
        assert all((outdir / name).read_text() == "mine" for name in ("epochs_9.h5", "notes.txt", "epochs_1.h5.bak"))
        assert hidden(outdir) == []


async def test_reset_is_durable(driver, outdir, copy_of):
    """A run that was reset is empty after a crash, too."""
    async with await driver.open(outdir=outdir) as backend:
        for epoch in RUN:
            await backend.ingest(epoch)
        await backend.flush()
        await backend.reset()
        async with await driver.open(outdir=copy_of(outdir)) as crashed:
            assert crashed.status.epochs == 0
            assert await crashed.get_samples() is None


async def test_reset_of_nothing(driver, outdir):
    """An empty run may be reset: before the first epoch, twice, and before anything was written."""
    async with await driver.open(outdir=outdir, inmem_epochs=2) as backend:
        await backend.reset()
        await backend.ingest(RUN[0])
        await backend.reset()
        await backend.reset()
        await backend.flush()
        assert not outdir.exists() or list(outdir.glob("*.h5")) == []
        await backend.ingest(RUN[1])
        np.testing.assert_array_equal((await backend.get_samples())["p"], RUN[1]["samples"]["p"])


async def test_reset_keeps_the_burn_that_was_asked_for(driver, outdir):
    """The burn given as a number is owed by the next run of samples; what `clean` burned isn't."""
    async with await driver.open(burn=3, outdir=outdir) as backend:
        for epoch in RUN:
            await backend.ingest(epoch)
        await backend.clean()
        assert backend.burn == 12
        await backend.reset()
        assert backend.burn == 3
        for epoch in RUN:
            await backend.ingest(epoch)
        np.testing.assert_array_equal((await backend.get_samples())["p"], joined(RUN)[:, :, 3:])
    async with await driver.open(outdir=outdir) as backend:
        assert backend.burn == 3


async def test_reset_while_epochs_wait(driver, outdir, moody_disk):
    """A reset drops what waits to be written, also what is being written just then, and nothing comes back."""
    async with await driver.open(outdir=outdir, epochs_per_file=2) as backend:
        moody_disk.stop()
        for epoch in RUN:
            await backend.ingest(epoch)
        await driver.call(moody_disk.was_reached.wait)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(backend.reset)
            while backend.status.epochs:
                await driver.call(lambda: None)
            moody_disk.go_on()
        await backend.ingest(epoch_dict(50, 2))
        np.testing.assert_array_equal((await backend.get_samples())["p"], epoch_dict(50, 2)["samples"]["p"])
        await backend.flush(publish=True)
        assert {name: list(epochs) for name, epochs in published(outdir).items()} == {"epochs_1.h5": ["epoch_0"]}
    async with await driver.open(outdir=outdir) as backend:
        assert_same(await backend.get(0), epoch_dict(50, 2))


async def test_a_run_that_was_reset_may_have_another_shape(driver, outdir):
    """After a reset epochs may have another number of chains, other dims, and other dtypes."""
    async with await driver.open(outdir=outdir) as backend:
        await backend.ingest(RUN[0])
        await backend.reset()
        other = {"samples": {"p": np.ones((7, 1, 2), np.float32)}}
        await backend.ingest(other)
        assert_same(await backend.get(), other)
