"""Ctrl-C under `asyncio.run` and `trio.run`: once, twice, and until the process is gone. What was accepted is written.

asyncio cancels the main task at the first one, and ends the loop at the second; trio raises `KeyboardInterrupt` in the
main task, whatever is shielded there.
"""

import signal

import numpy as np
import pytest

from known import numbers
from test_endings import GATE, INTERRUPTED, STILL_WRITING, Script, read_again

# "waiting" is told when the main task is about to wait; writing waits until the test says `go_on`.
AWAITED = """
import anyio, asyncio, trio
from posterity import AsyncBackend
from posterity._writing import awaited

async def tell_and_wait(ledger, condition, until=awaited.until):
    tell("waiting")
    await until(ledger, condition)

async def main():
    async with AsyncBackend(outdir=outdir, {options}) as backend:
        for epoch in run_of([10] * 2):
            await backend.ingest(epoch)
        {state}

sys.stderr = sys.stdout
awaited.until = tell_and_wait
{loop}
"""
LOOPS = {"asyncio": "asyncio.run(main())", "trio": "trio.run(main)"}
STATES = {
    "idle": ("inmem_epochs=2", "tell('waiting'); await anyio.sleep_forever()"),
    "waiting for room": ("max_pending_epochs=2", "await backend.ingest(run_of([10], start=20)[0])"),
    "a write under way": ("", "is_at_gate.wait(); await backend.flush()"),
    "aclose": ("", "await backend.aclose()"),
}


@pytest.fixture(params=LOOPS)
def loop(request):
    return request.param


def started(outdir, loop, state):
    """A script whose main task is in a state."""
    options, then = STATES[state]
    script = Script(GATE + AWAITED.format(options=options, state=then, loop=LOOPS[loop]), outdir)
    script.wait_for("waiting")
    return script


@pytest.mark.parametrize("ntimes", [1, 2], ids=["once", "twice"])
@pytest.mark.parametrize("state", STATES)
def test_control_c_in_each_state(tmp_path, loop, state, ntimes):
    """All that was accepted is on disk, and the process dies of the Ctrl-C.

    The first one ends what is waited for, and the backend is closed; the second one ends the waiting for that.
    """
    with started(tmp_path / "run", loop, state) as script:
        script.signal_until(signal.SIGINT, "waiting")
        if ntimes == 2:
            script.signal_until(signal.SIGINT, "ended")
        script.go_on()
        returned, out, err = script.end()
    assert (returned, err) == (-signal.SIGINT, ""), out
    np.testing.assert_array_equal(read_again(tmp_path / "run"), numbers(0, 20))


def test_who_insists_is_told_what_is_lost(tmp_path, loop):
    """Who goes on when the loop has ended is warned, then told which epochs are lost; the exit code is 74."""
    outdir = tmp_path / "run"
    with started(outdir, loop, "a write under way") as script:
        for word in ("waiting", "ended", STILL_WRITING):
            script.signal_until(signal.SIGINT, word)
        script.signal_until(signal.SIGINT, f"posterity: 2 epochs of {outdir} were lost, 0 to 1: {INTERRUPTED}")
        returned, out, err = script.end()
    assert (returned, err) == (74, ""), out
