"""Reading: epochs, samples, stats and epoch objects, from memory and from disk, exactly as they went in."""

import os
import sys

import h5py
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from known import DIM, NCHAIN, Walk, assert_same, epoch_dict, joined, numbers, run_of
from posterity import Burned, Damaged, Epoch, UntrustedClass
from smallchunks import small_chunks

RUN = run_of([4, 3, 5])  # samples 0-3, 4-6, 7-11


@pytest.fixture(
    params=[{}, {"inmem_epochs": 1}, {"inmem_epochs": 5}, {"compression": "zstd"}],
    ids=["on disk", "mixed", "in memory", "compressed"],
)
async def backend(request, driver, outdir):
    """A run of three epochs that are on disk, in memory, or some of each."""
    with small_chunks():
        async with await driver.open(outdir=outdir, epochs_per_file=2, **request.param) as backend:
            for epoch in RUN:
                await backend.ingest(epoch)
            await backend.update()
            assert backend.status.epochs_on_disk == max(0, 3 - request.param.get("inmem_epochs", 0))
            yield backend


# ---- get ---------------------------------------------------------------------------------------------------------------


async def test_get_gives_each_epoch(backend):
    """`get` gives the epoch with an index, or counted from the last if negative."""
    for i in range(3):
        assert_same(await backend.get(i), RUN[i])
        assert_same(await backend.get(i - 3), RUN[i])
    assert_same(await backend.get(), RUN[2])


@pytest.mark.parametrize("ind", [3, -4, 100])
async def test_get_of_what_never_was(backend, ind):
    """An index that never was is an `IndexError` that says what there is."""
    with pytest.raises(IndexError, match=f"{ind}.*3 epochs"):
        await backend.get(ind)


async def test_get_of_an_empty_run(driver, outdir):
    """A run without an epoch has no epoch -1."""
    async with await driver.open(outdir=outdir) as backend:
        with pytest.raises(IndexError, match="0 epochs"):
            await backend.get()


async def test_get_of_what_was_burned(backend):
    """A burned epoch is a `ValueError`, and one that was cut comes without its burned samples."""
    await backend.set_burn(5)
    with pytest.raises(Burned) as caught:
        await backend.get(0)
    assert isinstance(caught.value, ValueError)
    np.testing.assert_array_equal((await backend.get(1))["samples"]["p"], numbers(5, 2))


async def test_what_get_returns_is_the_callers_own(backend):
    """Writing into the arrays that `get` returned changes nothing in the run."""
    for i in range(3):
        got = await backend.get(i)
        got["samples"]["p"].fill(-1)
        got["covs"].fill(-1)
        got["stats"]["counts"].fill(-1)
        del got["samples"]["ll"]
        assert_same(await backend.get(i), RUN[i])


async def test_what_get_samples_returns_is_the_callers_own(backend):
    """Writing into the arrays that `get_samples` and `get_stats` returned changes nothing in the run."""
    for verify in (False, True):
        (await backend.get_samples(verify=verify))["p"].fill(-1)
        np.testing.assert_array_equal((await backend.get_samples())["p"], joined(RUN))
    (await backend.get_stats())["epoch_1"]["counts"].fill(-1)
    assert_same(await backend.get_stats(), {f"epoch_{i}": epoch["stats"] for i, epoch in enumerate(RUN)})


# ---- get_samples -------------------------------------------------------------------------------------------------------


def masks(nchain):
    """Everything that selects chains."""
    return st.one_of(
        st.just(...),
        st.slices(nchain),
        st.lists(st.booleans(), min_size=nchain, max_size=nchain).map(np.array),
        st.lists(st.integers(-nchain, nchain - 1), max_size=2 * nchain),
        st.lists(st.integers(0, nchain - 1), min_size=1, max_size=nchain).map(np.array),
    )


def selected(array, mask):
    """What NumPy makes of a mask; to NumPy an empty list is one of floats."""
    return array[np.zeros(0, int)] if isinstance(mask, list) and not mask else array[mask]


