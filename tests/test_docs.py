"""The documentation: its Python runs, and its links lead somewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from sybil import Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^[^\S\n]*(?:```|~~~)[^\S\n]*py", re.MULTILINE | re.IGNORECASE)
NOT_RUN = re.compile(r"<!-- not run: \S[^\n]* -->\n\Z")
WITH_PYTHON = [path for path in DOCUMENTS if FENCE.search(path.read_text("utf-8"))]
LINK = re.compile(r"\]\((?!https?://)([^)#\s]+)")

each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def parsed(path):
    return Sybil([CodeBlockParser("python", PythonEvaluator())]).parse(path)


def run(path):
    """Run the Python blocks of a document in their order, but for those that say why they can't be."""
    document = parsed(path)
    for example in document.examples():
        if not NOT_RUN.search(document.text[: example.start]):
            example.evaluate()


@each_document
def test_python_is_found(path):
    """Each fence that says Python is one that the next test runs or that says why it can't be run."""
    document = parsed(path)
    handled = [document.text.count("\n", 0, example.start) + 1 for example in document.examples()]
    written = [document.text.count("\n", 0, fence.start()) + 1 for fence in FENCE.finditer(document.text)]
    assert handled == written, "lines of the Python blocks that are found, and of all that there are"


@pytest.mark.timeout(180)  # the first import of JAX and of what it compiles
@pytest.mark.parametrize("path", WITH_PYTHON, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_runs(path, tmp_path):
    """The Python blocks of a document run in their order, in an empty folder, in a process of their own."""
    done = subprocess.run(
        [sys.executable, "-W", "error", __file__, str(path)],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=170,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@each_document
def test_links_lead_to_files(path):
    """Each link to another document has a file at its end."""
    dead = [link for link in LINK.findall(path.read_text("utf-8")) if not (path.parent / link).exists()]
    assert not dead


if __name__ == "__main__":
    run(Path(sys.argv[1]))
