"""Steps gathered into epochs: by bytes, by time, at the end of the run; and what reads see of them meanwhile."""

import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from posterity import (
    Closed,
    DefaultBackend,
    EpochMismatch,
    Forked,
    MailboxFull,
    NotStorable,
    NotWritten,
    State,
    WriteFailed,
    open_run,
)
from posterity._model.options import parse_options
from posterity._samplers.step_buffer import Steps
from posterity._writing.service import Service

NCHAIN, DIM = 3, 2
SHAPES = {"p": ((NCHAIN, DIM), np.dtype(float)), "n": ((), np.dtype(np.int64))}
STEP_BYTES = NCHAIN * DIM * 8 + 8


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def make_epoch(steps, state):
    return {"samples": {"p": steps["p"].transpose(1, 2, 0)}, "n": steps["n"], "state": {"last": state}}


def numbers(i):
    return i * 100.0 + np.arange(NCHAIN * DIM).reshape(NCHAIN, DIM)


def add(steps, *which):
    """Add steps as emcee does: in the same array again and again."""
    p = np.empty((NCHAIN, DIM))
    for i in which:
        p[...] = numbers(i)
        steps.add({"p": p, "n": i}, f"state {i}")


def stored(folder, nsteps, state=None):
    """What lies on disk are the first steps of the run, whole epochs, with the state of the last one."""
    with open_run(folder) as run:
        p = run.get_samples()["p"]
        np.testing.assert_array_equal(p.transpose(2, 0, 1), [numbers(i) for i in range(nsteps)])
        with run.snapshot() as snapshot:
            counts = np.concatenate([snapshot.get(i)["n"] for i in snapshot.epochs])
            np.testing.assert_array_equal(counts, np.arange(nsteps))
            assert snapshot.get()["state"] == {"last": state or f"state {nsteps - 1}"}
            return [entry.nsamples for entry in snapshot.registry.entries]


def seen(steps):
    """All steps that a read sees, as their numbers."""
    view = steps.view()
    with view.snapshot as snapshot:
        samples = snapshot.get_samples()
    parts = [] if samples is None else [samples["p"].transpose(2, 0, 1)]
    parts += [view.tail["p"]] if view.tail else []
    found = np.concatenate(parts) if parts else np.empty((0, NCHAIN, DIM))
    np.testing.assert_array_equal(found, np.array([numbers(i) for i in range(len(found))]).reshape(found.shape))
    assert steps.total == len(found)
    assert view.state == (f"state {len(found) - 1}" if len(found) else None)
    return len(found)


@pytest.fixture
def opened(tmp_path):
    """Makes the steps of a run in a folder; each run is closed at the end."""
    services = []

    def open_steps(*, clock=None, max_bytes=1 << 20, max_age_s=5.0, **options):
        service = Service(parse_options(0, tmp_path, options))
        services.append(service)
        steps = Steps(service, make_epoch, clock=clock or Clock(), max_bytes=max_bytes, max_age_s=max_age_s)
        steps.declare(SHAPES)
        return steps

    yield open_steps
    for service in services:
        close(service)


def close(service):
    service.ask_close()
    service.ledger.wait(lambda: service.ledger.state.is_over, 30)
    service.check_closed(30)


def epochs(steps):
    """How many samples each epoch has that was handed over."""
    return [entry.nsamples for entry in steps._service.ledger.registry.entries]


# ---- gathering -------------------------------------------------------------------------------------------------------


def test_steps_are_handed_over_when_the_bytes_are_reached(opened, tmp_path):
    """A block of `max_bytes` is one epoch; the step that doesn't fit into it begins the next one."""
    steps = opened(max_bytes=4 * STEP_BYTES)
    add(steps, *range(4))
    assert epochs(steps) == []
    add(steps, 4)
    assert epochs(steps) == [4]
    add(steps, *range(5, 10))
    assert epochs(steps) == [4, 4]
    assert seen(steps) == 10
    close(steps._service)
    assert stored(tmp_path, 10) == [4, 4, 2]


def test_a_step_larger_than_the_bytes_is_an_epoch(opened, tmp_path):
    """However few bytes are allowed, a step is taken."""
    steps = opened(max_bytes=1)
    add(steps, *range(3))
    close(steps._service)
    assert stored(tmp_path, 3) == [1, 1, 1]