@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=7),
    run_burn=st.integers(0, 12),
    burn=st.integers(0, 30),
    thin=st.integers(1, 9),
    pars=st.sampled_from([None, ["p"], ["ll"], ["ll", "p"], ("p", "ll"), "ll"]),
    mask=masks(NCHAIN),
    flatten=st.booleans(),
    verify=st.booleans(),
    inmem_epochs=st.integers(0, 4),
    epochs_per_file=st.integers(1, 3),
)
@example([6, 5, 4], 2, 1, 4, None, ..., False, False, 0, 2)
@settings(max_examples=120)
async def test_samples_are_those_of_numpy(
    driver, tmp_path_factory, lengths, run_burn, burn, thin, pars, mask, flatten, verify, inmem_epochs, epochs_per_file
):
    """Samples are `concatenate(what is left, axis=2)[mask][:, :, burn::thin]`, wherever the epochs lie."""
    outdir = tmp_path_factory.mktemp("samples") / "run"
    epochs = run_of(lengths)
    options = {"inmem_epochs": inmem_epochs, "epochs_per_file": epochs_per_file}
    async with await driver.open(run_burn, outdir=outdir, **options) as backend:
        for epoch in epochs:
            await backend.ingest(epoch)
        await backend.update()
        got = await backend.get_samples(burn, thin, pars, mask, flatten, verify)
        assert backend.flatten_samples(None) is None
    names = ["p"] if pars is None else [pars] if isinstance(pars, str) else list(pars)
    expected = {name: selected(joined(epochs, name)[:, :, run_burn:], mask)[:, :, burn::thin] for name in names}
    if expected[names[0]].shape[2] == 0:
        assert got is None
        return
    if flatten:
        expected = {name: np.concatenate(list(array.swapaxes(1, 2)), axis=0) if len(array) else
                    array.reshape(0, array.shape[1]) for name, array in expected.items()}  # fmt: skip
    assert_same(got, expected)


async def test_nothing_left_is_none(driver, outdir):
    """Where nothing is left there is None: an empty run, a burn beyond the end, everything burned."""
    async with await driver.open(outdir=outdir) as backend:
        for flatten in (False, True):
            assert await backend.get_samples(flatten=flatten) is None
        await backend.ingest(RUN[0])
        assert await backend.get_samples(burn=4) is None
        assert await backend.get_samples(burn=400, thin=3, flatten=True) is None
        await backend.clean()
        assert await backend.get_samples() is None
        assert backend.flatten_samples(None) is None


async def test_thin_counts_over_the_borders_of_epochs(backend):
    """Every third sample of the run, not of each epoch."""
    np.testing.assert_array_equal((await backend.get_samples(thin=3))["p"], joined(RUN)[:, :, ::3])


async def test_flattened_is_chain_by_chain(backend):
    """Flattened samples are `(n * nchain, dim)`, all of a chain before the next one."""
    got = await backend.get_samples(flatten=True, pars=["p", "ll"])
    assert {name: array.shape for name, array in got.items()} == {"p": (12 * NCHAIN, DIM), "ll": (12 * NCHAIN, 1)}
    np.testing.assert_array_equal(got["p"][12:24], joined(RUN)[1].T)
    assert_same(backend.flatten_samples(await backend.get_samples(pars=["p", "ll"])), got)


@pytest.mark.parametrize("thin", [0, -1])
async def test_thin_below_one_is_refused(backend, thin):
    """`thin < 1` is a `ValueError`."""
    with pytest.raises(ValueError, match="thin"):
        await backend.get_samples(thin=thin)


async def test_negative_burn_is_refused(backend):
    """A negative `burn` isn't counted from the end: it is a `ValueError`."""
    with pytest.raises(ValueError, match="burn"):
        await backend.get_samples(burn=-1)


async def test_a_name_that_is_not_there(backend):
    """An unknown name is a `KeyError` naming those there are."""
    with pytest.raises(KeyError, match=r"'lp'.*p, ll"):
        await backend.get_samples(pars=["p", "lp"])


async def test_a_name_must_be_in_every_epoch_read(driver, outdir):
    """A name that some epochs lack can be read where every epoch read has it, else it is a `KeyError`."""
    async with await driver.open(outdir=outdir) as backend:
        await backend.ingest({"samples": {"p": numbers(0, 4)}})
        await backend.ingest(RUN[1])
        with pytest.raises(KeyError, match=r"epoch 0 .*'ll'"):
            await backend.get_samples(pars=["ll"])
        np.testing.assert_array_equal((await backend.get_samples(burn=4, pars=["ll"]))["ll"], RUN[1]["samples"]["ll"])


@pytest.mark.parametrize("mask", [[0, 3], [True, False], np.ones((3, 2), bool), 5, [-4]], ids=str)
async def test_a_mask_that_does_not_fit(backend, mask):
    """A mask for another number of chains is an `IndexError`."""
    with pytest.raises(IndexError, match="mask"):
        await backend.get_samples(mask=mask)


