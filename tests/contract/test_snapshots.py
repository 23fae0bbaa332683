"""Snapshots and updates: a picture of the run that nothing changes, and word of each new one."""

import anyio
import numpy as np
import pytest

from known import assert_same, epoch_dict, joined, numbers, run_of
from posterity import Burned, Closed
from smallchunks import small_chunks

RUN = run_of([4, 3, 5])  # samples 0-3, 4-6, 7-11
MORE = epoch_dict(12, 6)


async def assert_shows(snapshot, epochs, burn=0):
    """The snapshot shows these epochs in every way in which it can be read."""
    left = joined(epochs)[:, :, burn:]
    assert (snapshot.burn, snapshot.nepochs, snapshot.nsamples) == (burn, len(epochs), left.shape[2])
    np.testing.assert_array_equal((await snapshot.get_samples(verify=True))["p"], left)
    np.testing.assert_array_equal((await snapshot.get_samples())["p"], left)
    for i in snapshot.epochs:
        last = epochs[i]["samples"]["ll"][:, :, -1:]
        np.testing.assert_array_equal((await snapshot.get(i))["samples"]["ll"][:, :, -1:], last)
    assert_same(await snapshot.get_stats(), {f"epoch_{i}": epochs[i]["stats"] for i in snapshot.epochs})
    np.testing.assert_array_equal((await snapshot.load()).last["p"], joined(epochs)[:, :, -1])


@pytest.fixture(
    params=[{}, {"inmem_epochs": 1}, {"inmem_epochs": 5}, {"compression": "zstd"}],
    ids=["on disk", "mixed", "in memory", "compressed"],
)
async def backend(request, driver, outdir):
    """A run of three epochs that are on disk, in memory, or some of each; two to a file."""
    with small_chunks():
        async with await driver.open(outdir=outdir, epochs_per_file=2, **request.param) as backend:
            for epoch in RUN:
                await backend.ingest(epoch)
            await backend.update()
            yield backend


async def test_a_snapshot_has_all_that_was_ingested_before(driver, outdir, moody_disk):
    """Every ingest that returned before is in the snapshot, written or not."""
    async with await driver.open(outdir=outdir) as backend:
        moody_disk.stop()
        for i, epoch in enumerate(RUN):
            await backend.ingest(epoch)
            async with backend.snapshot() as snapshot:
                await assert_shows(snapshot, RUN[: i + 1])
        moody_disk.go_on()


async def test_a_snapshot_of_nothing(driver, outdir):
    """A snapshot of an empty run is empty, and stays so."""
    async with await driver.open(outdir=outdir) as backend, backend.snapshot() as snapshot:
        await backend.ingest(RUN[0])
        await backend.flush()
        assert (snapshot.nepochs, snapshot.nsamples, list(snapshot.epochs)) == (0, 0, [])
        assert await snapshot.get_samples() is None
        assert await snapshot.get_stats() == {}
        with pytest.raises(IndexError):
            await snapshot.get()


async def test_its_repr_tells(backend):
    """The repr of a snapshot tells how much it shows."""
    async with backend.snapshot() as snapshot:
        assert "3 epochs" in repr(snapshot)
        assert "12 samples" in repr(snapshot)


async def test_ingests_do_not_change_it(backend):
    """Epochs that come later aren't in a snapshot, also once everything was written."""
    async with backend.snapshot() as snapshot:
        await backend.ingest(MORE)
        await assert_shows(snapshot, RUN)
        await backend.flush(publish=True)
        await assert_shows(snapshot, RUN)


@pytest.mark.parametrize("burn", [2, 5, 7, 12, 100])
async def test_burns_do_not_change_it(backend, burn):
    """A snapshot keeps what a later burn takes, until it is released."""
    async with backend.snapshot() as snapshot:
        await backend.set_burn(burn)
        await backend.update()
        await assert_shows(snapshot, RUN)
        await backend.flush()
        await assert_shows(snapshot, RUN)
    async with backend.snapshot() as snapshot:
        assert snapshot.nsamples == max(0, 12 - burn)


async def test_resets_do_not_change_it(backend):
    """A snapshot keeps a run that was reset, and whatever came after."""
    async with backend.snapshot() as snapshot:
        await backend.reset()
        await assert_shows(snapshot, RUN)
        for epoch in run_of([9, 9, 9], start=500):
            await backend.ingest(epoch)
        await backend.flush(publish=True)
        await assert_shows(snapshot, RUN)
        async with backend.snapshot() as later:
            await assert_shows(later, run_of([9, 9, 9], start=500))
            await backend.reset()
            await backend.flush()
            await assert_shows(later, run_of([9, 9, 9], start=500))
            await assert_shows(snapshot, RUN)


