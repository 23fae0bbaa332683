"""Handing over: what `ingest` and its sisters take, what they refuse, and when they wait."""

import threading
from contextlib import suppress

import anyio
import numpy as np
import pytest
from drivers import flushed

from known import Bare, Walk, assert_same, epoch_dict, joined, numbers, run_of
from posterity import Closed, Epoch, EpochMismatch, MailboxFull, NotStorable, PosterityError, State
from posterity._store.store import Store
from posterity._system.buffer_pool import Buffers

RUN = run_of([4, 3, 5])
QUICK = {"retry_after_s": 0.01, "retry_at_most_s": 0.01}


# ---- what is taken -----------------------------------------------------------------------------------------------------


async def test_ingest_returns_the_backend(driver, outdir):
    """Calls can be chained: `ingest` and `ingest_dict` give the backend back."""
    async with await driver.open(outdir=outdir) as backend:
        assert await backend.ingest(RUN[0]) is backend
        assert await backend.ingest_dict(RUN[1]) is backend


@pytest.mark.parametrize("when", ["in memory", "on disk"])
async def test_a_dict_comes_back_as_it_went_in(driver, outdir, when):
    """Whatever a dict may hold comes back equal in value, type and order."""
    epoch = epoch_dict(
        0,
        4,
        state={"rng": {"name": "PCG64", "state": 2**100, "has": True, "none": None}, "names": ["a", "ü", ""]},
        cycle=np.array([(b"de", 1, 0.5), (b"stretch", 2, 1.5)], [("name", "S50"), ("incycle", int), ("weight", float)]),
        ragged=[np.arange(2), np.arange(3.0), "text", (1, 2.5)],
        empty={"dict": {}, "list": [], "tuple": (), "bytes": b"", "array": np.empty((0, 3))},
        label="α Centauri",
    )
    async with await driver.open(outdir=outdir, inmem_epochs=int(when == "in memory")) as backend:
        await backend.ingest(epoch)
        await backend.update()
        assert backend.status.epochs_on_disk == int(when == "on disk")
        assert_same(await backend.get(0), epoch)


async def test_an_epoch_object_is_asked_for_all_of_it(driver, outdir):
    """Anything with `to_backend(burn, stats)` can be handed over; it is asked for all samples, whatever is burned."""
    for save_stats in (True, False):
        epoch = Bare({**RUN[0], "stats": {"steps": 4}})
        async with await driver.open(burn=2, outdir=outdir / str(save_stats), save_stats=save_stats) as backend:
            await backend.ingest(epoch)
            assert epoch.asked == (0, save_stats)
            np.testing.assert_array_equal((await backend.get())["samples"]["p"], RUN[0]["samples"]["p"][:, :, 2:])
            assert ("stats" in await backend.get()) is save_stats


async def test_our_epoch_objects(driver, outdir):
    """An `Epoch` and a subclass of it come back from `load` as what they were."""
    async with await driver.open(outdir=outdir) as backend:
        await backend.ingest(Epoch(RUN[0]["samples"], state={"seed": 7}))
        await backend.ingest(Walk(RUN[1]["samples"], covs=RUN[1]["covs"], note="mine"))
        plain, walk = await backend.load(0), await backend.load(1)
        assert (type(plain), type(walk)) == (Epoch, Walk)
        assert plain.state == {"seed": 7}
        assert walk.others == {"note": "mine"}
        np.testing.assert_array_equal(walk.covs, RUN[1]["covs"])
        np.testing.assert_array_equal(walk.last["p"], numbers(4, 3)[:, :, -1])


