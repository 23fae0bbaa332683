"""`info`, `ls`, `epochs`: what is told is what is there."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from runs import NCHAIN, write_run

from posterity import DefaultBackend, EpochInfo, RunInfo, find_runs, run_info
from posterity._store.lock import Holder


def test_info_tells_what_a_run_is(cli, run):
    """All numbers of `info --json` are those of the run."""
    info = cli.json(RunInfo, "info", run)
    assert (info.epochs, info.samples, info.samples_left, info.burn, info.nchain) == (6, 300, 300, 0, NCHAIN)
    assert [(each.name, each.dim, each.dtype) for each in info.names] == [("p", 2, "<f8"), ("ll", 1, "<f8")]
    assert (info.files, info.epochs_per_file, info.outfile_fmt) == (3, 2, "epochs_%d.h5")
    assert info.file_bytes == sum(path.stat().st_size for path in run.glob("*.h5"))
    assert info.journal_bytes == (run / "posterity.journal").stat().st_size
    assert info.began_at <= info.changed_at
    assert info.writer is None
    assert info.metadata.host


def test_info_is_for_people_too(cli, tmp_path):
    """Without --json the same is told in words, with the names and units that the run has."""
    write_run(tmp_path / "run", burn=120, parameters=["mass", "spin"], attributes={"note": "a test"})
    out = cli("info", tmp_path / "run")
    assert "180 of 300, the others are burned, in each of 4 chains" in out
    assert "mass, spin" in out
    assert "a test" in out
    assert "nobody just now" in out


def test_info_of_a_burned_run_counts_what_is_left(cli, tmp_path):
    """Burned epochs are counted, and their files aren't."""
    write_run(tmp_path / "run", burn=120)
    info = cli.json(RunInfo, "info", tmp_path / "run")
    assert (info.epochs, info.epochs_left, info.samples_left, info.burn, info.files) == (6, 4, 180, 120, 2)
    assert info.dead_bytes == 0


def test_info_names_the_writer_in_this_process(cli, tmp_path):
    """A backend of this process is named, and keeps its lock."""
    with write_run(tmp_path / "run", close=False) as backend:
        for _ in range(2):  # the first look would have cost the lock, if it opened the file
            writer = cli.json(RunInfo, "info", tmp_path / "run").writer
            assert writer is not None
        told = subprocess.run(
            [sys.executable, "-c", "import sys, posterity; print(posterity.run_info(sys.argv[1]).writer.pid)",
             str(tmp_path / "run")], capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        assert int(told) == writer.pid
        backend.ingest({"samples": {"p": backend.get(0)["samples"]["p"], "ll": backend.get(0)["samples"]["ll"]}})
    assert cli.json(RunInfo, "info", tmp_path / "run").writer is None


def test_a_writer_that_was_killed_writes_no_more(tmp_path):
    """What its lock file says isn't believed."""
    code = (
        "import os, signal, sys\nsys.path.insert(0, sys.argv[1])\nfrom runs import write_run\n"
        "write_run(sys.argv[2], close=False)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path / "run")], check=False)
    assert (tmp_path / "run" / "posterity.lock").read_bytes()
    assert run_info(tmp_path / "run").writer is None


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"by_file": True, "host": "elsewhere"}, "elsewhere"),  # where there are no locks its word counts
        ({"by_file": True, "start": "another process"}, None),  # of this host, and gone
        ({"host": "elsewhere"}, None),  # it had a lock, and has none now
    ],
)
def test_what_a_lock_file_says_counts_where_locks_dont(run, changed, expected):
    """A holder that needs no lock is believed, unless it is known to be gone."""
    me = Holder("here", os.getpid(), "1", 1e9, "")
    (run / "posterity.lock").write_bytes(msgspec.json.encode(msgspec.structs.replace(me, **changed)))
    if changed.get("start"):
        here = msgspec.structs.replace(me, host=socket.gethostname(), **changed)
        (run / "posterity.lock").write_bytes(msgspec.json.encode(here))
    writer = run_info(run).writer
    assert (writer.host if writer else None) == expected