def test_steps_are_handed_over_when_the_oldest_has_waited(opened):
    """Not before four fifths of the age have gone by, and counted from the oldest step, not from the newest."""
    clock = Clock()
    steps = opened(clock=clock, max_age_s=10.0)
    assert steps.hand_over_if_due() is None
    add(steps, 0)
    clock.now += 7.0
    add(steps, 1)
    assert steps.hand_over_if_due() == pytest.approx(1.0)
    assert epochs(steps) == []
    clock.now += 1.0
    assert steps.hand_over_if_due() is None
    assert epochs(steps) == [2]
    clock.now += 100.0
    assert steps.hand_over_if_due() is None
    add(steps, 2)
    assert steps.hand_over_if_due() == pytest.approx(8.0), "the age of the next block is counted from its own beginning"


def test_a_step_is_on_disk_in_time_although_no_other_one_comes(opened, tmp_path):
    """A slow likelihood: the timer hands the only step over, and nobody has to call anything."""
    steps = opened(clock=time.monotonic, max_age_s=0.0)
    add(steps, 0)
    ledger = steps._service.ledger
    assert ledger.wait(lambda: ledger.registry.nwritten == 1, 20)
    assert stored(tmp_path, 1) == [1]
    add(steps, 1)
    assert ledger.wait(lambda: ledger.registry.nwritten == 2, 20)
    assert stored(tmp_path, 2) == [1, 1]


def test_no_age_means_no_thread(opened):
    """With an infinite age steps are gathered by bytes alone."""
    steps = opened(max_age_s=math.inf)
    before = threading.active_count()
    add(steps, *range(100))
    assert threading.active_count() == before
    assert steps.hand_over_if_due() == math.inf


def test_one_thread_keeps_the_time_of_all_steps(opened):
    """The first step starts it; no other one does."""
    steps = opened()
    add(steps, 0)
    first = threading.active_count()
    add(steps, *range(1, 500))
    assert threading.active_count() == first
    assert sum(thread.name.startswith("posterity-steps") for thread in threading.enumerate()) == 1


def test_each_step_is_copied(opened):
    """The same array comes again and again, and is changed in between."""
    steps = opened()
    add(steps, *range(5))
    assert seen(steps) == 5


def test_a_view_is_the_callers_own(opened):
    """Steps that come later change nothing in it, and what is done to it changes no step."""
    steps = opened(max_bytes=3 * STEP_BYTES)
    add(steps, 0, 1)
    view = steps.view()
    view.tail["p"][...] = -1
    add(steps, *range(2, 9))
    view.snapshot.release()
    assert np.all(view.tail["p"] == -1)
    assert len(view.tail["p"]) == 2
    assert seen(steps) == 9


@pytest.mark.parametrize("bad", [{"max_bytes": 0}, {"max_age_s": -1.0}, {"max_age_s": math.nan}])
def test_impossible_limits_are_refused(opened, bad):
    """What can't be meant is refused where it is given."""
    with pytest.raises(ValueError, match=next(iter(bad))):
        opened(**bad)


# ---- steps that are refused ------------------------------------------------------------------------------------------


def test_a_step_that_has_another_shape_is_not_added(opened):
    """NumPy says so; the steps before and behind it are there."""
    steps = opened()
    add(steps, 0)
    with pytest.raises(ValueError, match="broadcast"):
        steps.add({"p": np.zeros((NCHAIN, DIM + 1)), "n": 1}, "state 1")
    add(steps, 1)
    assert seen(steps) == 2


def test_a_state_that_cannot_be_stored_is_refused_with_its_step(opened):
    """Not minutes later, in another thread, with all that was gathered by then."""
    steps = opened()
    with pytest.raises(NotStorable, match="state/last"):
        steps.add({"p": numbers(0), "n": 0}, object())
    add(steps, 0)
    assert seen(steps) == 1


def test_steps_that_do_not_fit_the_run_are_refused(opened, tmp_path):
    """Another number of chains is noticed at the first step."""
    steps = opened()
    add(steps, 0)
    steps.hand_over()
    steps.declare({**SHAPES, "p": ((NCHAIN + 1, DIM), np.dtype(float))})
    with pytest.raises(EpochMismatch, match="chains"):
        steps.add({"p": np.zeros((NCHAIN + 1, DIM)), "n": 1}, "state 1")
    assert steps.total == 1


def test_another_shape_hands_over_what_is_gathered(opened):
    """An epoch has one shape: what comes with another one is in another epoch."""
    steps = opened()
    add(steps, 0, 1)
    steps.declare({**SHAPES, "n": ((), np.dtype(np.int32))})
    add(steps, 2)
    assert epochs(steps) == [2]
    assert seen(steps) == 3


