"""Jedi, which completes in IPython, Jupyter and many editors, offers the options while a call is written."""

import jedi
import pytest

from option_faces import FACES
from posterity._model.options import Options

each_face = pytest.mark.parametrize("face", FACES, ids=str)


@pytest.fixture(autouse=True)
def its_cache(monkeypatch, pytestconfig):
    """Not in the home of whoever tests."""
    monkeypatch.setattr(jedi.settings, "cache_directory", str(pytestconfig.cache.mkdir("jedi")))


def offered(completions):
    return {completion.name for completion in completions if completion.name.endswith("=")}


@each_face
def test_an_editor_offers_the_options(face):
    """It reads our source, and runs none of it."""
    face.find()
    code = f"from {face.module} import {face.name}\n{face.name}("
    script = jedi.Script(code, environment=jedi.InterpreterEnvironment())
    options = {f"{name}=" for name in Options.__struct_fields__ if name not in face.lacks}
    assert offered(script.complete()) >= options
    begun = jedi.Script(code + "epo", environment=jedi.InterpreterEnvironment())
    assert offered(begun.complete()) == {"epochs_per_file="}


@each_face
def test_a_notebook_offers_the_options(face):
    """It knows the objects that are there."""
    interpreter = jedi.Interpreter(f"{face.name}(epo", [{face.name: face.find()}])
    assert offered(interpreter.complete()) == {"epochs_per_file="}