def test_compression_is_told(cli, tmp_path):
    """With the codec, and how much smaller the run became."""
    with DefaultBackend(outdir=tmp_path / "run", compression="gzip") as backend:
        backend.ingest({"samples": {"p": np.ones((1, 1, 100_000))}})
    assert cli.json(RunInfo, "info", tmp_path / "run").compression == ("gzip, level 1, without shuffle",)
    assert "times smaller" in cli("info", tmp_path / "run")


def test_ls_lists_all_runs_below_a_folder(cli, run, tmp_path):
    """One line each, in the order of their names; what is no run isn't listed."""
    write_run(tmp_path / "runs" / "deep" / "second", nepochs=1)
    (tmp_path / "runs" / "empty").mkdir()
    found = cli.json(list[RunInfo], "ls", tmp_path / "runs")
    assert [info.folder.rpartition("/")[2] for info in found] == ["second", "first"]
    assert [info.epochs for info in found] == [1, 6]
    lines = cli("ls", tmp_path / "runs").splitlines()
    assert len(lines) == 3
    assert all(line == line.rstrip() for line in lines)


def test_ls_goes_on_after_a_damaged_run(cli, run, tmp_path):
    """It is named on standard error, the others are listed, and the exit code is 1."""
    write_run(tmp_path / "runs" / "bad", nepochs=1)
    (tmp_path / "runs" / "bad" / "posterity.journal").write_bytes(b"not a journal at all")
    found = cli.json(list[RunInfo], "ls", tmp_path / "runs", code=1)
    assert [info.folder for info in found] == [str(run)]
    assert "runs/bad: " in cli.errors


def test_ls_of_nothing_says_so(cli, tmp_path):
    """On standard error: nothing was asked that has an answer."""
    assert cli("ls", tmp_path) == ""
    assert "no run" in cli.errors
    assert cli.json(list[RunInfo], "ls", tmp_path) == []


def test_hidden_folders_are_left_out(tmp_path):
    """A run in one isn't found, but asked for by itself."""
    write_run(tmp_path / ".trash", nepochs=1)
    assert list(find_runs(tmp_path)) == []
    assert list(find_runs(tmp_path / ".trash")) == [tmp_path / ".trash"]


def test_epochs_lists_each_epoch(cli, tmp_path):
    """Where its samples begin, how many are burned, and in which file it is."""
    write_run(tmp_path / "run", burn=120)
    found = cli.json(list[EpochInfo], "epochs", tmp_path / "run")
    assert [(each.index, each.first, each.nsamples, each.burned) for each in found] == [
        (0, 0, 50, 50), (1, 50, 50, 50), (2, 100, 50, 20), (3, 150, 50, 0), (4, 200, 50, 0), (5, 250, 50, 0),
    ]  # fmt: skip
    assert [each.file for each in found] == [None, None, *["epochs_2.h5"] * 2, *["epochs_3.h5"] * 2]
    assert len(cli("epochs", tmp_path / "run").splitlines()) == 7


@pytest.mark.parametrize("command", ["info", "epochs", "verify", "compact", "summary", "plot", "repair"])
def test_what_is_no_run_ends_with_3(cli, tmp_path, command):
    """Whether the folder is there or not; nothing is made."""
    cli(command, tmp_path, code=3)
    cli(command, tmp_path / "nowhere", code=3)
    assert "nowhere" in cli.errors
    assert not (tmp_path / "nowhere").exists()


def test_a_later_format_ends_with_5(cli, run):
    """And says what to do."""
    journal = run / "posterity.journal"
    data = bytearray(journal.read_bytes())
    data[8] = 99
    journal.write_bytes(data)
    cli("info", run, code=5)
    assert "later posterity" in cli.errors
