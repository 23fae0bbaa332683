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


@pytest.mark.parametrize(
    "change", [lambda backend: backend.set_burn(3), lambda backend: backend.clean(), lambda _: None]
)
@pytest.mark.parametrize("inmem_epochs", [0, 2, 10])
def test_an_update_returns_for_a_run_that_is_continued(tmp_path, change, inmem_epochs):
    """Also where more is on disk than the policy would have written by now."""
    with DefaultBackend(outdir=tmp_path, epochs_per_file=2) as backend:
        for i in range(5):
            backend.ingest(epoch_dict(10 * i, 10))
    with DefaultBackend(outdir=tmp_path, inmem_epochs=inmem_epochs) as backend:
        change(backend)
        done = threading.Event()
        waiting = threading.Thread(target=lambda: (backend.update(), done.set()), daemon=True)
        waiting.start()
        assert done.wait(30)
        assert backend._service.store.catalog.registry().burn == backend.burn


@pytest.mark.parametrize("seed", range(30))
def test_to_be_settled_is_to_have_nothing_to_do(tmp_path, seed):
    """At rest both rules agree: no action is planned, and what is asked for now is there; before, neither holds."""
    chosen = np.random.default_rng(seed)
    options = {"epochs_per_file": int(chosen.integers(1, 5)), "inmem_epochs": int(chosen.integers(0, 4))}
    backend = SynchronousRun(Disk(tmp_path / "run"), **options)
    n = 0
    for _ in range(30):
        what = chosen.integers(0, 4)
        if what < 2:
            backend.ingest(run_of(0, n, 5 * n, 5))
            n += 1
        elif what == 2:
            burn = backend.ledger.registry.burn
            backend.ledger.set_burn(int(chosen.integers(burn, max(burn, 5 * n) + 4)))
        elif chosen.integers(0, 2):
            backend.settle()
        else:
            backend.step()
        is_idle = not backend.ledger._plan() and backend.ledger._is_tidy
        assert backend.ledger.is_settled(backend.ledger.ask_settled()) == is_idle
    backend.close()
