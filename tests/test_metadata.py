"""Metadata: what may be given, what becomes of it when a run goes on, and how it lies in journal and files."""

import json
import socket
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import posterity
from known import epoch_dict, run_of
from posterity import Damaged, DefaultBackend, EpochMismatch, Metadata, Parameter, open_run, read_epoch, repair, verify
from posterity._format.file_reader import Reader
from posterity._ingest.jexplore import described
from posterity._model import metadata
from posterity._model.file_names import JOURNAL
from posterity._model.metadata import Given, begun, completed, continued, decode, encode
from posterity._model.options import parse_options
from posterity._store import journal, records
from posterity._system.disk import Disk

AB = (Parameter("a"), Parameter("b"))


def parsed(**options):
    return parse_options(0, "./", options)


def names(found, name="p"):
    return [parameter.name for parameter in found.parameters[name]]


# ---- what may be given -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given_parameters",
    [
        ["a", "b"],
        ("a", "b"),
        np.array(["a", "b"]),
        [Parameter("a"), "b"],
        iter(["a", Parameter("b")]),
        {"p": ["a", "b"]},
        {"p": AB},
    ],
)
def test_names_are_given_as_a_list_or_by_samples(given_parameters):
    """A list is of "p"; names and `Parameter`s may be mixed."""
    assert parsed(parameters=given_parameters).parameters == {"p": AB}


