"""`export`, `import`: what comes out is what went in."""

import emcee
import numpy as np
import pytest
import xarray
from runs import draws, folder_of_jexplores, write_run

from posterity import DefaultBackend, Imported, import_jexplore, open_run, read_epoch


@pytest.mark.parametrize("name", ["out.nc", "out.zarr"])
def test_an_export_is_a_tree_that_xarray_opens(cli, tmp_path, name):
    """With burn and thin applied."""
    write_run(tmp_path / "run", burn=50, parameters=["mass", "spin"])
    target = tmp_path / name
    assert cli("export", tmp_path / "run", target, "--burn", 10, "--thin", 2) == f"wrote {target}\n"
    options = {"engine": "zarr", "consolidated": False} if name.endswith(".zarr") else {"engine": "h5netcdf"}
    with xarray.open_datatree(target, **options) as tree:
        mass = tree["posterior/mass"].to_numpy()
    np.testing.assert_array_equal(mass, draws(300)[:, 0, 60::2])
    cli("export", tmp_path / "run", target, code=7)


@pytest.mark.parametrize(("words", "told"), [(["out.hdf"], ".zarr"), (["out.nc", "--pars", "q"], "q")])
def test_an_export_that_makes_no_sense_ends_with_2(cli, run, tmp_path, words, told):
    """And leaves nothing behind."""
    cli("export", run, tmp_path / words[0], *words[1:], code=2)
    assert told in cli.errors
    assert not (tmp_path / words[0]).exists()


def test_a_folder_of_jexplores_becomes_a_run(cli, tmp_path):
    """Epoch by epoch, in the order of their indices, which isn't that of their names."""
    source = folder_of_jexplores(tmp_path / "old", range(11))
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    found = cli.json(Imported, "import", source, tmp_path / "new", "--epochs-per-file", 4)
    assert (found.epochs, found.samples, found.first_index) == (11, 55, 0)
    with open_run(tmp_path / "new") as run:
        for index in range(11):
            expected = read_epoch(source / f"epochs_{index + 1}.h5", index)
            got = run.get(index)
            np.testing.assert_array_equal(got["samples"]["p"], expected["samples"]["p"])
            np.testing.assert_array_equal(got["covs"], expected["covs"])
            assert got["class"] == expected["class"]
        assert run.metadata.attributes["imported_from"] == "jexplore"
    assert len([*(tmp_path / "new").glob("epochs_*.h5")]) == 3
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before
    assert cli("import", source, tmp_path / "again").endswith(f"again: 11 epochs, 55 samples, from {source}\n")


def test_what_jexplore_burned_is_told(tmp_path):
    """The index that the first epoch had is kept, and progress is of all epochs."""
    source = folder_of_jexplores(tmp_path / "old", [3, 4])
    seen = []
    found = import_jexplore(source, tmp_path / "new", progress=lambda done, total: seen.append((done, total)))
    assert found.first_index == 3
    assert seen == [(1, 2), (2, 2)]
    with open_run(tmp_path / "new") as run:
        assert run.metadata.attributes["first_epoch"] == 3
        assert run.get_samples()["p"].shape[2] == 10


def test_a_hole_between_epochs_is_refused(cli, tmp_path):
    """Nothing is made: a run has no holes."""
    cli("import", folder_of_jexplores(tmp_path / "old", [0, 1, 4]), tmp_path / "new", code=5)
    assert "2, 3" in cli.errors
    assert not (tmp_path / "new").exists()


def test_a_run_that_is_there_stays(cli, run, tmp_path):
    """Importing onto it ends with 7."""
    before = (run / "posterity.journal").read_bytes()
    cli("import", folder_of_jexplores(tmp_path / "old", [0]), run, code=7)
    assert (run / "posterity.journal").read_bytes() == before


def test_what_nobody_knows_is_refused(cli, tmp_path):
    """An empty folder, another file, nothing at all."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("text")
    cli("import", tmp_path / "empty", tmp_path / "new", code=3)
    cli("import", tmp_path / "text", tmp_path / "new", code=2)
    cli("import", tmp_path / "nothing", tmp_path / "new", code=3)


def test_a_file_of_emcees_becomes_a_run(cli, tmp_path):
    """What it is, is seen from the file."""
    backend = emcee.backends.HDFBackend(tmp_path / "chain.h5")
    sampler = emcee.EnsembleSampler(8, 2, lambda x: -0.5 * np.sum(x**2), backend=backend)
    sampler.run_mcmc(np.random.default_rng(1).normal(size=(8, 2)), 30)
    found = cli.json(Imported, "import", tmp_path / "chain.h5", tmp_path / "new")
    assert found.samples == 30
    assert ": 1 epoch, 30 samples, from " in str(found)
    with open_run(tmp_path / "new") as run:
        np.testing.assert_array_equal(run.get_samples()["p"], backend.get_chain().transpose(1, 2, 0))


def test_options_of_the_new_run_are_taken(tmp_path):
    """Those of a backend."""
    source = folder_of_jexplores(tmp_path / "old", [0])
    import_jexplore(source, tmp_path / "new", attributes={"note": "old"})
    with DefaultBackend(outdir=tmp_path / "new") as backend:
        assert backend.metadata.attributes["note"] == "old"
