"""The street: which modules and names are public, and that what names them in files and pickles finds them for ever."""

import ast
import importlib
import pickle
import pkgutil
import re
import shutil
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

import pytest

import posterity
from posterity import DefaultBackend, Epoch, MissingExtra, State, open_run

FIXTURES = Path(__file__).parent / "fixtures"

NAMES = """
    AsyncBackend AsyncRun AsyncSnapshot BurnLowered Burned Closed Compaction Damaged DefaultBackend Diagnosis
    Diagnostics Epoch EpochInfo EpochMismatch ExportExists Findings ForeignFiles Forked Imported MailboxFull Metadata
    MissingExtra NewerFormat NotStorable NotWritten OnlyInMemory Parameter PosterityError Problem Promise Receipt
    Repairs Run RunExists RunInfo RunLocked Snapshot SnapshotExpired State Status Stop UnknownOption UntrustedClass
    WriteFailed compact export_netcdf export_zarr find_runs import_jexplore open_run read_epoch repair run_epochs
    run_info verify
"""
DOORS = {
    "emcee": "EmceeBackend",
    "epoch": "Epoch",
    "errors": """
        BurnLowered Burned Closed Damaged EpochMismatch ExportExists ForeignFiles Forked MailboxFull MissingExtra
        NewerFormat NotStorable NotWritten OnlyInMemory PosterityError RunExists RunLocked SnapshotExpired
        UnknownOption UntrustedClass WriteFailed
    """,
    "eryn": "ErynBackend",
    "importing": "Imported import_emcee import_eryn import_jexplore",
    "kernels": """
        ChainKernel Kernel NumpyroKernel Tuned get_info get_info_async get_positions get_positions_async run_kernel
        run_kernel_async
    """,
    "plots": "plot save_plot",
    "pulse": "Pulse follow",
    "pytrees": "get_info get_info_async get_positions get_positions_async",
    "summaries": "Row Summary summarize",
}
EXTRAS = {"emcee": "emcee", "eryn": "eryn", "kernels": "jax"}


def test_the_package_offers_these_names():
    """No public name comes or goes unnoticed, and each one is there."""
    assert sorted(posterity.__all__) == sorted(NAMES.split())
    assert all(getattr(posterity, name) is not None for name in NAMES.split())
    assert {name for name in dir(posterity) if name[0] != "_"} == {*NAMES.split(), *DOORS}


@pytest.mark.parametrize("door", DOORS)
def test_each_public_module_has_these_names(door):
    """They are there, or the error says what is to be installed for them."""
    if door in EXTRAS and not find_spec(EXTRAS[door]):
        with pytest.raises(MissingExtra, match="pip install"):
            importlib.import_module(f"posterity.{door}")
        return
    module = importlib.import_module(f"posterity.{door}")
    assert all(getattr(module, name) is not None for name in DOORS[door].split())


def test_a_file_of_an_earlier_version_finds_its_epoch_class(tmp_path):
    """Files name the class as text, `posterity.epoch.Epoch`: it stays there."""
    assert (Epoch.__module__, Epoch.__qualname__) == ("posterity.epoch", "Epoch")
    shutil.copytree(FIXTURES / "version-1", tmp_path / "run")
    with open_run(tmp_path / "run") as run:
        assert type(run.load()) is Epoch
    with DefaultBackend(outdir=tmp_path / "new") as backend:
        backend.ingest(run_epoch())
        assert backend.get()["class"] == "posterity.epoch.Epoch"
        assert type(backend.load()) is Epoch


def run_epoch():
    import numpy as np

    return Epoch({"p": np.zeros((2, 1, 3))})


PICKLES = sorted((FIXTURES / "pickles-0.1.0").glob("*.pickle"))


@pytest.mark.parametrize("path", PICKLES, ids=lambda path: path.stem)
def test_what_an_earlier_version_pickled_is_found(path):
    """A status, a summary of a run, an error: programs keep them, and they name the modules they once came from."""
    if path.stem == "dataset":
        pytest.importorskip("xarray")
    found = pickle.loads(path.read_bytes())
    kind = type(found[0] if isinstance(found, list) else found)
    assert pickle.loads(pickle.dumps(found)) is not None
    if path.stem == "status":
        assert found.state is State.RUNNING
    elif path.stem == "dataset":
        assert found["p"].shape == (4, 50, 2)
    else:
        assert kind is getattr(posterity, kind.__name__)