@pytest.mark.parametrize("kind", [str, lambda path: path], ids=["str", "Path"])
async def test_an_epoch_of_a_file(driver, outdir, tmp_path, kind):
    """A file and an epoch's index can be handed over; the default is the file's last epoch by index."""
    async with await driver.open(outdir=outdir, epochs_per_file=12) as backend:
        for epoch in run_of([2] * 12):
            await backend.ingest(epoch)
    async with await driver.open(outdir=tmp_path / "other") as backend:
        await backend.ingest(kind(outdir / "epochs_1.h5"), 9)
        await backend.ingest(kind(outdir / "epochs_1.h5"))
        await backend.ingest(kind(outdir / "epochs_1.h5"), eind=-12)
        for i, first in enumerate((18, 22, 0)):
            assert_same(await backend.get(i), epoch_dict(first, 2))
        with pytest.raises(IndexError, match="12"):
            await backend.ingest(outdir / "epochs_1.h5", 12)
        with pytest.raises(FileNotFoundError):
            await backend.ingest(tmp_path / "nothing.h5")
        assert backend.status.epochs == 3


async def test_stats_are_left_out_on_demand(driver, outdir):
    """With `save_stats=False` the stats of a dict aren't kept, and the caller's dict isn't changed."""
    epoch = epoch_dict(0, 3)
    async with await driver.open(outdir=outdir, save_stats=False) as backend:
        await backend.ingest(epoch)
        assert "stats" in epoch
        assert list(await backend.get()) == ["samples", "covs"]


async def test_epochs_may_differ_beside_the_shape_of_a_sample(driver, outdir):
    """Epochs of one run may differ in length, in what they carry, and in the names they have beside "p"."""
    epochs = [epoch_dict(0, 4), {"samples": {"p": numbers(4, 1)}}, epoch_dict(5, 9, extra=[1, "two", None])]
    epochs[2]["samples"]["lp"] = numbers(5, 9, dim=1)
    async with await driver.open(outdir=outdir, epochs_per_file=3) as backend:
        for epoch in epochs:
            await backend.ingest(epoch)
        for i, epoch in enumerate(epochs):
            assert_same(await backend.get(i), epoch)
    async with await driver.open(outdir=outdir) as backend:
        for i, epoch in enumerate(epochs):
            assert_same(await backend.get(i), epoch)


async def test_nan_is_data(driver, outdir):
    """NaN and infinities are kept like any number."""
    epoch = epoch_dict(0, 3)
    epoch["samples"]["p"][0, 0] = [np.nan, np.inf, -np.inf]
    async with await driver.open(outdir=outdir) as backend:
        await backend.ingest(epoch)
        await backend.flush()
        assert_same(await backend.get(), epoch)
        np.testing.assert_array_equal((await backend.get_samples())["p"], epoch["samples"]["p"])


# ---- whose the arrays are ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nsamples", [3, 20_000], ids=["small", "large"])
async def test_arrays_may_be_changed_after_the_call(driver, outdir, moody_disk, nsamples):
    """When `ingest` returned the caller may overwrite its arrays: neither memory nor disk sees it."""
    async with await driver.open(outdir=outdir) as backend:
        moody_disk.stop()
        mine = epoch_dict(0, nsamples)
        await backend.ingest(mine)
        mine["samples"]["p"].fill(np.nan)
        mine["covs"].fill(np.nan)
        mine["samples"]["extra"] = "not there"
        assert_same(await backend.get(), epoch_dict(0, nsamples))
        moody_disk.go_on()
        await backend.flush()
        assert_same(await backend.get(), epoch_dict(0, nsamples))


async def test_the_same_array_each_time(driver, outdir, moody_disk):
    """A sampler that hands over the same array each step gets N different epochs, not the last one N times."""
    p = np.empty((3, 2, 1))
    async with await driver.open(outdir=outdir) as backend:
        moody_disk.stop()
        for i in range(10):
            p[...] = numbers(i, 1)
            await backend.ingest({"samples": {"p": p}})
        moody_disk.go_on()
        np.testing.assert_array_equal((await backend.get_samples())["p"], numbers(0, 10))


