"""Arrays of a device, fetched in slabs. JAX's own, on its CPU backend, which is made out to be a device of its own."""

import functools
import itertools
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from posterity import DefaultBackend
from posterity._ingest import device
from posterity._system.buffer_pool import Buffers

pytest.importorskip("jax")

import jax
import jax.numpy as jnp

pytestmark = pytest.mark.timeout(180)  # the first import of JAX and of what it compiles
SLAB = 1 << 13
LONG = 8_000  # steps: some tenths of a second
DTYPES = ["f4", "?", "c8", "f2"]

plus_one = jax.jit(lambda x: x + 1, donate_argnums=0)


@jax.jit
def compute(n):
    """A computation of `n` steps, with a result of some slabs, (2, 100, 100)."""
    turned = jax.lax.fori_loop(0, n, lambda _, x: jnp.sin(x @ x.T), jnp.eye(100) + 0.01)
    return jnp.stack([turned, turned + 1.0])


@functools.cache
def computed(n):
    """Its numbers."""
    return np.array(compute(n))


@pytest.fixture(autouse=True)
def _far_away(monkeypatch):
    """What JAX has on the CPU is as far away as what an accelerator has, and slabs are small."""
    monkeypatch.setattr(device, "is_on_cpu", lambda leaf: False)
    monkeypatch.setattr(device, "SLAB_BYTES", SLAB)
    monkeypatch.setattr(device, "_compiled", set())


@pytest.fixture
def transfers(monkeypatch):
    """The bytes of each transfer."""
    nbytes = []
    numbers = device._numbers

    def noted(leaf):
        nbytes.append(leaf.nbytes)
        return numbers(leaf)

    monkeypatch.setattr(device, "_numbers", noted)
    return nbytes


def take_over(leaf, *, copy=True, buffers=None, first=True):
    """`first`: it is the first array of its kind."""
    if not first:
        device._cut(leaf)
    return device.take_over(leaf, buffers or Buffers(1 << 30), copy=copy)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 5, 7001), (4 * SLAB,), (8 * SLAB + 1, 1, 1)])
