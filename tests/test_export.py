"""Exports to netCDF4 and Zarr v3: read again by xarray, streamed, whole or not at all."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from known import NCHAIN, epoch_dict, numbers, run_of
from posterity import (
    Damaged,
    DefaultBackend,
    ExportExists,
    NotStorable,
    Parameter,
    export_netcdf,
    export_zarr,
    open_run,
)
from posterity._interop import netcdf_file

LENGTHS = [7, 3, 10, 1, 6]
NSAMPLES = sum(LENGTHS)

NETCDF = (export_netcdf, {"engine": "h5netcdf"}, "run.nc")
ZARR = (export_zarr, {"engine": "zarr", "consolidated": False}, "run.zarr")
formats = pytest.mark.parametrize(("export", "opened", "name"), [NETCDF, ZARR], ids=["netcdf", "zarr"])


@pytest.fixture
def run(tmp_path):
    """A run of five epochs with names, burned into the first."""
    options = {"parameters": [Parameter("m1", "Primary mass", "Msun"), Parameter("m2")], "chains": {"walker": NCHAIN}}
    with DefaultBackend(outdir=tmp_path / "run", burn=5, **options) as backend:
        for epoch in run_of(LENGTHS):
            epoch["samples"]["diverging"] = epoch["samples"]["ll"] < -9000
            backend.ingest(epoch)
    with open_run(tmp_path / "run") as run:
        yield run


@formats
@pytest.mark.parametrize("compression", [None, 1])
@pytest.mark.parametrize(("burn", "thin", "named"), [(0, 1, True), (3, 4, False)])
def test_what_is_written_is_the_tree(run, tmp_path, export, opened, name, compression, burn, thin, named):
    """xarray opens it and finds what `to_datatree` gives: numbers, types, coordinates, units."""
    export(run, tmp_path / name, burn=burn, thin=thin, named=named, compression=compression)
    expected = run.to_datatree(burn, thin, named=named)
    with xr.open_datatree(tmp_path / name, **opened) as tree:
        for group in ("posterior", "sample_stats"):
            xr.testing.assert_identical(tree[group].to_dataset().load(), expected[group].to_dataset())
            for variable in expected[group].data_vars:
                assert tree[group][variable].dtype == expected[group][variable].dtype
    assert [path.name for path in tmp_path.iterdir() if path.name != "run"] == [name]


@formats
@pytest.mark.parametrize("compression", [None, 1])
def test_epochs_of_any_size_are_cut_into_pieces(run, tmp_path, monkeypatch, export, opened, name, compression):
    """Small epochs are read together, large ones are written in pieces, and chunks need not end where they do."""
    for read, written, chunk in [(1, 1, 100), (1000, 300, 100), (500, 1, 150), (1 << 20, 1 << 20, 1)]:
        monkeypatch.setattr("posterity._interop.export._READ_BYTES", read)
        monkeypatch.setattr("posterity._interop.export._WRITTEN_BYTES", written)
        monkeypatch.setattr("posterity._interop.netcdf_file.NetcdfFile.chunk_bytes", chunk)
        monkeypatch.setattr("posterity._interop.zarr_store.ZarrFolder.chunk_bytes", chunk)
        export(run, tmp_path / name, named=False, overwrite=True, compression=compression)
        with xr.open_datatree(tmp_path / name, **opened) as tree:
            np.testing.assert_array_equal(tree["posterior/p"], numbers(0, NSAMPLES)[:, :, 5:].transpose(0, 2, 1))
            np.testing.assert_array_equal(tree["posterior/draw"], np.arange(5, NSAMPLES))


@formats
def test_backends_and_snapshots_are_exported_too(tmp_path, export, opened, name):
    """What isn't on disk yet is in it as well; a snapshot stays the caller's."""
    with DefaultBackend(outdir=tmp_path / "run", inmem_epochs=9) as backend, backend.snapshot() as empty:
        backend.ingest(epoch_dict(0, 4))
        with backend.snapshot() as snapshot:
            export(snapshot, tmp_path / name, pars=["p"])
            assert snapshot.get_samples() is not None
        export(backend, tmp_path / name, pars=["p"], overwrite=True)
        with xr.open_datatree(tmp_path / name, **opened) as tree:
            np.testing.assert_array_equal(tree["posterior/p"], numbers(0, 4).transpose(0, 2, 1))
        export(empty, tmp_path / name, overwrite=True)
        with xr.open_datatree(tmp_path / name, **opened) as tree:
            assert tree["posterior"].sizes["draw"] == 0


@formats
def test_progress_is_told_in_bytes(run, tmp_path, monkeypatch, export, opened, name):
    """It grows, and ends with all of them."""
    monkeypatch.setattr("posterity._interop.export._READ_BYTES", 1)
    monkeypatch.setattr("posterity._interop.export._WRITTEN_BYTES", 1)
    monkeypatch.setattr("posterity._interop.netcdf_file.NetcdfFile.chunk_bytes", 300)
    monkeypatch.setattr("posterity._interop.zarr_store.ZarrFolder.chunk_bytes", 300)
    told = []
    export(run, tmp_path / name, pars=["p"], progress=lambda done, total: told.append((done, total)))
    nbytes = NCHAIN * 2 * 8 * (NSAMPLES - 5)
    assert len(told) > 1
    assert told == sorted(told)
    assert {total for _, total in told} == {nbytes}
    assert told[-1][0] == nbytes


@formats
def test_what_is_there_is_not_replaced_unasked(run, tmp_path, export, opened, name):
    """Not without `overwrite`, and something else not even then."""
    target = tmp_path / name
    export(run, target)
    with pytest.raises(ExportExists, match="overwrite=True"):
        export(run, target)
    export(run, target, pars=["p"], overwrite=True)
    with xr.open_datatree(target, **opened) as tree:
        assert "sample_stats" not in tree.children
    other = tmp_path / "other"
    other.mkdir()
    (other / "precious").write_text("mine")
    with pytest.raises(ExportExists):
        export(run, other, overwrite=True)
    assert (other / "precious").read_text() == "mine"


@formats
def test_an_export_that_fails_leaves_nothing(run, tmp_path, export, opened, name):
    """A damaged epoch is found by its checksum; what was there stays, and no part of the new one is left."""
    export(run, tmp_path / name, pars=["ll"])
    file = tmp_path / "run" / "epochs_4.h5"
    data = bytearray(file.read_bytes())
    at = data.find(numbers(20, 1).tobytes()[:8])
    data[at] ^= 1
    file.write_bytes(data)
    with pytest.raises(Damaged, match=r"epochs_4\.h5"):
        export(run, tmp_path / name, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", name]
    with xr.open_datatree(tmp_path / name, **opened) as tree:
        assert list(tree["sample_stats"].data_vars) == ["ll"]


@formats
def test_what_is_no_number_is_refused_by_name(tmp_path, export, opened, name):
    """And so is a compression that there isn't."""
    with DefaultBackend(outdir=tmp_path / "run") as backend:
        epoch = epoch_dict(0, 4)
        epoch["samples"]["word"] = np.full((NCHAIN, 1, 4), b"abc")
        backend.ingest(epoch)
        with pytest.raises(NotStorable, match="'word'"):
            export(backend, tmp_path / name)
        with pytest.raises(ValueError, match="level"):
            export(backend, tmp_path / name, pars=["p"], compression=50)
        assert {path.name for path in tmp_path.iterdir()} <= {"run"}