@pytest.mark.parametrize("kept", [True, False], ids=["copy", "no copy"])
async def test_ingest_dict_copies_unless_told_otherwise(driver, outdir, moody_disk, kept):
    """`copy=False` takes the arrays by reference: a change before they are written goes through, with `copy` none does."""
    mine = numbers(0, 20_000)
    async with await driver.open(outdir=outdir) as backend:
        moody_disk.stop()
        await backend.ingest_dict({"samples": {"p": mine}}, copy=kept)
        mine[0, 0, 0] = -5
        got = (await backend.get())["samples"]["p"]
        assert got[0, 0, 0] == (0 if kept else -5)
        moody_disk.go_on()


async def test_arrays_given_away_that_lie_otherwise(driver, outdir):
    """`copy=False` takes arrays that aren't contiguous, and views, as well."""
    base = numbers(0, 40)
    samples = {"p": base[:, ::-1, ::2], "q": np.asfortranarray(base[:, :, ::2]), "r": base[:, :, :20]}
    async with await driver.open(outdir=outdir) as backend:
        await backend.ingest_dict({"samples": samples}, copy=False)
        assert_same((await backend.get())["samples"], samples)
        await backend.flush()
        assert_same((await backend.get())["samples"], samples)


# ---- what is refused ---------------------------------------------------------------------------------------------------

OBJECTS = {
    "an object": ({"state": {"rng": object()}}, "state/rng"),
    "in a list": ({"list": [1, [2, {3}]]}, "list/1/1"),
    "a name with a slash": ({"a/b": 1}, "a/b"),
    "a name that is a number": ({"d": {1: 2}}, "d/1"),
    "an array of objects": ({"o": np.array([None, {}])}, "o"),
    "a masked array": ({"m": np.ma.array([1, 2], mask=[0, 1])}, "m"),
}


@pytest.mark.parametrize(("others", "path"), OBJECTS.values(), ids=OBJECTS)
@pytest.mark.parametrize("call", ["ingest", "ingest_dict", "ingest_nowait"])
async def test_what_cannot_be_stored_is_refused(driver, outdir, call, others, path):
    """An item that can't be stored is named by its path, and nothing was handed over."""
    async with await driver.open(outdir=outdir) as backend:
        await backend.ingest(RUN[0])
        with pytest.raises(NotStorable, match=path) as caught:
            given = getattr(backend, call)({**RUN[1], **others})
            await given
        assert isinstance(caught.value, TypeError)
        assert backend.status.epochs == 1
        await backend.ingest(RUN[1])
        np.testing.assert_array_equal((await backend.get_samples())["p"], joined(RUN[:2]))


MISFITS = {
    "more chains": epoch_dict(4, 2, nchain=4),
    "another dim": epoch_dict(4, 2, dim=3),
    "another dtype": {"samples": {"p": numbers(4, 2, dtype=np.float32)}},
    "big-endian": {"samples": {"p": numbers(4, 2, dtype=">f8")}},
    "another dim of a lesser name": {"samples": {"p": numbers(4, 2), "ll": numbers(4, 2, dtype=np.float32)}},
    "no p": {"samples": {"q": numbers(4, 2)}},
    "no samples": {"covs": np.eye(2)},
    "samples that are no dict": {"samples": numbers(4, 2)},
    "two axes": {"samples": {"p": numbers(4, 2)[0]}},
    "no array": {"samples": {"p": numbers(4, 2), "q": 1.0}},
    "a list": {"samples": {"p": numbers(4, 2).tolist()}},
    "chains that disagree": {"samples": {"p": numbers(4, 2), "q": numbers(4, 2, nchain=2)}},
    "lengths that disagree": {"samples": {"p": numbers(4, 2), "q": numbers(4, 3)}},
    "no chain": {"samples": {"p": np.empty((0, 2, 5))}},
    "no sample": {"samples": {"p": np.empty((3, 2, 0))}},
}


