"""Type checkers on users' code, as strict as they can be: mypy, and basedpyright in pyright's strict mode."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from test_docs import ROOT, parsed

HERE = Path(__file__).parent
FAILS = HERE / "fails.py"
PASSES = sorted((HERE / "passes").glob("*.py"))
PAGES = [  # of which all Python is typed, but for what imports a package without types
    "README.md",
    "docs/explanation/threads-forks-signals.md",
    "docs/how-to/check-and-repair.md",
    "docs/how-to/compress-a-run.md",
]
UNTYPED = re.compile(r"^(?:import|from) (?:emcee|h5py)", re.MULTILINE)


def python_of(page, folder):
    """The Python of a page as a file of it, each line where it is in the page."""
    document = parsed(ROOT / page)
    lines = [""] * document.text.count("\n")
    for example in document.examples():
        code = example.parsed.splitlines()
        start = document.text.count("\n", 0, document.text.index(code[0], example.start))
        if not UNTYPED.search(example.parsed):
            lines[start : start + len(code)] = code
    path = folder / re.sub(r"\W", "_", page.removesuffix(".md")).lower()
    return path.with_suffix(".py"), "\n".join(lines) + "\n"


@pytest.fixture
def files(tmp_path):
    """What is checked."""
    pages = [python_of(page, tmp_path) for page in PAGES]
    for path, text in pages:
        path.write_text(text)
    return [*PASSES, FAILS, *(path for path, _ in pages)]


def told(command, folder):
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=170)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


def mypys(files, folder, cache):
    """The errors of mypy: file, line, code, and what it says."""
    options = ["--strict", "--config-file=", f"--cache-dir={cache}", "--show-absolute-path", "--no-error-summary"]
    output = told([sys.executable, "-m", "mypy", *options, *map(str, files)], folder)
    found = re.findall(r"^(.*?):(\d+): error: (.*)  \[([\w-]+)\]$", output, re.MULTILINE)
    assert len(found) == output.count(": error: "), output
    return [(Path(file), int(line), code, text) for file, line, text, code in found]


def pyrights(files, folder, cache):
    """The errors of basedpyright, and its warnings: file, line, code, and what it says."""
    (folder / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict"}')
    options = ["--outputjson", "--pythonpath", sys.executable]
    output = json.loads(told([sys.executable, "-m", "basedpyright", *options, *map(str, files)], folder))
    assert output["summary"]["filesAnalyzed"] == len(files)
    return [
        (Path(found["file"]), found["range"]["start"]["line"] + 1, found["rule"], found["message"])
        for found in output["generalDiagnostics"]
    ]


def named():
    """The errors that each line may have: file and line -> codes."""
    lines = enumerate(FAILS.read_text().splitlines(), 1)
    return {(FAILS, n): text.partition("  # error: ")[2].split(", ") for n, text in lines if "  # error: " in text}


@pytest.mark.timeout(180)  # mypy reads NumPy's types once, and remembers them
@pytest.mark.parametrize("errors", [mypys, pyrights])
def test_users_code_has_the_errors_that_it_names_and_no_others(errors, files, tmp_path, pytestconfig):
    """What is right has none: files as users write them, and our pages. What is wrong is found in its line."""
    found = errors(files, tmp_path, pytestconfig.cache.mkdir("mypy"))
    expected = named()
    assert len(expected) > 20
    assert not [error for error in found if error[2] not in expected.get(error[:2], ())]
    assert not expected.keys() - {error[:2] for error in found}, "these were overlooked"
