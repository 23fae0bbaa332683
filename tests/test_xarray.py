"""Runs as xarray's datasets and trees: lazy, the numbers that were asked for, or an error, wherever they are read."""

import pickle
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from known import DIM, NCHAIN, epoch_dict, numbers, run_of
from posterity import (
    AsyncBackend,
    Closed,
    Damaged,
    DefaultBackend,
    OnlyInMemory,
    Parameter,
    SnapshotExpired,
    open_run,
)
from posterity._reading.draws import Draws
from posterity._reading.snapshot import view_of
from posterity._system.disk import Disk

LENGTHS = [7, 3, 10, 1, 6]
NSAMPLES = sum(LENGTHS)
BURN = 5


def written(outdir, lengths=LENGTHS, **options):
    """A run that is closed."""
    with DefaultBackend(outdir=outdir, **options) as backend:
        for epoch in run_of(lengths):
            backend.ingest(epoch)
    return outdir


@pytest.fixture(scope="module", params=[None, "gzip"])
def outdir(tmp_path_factory, request):
    """A run of five epochs, burned into the first one, in files of two."""
    outdir = tmp_path_factory.mktemp("run")
    return written(outdir, burn=BURN, epochs_per_file=2, compression=request.param)


def expected(burn=BURN, thin=1, nsamples=NSAMPLES):
    """`p` as `(chain, draw, dim)`."""
    return numbers(0, nsamples)[:, :, burn::thin].transpose(0, 2, 1)


# ---- what is in it ---------------------------------------------------------------------------------------------------


def test_a_run_opens_with_xarray_by_its_path(outdir):
    """The engine is found by its name, or from what the folder is; all samples are there, with their positions."""
    for options in ({"engine": "posterity"}, {}):
        with xr.open_dataset(outdir, **options) as dataset:
            assert dataset.p.dims == ("chain", "draw", "p_dim_0")
            assert dataset.ll.dims == ("chain", "draw")
            np.testing.assert_array_equal(dataset.p, expected())
            np.testing.assert_array_equal(dataset.ll, -numbers(0, NSAMPLES, dim=1, dtype=np.float32)[:, 0, BURN:])
            np.testing.assert_array_equal(dataset.draw, np.arange(BURN, NSAMPLES))
            np.testing.assert_array_equal(dataset.chain, np.arange(NCHAIN))


def test_options_of_the_engine(outdir):
    """Burn, thinning and names are options of `open_dataset`; variables can be dropped."""
    with xr.open_dataset(outdir, engine="posterity", burn=3, thin=4, pars=["p"]) as dataset:
        assert list(dataset) == ["p"]
        np.testing.assert_array_equal(dataset.p, expected(BURN + 3, 4))
        np.testing.assert_array_equal(dataset.draw, np.arange(BURN + 3, NSAMPLES, 4))
    with xr.open_dataset(outdir, engine="posterity", drop_variables="p") as dataset:
        assert list(dataset) == ["ll"]


@pytest.mark.parametrize(("burn", "thin"), [(0, 1), (3, 4), (2, 7)])
def test_a_chunk_is_an_epoch(outdir, burn, thin):
    """Chunks end where epochs do, after burn and thinning; an epoch of which nothing is left has none."""
    ends = np.cumsum(LENGTHS)
    epochs = np.searchsorted(ends, np.arange(BURN + burn, NSAMPLES, thin), side="right")
    sizes = tuple(int(n) for n in np.bincount(epochs) if n)
    with open_run(outdir) as run:
        dataset = run.to_xarray(burn, thin)
        assert dataset.chunksizes["draw"] == sizes
        np.testing.assert_array_equal(dataset.p, expected(BURN + burn, thin))
        assert run.to_xarray(burn, thin, chunks=2).chunksizes["draw"][0] == 2
        assert not run.to_xarray(chunks=None).chunks
    with xr.open_dataset(outdir, engine="posterity", burn=burn, thin=thin, chunks={}) as dataset:
        assert dataset.chunksizes["draw"] == sizes