@pytest.mark.parametrize("epoch", MISFITS.values(), ids=MISFITS)
@pytest.mark.parametrize("call", ["ingest", "ingest_dict", "ingest_nowait"])
async def test_what_does_not_fit_is_refused(driver, outdir, call, epoch):
    """An epoch that doesn't fit the run, or is none, is refused at the call, and the run goes on as if it never came."""
    async with await driver.open(outdir=outdir) as backend:
        await backend.ingest(RUN[0])
        with pytest.raises(EpochMismatch) as caught:
            await getattr(backend, call)(epoch)
        assert isinstance(caught.value, ValueError)
        assert backend.status.epochs == 1
        await backend.ingest(RUN[1])
        await backend.flush()
        np.testing.assert_array_equal((await backend.get_samples())["p"], joined(RUN[:2]))


@pytest.mark.parametrize("thing", [None, 3, numbers(0, 2), [RUN[0]], Epoch], ids=lambda thing: type(thing).__name__)
async def test_what_is_no_epoch_is_refused(driver, outdir, thing):
    """What is neither a dict nor an epoch object nor a path is refused with what could be given."""
    async with await driver.open(outdir=outdir) as backend:
        with pytest.raises((NotStorable, TypeError)):
            await backend.ingest(thing)
        assert backend.status.epochs == 0


async def test_a_mismatch_says_what_the_run_has(driver, outdir):
    """The message of a mismatch gives both numbers and the ways out."""
    async with await driver.open(outdir=outdir) as backend:
        await backend.ingest(RUN[0])
        with pytest.raises(EpochMismatch, match=r"4 chains.*has 3.*reset"):
            await backend.ingest(epoch_dict(0, 1, nchain=4))
        with pytest.raises(EpochMismatch, match=r"'p'.*dim 3.*dim 2.*reset"):
            await backend.ingest(epoch_dict(0, 1, dim=3))


# ---- the mailbox -------------------------------------------------------------------------------------------------------


async def test_ingest_waits_for_no_disk(driver, outdir, moody_disk):
    """While the disk takes nothing, epochs are handed over and read all the same, and the status says what waits."""
    async with await driver.open(outdir=outdir) as backend:
        moody_disk.stop()
        for epoch in RUN:
            await backend.ingest(epoch)
        assert backend.status.queued_epochs == 3
        assert backend.status.queued_bytes >= sum(epoch["samples"]["p"].nbytes for epoch in RUN)
        assert backend.status.epochs_on_disk == 0
        np.testing.assert_array_equal((await backend.get_samples())["p"], joined(RUN))
        moody_disk.go_on()
        await backend.flush()
        assert (backend.status.queued_epochs, backend.status.queued_bytes) == (0, 0)
        assert backend.status.epochs_on_disk == 3


LIMITS = {"epochs": {"max_pending_epochs": 2}, "bytes": {"max_pending_bytes": 2 * 300}}


@pytest.mark.parametrize("limit", LIMITS.values(), ids=LIMITS)
async def test_a_full_mailbox_makes_ingest_wait(driver, outdir, moody_disk, limit):
    """When the mailbox is full `ingest` waits, and goes on by itself when there is room; nothing is dropped."""
    epochs = [{"samples": {"p": numbers(i * 5, 5)}} for i in range(6)]  # of 240 bytes each
    async with await driver.open(outdir=outdir, **limit) as backend:
        moody_disk.stop()
        await backend.ingest(epochs[0])
        await backend.ingest(epochs[1])
        with pytest.raises(MailboxFull):
            backend.ingest_nowait(epochs[2])
        has_returned = anyio.Event()

        async def ingest_rest():
            for epoch in epochs[2:]:
                await backend.ingest(epoch)
            has_returned.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ingest_rest)
            await driver.call(moody_disk.was_reached.wait)
            assert not has_returned.is_set()
            assert backend.status.epochs == 2
            moody_disk.go_on()
        assert backend.status.ingest_waited_s > 0
        np.testing.assert_array_equal((await backend.get_samples())["p"], numbers(0, 30))


