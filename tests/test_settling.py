"""`update` and `reset` wait for what there was when they were called, and for nothing that comes later."""

import threading

import anyio
import numpy as np
import pytest

from known import epoch_dict
from posterity import AsyncBackend, DefaultBackend
from posterity._system.disk import Disk
from synchronous import SynchronousRun, run_of

MOST_ROUNDS = 6


@pytest.mark.parametrize(
    "given", [{}, {"epochs_per_file": 3}, {"inmem_epochs": 2}, {"epochs_per_file": 3, "inmem_epochs": 4}]
)
@pytest.mark.parametrize("burns", [False, True])
def test_what_is_handed_over_meanwhile_delays_no_update(tmp_path, given, burns):
    """A writer that never finds a moment without work still settles what was there, in as many rounds as without."""
    backend = SynchronousRun(Disk(tmp_path / "run"), **given)
    for i in range(7):
        backend.ingest(run_of(0, i, 5 * i, 5))
    if burns:
        backend.ledger.set_burn(12)
    asked = backend.ledger.ask_settled()
    n, rounds = 7, 0
    while not backend.ledger.is_settled(asked):
        backend.ingest(run_of(0, n, 5 * n, 5))
        if burns:
            backend.ledger.set_burn(5 * n - 20)
        n += 1
        assert backend.step(), "there is work in each round"
        rounds += 1
        assert rounds < MOST_ROUNDS
    registry = backend.ledger.registry
    assert registry.nwritten >= 7 - given.get("inmem_epochs", 0)
    assert not burns or registry.stored_burn >= 12
    backend.close()


def test_a_reset_returns_beside_a_busy_sampler(tmp_path):
    """The old run's files are gone when it returns; the new run may be as busy as it likes."""
    with DefaultBackend(outdir=tmp_path / "run", max_pending_epochs=20) as backend:
        stop = threading.Event()

        def sample():
            while not stop.is_set():
                backend.ingest({"samples": {"p": np.zeros((4, 10, 50))}})

        samplers = [threading.Thread(target=sample) for _ in range(3)]
        for sampler in samplers:
            sampler.start()
        try:
            for call in (backend.update, backend.reset, backend.update, backend.reset):
                done = threading.Event()
                waiting = threading.Thread(target=lambda call=call, done=done: (call(), done.set()), daemon=True)
                waiting.start()
                assert done.wait(30), f"{call.__name__} has not returned"
        finally:
            stop.set()
            for sampler in samplers:
                sampler.join()


async def test_an_awaited_update_returns_beside_a_busy_sampler(tmp_path):
    """As the blocking one."""
    async with (
        AsyncBackend(outdir=tmp_path / "run", max_pending_epochs=20) as backend,
        anyio.create_task_group() as tasks,
    ):

        async def sample():
            while True:
                await backend.ingest(epoch_dict(0, 10))

        tasks.start_soon(sample)
        tasks.start_soon(sample)
        with anyio.fail_after(30):
            await backend.update()
            await backend.reset()
            await backend.update()
        tasks.cancel_scope.cancel()