def indexers(n):
    """What may stand between brackets; but xarray itself breaks on empty slices that go down."""
    numbers = st.integers(-n, n - 1)
    slices = st.slices(n).filter(lambda found: range(n)[found] or (found.step or 1) > 0)
    return numbers | slices | st.lists(numbers)


INDEXERS = {"chain": indexers(NCHAIN), "draw": indexers(8), "p_dim_0": indexers(DIM)}


@settings(max_examples=60)
@given(st.fixed_dictionaries({}, optional=INDEXERS))
def test_any_indexing_is_numpys(outdir, indexers):
    """Numbers, slices in either direction and lists, of chains, draws and components: as on an array in memory."""
    whole = xr.DataArray(expected(thin=3), dims=("chain", "draw", "p_dim_0"))
    with open_run(outdir) as run:
        lazy = run.to_xarray(thin=3, chunks=None).p
        np.testing.assert_array_equal(lazy.isel(indexers), whole.isel(indexers))


def test_names_units_and_the_layout_of_chains(tmp_path):
    """Parameters are coordinates, or variables with label, unit and LaTeX; temperatures and walkers are coordinates."""
    parameters = [Parameter("m1", "Primary mass", "Msun", latex="m_1"), Parameter("m2")]
    options = {
        "parameters": parameters,
        "chains": {"temperature": 2, "walker": 3},
        "attributes": {"seed": 3, "on": None},
    }
    with DefaultBackend(outdir=tmp_path, **options) as backend:
        backend.ingest(epoch_dict(0, 4, nchain=6))
        dataset = backend.to_xarray()
        tree = backend.to_datatree()
    p = numbers(0, 4, nchain=6)
    assert dataset.p_dim_0.values.tolist() == ["m1", "m2"]
    np.testing.assert_array_equal(dataset.p.sel(p_dim_0="m2"), p[:, 1])
    assert dataset.temperature.values.tolist() == [0, 0, 0, 1, 1, 1]
    assert dataset.walker.values.tolist() == [0, 1, 2, 0, 1, 2]
    assert (dataset.attrs["seed"], dataset.attrs["on"]) == (3, "null")
    posterior = tree["posterior"].to_dataset()
    assert list(posterior) == ["m1", "m2"]
    assert "p_dim_0" not in posterior.coords
    np.testing.assert_array_equal(posterior.m1, p[:, 0])
    assert posterior.m1.attrs == {"long_name": "Primary mass", "units": "Msun", "latex": "m_1"}
    assert list(tree["sample_stats"].data_vars) == ["ll"]


def test_which_samples_go_to_which_group(outdir, tmp_path):
    """What is known to be the sampler's goes to `sample_stats` under ArviZ's name, or what one says."""
    with DefaultBackend(outdir=tmp_path) as backend:
        epoch = epoch_dict(0, 4)
        epoch["samples"] |= {"accept_prob": numbers(0, 4, dim=1), "x": numbers(0, 4, dim=1), "y": numbers(0, 4, dim=3)}
        backend.ingest(epoch)
        tree = backend.to_datatree()
        assert list(tree["posterior"].data_vars) == ["p", "x", "y"]
        assert list(tree["sample_stats"].data_vars) == ["ll", "acceptance_rate"]
        assert tree["posterior/x"].dims == ("chain", "draw")
        assert tree["posterior/y"].dims == ("chain", "draw", "y_dim_0")
        tree = backend.to_datatree(stats=["x"])
        assert list(tree["posterior"].data_vars) == ["p", "ll", "accept_prob", "y"]
        assert list(tree["sample_stats"].data_vars) == ["x"]
        with pytest.raises(KeyError, match="'z'"):
            backend.to_datatree(stats=["z"])


