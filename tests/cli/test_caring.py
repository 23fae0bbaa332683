"""`verify`, `repair`, `compact`: what lies on disk is looked at, mended, made smaller."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from runs import draws, write_run

from posterity import Compaction, DefaultBackend, Findings, Repairs, open_run, run_info, verify


def damage(path, at=-20):
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)


def test_a_good_run_is_good(cli, run):
    """Exit code 0; the numbers are those of `posterity.verify`."""
    findings = cli.json(Findings, "verify", run)
    assert findings == verify(run)
    assert findings.nepochs == 6
    assert "all is as it was written" in cli("verify", run)


def test_damage_is_named_and_ends_with_1(cli, run):
    """With its file and its epoch."""
    size = (run / "epochs_2.h5").stat().st_size
    damage(run / "epochs_2.h5", size // 2)
    findings = cli.json(Findings, "verify", run, code=1)
    assert [problem.name for problem in findings.problems] == ["epochs_2.h5"] * len(findings.problems)
    out = cli("verify", run, code=1)
    assert "epochs_2.h5" in out
    assert "repair" in out


def test_progress_is_of_all_epochs(run):
    """It ends with all of them."""
    seen = []
    verify(run, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 6) for i in range(1, 7)]


def test_a_damaged_journal_is_repaired(cli, run):
    """It can't be read before, and can be after."""
    damage(run / "posterity.journal", 40)
    cli("info", run, code=5)
    repairs = cli.json(Repairs, "repair", run)
    assert any("written anew" in each for each in repairs.done)
    assert cli("repair", run) == "there was nothing to repair\n"
    cli("verify", run)


def test_lost_epochs_end_with_1(cli, run):
    """A file that is missing can't be made again, and it is said."""
    (run / "epochs_2.h5").unlink()
    damage(run / "posterity.journal", 40)
    repairs = cli.json(Repairs, "repair", run, code=1)
    assert repairs.lost


def test_a_run_that_is_written_is_left_alone(cli, tmp_path):
    """Repairing and compacting need the right to write: exit code 4, saying who has it."""
    with write_run(tmp_path / "run", close=False):
        for command in ("repair", "compact"):
            cli(command, tmp_path / "run", code=4)
            assert str(os.getpid()) in cli.errors
        cli("verify", tmp_path / "run")


def test_compacting_gives_back_what_a_kill_left(cli, tmp_path):
    """A burn that cut no file yet cuts it; the samples that are left are the same, and the journal is short."""
    code = (
        "import os, signal, sys\nsys.path.insert(0, sys.argv[1])\nfrom runs import write_run\n"
        "backend = write_run(sys.argv[2], nepochs=1, nsamples=1000, close=False)\n"
        "for burn in range(1, 400): backend.set_burn(burn); backend.ingest({'samples': backend.get(0)['samples']}) "
        "if burn == 399 else None; backend.update()\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path / "run")], check=False)
    assert ended.returncode == -signal.SIGKILL
    before = run_info(tmp_path / "run")
    assert before.dead_bytes > 0
    with open_run(tmp_path / "run") as run:
        left = run.get_samples()["p"]
    found = cli.json(Compaction, "compact", tmp_path / "run")
    after = run_info(tmp_path / "run")
    assert found.saved_bytes > before.dead_bytes // 2
    assert (found.file_bytes_before, found.file_bytes) == (before.file_bytes, after.file_bytes)
    assert found.journal_bytes == after.journal_bytes < before.journal_bytes
    assert after.dead_bytes == 0
    with open_run(tmp_path / "run") as run:
        assert (run.get_samples()["p"] == left).all()
    assert verify(tmp_path / "run").is_good


def test_a_compacted_run_goes_on(cli, tmp_path):
    """With the same grouping into files; compacting again changes nothing."""
    write_run(tmp_path / "run", burn=120)
    cli("compact", tmp_path / "run")
    before = (tmp_path / "run" / "posterity.journal").read_bytes()
    assert cli.json(Compaction, "compact", tmp_path / "run").saved_bytes == 0
    assert (tmp_path / "run" / "posterity.journal").read_bytes() == before
    with DefaultBackend(outdir=tmp_path / "run", epochs_per_file=2) as backend:
        backend.ingest({"samples": {"p": draws(10), "ll": draws(10)[:, :1]}})
    assert run_info(tmp_path / "run").epochs_per_file == 2
    assert verify(tmp_path / "run").is_good
    assert cli.errors == ""