@pytest.mark.parametrize(
    ("option", "value", "error", "said"),
    [
        ("parameters", "abc", TypeError, "list of names.*'abc'"),
        ("parameters", 3, TypeError, "list of names"),
        ("parameters", {"p": "abc"}, TypeError, "'p': 'abc'"),
        ("parameters", {1: ["a"]}, TypeError, "list of names"),
        ("parameters", ["a", 1], TypeError, r"parameters\['p'\]\[1\] must be a name or a Parameter, got 1"),
        ("parameters", ["a", ("b", "kg")], TypeError, r"\[1\] must be a name"),
        ("parameters", ["a", "b", "a"], ValueError, r"parameters\['p'\] has 'a' twice"),
        ("parameters", {"q": ["a", Parameter("a", unit="m")]}, ValueError, r"parameters\['q'\] has 'a' twice"),
        ("parameters", ["a", ""], ValueError, "needs a name"),
        ("parameters", ["a", "\ud800"], ValueError, "UTF-8"),
        ("chains", [4, 16], TypeError, "axis -> size"),
        ("chains", {"walker": 1.5}, TypeError, "'walker': 1.5"),
        ("chains", {"walker": True}, TypeError, "'walker': True"),
        ("chains", {3: 4}, TypeError, "3: 4"),
        ("chains", {"walker": 0}, ValueError, "'walker': 0"),
        ("chains", {"temperature": 4, "walker": -1}, ValueError, "'walker': -1"),
        ("chains", {"": 4}, ValueError, "has a name"),
        ("attributes", ["a"], TypeError, "name -> value"),
        ("attributes", {1: "a"}, TypeError, "must be text, got 1"),
        ("attributes", {"a": {"b": [1, b"x"]}}, TypeError, r"attributes\['a'\]\['b'\]\[1\] must be text.*got a bytes"),
        ("attributes", {"a": np.zeros(3)}, TypeError, r"attributes\['a'\].*ndarray: use tolist\(\)"),
        ("attributes", {"a": 1j}, TypeError, "got a complex"),
        ("attributes", {"a": np.datetime64("2026-01-01")}, TypeError, "got a date"),
        ("attributes", {"a": np.longdouble(1)}, TypeError, "got a longdouble"),
        ("attributes", {"a": object}, TypeError, "got a type"),
        ("attributes", {"a": {2: 1}}, TypeError, r"names in attributes\['a'\] must be text"),
        ("attributes", {"a": 2**64}, ValueError, "64 bits"),
        ("attributes", {"a": "\udfff"}, ValueError, "UTF-8"),
        ("attributes", {"a": "x" * metadata.MAX_BYTES}, ValueError, "at most"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(tmp_path, option, value, error, said):
    """The error names the option, what was given, and where; the folder isn't touched."""
    with pytest.raises(error, match=said):
        DefaultBackend(outdir=tmp_path / "run", **{option: value})
    assert not (tmp_path / "run").exists()


def test_attributes_that_contain_themselves_are_refused():
    """A list within itself nests too deep."""
    endless = []
    endless.append(endless)
    with pytest.raises(ValueError, match="nests more than"):
        parsed(attributes={"a": endless})


def test_attributes_become_plain():
    """NumPy's scalars are Python's, tuples are lists, and nothing of it is the caller's."""
    mine = {"i": np.int64(3), "f": np.float32(0.5), "t": (1, np.bool_(True)), "s": np.str_("x"), "d": {"n": [None]}}
    kept = parsed(attributes=mine).attributes
    mine["d"]["n"].append(1)
    assert kept == {"i": 3, "f": 0.5, "t": [1, True], "s": "x", "d": {"n": [None]}}
    assert [type(value) for value in kept.values()] == [int, float, list, str, dict]
    assert type(kept["t"][1]) is bool


def test_sizes_may_come_from_numpy():
    """A whole number of NumPy's is a size."""
    chains = parsed(chains={"temperature": np.int32(2), "walker": 3}).chains
    assert chains == {"temperature": 2, "walker": 3}
    assert type(chains["temperature"]) is int


@pytest.mark.parametrize("option", ["parameters", "chains", "attributes"])
def test_none_is_nothing_given(option):
    """Who computes his options may pass None on."""
    assert parsed(**{option: None}) == parsed()


@pytest.mark.parametrize("wrong", [{"name": 1}, {"name": "a", "unit": None}, {"name": "a", "label": b"A"}], ids=str)
def test_what_a_parameter_is_made_of_is_text(wrong):
    """The error names the field and what was given."""
    with pytest.raises(TypeError, match=r"the \w+ of a parameter must be text, got"):
        Parameter(**wrong)


# ---- what follows from it --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameter", "title", "tex"),
    [
        (Parameter("m"), "m", "m"),
        (Parameter("m", "Mass"), "Mass", "Mass"),
        (Parameter("m", unit="kg"), "m [kg]", "m [kg]"),
        (Parameter("m", "Mass", "kg", r"\mathcal{M}"), "Mass [kg]", r"$\mathcal{M}$ [kg]"),
        (Parameter("m", latex="m_1"), "m", "$m_1$"),
    ],
)
def test_what_stands_beside_an_axis(parameter, title, tex):
    """The label, or else the name, with the unit; in LaTeX where that is given."""
    assert (parameter.title, parameter.tex) == (title, tex)


def test_samples_without_names_get_some():
    """One name for each component, that of the samples itself for a single one; names of another number don't count."""
    found = Metadata(parameters={"p": AB})
    assert found.parameters_of("p", 2) == AB
    assert [each.name for each in found.parameters_of("p", 3)] == ["p_0", "p_1", "p_2"]
    assert [each.name for each in found.parameters_of("ll", 1)] == ["ll"]


def test_chains_without_a_layout_are_one_axis():
    """So every reader has axes whose product is the number of chains."""
    assert Metadata().chain_axes(6) == {"chain": 6}
    assert Metadata(chains={"t": 2, "w": 3}).chain_axes(6) == {"t": 2, "w": 3}
    assert Metadata().nchain is None


@pytest.mark.parametrize(
    ("given_options", "said"),
    [
        ({"parameters": ["a", "b", "c"]}, r"names 3 of 'p', and samples\['p'\] has dim 2"),
        ({"parameters": {"ll": ["a", "b"]}}, r"names 2 of 'll', and samples\['ll'\] has dim 1"),
        ({"parameters": {"P": ["a", "b"]}}, "those of 'P', and the samples are p, ll"),
        ({"chains": {"temperature": 2, "walker": 2}}, r"chains=.* makes 4 chains, and samples\['p'\] has 3"),
    ],
)
def test_the_first_epoch_must_fit(tmp_path, given_options, said):
    """It is refused with both numbers and what to do, nothing was handed over, and a run that is there isn't opened so."""
    with DefaultBackend(outdir=tmp_path, **given_options) as backend:
        with pytest.raises(EpochMismatch, match=f"{said}.*; open the backend with what fits"):
            backend.ingest(epoch_dict(0, 5))
        assert backend.status.epochs == 0
    with DefaultBackend(outdir=tmp_path) as backend:
        backend.ingest(epoch_dict(0, 5))
    for _ in range(2):  # the folder was let go
        with pytest.raises(EpochMismatch, match=f"{said}.*; open the backend with what fits"):
            DefaultBackend(outdir=tmp_path, **given_options)


def test_names_of_samples_that_are_gone_do_no_harm(tmp_path):
    """Not every epoch has all samples: a run of which burn left none with a name is opened, and goes on."""
    both = {"samples": {"p": np.zeros((2, 1, 5)), "q": np.zeros((2, 3, 5))}}
    only_p = {"samples": {"p": np.zeros((2, 1, 5))}}
    named = {"parameters": {"p": ["x"], "q": ["a", "b", "c"]}}
    with DefaultBackend(outdir=tmp_path, **named) as backend:
        for epoch in (both, only_p, only_p):
            backend.ingest(epoch)
        backend.set_burn(10)
    (tmp_path / JOURNAL).unlink()
    for options in ({}, named):
        with DefaultBackend(outdir=tmp_path, **options) as backend:
            assert names(backend.metadata, "q") == ["a", "b", "c"]
            backend.ingest(only_p)


# ---- beginning and going on ------------------------------------------------------------------------------------------


def test_a_run_knows_where_it_comes_from():
    """Versions of what is at work, the host, and when: nobody has to ask for it."""
    found = begun(Given())
    assert found.host == socket.gethostname()
    assert found.versions["posterity"] == posterity.__version__
    assert {"python", "numpy", "h5py"} <= found.versions.keys()
    assert "eryn" not in found.versions
    assert 0 <= posterity._model.metadata.time.time() - found.started_at < 60


def test_versions_of_imported_samplers_are_noted(monkeypatch):
    """A package without `__version__` has that of what is installed; one that isn't installed has none."""
    monkeypatch.setitem(sys.modules, "emcee", type(sys)("emcee"))
    monkeypatch.setitem(sys.modules, "jexplore", type(sys)("jexplore"))
    sys.modules["emcee"].__version__ = "3.1.6"

    def version(name):
        if name != "jexplore":
            raise PackageNotFoundError(name)
        return "0.0.3"

    monkeypatch.setattr("importlib.metadata.version", version)
    assert begun(Given()).versions.items() >= {"emcee": "3.1.6", "jexplore": "0.0.3"}.items()


KNOWN = Metadata(
    parameters={"p": (Parameter("a", "A", "m"), Parameter("b"))},
    chains={"temperature": 2, "walker": 3},
    attributes={"x": 1, "y": [2]},
    host="h",
    started_at=5.0,
)


@pytest.mark.parametrize(
    ("given_now", "changed"),
    [
        (Given(), {}),
        (Given(parameters={}), {}),
        (Given(attributes={"y": None, "z": 3}), {"attributes": {"x": 1, "y": None, "z": 3}}),
        (Given(chains={"temperature": 2, "walker": 3}), {}),
        (Given(parameters={"p": AB}), {}),
        (
            Given(parameters={"p": (Parameter("a", "new", latex="\\a"), Parameter("b", unit="s"))}),
            {"parameters": {"p": (Parameter("a", "new", "m", "\\a"), Parameter("b", unit="s"))}},
        ),
        (Given(parameters={"q": AB}), {"parameters": {**KNOWN.parameters, "q": AB}}),
    ],
    ids=str,
)
def test_what_is_given_later_is_added(given_now, changed):
    """Labels, units and attributes may change, names of other samples may come; what isn't given stays."""
    assert continued(KNOWN, given_now) == posterity._model.metadata.msgspec.structs.replace(KNOWN, **changed)


@pytest.mark.parametrize(
    ("given_now", "said"),
    [
        (Given(parameters={"p": (Parameter("b"), Parameter("a"))}), "of 'p' are a, b, and b, a was given.*reset"),
        (Given(parameters={"p": (Parameter("a"),)}), "of 'p' are a, b, and a was given"),
        (Given(chains={"walker": 3, "temperature": 2}), "the run has chains={'temperature': 2, 'walker': 3}"),
        (Given(chains={}), "and {} was given"),
    ],
    ids=str,
)
def test_names_and_layout_stay(given_now, said):
    """What the samples are called, and how chains lie, belongs to the run: the error has both, and says what to do."""
    with pytest.raises(ValueError, match=said):
        continued(KNOWN, given_now)


def test_what_is_given_counts_more_than_what_an_epoch_says():
    """An epoch completes what nobody said."""
    learned = Metadata(
        parameters={"p": (Parameter("x"),), "ll": (Parameter("ll"),)}, chains={"w": 6}, attributes={"x": 9}
    )
    found = completed(KNOWN, learned)
    assert found == posterity._model.metadata.msgspec.structs.replace(
        KNOWN, parameters={**KNOWN.parameters, "ll": (Parameter("ll"),)}
    )
    assert completed(Metadata(), learned) == learned


# ---- as text ---------------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
PARAMETERS = st.lists(
    st.builds(Parameter, TEXT.filter(bool), TEXT, TEXT, TEXT), max_size=4, unique_by=lambda each: each.name
).map(tuple)
METADATA = st.builds(
    Metadata,
    parameters=st.dictionaries(TEXT, PARAMETERS, max_size=3),
    chains=st.dictionaries(TEXT.filter(bool), st.integers(1, 1000), max_size=3),
    attributes=st.dictionaries(TEXT, PLAIN, max_size=4),
    versions=st.dictionaries(TEXT, TEXT, max_size=3),
    host=TEXT,
    started_at=st.floats(0, 1e11),
)


@settings(max_examples=60)
@given(METADATA)
def test_metadata_come_back_from_their_text(found):
    """Whatever may be given comes back equal in value, type and order; also what isn't a number."""
    again = decode(encode(found))
    assert repr(again) == repr(found)
    assert decode(encode(found).encode()) == again or "nan" in repr(found)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        "null",
        '{"more": 1}',
        '{"chains": {"w": 0}}',
        '{"chains": {"w": "x"}}',
        '{"parameters": {"p": [{"name": ""}]}}',
        '{"parameters": {"p": [{"name": "a"}, {"name": "a"}]}}',
        '{"parameters": {"p": [{"name": "a", "colour": "red"}]}}',
        '{"attributes": ' + "[" * 100_000,
        '{"started_at": "soon"}',
        b"\xff\xfe\xff",
    ],
    ids=lambda text: repr(text[:30]),
)
def test_text_that_makes_no_sense_is_damage(text):
    """It is a file's, so it may be anything."""
    with pytest.raises(Damaged, match="metadata make no sense"):
        decode(text)


