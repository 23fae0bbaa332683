"""The drivers that the contract suite runs over, and a disk that can be slow or full."""

import errno
import shutil
import threading

import pytest
from async_driver import AsyncDriver
from drivers import BlockingDriver

from posterity._system.disk import Disk

# Name -> the event loop that the test runs on, and the driver.
DRIVERS = {
    "blocking": ("asyncio", BlockingDriver),
    "asyncio": ("asyncio", AsyncDriver),
    "trio": ("trio", AsyncDriver),
}


@pytest.fixture(params=DRIVERS)
def face(request):
    return DRIVERS[request.param]


@pytest.fixture
def anyio_backend(face):
    return face[0]


@pytest.fixture
def driver(face):
    driver = face[1]()
    yield driver
    driver.end()


@pytest.fixture
def outdir(tmp_path):
    return tmp_path / "run"


class MoodyDisk:
    """The disk under all backends of a test: it can be stopped, and it can be full."""

    def __init__(self):
        self._goes_on = threading.Event()
        self._goes_on.set()
        self.was_reached = threading.Event()
        self.is_full = False

    def stop(self):
        """From now on whoever wants to write waits; `was_reached` is set once somebody does."""
        self._goes_on.clear()

    def go_on(self):
        self._goes_on.set()

    def heal(self):
        self.is_full = False
        self._goes_on.set()

    def fill(self):
        """From now on there is no room."""
        self.is_full = True

    def empty(self):
        self.is_full = False

    def take(self):
        if not self._goes_on.is_set():
            self.was_reached.set()
            self._goes_on.wait()
        if self.is_full:
            raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def moody_disk(driver, monkeypatch):
    """The disk of this test; by default it does what a disk does."""
    mood = MoodyDisk()
    reserve = Disk.reserve

    def take_first(disk, fd, offset, nbytes):
        mood.take()
        reserve(disk, fd, offset, nbytes)

    monkeypatch.setattr(Disk, "reserve", take_first)
    driver.on_failure.append(mood.heal)
    yield mood
    mood.heal()


@pytest.fixture
def copy_of(tmp_path):
    """What a crash would leave: copies the folder of a run whose writer has nothing to do."""

    def copy(folder):
        target = tmp_path / f"copy-{len(list(tmp_path.glob('copy-*')))}"
        # The lock's file stays behind: a process that closes any descriptor of it loses the lock.
        return shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.lock"))

    return copy