def test_a_reset_takes_what_is_gathered_with_it(opened, tmp_path):
    """Steps from before it are gone, and those after it are a run of their own."""
    steps = opened(max_bytes=4 * STEP_BYTES)
    add(steps, *range(6))
    steps._service.reset()
    assert seen(steps) == 0
    assert steps.state is None
    add(steps, *range(3))
    assert seen(steps) == 3
    close(steps._service)
    assert stored(tmp_path, 3) == [3]


def test_an_interrupt_behind_the_hand_over_doubles_no_step(opened, monkeypatch, tmp_path):
    """What was handed over is what the run's registry says: a Ctrl-C before we could note it changes nothing."""
    steps = opened(max_bytes=4 * STEP_BYTES)
    add(steps, *range(4))
    hand_over = steps._ledger.hand_over

    def interrupted(*args, **more):
        hand_over(*args, **more)
        raise KeyboardInterrupt

    monkeypatch.setattr(steps._ledger, "hand_over", interrupted)
    with pytest.raises(KeyboardInterrupt):
        add(steps, 4)
    monkeypatch.undo()
    assert seen(steps) == 4
    add(steps, *range(4, 7))
    close(steps._service)
    assert stored(tmp_path, 7) == [4, 3]


def test_readers_see_each_step_once_whoever_hands_over(opened, tmp_path):
    """The timer, the sampler and `hand_over` take turns as they come; a read is always the first steps of the run."""
    steps = opened(clock=time.monotonic, max_age_s=0.0, max_bytes=5 * STEP_BYTES)
    nsteps, ends = 600, threading.Event()
    found = []

    def read():
        while not ends.is_set():
            view = steps.view()
            with view.snapshot as snapshot:
                samples = snapshot.get_samples()
            parts = [] if samples is None else [samples["p"].transpose(2, 0, 1)]
            p = np.concatenate([*parts, *([view.tail["p"]] if view.tail else [])]) if parts or view.tail else []
            is_prefix = all(np.array_equal(one, numbers(i)) for i, one in enumerate(p))
            found.append((len(p), is_prefix, view.state == (f"state {len(p) - 1}" if len(p) else None)))
            steps.hand_over()

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    add(steps, *range(nsteps))
    ends.set()
    for reader in readers:
        reader.join()
    assert all(is_prefix and is_newest for _, is_prefix, is_newest in found)
    assert seen(steps) == nsteps
    close(steps._service)
    stored(tmp_path, nsteps)


# ---- a full mailbox --------------------------------------------------------------------------------------------------


def test_a_full_mailbox_makes_the_sampler_wait_and_readers_go_on(opened, monkeypatch):
    """While a step waits for room every read answers, and the step comes in its order when there is room."""
    steps = opened(max_bytes=2 * STEP_BYTES)
    ledger = steps._service.ledger
    asks, has_room = threading.Event(), threading.Event()
    is_for = ledger._room.is_for

    def is_for_later(ticket):
        asks.set()
        return has_room.is_set() and is_for(ticket)

    monkeypatch.setattr(ledger._room, "is_for", is_for_later)
    sampler = threading.Thread(target=add, args=(steps, *range(7)))
    sampler.start()
    assert asks.wait(20)
    assert seen(steps) == 2
    assert sampler.is_alive()
    has_room.set()
    ledger.announce()
    sampler.join(20)
    assert seen(steps) == 7


def test_a_full_mailbox_raises_where_that_is_asked_for(opened, monkeypatch):
    """The step isn't added, those before it stay, and it can be given again."""
    steps = opened(max_bytes=2 * STEP_BYTES, on_full="raise")
    monkeypatch.setattr(steps._service.ledger._room, "is_for", lambda ticket: False)
    add(steps, 0, 1)
    with pytest.raises(MailboxFull):
        add(steps, 2)
    assert seen(steps) == 2
    monkeypatch.undo()
    add(steps, 2)
    assert seen(steps) == 3


def test_closing_needs_no_room(opened, monkeypatch, tmp_path):
    """What is gathered is in memory already: it is handed over at the end, however full the mailbox is."""
    steps = opened(max_bytes=2 * STEP_BYTES)
    add(steps, *range(3))
    monkeypatch.setattr(steps._service.ledger._room, "is_for", lambda ticket: False)
    close(steps._service)
    assert stored(tmp_path, 3) == [2, 1]


# ---- the end ---------------------------------------------------------------------------------------------------------


