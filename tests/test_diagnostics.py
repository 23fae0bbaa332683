"""Streaming R-hat, ESS and acceptance, against arviz-stats on the whole chain."""

import math
import tracemalloc

import emcee
import msgspec
import numpy as np
import pytest
from arviz_stats.base import array_stats
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import lfilter

from posterity import Diagnostics, Stop
from posterity._convergence.block_moments import Blocks, Moments, moments_of
from posterity._convergence.diagnostics import Chains

AXES = {"chain_axis": 0, "draw_axis": 2}
EXACT = {"rtol": 1e-10, "atol": 0}


def autoregressive(nchain, dim, n, *, phi, seed=1):
    """AR(1) chains `(nchain, dim, n)`, each started in its stationary distribution."""
    noise = np.random.default_rng(seed).normal(size=(nchain, dim, n))
    noise[:, :, 0] /= np.sqrt(1 - phi**2)
    return lfilter([1], [1, -phi], noise, axis=2)


def metropolis(nchain, dim, n, *, scale, seed=1):
    """Random-walk Metropolis on a standard normal distribution: samples repeat."""
    rng = np.random.default_rng(seed)
    x, chain = rng.normal(size=(nchain, dim)), np.empty((nchain, dim, n))
    for i in range(n):
        proposed = x + scale * rng.normal(size=x.shape)
        is_taken = np.log(rng.random(nchain)) < 0.5 * ((x**2).sum(axis=1) - (proposed**2).sum(axis=1))
        x = np.where(is_taken[:, None], proposed, x)
        chain[:, :, i] = x
    return chain


def ensemble(nwalkers, dim, n):
    """emcee's stretch move on a standard normal distribution."""
    sampler = emcee.EnsembleSampler(nwalkers, dim, lambda p: -0.5 * np.sum(p**2, axis=1), vectorize=True)
    start = emcee.State(np.random.default_rng(1).normal(size=(nwalkers, dim)))
    start.random_state = np.random.RandomState(1).get_state()
    sampler.run_mcmc(start, n)
    return sampler.get_chain().transpose(1, 2, 0)


@pytest.fixture
def few_blocks(monkeypatch):
    """Blocks are joined after some dozens of samples."""
    monkeypatch.setattr("posterity._convergence.diagnostics._LEAST_BLOCKS", 8)
    monkeypatch.setattr("posterity._convergence.diagnostics._MEANS_IN_ALL", 16)


def chains_of(samples, lengths=(), first=0):
    """The chains of `samples`, added in epochs of these lengths and the rest."""
    chains = Chains(first, {"p": samples.shape[:2]})
    for part in np.split(samples, np.cumsum(lengths, dtype=int), axis=2):
        if part.shape[2]:
            chains.add({"p": part})
    return chains


def told(samples, lengths=(), first=0):
    return chains_of(samples, lengths, first).diagnostics()


def moved(samples):
    """The fraction of samples that differ from the one before, for each chain."""
    return (samples[:, :, 1:] != samples[:, :, :-1]).any(axis=1).mean(axis=1)


def expected_rhat(samples, method):
    return array_stats.rhat(samples, method=method, **AXES)


def expected_ess(samples):
    return array_stats.ess(samples, method="mean", **AXES)