async def test_closing_does_not_change_it(backend):
    """A snapshot can be read after its backend was closed."""
    async with backend.snapshot() as snapshot:
        await backend.ingest(MORE)
        await backend.set_burn(5)
        await backend.close()
        await assert_shows(snapshot, RUN)


async def test_it_keeps_the_files_that_it_needs(driver, outdir):
    """Files that a burn emptied stay as long as a snapshot needs them, and go when it is released."""
    async with await driver.open(outdir=outdir) as backend:
        for epoch in RUN:
            await backend.ingest(epoch)
        await backend.flush()
        async with backend.snapshot() as snapshot:
            await backend.set_burn(7)
            async with backend.snapshot() as later:
                await backend.flush()
                assert len(list(outdir.glob("*.h5"))) == 3
                await assert_shows(later, RUN, burn=7)
            await assert_shows(snapshot, RUN)
        await backend.update()
        assert [path.name for path in outdir.glob("*.h5")] == ["epochs_3.h5"]


async def test_it_keeps_the_files_of_a_run_that_was_reset(driver, outdir):
    """Files from before a reset stay, out of the way, for a snapshot that needs them, and go when it is released."""
    async with await driver.open(outdir=outdir) as backend:
        for epoch in RUN:
            await backend.ingest(epoch)
        await backend.flush()
        async with backend.snapshot() as snapshot:
            await backend.reset()
            assert list(outdir.glob("*.h5")) == []
            await assert_shows(snapshot, RUN)
        await backend.update()
        await backend.flush()
        assert not [path.name for path in outdir.iterdir() if "epochs" in path.name]


async def test_nobody_waits_for_a_snapshot(backend, outdir):
    """A flush, an update, a reset and a close return although a snapshot delays the removal of files."""
    async with backend.snapshot() as snapshot:
        await backend.set_burn(6)
        await backend.update()
        await backend.flush(publish=True)
        await backend.reset()
        await backend.ingest(MORE)
        await backend.close()
        await assert_shows(snapshot, RUN)


async def test_files_that_a_snapshot_delayed_go_at_the_next_opening(driver, outdir):
    """What a snapshot kept when its backend was closed is cleared up when the run is opened again."""
    async with await driver.open(outdir=outdir) as backend:
        for epoch in RUN:
            await backend.ingest(epoch)
        await backend.flush()
        async with backend.snapshot() as snapshot:
            await backend.set_burn(7)
            await backend.close()
            await assert_shows(snapshot, RUN)
    async with await driver.open(outdir=outdir) as backend:
        await backend.update()
        assert [path.name for path in outdir.glob("*.h5")] == ["epochs_3.h5"]
        async with backend.snapshot() as snapshot:
            await assert_shows(snapshot, RUN, burn=7)
            await backend.reset()
            await backend.close()
            await assert_shows(snapshot, RUN, burn=7)
    async with await driver.open(outdir=outdir) as backend:
        assert not [path.name for path in outdir.iterdir() if "epochs" in path.name]


async def test_a_released_snapshot_is_closed(backend):
    """Reading from a snapshot that was released is an error, and releasing it again isn't."""
    async with backend.snapshot() as snapshot:
        pass
    for read in (snapshot.get, snapshot.get_samples, snapshot.load, snapshot.get_stats):
        with pytest.raises(Closed, match="released"):
            await read()
    snapshot.target.release()


async def test_what_a_snapshot_shows_may_be_continued_from(backend):
    """The newest epoch of a snapshot can be loaded although it was burned, whatever came after it."""
    await backend.clean()
    async with backend.snapshot() as snapshot:
        await backend.ingest(MORE)
        await backend.clean()
        await backend.flush(publish=True)
        np.testing.assert_array_equal((await snapshot.load()).last["p"], numbers(11, 1)[:, :, 0])
        with pytest.raises(Burned):
            await snapshot.get()


async def test_a_snapshot_keeps_what_a_burn_keeps_from_being_written(driver, outdir, moody_disk):
    """Epochs that were burned while they waited for the disk are never written; a snapshot has them all the same."""
    async with await driver.open(outdir=outdir) as backend:
        moody_disk.stop()
        for epoch in RUN:
            await backend.ingest(epoch)
        async with backend.snapshot() as snapshot:
            await backend.set_burn(9)
            moody_disk.go_on()
            await backend.flush()
            await assert_shows(snapshot, RUN)
            await backend.close()
            await assert_shows(snapshot, RUN)


