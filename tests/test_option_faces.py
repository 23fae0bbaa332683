"""Whatever takes options has those of the table, `Options`: in its signature, in its docstring, and when it is called."""

import inspect
import re
from pathlib import Path
from typing import Never, get_type_hints

import pytest

from option_faces import FACES
from posterity import AsyncBackend, DefaultBackend, Parameter, UnknownOption, open_run
from posterity._model.options import Options

DEFAULTS = {name: getattr(Options(), name) for name in Options.__struct_fields__}
MADE_PLAIN = {
    "outdir": "text becomes a path",
    "diagnose": "any sequence becomes a tuple",
    "trusted_classes": "any sequence becomes a tuple",
    "parameters": "names become parameters, and a list of them that of p",
    "chains": "any mapping becomes a dict",
    "attributes": "they become what JSON can hold",
}
OTHERS = {  # no option has its default here
    "burn": 7,
    "outfile_fmt": "run_%04d.hdf5",
    "epochs_per_file": 5,
    "inmem_epochs": 2,
    "save_stats": False,
    "compression": "gzip",
    "compression_level": 4,
    "shuffle": True,
    "mode": "x",
    "max_pending_bytes": 10,
    "max_pending_epochs": 3,
    "max_device_bytes": 20,
    "on_full": "raise",
    "retry_after_s": 0.5,
    "retry_at_most_s": 2,
    "warn_free_bytes": 0,
    "exit_timeout_s": 1.5,
    "flush_on_sigterm": True,
    "reader_threads": 2,
    "diagnose": ("p", "ll"),
    "trusted_classes": ("a.B",),
    "parameters": {"p": (Parameter("m", unit="kg"),)},
    "chains": {"temperature": 2, "walker": 3},
    "attributes": {"note": "x", "nested": [1, {"a": None}]},
}

each_face = pytest.mark.parametrize("face", FACES, ids=str)


def parameters_of(face):
    return inspect.signature(face.find()).parameters


def options_of(face):
    return {name: each for name, each in parameters_of(face).items() if name in DEFAULTS and name not in face.lacks}


def called(face, **given):
    """Call it with nothing but what must be given, none of which exists, and `given`."""
    needed = [name for name, parameter in parameters_of(face).items() if parameter.default is parameter.empty]
    return face.find()(*["nowhere" for name in needed if name != "unknown"], **given)


def documented(text):
    """The names that stand before a colon in the part of a docstring about what may be given, in their order."""
    part = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", text, re.DOTALL | re.MULTILINE)
    lines = re.findall(r"^    (\w[\w, ]*):", part[1], re.MULTILINE) if part else []
    return [name for names in lines for name in names.split(", ")]


@each_face
def test_a_face_takes_the_options_of_the_table(face):
    """All but those that are listed with the reason; by name, in the table's order; and nothing that isn't known."""
    parameters = parameters_of(face)
    taken = [name for name in parameters if name in DEFAULTS and name not in face.lacks]
    by_name = [name for name in taken if name not in face.by_place]
    assert {*taken, *face.lacks} == DEFAULTS.keys()
    assert by_name == [name for name in DEFAULTS if name in by_name]
    assert by_name == [name for name in taken if parameters[name].kind is inspect.Parameter.KEYWORD_ONLY]
    unknown = parameters["unknown"]
    assert (unknown.kind, unknown.annotation) == (inspect.Parameter.VAR_KEYWORD, Never)


@each_face
def test_defaults_are_those_of_the_table(face):
    """What isn't given means the same everywhere, but for what is listed with the reason."""
    found = {name: parameter.default for name, parameter in options_of(face).items()}
    if isinstance(found.get("outdir"), str):
        found["outdir"] = Path(found["outdir"])
    assert {name for name, default in found.items() if default != DEFAULTS[name]} == face.differs.keys()


@each_face
def test_types_are_those_of_the_table(face):
    """But for what is made plain: that has one wider type everywhere."""
    ours = inspect.signature(DefaultBackend).parameters
    kept_as = get_type_hints(Options)
    taken_as = {name: parameter.annotation for name, parameter in options_of(face).items()}
    assert taken_as == {name: ours[name].annotation for name in taken_as}
    assert {name for name, kind in taken_as.items() if kind != kept_as[name]} == taken_as.keys() & MADE_PLAIN.keys()


@each_face
def test_every_parameter_is_documented(face):
    """In the docstring, or, if it is an option, in that of `DefaultBackend`, to which the docstring leads."""
    text = inspect.getdoc(face.find())
    left = parameters_of(face).keys() - {"unknown", *documented(text)}
    if face.name == "DefaultBackend":
        assert not left
        assert [name for name in documented(text) if name in DEFAULTS] == [*DEFAULTS], "another order than the table's"
    else:
        assert "`DefaultBackend`" in text
        assert left <= options_of(face).keys()


@each_face
@pytest.mark.parametrize(("given", "meant"), [("epoch_per_file", "epochs_per_file"), ("savestats", "save_stats")])
def test_an_option_that_is_misspelt_is_refused_at_once(face, given, meant, tmp_path, monkeypatch):
    """Before anything is looked at or made; the nearest one is named."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownOption, match=f"'{given}'.*did you mean '{meant}'"):
        called(face, **{given: 1})
    assert not [*tmp_path.iterdir()]


@each_face
def test_an_option_that_is_like_none_gets_the_list(face, tmp_path, monkeypatch):
    """Of the parameters that there are."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownOption, match=r"no option 'unknown'; the options are .*epochs_per_file.*attributes\.$"):
        called(face, unknown=1)


def test_every_option_has_another_value_here():
    """Else the next tests would overlook one."""
    assert OTHERS.keys() == DEFAULTS.keys() - {"outdir"}
    assert not [name for name, value in OTHERS.items() if value == DEFAULTS[name]]


def test_what_is_given_to_the_blocking_face_arrives(tmp_path):
    """Each option has its own value."""
    with DefaultBackend(outdir=tmp_path, **OTHERS) as backend:
        found = backend._service.options
    assert {name: getattr(found, name) for name in OTHERS} == OTHERS
    assert found.outdir == tmp_path


def test_what_is_given_to_the_awaited_face_arrives(tmp_path):
    """Each option has its own value."""
    found = AsyncBackend(outdir=tmp_path, **OTHERS)._options
    assert {name: getattr(found, name) for name in OTHERS} == OTHERS
    assert found.outdir == tmp_path


def test_open_run_names_the_nearest_parameter(tmp_path):
    """It has no options but its own."""
    with pytest.raises(UnknownOption, match=r"'trusted_class'.*did you mean 'trusted_classes'"):
        open_run(tmp_path, trusted_class=["a.B"])
    with pytest.raises(UnknownOption, match="'mode'; the options are outdir, trusted_classes, wait_s"):
        open_run(tmp_path, mode="r")
