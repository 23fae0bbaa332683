"""Ctrl-C once, twice and again under asyncio and trio: each in a process of its own, whose run is read again after.

asyncio turns the first one into a cancellation of the main task, and raises the second one wherever it is; trio raises
both in the main task. The block of the backend waits for all to be written, and the second one ends that waiting.
"""

import signal

import numpy as np
import pytest

from known import numbers
from test_endings import GATE, INTERRUPTED, STILL_WRITING, Script, read_again

LOOPS = {"asyncio": "import asyncio; asyncio.run(main())", "trio": "import trio; trio.run(main)"}
STATES = {
    "idle": "tell('waiting'); await anyio.sleep_forever()",
    "ingest": "await backend.ingest(run_of([10], start=20)[0])",
    "writing": "await anyio.to_thread.run_sync(is_at_gate.wait); await backend.flush()",
    "closing": "await backend.aclose()",
}


def code_of(loop, state):
    """A script that hands two epochs over, which the gate keeps from the disk; "waiting" is told at each wait for it."""
    return f"""{GATE}
import anyio, anyio.to_thread
from posterity import AsyncBackend
from posterity.waiting import _Chime
sys.stderr = sys.stdout
until = _Chime.until

async def tell_and_wait(chime, condition):
    if not chime._ledger.holds(condition):
        tell("waiting")
    await until(chime, condition)

_Chime.until = tell_and_wait

async def main():
    async with AsyncBackend(outdir=outdir, max_pending_epochs=2) as backend:
        for epoch in run_of([10] * 2):
            await backend.ingest(epoch)
        {STATES[state]}

{LOOPS[loop]}
"""


@pytest.fixture
def outdir(tmp_path):
    return tmp_path / "run"


@pytest.mark.parametrize(("state", "ntimes"), [("idle", 1), *((state, 2) for state in STATES)])
@pytest.mark.parametrize("loop", LOOPS)
def test_control_c_in_each_state(outdir, loop, state, ntimes):
    """What was handed over is on disk, an epoch that waited for room isn't part of the run, and the process dies of it.

    The second Ctrl-C comes while the block is being left.
    """
    with Script(code_of(loop, state), outdir) as script:
        script.wait_for("waiting")
        script.signal_until(signal.SIGINT, "waiting")
        if ntimes == 2:
            script.signal_until(signal.SIGINT, "ended")
        script.go_on()
        returned, out, err = script.end()
    assert (returned, err) == (-signal.SIGINT, ""), out
    np.testing.assert_array_equal(read_again(outdir), numbers(0, 20))


@pytest.mark.parametrize("loop", LOOPS)
def test_who_insists_is_told_what_is_lost(outdir, loop):
    """Two more of them end the process although its disk hangs: it says what is lost, and its exit code is 74."""
    with Script(code_of(loop, "idle"), outdir) as script:
        script.wait_for("waiting")
        script.signal_until(signal.SIGINT, "waiting")
        script.signal_until(signal.SIGINT, "ended")
        script.signal_until(signal.SIGINT, STILL_WRITING)
        script.signal_until(signal.SIGINT, f"posterity: 2 epochs of {outdir} were lost, 0 to 1: {INTERRUPTED}")
        returned, out, err = script.end()
    assert (returned, err) == (74, ""), out
