"""What each test of the command line gets."""

import io
import logging

import pytest
from matplotlib.figure import Figure
from runs import Cli, write_run


@pytest.fixture
def cli(capsys, monkeypatch):
    monkeypatch.delenv("POSTERITY_TRACEBACK", raising=False)
    logger, service = logging.getLogger("posterity"), logging.getLogger("posterity.service")
    handlers, propagates = logger.handlers[:], logger.propagate
    yield Cli(capsys)
    logger.handlers[:], logger.propagate = handlers, propagates
    service.setLevel(logging.NOTSET)


@pytest.fixture
def run(tmp_path):
    """The folder of a run that was closed."""
    outdir = tmp_path / "runs" / "first"
    write_run(outdir)
    return outdir


@pytest.fixture(autouse=True, scope="session")
def fonts():
    """matplotlib keeps its fonts open, from the first picture on: no test leaves them behind."""
    axes = Figure().subplots()
    axes.set_title("text")
    axes.figure.savefig(io.BytesIO())