def test_a_name_that_something_else_has_too(tmp_path):
    """It gets the name of its samples before it; names stay one for one variable each."""
    options = {"parameters": {"p": ["a", "chain"], "x": ["a"]}}
    with DefaultBackend(outdir=tmp_path, **options) as backend:
        epoch = epoch_dict(0, 4)
        epoch["samples"]["x"] = numbers(0, 4, dim=1)
        backend.ingest(epoch)
        assert list(backend.to_datatree()["posterior"].data_vars) == ["p_a", "p_chain", "x_a"]
        assert list(backend.to_datatree(named=False)["posterior"].data_vars) == ["p", "x"]


def test_names_that_not_every_epoch_has(tmp_path):
    """They are left out, and refused by name when they are asked for."""
    with DefaultBackend(outdir=tmp_path) as backend:
        first, second = run_of([3, 4])
        first["samples"]["x"] = numbers(0, 3, dim=1)
        backend.ingest(first).ingest(second)
        assert list(backend.to_xarray()) == ["p", "ll"]
        with pytest.raises(KeyError, match=r"'x'; all have p, ll"):
            backend.to_xarray(pars=["p", "x"])
        assert list(backend.to_xarray(pars="ll")) == ["ll"]


def test_nothing_left(tmp_path):
    """Before the first epoch, and after all was burned, there are no draws; that is no error."""
    with DefaultBackend(outdir=tmp_path) as backend:
        assert backend.to_xarray().sizes["draw"] == 0
        backend.ingest(epoch_dict(0, 4))
        assert backend.to_datatree(burn=4)["posterior"].sizes["draw"] == 0
        with pytest.raises(ValueError, match="thin"):
            backend.to_xarray(thin=0)


@pytest.mark.parametrize("chunks", [None, "epoch"])
def test_a_tree_is_loaded_or_lazy(outdir, chunks):
    """Without chunks all of it is in memory and no file stays open; with chunks it is Dask's."""
    with open_run(outdir) as run:
        tree = run.to_datatree(thin=2, chunks=chunks)
        assert bool(tree["posterior"].to_dataset().chunks) is (chunks is not None)
        np.testing.assert_array_equal(tree["posterior/p"], expected(thin=2))


# ---- what is read ----------------------------------------------------------------------------------------------------


class Watched:
    """Counts what is read of the files of epochs."""

    def __init__(self, monkeypatch):
        self.nbytes = 0
        self.names = set()
        opened, read, read_rows = Disk.open, Disk.read_at, Disk.read_rows

        def watched_open(disk, name, **options):
            fd = opened(disk, name, **options)
            if name.endswith(".h5"):
                self.names.add(name)
            return fd

        def watched_read(disk, fd, offset, into):
            if str(Path(f"/proc/self/fd/{fd}").readlink()).endswith(".h5"):
                self.nbytes += into.nbytes
            return read(disk, fd, offset, into)

        def watched_rows(disk, fd, offset, stride, rows):
            self.nbytes += sum(row.nbytes for row in rows)
            return read_rows(disk, fd, offset, stride, rows)

        monkeypatch.setattr(Disk, "open", watched_open)
        monkeypatch.setattr(Disk, "read_rows", watched_rows)
        monkeypatch.setattr(Disk, "read_at", watched_read)


def test_nothing_is_read_before_it_is_asked_for_and_then_only_that(tmp_path, monkeypatch):
    """Opening reads no file of epochs; some draws of one parameter read a part of one file."""
    nsamples = 100_000
    with DefaultBackend(outdir=tmp_path, epochs_per_file=1) as backend:
        for i in range(3):
            backend.ingest({"samples": {"p": numbers(i * nsamples, nsamples, nchain=4, dim=5)}})
    watched = Watched(monkeypatch)
    with open_run(tmp_path) as run:
        dataset = run.to_xarray()
        few = dataset.p.isel(draw=slice(nsamples + 10, nsamples + 1010), p_dim_0=3, chain=[0, 2])
        assert not watched.names
        np.testing.assert_array_equal(few, numbers(nsamples + 10, 1000, nchain=4, dim=5)[::2, 3])
        assert watched.names == {"epochs_2.h5"}
        assert watched.nbytes < 10 * few.nbytes
        few = run.to_xarray(chunks=None).p.isel(draw=[-1, 7, 7], p_dim_0=0)
        watched.names.clear()
        assert few.values[0].tolist() == [1000 * (3 * nsamples - 1), 7000, 7000]
        assert watched.names == {"epochs_1.h5", "epochs_3.h5"}