async def test_ingest_gives_up_in_time(driver, outdir, moody_disk):
    """With `timeout_s` a full mailbox ends in `MailboxFull`, nothing was handed over, and later calls work again."""
    async with await driver.open(outdir=outdir, max_pending_epochs=1) as backend:
        moody_disk.stop()
        await backend.ingest(RUN[0], timeout_s=0)
        for timeout_s in (0, 0.02):
            with pytest.raises(MailboxFull, match="no room") as caught:
                await backend.ingest(RUN[1], timeout_s=timeout_s)
            assert isinstance(caught.value, BlockingIOError)
        assert backend.status.epochs == 1
        moody_disk.go_on()
        await backend.ingest(RUN[1], timeout_s=None)
        np.testing.assert_array_equal((await backend.get_samples())["p"], joined(RUN[:2]))


async def test_a_full_mailbox_can_raise(driver, outdir, moody_disk):
    """With `on_full="raise"` a full mailbox raises at once, with the disk's error as the cause where that is why."""
    async with await driver.open(outdir=outdir, max_pending_epochs=1, on_full="raise", **QUICK) as backend:
        moody_disk.stop()
        await backend.ingest(RUN[0])
        with pytest.raises(MailboxFull) as caught:
            await backend.ingest(RUN[1])
        assert caught.value.__cause__ is None
        moody_disk.fill()
        moody_disk.go_on()
        with pytest.raises(OSError, match="No space left"):
            await backend.flush()
        with pytest.raises(MailboxFull, match="No space left") as caught:
            await backend.ingest_dict(RUN[1])
        assert isinstance(caught.value.__cause__, OSError)
        moody_disk.empty()
        await flushed(backend)
        await backend.ingest(RUN[1])
        np.testing.assert_array_equal((await backend.get_samples())["p"], joined(RUN[:2]))


async def test_an_epoch_larger_than_the_mailbox_is_taken_alone(driver, outdir, moody_disk):
    """An epoch that could never fit is admitted when the mailbox is empty, and nothing beside it."""
    async with await driver.open(outdir=outdir, max_pending_bytes=100) as backend:
        moody_disk.stop()
        backend.ingest_nowait(epoch_dict(0, 500))
        with pytest.raises(MailboxFull):
            backend.ingest_nowait(epoch_dict(500, 1))
        moody_disk.go_on()
        await backend.ingest(epoch_dict(500, 700))
        await backend.ingest(epoch_dict(1200, 1))
        np.testing.assert_array_equal((await backend.get_samples())["p"], numbers(0, 1201))


async def test_epochs_kept_in_memory_take_no_room(driver, outdir, moody_disk):
    """The `inmem_epochs` newest epochs don't wait for the disk, so they don't fill the mailbox."""
    async with await driver.open(outdir=outdir, max_pending_epochs=1, inmem_epochs=3) as backend:
        moody_disk.stop()
        for epoch in run_of([1] * 4):
            backend.ingest_nowait(epoch)
        assert backend.status.queued_epochs == 1
        with pytest.raises(MailboxFull):
            backend.ingest_nowait(epoch_dict(4, 1))
        moody_disk.go_on()


async def test_first_come_first_served(driver, outdir, moody_disk):
    """Who waits for room longest gets it first: a small epoch doesn't overtake a large one that waits."""
    async with await driver.open(outdir=outdir, max_pending_bytes=400) as backend:
        moody_disk.stop()
        await backend.ingest({"samples": {"p": numbers(0, 5)}})  # 240 bytes of 400
        service = backend.target._service
        asked = threading.Event()
        ask_room = service.ledger.ask_room

        def ask_and_tell(*args):
            ticket = ask_room(*args)
            asked.set()
            return ticket

        service.ledger.ask_room = ask_and_tell
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(backend.ingest, {"samples": {"p": numbers(5, 8)}})  # 384 bytes: has to wait
            await driver.call(asked.wait)
            with pytest.raises(MailboxFull):
                backend.ingest_nowait({"samples": {"p": numbers(13, 1)}})  # 48 bytes would fit
            moody_disk.go_on()
        np.testing.assert_array_equal((await backend.get_samples())["p"], numbers(0, 13))


