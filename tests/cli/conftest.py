"""What each test of the command line gets."""

import logging

import pytest
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