def test_they_are_shown_in_lines():
    """For people: names with units, the layout, attributes, and where it comes from."""
    shown = str(
        Metadata(
            parameters={"p": (Parameter("m", "Mass", "kg"), *(Parameter(f"c{i}") for i in range(20)))},
            chains={"temperature": 4, "walker": 16},
            attributes={"model": "x"},
            versions={"posterity": "1.0", "python": "3.13.0"},
            host="node17",
            started_at=1.0,
        )
    )
    assert shown.splitlines() == [
        "p: Mass [kg], c0, c1, c2, c3, c4, c5, c6, and 13 more",
        "chains: 4 temperature x 16 walker",
        "model: 'x'",
        "started 1970-01-01 00:00:01 UTC on node17 with posterity 1.0, python 3.13.0",
    ]
    assert str(Metadata()) == ""


# ---- journal and files -----------------------------------------------------------------------------------------------


GIVEN = {
    "parameters": [Parameter("m1", "Mass", "Msun", "m_1"), "χ"],
    "chains": {"walker": 3},
    "attributes": {"note": "β", "n": 3, "nan": float("nan")},
}


def write(outdir, lengths=(4, 3, 5), **options):
    """A run of three epochs, two to a file; returns its metadata."""
    with DefaultBackend(outdir=outdir, epochs_per_file=2, **options) as backend:
        for epoch in run_of(lengths):
            backend.ingest(epoch)
        return backend.metadata