SMALL_MEMORY = """
import resource, sys
import numpy as np, dask, xarray as xr
import dask.array, pandas, xxhash, posterity, posterity._reading.xarray_data

dataset = xr.open_dataset(sys.argv[1], engine="posterity", chunks={})
small = xr.open_dataset(sys.argv[1], engine="posterity", chunks={}).p.isel(draw=slice(0, 10)).mean().compute(scheduler="sync")
pages = int(open("/proc/self/statm").read().split()[5])  # not the addresses that malloc reserves for each thread
limit = pages * resource.getpagesize() + (96 << 20)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
assert dataset.nbytes > 300e6
try:
    dataset.p.values
except MemoryError:
    print("too large")
print(*dataset.p.mean(("chain", "draw")).compute(scheduler="sync").values)
"""


def test_a_run_larger_than_the_memory_that_the_process_may_have(tmp_path):
    """300 MB are averaged by Dask in a process that may take 96 MB, and that can't load them."""
    p = np.empty((8, 5, 50_000))
    p[:] = np.arange(5.0)[:, None]
    with DefaultBackend(outdir=tmp_path, epochs_per_file=4) as backend:
        for _ in range(20):
            backend.ingest({"samples": {"p": p}})
    done = subprocess.run(
        [sys.executable, "-c", SMALL_MEMORY, str(tmp_path)], capture_output=True, text=True, check=False, timeout=50
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["too large", "0.0 1.0 2.0 3.0 4.0"]


# ---- for how long, and elsewhere -------------------------------------------------------------------------------------


def test_a_dataset_outlives_its_snapshot_and_its_backend(tmp_path):
    """It has its own share of what the snapshot keeps: files stay until the dataset has gone, in memory or not."""
    with DefaultBackend(outdir=tmp_path, inmem_epochs=1) as backend:
        for epoch in run_of(LENGTHS):
            backend.ingest(epoch)
        with backend.snapshot() as snapshot:
            dataset = snapshot.to_xarray()
            tree = snapshot.to_datatree(chunks="epoch")
        backend.set_burn(15)
        backend.flush()
        np.testing.assert_array_equal(dataset.p, expected(0))
        backend.reset()
        backend.ingest(epoch_dict(900, 30))
    np.testing.assert_array_equal(tree["posterior/p"], expected(0))
    np.testing.assert_array_equal(dataset.p.isel(draw=20), expected(0)[:, 20])
    del dataset, tree
    with open_run(tmp_path) as run:
        assert run.to_xarray().p[0, 0, 0] == 915_000  # the burn is still owed


def test_a_closed_dataset_says_so(outdir):
    """After `close` nothing is read; what was derived from it isn't either."""
    with open_run(outdir) as run:
        dataset = run.to_xarray()
        part = dataset.p.isel(draw=0)
        dataset.close()
        with pytest.raises(Closed):
            part.load()


def test_pickled_it_is_read_from_the_folder(outdir):
    """A copy in another process opens the run by its path, and reads what was meant."""
    with open_run(outdir) as run:
        dataset = run.to_xarray(thin=2)
        data = pickle.dumps(dataset)
        assert len(data) < 20_000
        np.testing.assert_array_equal(pickle.loads(data).p, expected(thin=2))
        array = pickle.loads(pickle.dumps(run.to_xarray(thin=2, chunks=None))).p
        np.testing.assert_array_equal(array.isel(draw=[3, 1]), expected(thin=2)[:, [3, 1]])


def test_a_run_that_grows_and_is_written_anew_leaves_a_pickled_dataset_as_it_was(tmp_path):
    """More epochs, a burn behind what is read and a file that is cut change nothing of what it shows."""
    with DefaultBackend(outdir=tmp_path, epochs_per_file=3) as backend:
        for epoch in run_of(LENGTHS):
            backend.ingest(epoch)
        backend.flush()
        elsewhere = pickle.loads(pickle.dumps(backend.to_xarray(burn=12)))
        backend.ingest(epoch_dict(NSAMPLES, 50))
        backend.set_burn(11)
        backend.flush(publish=True)
        np.testing.assert_array_equal(elsewhere.p, expected(12))


def test_a_burn_and_a_reset_behind_a_pickled_dataset_expire_it(tmp_path):
    """What it shows is gone: it says so, and gives no other numbers; new ones are another dataset."""
    with DefaultBackend(outdir=tmp_path, epochs_per_file=1) as backend:
        for epoch in run_of(LENGTHS):
            backend.ingest(epoch)
        backend.flush()
        burned, kept, unread = (pickle.dumps(backend.to_xarray(burn)) for burn in (0, 20, 21))
        burned, kept = pickle.loads(burned), pickle.loads(kept)
        backend.set_burn(15)
        backend.flush(publish=True)
        backend.update()
        with pytest.raises(SnapshotExpired):
            burned.p.isel(draw=slice(0, 8)).load()
        np.testing.assert_array_equal(kept.p.isel(draw=slice(3)), expected(20)[:, :3])
        backend.reset()
        for epoch in run_of(LENGTHS, start=100):
            backend.ingest(epoch)
        backend.flush()
        with pytest.raises(SnapshotExpired):
            kept.load()
        with pytest.raises(SnapshotExpired, match="reset or replaced"):
            pickle.loads(unread).load()


def test_what_is_only_in_memory_can_not_be_read_elsewhere(tmp_path):
    """It is refused when it is pickled, with what to do, and when the other process sees less than it should."""
    with DefaultBackend(outdir=tmp_path, inmem_epochs=2) as backend:
        for epoch in run_of(LENGTHS):
            backend.ingest(epoch)
        dataset = backend.to_xarray()
        backend.update()
        with pytest.raises(OnlyInMemory, match=r"epochs \d to 4 .*flush"):
            pickle.dumps(dataset)
        np.testing.assert_array_equal(dataset.p, expected(0))
        backend.flush()
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(dataset)).p, expected(0))