def test_closing_the_run_writes_what_is_gathered_and_takes_no_more(opened, tmp_path):
    """Whoever closes it: the run asks for what is gathered first."""
    steps = opened()
    add(steps, *range(3))
    close(steps._service)
    assert steps.is_closed
    with pytest.raises(Closed, match="no more steps"):
        add(steps, 3)
    assert steps.total == 3
    assert stored(tmp_path, 3) == [3]


def test_a_face_that_nobody_has_any_more_writes_what_is_gathered(tmp_path):
    """A backend that is merely forgotten closes its run, and the timer keeps nothing alive."""
    service = Service(parse_options(0, tmp_path, {}))
    face = DefaultBackend._of(service)
    steps = Steps(service, make_epoch)
    steps.declare(SHAPES)
    add(steps, *range(3))
    del face
    ledger = service.ledger
    assert ledger.wait(lambda: ledger.state is State.CLOSED, 20)
    assert stored(tmp_path, 3) == [3]


@pytest.mark.usefixtures("loses_epochs")
def test_a_broken_writer_is_heard_of(tmp_path, monkeypatch, capfd, caplog):
    """Steps that can't be handed over any more are reported, who adds the next one gets the cause, the thread ends."""
    service = Service(parse_options(0, tmp_path, {}))
    steps = Steps(service, make_epoch, max_age_s=1000.0)
    steps.declare(SHAPES)
    add(steps, 0)
    monkeypatch.setattr(service.ledger, "next_work", lambda: 1 / 0)
    service.ledger.announce()
    steps._timer._thread.join(20)
    assert not steps._timer._thread.is_alive()
    with pytest.raises(WriteFailed, match="could not be handed over"):
        add(steps, 1)
    assert "1 steps of" in capfd.readouterr().err
    assert "1 steps of" in caplog.text
    with pytest.raises(NotWritten):
        service.check_closed(0)
    service.disk.leave()


SCRIPT = """
import os, signal, sys, threading
sys.path.insert(0, {here!r})
import numpy as np
from posterity._model.options import parse_options
from posterity._writing.service import Service
from posterity._samplers.step_buffer import Steps
from test_steps import SHAPES, add, make_epoch

service = Service(parse_options(0, sys.argv[1], dict({options})))
steps = Steps(service, make_epoch, max_age_s=1000.0)
steps.declare(SHAPES)
add(steps, *range(3))
"""


def script(folder, code, options="", **more):
    text = SCRIPT.format(here=str(Path(__file__).parent), options=options) + textwrap.dedent(code)
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", text, str(folder)],
        capture_output=True, text=True, timeout=50, check=False, **more,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("", 0),
        ("sys.exit(3)", 3),
        ("raise RuntimeError", 1),
        ("os.kill(os.getpid(), signal.SIGINT)", -signal.SIGINT),
        ("threading.Thread(target=add, args=(steps, 3, 4)).start()", 0),
    ],
    ids=["end of script", "sys.exit", "exception", "Ctrl-C", "a thread goes on"],
)
def test_the_end_of_the_process_writes_what_is_gathered(tmp_path, code, expected):
    """Without `close`, however the process ends, as long as Python gets to it."""
    done = script(tmp_path, code)
    assert done.returncode == expected, done.stderr
    stored(tmp_path, 5 if "Thread" in code else 3)


def test_sigterm_writes_what_is_gathered(tmp_path):
    """With `flush_on_sigterm`: and who adds a step just then waits for the end in place of an error."""
    code = """
    def sample():
        i = 3
        while True:
            add(steps, i)
            i += 1
    threading.Thread(target=sample, daemon=True).start()
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait()
    """
    done = script(tmp_path, code, "flush_on_sigterm=True")
    assert done.returncode == -signal.SIGTERM, done.stderr
    assert done.stderr == ""
    with open_run(tmp_path) as run, run.snapshot() as snapshot:
        nsteps = snapshot.nsamples
    assert nsteps >= 3
    stored(tmp_path, nsteps)


@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # JAX's, if another test has imported it
def test_a_forked_child_is_refused(opened):
    """It has a copy of what is gathered, and perhaps of a lock that nobody will give back."""
    steps = opened()
    add(steps, 0)
    with steps._lock:  # as if another thread had it at the fork
        child = os.fork()
        if not child:
            refused = 0
            for call in (lambda: add(steps, 1), steps.view, steps.hand_over):
                try:
                    call()
                except Forked:
                    refused += 1
            os._exit(refused)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    assert seen(steps) == 1