# ---- equal to arviz-stats ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phi", [-0.9, -0.5, 0.0, 0.5, 0.9, 0.999])
@pytest.mark.parametrize(("nchain", "n"), [(2, 4), (2, 5), (3, 6), (3, 7), (4, 37), (4, 1000), (40, 512)])
def test_short_chains_are_diagnosed_exactly(nchain, n, phi):
    """As long as each sample is a block, all is equal to arviz-stats to rounding."""
    samples = autoregressive(nchain, 3, n, phi=phi)
    found = told(samples, lengths=[1, n // 2])
    np.testing.assert_allclose(found.rhat["p"], expected_rhat(samples, "split"), **EXACT)
    np.testing.assert_allclose(found.classic_rhat["p"], expected_rhat(samples, "identity"), **EXACT)
    np.testing.assert_allclose(found.ess["p"], expected_ess(samples), **EXACT)
    np.testing.assert_allclose(found.acceptance, moved(samples), **EXACT)
    assert (found.nsamples, found.first, found.not_finite) == (n, 0, {})


@given(
    nchain=st.integers(2, 40),
    dim=st.integers(1, 3),
    lengths=st.lists(st.integers(1, 400), min_size=2, max_size=12),
    offset=st.sampled_from([0.0, 1.0, 1e4]),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=40)
def test_classic_rhat_and_acceptance_are_exact(nchain, dim, lengths, offset, seed, few_blocks):
    """However chains are cut into epochs and joined into blocks, what has an exact streaming form is exact."""
    samples = offset + np.random.default_rng(seed).integers(0, 3, (nchain, dim, sum(lengths) + 3)) / 7
    found = told(samples, lengths)
    np.testing.assert_allclose(found.classic_rhat["p"], expected_rhat(samples, "identity"), rtol=1e-10)
    np.testing.assert_allclose(found.acceptance, moved(samples), **EXACT)


LONG = [
    pytest.param(lambda: autoregressive(4, 8, 100_000, phi=0.0), 0.10, id="white"),
    pytest.param(lambda: autoregressive(4, 8, 100_000, phi=0.9), 0.10, id="AR(1) of 0.9"),
    pytest.param(lambda: autoregressive(4, 8, 100_000, phi=0.99), 0.05, id="AR(1) of 0.99"),
    pytest.param(lambda: autoregressive(4, 8, 100_000, phi=0.999), 0.05, id="AR(1) of 0.999"),
    pytest.param(lambda: autoregressive(1, 8, 100_000, phi=0.9), 0.12, id="a single chain"),
    pytest.param(lambda: autoregressive(64, 4, 10_000, phi=0.95), 0.06, id="many chains"),
    pytest.param(lambda: autoregressive(8, 8, 20_000, phi=-0.5), 0.10, id="antithetic"),
    pytest.param(lambda: autoregressive(64, 8, 700, phi=-0.5), 0.25, id="antithetic, blocks of two"),
    pytest.param(lambda: metropolis(8, 3, 20_000, scale=1.4), 0.10, id="Metropolis"),
    pytest.param(lambda: metropolis(8, 3, 20_000, scale=0.2), 0.05, id="Metropolis, small steps"),
    pytest.param(lambda: ensemble(16, 5, 5_000), 0.08, id="emcee"),
]


@pytest.mark.parametrize(("make", "tolerance"), LONG)
def test_long_chains_are_diagnosed_within_the_stated_tolerance(make, tolerance):
    """ESS comes from means of blocks: it is as near as the how-to page says. R-hat is nearer, or exact."""
    samples = make()
    found = told(samples, lengths=[777] * (samples.shape[2] // 777))
    np.testing.assert_allclose(found.ess["p"], expected_ess(samples), rtol=tolerance)
    if len(samples) > 1:
        np.testing.assert_allclose(found.classic_rhat["p"], expected_rhat(samples, "identity"), **EXACT)
        np.testing.assert_allclose(found.rhat["p"], expected_rhat(samples, "split"), atol=1e-3)
    np.testing.assert_allclose(found.acceptance, moved(samples), **EXACT)


def test_a_drift_shows_in_split_rhat_alone():
    """Chains that wander off together agree with each other, but not with their own past."""
    samples = autoregressive(4, 1, 50_000, phi=0.5) + np.linspace(0, 3, 50_000)
    found = told(samples, [10_000] * 5)
    assert found.classic_rhat["p"][0] < 1.01
    assert found.max_rhat > 1.1
    np.testing.assert_allclose(found.rhat["p"], expected_rhat(samples, "split"), rtol=2e-3)


# ---- at the edges ----------------------------------------------------------------------------------------------------


def test_a_single_chain_has_split_rhat():
    """One chain can disagree with itself: it has R-hat of its halves, and none of whole chains."""
    samples = autoregressive(1, 2, 5_000, phi=0.5)
    found = told(samples)
    half = np.concatenate([samples[:, :, :2500], samples[:, :, 2500:]])
    np.testing.assert_allclose(found.rhat["p"], expected_rhat(half, "identity"), **EXACT)
    assert all(map(math.isnan, found.classic_rhat["p"]))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_of_too_few_samples_nothing_is_said(n):
    """Below four samples R-hat and ESS are NaN, as arviz-stats has it, and no rule is met."""
    found = told(autoregressive(3, 2, n, phi=0.5))
    numbers = [*found.rhat["p"], *found.classic_rhat["p"], *found.ess["p"], found.max_rhat, found.min_ess]
    assert all(map(math.isnan, numbers))
    assert math.isnan(found.mean_acceptance) is (n == 1)
    assert not Stop(rhat=1e9, ess=0).is_met(found)


def test_what_never_changes_is_not_converged():
    """A chain that is stuck has all its samples as ESS, in arviz-stats too, but R-hat is NaN: no rule is met."""
    samples = np.full((3, 1, 5000), 2.5)
    found = told(samples, [100] * 49)
    assert math.isnan(found.max_rhat)
    assert found.acceptance == (0, 0, 0)
    np.testing.assert_array_equal(found.ess["p"], expected_ess(samples))
    assert not Stop().is_met(found)


def test_chains_stuck_in_different_places_disagree():
    """R-hat of chains that never move and differ is infinite."""
    found = told(np.arange(3.0)[:, None, None] + np.zeros((3, 1, 5000)))
    assert found.max_rhat == math.inf
    assert not Stop(ess=0).is_met(found)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e200])
@pytest.mark.parametrize("at", [3, 2_999, 49_999])
def test_what_is_not_finite_is_named(bad, at):
    """A component with a NaN or the like has NaN as its results and is named; the others are what they are."""
    samples = autoregressive(4, 3, 50_000, phi=0.5)
    clean = told(samples)
    samples[2, 1, at] = bad
    found = told(samples, [1000] * 49)
    assert found.not_finite == {"p": (1,)}
    assert all(math.isnan(each["p"][1]) for each in (found.rhat, found.classic_rhat, found.ess))
    assert (found.ess["p"][0], found.rhat["p"][2]) == pytest.approx((clean.ess["p"][0], clean.rhat["p"][2]), abs=0.01)
    assert math.isnan(found.max_rhat)
    assert not Stop(rhat=100, ess=0).is_met(found)


def test_a_burn_takes_what_is_not_finite():
    """Once the samples with a NaN are burned, it is gone."""
    samples = autoregressive(4, 3, 50_000, phi=0.5)
    samples[2, 1, 1000] = np.nan
    chains = chains_of(samples)
    assert chains.burn(5000)
    assert chains.diagnostics().not_finite == {}
    assert chains.diagnostics().max_rhat < 1.01


@pytest.mark.parametrize("dtype", ["f4", "f2", "i8", "u1", "?", "g", ">f8"])
def test_any_real_numbers_will_do(dtype):
    """Numbers are taken as float64, whatever they are."""
    samples = (10 + 3 * autoregressive(3, 2, 300, phi=0.5)).astype(dtype)
    if dtype == "?":
        samples[:, :, ::3] = False
    found = told(samples, [7] * 40)
    np.testing.assert_allclose(found.classic_rhat["p"], expected_rhat(samples.astype(float), "identity"), **EXACT)


def test_complex_numbers_are_refused():
    """There is no R-hat of complex numbers: the error names the samples, and nothing was added."""
    chains = chains_of(np.zeros((2, 1, 10)))
    with pytest.raises(TypeError, match=r"samples\['p'\].*complex128"):
        chains.add({"p": np.zeros((2, 1, 5), complex)})
    assert chains.stop == 10


def test_several_names_have_results_of_their_own():
    """Each name has its results, the summaries are of all, and acceptance is of the first."""
    p, q = metropolis(4, 2, 3000, scale=1.0), autoregressive(4, 1, 3000, phi=0.99)
    chains = Chains(0, {"p": (4, 2), "q": (4, 1)})
    for start in range(0, 3000, 100):
        chains.add({"p": p[:, :, start : start + 100], "q": q[:, :, start : start + 100]})
    found = chains.diagnostics()
    assert {name: len(ess) for name, ess in found.ess.items()} == {"p": 2, "q": 1}
    assert found.min_ess == found.ess["q"][0]
    assert found.max_rhat == max(found.rhat["p"] + found.rhat["q"])
    np.testing.assert_allclose(found.acceptance, moved(p), **EXACT)
    assert found.mean_acceptance == pytest.approx(moved(p).mean())


# ---- burn, memory, moments -------------------------------------------------------------------------------------------


@given(
    steps=st.lists(st.tuples(st.integers(1, 300), st.integers(0, 200)), min_size=1, max_size=30),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=40)
def test_a_burn_leaves_the_samples_that_it_says(steps, seed, few_blocks):
    """After any epochs and burns the results are those of the samples from `first` on, at most a block after the burn."""
    samples = np.random.default_rng(seed).integers(0, 4, (3, 2, sum(n for n, _ in steps))) / 7
    chains, stop, burn, began = Chains(0, {"p": (3, 2)}), 0, 0, 0
    for n, burned in steps:
        chains.add({"p": samples[:, :, stop : stop + n]})
        size = chains._names["p"].size
        stop, burn = stop + n, min(burn + burned, stop + n - 1)
        if not chains.burn(burn):
            assert stop - burn <= burn - began + 2 * size, "more is read again than was burned"
            began = burn
            chains = chains_of(samples[:, :, burn:stop], first=burn)
        found = chains.diagnostics()
        assert burn <= found.first <= burn + (stop - burn) / 4
        assert (found.first + found.nsamples, chains.stop) == (stop, stop)
        left = samples[:, :, found.first : stop]
        if found.nsamples >= 4:
            np.testing.assert_allclose(found.classic_rhat["p"], expected_rhat(left, "identity"), rtol=1e-9)
        if found.nsamples > 1:
            np.testing.assert_allclose(found.acceptance, moved(left), **EXACT)


def test_memory_does_not_grow_with_the_run():
    """Ten times as many samples take no more memory."""

    def needed(nepochs):
        tracemalloc.start()
        chains, epoch = Chains(0, {"p": (4, 2)}), autoregressive(4, 2, 1000, phi=0.5)
        for _ in range(nepochs):
            chains.add({"p": epoch})
        size = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return size

    assert needed(100) <= 1.05 * needed(10)


def test_many_components_take_bounded_memory():
    """A hundred thousand components of chains have fewer blocks, and not 800 MB."""
    chains = Chains(0, {"p": (1000, 100)})
    samples = np.random.default_rng(1).normal(size=(1000, 100, 80))
    chains.add({"p": samples})
    (blocks,) = chains._names.values()
    assert blocks.means.base.nbytes + blocks.squares.base.nbytes <= 110e6
    np.testing.assert_allclose(
        chains.diagnostics().classic_rhat["p"][:2], expected_rhat(samples[:, :2], "identity"), **EXACT
    )


@pytest.mark.parametrize("offset", [0.0, 1e6, 1e9])
def test_moments_do_not_cancel(offset):
    """Far from zero the variance keeps its digits, as when it is worked out in two passes."""
    x = offset + np.random.default_rng(1).normal(size=(2, 1, 10_000))
    blocks = Blocks(2, 1, 16)
    for part in np.split(x, 33 * np.arange(1, 300), axis=2):
        blocks.add(part)
    whole = blocks.moments(0, len(blocks)).joined(blocks.tail)
    assert (whole.n, blocks.nsamples) == (10_000, 10_000)
    np.testing.assert_allclose(whole.variance, x.var(axis=2, ddof=1), rtol=1e-7 if offset > 1e6 else 1e-10)


def test_moments_of_nothing():
    """To join nothing changes nothing; a single number has no variance."""
    some, nothing = moments_of(np.ones((1, 3))), Moments(0, np.zeros(1), np.zeros(1))
    assert some.joined(nothing) is some
    assert nothing.joined(some) is some
    assert np.isnan(moments_of(np.ones((1, 1))).variance).all()


# ---- the rule --------------------------------------------------------------------------------------------------------


def diagnostics(*, nsamples=1000, rhat=(1.005,), ess=(500.0,)):
    return Diagnostics(
        nsamples=nsamples, first=0, rhat={"p": rhat}, classic_rhat={"p": rhat}, ess={"p": ess}, acceptance=(0.5,)
    )


@pytest.mark.parametrize(
    ("found", "is_met"),
    [
        (diagnostics(), True),
        (diagnostics(rhat=(1.01,), ess=(400.0,)), True),
        (diagnostics(nsamples=999), False),
        (diagnostics(rhat=(1.005, 1.02)), False),
        (diagnostics(ess=(399.9, 1e9)), False),
        (diagnostics(rhat=(math.nan,)), False),
        (diagnostics(ess=(1e9, math.nan)), False),
        (diagnostics(rhat=()), False),
        (None, False),
    ],
)
def test_a_rule_is_met_when_all_of_it_is(found, is_met):
    """The worst component counts, what isn't known never meets it."""
    assert Stop(rhat=1.01, ess=400, min_samples=1000).is_met(found) is is_met


@pytest.mark.parametrize("given_rule", [{"rhat": 1.0}, {"rhat": math.nan}, {"ess": -1}, {"min_samples": -1}])
def test_a_rule_that_makes_no_sense_is_refused(given_rule):
    """What could never be met, or always is, is an error at once."""
    with pytest.raises(ValueError, match="must be"):
        Stop(**given_rule)


def test_diagnostics_can_be_printed_and_sent():
    """One line for people, and JSON for programs."""
    found = told(autoregressive(2, 2, 100, phi=0.1))
    assert str(found).startswith("100 samples: R-hat ")
    assert msgspec.json.decode(msgspec.json.encode(found), type=Diagnostics) == found