def in_file(path):
    """What somebody sees who has only the file and h5py."""
    with h5py.File(path) as file:
        return json.loads(file.attrs["posterity_metadata"])


def test_a_file_alone_says_what_is_in_it(tmp_path):
    """To h5py it is JSON, an attribute of the file."""
    write(tmp_path, **GIVEN)
    found = in_file(tmp_path / "epochs_1.h5")
    assert found["parameters"]["p"] == [
        {"name": "m1", "label": "Mass", "unit": "Msun", "latex": "m_1"},
        {"name": "χ"},
    ]
    assert found["chains"] == {"walker": 3}
    assert found["attributes"]["note"] == "β"
    assert found["versions"]["posterity"] == posterity.__version__
    assert found["host"] == socket.gethostname()
    assert read_epoch(tmp_path / "epochs_1.h5", 0)["samples"].keys() == {"p", "ll"}


@pytest.mark.parametrize("n", [1, 100, 30_000])
def test_long_metadata_take_several_attributes(tmp_path, n):
    """An attribute has at most 64 KiB; the journal being lost, they are put together again."""
    epoch = {"samples": {"p": np.zeros((2, n, 3))}}
    with DefaultBackend(outdir=tmp_path, parameters=[f"☉{i}" for i in range(n)]) as backend:
        backend.ingest(epoch)
        given_metadata = backend.metadata
    with h5py.File(tmp_path / "epochs_1.h5") as file:
        parts = [name for name in file.attrs if name.startswith("posterity_metadata")]
        assert (len(parts) > 1) is (n == 30_000)
        text = b"".join(file.attrs[f"posterity_metadata_{i}" if i else "posterity_metadata"] for i in range(len(parts)))
        assert json.loads(text)["parameters"]["p"][-1] == {"name": f"☉{n - 1}"}
        assert file["epoch_0/samples/p"].shape == (2, n, 3)
    assert verify(tmp_path).is_good
    (tmp_path / JOURNAL).unlink()
    with DefaultBackend(outdir=tmp_path) as backend:
        assert backend.metadata == given_metadata


