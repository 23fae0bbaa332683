"""JAX arrays in a hand-over: taken before they are computed, donated afterwards, given away."""

import numpy as np
import pytest

pytest.importorskip("jax")

import jax
import jax.numpy as jnp

from posterity import AsyncBackend, DefaultBackend, Epoch, NotStorable

pytestmark = pytest.mark.timeout(300)  # a computation may be made longer and longer, to outlast a busy machine
LENGTHS = (2_000, 8_000, 32_000, 128_000)  # a tenth of a second, and more


@jax.jit
def compute(n):
    """A computation of `n` steps, with a result (2, 100, 100)."""
    turned = jax.lax.fori_loop(0, n, lambda _, x: jnp.sin(x @ x.T), jnp.eye(100) + 0.01)
    return jnp.stack([turned, turned + 1.0])


plus_one = jax.jit(lambda x: x + 1.0, donate_argnums=0)


@pytest.fixture(scope="module", autouse=True)
def _compiled():
    """So that nothing here waits for a compiler."""
    plus_one(compute(1)).copy().block_until_ready()


@pytest.mark.parametrize("copy", [True, False])
def test_ingest_does_not_wait_for_the_device(tmp_path, copy):
    """`ingest` returns while the device is still at work, and the numbers are those that it then has."""
    expected = []
    with DefaultBackend(outdir=tmp_path / "run") as backend:
        for n in LENGTHS:
            x = compute(n)
            backend.ingest_dict({"samples": {"p": x}}, copy=copy)
            is_first = not x.is_ready()
            expected.append(x)
            if is_first:
                break
        np.testing.assert_array_equal(backend.get_samples()["p"], np.concatenate(expected, axis=2))
    assert is_first, "each computation was over when `ingest` returned"


async def test_an_awaited_ingest_does_not_wait_for_the_device(tmp_path):
    """The same for `AsyncBackend`, on asyncio and on trio."""
    async with AsyncBackend(outdir=tmp_path / "run") as backend:
        for n in LENGTHS:
            x = compute(n)
            await backend.ingest({"samples": {"p": x}})
            is_first = not x.is_ready()
            if is_first:
                break
        np.testing.assert_array_equal((await backend.get(-1))["samples"]["p"], x)
    assert is_first, "each computation was over when `ingest` returned"


def test_arrays_can_be_donated_after_ingest(tmp_path):
    """What is donated as soon as `ingest` returned, computed or not, has the numbers that it had."""
    expected = []
    with DefaultBackend(outdir=tmp_path / "run") as backend:
        for n in (1, 2_000, 2_000, 1):
            x = compute(n)
            backend.ingest({"samples": {"p": x}})
            plus_one(x)
            expected.append(compute(n))
        backend.flush()
        np.testing.assert_array_equal(backend.get_samples()["p"], np.concatenate(expected, axis=2))


def test_a_receipt_tells_when_arrays_given_away_may_be_donated(tmp_path):
    """With `copy=False` an array may be donated once its receipt says `released`."""
    with DefaultBackend(outdir=tmp_path / "run") as backend:
        x = compute(2_000)
        receipt = backend.ingest_nowait({"samples": {"p": x}}, copy=False)
        receipt.durable.wait(60)
        receipt.released.wait(60)
        y = plus_one(x)
        np.testing.assert_array_equal(backend.get()["samples"]["p"] + np.float32(1.0), y)


def test_pytrees_of_arrays_and_keys_come_back(tmp_path):
    """An `Epoch` of JAX arrays with a sampler's state and the key's numbers is loaded as it was."""
    key = jax.random.key(1)
    state = {"key": jax.random.key_data(key), "leaves": [jnp.arange(3), {"x": jnp.ones((2, 2))}]}
    with DefaultBackend(outdir=tmp_path / "run") as backend:
        backend.ingest(Epoch({"p": jnp.arange(24.0).reshape(2, 3, 4)}, state=state))
        backend.flush()
        epoch = backend.load()
    assert jax.tree.all(jax.tree.map(np.array_equal, epoch.state, state))
    assert jnp.all(jax.random.split(jax.random.wrap_key_data(epoch.state["key"])) == jax.random.split(key))


def test_a_typed_key_is_refused_with_the_way_out(tmp_path):
    """A key of `jax.random.key` has no bytes: the error names `key_data`."""
    with (
        DefaultBackend(outdir=tmp_path / "run") as backend,
        pytest.raises(NotStorable, match=r"state/key: .*jax\.random\.key_data"),
    ):
        backend.ingest({"samples": {"p": jnp.ones((1, 1, 1))}, "state": {"key": jax.random.key(1)}})
