"""Kernels of JAX run epoch by epoch: BlackJAX's and NumPyro's, stopped, killed, and continued bit for bit."""

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import anyio.lowlevel
import anyio.to_thread
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posterity import AsyncBackend, DefaultBackend, EpochMismatch, NotStorable, open_run
from posterity._samplers.jax.trees import describe, escaped, plain, restored, settled
from posterity.kernels import (
    ChainKernel,
    Kernel,
    NumpyroKernel,
    Tuned,
    get_info,
    get_info_async,
    get_positions,
    get_positions_async,
    run_kernel,
    run_kernel_async,
)

PROGRAM = Path(__file__).with_name("kernel_programs.py")
NWARMUP, NSAMPLES = 25, 10  # as there

pytestmark = pytest.mark.timeout(300)  # JAX compiles


class Walk(NamedTuple):
    """As the states of BlackJAX are."""

    position: Any
    logdensity: Any


class Told(NamedTuple):
    """As what BlackJAX tells of a step."""

    is_divergent: Any
    move: Any
    inner: Any


class Here(NamedTuple):
    """A part of a position."""

    at: Any
    none: None


def walk(key, state, width=1.0):
    """A walk over a named tuple within a dict: its steps are of some width."""
    here = state.position["here"]
    step = width * jax.random.normal(key, here.at.shape)
    at = here.at + step
    position = {"here": here._replace(at=at), "times": state.position["times"] + 1}
    told = Told(step[0] > 0, step, {"p": step.sum(), "of/both": at})
    return Walk(position, -0.5 * jnp.sum(at**2)), told


def somewhere(key):
    """Where one chain begins. The count is one that float32 can't hold."""
    position = {"here": Here(jax.random.normal(key, (2,)), None), "times": jnp.int32(2**24 + 1)}
    return Walk(position, jnp.float32(0))


def walking(**options):
    return ChainKernel(walk, somewhere, nchain=3, **options)


@pytest.fixture(scope="module")
def kernel():
    """The walk, compiled once for the tests that need nothing else."""
    return walking()


def sampled(outdir, kernel, epochs=2, **options):
    """The samples of a run, after some more epochs."""
    options = {"samples_per_epoch": 4, "key": jax.random.key(7)} | options
    with DefaultBackend(outdir=outdir) as backend:
        run_kernel(backend, kernel, options.pop("key"), epochs=epochs, **options)
        names = list(backend.load().samples)
        return backend.get_samples(pars=names)


def bits(value):
    """What something that was stored consists of, to be compared bit for bit."""
    if isinstance(value, dict):
        return {name: bits(member) for name, member in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(bits, value))
    return (value.dtype, value.shape, value.tobytes()) if isinstance(value, (np.ndarray, np.generic)) else value


# ---- what is stored --------------------------------------------------------------------------------------------------


def test_positions_come_back_with_their_structure(tmp_path, kernel):
    """Named tuples as dicts, or as what an example has; each leaf with its shape, dtype and exact numbers."""
    samples = sampled(tmp_path, kernel)
    with open_run(tmp_path) as run:
        x = get_positions(run)
        same = get_positions(run, thin=3, mask=[0, 2], like=somewhere(jax.random.key(0)).position)
        with pytest.raises(EpochMismatch, match="has 2 leaves"):
            get_positions(run, like=[1.0])
    assert list(x["here"]) == ["at", "none"]
    assert x["here"]["none"] is None
    np.testing.assert_array_equal(x["here"]["at"], samples["p"][:, :2].transpose(0, 2, 1))
    assert x["times"].dtype == np.int32
    np.testing.assert_array_equal(x["times"], np.tile(np.arange(8) + 2**24 + 2, (3, 1)))
    assert type(same["here"]) is Here
    np.testing.assert_array_equal(same["here"].at, x["here"]["at"][[0, 2], ::3])
    assert samples["p"].shape == (3, 3, 8)
    assert kernel.parameters() == ["here.at[0]", "here.at[1]", "times"]


def test_parameters_are_an_option_of_the_backend(tmp_path, kernel):
    """What a kernel calls its numbers can be given at opening."""
    with DefaultBackend(outdir=tmp_path, parameters=kernel.parameters()) as backend:
        run_kernel(backend, kernel, jax.random.key(7), epochs=1, samples_per_epoch=2)
        assert [each.name for each in backend.metadata.parameters["p"]] == kernel.parameters()