async def test_a_snapshot_shows_its_own_burn(backend):
    """Epochs that were burned when the snapshot was taken are burned in it."""
    await backend.set_burn(5)
    async with backend.snapshot() as snapshot:
        assert (snapshot.burn, snapshot.nepochs, snapshot.nsamples) == (5, 3, 7)
        assert list(snapshot.epochs) == [1, 2]
        with pytest.raises(Burned):
            await snapshot.get(0)
        np.testing.assert_array_equal((await snapshot.get_samples(burn=1, thin=2))["p"], numbers(6, 6)[:, :, ::2])


async def test_arrays_given_away_are_kept_for_a_snapshot_of_before_a_reset(driver, outdir, moody_disk):
    """Arrays that were given away aren't released while a snapshot still reads them, although the run was reset."""
    mine = numbers(0, 20_000)
    async with await driver.open(outdir=outdir, inmem_epochs=1) as backend:
        receipt = backend.ingest_nowait({"samples": {"p": mine}}, copy=False)
        async with backend.snapshot() as snapshot:
            await backend.reset()
            await backend.flush()
            if receipt.released.done:
                mine.fill(-1)
            np.testing.assert_array_equal((await snapshot.get_samples())["p"], numbers(0, 20_000))
        with anyio.fail_after(10):
            await receipt.released


# ---- updates -----------------------------------------------------------------------------------------------------------


async def take(updates):
    """The next snapshot's number of samples, or None at the end."""
    async for snapshot in updates:
        return snapshot.nsamples
    return None


async def test_updates_come_with_each_change(driver, outdir):
    """Each ingest and each burn that takes something gives a newer snapshot."""
    async with await driver.open(outdir=outdir) as backend:
        updates = backend.updates()
        seen = []
        for epoch in RUN:
            await backend.ingest(epoch)
            seen.append(await take(updates))
        await backend.set_burn(5)
        seen.append(await take(updates))
        await backend.reset()
        await backend.ingest(epoch_dict(0, 9))
        seen.append(await take(updates))
        assert seen == [4, 7, 12, 7, 4]  # after the reset the burn of 5 is still owed


async def test_updates_wait_for_a_change(driver, outdir):
    """A listener waits while nothing changes, and is woken by the next epoch."""
    async with await driver.open(outdir=outdir) as backend:
        seen = []

        async def listen():
            async for snapshot in backend.updates():
                seen.append(snapshot.nsamples)
                await assert_shows(snapshot, RUN[: len(seen)])
                was_seen.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listen)
            for epoch in RUN:
                was_seen = anyio.Event()
                await backend.ingest(epoch)
                await was_seen.wait()
            await backend.close()
        assert seen == [4, 7, 12]


async def test_a_slow_listener_gets_the_newest_only(driver, outdir):
    """No updates queue up: who comes late gets the newest, once."""
    async with await driver.open(outdir=outdir) as backend:
        updates = backend.updates()
        await backend.ingest(RUN[0])
        assert await take(updates) == 4
        await backend.ingest(RUN[1])
        await backend.ingest(RUN[2])
        await backend.flush()
        assert await take(updates) == 12
        await backend.close()
        assert await take(updates) is None


async def test_updates_come_after_so_many_samples(driver, outdir):
    """With `min_samples` an update comes when at least so many came since the last."""
    async with await driver.open(outdir=outdir) as backend:
        updates = backend.updates(min_samples=6)
        await backend.ingest(RUN[0])
        assert await take(updates) == 4
        seen = []

        async def listen():
            seen.append(await take(updates))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listen)
            await backend.ingest(RUN[1])
            await backend.flush()
            assert seen == []
            await backend.ingest(RUN[2])
        assert seen == [12]


async def test_updates_of_several_listeners(driver, outdir):
    """Each listener gets its own updates."""
    async with await driver.open(outdir=outdir) as backend:
        first, second = backend.updates(), backend.updates()
        await backend.ingest(RUN[0])
        assert await take(first) == 4
        await backend.ingest(RUN[1])
        assert await take(second) == 7
        assert await take(first) == 7


async def test_updates_end_when_the_run_is_closed(driver, outdir):
    """A listener that waits is let go when the run is closed."""
    async with await driver.open(outdir=outdir) as backend:
        ends = []

        async def listen():
            ends.append(await take(backend.updates()))

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(listen)
            await anyio.wait_all_tasks_blocked()
            await backend.close()
        assert ends == [None] * 3


async def test_a_listener_does_not_keep_files(driver, outdir):
    """A snapshot that an update gave is released with the next one: files go although somebody listens."""
    async with await driver.open(outdir=outdir) as backend:
        updates = backend.updates()
        for epoch in RUN:
            await backend.ingest(epoch)
        await backend.flush()
        assert await take(updates) == 12
        await backend.set_burn(7)
        assert await take(updates) == 5
        await backend.update()
        assert [path.name for path in outdir.glob("*.h5")] == ["epochs_3.h5"]
