"""Epochs that a device computes: handed over before they are computed, fetched behind the sampler's back."""

import threading
import types

import anyio
import numpy as np
import pytest

from known import epoch_dict, joined, numbers
from posterity import DefaultBackend, MailboxFull, NotWritten, WriteFailed

pytestmark = pytest.mark.timeout(120)
NBYTES = 240  # of the samples of such an epoch
QUICK = {"retry_after_s": 0.001, "retry_at_most_s": 0.001}


class Device:
    """What an accelerator is to us: it computes arrays, sooner or later, and fetching them may fail."""

    def __init__(self):
        self.is_through = threading.Event()
        self.was_asked = threading.Event()
        self.error = None

    def array(self, array):
        return DeviceArray(self, array)

    def epoch(self, first):
        return {"samples": {"p": self.array(numbers(first, 5))}}


class DeviceArray:
    """An array of such a device's."""

    def __init__(self, device, array):
        self.device, self.there = device, array
        self.shape, self.dtype, self.nbytes = array.shape, array.dtype, array.nbytes

    def is_ready(self):
        return self.device.is_through.is_set()

    def is_deleted(self):
        return False

    def devices(self):
        return [types.SimpleNamespace(platform="gpu")]

    def copy(self):
        return DeviceArray(self.device, self.there.copy())

    def block_until_ready(self):
        self.device.was_asked.set()
        assert self.device.is_through.wait(60)
        if self.device.error is not None:
            raise self.device.error

    def __array__(self, dtype=None, copy=None):
        self.block_until_ready()
        return self.there


@pytest.fixture
def device(driver):
    """The device of this test; at its end it is through with all."""
    device = Device()
    driver.on_failure.append(device.is_through.set)
    yield device
    device.is_through.set()


async def seen(backend, condition):
    """Wait until a condition holds; each change of the backend's is looked at."""
    ledger = backend.target._service.ledger
    assert await anyio.to_thread.run_sync(lambda: ledger.wait(condition, 60))


async def test_the_status_tells_what_is_on_a_device(driver, outdir, device):
    """`device_bytes` counts what wasn't fetched yet; what NumPy has is never there."""
    async with await driver.open(outdir=outdir) as backend:
        await backend.ingest({"samples": {"p": numbers(0, 5)}})
        assert backend.status.device_bytes == 0
        await backend.ingest({**device.epoch(5), "state": np.ones(100)})
        await backend.ingest(device.epoch(10))
        assert backend.status.device_bytes == 2 * NBYTES
        assert backend.status.queued_bytes >= 2 * NBYTES
        device.is_through.set()
        await backend.flush()
        assert backend.status.device_bytes == 0
        np.testing.assert_array_equal((await backend.get_samples())["p"], numbers(0, 15))


async def test_what_is_not_computed_keeps_nothing_from_the_disk(driver, outdir, device):
    """Epochs before one that is still being computed become durable; those behind it wait, in their order."""
    async with await driver.open(outdir=outdir, epochs_per_file=9) as backend:
        early = backend.ingest_nowait({"samples": {"p": numbers(0, 5)}})
        backend.ingest_nowait(device.epoch(5))
        late = backend.ingest_nowait({"samples": {"p": numbers(10, 5)}})
        await anyio.to_thread.run_sync(device.was_asked.wait)
        await anyio.to_thread.run_sync(lambda: early.durable.wait(60))
        assert (backend.status.epochs_on_disk, late.durable.done) == (1, False)
        device.is_through.set()
        await anyio.to_thread.run_sync(lambda: late.durable.wait(60))
    with DefaultBackend(outdir=outdir) as again:
        np.testing.assert_array_equal(again.get_samples()["p"], numbers(0, 15))


async def test_a_burn_does_not_wait_for_a_device(driver, outdir, device):
    """Reads of what is there, and burns, go on while an epoch is being computed."""
    async with await driver.open(outdir=outdir) as backend:
        await backend.ingest({"samples": {"p": numbers(0, 5)}})
        await backend.ingest(device.epoch(5))
        await backend.set_burn(2)
        np.testing.assert_array_equal((await backend.get(0))["samples"]["p"], numbers(2, 3))
        device.is_through.set()
        np.testing.assert_array_equal((await backend.get_samples())["p"], numbers(2, 8))