async def test_closing_ends_the_waiting(driver, outdir, moody_disk):
    """Who waits for room when the backend is closed gets `Closed`, and its epoch isn't part of the run."""
    async with await driver.open(outdir=outdir, max_pending_epochs=1) as backend:
        moody_disk.stop()
        await backend.ingest(RUN[0])
        async with anyio.create_task_group() as tasks:

            async def refused():
                with pytest.raises(Closed):
                    await backend.ingest(RUN[1])
                moody_disk.go_on()

            tasks.start_soon(refused)
            await driver.call(moody_disk.was_reached.wait)
            tasks.start_soon(backend.close)
    async with await driver.open(outdir=outdir) as backend:
        assert backend.status.epochs == 1


# ---- receipts ----------------------------------------------------------------------------------------------------------


async def test_a_receipt_tells_index_and_durability(driver, outdir, moody_disk):
    """A receipt knows the epoch's index, and is durable when the epoch is on disk, not before."""
    async with await driver.open(outdir=outdir) as backend:
        moody_disk.stop()
        receipts = [backend.ingest_nowait(epoch) for epoch in RUN]
        assert [receipt.index for receipt in receipts] == [0, 1, 2]
        assert [receipt.durable.done for receipt in receipts] == [False] * 3
        assert "not yet durable" in repr(receipts[1])
        with pytest.raises(TimeoutError):
            await driver.call(receipts[0].durable.wait, 0)
        moody_disk.go_on()
        await receipts[2].durable
        assert [receipt.durable.done for receipt in receipts] == [True] * 3
        await driver.call(receipts[0].durable.wait)
        assert backend.status.epochs_on_disk == 3


async def test_a_receipt_can_be_awaited_before_and_after(driver, outdir, moody_disk):
    """Several tasks may await one receipt, while it is open and when it is done."""
    async with await driver.open(outdir=outdir) as backend:
        moody_disk.stop()
        receipt = backend.ingest_nowait(RUN[0])
        done = []

        async def wait():
            await receipt.durable
            done.append(backend.status.epochs_on_disk)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            tasks.start_soon(wait)
            await driver.call(moody_disk.was_reached.wait)
            assert done == []
            moody_disk.go_on()
        await receipt.durable
        assert done == [1, 1]


async def test_waiting_for_a_receipt_has_it_written(driver, outdir):
    """Someone waiting for `durable` has the epoch written, whatever `inmem_epochs` keeps in memory."""
    async with await driver.open(outdir=outdir, inmem_epochs=10) as backend:
        receipts = [backend.ingest_nowait(epoch) for epoch in RUN]
        with anyio.fail_after(10):
            await receipts[0].durable
        assert backend.status.epochs_on_disk >= 1
        await driver.call(receipts[1].durable.wait, 10)
        assert backend.status.epochs_on_disk >= 2


async def test_copied_arrays_are_released_at_once(driver, outdir, moody_disk):
    """What was copied is free at once; what was given away is free when the epoch left memory."""
    async with await driver.open(outdir=outdir) as backend:
        moody_disk.stop()
        copied = backend.ingest_nowait(RUN[0])
        given = backend.ingest_nowait(RUN[1], copy=False)
        assert copied.released.done
        assert not given.released.done
        await copied.released
        moody_disk.go_on()
        await given.released
        assert given.durable.done


async def test_released_arrays_may_be_changed(driver, outdir):
    """Once `released` is done, a change of an array that was given away changes nothing in the run."""
    mine = numbers(0, 20_000)
    async with await driver.open(outdir=outdir) as backend:
        await backend.ingest_nowait({"samples": {"p": mine}}, copy=False).released
        mine.fill(-1)
        np.testing.assert_array_equal((await backend.get())["samples"]["p"], numbers(0, 20_000))


