"""What every test gets: a small hypothesis profile, and a look at what it left behind and whether it held up its loop."""

import gc
import inspect
import signal
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from loop_watch import LoopWatch
from posterity._system import process_end
from posterity._system.disk import Disk

settings.register_profile(
    "posterity",
    deadline=None,  # a sync may take as long as it likes
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("posterity")

_DESCRIPTORS = Path("/proc/self/fd")


def _threads_of_ours() -> set[threading.Thread]:
    """The threads of backends that are open; the one that watches for the end of the process stays."""
    ours = {thread for thread in threading.enumerate() if thread.name.startswith("posterity-")}
    return {thread for thread in ours if thread.name != "posterity-end-watch"}


def _open_files() -> dict[int, str]:
    """The descriptors of files and folders that are open in this process, by number."""
    found = {}
    for descriptor in list(_DESCRIPTORS.iterdir()) if _DESCRIPTORS.is_dir() else []:
        try:
            name = str(descriptor.readlink())
        except FileNotFoundError:
            continue
        if name.startswith("/") and not name.startswith(("/dev/", "/proc/", "/memfd:")):
            found[int(descriptor.name)] = name
    return found


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what it puts into the background so, and the scripts that the tests interrupt would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def loses_epochs():
    """For a test that loses epochs on purpose: the process of the tests isn't to end with an error for it."""
    yield
    process_end._end_watch.has_lost = False


@pytest.fixture(autouse=True)
def nothing_left_behind():
    """Fail a test that leaves a thread of ours or an open file behind, or lost epochs."""
    before, files = _threads_of_ours(), _open_files()
    yield
    has_lost, process_end._end_watch.has_lost = process_end._end_watch.has_lost, False
    left_threads = _threads_of_ours() - before
    for thread in left_threads:
        thread.join(10)
    left_threads = {thread for thread in left_threads if thread.is_alive()}
    for _ in range(2):  # a finaliser that runs in the first one may let go of more
        if set(_open_files().items()) - set(files.items()):
            gc.collect()  # what is merely unreachable isn't left behind
    left_files = dict(set(_open_files().items()) - set(files.items()))
    assert not has_lost, "epochs were lost: a test that means to do so asks for the fixture loses_epochs"
    assert not left_threads, f"threads left behind: {sorted(thread.name for thread in left_threads)}"
    assert not left_files, f"files left open: {left_files}"


@pytest.fixture(autouse=True)
def loop_watch(request, monkeypatch):
    """Fail a test in whose event loop code of ours waited, touched the disk, or took long."""
    test = getattr(request.node, "obj", None)
    by_hypothesis = getattr(test, "hypothesis", None)
    function = by_hypothesis.inner_test if by_hypothesis else test
    watch = LoopWatch()
    if not inspect.iscoroutinefunction(function):
        yield watch
        return
    watch.install(monkeypatch)
    if by_hypothesis:
        monkeypatch.setattr(by_hypothesis, "inner_test", watch.around(function))
    else:
        monkeypatch.setattr(request.node, "obj", watch.around(function))
    yield watch
    assert not watch.found, "\n".join(watch.found)


@pytest.fixture
def disk(tmp_path):
    """A folder to write to, entered."""
    disk = Disk(tmp_path)
    disk.enter()
    yield disk
    disk.leave()