@pytest.mark.parametrize("call", ["flush", "update", "close"])
async def test_who_waits_for_the_disk_waits_for_the_device(driver, outdir, device, call):
    """`flush`, `update` and `close` return when what was handed over is on disk, computed late or not."""
    backend = await driver.open(outdir=outdir)
    await backend.ingest(device.epoch(0))
    has_returned = anyio.Event()

    async def wait():
        await getattr(backend, call)()
        has_returned.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await anyio.to_thread.run_sync(device.was_asked.wait)
        await anyio.wait_all_tasks_blocked()
        assert not has_returned.is_set()
        device.is_through.set()
    assert backend.status.epochs_on_disk == 1
    await backend.close()


async def test_a_disk_that_hangs_does_not_keep_the_device(driver, outdir, device, moody_disk):
    """Epochs are fetched although nothing can be written."""
    device.is_through.set()
    async with await driver.open(outdir=outdir) as backend:
        moody_disk.stop()
        await backend.ingest({"samples": {"p": numbers(0, 5)}})
        await anyio.to_thread.run_sync(moody_disk.was_reached.wait)
        for first in (5, 10, 15):
            await backend.ingest(device.epoch(first))
        await seen(backend, lambda: backend.status.device_bytes == 0)
        assert (backend.status.epochs_on_disk, backend.status.queued_epochs) == (0, 4)
        moody_disk.go_on()
        await backend.flush()
        np.testing.assert_array_equal((await backend.get_samples())["p"], numbers(0, 20))


async def test_a_full_disk_does_not_keep_the_device(driver, outdir, device, moody_disk):
    """Between the attempts to write, epochs are fetched; all is written in order when there is room."""
    device.is_through.set()
    async with await driver.open(outdir=outdir, **QUICK) as backend:
        moody_disk.fill()
        for first in (0, 5, 10):
            await backend.ingest(device.epoch(first))
        await seen(backend, lambda: backend.status.device_bytes == 0)
        assert backend.status.epochs_on_disk == 0
        moody_disk.empty()
    with DefaultBackend(outdir=outdir) as again:
        np.testing.assert_array_equal(again.get_samples()["p"], numbers(0, 15))


async def test_what_stays_in_memory_leaves_the_device(driver, outdir, device):
    """The newest epochs, which aren't written yet, are fetched all the same."""
    device.is_through.set()
    async with await driver.open(outdir=outdir, inmem_epochs=5) as backend:
        await backend.ingest(device.epoch(0))
        await seen(backend, lambda: backend.status.device_bytes == 0)
        assert backend.status.epochs_on_disk == 0


# ---- the bound ---------------------------------------------------------------------------------------------------------


async def test_epochs_on_a_device_have_a_bound_of_their_own(driver, outdir, device):
    """When that much is on the device `ingest` waits until some was fetched; NumPy's epochs still find room."""
    async with await driver.open(outdir=outdir, max_device_bytes=2 * NBYTES) as backend:
        await backend.ingest(device.epoch(0))
        await backend.ingest(device.epoch(5))
        await backend.ingest({"samples": {"p": numbers(10, 5)}})
        with pytest.raises(MailboxFull, match="MB of them on a device"):
            backend.ingest_nowait(device.epoch(15))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(backend.ingest, device.epoch(15))
            await anyio.wait_all_tasks_blocked()
            assert backend.status.epochs == 3
            device.is_through.set()
        np.testing.assert_array_equal((await backend.get_samples())["p"], numbers(0, 20))


async def test_what_was_fetched_makes_room_on_the_device(driver, outdir, device, moody_disk):
    """The bound is for what is on the device: it doesn't wait for the disk."""
    device.is_through.set()
    async with await driver.open(outdir=outdir, max_device_bytes=NBYTES) as backend:
        moody_disk.stop()
        for first in (0, 5, 10):
            await backend.ingest(device.epoch(first))
        assert backend.status.epochs_on_disk == 0
        moody_disk.go_on()


async def test_an_epoch_larger_than_the_bound_is_taken_alone(driver, outdir, device):
    """An epoch that could never fit on the device is taken when nothing else is there."""
    async with await driver.open(outdir=outdir, max_device_bytes=1, on_full="raise") as backend:
        await backend.ingest(device.epoch(0))
        with pytest.raises(MailboxFull):
            await backend.ingest(device.epoch(5))
        device.is_through.set()
        await backend.flush()
        await backend.ingest(device.epoch(5))
        np.testing.assert_array_equal((await backend.get_samples())["p"], numbers(0, 10))


