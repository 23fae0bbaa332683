"""Closing and the status: the last word of a backend, and what it says about itself before."""

import time

import anyio
import numpy as np
import pytest

from known import assert_same, epoch_dict, joined, run_of
from posterity import Closed, MailboxFull, NotWritten, PosterityError, State, WriteFailed

RUN = run_of([4, 3, 5])
QUICK = {"retry_after_s": 0.01, "retry_at_most_s": 0.01}


# ---- close -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inmem_epochs", [0, 2, 10])
@pytest.mark.parametrize("epochs_per_file", [1, 2, 10])
async def test_close_writes_and_publishes_all(driver, outdir, inmem_epochs, epochs_per_file):
    """When `close` returned everything is in files that have their names, and nothing hidden is left."""
    backend = await driver.open(outdir=outdir, inmem_epochs=inmem_epochs, epochs_per_file=epochs_per_file)
    for epoch in RUN:
        await backend.ingest(epoch)
    await backend.close()
    assert [path.name for path in outdir.iterdir() if path.name.startswith(".")] == []
    for i, epoch in enumerate(RUN):
        assert_same(await driver.read_epoch(outdir / f"epochs_{i // epochs_per_file + 1}.h5", i), epoch)


async def test_close_is_idempotent(driver, outdir):
    """A backend can be closed any number of times, and from several tasks at once."""
    backend = await driver.open(outdir=outdir)
    await backend.ingest(RUN[0])
    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(backend.close)
    await backend.close()
    async with backend:
        pass
    assert backend.status.state is State.CLOSED


async def test_leaving_by_an_exception_closes(driver, outdir):
    """The `with` statement closes the run on the way out of an exception, which goes on; all is written."""
    with pytest.raises(ZeroDivisionError):
        async with await driver.open(outdir=outdir, inmem_epochs=5) as backend:
            for epoch in RUN:
                await backend.ingest(epoch)
            _ = 1 / 0
    assert backend.status.state is State.CLOSED
    async with await driver.open(outdir=outdir) as backend:
        np.testing.assert_array_equal((await backend.get_samples())["p"], joined(RUN))


async def test_a_closed_backend_refuses_its_work(driver, outdir):
    """After closing, every call that needs the run is an error that says so, and status and burn still answer."""
    async with await driver.open(burn=1, outdir=outdir) as backend:
        for epoch in RUN:
            await backend.ingest(epoch)
    calls = {
        "ingest": lambda: backend.ingest(RUN[0]),
        "ingest_dict": lambda: backend.ingest_dict(RUN[0]),
        "ingest_nowait": lambda: backend.ingest_nowait(RUN[0]),
        "set_burn": lambda: backend.set_burn(5),
        "clean": backend.clean,
        "reset": backend.reset,
        "get": backend.get,
        "get_samples": backend.get_samples,
        "get_stats": backend.get_stats,
        "load": backend.load,
    }
    for name, call in calls.items():
        with pytest.raises(Closed, match="closed") as caught:
            await call()
        assert isinstance(caught.value, ValueError), name
    with pytest.raises(Closed):
        async with backend.snapshot():
            pass
    assert [snapshot async for snapshot in backend.updates()] == []
    assert backend.burn == 1
    assert (backend.status.epochs, backend.status.epochs_on_disk) == (3, 3)
    assert "closed" in repr(backend)
    assert_same(await backend.read_epoch(outdir / "epochs_3.h5"), RUN[2])


async def test_flush_and_update_after_closing_have_nothing_to_do(driver, outdir):
    """Everything was written by `close`, so `flush` and `update` return."""
    async with await driver.open(outdir=outdir) as backend:
        await backend.ingest(RUN[0])
    await backend.flush(publish=True)
    await backend.update()


async def test_close_on_a_full_disk_names_what_is_missing(driver, outdir, moody_disk):
    """If not all could be written in time `close` raises, naming the epochs and the cause; a later one may succeed."""
    backend = await driver.open(outdir=outdir, **QUICK)
    await backend.ingest(RUN[0])
    await backend.flush()
    moody_disk.fill()
    await backend.ingest(RUN[1])
    await backend.ingest(RUN[2])
    with pytest.raises(OSError, match="No space left"):
        await backend.flush()
    with pytest.raises(NotWritten, match=r"epochs 1 to 2.*No space left") as caught:
        await backend.close(timeout_s=0.05)
    assert isinstance(caught.value, TimeoutError)
    assert isinstance(caught.value.__cause__, OSError)
    assert backend.status.state is State.CLOSING
    with pytest.raises(Closed):
        await backend.ingest(RUN[2])
    assert_same(await backend.get(2), RUN[2])
    moody_disk.empty()
    await backend.close()
    async with await driver.open(outdir=outdir) as backend:
        np.testing.assert_array_equal((await backend.get_samples())["p"], joined(RUN))