@pytest.mark.parametrize("filling", [True, False])
def test_metadata_come_back_without_the_journal(tmp_path, filling):
    """Each file has them: from its first byte on while it is filling up, in its root group when it is sealed."""
    with DefaultBackend(outdir=tmp_path / "run", epochs_per_file=5, **GIVEN) as backend:
        backend.ingest(run_of([4])[0])
        backend.flush(publish=not filling)
        given_metadata = backend.metadata
        copied = subprocess.run(["cp", "-r", tmp_path / "run", tmp_path / "left"], check=True)
        assert copied.returncode == 0
    (tmp_path / "left" / JOURNAL).unlink()
    (tmp_path / "left" / "posterity.lock").unlink()
    with DefaultBackend(outdir=tmp_path / "left") as backend:
        assert repr(backend.metadata) == repr(given_metadata)
    assert verify(tmp_path / "left").is_good


def test_a_file_is_sealed_with_what_is_known_by_then(tmp_path):
    """Names that come while a file is filling up are in it when it is published."""
    outdir = tmp_path / "run"
    write(outdir, [4])
    with DefaultBackend(outdir=outdir, epochs_per_file=2, parameters=["m1", "m2"]) as backend:
        backend.ingest(epoch_dict(4, 3))
    assert [each["name"] for each in in_file(outdir / "epochs_1.h5")["parameters"]["p"]] == ["m1", "m2"]
    (outdir / JOURNAL).unlink()
    with DefaultBackend(outdir=outdir) as backend:
        assert names(backend.metadata) == ["m1", "m2"]