async def test_a_reset_gives_the_device_free(driver, outdir, device):
    """After a reset what the run had on the device counts no more, and isn't part of the run."""
    async with await driver.open(outdir=outdir, max_device_bytes=NBYTES) as backend:
        for _ in range(3):
            await backend.ingest({"samples": {"p": numbers(0, 5)}})
        await backend.ingest(device.epoch(0))
        await backend.reset()
        assert backend.status.device_bytes == 0
        await backend.ingest(device.epoch(5), timeout_s=30)
        assert backend.status.device_bytes == NBYTES
        device.is_through.set()
        np.testing.assert_array_equal((await backend.get_samples())["p"], numbers(5, 5))
        await backend.flush()


async def test_an_error_of_before_a_reset_is_over(driver, outdir, device):
    """An epoch that can't be fetched, and was reset away meanwhile, breaks nothing."""
    async with await driver.open(outdir=outdir) as backend:
        await backend.ingest(device.epoch(0))
        await anyio.to_thread.run_sync(device.was_asked.wait)
        await backend.reset()
        device.error = RuntimeError("out of memory on the device")
        device.is_through.set()
        await backend.ingest(epoch_dict(0, 3))
        await backend.flush()
        np.testing.assert_array_equal((await backend.get_samples())["p"], joined([epoch_dict(0, 3)]))


async def test_an_error_is_over_with_a_reset(driver, outdir, device, moody_disk):
    """A reset that comes before the writer got to an epoch that can't be fetched saves the run."""
    device.error = RuntimeError("out of memory on the device")
    device.is_through.set()
    async with await driver.open(outdir=outdir) as backend:
        moody_disk.stop()
        await backend.ingest({"samples": {"p": numbers(0, 5)}})
        await backend.ingest(device.epoch(5))
        await seen(backend, lambda: backend.target._service.ledger.never_comes is not None)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(backend.reset)
            await seen(backend, lambda: backend.status.epochs == 0)
            moody_disk.go_on()
        await backend.ingest(epoch_dict(0, 3))
        await backend.flush()
        np.testing.assert_array_equal((await backend.get_samples())["p"], joined([epoch_dict(0, 3)]))


async def test_what_came_before_an_error_is_stored(driver, outdir, device, loses_epochs):
    """Epochs before one that can't be fetched are written, also those that belong in memory; then all hear of it."""
    backend = await driver.open(outdir=outdir, inmem_epochs=9)
    driver.forget(backend)
    for first in (0, 5):
        await backend.ingest({"samples": {"p": numbers(first, 5)}})
    device.error = RuntimeError("out of memory on the device")
    device.is_through.set()
    lost = backend.ingest_nowait(device.epoch(10))
    await seen(backend, lambda: backend.status.state.is_over)
    assert backend.status.epochs_on_disk == 2
    with pytest.raises(WriteFailed, match="out of memory on the device"):
        await anyio.to_thread.run_sync(lambda: lost.durable.wait(60))
    with pytest.raises(NotWritten, match=r"epochs 2 to 2 aren't on disk: out of memory on the device"):
        await backend.close()
    with DefaultBackend(outdir=outdir) as again:
        np.testing.assert_array_equal(again.get_samples()["p"], numbers(0, 10))
    device.error = None  # where it was raised, it refers to everything


# ---- reading -----------------------------------------------------------------------------------------------------------


async def test_what_is_on_a_device_can_be_read(driver, outdir, device):
    """A read of an epoch that is still to be fetched, behind one that is still being computed, has its numbers."""
    other = Device()
    other.is_through.set()
    async with await driver.open(outdir=outdir) as backend:
        await backend.ingest(device.epoch(0))
        await backend.ingest(other.epoch(5))
        np.testing.assert_array_equal((await backend.get(1))["samples"]["p"], numbers(5, 5))
        assert backend.status.device_bytes == 2 * NBYTES
        device.is_through.set()
        np.testing.assert_array_equal((await backend.get_samples(pars=["p"], thin=2))["p"], numbers(0, 10)[:, :, ::2])