async def test_samples_may_be_large(driver, outdir):
    """Chains longer than any buffer come back exactly, thinned, masked and burned."""
    p = np.random.default_rng(7).normal(size=(4, 3, 200_000))
    async with await driver.open(outdir=outdir) as backend:
        await backend.ingest({"samples": {"p": p[:, :, :150_000]}})
        await backend.ingest({"samples": {"p": p[:, :, 150_000:]}})
        await backend.flush()
        for how, expected in [
            ({}, p),
            ({"thin": 10}, p[:, :, ::10]),
            ({"mask": [3, 1], "burn": 149_000, "thin": 7}, p[[3, 1]][:, :, 149_000::7]),
            ({"burn": 199_999, "verify": True}, p[:, :, 199_999:]),
        ]:
            np.testing.assert_array_equal((await backend.get_samples(**how))["p"], expected)


# ---- stats -------------------------------------------------------------------------------------------------------------


async def test_stats_of_all_epochs(backend):
    """`get_stats` gives the stats of each epoch by name, and those of listed ones on demand."""
    expected = {f"epoch_{i}": epoch["stats"] for i, epoch in enumerate(RUN)}
    assert_same(await backend.get_stats(), expected)
    assert_same(await backend.get_stats([2, 0]), {"epoch_2": RUN[2]["stats"], "epoch_0": RUN[0]["stats"]})
    assert_same(await backend.get_stats([-1]), {"epoch_2": RUN[2]["stats"]})
    assert await backend.get_stats([]) == {}
    with pytest.raises(IndexError):
        await backend.get_stats([3])


async def test_stats_of_burned_epochs(backend):
    """A wholly burned epoch is left out, and an error where it is listed; a cut one has all its stats."""
    await backend.set_burn(5)
    assert_same(await backend.get_stats(), {f"epoch_{i}": RUN[i]["stats"] for i in (1, 2)})
    with pytest.raises(ValueError, match="burned"):
        await backend.get_stats([0, 1])


async def test_epochs_without_stats_are_left_out(driver, outdir):
    """An epoch without stats is left out; it is no error."""
    async with await driver.open(outdir=outdir) as backend:
        await backend.ingest({"samples": {"p": numbers(0, 2)}})
        await backend.ingest({**epoch_dict(2, 2), "stats": 3.5})
        await backend.ingest({**epoch_dict(4, 2), "stats": {}})
        await backend.flush()
        assert_same(await backend.get_stats(), {"epoch_1": {"stats": 3.5}, "epoch_2": {}})
        assert await backend.get_stats([0]) == {}


async def test_stats_are_saved_to_a_file(backend, tmp_path):
    """With `fname` the stats are saved too, in the place of a file that is there, and HDF5 reads them."""
    for fname in (tmp_path / "stats.h5", os.fspath(tmp_path / "stats.h5")):
        stats = await backend.get_stats([1, 2], fname)
        assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["stats.h5"]
        with h5py.File(fname) as file:
            assert set(file) == {"epoch_1", "epoch_2"}
            assert file["epoch_1/steps"][()] == 3
            np.testing.assert_array_equal(file["epoch_2/counts"][...], RUN[2]["stats"]["counts"])
        assert_same(await backend.driver.read_epoch(fname), stats["epoch_2"])


async def test_a_stats_file_appears_whole_or_not_at_all(backend, tmp_path):
    """Where the stats can't be had, a file that is there stays as it was."""
    fname = tmp_path / "stats.h5"
    fname.write_bytes(b"old")
    with pytest.raises(IndexError):
        await backend.get_stats([0, 9], fname)
    with pytest.raises(OSError, match="nowhere"):
        await backend.get_stats(fname="/proc/nowhere/stats.h5")
    assert fname.read_bytes() == b"old"


# ---- files -------------------------------------------------------------------------------------------------------------