@pytest.mark.parametrize("has_journal", [True, False])
def test_repair_keeps_metadata(tmp_path, has_journal):
    """From what is left of the journal, or from the files."""
    given_metadata = write(tmp_path, **GIVEN)
    path = tmp_path / JOURNAL
    if has_journal:
        data = bytearray(path.read_bytes())
        data[-30] ^= 1
        data += journal.encode_batch([records.Burned(0, 0)], len(data))
        path.write_bytes(data)
    else:
        path.unlink()
    repair(tmp_path)
    with open_run(tmp_path) as run:
        assert repr(run.metadata) == repr(given_metadata)
    assert verify(tmp_path).is_good


def test_metadata_survive_compaction(tmp_path, monkeypatch):
    """A journal that is written anew says the same of the numbers."""
    given_metadata = write(tmp_path, **GIVEN)
    monkeypatch.setattr("posterity._store.store._is_long", lambda _: True)
    before = (tmp_path / JOURNAL).stat().st_ino
    with DefaultBackend(outdir=tmp_path) as backend:
        backend.ingest(epoch_dict(12, 3))
        backend.flush()
        assert (tmp_path / JOURNAL).stat().st_ino != before
    with open_run(tmp_path) as run:
        assert repr(run.metadata) == repr(given_metadata)


@pytest.mark.parametrize("at", [128, 136, 150])
def test_a_damaged_beginning_costs_the_names_only(tmp_path, at):
    """Where the journal is lost too, and the file isn't sealed; the epochs are all there."""
    with DefaultBackend(outdir=tmp_path / "run", epochs_per_file=5, **GIVEN) as backend:
        backend.ingest(run_of([4])[0])
        backend.flush()
        data = bytearray((tmp_path / "run" / ".epochs_1.h5.filling").read_bytes())
    data[at] ^= 1
    (tmp_path / "left").mkdir()
    (tmp_path / "left" / ".epochs_1.h5.filling").write_bytes(data)
    with DefaultBackend(outdir=tmp_path / "left", epochs_per_file=5) as backend:
        assert backend.metadata.parameters == {}
        assert backend.status.epochs == 1


def test_verify_sees_damage_in_the_root_group(tmp_path):
    """Metadata that HDF5 reads are under a checksum."""
    write(tmp_path, **GIVEN)
    path = tmp_path / "epochs_1.h5"
    data = bytearray(path.read_bytes())
    data[data.rindex(b"Msun")] ^= 1
    path.write_bytes(data)
    assert [problem.name for problem in verify(tmp_path).problems] == ["epochs_1.h5"]


def test_a_head_that_promises_too_much_is_no_reason_to_ask_for_memory(tmp_path):
    """How long the metadata are stands in the file, so it may be anything."""
    write(tmp_path, **GIVEN)
    disk = Disk(tmp_path)
    disk.enter()
    with Reader.open(disk, "epochs_1.h5") as reader:
        head = reader.read_head()
        reader.read_head = lambda: head._replace(metadata_size=2**32 - 1)
        reader._read_root = lambda: None
        assert reader.read_metadata() is None
        assert list(reader.walk()) == []
    disk.leave()


