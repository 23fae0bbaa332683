"""Burning: what is discarded is gone from every later read, and from disk as soon as nobody needs it."""

import numpy as np
import pytest
from drivers import flushed
from hypothesis import given, settings
from hypothesis import strategies as st

from known import assert_same, joined, numbers, run_of
from posterity import Burned, BurnLowered, read_epoch

RUN = run_of([4, 3, 5])  # samples 0-3, 4-6, 7-11
QUICK = {"retry_after_s": 0.01, "retry_at_most_s": 0.01}


def cut(epoch, n):
    """An epoch without its first n samples."""
    return {**epoch, "samples": {name: array[:, :, n:] for name, array in epoch["samples"].items()}}


async def test_an_empty_registry_can_be_burned(driver, outdir):
    """`set_burn`, `clean` and `update` work before the first epoch, and the burn is owed to the epochs to come."""
    async with await driver.open(outdir=outdir) as backend:
        await backend.clean()
        assert backend.burn == 0
        await backend.set_burn(5)
        await backend.update()
        assert backend.burn == 5
        await backend.ingest(RUN[0])
        assert await backend.get_samples() is None
        await backend.ingest(RUN[1])
        np.testing.assert_array_equal((await backend.get_samples())["p"], joined(RUN[:2])[:, :, 5:])


@pytest.mark.parametrize("burn", [0, 1, 4, 5, 7, 11, 12, 30])
@pytest.mark.parametrize("inmem_epochs", [0, 1, 5])
async def test_burn_before_inside_across_and_beyond(driver, outdir, burn, inmem_epochs):
    """Wherever a burn ends, what is left is what comes after it: now, and in a later session."""

    async def check(backend):
        assert backend.burn == burn
        left = joined(RUN)[:, :, burn:]
        samples = await backend.get_samples()
        assert (samples is None) if left.shape[2] == 0 else np.array_equal(samples["p"], left)
        for i, (epoch, first) in enumerate(zip(RUN, (0, 4, 7), strict=True)):
            stop = first + epoch["samples"]["p"].shape[2]
            if stop <= burn:
                with pytest.raises(Burned, match=f"epoch {i} .*{burn}.*{stop}"):
                    await backend.get(i)
            else:
                assert_same(await backend.get(i), cut(epoch, max(0, burn - first)))

    async with await driver.open(outdir=outdir, inmem_epochs=inmem_epochs, epochs_per_file=2) as backend:
        for epoch in RUN:
            await backend.ingest(epoch)
        await backend.set_burn(burn)
        await check(backend)
        await backend.update()
        await check(backend)
        await backend.flush()
        await check(backend)
        assert backend.status.samples == max(0, 12 - burn)
    async with await driver.open(outdir=outdir) as backend:
        await check(backend)


async def test_burn_cannot_be_lowered(driver, outdir):
    """A lower burn is an error that says what holds, the same one is none."""
    async with await driver.open(burn=3, outdir=outdir) as backend:
        await backend.set_burn(5)
        await backend.set_burn(5)
        for burn in (4, 0, -1):
            with pytest.raises(BurnLowered, match="5") as caught:
                await backend.set_burn(burn)
            assert isinstance(caught.value, ValueError)
        with pytest.raises(TypeError):
            await backend.set_burn(6.0)
        assert backend.burn == 5


async def test_clean_burns_all_so_far(driver, outdir):
    """`clean` discards everything ingested so far, and nothing that comes after it."""
    async with await driver.open(outdir=outdir, inmem_epochs=1) as backend:
        for epoch in RUN[:2]:
            await backend.ingest(epoch)
        await backend.clean()
        assert backend.burn == 7
        assert await backend.get_samples() is None
        with pytest.raises(ValueError, match="burn"):
            await backend.get()
        await backend.ingest(RUN[2])
        np.testing.assert_array_equal((await backend.get_samples())["p"], numbers(7, 5))
        await backend.clean()
        assert backend.burn == 12


async def test_clean_keeps_a_burn_that_is_owed(driver, outdir):
    """`clean` never lowers the burn: one that reaches beyond what there is goes on to be owed."""
    async with await driver.open(burn=20, outdir=outdir) as backend:
        await backend.ingest(RUN[0])
        await backend.clean()
        assert backend.burn == 20


async def test_a_burn_waits_for_no_disk(driver, outdir, moody_disk):
    """A burn passes the epochs that are queued: every later read sees it while the disk takes nothing."""
    async with await driver.open(outdir=outdir) as backend:
        moody_disk.stop()
        for epoch in RUN:
            await backend.ingest(epoch)
        await backend.set_burn(5)
        np.testing.assert_array_equal((await backend.get_samples())["p"], joined(RUN)[:, :, 5:])
        await backend.clean()
        assert await backend.get_samples() is None
        moody_disk.go_on()


