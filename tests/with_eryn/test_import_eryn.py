"""Files of Eryn's `HDFBackend` as runs, and the how-to page: `tox -e eryn`."""

from pathlib import Path

import h5py
import numpy as np
import pytest

pytest.importorskip("eryn.backends", reason="Eryn's own sampler is run by `tox -e eryn`")

from eryn.backends import HDFBackend
from eryn_cases import CASES, Jumps
from sybil import Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser

from posterity import Damaged, EpochMismatch, RunExists
from posterity._interop.importer import importer_of
from posterity.eryn import ErynBackend
from posterity.importing import import_eryn

PAGE = Path(__file__).parents[2] / "docs/how-to/use-with-eryn.md"


def values_of(backend, *, has_rj):
    names = ("get_chain", "get_inds", "get_log_like", "get_log_prior", "get_betas", "get_blobs")
    values = {name: getattr(backend, name)() for name in names}
    values |= {
        name: getattr(backend, name) for name in ("accepted", "swaps_accepted", "iteration", "nwalkers", "ntemps")
    }
    values |= {"rj_accepted": backend.rj_accepted} if has_rj else {}
    return values | {"random": list(backend.random_state), "branches": list(backend.branch_names)}


@pytest.mark.parametrize("name", CASES)
def test_an_imported_file_has_all_that_eryn_reads_from_it(tmp_path, monkeypatch, name):
    """In epochs of a few steps, and a sampler goes on from it, which from the file it couldn't."""
    monkeypatch.setattr("posterity._interop.import_eryn.MAX_BYTES", 1_500)
    case, theirs = CASES[name](), HDFBackend(str(tmp_path / "theirs.h5"))
    case.run(theirs, 12)
    done = []
    assert importer_of(tmp_path / "theirs.h5") is import_eryn
    imported = import_eryn(tmp_path / "theirs.h5", tmp_path / "run", progress=lambda *n: done.append(n))
    assert imported.samples == 12
    assert imported.epochs == len(done) > 1
    assert done[-1] == (12, 12)
    has_rj = name.startswith("jumps")
    with ErynBackend(tmp_path / "run") as ours:
        left, right = values_of(theirs, has_rj=has_rj), values_of(ours, has_rj=has_rj)
        if name == "plain":  # without temperatures there are no betas; the file has zeros
            assert not left.pop("get_betas").any()
            assert np.isnan(right.pop("get_betas")).all()
        np.testing.assert_equal(right, left)
        assert ours.key_order == case.sampler(None).key_order
        case.sampler(ours).run_mcmc(None, 2)
        assert ours.iteration == 14


def test_what_is_no_chain_of_eryns_is_refused(tmp_path, monkeypatch):
    """Another name, a file that isn't there or contradicts itself, a folder with a run, an import that was cut off."""
    path = tmp_path / "theirs.h5"
    Jumps().run(HDFBackend(str(path)), 12)
    with pytest.raises(FileNotFoundError):
        import_eryn(tmp_path / "none.h5", tmp_path / "run")
    with pytest.raises(KeyError, match="it has 'mcmc'"):
        import_eryn(path, tmp_path / "run", name="other")
    monkeypatch.setattr("posterity._interop.import_eryn.MAX_BYTES", 1_500)

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_eryn(path, tmp_path / "cut", progress=stop)
    with pytest.raises(EpochMismatch, match="cut off"):
        ErynBackend(tmp_path / "cut")
    with pytest.raises(RunExists):
        import_eryn(path, tmp_path / "cut")
    with h5py.File(path, "a") as file:
        file["mcmc"].attrs["iteration"] = 13
    with pytest.raises(Damaged, match="13 steps"):
        import_eryn(path, tmp_path / "run")


@pytest.mark.timeout(120)
def test_the_page_runs(tmp_path, monkeypatch):
    """The Python blocks of the how-to page run in their order."""
    monkeypatch.chdir(tmp_path)
    examples = list(Sybil([CodeBlockParser("python", PythonEvaluator())]).parse(PAGE).examples())
    assert len(examples) == PAGE.read_text("utf-8").count("```python") == 4
    for example in examples:
        example.evaluate()