def test_an_epoch_that_is_not_what_it_was_expires_a_pickled_dataset(outdir):
    """The run may have been repaired, and have other epochs under the same numbers."""
    with open_run(outdir) as run:
        snapshot = run.snapshot()
        draws = Draws.of(view_of(snapshot))
        rebuild, (pin, *others) = draws.__reduce__()
        draws.close()
    other = rebuild(msgspec.structs.replace(pin, nsamples=pin.nsamples + 1), *others)
    with pytest.raises(SnapshotExpired, match="aren't those"):
        other.read(["p"], range(1))
    more = rebuild(msgspec.structs.replace(pin, nepochs=pin.nepochs + 1), *others)
    with pytest.raises(OnlyInMemory, match="epochs 5 to 5"):
        more.read(["p"], range(1))
    gone = rebuild(msgspec.structs.replace(pin, folder=pin.folder + "-gone"), *others)
    with pytest.raises(SnapshotExpired, match="is gone"):
        gone.read(["p"], range(1))


def test_two_datasets_of_one_path_never_share_a_chunk(tmp_path):
    """A run that was burned and has grown by as much looks alike from outside; Dask has other names for its chunks."""
    with DefaultBackend(outdir=tmp_path, epochs_per_file=100) as backend:
        for epoch in run_of([5, 5]):
            backend.ingest(epoch)
        backend.flush()
        before = xr.open_dataset(tmp_path, engine="posterity", chunks={})
        kept = backend.snapshot()  # so that nothing is taken away
        backend.set_burn(5)
        backend.ingest(epoch_dict(10, 5))
        backend.flush()
        after = xr.open_dataset(tmp_path, engine="posterity", chunks={})
        assert before.chunksizes == after.chunksizes
        both = xr.concat([before.p.drop_vars("draw"), after.p.drop_vars("draw")], "draw").values
        np.testing.assert_array_equal(both, np.concatenate([expected(0, nsamples=10), expected(5, nsamples=15)], 1))
        for each in (before, after):
            each.close()
        kept.release()