async def test_read_epoch_counts_by_index(driver, outdir):
    """Negative indices count from the last by index: -1 of the epochs 2 to 11 is 11, not 9."""
    async with await driver.open(outdir=outdir, epochs_per_file=12) as backend:
        for epoch in run_of([2] * 12):
            await backend.ingest(epoch)
    path = outdir / "epochs_1.h5"
    assert_same(await driver.read_epoch(path), epoch_dict(22, 2))
    assert_same(await driver.read_epoch(path, -3), epoch_dict(18, 2))
    assert_same(await driver.read_epoch(os.fspath(path), 2), epoch_dict(4, 2))
    with pytest.raises(IndexError, match=r"12.*0, 1, 2"):
        await driver.read_epoch(path, 12)
    with pytest.raises(FileNotFoundError, match=r"epochs_7\.h5"):
        await driver.read_epoch(outdir / "epochs_7.h5")


async def test_read_epoch_of_a_foreign_file(driver, tmp_path):
    """A file of another backend is read: plain groups and datasets, by index and not by the order of text."""
    path = tmp_path / "theirs.h5"
    with h5py.File(path, "w") as file:
        for i in (2, 10):
            group = file.create_group(f"epoch_{i}")
            group["samples/p"] = numbers(i, 3)
            group["class"] = "somewhere.Else"
            for k in range(12):
                group[f"names/{k}"] = f"par{k}"
    got = await driver.read_epoch(path)
    assert_same(got["samples"]["p"], numbers(10, 3))
    assert got["class"] == "somewhere.Else"
    assert got["names"] == [f"par{k}" for k in range(12)]
    assert_same((await driver.read_epoch(path, 2))["samples"]["p"], numbers(2, 3))


async def test_read_epoch_is_on_the_backend_too(backend, outdir):
    """`read_epoch` and `load_epoch` can be called on a backend; they open no run."""
    await backend.flush(publish=True)
    assert_same(await backend.read_epoch(outdir / "epochs_1.h5"), RUN[1])
    assert_same(await backend.read_epoch(outdir / "epochs_2.h5", 2), RUN[2])
    epoch = await backend.load_epoch(outdir / "epochs_1.h5", 0, Walk, ["p"])
    assert type(epoch) is Walk
    assert list(epoch.samples) == ["p"]
    np.testing.assert_array_equal(epoch.covs, RUN[0]["covs"])


async def test_a_damaged_file_is_named(driver, outdir):
    """A flipped bit is found by `get`, `load`, `read_epoch` and with `verify`; the other epochs stay readable."""
    async with await driver.open(outdir=outdir) as backend:
        for epoch in RUN:
            await backend.ingest(epoch)
        await backend.flush()
        path = outdir / "epochs_2.h5"
        data = bytearray(path.read_bytes())
        at = data.find(RUN[1]["samples"]["p"].tobytes())
        data[at + 9] ^= 4
        path.write_bytes(data)
        for read in (
            lambda: backend.get(1),
            lambda: backend.load(1),
            lambda: backend.read_epoch(path),
            lambda: backend.get_samples(verify=True),
        ):
            with pytest.raises(Damaged, match=r"epochs_2\.h5.*samples/p") as caught:
                await read()
            assert isinstance(caught.value, OSError)
        assert_same(await backend.get(0), RUN[0])
        np.testing.assert_array_equal((await backend.get_samples(burn=7, verify=True))["p"], numbers(7, 5))


async def test_a_missing_file_is_named(driver, outdir):
    """A file that somebody removed is named; the other epochs stay readable."""
    async with await driver.open(outdir=outdir) as backend:
        for epoch in RUN:
            await backend.ingest(epoch)
        await backend.flush()
        (outdir / "epochs_2.h5").unlink()
        with pytest.raises(Damaged, match=r"epochs_2\.h5"):
            await backend.get_samples()
        assert_same(await backend.get(2), RUN[2])


# ---- load --------------------------------------------------------------------------------------------------------------


async def test_load_gives_an_epoch_to_continue_from(backend):
    """`load` gives an epoch object with all that was ingested, by default the newest."""
    epoch = await backend.load()
    assert type(epoch) is Epoch
    np.testing.assert_array_equal(epoch.last["p"], numbers(11, 1)[:, :, 0])
    np.testing.assert_array_equal(epoch.covs, RUN[2]["covs"])
    assert_same(epoch.stats, RUN[2]["stats"])
    assert_same((await backend.load(0)).samples, RUN[0]["samples"])
    with pytest.raises(IndexError):
        await backend.load(3)


async def test_load_only_some_names(backend):
    """`pars` names the samples that are loaded; an unknown one is a `KeyError`."""
    assert list((await backend.load(pars=["ll"])).samples) == ["ll"]
    with pytest.raises(KeyError, match=r"lp.*p, ll"):
        await backend.load(pars=["lp"])