def test_xarray_finds_its_engine():
    """By the name that users give it; where it is belongs to us."""
    pytest.importorskip("xarray")
    [engine] = entry_points(group="xarray.backends", name="posterity")
    assert engine.load().description.startswith("Runs of posterity")


def test_where_a_backend_was_opened_is_told_by_the_callers_line(tmp_path):
    """By the line of the program, never by one of ours, however deep it lies; a name that begins like ours is theirs."""
    from posterity._writing.service import caller

    def told(name):
        code = compile("where = caller()", Path(posterity.__file__).parents[1] / name, "exec")
        exec(code, found := {"caller": caller})
        return found["where"]

    assert told("posterity/__init__.py").startswith(f"{__file__}:")
    assert told("posterity/deep/er.py").startswith(f"{__file__}:")
    assert told("posterity_mine/x.py").endswith("posterity_mine/x.py:1")


def test_docs_and_examples_import_public_modules_only():
    """What a page shows can be relied on."""
    root = Path(__file__).parents[1]
    found = set()
    pages = [*(root / "docs").rglob("*.md"), root / "README.md"]
    for page in pages:
        for line in page.read_text().splitlines():
            if line.strip().startswith(("from posterity", "import posterity")):
                found.add((page.name, line.split()[1]))
    for example in (root / "docs").rglob("*.py"):
        for node in ast.walk(ast.parse(example.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("posterity"):
                found.add((example.name, node.module))
    assert found
    assert {each for each in found if each[1].partition(".")[2] not in ("", *DOORS)} == set()


ORDER = [
    "_cli",
    "_samplers",
    "_analysis",
    "_admin",
    "_interop",
    "_writing",
    "_reading",
    "_convergence",
    "_store",
    "_ingest",
    "_model",
    "_format",
    "_system",
]
ROOMS = sorted(path.parent for path in Path(posterity.__file__).parent.glob("_*/__init__.py"))


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_each_room_has_a_map_of_its_modules(room):
    """Its docstring, of a few lines, names all that is in it: whoever looks for a thing begins there."""
    text = ast.get_docstring(ast.parse((room / "__init__.py").read_text()))
    assert len(text.splitlines()) <= 9
    inside = {path.stem for path in room.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    named = {name.partition(".")[0] for name in re.findall(r"`([\w.]+)`", text)}
    assert inside - {"__init__"} <= named


def test_there_are_few_rooms_and_all_else_is_public():
    """What has no underscore is a door for users; it is listed here, or it isn't there."""
    found = {module.name for module in pkgutil.iter_modules(posterity.__path__)}
    assert {name for name in found if name[0] != "_"} == set(DOORS)
    assert {name for name in found if name[0] == "_"} == {*(room.name for room in ROOMS), "__main__"}
    assert {room.name for room in ROOMS} == set(ORDER)
    assert len(ROOMS) <= 13


def test_the_docs_name_modules_that_are_there():
    """The architecture page has a row for each room, and each path that a page names exists."""
    root = Path(__file__).parents[1]
    package = root / "src" / "posterity"
    page = (root / "docs" / "explanation" / "architecture.md").read_text()
    assert re.findall(r"^\| `(_\w+)` \|", page, re.MULTILINE) == ORDER
    for text in (path.read_text() for path in [*(root / "docs").rglob("*.md"), root / "README.md"]):
        for path in re.findall(r"`(_\w+/[\w/]+\.py)`", text):
            assert (package / path).is_file(), path


def test_signposts_name_modules_that_are_there():
    """What a module says stands up and down the stream of it is a module, or a name that users know."""
    package = Path(posterity.__file__).parent
    paths = [path for path in package.rglob("*.py") if path.stem != "__init__"]
    known = {path.stem for path in paths} | {f"{path.parent.name}/{path.stem}" for path in paths}
    known |= {*posterity.__all__, *dir(DefaultBackend), "posterity", "ls", "wait", "check"}
    found = set()
    for path in paths:
        signs = (ast.get_docstring(ast.parse(path.read_text())) or "").partition(" the stream:")[2]
        names = {name.partition(".")[0] for name in re.findall(r"`([a-z_]\w*[\w./]*)`", signs)}
        found |= {(str(path.relative_to(package)), name) for name in names - known}
    assert found == set()