def test_a_full_disk_is_noticed_before_anything_is_written(run, tmp_path, monkeypatch):
    """Room for all is reserved first; without it there is an `OSError`, and no file."""

    def full(fd, offset, nbytes):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space"):
        export_netcdf(run, tmp_path / "run.nc")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("compression", [None, 1])
@pytest.mark.parametrize("most", [0, 100, 3000, 9000])
def test_a_disk_that_fills_up_does_not_end_the_process(run, tmp_path, monkeypatch, compression, most):
    """libhdf5 sees no error, wherever it comes; we raise it, and nothing is left of the file."""
    written = os.pwrite

    def full(fd, data, offset):
        if offset + len(data) > most:
            raise OSError(errno.ENOSPC, "No space left on device")
        return written(fd, data, offset)

    monkeypatch.setattr(netcdf_file.os, "pwrite", full)
    with pytest.raises(OSError, match="No space"):
        export_netcdf(run, tmp_path / "run.nc", compression=compression)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


SMALL_MEMORY = """
import resource, sys
import posterity, posterity._interop.netcdf_file, posterity._interop.zarr_store
from posterity import export_netcdf, export_zarr, open_run

run = open_run(sys.argv[1])
exports = [(export_netcdf, "nc", None), (export_netcdf, "packed.nc", 1), (export_zarr, "zarr", None)]
for export, name, _ in exports:
    export(run, f"{sys.argv[2]}/small.{name}", burn=run.snapshot().nsamples - 10)
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + (80 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    run.get_samples()
except MemoryError:
    print("too large")
for export, name, compression in exports:
    export(run, f"{sys.argv[2]}/run.{name}", compression=compression)
"""


def test_a_run_is_exported_with_little_memory(tmp_path):
    """160 MB in epochs of 8 MB, by a process that may take 80 MB more, and can't load them."""
    p = np.zeros((8, 5, 25_000))
    with DefaultBackend(outdir=tmp_path / "run", epochs_per_file=4) as backend:
        for i in range(20):
            p[:, 0] = i
            backend.ingest({"samples": {"p": p}})
    done = subprocess.run(
        [sys.executable, "-c", SMALL_MEMORY, str(tmp_path / "run"), str(tmp_path)],
        capture_output=True, text=True, check=False, timeout=55,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "too large\n"
    expected = np.repeat(np.arange(20.0), 25_000)
    for name, opened in [("run.nc", NETCDF[1]), ("run.packed.nc", NETCDF[1]), ("run.zarr", ZARR[1])]:
        with xr.open_datatree(tmp_path / name, **opened) as tree:
            np.testing.assert_array_equal(tree["posterior/p"][7, :, 0], expected)


@pytest.mark.parametrize(("export", "module"), [("export_netcdf", "h5netcdf"), ("export_zarr", "zarr")])
def test_without_the_extra_it_is_named(run, tmp_path, export, module):
    """The error says what to install, and nothing was made."""
    code = f"""
import sys, posterity
sys.modules[{module!r}] = None
try:
    posterity.{export}(posterity.open_run({str(tmp_path / "run")!r}), "out")
except posterity.MissingExtra as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert f"pip install 'posterity[{export.removeprefix('export_')}]'" in done.stdout
    assert not Path(tmp_path / "out").exists()
