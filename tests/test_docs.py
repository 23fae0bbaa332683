"""The documentation: its Python runs, and its links lead somewhere."""

import re
from pathlib import Path

import pytest
from sybil import Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^[^\S\n]*(?:```|~~~)[^\S\n]*py", re.MULTILINE | re.IGNORECASE)
NOT_RUN = re.compile(r"<!-- not run: \S[^\n]* -->\n\Z")
LINK = re.compile(r"\]\((?!https?://)([^)#\s]+)")

each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


@each_document
def test_python_runs(path, tmp_path, monkeypatch):
    """The Python blocks of a document run in their order, in an empty folder; one that can't says why in a comment."""
    monkeypatch.chdir(tmp_path)
    document = Sybil([CodeBlockParser("python", PythonEvaluator())]).parse(path)
    handled = []
    for example in document.examples():
        handled.append(document.text.count("\n", 0, example.start) + 1)
        if not NOT_RUN.search(document.text[: example.start]):
            example.evaluate()
    written = [document.text.count("\n", 0, fence.start()) + 1 for fence in FENCE.finditer(document.text)]
    assert handled == written, "lines of the Python blocks that were run or excused, and of all that there are"


@each_document
def test_links_lead_to_files(path):
    """Each link to another document has a file at its end."""
    dead = [link for link in LINK.findall(path.read_text("utf-8")) if not (path.parent / link).exists()]
    assert not dead