def test_a_file_that_ends_too_early_is_damaged(tmp_path):
    """Found when it is read, and named."""
    written(tmp_path)
    with (tmp_path / "epochs_3.h5").open("r+b") as file:
        file.truncate(200)
    with open_run(tmp_path) as run:
        dataset = run.to_xarray()
        np.testing.assert_array_equal(dataset.p.isel(draw=slice(0, 10)), expected(0)[:, :10])
        with pytest.raises(Damaged, match=r"epochs_3\.h5"):
            dataset.load()


@pytest.mark.timeout(120)
def test_workers_of_a_cluster_read_it_themselves(outdir):
    """A process of Dask's computes from the dataset; what it sends back is the result, not the samples."""
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address="127.0.0.1:0") as cluster,
        distributed.Client(cluster),
    ):
        with open_run(outdir) as run:
            mean = run.to_xarray(thin=2).p.mean(("chain", "draw")).compute()
        with xr.open_dataset(outdir, engine="posterity", chunks={}) as dataset:
            std = dataset.p.std(("chain", "draw")).compute()
    np.testing.assert_allclose(mean, expected(thin=2).mean((0, 1)))
    np.testing.assert_allclose(std, expected().std((0, 1)))


# ---- awaited ---------------------------------------------------------------------------------------------------------


async def test_awaited_faces_give_the_same(tmp_path):
    """The backend, its snapshots and a run that is read: on asyncio and on trio."""
    async with AsyncBackend(outdir=tmp_path) as backend:
        for epoch in run_of(LENGTHS):
            await backend.ingest(epoch)
        trees = [await backend.to_datatree(thin=2), await backend.to_datatree(thin=2, chunks="epoch")]
        dataset = await backend.to_xarray(thin=2)
        async with backend.snapshot() as snapshot:
            trees += [await snapshot.to_datatree(thin=2)]
            other = await snapshot.to_xarray(thin=2)
        await backend.flush()
        async with open_run(tmp_path).asynchronous as run:
            trees += [await run.to_datatree(thin=2)]
    for p in (dataset.p, other.p, *(tree["posterior/p"] for tree in trees)):
        np.testing.assert_array_equal(p, expected(0, 2))


@pytest.mark.parametrize(("missing", "chunks"), [("xarray", "None"), ("dask", "'epoch'")])
def test_without_the_extra_it_is_named(tmp_path, missing, chunks):
    """The error says what to install."""
    written(tmp_path)
    code = f"""
import sys, posterity
from importlib.machinery import PathFinder
class OtherFinder(PathFinder):
    @staticmethod
    def find_spec(name, path=None, target=None):
        return None if name.partition(".")[0] == {missing!r} else PathFinder.find_spec(name, path, target)
sys.meta_path[:] = [OtherFinder if finder is PathFinder else finder for finder in sys.meta_path]
try:
    posterity.open_run({str(tmp_path)!r}).to_xarray(chunks={chunks})
except posterity.MissingExtra as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=50)
    assert f"package {missing}: pip install 'posterity[xarray]'" in done.stdout
