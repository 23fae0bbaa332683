"""How a run ends when nobody closes it: each in a process of its own, and the folder read again afterwards."""

import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest

from known import numbers, run_of
from posterity import DefaultBackend, RunLocked

HERE = Path(__file__).parent
BEGIN = """
import os, signal, sys, threading, time
sys.path.insert(0, {here!r})
from known import epoch_dict, numbers, run_of
from posterity import DefaultBackend
outdir = sys.argv[1]

def tell(word):
    sys.stdout.write(f"{{word}}\\n")  # at once: other threads tell, too
    sys.stdout.flush()
"""


class Script:
    """A script in a process of its own, with `known` and `posterity` at hand and the run folder as `outdir`."""

    def __init__(self, code, *args, command=()):
        text = BEGIN.format(here=str(HERE)) + textwrap.dedent(code)
        self.process = subprocess.Popen(
            [*command, sys.executable, "-W", "error", "-c", text, *map(str, args)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def wait_for(self, word):
        """Wait until the script tells a word, and return what it told until then."""
        told = []
        for line in self.process.stdout:
            told.append(line.strip())
            if told[-1] == word:
                return told[:-1]
        raise AssertionError(f"{word!r} was never told; {told}, {self.process.stderr.read()}")

    def signal_until(self, number, word):
        """Send a signal, and wait for a word. One that comes just before Python waits is overlooked until the next."""
        again = threading.Timer(5, self.process.send_signal, [number])
        again.start()
        try:
            self.process.send_signal(number)
            return self.wait_for(word)
        finally:
            again.cancel()
            again.join()

    def go_on(self):
        """Let a script go on that waits in `input()`."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self):
        """Wait for the end; returns the exit code, and what it wrote to stdout and stderr since."""
        out, err = self.process.communicate(timeout=50)
        return self.process.returncode, out, err


def ended(code, *args, command=()):
    """Run a script to its end."""
    with Script(code, *args, command=command) as script:
        return script.end()


def read_again(outdir):
    """What a new backend finds; every checksum is looked at."""
    with DefaultBackend(outdir=outdir) as backend:
        return backend.get_samples(verify=True)["p"]


@pytest.fixture
def outdir(tmp_path):
    return tmp_path / "run"


# ---- the end of the script ---------------------------------------------------------------------------------------------

ENDINGS = {
    "the end of the script": ("pass", 0),
    "sys.exit": ("sys.exit(0)", 0),
    "sys.exit with a code": ("sys.exit(3)", 3),
    "an exception": ("raise ZeroDivisionError('died at 3 a.m.')", 1),
    "a thread that has ended": ("threading.Thread(target=lambda: None).start()", 0),
    "a daemon thread": ("threading.Thread(target=threading.Event().wait, daemon=True).start()", 0),
}


@pytest.mark.parametrize(("ending", "code"), ENDINGS.values(), ids=ENDINGS)
@pytest.mark.parametrize("options", [{}, {"inmem_epochs": 100, "epochs_per_file": 4}], ids=["written", "in memory"])
def test_a_script_that_simply_ends_has_everything_on_disk(outdir, ending, code, options):
    """Nobody calls `close`: everything is on disk and published, and the exit code is the script's."""
    returned, _, err = ended(
        f"""
        backend = DefaultBackend(outdir=outdir, **{options})
        for epoch in run_of([50] * 10):
            backend.ingest(epoch)
        {ending}
        """,
        outdir,
    )
    assert returned == code, err
    assert err == "" or code == 1
    assert ("died at 3 a.m." in err) is (code == 1)
    assert [path.name for path in outdir.iterdir() if path.name.startswith(".")] == []
    np.testing.assert_array_equal(read_again(outdir), numbers(0, 500))


def test_a_script_that_never_writes_ends(outdir):
    """An open backend without an epoch doesn't keep the process alive, and leaves no folder."""
    assert ended("backend = DefaultBackend(outdir=outdir)", outdir) == (0, "", "")
    assert not outdir.exists()


def test_a_thread_goes_on_after_the_main_thread(outdir):
    """A non-daemon thread that goes on ingesting when the main thread has ended is served to its end."""
    returned, out, err = ended(
        """
        backend = DefaultBackend(outdir=outdir, inmem_epochs=3)

        def sample():
            threading.main_thread().join()
            for epoch in run_of([10] * 20):
                backend.ingest(epoch)
            backend.flush()
            tell(backend.get_samples()["p"].shape[2])
            for epoch in run_of([10] * 5, start=200):
                backend.ingest(epoch)

        threading.Thread(target=sample).start()
        """,
        outdir,
    )
    assert (returned, out, err) == (0, "200\n", "")
    np.testing.assert_array_equal(read_again(outdir), numbers(0, 250))


@pytest.mark.skipif(sys.version_info[:2] == (3, 12), reason="Python 3.12 starts no thread by then, and says so")
def test_a_backend_opened_after_the_main_thread_ended(outdir):
    """A thread may open a run when the main thread has ended, and forget to close it."""
    returned, _, err = ended(
        """
        def sample():
            threading.main_thread().join()
            backend = DefaultBackend(outdir=outdir)
            for epoch in run_of([10] * 5):
                backend.ingest(epoch)

        threading.Thread(target=sample).start()
        """,
        outdir,
    )
    assert (returned, err) == (0, "")
    np.testing.assert_array_equal(read_again(outdir), numbers(0, 50))


def test_two_backends_at_once(outdir):
    """Several backends that nobody closes have everything on disk."""
    returned, _, err = ended(
        """
        backends = [DefaultBackend(outdir=f"{outdir}/{i}", inmem_epochs=i) for i in range(5)]
        for epoch in run_of([20] * 6):
            for backend in backends:
                backend.ingest(epoch)
        """,
        outdir,
    )
    assert (returned, err) == (0, "")
    for i in range(5):
        np.testing.assert_array_equal(read_again(outdir / str(i)), numbers(0, 120))


def test_a_backend_that_nobody_refers_to(outdir):
    """A backend that was dropped without closing writes everything, lets the folder go, and ends."""
    returned, out, err = ended(
        """
        import posterity._system.threads
        DefaultBackend(outdir=outdir, inmem_epochs=9).ingest(run_of([20])[0])
        with DefaultBackend(outdir=outdir) as backend:
            tell(backend.get_samples()["p"].shape[2])
            backend.ingest(run_of([5], start=20)[0])
        for thread in threading.enumerate():
            if isinstance(thread, posterity._system.threads.OurThread):
                thread.join()
        tell("no thread is left")
        """,
        outdir,
    )
    assert returned == 0, err
    assert out == "20\nno thread is left\n"
    np.testing.assert_array_equal(read_again(outdir), numbers(0, 25))


def test_a_backend_in_a_cycle(outdir):
    """A backend that only the garbage collector can free, with its lock held or not, is closed by it."""
    returned, _, err = ended(
        """
        import gc
        for i in range(20):
            backend = DefaultBackend(outdir=f"{outdir}/{i}")
            backend.me = backend
            backend.ingest(run_of([20])[0])
            del backend
            gc.collect()
        """,
        outdir,
    )
    assert (returned, err) == (0, "")
    for i in range(20):
        np.testing.assert_array_equal(read_again(outdir / str(i)), numbers(0, 20))


def test_readers_do_not_keep_the_process(outdir):
    """Daemon threads that wait for updates or for a receipt don't keep the process from ending."""
    returned, _, err = ended(
        """
        backend = DefaultBackend(outdir=outdir, inmem_epochs=2)
        started = threading.Barrier(3)

        def listen():
            for snapshot in backend.updates():
                if snapshot.nepochs == 1:
                    started.wait()

        for _ in range(2):
            threading.Thread(target=listen, daemon=True).start()
        backend.ingest(run_of([20])[0])
        started.wait()
        """,
        outdir,
    )
    assert (returned, err) == (0, "")
    np.testing.assert_array_equal(read_again(outdir), numbers(0, 20))


def test_an_event_loop_that_was_closed(outdir):
    """The writer outlives the caller's event loop."""
    returned, _, err = ended(
        """
        import asyncio
        async def main():
            backend = DefaultBackend(outdir=outdir, inmem_epochs=1)
            for epoch in run_of([20] * 3):
                backend.ingest(epoch)
            return backend
        backend = asyncio.run(main())
        backend.ingest(run_of([5], start=60)[0])
        """,
        outdir,
    )
    assert (returned, err) == (0, "")
    np.testing.assert_array_equal(read_again(outdir), numbers(0, 65))


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_an_awaited_backend_that_nobody_closes(outdir, loop):
    """An `AsyncBackend` that was entered and never left has everything on disk, though its loop is gone."""
    returned, _, err = ended(
        f"""
        import anyio
        from posterity import AsyncBackend
        async def main():
            backend = await AsyncBackend(outdir=outdir, inmem_epochs=2).__aenter__()
            for epoch in run_of([20] * 3):
                await backend.ingest(epoch)
            return backend
        backend = anyio.run(main, backend="{loop}")
        """,
        outdir,
    )
    assert (returned, err) == (0, "")
    np.testing.assert_array_equal(read_again(outdir), numbers(0, 60))


# Writing waits, or fails, until the test says `go_on`; "ended" is told when the main thread has.
GATE = """
import errno
from posterity._system.disk import Disk
sys.stdout.reconfigure(line_buffering=True)
gate, is_at_gate, reserve = threading.Event(), threading.Event(), Disk.reserve

def gated(*args):
    is_at_gate.set()
    if is_full and not gate.is_set():
        raise OSError(errno.ENOSPC, "full")
    gate.wait()
    return reserve(*args)

def open_gate():
    if os.read(0, 1):
        gate.set()

def tell_end():
    threading.main_thread().join()
    tell("ended")

is_full = False
Disk.reserve = gated
for target in (open_gate, tell_end):
    threading.Thread(target=target, daemon=True).start()
"""


def test_the_interpreter_ends_while_a_write_is_under_way(outdir):
    """A write that the end of the script falls into is done to its end, and so are those after it."""
    code = """
backend = DefaultBackend(outdir=outdir)
for epoch in run_of([10] * 3):
    backend.ingest(epoch)
"""
    with Script(GATE + code, outdir) as script:
        script.wait_for("ended")
        script.go_on()
        assert script.end() == (0, "", "")
    np.testing.assert_array_equal(read_again(outdir), numbers(0, 30))


@pytest.mark.parametrize(
    "late",
    [
        "atexit.register(ingest)",
        "weakref.finalize(ingest, ingest)",
        "class Late:\n    def __del__(self):\n        ingest()\nlate = Late()",
        "class Late:\n    def __del__(self):\n        ingest()\nlate = Late()\nlate.me = late",
    ],
    ids=["exit handler", "finalize", "finaliser", "finaliser in a cycle"],
)
def test_an_ingest_while_the_interpreter_exits(outdir, late):
    """An ingest from an exit handler or a finaliser is refused; if it returned its epoch would be on disk."""
    code = f"""
import atexit, weakref
from posterity import Closed
backend = DefaultBackend(outdir=outdir)
backend.ingest(run_of([10])[0])

def ingest(tell=tell, epoch=run_of([10], start=10)[0]):
    try:
        backend.ingest(epoch)
    except Closed:
        tell("refused")

{late}
"""
    assert ended(code, outdir) == (0, "refused\n", "")
    np.testing.assert_array_equal(read_again(outdir), numbers(0, 10))


def test_an_exit_handler_that_opens_a_run(outdir):
    """What a backend that is opened by an exit handler accepts is on disk, although the interpreter waits no more."""
    code = """
import atexit
import posterity._system.process_end
posterity._system.process_end._EndWatch._run = lambda watch: None  # it would close the run before the first ingest

def late():
    global backend
    try:
        backend = DefaultBackend(outdir=outdir)
    except RuntimeError:
        return  # Python 3.12 starts no thread by then, and says so
    for epoch in run_of([10] * 3):
        backend.ingest(epoch)
        tell("accepted")

atexit.register(late)
"""
    returned, out, err = ended(code, outdir)
    assert returned == 0, err
    accepted = out.count("accepted")
    assert accepted == (0 if sys.version_info[:2] == (3, 12) else 3)
    if accepted:
        np.testing.assert_array_equal(read_again(outdir), numbers(0, 30))


@pytest.mark.parametrize("which", ["posterity-io", "posterity-writer", "posterity-end-watch"])
def test_an_opening_without_a_thread(outdir, which):
    """If the system gives no thread the opening raises, the folder is free, and the process ends."""
    returned, out, err = ended(
        f"""
        with DefaultBackend(outdir=outdir) as backend:
            backend.ingest(run_of([10])[0])
        start = threading.Thread.start

        def refuse(thread):
            if thread.name.startswith("{which}"):
                raise RuntimeError("can't start new thread")
            start(thread)

        import posterity._system.process_end
        posterity._system.process_end._end_watch.begin_anew()
        threading.Thread.start = refuse
        try:
            DefaultBackend(outdir=outdir)
        except RuntimeError as error:
            tell(error)
        threading.Thread.start = start
        backend = DefaultBackend(outdir=outdir)
        backend.ingest(run_of([10], start=10)[0])
        """,
        outdir,
    )
    assert (returned, out) == (0, "can't start new thread\n"), err
    np.testing.assert_array_equal(read_again(outdir), numbers(0, 20))


def test_a_daemon_thread_that_goes_on_sampling(outdir):
    """A daemon thread that samples while the process ends is refused at some point: what was accepted is on disk."""
    returned, out, err = ended(
        """
        from posterity import Closed
        backend = DefaultBackend(outdir=outdir, epochs_per_file=100)
        has_begun = threading.Event()

        def sample():
            n = 0
            while True:
                try:
                    backend.ingest(run_of([10], start=n)[0])
                except Closed:
                    tell(n)
                    return
                n += 10
                has_begun.set()

        threading.Thread(target=sample, daemon=True).start()
        has_begun.wait()
        """,
        outdir,
    )
    assert (returned, err) == (0, "")
    samples = read_again(outdir)
    assert samples.shape[2] >= 10
    if out:  # the thread may be gone before it can tell
        assert samples.shape[2] == int(out)
    np.testing.assert_array_equal(samples, numbers(0, samples.shape[2]))


DEATHS = {
    "between two": "raise ZeroDivisionError",
    "within one": "backend.ingest(Broken())",
    "while it waits for room": "backend.ingest(run_of([10], start=20)[0], timeout_s=0)",
}


@pytest.mark.parametrize("goes_on", [True, False], ids=["the main thread goes on", "the main thread has ended"])
@pytest.mark.parametrize("death", DEATHS.values(), ids=DEATHS)
def test_a_sampling_thread_that_dies(outdir, death, goes_on):
    """What a thread handed over before it died of an error is on disk, and others go on handing over."""
    is_full = "timeout_s" in death
    code = f"""
if not {is_full}:
    gate.set()

class Broken:
    def to_backend(self, burn, stats):
        raise ZeroDivisionError

backend = DefaultBackend(outdir=outdir, max_pending_epochs={2 if is_full else 100})

def sample():
    if not {goes_on}:
        threading.main_thread().join()
    for epoch in run_of([10] * 2):
        backend.ingest(epoch)
    try:
        {death}
    finally:
        gate.set()

thread = threading.Thread(target=sample)
thread.start()
if {goes_on}:
    thread.join()
    for epoch in run_of([10] * 3, start=20):
        backend.ingest(epoch)
"""
    returned, _, err = ended(GATE + code, outdir)
    assert returned == 0
    assert ("MailboxFull" if is_full else "ZeroDivisionError") in err
    np.testing.assert_array_equal(read_again(outdir), numbers(0, 50 if goes_on else 20))


# ---- signals -----------------------------------------------------------------------------------------------------------

SAMPLES_FOR_EVER = """
backend = DefaultBackend(outdir=outdir, epochs_per_file=3, inmem_epochs=2, **{options})
first = backend.status.samples
for epoch in run_of([10] * 5, start=first):
    backend.ingest(epoch)
backend.flush()
tell("flushed")
for i in range(10**6):
    backend.ingest(run_of([10], start=first + 50 + 10 * i)[0])
"""


def test_kill_after_flush(outdir):
    """After SIGKILL a run continues with at least all that was flushed, with no hole; over and over again."""
    flushed = 0
    for _ in range(4):
        with Script(SAMPLES_FOR_EVER.format(options={}), outdir) as script:
            script.wait_for("flushed")
            script.process.kill()
            assert script.end()[0] == -signal.SIGKILL
        with DefaultBackend(outdir=outdir, epochs_per_file=3) as backend:
            samples = backend.get_samples(verify=True)["p"]
            assert samples.shape[2] >= flushed + 50
            assert samples.shape[2] % 10 == 0
            np.testing.assert_array_equal(samples, numbers(0, samples.shape[2]))
            np.testing.assert_array_equal(backend.load().last["p"], samples[:, :, -1])
            flushed = samples.shape[2]
        assert [path.name for path in outdir.iterdir() if path.name.startswith(".")] == []


def test_control_c_in_a_loop(outdir):
    """Ctrl-C in the middle of a sampling loop: what was ingested is on disk, whole epochs only, and no thread hangs."""
    code = """
    try:
        with DefaultBackend(outdir=outdir, max_pending_epochs=100) as backend:
            n = 0
            tell("go")
            while True:
                backend.ingest(run_of([10], start=n)[0])
                n += 10
    except KeyboardInterrupt:
        tell(n)
    """
    with Script(code, outdir) as script:
        script.wait_for("go")
        script.process.send_signal(signal.SIGINT)
        returned, out, err = script.end()
    assert (returned, err) == (0, "")
    samples = read_again(outdir) if outdir.exists() else numbers(0, 0)
    assert samples.shape[2] in (int(out), int(out) + 10)
    np.testing.assert_array_equal(samples, numbers(0, samples.shape[2]))


def test_control_c_that_nobody_catches(outdir):
    """A script that dies of Ctrl-C has everything on disk, and dies of it."""
    with Script(SAMPLES_FOR_EVER.format(options={}), outdir) as script:
        script.wait_for("flushed")
        script.process.send_signal(signal.SIGINT)
        returned, _, err = script.end()
    assert returned == -signal.SIGINT
    assert "KeyboardInterrupt" in err
    samples = read_again(outdir)
    assert samples.shape[2] >= 50
    np.testing.assert_array_equal(samples, numbers(0, samples.shape[2]))


def test_control_c_while_waiting_for_room(outdir):
    """Ctrl-C ends an `ingest` that waits for room: its epoch isn't part of the run, and the run can be closed."""
    code = """
    from posterity._system.disk import Disk
    gate, reserve = threading.Event(), Disk.reserve
    Disk.reserve = lambda disk, *args: (gate.wait(), reserve(disk, *args))[1]
    backend = DefaultBackend(outdir=outdir, max_pending_epochs=1)
    backend.ingest(run_of([10])[0])
    wait = backend._service.ledger.wait

    def wait_and_tell(*args):
        tell("waiting")
        return wait(*args)

    backend._service.ledger.wait = wait_and_tell
    try:
        backend.ingest(run_of([10], start=10)[0])
    except KeyboardInterrupt:
        tell(backend.status.epochs)
        gate.set()
        backend.ingest(run_of([7], start=10)[0])
        backend.close()
    """
    with Script(code, outdir) as script:
        script.wait_for("waiting")
        script.process.send_signal(signal.SIGINT)
        returned, out, err = script.end()
    assert (returned, out.split()[0], err) == (0, "1", "")
    np.testing.assert_array_equal(read_again(outdir), numbers(0, 17))


STATES = {
    "sampling": ("{}", "tell('waiting'); signal.pause()", 2),
    "sampling while the disk is full": ("{}", "is_full = True; tell('waiting'); signal.pause()", 2),
    "ingest": ("{'max_pending_epochs': 2}", "backend.ingest(run_of([10], start=20)[0])", 2),
    "flush": ("{}", "backend.flush()", 2),
    "update": ("{}", "backend.update()", 2),
    "a receipt": ("{}", "backend.ingest_nowait(run_of([10], start=20)[0]).durable.wait()", 3),
    "reset": ("{}", "is_at_gate.wait(); backend.reset()", 0),
    "close": ("{}", "backend.close()", 2),
    "a close that nobody asked for": ("{}", "with backend: raise ZeroDivisionError", 2),
}
STILL_WRITING = "posterity: still writing; to be interrupted now would lose epochs"
INTERRUPTED = "the process was interrupted before they were written"


@pytest.mark.parametrize("ntimes", [1, 2], ids=["once", "twice"])
@pytest.mark.parametrize(("options", "call", "nepochs"), STATES.values(), ids=STATES)
def test_control_c_in_each_state(outdir, options, call, nepochs, ntimes):
    """Whatever the main thread waits for: all that was handed over is on disk, and the process dies of the Ctrl-C.

    The second one comes when it waits for the writer to end.
    """
    code = f"""
from posterity._writing.wakers import Bell
sys.stderr = sys.stdout
import threading
def tell_and_wait(bell, timeout_s, wait=Bell.wait):
    if threading.current_thread() is threading.main_thread():
        tell("waiting")
    return wait(bell, timeout_s)
Bell.wait = tell_and_wait
backend = DefaultBackend(outdir=outdir, retry_after_s=0.01, retry_at_most_s=0.01, **{options})
for epoch in run_of([10] * 2):
    backend.ingest(epoch)
{call}
"""
    with Script(GATE + code, outdir) as script:
        script.wait_for("waiting")
        script.signal_until(signal.SIGINT, "ended")
        if ntimes == 2:
            script.signal_until(signal.SIGINT, STILL_WRITING)
        script.go_on()
        returned, out, err = script.end()
    assert (returned, err) == (-signal.SIGINT, ""), out
    samples = read_again(outdir) if nepochs else None
    if nepochs:
        np.testing.assert_array_equal(samples, numbers(0, 10 * nepochs))
    else:
        assert not list(outdir.glob("*.h5"))


def test_control_c_while_leaving_the_block(outdir):
    """The first Ctrl-C ends the sampling, the second one the waiting for the close, and nothing is lost."""
    code = """
from posterity._writing.wakers import Bell
import threading
def tell_and_wait(bell, timeout_s, wait=Bell.wait):
    if threading.current_thread() is threading.main_thread():
        tell("waiting")
    return wait(bell, timeout_s)
Bell.wait = tell_and_wait
with DefaultBackend(outdir=outdir) as backend:
    for epoch in run_of([10] * 2):
        backend.ingest(epoch)
    tell("sampling")
    signal.pause()
"""
    with Script(GATE + code, outdir) as script:
        script.wait_for("sampling")
        script.signal_until(signal.SIGINT, "waiting")
        script.signal_until(signal.SIGINT, "ended")
        script.go_on()
        assert script.end()[0] == -signal.SIGINT
    np.testing.assert_array_equal(read_again(outdir), numbers(0, 20))


@pytest.mark.parametrize("ntimes", [1, 2], ids=["once", "twice"])
def test_control_c_at_the_end_of_the_script(outdir, ntimes):
    """When the script has ended, one Ctrl-C loses nothing; who insists is told what is lost, and gets exit code 74."""
    code = """
sys.stderr = sys.stdout
backend = DefaultBackend(outdir=outdir)
for epoch in run_of([10] * 3):
    backend.ingest(epoch)
"""
    with Script(GATE + code, outdir) as script:
        script.wait_for("ended")
        script.signal_until(signal.SIGINT, STILL_WRITING)
        if ntimes == 2:
            script.signal_until(signal.SIGINT, f"posterity: 3 epochs of {outdir} were lost, 0 to 2: {INTERRUPTED}")
        else:
            script.go_on()
        returned, out, err = script.end()
    assert err == ""
    if ntimes == 1:
        assert returned == 0, out
        np.testing.assert_array_equal(read_again(outdir), numbers(0, 30))
    else:
        assert returned == 74, out


def test_a_handler_that_exits_at_the_end_of_the_script(outdir):
    """A handler of the program's own that calls `sys.exit` while the writer is waited for loses nothing."""
    code = """
sys.stderr = sys.stdout
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
backend = DefaultBackend(outdir=outdir)
for epoch in run_of([10] * 3):
    backend.ingest(epoch)
"""
    with Script(GATE + code, outdir) as script:
        script.wait_for("ended")
        script.signal_until(signal.SIGTERM, STILL_WRITING)
        script.go_on()
        assert script.end()[0] == 0
    np.testing.assert_array_equal(read_again(outdir), numbers(0, 30))


def test_control_c_at_any_moment(outdir):
    """Whenever a Ctrl-C falls into `ingest`, its epoch is part of the run or it isn't, and the backend goes on working."""
    code = """
    import random

    def interrupt(*_):
        raise KeyboardInterrupt

    DefaultBackend(outdir=outdir + ".warm").ingest(run_of([1])[0]).close()  # a Ctrl-C in an import harms Python itself
    signal.signal(signal.SIGALRM, interrupt)
    random.seed(5)
    hits = 0
    with DefaultBackend(outdir=outdir, max_pending_epochs=3, epochs_per_file=200) as backend:
        for _ in range(3000):
            n = backend.status.epochs
            epoch = run_of([1], start=n)[0]
            try:
                signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, 2e-4))
                backend.ingest(epoch)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                hits += 1
            assert backend.status.epochs in (n, n + 1)
    tell(hits)
    tell(backend.status.epochs)
    """
    returned, out, err = ended(code, outdir)
    assert (returned, err) == (0, "")
    hits, epochs = map(int, out.split())
    assert hits > 300
    np.testing.assert_array_equal(read_again(outdir), numbers(0, epochs))


def test_sigterm_writes_everything_first(outdir):
    """With `flush_on_sigterm` everything is written, and then the process dies of SIGTERM."""
    with Script(SAMPLES_FOR_EVER.format(options={"flush_on_sigterm": True}), outdir) as script:
        script.wait_for("flushed")
        script.process.terminate()
        returned, _, err = script.end()
    assert (returned, err) == (-signal.SIGTERM, "")
    assert [path.name for path in outdir.iterdir() if path.name.startswith(".")] == []
    samples = read_again(outdir)
    assert samples.shape[2] >= 50
    np.testing.assert_array_equal(samples, numbers(0, samples.shape[2]))


def test_sigterm_with_several_backends_and_a_handler(outdir):
    """Each backend that was asked to is written, and a handler that the program had runs after that."""
    code = """
    def on_sigterm(number, frame):
        tell("terminated")
        sys.exit(7)

    signal.signal(signal.SIGTERM, on_sigterm)
    backends = [
        DefaultBackend(outdir=f"{outdir}/{i}", inmem_epochs=100, flush_on_sigterm=True, epochs_per_file=100)
        for i in range(3)
    ]
    for epoch in run_of([10] * 5):
        for backend in backends:
            backend.ingest(epoch)
    tell("ready")
    while True:
        time.sleep(0.1)
    """
    with Script(code, outdir) as script:
        script.wait_for("ready")
        script.process.terminate()
        returned, out, err = script.end()
    assert (returned, out, err) == (7, "terminated\n", "")
    for i in range(3):
        np.testing.assert_array_equal(read_again(outdir / str(i)), numbers(0, 50))


@pytest.mark.parametrize("who", ["the writer", "a thread"])
def test_sigterm_at_the_end_of_the_script(outdir, who):
    """With `flush_on_sigterm` all is written, too, when the main thread has ended and the interpreter waits."""
    code = f"""
backend = DefaultBackend(outdir=outdir, flush_on_sigterm=True, inmem_epochs=10)
handler = signal.getsignal(signal.SIGTERM)
signal.signal(signal.SIGTERM, lambda *args: (handler(*args), tell("terminating")))
for epoch in run_of([10] * 3):
    backend.ingest(epoch)
if {who == "a thread"}:
    threading.Thread(target=threading.Event().wait).start()
"""
    with Script(GATE + code, outdir) as script:
        script.wait_for("ended")
        script.signal_until(signal.SIGTERM, "terminating")
        script.go_on()
        assert script.end() == (-signal.SIGTERM, "", "")
    np.testing.assert_array_equal(read_again(outdir), numbers(0, 30))


def test_sigterm_on_a_full_disk(outdir):
    """What can't be written in time when SIGTERM comes is named on stderr, and the process dies of SIGTERM."""
    code = """
is_full = True
options = {"retry_after_s": 0.01, "retry_at_most_s": 0.01, "exit_timeout_s": 0.1}
backend = DefaultBackend(outdir=outdir, flush_on_sigterm=True, **options)
for epoch in run_of([10] * 3):
    backend.ingest(epoch)
tell("sampled")
while True:
    time.sleep(0.1)
"""
    with Script(GATE + code, outdir) as script:
        script.wait_for("sampled")
        script.process.terminate()
        returned, _, err = script.end()
    assert returned == -signal.SIGTERM
    assert "SIGTERM came, and epochs 0 to 2 could not be written" in err


def test_sigterm_after_the_run_was_closed(outdir):
    """A run that was closed has nothing to write: the process dies of SIGTERM at once, and no thread is left of it."""
    code = """
with DefaultBackend(outdir=outdir, flush_on_sigterm=True) as backend:
    gate.set()
    backend.ingest(run_of([10])[0])
for thread in threading.enumerate():
    if thread.name == "posterity-sigterm":
        thread.join()
tell("closed")
while True:
    time.sleep(0.1)
"""
    with Script(GATE + code, outdir) as script:
        script.wait_for("closed")
        script.process.terminate()
        assert script.end() == (-signal.SIGTERM, "", "")


def test_sigterm_without_the_option(outdir):
    """Without the option SIGTERM is what it was: the process dies of it, and what was flushed is there."""
    with Script(SAMPLES_FOR_EVER.format(options={}), outdir) as script:
        script.wait_for("flushed")
        script.process.terminate()
        assert script.end()[0] == -signal.SIGTERM
    samples = read_again(outdir)
    assert samples.shape[2] >= 50
    np.testing.assert_array_equal(samples, numbers(0, samples.shape[2]))


def test_flush_on_sigterm_needs_the_main_thread(outdir):
    """A signal's handler can be set by the main thread only: elsewhere the option is an error, and nothing stays open."""
    errors = []

    def open_run():
        try:
            DefaultBackend(outdir=outdir, flush_on_sigterm=True)
        except ValueError as error:
            errors.append(str(error))

    thread = threading.Thread(target=open_run)
    thread.start()
    thread.join()
    assert len(errors) == 1
    assert "main thread" in errors[0]
    with DefaultBackend(outdir=outdir) as backend:
        backend.ingest(run_of([3])[0])


# ---- fork --------------------------------------------------------------------------------------------------------------

FORK = """
backend = DefaultBackend(outdir=outdir, inmem_epochs=5, epochs_per_file=2)
for epoch in run_of([10] * 4):
    backend.ingest(epoch)
backend.flush()
backend.ingest(run_of([10], start=40)[0])
"""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_is_refused(outdir):
    """A child's copy of a backend raises `Forked` in every call that needs the run, and the parent goes on."""
    returned, out, err = ended(
        "import warnings; warnings.simplefilter('ignore')"  # Python 3.12 warns of fork with threads
        + FORK
        + """
from posterity import Forked
pid = os.fork()
if pid == 0:
    calls = {
        "ingest": lambda: backend.ingest(run_of([10])[0]), "nowait": lambda: backend.ingest_nowait(run_of([10])[0]),
        "set_burn": lambda: backend.set_burn(99), "clean": backend.clean, "reset": backend.reset, "close": backend.close,
        "flush": backend.flush, "update": backend.update, "get": backend.get, "get_samples": backend.get_samples,
        "snapshot": backend.snapshot, "updates": lambda: next(backend.updates()), "load": backend.load,
    }
    for name, call in calls.items():
        try:
            call()
        except Forked as error:
            assert str(os.getppid()) in str(error)
        else:
            tell(f"{name} was not refused")
    sys.exit(0)
assert os.waitpid(pid, 0)[1] == 0
backend.ingest(run_of([10], start=50)[0])
backend.flush()
try:
    DefaultBackend(outdir=outdir)
except BlockingIOError:
    tell("still locked")
""",
        outdir,
    )
    assert (returned, out, err) == (0, "still locked\n", "")
    np.testing.assert_array_equal(read_again(outdir), numbers(0, 60))


@pytest.mark.parametrize(
    "ending",
    ["sys.exit(0)", "os._exit(0)", "del backend; import gc; gc.collect(); sys.exit(0)", "os.kill(os.getpid(), 9)"],
)
def test_a_child_that_ends_touches_nothing(outdir, ending):
    """However a forked child ends, it doesn't hang, and neither folder nor lock change."""
    returned, out, err = ended(
        "import warnings; warnings.simplefilter('ignore')"
        + FORK
        + f"""
from pathlib import Path
def look():
    return {{path.name: (path.stat().st_mtime_ns, path.stat().st_size) for path in Path(outdir).iterdir()}}
backend.update()
before = look()
if not (pid := os.fork()):
    {ending}
os.waitpid(pid, 0)
assert look() == before
tell("same")
""",
        outdir,
    )
    assert (returned, out, err) == (0, "same\n", "")
    np.testing.assert_array_equal(read_again(outdir), numbers(0, 50))


@pytest.mark.parametrize("thing", ["DefaultBackend(outdir=outdir, inmem_epochs=2)", "backend.snapshot()"])
def test_a_child_leaves_the_with_statement(outdir, thing):
    """A child that is forked in a `with` block and leaves it doesn't hang, and its exit code is its own."""
    returned, out, err = ended(
        f"""
        import warnings
        warnings.simplefilter("ignore")
        backend = DefaultBackend(outdir=outdir + "/other", inmem_epochs=5)
        backend.ingest(run_of([10])[0])
        with {thing} as thing:
            if thing.__class__ is DefaultBackend:
                thing.ingest(run_of([10])[0])
            if not (pid := os.fork()):
                sys.exit(5)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5
        tell("left")
        """,
        outdir,
    )
    assert (returned, out, err) == (0, "left\n", "")


def test_a_child_that_inherits_a_held_lock(outdir):
    """A child that is forked while another thread hands over can't hang, whatever it calls."""
    code = """
    import warnings
    warnings.simplefilter("ignore")
    backend = DefaultBackend(outdir=outdir, inmem_epochs=50, epochs_per_file=1000)
    receipt = backend.ingest_nowait(run_of([1])[0])
    go_on = True

    def sample():
        n = 1
        while go_on:
            backend.ingest(run_of([1], start=n)[0])
            n += 1

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    for _ in range(30):
        snapshot = backend.snapshot()
        if not (pid := os.fork()):
            signal.alarm(5)
            snapshot.release()
            bool(receipt.durable.done)
            for call in (receipt.durable.wait, backend.get_samples, backend.flush, backend.close, backend.clean):
                try:
                    call()
                except (RuntimeError, OSError, ValueError):
                    pass
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        snapshot.release()
    go_on = False
    sampler.join()
    backend.close()
    """
    returned, _, err = ended(code, outdir)
    assert (returned, err) == (0, "")
    samples = read_again(outdir)
    np.testing.assert_array_equal(samples, numbers(0, samples.shape[2]))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_with_runs_of_their_own(outdir, tmp_path, method):
    """Worker processes that open runs of their own and forget to close them have everything on disk."""
    script = tmp_path / "workers.py"
    script.write_text(
        BEGIN.format(here=str(HERE))
        + textwrap.dedent(
            f"""
            import multiprocessing, warnings
            warnings.simplefilter("ignore")

            def sample(i):
                backend = DefaultBackend(outdir=f"{{outdir}}/{{i}}", inmem_epochs=2)
                for epoch in run_of([10] * 5):
                    backend.ingest(epoch)

            if __name__ == "__main__":
                mine = DefaultBackend(outdir=f"{{outdir}}/mine")
                mine.ingest(run_of([10])[0])
                context = multiprocessing.get_context("{method}")
                workers = [context.Process(target=sample, args=(i,)) for i in range(3)]
                for worker in workers:
                    worker.start()
                for worker in workers:
                    worker.join()
                    assert worker.exitcode == 0
                mine.ingest(run_of([10], start=10)[0])
            """
        )
    )
    done = subprocess.run([sys.executable, script, outdir], capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for i in range(3):
        np.testing.assert_array_equal(read_again(outdir / str(i)), numbers(0, 50))
    np.testing.assert_array_equal(read_again(outdir / "mine"), numbers(0, 20))


POOLS = {
    "a pool": "with multiprocessing.get_context('fork').Pool(2) as pool:\n    sample(pool)",
    "a pool that nobody ends": "pool = multiprocessing.get_context('fork').Pool(2)\nsample(pool)",
    "a pool that is left by an error": (
        "with multiprocessing.get_context('fork').Pool(2) as pool:\n    sample(pool)\n    raise ZeroDivisionError"
    ),
    "an executor": (
        "with concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context('fork')) as pool:\n    sample(pool)"
    ),
}


@pytest.mark.parametrize("sigterm", [False, True])
@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
def test_a_pool_that_computes(outdir, pool, sigterm):
    """Workers that are forked while the run is open, as emcee's users have them, compute, and end as they should."""
    returned, _, err = ended(
        f"""
import concurrent.futures, multiprocessing, warnings
warnings.simplefilter("ignore")

def log_prob(x):
    return -x * x

def sample(pool):
    for i, epoch in enumerate(run_of([10] * 20)):
        assert list(pool.map(log_prob, [i, 2])) == [-i * i, -4]
        backend.ingest(epoch)

backend = DefaultBackend(outdir=outdir, flush_on_sigterm={sigterm}, inmem_epochs=3, epochs_per_file=4)
{pool}
""",
        outdir,
    )
    is_error = "raise" in pool
    assert returned == is_error, err
    assert (err == "") is not is_error
    np.testing.assert_array_equal(read_again(outdir), numbers(0, 200))


def test_a_worker_dies_of_sigterm_at_once(outdir):
    """A forked child has the SIGTERM handler that there was before: Python can't overlook the signal, nor delay it."""
    assert ended(
        """
import warnings
warnings.simplefilter("ignore")
backends = [DefaultBackend(outdir=f"{outdir}/{i}", flush_on_sigterm=True) for i in range(3)]
if not (pid := os.fork()):
    os._exit(signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL)
assert os.waitpid(pid, 0)[1] == 0
assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
""",
        outdir,
    ) == (0, "", "")


# ---- two processes -----------------------------------------------------------------------------------------------------


def test_a_second_process_is_refused(outdir):
    """While a process writes a run another one is refused, which tells the holder's number; after that it may go on."""
    code = """
    backend = DefaultBackend(outdir=outdir)
    backend.ingest(run_of([10])[0])
    backend.flush()
    tell("open")
    input()
    backend.ingest(run_of([10], start=10)[0])
    """
    with Script(code, outdir) as script:
        script.wait_for("open")
        for _ in range(2):  # a refused opening doesn't take the lock away
            with pytest.raises(RunLocked, match=f"process {script.process.pid} .* since"):
                DefaultBackend(outdir=outdir)
        script.go_on()
        assert script.end()[0] == 0
    np.testing.assert_array_equal(read_again(outdir), numbers(0, 20))


def test_the_lock_of_a_killed_process_is_gone(outdir):
    """A killed holder leaves nothing behind that keeps the next one out."""
    with Script(
        "b = DefaultBackend(outdir=outdir); b.ingest(run_of([10])[0]); b.flush(); tell('open'); input()", outdir
    ) as script:
        script.wait_for("open")
        with pytest.raises(RunLocked):
            DefaultBackend(outdir=outdir)
        script.process.kill()
        script.end()
    np.testing.assert_array_equal(read_again(outdir), numbers(0, 10))


# ---- a full disk -------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """How to start a process that sees a small file system of its own, which goes with it."""
    folder = tmp_path / "small"
    folder.mkdir()
    unshare = shutil.which("unshare")
    shell = f'mount -t tmpfs -o size=4m tmpfs {folder} && exec "$@"'
    command = [unshare or "unshare", "--mount", "--map-root-user", "sh", "-c", shell, "sh"]
    if unshare is None or subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system lets us mount nothing")
    return command, folder


FULL_DISK = """
from posterity import MailboxFull, WriteFailed
import shutil
quick = dict(retry_after_s=0.01, retry_at_most_s=0.05, warn_free_bytes=0)

def flush_raises(backend):
    try:
        backend.flush()
    except WriteFailed as error:
        assert isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.ENOSPC, error.__cause__
        return True
    return False

def flushed(backend):
    while flush_raises(backend):
        pass

import errno
def fill(folder):
    with open(f"{folder}/ballast", "wb", buffering=0) as ballast:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while ballast.write(bytes(size)):
                    pass
            except OSError:
                pass
"""


def test_a_full_disk(small_disk):
    """On a full disk `flush` raises, nothing is lost, and all goes on by itself when there is room again."""
    command, folder = small_disk
    returned, out, err = ended(
        FULL_DISK
        + """
backend = DefaultBackend(outdir=f"{outdir}/run", epochs_per_file=3, **quick)
epochs = run_of([1000] * 8)
for epoch in epochs[:4]:
    backend.ingest(epoch)
backend.flush()
fill(outdir)
receipts = [backend.ingest_nowait(epoch) for epoch in epochs[4:]]
assert flush_raises(backend)
assert backend.status.epochs == 8 and backend.status.epochs_on_disk < 8
assert "No space" in backend.status.last_error
assert (backend.get_samples()["p"] == numbers(0, 8000)).all()
os.unlink(f"{outdir}/ballast")
receipts[-1].durable.wait(20)  # nobody asks for an attempt
backend.flush(publish=True)
assert backend.status.last_error is None
backend.close()
with DefaultBackend(outdir=f"{outdir}/run") as again:
    assert (again.get_samples(verify=True)["p"] == numbers(0, 8000)).all()
tell("all there")
""",
        folder,
        command=command,
    )
    assert (returned, out) == (0, "all there\n"), err


@pytest.mark.parametrize("on_full", ["wait", "raise"])
def test_ingest_on_a_full_disk(small_disk, on_full):
    """Once the mailbox is full `ingest` waits or raises, as configured, and goes on when there is room."""
    command, folder = small_disk
    returned, out, err = ended(
        FULL_DISK
        + f"""
backend = DefaultBackend(outdir=f"{{outdir}}/run", max_pending_epochs=2, on_full="{on_full}", **quick)
epochs = run_of([2000] * 12)
backend.ingest(epochs[0])
backend.flush()
fill(outdir)
for epoch in epochs[1:3]:
    backend.ingest(epoch)
assert flush_raises(backend)
try:
    backend.ingest(epochs[3], timeout_s=0.05)
except MailboxFull as error:
    assert error.__cause__.errno == errno.ENOSPC
    tell("full")
assert backend.status.epochs == 3
free = threading.Thread(target=lambda: (flush_raises(backend), os.unlink(f"{{outdir}}/ballast")))
free.start()
for epoch in epochs[3:]:
    if "{on_full}" == "raise":
        flushed(backend)
    backend.ingest(epoch)
free.join()
assert (backend.status.ingest_waited_s > 0) is ("{on_full}" == "wait")
backend.close()
with DefaultBackend(outdir=f"{{outdir}}/run") as again:
    assert (again.get_samples(verify=True)["p"] == numbers(0, 24000)).all()
tell("all there")
""",
        folder,
        command=command,
    )
    assert (returned, out) == (0, "full\nall there\n"), err


def test_a_burn_frees_a_full_disk(small_disk):
    """A burn of whole files makes room on a disk on which there is none left."""
    command, folder = small_disk
    returned, out, err = ended(
        FULL_DISK
        + """
backend = DefaultBackend(outdir=f"{outdir}/run", **quick)
for epoch in run_of([2000] * 10):
    backend.ingest(epoch)
backend.flush()
fill(outdir)
backend.ingest(run_of([2000], start=20_000)[0])
assert flush_raises(backend)
backend.set_burn(12_000)
flushed(backend)
backend.close()
with DefaultBackend(outdir=f"{outdir}/run") as again:
    assert (again.get_samples(verify=True)["p"] == numbers(12_000, 10_000)).all()
tell("all there")
""",
        folder,
        command=command,
    )
    assert (returned, out) == (0, "all there\n"), err


def test_lost_samples_are_told(small_disk):
    """If samples are lost at the end of the process, stderr says which, and the exit code isn't 0."""
    command, folder = small_disk
    returned, _, err = ended(
        FULL_DISK
        + """
backend = DefaultBackend(outdir=f"{outdir}/run", exit_timeout_s=0.2, **quick)
backend.ingest(run_of([1000])[0])
backend.flush()
fill(outdir)
for epoch in run_of([1000] * 2, start=1000):
    backend.ingest(epoch)
""",
        folder,
        command=command,
    )
    assert returned == 74
    assert "2 epochs" in err
    assert "1 to 2" in err
    assert "No space left" in err


@pytest.mark.parametrize("ending", ["sys.exit(0)", "sys.exit(3)", "raise ZeroDivisionError"])
def test_lost_samples_never_end_well(small_disk, ending):
    """However the script ends, and whatever pause the last failure made: lost samples give a non-zero exit code, soon."""
    command, folder = small_disk
    returned, _, err = ended(
        FULL_DISK
        + f"""
backend = DefaultBackend(outdir=f"{{outdir}}/run", exit_timeout_s=0.2, retry_after_s=100, retry_at_most_s=100)
fill(outdir)
backend.ingest(run_of([1000])[0])
flush_raises(backend)
{ending}
""",
        folder,
        command=command,
    )
    assert returned not in (0, -signal.SIGABRT)
    assert "posterity: 1 epochs" in err


def test_a_file_size_limit(outdir):
    """A limit on the size of files is an error of the disk like any other: nothing is lost, and the process lives."""
    returned, out, err = ended(
        """
        import errno, resource
        from posterity import WriteFailed
        options = {"retry_after_s": 0.01, "retry_at_most_s": 0.05, "exit_timeout_s": 1}
        backend = DefaultBackend(outdir=outdir, epochs_per_file=100, **options)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
        for epoch in run_of([1000] * 3):
            backend.ingest(epoch)
        backend.flush()
        for epoch in run_of([1000] * 7, start=3000):
            backend.ingest(epoch)
        try:
            backend.flush()
        except WriteFailed as error:
            assert error.__cause__.errno == errno.EFBIG, error.__cause__
            tell("too large")
        assert 3 <= backend.status.epochs_on_disk < 10
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        while True:
            try:
                backend.flush()
                break
            except WriteFailed:
                pass
        """,
        outdir,
    )
    assert (returned, out) == (0, "too large\n"), err
    np.testing.assert_array_equal(read_again(outdir), numbers(0, 10_000))


def test_a_run_on_a_full_disk_can_be_opened(small_disk):
    """A run on a full disk can be opened, read, and burned to make room."""
    command, folder = small_disk
    returned, out, err = ended(
        FULL_DISK
        + """
with DefaultBackend(outdir=f"{outdir}/run") as backend:
    for epoch in run_of([2000] * 10):
        backend.ingest(epoch)
fill(outdir)
with DefaultBackend(outdir=f"{outdir}/run", **quick) as backend:
    assert (backend.get_samples(verify=True)["p"] == numbers(0, 20_000)).all()
    backend.set_burn(12_000)
    flushed(backend)
    backend.ingest(run_of([2000], start=20_000)[0])
with DefaultBackend(outdir=f"{outdir}/run") as backend:
    assert (backend.get_samples(verify=True)["p"] == numbers(12_000, 10_000)).all()
tell("all there")
""",
        folder,
        command=command,
    )
    assert (returned, out) == (0, "all there\n"), err


@pytest.mark.parametrize("parent", ["", "mine = DefaultBackend(outdir=f'{outdir}/mine', **quick)"], ids=["", "writes"])
def test_a_worker_that_loses_samples(small_disk, parent):
    """A worker process that loses samples says so on stderr, and by its exit code, whatever its parent does."""
    command, folder = small_disk
    returned, out, err = ended(
        FULL_DISK
        + f"""
import multiprocessing, warnings
warnings.simplefilter("ignore")

def sample():
    backend = DefaultBackend(outdir=f"{{outdir}}/run", exit_timeout_s=0.1, **quick)
    backend.ingest(run_of([1000])[0])

{parent}
fill(outdir)
worker = multiprocessing.get_context("fork").Process(target=sample)
worker.start()
worker.join()
tell(worker.exitcode)
""",
        folder,
        command=command,
    )
    assert (returned, out) == (0, "74\n")
    assert "posterity: 1 epochs" in err


def test_a_folder_that_went_away(outdir):
    """If somebody removes the run folder the process says what it lost; until then what is in memory can be read."""
    returned, out, err = ended(
        """
        import shutil
        backend = DefaultBackend(outdir=outdir, retry_after_s=0.01, inmem_epochs=3, exit_timeout_s=0.1)
        for epoch in run_of([10] * 3):
            backend.ingest(epoch)
        backend.flush()
        shutil.rmtree(outdir)
        assert (backend.get_samples()["p"] == numbers(0, 30)).all()
        backend.ingest(run_of([10], start=30)[0])
        assert (backend.get(-1)["samples"]["p"] == numbers(30, 10)).all()
        tell("read")
        """,
        outdir,
    )
    assert (returned, out) == (74, "read\n"), err
    assert "1 epochs" in err