async def test_a_burn_is_as_durable_as_an_ingest(driver, outdir, copy_of):
    """After `flush` a burn survives a crash."""
    async with await driver.open(outdir=outdir, epochs_per_file=3) as backend:
        for epoch in RUN:
            await backend.ingest(epoch)
        await backend.set_burn(5)
        await backend.flush()
        async with await driver.open(outdir=copy_of(outdir)) as crashed:
            assert crashed.burn == 5
            np.testing.assert_array_equal((await crashed.get_samples())["p"], joined(RUN)[:, :, 5:])


async def test_a_burn_of_what_is_in_memory_only_is_durable(driver, outdir, copy_of):
    """A burn that follows a flush is made durable by the next one, also with nothing new to write."""
    async with await driver.open(outdir=outdir, inmem_epochs=5) as backend:
        for epoch in RUN:
            await backend.ingest(epoch)
        await backend.flush()
        await backend.set_burn(8)
        await backend.flush()
        async with await driver.open(outdir=copy_of(outdir)) as crashed:
            assert crashed.burn == 8


async def test_a_burn_after_a_reset_is_durable(driver, outdir, copy_of):
    """A burn of a run that is there and empty survives a crash after `flush`, too."""
    async with await driver.open(outdir=outdir) as backend:
        await backend.ingest(RUN[0])
        await backend.flush()
        await backend.reset()
        await backend.set_burn(6)
        await backend.flush()
        async with await driver.open(outdir=copy_of(outdir)) as crashed:
            assert crashed.burn == 6
    async with await driver.open(outdir=outdir) as backend:
        assert backend.burn == 6


async def test_whole_files_go_soon(driver, outdir):
    """A file of which every sample is burned is removed without a flush; a file in use stays."""
    async with await driver.open(outdir=outdir) as backend:
        for epoch in RUN:
            await backend.ingest(epoch)
        await backend.update()
        assert sorted(path.name for path in outdir.glob("*.h5")) == ["epochs_1.h5", "epochs_2.h5", "epochs_3.h5"]
        await backend.set_burn(6)
        await backend.update()
        assert sorted(path.name for path in outdir.glob("*.h5")) == ["epochs_2.h5", "epochs_3.h5"]
        await backend.set_burn(7)
        await backend.update()
        assert sorted(path.name for path in outdir.glob("*.h5")) == ["epochs_3.h5"]


async def test_a_file_that_is_cut_shrinks_when_half_is_dead(driver, outdir):
    """A file is written anew once half of it is dead, and not for less."""
    epochs = run_of([1000] * 4)
    async with await driver.open(outdir=outdir, epochs_per_file=4) as backend:
        for epoch in epochs:
            await backend.ingest(epoch)
        await backend.update()
        path = outdir / "epochs_1.h5"
        size = path.stat().st_size
        await backend.set_burn(1500)
        await backend.update()
        assert path.stat().st_size == size
        await backend.set_burn(2500)
        await backend.update()
        assert path.stat().st_size < 0.5 * size
        np.testing.assert_array_equal((await backend.get_samples())["p"], numbers(2500, 1500))
        np.testing.assert_array_equal(read_epoch(path, 2)["samples"]["p"], numbers(2500, 500))


@pytest.mark.parametrize("how", ["flush", "close"])
async def test_flush_and_close_shrink_a_file_that_is_cut(driver, outdir, how):
    """`flush` and `close` write a file anew that a burn ends in, however little of it is dead."""
    async with await driver.open(outdir=outdir) as backend:
        await backend.ingest(run_of([1000])[0])
        await backend.update()
        size = (outdir / "epochs_1.h5").stat().st_size
        await backend.set_burn(100)
        await getattr(backend, how)()
        assert (outdir / "epochs_1.h5").stat().st_size < 0.95 * size
        np.testing.assert_array_equal(
            (await driver.read_epoch(outdir / "epochs_1.h5"))["samples"]["p"], numbers(100, 900)
        )


async def test_what_is_burned_before_it_is_written_never_is(driver, outdir, moody_disk):
    """Epochs that were burned while they waited cost no disk: only the newest one's last sample is kept."""
    async with await driver.open(outdir=outdir, epochs_per_file=100) as backend:
        moody_disk.stop()
        await backend.ingest(run_of([1])[0])
        await driver.call(moody_disk.was_reached.wait)
        for epoch in run_of([20_000] * 5, start=1):
            await backend.ingest(epoch)
        await backend.clean()
        moody_disk.go_on()
        await backend.flush()
        assert sum(path.stat().st_size for path in outdir.iterdir()) < 20_000
        assert backend.status.epochs_on_disk == 6