async def test_close_makes_the_next_attempt_come_at_once(driver, outdir, moody_disk):
    """Who freed the disk and calls `close` doesn't wait out the pause that the last failure made."""
    backend = await driver.open(outdir=outdir, retry_after_s=20, retry_at_most_s=20)
    moody_disk.fill()
    await backend.ingest(RUN[0])
    with pytest.raises(WriteFailed):
        await backend.flush()
    moody_disk.empty()
    await backend.close(timeout_s=15)
    assert backend.status.state is State.CLOSED


async def test_close_waits_for_what_is_queued(driver, outdir, moody_disk):
    """`close` drains the mailbox, however slow the disk is."""
    backend = await driver.open(outdir=outdir)
    moody_disk.stop()
    for epoch in RUN:
        await backend.ingest(epoch)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(backend.close)
        await driver.call(moody_disk.was_reached.wait)
        assert backend.status.state in (State.RUNNING, State.CLOSING)
        moody_disk.go_on()
    assert backend.status.epochs_on_disk == 3


async def test_reading_goes_on_while_closing(driver, outdir, moody_disk):
    """As long as a backend is closing, what it holds can be read."""
    backend = await driver.open(outdir=outdir)
    moody_disk.stop()
    await backend.ingest(RUN[0])
    with pytest.raises(NotWritten):
        await backend.close(timeout_s=0)
    assert_same(await backend.get(), RUN[0])
    moody_disk.go_on()
    await backend.close()


async def test_a_new_backend_waits_for_one_that_is_closing(driver, outdir, moody_disk):
    """Opening a folder whose backend is just being closed waits for that, in place of an error."""
    backend = await driver.open(outdir=outdir)
    await backend.ingest(RUN[0])
    await backend.flush()
    moody_disk.stop()
    await backend.ingest(RUN[1])
    with pytest.raises(NotWritten):
        await backend.close(timeout_s=0)
    async with anyio.create_task_group() as tasks:

        async def open_again():
            async with await driver.open(outdir=outdir) as again:
                assert again.status.epochs == 2

        tasks.start_soon(open_again)
        await driver.call(moody_disk.was_reached.wait)
        moody_disk.go_on()


# ---- status ------------------------------------------------------------------------------------------------------------


async def test_status_counts(driver, outdir):
    """The status counts what was ingested, burned and written."""
    async with await driver.open(outdir=outdir, inmem_epochs=1) as backend:
        for epoch in RUN:
            await backend.ingest(epoch)
        await backend.set_burn(5)
        await backend.update()
        status = backend.status
        assert (status.state, status.epochs, status.samples, status.burn) == (State.RUNNING, 3, 7, 5)
        assert (status.queued_epochs, status.queued_bytes, status.epochs_on_disk) == (0, 0, 2)
        assert status.bytes_written > RUN[1]["samples"]["p"].nbytes
        assert status.bytes_per_s > 0
        assert status.samples_per_s > 0
        assert status.free_bytes > 0
        assert status.full_in_s > 0
        assert (status.last_error, status.last_error_at) == (None, None)
        assert status.ingest_waited_s >= 0
        assert "3 epochs" in str(status)


async def test_status_tells_the_last_error(driver, outdir, moody_disk):
    """While the disk is full the status says so, since when, and the repr too; after that all is well again."""
    async with await driver.open(outdir=outdir, max_pending_epochs=1, **QUICK) as backend:
        before = time.time()
        moody_disk.fill()
        await backend.ingest(RUN[0])
        with pytest.raises(WriteFailed):
            await backend.flush()
        status = backend.status
        assert status.state is State.WAITING
        assert "No space left" in status.last_error
        assert before <= status.last_error_at <= time.time()
        assert "No space left" in repr(backend)
        with pytest.raises(MailboxFull):
            await backend.ingest(RUN[1], timeout_s=0.01)
        moody_disk.empty()
        await backend.ingest(RUN[1])
        await backend.flush()
        assert (backend.status.state, backend.status.last_error) == (State.RUNNING, None)


async def test_status_waits_for_nothing(driver, outdir, moody_disk):
    """The status answers while the disk hangs."""
    async with await driver.open(outdir=outdir) as backend:
        moody_disk.stop()
        await backend.ingest(RUN[0])
        await driver.call(moody_disk.was_reached.wait)
        assert backend.status.queued_epochs == 1
        moody_disk.go_on()


async def test_errors_are_ours_and_the_builtin_one_expects(driver, outdir):
    """Every error that is raised on purpose is a `PosterityError` and the builtin that a caller would catch."""
    async with await driver.open(burn=9, outdir=outdir) as backend:
        await backend.ingest(epoch_dict(0, 2))
        for call, builtin in [
            (lambda: backend.get(0), ValueError),
            (lambda: backend.set_burn(1), ValueError),
            (lambda: backend.ingest({"samples": {}}), ValueError),
            (lambda: backend.ingest({**RUN[0], "x": object()}), TypeError),
            (lambda: driver.open(outdir=outdir, outfile="x"), TypeError),
        ]:
            with pytest.raises(builtin) as caught:
                await call()
            assert isinstance(caught.value, PosterityError)