async def test_a_snapshot_does_not_see_released_arrays_change(driver, outdir, moody_disk):
    """`released` means free for all: a snapshot taken while the epoch was in memory goes on giving its exact numbers."""
    mine = numbers(0, 20_000)
    async with await driver.open(outdir=outdir) as backend:
        moody_disk.stop()
        receipt = backend.ingest_nowait({"samples": {"p": mine}}, copy=False)
        async with backend.snapshot() as snapshot:
            moody_disk.go_on()
            await receipt.released
            mine.fill(-1)
            np.testing.assert_array_equal((await snapshot.get_samples())["p"], numbers(0, 20_000))


async def test_a_read_in_progress_does_not_see_released_arrays_change(driver, outdir, moody_disk):
    """A read that found the epoch in memory gives exact numbers, although it leaves memory while it is read."""
    mine = numbers(0, 20_000)
    async with await driver.open(outdir=outdir) as backend:
        moody_disk.stop()
        receipt = backend.ingest_nowait({"samples": {"p": mine}}, copy=False)

        class Mask:
            """Asked for its numbers in the middle of a read: has the epoch written, and overwrites what is released."""

            def __array__(self, dtype=None, copy=None):
                moody_disk.go_on()
                receipt.durable.wait(10)
                with suppress(TimeoutError):
                    receipt.released.wait(0.1)
                    mine.fill(-1)
                return np.array([2, 0], dtype)

        got = await backend.get_samples(mask=Mask())
        np.testing.assert_array_equal(got["p"], numbers(0, 20_000)[[2, 0]])


async def test_a_receipt_survives_a_full_disk(driver, outdir, moody_disk):
    """A receipt doesn't fail by a failed attempt: the attempts go on, and it is done when one worked."""
    async with await driver.open(outdir=outdir, **QUICK) as backend:
        moody_disk.fill()
        receipt = backend.ingest_nowait(RUN[0])
        with pytest.raises(OSError, match="No space left"):
            await backend.flush()
        assert not receipt.durable.done
        moody_disk.empty()
        await receipt.durable
        assert_same(await backend.get(), RUN[0])


async def test_a_receipt_raises_when_its_epoch_is_lost(driver, outdir, monkeypatch, capfd, caplog, loses_epochs):
    """When the writer broke, a receipt of an epoch that will never be written raises, awaited and waited for."""
    backend = await driver.open(outdir=outdir)

    def break_down(*_, **__):
        raise RuntimeError("out of cheese")

    monkeypatch.setattr(Store, "work", break_down)
    receipt = backend.ingest_nowait(RUN[0])
    with pytest.raises(PosterityError, match="out of cheese"):
        await receipt.durable
    with pytest.raises(PosterityError, match="out of cheese"):
        await driver.call(receipt.durable.wait)
    assert backend.status.state is State.FAILED
    assert "out of cheese" in backend.status.last_error
    with pytest.raises(Closed) as caught:
        await backend.ingest(RUN[1])
    assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(PosterityError, match="out of cheese"):
        await backend.flush()
    with pytest.raises(PosterityError, match="epochs 0 to 0"):
        await backend.close()
    assert_same(await backend.get(0), RUN[0])
    assert "out of cheese" in capfd.readouterr().err
    driver.forget(backend)


async def test_a_stopped_disk_leaves_memory_ready(driver, outdir, moody_disk, monkeypatch):
    """While no buffer comes back from the writer, the next hand-over finds one whose pages are there already."""
    ready = threading.Semaphore(0)
    make_ready = Buffers.make_ready
    monkeypatch.setattr(Buffers, "make_ready", lambda buffers: make_ready(buffers) or ready.release())
    epochs = [{"samples": {"p": numbers(i * 20_000, 20_000)}} for i in range(5)]
    async with await driver.open(outdir=outdir) as backend:
        moody_disk.stop()
        await backend.ingest(epochs[0])
        for epoch in epochs[1:]:
            await backend.ingest(epoch)
            assert await anyio.to_thread.run_sync(lambda: ready.acquire(timeout=30))
        assert not ready.acquire(blocking=False)
        moody_disk.go_on()
        await backend.flush()
        for i, epoch in enumerate(epochs):
            assert_same(await backend.get(i), epoch)