async def test_what_is_loaded_can_be_ingested_again(backend):
    """A loaded epoch is one that can be handed over."""
    await backend.ingest(await backend.load(1))
    samples = (await backend.get(3))["samples"]
    assert_same(samples, RUN[1]["samples"])


@pytest.mark.parametrize("how", ["set_burn", "clean"])
async def test_the_newest_epoch_can_be_continued_from_although_burned(backend, driver, outdir, how):
    """When burn took every sample, `load` still gives the newest epoch's last one and its state, also after reopening."""
    await backend.ingest({**epoch_dict(12, 6), "state": {"seed": 2**70}, "cycle": [1, "a"]})
    await (backend.clean() if how == "clean" else backend.set_burn(1000))

    async def check(backend):
        with pytest.raises(Burned):
            await backend.get(-1)
        epoch = await backend.load()
        assert_same(epoch.samples, epoch_dict(17, 1)["samples"])
        assert_same(epoch.covs, epoch_dict(12, 6)["covs"])
        assert (epoch.state, epoch.cycle) == ({"seed": 2**70}, [1, "a"])
        with pytest.raises(Burned):
            await backend.load(2)

    await check(backend)
    await backend.flush()
    await check(backend)
    await backend.close()
    async with await driver.open(outdir=outdir) as again:
        await check(again)
        await again.ingest(epoch_dict(18, 3))
        np.testing.assert_array_equal((await again.load()).last["p"], numbers(20, 1)[:, :, 0])


async def test_an_epoch_class_that_is_imported_comes_back(driver, outdir):
    """A class of a module that is imported already is used, in this session and in a later one."""
    async with await driver.open(outdir=outdir) as backend:
        await backend.ingest(Walk(RUN[0]["samples"]))
        assert type(await backend.load()) is Walk
    async with await driver.open(outdir=outdir) as backend:
        assert type(await backend.load()) is Walk


HIJACKER = "raise RuntimeError('a file made us run code')"


@pytest.mark.parametrize(
    "name", ["known_by_nobody.Evil", "os.system", "collections.OrderedDict", "known.NCHAIN", "x", ""]
)
async def test_a_class_that_is_not_trusted_is_never_imported(driver, outdir, tmp_path, monkeypatch, name):
    """A file can't make us import anything, nor use what is no epoch class; `eclass` is the way out."""
    (tmp_path / "known_by_nobody.py").write_text(HIJACKER)
    monkeypatch.syspath_prepend(tmp_path)
    async with await driver.open(outdir=outdir) as backend:
        await backend.ingest({**RUN[0], "class": name})
        with pytest.raises(UntrustedClass, match="eclass") as caught:
            await backend.load()
        assert isinstance(caught.value, LookupError)
        assert "known_by_nobody" not in sys.modules
        assert type(await backend.load(eclass=Walk)) is Walk
        await backend.flush()
        with pytest.raises(UntrustedClass):
            await backend.load_epoch(outdir / "epochs_1.h5")
        assert type(await backend.load_epoch(outdir / "epochs_1.h5", -1, Walk)) is Walk


async def test_a_trusted_class_is_imported(driver, outdir, tmp_path, monkeypatch):
    """A class named in `trusted_classes` is imported when it is needed, and no other."""
    (tmp_path / "known_by_us.py").write_text("from posterity import Epoch\nclass Ours(Epoch): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "known_by_us", raising=False)
    async with await driver.open(outdir=outdir, trusted_classes=["known_by_us.Ours"]) as backend:
        await backend.ingest({**RUN[0], "class": "known_by_us.Ours"})
        loaded = await backend.load()
        assert f"{type(loaded).__module__}.{type(loaded).__qualname__}" == "known_by_us.Ours"
    monkeypatch.delitem(sys.modules, "known_by_us")


async def test_eclass_may_be_anything_that_takes_a_dict(backend):
    """`eclass` may be a class with `from_backend`, a plain callable class, or one made like jexplore's."""

    class Plain:
        def __init__(self, data):
            self.data = data

    class State:
        __dataclass_fields__ = ("p",)

    class Jexploring:
        statecls = State

        def __init__(self, fields):
            self.fields = fields

    assert_same((await backend.load(1, Plain)).data, RUN[1])
    jexploring = await backend.load(1, eclass=Jexploring)
    assert_same(jexploring.fields, {"p": RUN[1]["samples"]["p"], "covs": RUN[1]["covs"]})