def test_one_number_for_each_draw_is_kept_by_default(tmp_path, kernel):
    """Under ArviZ's names; whatever isn't one number is left out."""
    samples = sampled(tmp_path, kernel)
    assert set(samples) == {"p", "times", "diverging", "lp"}
    assert (samples["diverging"].dtype, samples["lp"].shape) == (np.dtype(bool), (3, 1, 8))
    np.testing.assert_allclose(samples["lp"][:, 0], -0.5 * (samples["p"][:, :2] ** 2).sum(axis=1), rtol=1e-5)
    with open_run(tmp_path) as run:
        assert set(get_info(run)) == {"is_divergent", "logdensity"}


def test_any_info_can_be_kept(tmp_path):
    """A whole pytree of any shapes: each leaf as samples of its own, and back as it was; names are made ones for HDF5."""
    samples = sampled(tmp_path, walking(info=lambda _, info: info))
    assert set(samples) == {"p", "times", "diverging", "move", "inner.p", "inner.of%2Fboth"}
    assert samples["move"].shape == (3, 2, 8)
    with open_run(tmp_path) as run:
        info, told = get_info(run), get_info(run, like=Told(0, 0, {"p": 0, "of/both": 0}))
    np.testing.assert_array_equal(info["move"], samples["move"].transpose(0, 2, 1))
    np.testing.assert_array_equal(info["inner"]["p"], samples["inner.p"][:, 0])
    assert list(info["inner"]) == ["of/both", "p"]
    assert type(told) is Told
    np.testing.assert_array_equal(told.is_divergent, info["is_divergent"])


def test_an_info_named_p_is_not_the_position(tmp_path):
    """The position has that name; the other one gets another."""
    samples = sampled(tmp_path, walking(info=lambda _, info: {"p": info.move, "times": jnp.int8(3)}))
    assert set(samples) == {"p", "times", "info.p", "info.times"}
    with open_run(tmp_path) as run:
        assert (get_info(run)["times"] == 3).all()
        assert get_positions(run)["times"].min() > 2**24


@pytest.mark.parametrize(
    ("leaves", "dtype", "others"),
    [
        ({"a": jnp.float16(1.5), "b": jnp.float32(2)}, "f4", set()),
        ({"a": jnp.bfloat16(1.5)}, "f4", set()),
        ({"a": jnp.bool_(True), "b": jnp.bool_(False)}, "i1", set()),
        ({"a": jnp.int32(2**31 - 1), "b": jnp.int8(2)}, "i4", set()),
        ({"a": jnp.int16(2**15 - 1), "b": jnp.float32(2)}, "f4", set()),
        ({"a": jnp.int32(2**31 - 1), "b": jnp.float32(2)}, "f4", {"a"}),
        ({"a": jnp.uint32(2**32 - 1), "b": jnp.int32(-1)}, "i4", {"a"}),
        ({"a": jnp.complex64(1 + 2j), "b": jnp.float32(2)}, "c8", set()),
    ],
    ids=range(8),
)
def test_numbers_of_different_kinds_share_p(tmp_path, leaves, dtype, others):
    """ "p" has them all in one dtype; one that can't hold a leaf exactly doesn't have to: the leaf is stored once more."""
    kernel = ChainKernel(lambda _, state: (state, None), lambda _: leaves, nchain=1, position=lambda x: x)
    samples = sampled(tmp_path, kernel, epochs=1, samples_per_epoch=1)
    assert (samples["p"].dtype, set(samples)) == (np.dtype(dtype), {"p"} | others)
    with open_run(tmp_path) as run:
        x = get_positions(run)
    for name, leaf in leaves.items():
        assert x[name][0, 0] == np.asarray(leaf), name
        assert leaf.dtype == jnp.bfloat16 or x[name].dtype == leaf.dtype


def test_the_chain_does_not_depend_on_how_it_is_cut(tmp_path, kernel):
    """Each step splits its chain's key: epochs of another length, and thinned ones, have the same draws."""
    whole = sampled(tmp_path / "whole", kernel, 2)["p"]
    np.testing.assert_allclose(sampled(tmp_path / "cut", kernel, 4, samples_per_epoch=2)["p"], whole, rtol=1e-6)
    thin = sampled(tmp_path / "thin", kernel, 2, samples_per_epoch=2, thin=2)["p"]
    np.testing.assert_allclose(thin, whole[:, :, 1::2], rtol=1e-6)