def test_new_labels_survive_a_kill(tmp_path):
    """What is given to a run that is there is kept once it is flushed, without any epoch."""
    write(tmp_path, **GIVEN)
    code = f"""
import os
from posterity import DefaultBackend, Parameter
backend = DefaultBackend(outdir={str(tmp_path)!r}, parameters=[Parameter("m1", latex="M"), "χ"], attributes={{"more": 1}})
backend.flush()
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == -9, done.stderr
    with open_run(tmp_path) as run:
        assert run.metadata.parameters["p"][0] == Parameter("m1", "Mass", "Msun", "M")
        assert run.metadata.attributes["more"] == 1


def test_a_reader_sees_new_labels(tmp_path):
    """A run that is followed shows what the journal says by its latest snapshot; older snapshots stay as they were."""
    write(tmp_path, **GIVEN)
    with open_run(tmp_path) as run, run.snapshot() as older:
        with DefaultBackend(outdir=tmp_path, attributes={"note": "new"}) as backend:
            backend.flush()
            with run.snapshot() as newer:
                assert newer.metadata.attributes["note"] == run.metadata.attributes["note"] == "new"
        assert older.metadata.attributes["note"] == "β"
        assert "p: m1, χ; 3 walker" in repr(newer)
        assert "p: m1, χ; 3 walker" in repr(run)


def test_nothing_is_written_if_nothing_is_new(tmp_path):
    """Who opens a run with what it has already leaves its journal as it is."""
    write(tmp_path, **GIVEN)
    before = (tmp_path / JOURNAL).read_bytes()
    with DefaultBackend(outdir=tmp_path, epochs_per_file=2, **GIVEN):
        pass
    assert (tmp_path / JOURNAL).read_bytes() == before


# ---- jexplore's epochs -----------------------------------------------------------------------------------------------


def of_jexplore(**changed):
    """The parts of an epoch of jexplore's that say how its chains lie: 4 walkers at 2 temperatures."""
    sampling = {
        "nchain": np.array(8),
        "dim": np.array(3),
        "class": "x.Y",
        "nwalker": np.array(4),
        "temps": np.array([1.0, 2.0]),
    }
    samples = {name: np.zeros((8, 1, 5)) for name in ("p", "ll", "lp")}
    return {"samples": samples, "sampling": {**sampling, **changed}}


def test_an_epoch_of_jexplore_says_how_its_chains_lie(tmp_path):
    """Without asking: walkers outermost, the temperatures, and what its samples are; what was given counts more."""
    with DefaultBackend(outdir=tmp_path, parameters={"lp": ["prior"]}) as backend:
        backend.ingest(of_jexplore())
        backend.flush()
    with open_run(tmp_path) as run:
        assert run.metadata.chains == {"walker": 4, "temperature": 2}
        assert run.metadata.attributes == {"temperatures": [1.0, 2.0]}
        assert run.metadata.parameters["ll"][0].label == "log-likelihood"
        assert names(run.metadata, "lp") == ["prior"]
        assert "p" not in run.metadata.parameters


def test_a_file_of_jexplore_says_it_too(tmp_path):
    """An epoch that is taken over from a file of its backend."""
    path = Path(__file__).parent / "fixtures" / "jexplore-0.0.3" / "epochs_2.h5"
    with DefaultBackend(outdir=tmp_path) as backend:
        backend.ingest(path)
        assert backend.metadata.chains == {"walker": 2, "temperature": 2}


@pytest.mark.parametrize(
    "changed",
    [
        {"nwalker": np.array(3)},
        {"nwalker": np.array(4.0)},
        {"nwalker": np.array([4])},
        {"temps": np.array(2.0)},
        {"temps": np.array([1, 2])},
        {"class": None},
    ],
    ids=str,
)
def test_what_only_looks_like_it_says_nothing(tmp_path, changed):
    """An epoch of somebody else's with such names is no reason for an error, or for a layout."""
    with DefaultBackend(outdir=tmp_path) as backend:
        backend.ingest(of_jexplore(**changed))
        assert backend.metadata.chains == {}


def test_arrays_that_are_elsewhere_are_not_waited_for():
    """Only what is in memory is looked at: a hand-over never waits for a device."""
    arrays = {"sampling/class": np.array("x"), "sampling/nwalker": object(), "sampling/temps": np.ones(2)}
    assert described(arrays, 8) is None