async def test_stats_are_not_cut_by_a_burn(driver, outdir):
    """A burn that ends inside an epoch leaves everything in it as it is but the samples."""
    async with await driver.open(burn=5, outdir=outdir) as backend:
        for epoch in RUN:
            await backend.ingest(epoch)
        await backend.flush()
        assert_same(await backend.get(1), cut(RUN[1], 1))
        assert_same((await backend.get_stats())["epoch_1"], RUN[1]["stats"])


async def test_a_durable_burn_frees_a_full_disk(driver, outdir, moody_disk):
    """On a full disk a burn removes whole files, so that the run can go on."""
    async with await driver.open(outdir=outdir, **QUICK) as backend:
        for epoch in RUN[:2]:
            await backend.ingest(epoch)
        await backend.flush()
        moody_disk.fill()
        await backend.ingest(RUN[2])
        with pytest.raises(OSError, match="No space"):
            await backend.flush()
        await backend.set_burn(4)
        while (outdir / "epochs_1.h5").exists():  # one attempt makes the burn durable, the next removes the file
            with pytest.raises(OSError, match="No space"):
                await backend.flush()
        moody_disk.empty()
        await flushed(backend)
        np.testing.assert_array_equal((await backend.get_samples())["p"], joined(RUN)[:, :, 4:])


# ---- the storing policy ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inmem_epochs", [0, 1, 2, 5])
async def test_update_applies_the_storing_policy(driver, outdir, copy_of, inmem_epochs):
    """When `update` returned, all but the `inmem_epochs` newest epochs survive a crash, and those don't."""
    async with await driver.open(outdir=outdir, inmem_epochs=inmem_epochs, epochs_per_file=2) as backend:
        for epoch in RUN:
            await backend.ingest(epoch)
        await backend.update()
        on_disk = max(0, 3 - inmem_epochs)
        assert backend.status.epochs_on_disk == on_disk
        if on_disk:
            async with await driver.open(outdir=copy_of(outdir)) as crashed:
                np.testing.assert_array_equal((await crashed.get_samples())["p"], joined(RUN[:on_disk]))
        else:
            assert not outdir.exists()


async def test_epochs_are_written_without_being_asked_for(driver, outdir, copy_of):
    """Epochs that don't belong to memory are written as soon as the writer reaches them."""
    async with await driver.open(outdir=outdir) as backend:
        receipts = [backend.ingest_nowait(epoch) for epoch in RUN]
        while backend.status.epochs_on_disk < 3:  # asking makes nothing happen
            await driver.call(lambda: None)
        assert all(receipt.durable.done for receipt in receipts)


async def test_flush_writes_what_is_kept_in_memory(driver, outdir, copy_of):
    """`flush` writes the newest epochs too; they stay in memory as well, and are not written twice."""
    async with await driver.open(outdir=outdir, inmem_epochs=2) as backend:
        for epoch in RUN:
            await backend.ingest(epoch)
        await backend.flush()
        written = backend.status.bytes_written
        async with await driver.open(outdir=copy_of(outdir)) as crashed:
            np.testing.assert_array_equal((await crashed.get_samples())["p"], joined(RUN))
        await backend.flush()
        await backend.update()
        assert backend.status.bytes_written == written


@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=8),
    burns=st.lists(st.integers(0, 50), max_size=3).map(sorted),
    inmem_epochs=st.integers(0, 4),
    epochs_per_file=st.integers(1, 4),
    flushes=st.booleans(),
)
@settings(max_examples=40)
async def test_any_burns_between_ingests(
    driver, tmp_path_factory, lengths, burns, inmem_epochs, epochs_per_file, flushes
):
    """However burns come between ingests, what is left is what comes after the largest, now and when read again."""
    outdir = tmp_path_factory.mktemp("burns") / "run"
    epochs = run_of(lengths)
    burns_at = {i * len(epochs) // max(1, len(burns)): burn for i, burn in enumerate(burns)}
    async with await driver.open(outdir=outdir, inmem_epochs=inmem_epochs, epochs_per_file=epochs_per_file) as backend:
        for i, epoch in enumerate(epochs):
            if i in burns_at:
                await backend.set_burn(burns_at[i])
            await backend.ingest(epoch)
            if flushes:
                await backend.flush()
        burn = backend.burn
        assert burn == max(burns_at.values(), default=0)
        samples = await backend.get_samples()
    left = joined(epochs)[:, :, burn:]
    async with await driver.open(outdir=outdir) as backend:
        again = await backend.get_samples()
        newest = (await backend.load()).last["p"]
    assert (samples is None) is (again is None) is (left.shape[2] == 0)
    if samples is not None:
        np.testing.assert_array_equal(samples["p"], left)
        np.testing.assert_array_equal(again["p"], left)
    np.testing.assert_array_equal(newest, joined(epochs)[:, :, -1])
