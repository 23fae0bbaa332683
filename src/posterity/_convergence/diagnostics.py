"""Whether chains have converged, from what `block_moments` keeps of them: R-hat, ESS and acceptance. Pure.

The formulas are those of Vehtari et al. (2021), Bayesian Analysis 16, 667, as arviz-stats has them, without ranks:
ranks need the whole chain. As long as each sample is a block the results are those of arviz-stats, to rounding. After
that R-hat without halves still is. Halves are parted at the border of a block. And ESS is worked out from the means of
blocks, as of a chain of fewer and longer steps.

Up the stream: `diagnosis` hands the samples in. Down the stream: `Stop`, status, whoever watches a run.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
import numpy as np

from .block_moments import Blocks, Floats, Moments

if TYPE_CHECKING:
    import numpy.typing as npt

Array: TypeAlias = "npt.NDArray[Any]"

_MEANS_IN_ALL = 8192  # of blocks, over all chains: ESS is as noisy as their variance
_LEAST_BLOCKS, _MOST_BLOCKS = 256, 4096
_FEWEST_BLOCKS = 32
_BLOCKS_IN_ALL = 1 << 21  # of all components of all chains, but for the fewest: 64 MB, if there are twice as many
_AT_ONCE = 1 << 17  # numbers looked at at once: what is made of them stays in the processor's cache
_SAMPLES_AT_ONCE = 16  # or so many samples, if that is more
_RESOLUTION = 1e-15  # what arviz-stats takes for constant
_FEWEST = 4  # samples in a chain, of which nothing can be said


class Diagnostics(msgspec.Struct, frozen=True, kw_only=True):
    """What chains tell about themselves. Names are those of samples; tuples have a number for each component.

    `nsamples`: samples of each chain that it is about, from position `first` of the run on. `first` is where the burn
    is, or a block later (see `Chains`). `rhat`: of half chains, `arviz_stats.rhat(method="split")`, also of a single
    chain. `classic_rhat`: of whole chains (`method="identity"`); NaN of a single one. `ess`: of the mean,
    `arviz_stats.ess(method="mean")`. Of fewer than 4 samples they are NaN, and R-hat of what never changes.
    `acceptance`: for each chain, the fraction of steps that changed a component of the first name. `not_finite`: the
    components that have a NaN or an infinity, or numbers too large to be squared; their other results are NaN.
    """

    nsamples: int
    first: int
    rhat: dict[str, tuple[float, ...]]
    classic_rhat: dict[str, tuple[float, ...]]
    ess: dict[str, tuple[float, ...]]
    acceptance: tuple[float, ...]
    not_finite: dict[str, tuple[int, ...]] = {}

    @property
    def max_rhat(self) -> float:
        """The largest R-hat of half chains; NaN if one of them is."""
        return _worst(self.rhat, largest=True)

    @property
    def min_ess(self) -> float:
        """The smallest ESS; NaN if one of them is."""
        return _worst(self.ess, largest=False)

    @property
    def mean_acceptance(self) -> float:
        """The acceptance of all chains together."""
        return sum(self.acceptance) / len(self.acceptance)

    def __str__(self) -> str:
        return (
            f"{self.nsamples} samples: R-hat {self.max_rhat:.4f}, ESS {self.min_ess:.0f}, "
            f"acceptance {self.mean_acceptance:.2f}"
        )


def _worst(found: Mapping[str, tuple[float, ...]], *, largest: bool) -> float:
    numbers = [number for each in found.values() for number in each]
    if not numbers or any(map(math.isnan, numbers)):
        return math.nan
    return max(numbers) if largest else min(numbers)


class Stop(msgspec.Struct, frozen=True, kw_only=True):
    """When sampling may stop: R-hat at most `rhat`, ESS at least `ess`, and `min_samples` in each chain.

    Raises:
        ValueError: `rhat` isn't above 1, or `ess` or `min_samples` is below 0: that would never, or always, be met.
    """

    rhat: float = 1.01
    ess: float = 400.0
    min_samples: int = 0

    def __post_init__(self) -> None:
        if not self.rhat > 1:
            raise ValueError(f"rhat must be above 1, got {self.rhat}")
        if not (self.ess >= 0 and self.min_samples >= 0):
            raise ValueError(f"ess and min_samples must be at least 0, got {self.ess} and {self.min_samples}")

    def is_met(self, diagnostics: Diagnostics | None) -> bool:
        """Whether that is so. What isn't known (None, NaN) doesn't meet it."""
        return (
            diagnostics is not None
            and diagnostics.nsamples >= self.min_samples
            and diagnostics.max_rhat <= self.rhat
            and diagnostics.min_ess >= self.ess
        )


class Chains:
    """The chains of some names, from position `first` of the run on, as far as they were added.

    There are 256 blocks or more, half as many after a burn, which takes whole ones. With more than 8192 components of
    all chains together there may be fewer, down to 32. Memory is bounded: 0.3 MB for each component of up to 32 chains,
    64 MB if there are many, and 1 kB for each component of a chain above that. What is added costs its size, what is
    asked costs the same however long the chains are.
    """

    def __init__(self, first: int, shapes: Mapping[str, tuple[int, int]]) -> None:
        """`shapes`: name -> number of chains, which all names share, and of components."""
        nchain = next(iter(shapes.values()))[0]
        nseries = nchain * sum(dim for _, dim in shapes.values())
        least = min(max(_MEANS_IN_ALL // nchain, _LEAST_BLOCKS), _MOST_BLOCKS)
        least = min(least, max(_BLOCKS_IN_ALL // nseries, _FEWEST_BLOCKS))
        self.first = first
        self._least = least
        self._names = {name: Blocks(nchain, dim, 2 * least) for name, (_, dim) in shapes.items()}
        self._moves = Blocks(nchain, 1, 2 * least)  # one fewer: from each sample to the next
        self._last: Array | None = None

    @property
    def stop(self) -> int:
        """The position after the last sample that was added."""
        return self.first + next(iter(self._names.values())).nsamples

    def add(self, samples: Mapping[str, Array]) -> None:
        """Take in the next samples: name -> array `(nchain, dim, n)` of real numbers.

        Raises:
            TypeError: numbers aren't real.
        """
        for name, array in samples.items():
            if array.dtype.kind not in "biuf":
                raise TypeError(f"samples[{name!r}] has dtype {array.dtype}: only real numbers can be diagnosed")
        n = next(iter(samples.values())).shape[2]
        step = max(_SAMPLES_AT_ONCE, _AT_ONCE // max(len(array) * array.shape[1] for array in samples.values()))
        for start in range(0, n, step):
            self._add({name: array[:, :, start : start + step] for name, array in samples.items()})

    def _add(self, samples: Mapping[str, Array]) -> None:
        with np.errstate(all="ignore"):  # NaN and infinities come out as such
            for name, blocks in self._names.items():
                blocks.add(np.asarray(samples[name], np.float64))
            moving = samples[next(iter(self._names))]
            if self._last is not None:
                moving = np.concatenate([self._last, moving], axis=2)
            self._last = moving[:, :, -1:].copy()
            while self._moves.size < next(iter(self._names.values())).size:
                self._moves.coarsen()
            moved = (moving[:, :, 1:] != moving[:, :, :-1]).any(axis=1, keepdims=True)
            self._moves.add(moved.astype(np.float64))

    def burn(self, burn: int) -> bool:
        """Leave out the samples before position `burn`, and those of the block that it falls into.

        Returns whether enough blocks are left. If not, what is left is to be added anew, from `burn` on: no more than
        was burned.
        """
        if burn <= self.first:
            return True
        blocks = next(iter(self._names.values()))
        count = -(-(burn - self.first) // blocks.size)
        left = len(blocks) - count
        if left <= 0 or (2 * left < self._least and blocks.size > 1):
            return False
        for each in (*self._names.values(), self._moves):
            each.drop(count)
        self.first += count * blocks.size
        return True

    def diagnostics(self) -> Diagnostics:
        """What they tell now."""
        nsamples = self.stop - self.first
        with np.errstate(all="ignore"):
            results = {name: _examined(blocks) for name, blocks in self._names.items()}
            moves = self._moves.moments(0, len(self._moves)).joined(self._moves.tail)
        return Diagnostics(
            nsamples=nsamples,
            first=self.first,
            rhat={name: _plain(found.rhat) for name, found in results.items()},
            classic_rhat={name: _plain(found.classic_rhat) for name, found in results.items()},
            ess={name: _plain(found.ess) for name, found in results.items()},
            acceptance=_plain(moves.mean[:, 0] if moves.n else np.full(len(moves.mean), np.nan)),
            not_finite={
                name: tuple(np.flatnonzero(~found.is_finite).tolist())
                for name, found in results.items()
                if not found.is_finite.all()
            },
        )


def _plain(numbers: Floats) -> tuple[float, ...]:
    return tuple(numbers.tolist())


class _Examined(msgspec.Struct, frozen=True):
    """The results of one name, with a number for each component."""

    rhat: Floats
    classic_rhat: Floats
    ess: Floats
    is_finite: "npt.NDArray[np.bool_]"


def _examined(blocks: Blocks) -> _Examined:
    n, half = len(blocks), len(blocks) // 2
    whole = blocks.moments(0, n).joined(blocks.tail)
    is_finite: npt.NDArray[np.bool_] = np.all(np.isfinite(whole.squares), axis=0)
    nothing = np.full(len(is_finite), np.nan)
    if whole.n < _FEWEST:
        return _Examined(nothing, nothing, nothing, is_finite)
    first, second = blocks.moments(0, half), blocks.moments(n - half, n)
    mean, squares = np.concatenate([first.mean, second.mean]), np.concatenate([first.squares, second.squares])
    halves = Moments(first.n, mean, squares)
    classic = _rhat(whole) if len(whole.mean) > 1 else nothing
    rhat, classic, ess = (np.where(is_finite, each, np.nan) for each in (_rhat(halves), classic, _ess(blocks, halves)))
    return _Examined(rhat, classic, ess, is_finite)


def _rhat(chains: Moments) -> Floats:
    """R-hat over the first axis."""
    between = chains.n * chains.mean.var(axis=0, ddof=1)
    within = chains.variance.mean(axis=0)
    rhat: Floats = np.sqrt((between / within + chains.n - 1) / chains.n)
    return rhat


def _ess(blocks: Blocks, halves: Moments) -> Floats:
    """The effective sample size of the mean, of half chains."""
    half = len(blocks) // 2
    means = np.concatenate([blocks.means[:, :, :half], blocks.means[:, :, -half:]])
    total = len(means) * halves.n
    between = halves.mean.var(axis=0, ddof=1)
    variance = halves.squares.mean(axis=0) / halves.n + between  # of samples, as if all chains were one
    covariance = _autocovariance(means)
    plus = covariance[:, 0] + between  # the same, of the means of blocks
    rho = 1 - (covariance[:, :1] * (half / (half - 1)) - covariance) / plus[:, None]
    rho[:, 0] = 1
    tau = blocks.size * plus / variance * _correlation_time(rho)
    ess = total / np.maximum(tau, 1 / np.log10(total))
    is_constant = np.ptp(halves.mean, axis=0) + np.sqrt(halves.squares.max(axis=0)) < _RESOLUTION
    return np.where(is_constant, total, ess)


def _autocovariance(x: Floats) -> Floats:
    """Of `(nchain, dim, n)`, the mean over the chains, at each lag: `(dim, n)`."""
    n = x.shape[2]
    length = 1 << (2 * n - 1).bit_length()
    found = np.empty(x.shape[1:])
    for i in range(x.shape[1]):
        row = x[:, i]
        spectrum = np.fft.rfft(row - row.mean(axis=1, keepdims=True), length, axis=1)
        power = (spectrum.real**2 + spectrum.imag**2).mean(axis=0)
        found[i] = np.fft.irfft(power, length)[:n] / n
    return found


def _correlation_time(rho: Floats) -> Floats:
    """The sum of the autocorrelation `(dim, n)` over all lags, by Geyer's initial monotone sequence."""
    n = rho.shape[1]
    most = max(0, (n - 3) // 2)
    pairs = rho[:, 0 : 2 * most + 2 : 2] + rho[:, 1 : 2 * most + 2 : 2]
    is_over = ~(pairs > 0)
    is_over[:, most] = True
    ends = is_over.argmax(axis=1)
    falling = np.minimum.accumulate(pairs, axis=1)
    counts = np.arange(most + 1) < ends[:, None]
    rows = np.arange(len(rho))
    last = rho[rows, 2 * ends]
    last = np.where((last > 0) | (pairs[rows, ends] >= 0), last, 0)
    tau: Floats = 2 * np.where(counts, falling, 0).sum(axis=1) - 1 + last
    return tau
