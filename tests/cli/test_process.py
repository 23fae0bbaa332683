"""The real script, in a process of its own: what a shell sees of it."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import emcee
import numpy as np
import pytest
from runs import folder_of_jexplores, write_run

import posterity
from posterity._cli.app import app
from posterity._cli.exit_codes import Exit

SCRIPT = Path(sys.executable).parent / "posterity"
COMMANDS = ["ls", "info", "epochs", "tail", "summary", "plot", "export", "import", "verify", "repair", "compact"]
ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "how-to" / "use-the-command-line.md"


def shell(*words, **options):
    """Run `posterity` to its end."""
    return subprocess.run(
        [SCRIPT, *words], capture_output=True, text=True, check=False, timeout=60, **options
    )  # fmt: skip


def test_the_help_tells_of_each_command():
    """All commands, each with a line; where to begin; all exit codes."""
    told = shell("--help")
    assert told.returncode == 0
    assert told.stderr == ""
    for command in COMMANDS:
        assert re.search(rf"^\W*{command} +[A-Z]", told.stdout, re.MULTILINE), command
    for code in Exit:
        if code != Exit.PIPE:
            assert re.search(rf"\b{code.value}\b", told.stdout), code
    assert "Where to begin" in told.stdout
    assert "\x1b" not in told.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(command, capsys):
    """Each of its options is explained, and no line is wider than a terminal."""
    app([command, "--help"], result_action="return_value", exit_on_error=False)
    told = capsys.readouterr().out
    assert "Usage: posterity" in told
    assert not re.search(r"--[\w-]+(?: [A-Z]+\S*)? *│$", told, re.MULTILINE), "an option without a word"


def test_the_help_waits_for_no_numpy():
    """NumPy, h5py and arviz-stats are imported by the commands that need them."""
    code = (
        "import sys\nfrom posterity._cli import main\nassert main(['--help']) == 0\n"
        "slow = {'numpy', 'h5py', 'anyio', 'matplotlib', 'arviz_stats', 'xarray'} & set(sys.modules)\n"
        "sys.exit(', '.join(slow) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_name_is_imported_when_it_is_asked_for():
    """All public names are there, others aren't, and a type checker sees the same ones."""
    source = Path(posterity.__file__).read_text("utf-8")
    checked = re.search(r"if _typing.TYPE_CHECKING:\n(.*?)\n\n__version__", source, re.DOTALL)[1]
    named = set(re.findall(r"\b\w+\b", re.sub(r"from \.[\w.]+ import|[(),]", " ", checked)))
    assert named == set(posterity.__all__)
    for name in posterity.__all__:
        assert getattr(posterity, name).__name__ == name
        assert name in dir(posterity)
    with pytest.raises(AttributeError, match="no attribute 'Backend'"):
        _ = posterity.Backend


@pytest.mark.parametrize(("words", "told"), [(["verfy"], 'Did you mean "verify"'), (["ls", "--jsn"], "--json")])
def test_a_slip_is_told_with_what_was_meant(words, told):
    """On standard error, with exit code 2."""
    done = shell(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_without_the_extra_one_line_says_what_to_install():
    """And the exit code is 2; `python -m posterity` is the same program."""
    code = "import runpy, sys; sys.modules['cyclopts'] = None; sys.argv = ['posterity', 'ls']; runpy.run_module('posterity')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "posterity: the command line needs cyclopts: pip install 'posterity[cli]'\n"


def test_ctrl_c_ends_quietly(run):
    """With 130, as shells expect."""
    process = subprocess.Popen(
        [sys.executable, "-m", "posterity", "tail", run, "--json", "--every", "0.1"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "")


def test_who_closes_the_pipe_ends_it_quietly(run):
    """`posterity tail | head -n 1` leaves no message."""
    command = f"{SCRIPT} tail {run} --json --every 0.01 --bare | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[1] == "141"
    assert done.stderr == ""


def test_a_bug_is_told_as_one(cli, monkeypatch):
    """One line with its name; the traceback comes with POSTERITY_TRACEBACK."""
    monkeypatch.setattr("posterity._admin.run_info.find_runs", lambda folder: 1 / 0)
    cli("ls", code=70)
    assert "this is a bug in posterity: ZeroDivisionError" in cli.errors


def test_the_library_says_nothing_while_all_is_well(tmp_path):
    """Quiet by default: no line on standard error from a program that configures no logging. A warning is one line."""
    code = "import sys\nsys.path.insert(0, sys.argv[1])\nfrom runs import write_run\nwrite_run(sys.argv[2], burn=70)"
    command = [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path / "run")]
    quiet = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (quiet.stdout, quiet.stderr) == ("", "")
    loud = subprocess.run(command, capture_output=True, text=True, check=True)
    assert len(loud.stderr.splitlines()) == 1
    assert "it is continued" in loud.stderr


LOGGERS = ["auto", "files", "monitor", "rebuild", "recovery", "service", "steps", "store", "writer"]


def test_each_part_has_a_logger_of_its_own():
    """So that one level can be set for each. Programs know their names: they stay, wherever the modules go."""
    found = []
    for path in (ROOT / "src" / "posterity").rglob("*.py"):
        text = path.read_text("utf-8")
        named = re.findall(r'^logger = logging\.getLogger\("posterity\.(\w+)"\)$', text, re.MULTILINE)
        assert named or not re.search(r"\blogger\.\w+\(", text) or path.parent.name == "_cli", path
        found += named
    assert sorted(found) == LOGGERS


def test_each_command_of_the_page_runs(cli, tmp_path, monkeypatch):
    """Line by line, on a run like the one that the page is about; what it says of exit codes is so."""
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "my_run", parameters=["mass", "spin"])
    folder_of_jexplores(tmp_path / "old_run", [0, 1])
    sampler = emcee.EnsembleSampler(4, 2, lambda x: -(x @ x), backend=emcee.backends.HDFBackend(tmp_path / "chain.h5"))
    sampler.run_mcmc(np.random.default_rng(1).normal(size=(4, 2)), 10)
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("posterity ")]
    assert {line.split()[1] for line in lines} == set(COMMANDS)
    for line in lines:
        words = line.partition(" #")[0].split()[1:]
        cli(*words, *(["--once"] if words[0] == "tail" else []), code=0)
