"""A pytest plugin: `emcee.tests.unit.test_backends` of the installed emcee, with our backend in the place of theirs.

    PYTHONPATH=tests python -m pytest -c tox.ini -p emcees_own_tests --pyargs emcee.tests.unit.test_backends

tox runs it so: `tox -e emcee`.
"""

import tempfile
import weakref

import emcee.backends
import pytest

from posterity.emcee import EmceeBackend

OF_THEIR_FILE = {
    "test_uninit": "removes the HDF5 file by os.remove; ours is a folder",
    "test_multi_hdf5": "lists the groups of the one HDF5 file; ours has a folder for each name",
}
"""Tests of the layout of `HDFBackend`'s file. They run, and must fail at the line that takes our folder for a file."""

_written: "weakref.WeakSet[EmceeBackend]" = weakref.WeakSet()
_opened: list[str] = []


class OurBackend(EmceeBackend):
    """`EmceeBackend`; another one that reads the same run waits until all that was saved is on disk.

    `HDFBackend` writes each step before it goes on, so a test that opens the file again at once finds it there. With
    ours a step is on disk after five seconds at the latest, or after `flush`.
    """

    def __init__(self, filename, name=None, read_only=False, **options):
        if read_only:
            for backend in list(_written):
                backend.flush()
        super().__init__(filename, name, read_only, **options)
        if not read_only:
            _written.add(self)
        _opened.append(filename)

    def close(self, timeout_s=60):
        _written.discard(self)
        super().close(timeout_s)


class TemporaryBackend:
    """Our backend in a folder that is gone afterwards; made as `TempHDFBackend` is."""

    def __init__(self, dtype=None, compression=None, compression_opts=None):
        self._options = {"dtype": dtype, "compression": compression, "compression_opts": compression_opts}

    def __enter__(self):
        self._folder = tempfile.TemporaryDirectory(prefix="posterity-emcee-")
        self._backend = OurBackend(self._folder.name, "test", **self._options)
        return self._backend

    def __exit__(self, *_):
        self._backend.close()
        self._folder.cleanup()


emcee.backends.HDFBackend = OurBackend
emcee.backends.TempHDFBackend = TemporaryBackend  # emcee's own list of backends to test is made from it


def pytest_collection_modifyitems(items):
    """Those of the file's layout must fail, and for no other reason."""
    for item in items:
        reason = OF_THEIR_FILE.get(item.originalname)
        if reason:
            item.add_marker(pytest.mark.xfail(raises=(IsADirectoryError, PermissionError), reason=reason, strict=True))


def pytest_terminal_summary(terminalreporter):
    terminalreporter.write_line(f"our backend was opened {len(_opened)} times")


def pytest_sessionfinish(session):
    """Tests that don't meet our backend would look green."""
    if session.testscollected and not _opened:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