def test_an_array_comes_as_it_is(dtype, shape, first, transfers):
    """Arrays of any dtype and shape are fetched bit for bit, no slab larger than it should be."""
    leaf = jax.random.randint(jax.random.key(1), shape, 0, 100).astype(dtype)
    array = take_over(leaf, first=first).fetch()
    assert (array.shape, array.dtype) == (shape, np.dtype(dtype))
    np.testing.assert_array_equal(array, leaf)
    assert array.flags.c_contiguous
    assert max(transfers) <= SLAB
    assert sum(transfers) == leaf.nbytes
    assert len(transfers) == -(-leaf.nbytes // SLAB)


@pytest.mark.parametrize("shape", [(), (0,), (1, 2, 3), (1, 1, SLAB // 4)])
def test_a_small_array_comes_at_once(shape, transfers):
    """What is no larger than a slab isn't cut."""
    leaf = jnp.ones(shape, "f4")
    np.testing.assert_array_equal(take_over(leaf).fetch(), leaf)
    assert transfers == [leaf.nbytes]


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("nsteps", [1, LONG], ids=["computed", "not yet computed"])
def test_a_large_array_may_be_donated(first, nsteps):
    """What is copied, or cut at once, may be donated, computed or not."""
    plus_one(compute(1).copy())  # so that nothing here waits for a compiler
    take_over(compute(1), first=first)
    leaf = compute(nsteps)
    taken = take_over(leaf)
    is_early = not leaf.is_ready()
    plus_one(leaf)
    assert leaf.is_deleted()
    assert is_early or nsteps == 1
    np.testing.assert_array_equal(taken.fetch(), computed(nsteps))


@pytest.mark.parametrize("nsteps", [1, LONG], ids=["computed", "not yet computed"])
def test_a_small_array_may_be_donated(nsteps):
    """What isn't cut is copied, unless it was given away."""
    leaf = compute(nsteps)[0, 0]
    taken = take_over(leaf)
    plus_one(leaf)
    assert leaf.is_deleted()
    np.testing.assert_array_equal(taken.fetch(), computed(nsteps)[0, 0])


def test_the_memory_is_used_again():
    """The numbers go into memory that another epoch had before."""
    buffers = Buffers(1 << 30)
    array = take_over(compute(1), buffers=buffers).fetch()
    assert not buffers._free
    del array
    assert len(buffers._free) == 1
    arrays = [take_over(compute(1), buffers=buffers).fetch()]
    assert (len(arrays), len(buffers._free)) == (1, 0)


def test_cutting_is_compiled_once_for_a_shape(caplog):
    """Arrays are cut by what was compiled for the first of their shape, and that when it was fetched."""
    leaf = jnp.ones((2, 3, 12_345))
    others = [leaf + i for i in range(3)]
    leaf.copy()
    with jax.log_compiles():
        first = take_over(leaf)
        assert "Compiling" not in caplog.text
        first.fetch()
        assert caplog.text.count("Finished XLA compilation") == 1
        caplog.clear()
        for other in others:
            np.testing.assert_array_equal(take_over(other).fetch(), other)
    assert "Compiling" not in caplog.text


def test_all_but_the_first_of_a_kind_are_cut_at_the_hand_over():
    """It must be queued before the sampler's next computation: later, it waits for that."""
    leaf = compute(1)
    take_over(leaf).fetch()
    before = len(jax.live_arrays())
    taken = take_over(leaf)
    assert len(jax.live_arrays()) == before + -(-leaf.nbytes // SLAB)
    np.testing.assert_array_equal(taken.fetch(), leaf)


def test_the_device_gets_its_memory_back():
    """Each slab is let go once it was fetched, and nothing is kept in the end."""

    def there():
        return sum(array.nbytes for array in jax.live_arrays())

    leaf = compute(1)
    take_over(leaf, first=False)
    before, nbytes = there(), leaf.nbytes
    taken = take_over(leaf)
    assert there() == before + nbytes
    del leaf
    left = []
    numbers = device._numbers

    def noted(slab):
        left.append(there() - (before - nbytes))
        return numbers(slab)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "_numbers", noted)
        array = taken.fetch()
    assert left == list(range(nbytes, 0, -SLAB))
    assert there() == before - nbytes
    assert array.nbytes == nbytes


def test_who_was_interrupted_goes_on(monkeypatch):
    """After a Ctrl-C in a read the rest is fetched, and what came already isn't fetched again."""
    numbers = device._numbers
    calls = itertools.count()

    def interrupted(slab):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return numbers(slab)

    monkeypatch.setattr(device, "_numbers", interrupted)
    leaf = compute(1)
    taken = take_over(leaf)
    with pytest.raises(KeyboardInterrupt):
        taken.fetch()
    np.testing.assert_array_equal(taken.fetch(), leaf)
    assert next(calls) == -(-leaf.nbytes // SLAB) + 1


def test_two_who_want_it_fetch_it_once(monkeypatch, transfers):
    """A reader who comes while an array is being fetched waits for that, and gets the same numbers."""
    goes_on, has_begun = threading.Event(), threading.Event()
    numbers = device._numbers

    def held_up(slab):
        has_begun.set()
        assert goes_on.wait(60)
        return numbers(slab)

    monkeypatch.setattr(device, "_numbers", held_up)
    leaf = compute(1)
    taken = take_over(leaf)
    got = []
    threads = [threading.Thread(target=lambda: got.append(taken.fetch())) for _ in range(2)]
    for thread in threads:
        thread.start()
        assert has_begun.wait(60)
    goes_on.set()
    for thread in threads:
        thread.join()
    assert got[0] is got[1]
    assert sum(transfers) == leaf.nbytes


ON_SEVERAL = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from posterity._ingest import device
from posterity._system.buffer_pool import Buffers

device.is_on_cpu = lambda leaf: False
device.SLAB_BYTES = int(sys.argv[1])
numbers, fetched = device._numbers, []
device._numbers = lambda slab: fetched.append(slab.nbytes) or numbers(slab)
plus_one = jax.jit(lambda x: x + 1, donate_argnums=0)
mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("a", "b"))
cube = np.arange(4 * 6 * 1000.0, dtype="f4").reshape(4, 6, 1000)
cases = [(cube, spec) for spec in [P("a"), P(("a", "b")), P(None, "a", "b"), P(None, None, "a"), P()]]
cases += [(cube.reshape(-1), spec) for spec in [P("a"), P(("a", "b")), P()]]
for expected, spec in cases:
    for _ in ("cut when it is fetched", "cut at once"):
        x = jax.device_put(expected, NamedSharding(mesh, spec))
        taken = device.take_over(x, Buffers(1 << 30), copy=True)
        plus_one(x)
        assert x.is_deleted()
        np.testing.assert_array_equal(taken.fetch(), expected)
        assert sum(fetched) == expected.nbytes
        assert max(fetched) <= device.SLAB_BYTES
        fetched.clear()
print(len(cases))
"""


@pytest.mark.parametrize("slab", [1 << 12, 1 << 16], ids=["several slabs each", "a slab each"])
def test_an_array_on_several_devices(slab):
    """Each device's share is cut on that device and put where it belongs; what all of them have is fetched once."""
    done = subprocess.run(
        [sys.executable, "-c", ON_SEVERAL, str(slab)],
        env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "8\n"


def test_arrays_that_were_given_away(transfers):
    """Without a copy, the first of its kind is cut later, and any other at once."""
    leaf = compute(1)
    for _ in range(2):
        np.testing.assert_array_equal(take_over(leaf, copy=False).fetch(), leaf)
    assert sum(transfers) == 2 * leaf.nbytes
    assert max(transfers) == SLAB


def test_a_run_of_arrays_in_slabs(tmp_path):
    """A sampler that donates its state hands over slabs; what is read and what is on disk are its numbers."""
    x, expected = compute(1), []
    with DefaultBackend(outdir=tmp_path / "run", inmem_epochs=1) as backend:
        for _ in range(5):
            x = plus_one(x)
            backend.ingest({"samples": {"p": x}})
            expected.append(np.array(x))
        np.testing.assert_array_equal(backend.get_samples()["p"], np.concatenate(expected, axis=2))
    with DefaultBackend(outdir=tmp_path / "run") as backend:
        np.testing.assert_array_equal(backend.get_samples()["p"], np.concatenate(expected, axis=2))