def test_chains_that_begin_where_they_are_put(tmp_path):
    """In place of a function that gives a chain's start, the states of all; and tuning for each chain."""
    states = jax.vmap(somewhere)(jax.random.split(jax.random.key(1), 3))
    kernel = ChainKernel(walk, Tuned(states, {"width": jnp.array([0.0, 1.0, 10.0])}), nchain=3)
    p = sampled(tmp_path, kernel)["p"]
    np.testing.assert_array_equal(p[0, :2, 5], states.position["here"].at[0])
    assert np.abs(np.diff(p[2, 0])).max() > np.abs(np.diff(p[1, 0])).max() > 0
    with pytest.raises(ValueError, match="nchain"):
        ChainKernel(walk, somewhere, nchain=0)
    with pytest.raises(ValueError, match="num_warmup"):
        NumpyroKernel(None, nchain=1, num_warmup=-1)


# ---- running ---------------------------------------------------------------------------------------------------------


def test_epochs_is_how_many_the_run_has(tmp_path, kernel):
    """The same call again does nothing, or what is left to do; `until` ends it before."""
    asked = []
    sampled(tmp_path, kernel, 5, until=lambda nepochs: asked.append(nepochs) or nepochs == 3)
    assert asked == [1, 2, 3]
    assert sampled(tmp_path, kernel, 2)["p"].shape == (3, 3, 12)
    assert sampled(tmp_path, kernel, 5)["p"].shape == (3, 3, 20)
    for wrong in ({"samples_per_epoch": 0}, {"thin": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            sampled(tmp_path, kernel, 6, **wrong)


def test_a_run_goes_on_after_all_of_it_was_burned(tmp_path, kernel):
    """The last epoch's state is kept whatever burn takes."""
    whole = sampled(tmp_path / "whole", kernel, 3)["p"]
    with DefaultBackend(outdir=tmp_path / "burned", burn=8) as backend:
        run_kernel(backend, kernel, jax.random.key(7), epochs=2, samples_per_epoch=4)
    assert bits(sampled(tmp_path / "burned", kernel, 3)["p"]) == bits(whole[:, :, 8:])


@pytest.mark.parametrize(
    ("other", "options", "said"),
    [
        (walking, {"thin": 2}, "thin=1"),
        (lambda: ChainKernel(walk, somewhere, nchain=2), {}, "number of chains"),
        (lambda: walking(info=lambda *_: None), {}, "keeps what is stored"),
        (lambda: walking(position=lambda state: state.position["here"].at), {}, "keeps what is stored"),
        (lambda: ChainKernel(walk, lambda key: Tuned(somewhere(key), {"width": 2.0}), nchain=3), {}, "state.tuning"),
        (walking, {"key": jax.random.key(7, impl="rbg")}, "state.key"),
    ],
    ids=["thin", "nchain", "info", "position", "tuning", "key"],
)
def test_another_kernel_does_not_go_on_with_the_run(tmp_path, kernel, other, options, said):
    """It is refused before anything is handed over, with what differs."""
    before = sampled(tmp_path, kernel)
    with pytest.raises(EpochMismatch, match=said):
        sampled(tmp_path, other(), 3, **options)
    with open_run(tmp_path) as run:
        assert bits(run.get_samples()["p"]) == bits(before["p"])


class Gated(Kernel):
    """Counts. Its device goes on only when a gate is opened, once for each thing that it computes."""

    def __init__(self):
        self.gate = threading.Semaphore(0)
        self.asked = threading.Semaphore(0)

    def _wait(self):
        self.asked.release()
        assert self.gate.acquire(timeout=60), "the event loop is held up"

    def start(self, key):
        self._wait()
        return self.like(key)

    def like(self, _):
        return jnp.zeros((1,), jnp.int32)

    def move(self, state):
        return state + 1, state[:, None], None

    def sample_epoch(self, state, nsamples, thin):
        self._wait()
        return super().sample_epoch(state, nsamples, thin)


async def test_the_event_loop_is_free_while_the_device_computes(tmp_path):
    """The start and the epochs are computed while other tasks run: here they wait for one of them."""
    kernel, told = Gated(), []

    async def open_gates():
        for _ in range(4):
            await anyio.to_thread.run_sync(kernel.asked.acquire)
            kernel.gate.release()

    async def until(nepochs):
        await anyio.lowlevel.checkpoint()
        told.append(nepochs)
        return False

    async with AsyncBackend(outdir=tmp_path) as backend, anyio.create_task_group() as tasks:
        tasks.start_soon(open_gates)
        await run_kernel_async(backend, kernel, jax.random.key(0), epochs=3, samples_per_epoch=2, until=until)
        assert (await get_positions_async(backend))[0, :, 0].tolist() == [0, 1, 2, 3, 4, 5]
        assert await get_info_async(backend) is None
    assert told == [1, 2, 3]


async def test_the_awaited_loop_gives_the_same_chain(tmp_path, kernel):
    """What one face began the other continues, bit for bit."""
    whole = sampled(tmp_path / "blocking", kernel, 3)
    sampled(tmp_path / "both", kernel, 1)
    async with AsyncBackend(outdir=tmp_path / "both") as backend:
        key = jax.random.key(7)
        await run_kernel_async(backend, kernel, key, epochs=1, samples_per_epoch=4)
        await run_kernel_async(backend, kernel, key, epochs=9, samples_per_epoch=4, until=lambda nepochs: nepochs == 3)
        assert bits(await backend.get_samples(pars=list(whole))) == bits(whole)


class Pending:
    """An array as a device has it that is slow: it has a shape before it has numbers."""

    shape, dtype, nbytes = (1, 1, 1), np.dtype("f4"), 4

    def __init__(self):
        self.computed = threading.Event()

    def is_ready(self):
        return self.computed.is_set()

    def devices(self):
        return jax.devices()

    def block_until_ready(self):
        assert self.computed.wait(60), "nobody computes it"
        return self

    def __array__(self, dtype=None, copy=None):
        self.block_until_ready()
        return np.ones(self.shape, self.dtype)


def test_epochs_are_handed_over_before_they_are_computed(tmp_path):
    """The loop runs ahead of the device by two epochs and no more."""
    epochs = []

    class Slow(ChainKernel):
        def sample_epoch(self, state, nsamples, thin):
            epochs.append(Pending())
            return state, {"p": epochs[-1]}

    def until(nepochs):
        assert not any(epoch.is_ready() for epoch in epochs[-2:])
        if nepochs == 2:
            threading.Timer(0.05, epochs[0].computed.set).start()
        assert nepochs < 3 or epochs[0].is_ready()
        if nepochs == 3:
            for epoch in epochs:
                epoch.computed.set()
        return False

    kernel = Slow(lambda _, state: (state, None), lambda _: jnp.float32(1), nchain=1, position=lambda x: x)
    assert sampled(tmp_path, kernel, 3, samples_per_epoch=1, until=until)["p"].tolist() == [[[1, 1, 1]]]


# ---- states ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "state",
    [
        jax.random.key(1),
        jax.random.split(jax.random.key(1, impl="rbg"), 3),
        jax.random.PRNGKey(1),
        {"a": jnp.bfloat16(1.7), "b": Here(jnp.array([jnp.nan, -0.0]), None), "c": {("x", "y"): [jnp.int8(3), (), {}]}},
        {"": jnp.ones(2), ".": jnp.zeros(2), "a/b": jnp.ones(1), "a%2Fb": jnp.zeros(1)},
        [jnp.float32(i) for i in range(11)],
    ],
    ids=range(6),
)
def test_a_state_comes_back_bit_for_bit(tmp_path, state):
    """Keys, typed and raw, dtypes that NumPy doesn't know, containers and names that HDF5 can't have."""
    with DefaultBackend(outdir=tmp_path) as backend:
        backend.ingest({"samples": {"p": np.ones((1, 1, 1))}, "state": plain(state)})
    with open_run(tmp_path) as run:
        back = restored(run.load().state, jax.eval_shape(lambda: state))
    assert jax.tree.structure(back) == jax.tree.structure(state)
    assert [leaf.dtype for leaf in jax.tree.leaves(back)] == [leaf.dtype for leaf in jax.tree.leaves(state)]
    assert bits(plain(jax.tree.map(np.asarray, plain(back)))) == bits(plain(jax.tree.map(np.asarray, plain(state))))


def test_names_stay_different():
    """No two names become the same one for HDF5; those of a dict that are the same as text are refused."""
    names = ["", ".", "%", "%2E", "/", "%2F", "\0", "a", "..", "%25"]
    assert len({escaped(name) for name in names}) == len(names)
    alike = {("a", "b"): jnp.ones(1), ("a,b",): jnp.ones(1)}
    with pytest.raises(NotStorable, match="different as text"):
        plain(alike)
    with pytest.raises(NotStorable, match="different as text"):
        describe(alike, str)


def test_weak_types_are_settled():
    """A Python number in a state is an array like any other, so that one from a file is no other to JAX."""
    array = settled({"x": 1.0})["x"]
    assert (array.dtype, array.weak_type) == (np.float32, False)


# ---- stopped, killed, continued --------------------------------------------------------------------------------------


def stop_kill_and_continue(folder):
    """Have the program begin its runs in one process, which is killed, and continue them in another one."""
    compiled = {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_COMPILATION_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-W", "error", str(PROGRAM)]
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": os.environ | compiled}
    with subprocess.Popen([*command, "begin", str(folder)], **pipe) as process:
        printed, seen = [], set()
        for line in process.stdout:
            printed.append(line)
            name, _, nepochs = line.strip().rpartition(" ")
            seen |= {name} if nepochs.isdigit() else set()
            if {"mala", "numpyro"} <= seen:
                break
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL, "".join(printed)
    done = subprocess.run([*command, "continue", str(folder)], check=False, **pipe)
    assert done.returncode == 0, done.stdout
    return folder


@pytest.fixture(scope="module", autouse=True)
def work(request, tmp_path_factory):
    """The processes take long: they are at work while the other tests are, if any test asks for what they do."""
    if not any("runs" in item.fixturenames for item in request.session.items):
        yield None
        return
    with ThreadPoolExecutor(1) as thread:
        yield thread.submit(stop_kill_and_continue, tmp_path_factory.mktemp("runs"))


@pytest.fixture
def runs(work):
    """The folder of runs of BlackJAX's MALA and NumPyro's NUTS: stopped or killed, continued elsewhere; and whole ones."""
    return work.result()


@pytest.mark.parametrize("name", ["mala-stopped", "mala-killed", "numpyro-killed"])
def test_a_continued_run_is_that_of_one_that_never_stopped(runs, name):
    """Each array of each epoch, with keys, states and adaptation, is bit for bit the same; NumPyro's from its warm-up on."""
    kernel = name.partition("-")[0]
    with open_run(runs / name) as run, open_run(runs / f"{kernel}-whole") as whole:
        assert run.snapshot().epochs == whole.snapshot().epochs
        for index in whole.snapshot().epochs:
            assert bits(run.get(index)) == bits(whole.get(index)), index


def test_numpyros_positions_are_those_of_its_own_loop(runs):
    """All sites, constrained, deterministic ones too, are bit for bit those of `MCMC.get_samples`."""
    with open_run(runs / "numpyro-whole") as run:
        positions = get_positions(run, burn=NWARMUP)
        told = run.get_samples(pars=["lp", "diverging", "energy", "acceptance_rate", "n_steps", "step_size"])
    with np.load(runs / "numpyro.npz") as theirs:
        assert bits(positions) == bits(dict(theirs))
    assert positions["sigma"].shape == (2, positions["mu"].shape[1], 2)
    assert told["diverging"].dtype == bool
    assert told["n_steps"].min() >= 1
    np.testing.assert_array_less(told["lp"], told["lp"].max() + 1)
    assert np.ptp(told["step_size"][:, :, : NWARMUP - 1]) > 0
    assert np.ptp(told["step_size"][:, :, NWARMUP:], axis=2).max() == 0, "the warm-up is over"


def test_a_process_without_jax_gives_the_pytrees_back(runs):
    """Who reads a run needs no JAX, no sampler and no example: dicts, lists, tuples and None are as they were."""
    code = """
import sys
sys.modules["jax"] = None
from posterity import MissingExtra, open_run
from posterity.pytrees import get_info, get_positions
with open_run(sys.argv[1]) as run:
    x, info = get_positions(run, burn=5, thin=2), get_info(run)
    p = run.get_samples(burn=5, thin=2)["p"]
assert list(x) == ["more", "offset", "slope"] and type(x["more"]) is list and type(x["more"][0]) is tuple
matrix, nothing = x["more"][0]
n = p.shape[2]
assert nothing is None and matrix.shape == (3, n, 2, 2) and x["offset"].shape == (3, n, 2) and x["slope"].shape == (3, n)
assert (matrix[1, 3].reshape(4) == p[1, :4, 3]).all() and (x["slope"] == p[:, 6]).all()
assert info["is_accepted"].dtype == bool and info["logdensity"].shape[0] == 3
try:
    import posterity.kernels
except MissingExtra as error:
    assert "posterity[jax]" in str(error)
else:
    raise AssertionError
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(runs / "mala-whole")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
