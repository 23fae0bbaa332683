"""Pictures of chains: whether they agree, how long they remember, what they say.

Needs matplotlib, from the extra `plot`. A figure is drawn without a display and belongs to the caller. Pictures stay
readable with many chains: bands show where most of them are, and a few stand for themselves. Of long chains as many
samples are drawn as a picture can show.

Up the stream: `components` reads. Down the stream: `posterity plot`, notebooks.
"""

import math
import os
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from posterity._reading.snapshot import Snapshot
from posterity.errors import MissingExtra

from .components import Component, Floats, components_of, read_each

Kind: TypeAlias = Literal["trace", "rank", "autocorr", "pair"]
_Each: TypeAlias = tuple[Component, Floats]
_FEW_CHAINS = 6
_SINGLE = 3  # of many chains, so many are drawn by themselves
_MOST_POINTS = 2000
_MOST_PAIRED = 50_000
_MOST = {"trace": 8, "rank": 12, "autocorr": 12, "pair": 6}
_INK, _BAND = "#222222", "#4477aa"
_COLOURS = ("#4477aa", "#ee6677", "#228833", "#aa8800", "#66ccee", "#aa3377")
_STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.formatter.limits": (-4, 5),
}


def save_plot(
    snapshot: Snapshot[Any],
    kind: Kind,
    path: str | os.PathLike[str],
    *,
    burn: int = 0,
    thin: int = 1,
    pars: Sequence[str] | None = None,
    chains: slice = slice(None),
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Draw a plot into a picture file: png, pdf or svg, by its name. See `plot`.

    Raises:
        ValueError: pictures can't be of this kind.
    """
    figure = plot(snapshot, kind, burn=burn, thin=thin, pars=pars, chains=chains, progress=progress)
    target = Path(os.fsdecode(path))
    figure.savefig(target, format=target.suffix[1:] or "png", dpi=150)


def plot(
    snapshot: Snapshot[Any],
    kind: Kind,
    *,
    burn: int = 0,
    thin: int = 1,
    pars: Sequence[str] | None = None,
    chains: slice = slice(None),
    progress: Callable[[int, int], None] | None = None,
) -> Any:
    """Draw a run.

    Args:
        snapshot: the run.
        kind: "trace": each parameter along the run, and its distribution. "rank": where the samples of each chain stand
            among all; equally often everywhere, if chains agree (Vehtari et al. 2021). "autocorr": how long chains
            remember. "pair": each parameter against each other.
        burn: samples to leave out, on top of the run's own burn.
        thin: take every `thin`-th sample.
        pars: names of samples or of parameters; None: all. Of many the first few are drawn, and the picture says so.
        chains: which chains.
        progress: called with the number of parameters that were read, and of all.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        MissingExtra: matplotlib isn't installed.
        KeyError, TypeError: a name isn't there, or its samples aren't real numbers.
        ValueError: nothing is left, or no chain was chosen.
    """
    matplotlib, figures = _matplotlib()
    if kind not in _MOST:
        raise ValueError(f"kind must be one of {', '.join(_MOST)}; got {kind!r}")
    asked = components_of(snapshot, pars)
    drawn = asked[: _MOST[kind]]
    each: list[_Each] = []
    for component, array in read_each(snapshot, drawn, burn, thin):
        chosen = array[chains]
        if not len(chosen):
            raise ValueError(f"the run has {len(array)} chains, and none of them was chosen")
        each.append((component, chosen))
        if progress is not None:
            progress(len(each), len(drawn))
    if not each:
        raise ValueError("the run has no samples that are real numbers")
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # what isn't finite isn't drawn
        figure = _DRAW[kind](figures, each, snapshot.burn + burn, thin)
        figure.suptitle(_caption(each[0][1], len(asked), len(drawn), burn, thin), fontsize=8, color="#666666")
    return figure


def _matplotlib() -> tuple[Any, Any]:
    try:
        return import_module("matplotlib"), import_module("matplotlib.figure")
    except ImportError as error:
        raise MissingExtra("a plot needs the package matplotlib: pip install 'posterity[plot]'") from error


def _caption(array: Floats, nasked: int, ndrawn: int, burn: int, thin: int) -> str:
    """What the picture is of."""
    nchain, n = array.shape
    parts = [f"{nchain} chain{'s' if nchain > 1 else ''} of {n:,} samples"]
    parts += [f"burn {burn:,}"] if burn else []
    parts += [f"thin {thin:,}"] if thin > 1 else []
    parts += [f"the first {ndrawn} of {nasked} parameters"] if ndrawn < nasked else []
    return ", ".join(parts)


def _grid(figures: Any, n: int, width: float, height: float) -> tuple[Any, list[Any]]:
    """A figure with n axes, in at most three columns."""
    ncols = min(3, n)
    nrows = math.ceil(n / ncols)
    figure = figures.Figure(figsize=(width * ncols, 0.4 + height * nrows), layout="constrained")
    axes = figure.subplots(nrows, ncols, squeeze=False).ravel().tolist()
    for unused in axes[n:]:
        unused.remove()
    return figure, axes[:n]


# ---- trace -----------------------------------------------------------------------------------------------------------


def _trace(figures: Any, each: Sequence[_Each], first: int, thin: int) -> Any:
    figure = figures.Figure(figsize=(9, 0.6 + 1.5 * len(each)), layout="constrained")
    axes = figure.subplots(len(each), 2, squeeze=False, width_ratios=[4, 1], sharey="row")
    for (component, array), (left, right) in zip(each, axes, strict=True):
        _draw_trace(left, array, first, thin)
        _draw_distribution(right, array)
        left.set_ylabel(component.parameter.tex)
        left.label_outer()
        right.set_xticks([])
    for left in axes[1:, 0]:
        left.sharex(axes[0, 0])
    axes[-1, 0].set_xlabel("sample")
    return figure


def _draw_trace(axes: Any, array: Floats, first: int, thin: int) -> None:
    nchain, n = array.shape
    step = max(1, n // _MOST_POINTS)
    x = first + thin * np.arange(0, n, step)
    shown = array[:, ::step]
    if nchain <= _FEW_CHAINS:
        for chain, colour in zip(shown, _COLOURS, strict=False):
            axes.plot(x, chain, color=colour, linewidth=0.5, alpha=0.8)
    else:
        _draw_bands(axes, x, shown)
    axes.margins(x=0)


def _draw_bands(axes: Any, x: npt.NDArray[np.int_], shown: Floats) -> None:
    """Where most of the chains are, and a few of them."""
    low, inner_low, middle, inner_high, high = np.nanquantile(shown, [0.05, 0.25, 0.5, 0.75, 0.95], axis=0)
    axes.fill_between(x, low, high, color=_BAND, alpha=0.2, linewidth=0, label="90% of the chains")
    axes.fill_between(x, inner_low, inner_high, color=_BAND, alpha=0.35, linewidth=0, label="50%")
    for i in np.linspace(0, len(shown) - 1, _SINGLE).astype(int):
        axes.plot(x, shown[i], color=_INK, linewidth=0.35, alpha=0.4, label="single chains" if i == 0 else None)
    axes.plot(x, middle, color=_BAND, linewidth=0.9, label="median")
    if axes.get_subplotspec().is_first_row():
        axes.legend(loc="upper right", ncols=4, fontsize=7, frameon=True, framealpha=0.8, edgecolor="none")


def _draw_distribution(axes: Any, array: Floats) -> None:
    """A histogram, upright; of each chain, if they are few."""
    finite = array[np.isfinite(array)]
    if not finite.size:
        return
    if len(array) <= _FEW_CHAINS:
        bins = np.histogram_bin_edges(finite, bins=40)
        for chain, colour in zip(array, _COLOURS, strict=False):
            axes.hist(chain, bins=bins, density=True, orientation="horizontal", histtype="step", color=colour)
    else:
        axes.hist(finite, bins=_edges(finite), density=True, orientation="horizontal", color=_BAND, alpha=0.5)


# ---- rank ------------------------------------------------------------------------------------------------------------


def _rank(figures: Any, each: Sequence[_Each], _first: int, _thin: int) -> Any:
    figure, all_axes = _grid(figures, len(each), 3.4, 2.4)
    for (component, array), axes in zip(each, all_axes, strict=True):
        counts, expected = _rank_counts(array)
        if len(array) <= _FEW_CHAINS:
            _draw_rank_steps(axes, counts, expected)
        else:
            image = _draw_rank_image(axes, counts, expected)
        axes.set_title(component.parameter.tex, fontsize=9)
        axes.set_xlabel("rank among all chains")
    if len(each[0][1]) > _FEW_CHAINS:
        figure.colorbar(image, ax=all_axes, label="count / expected", aspect=40)
    return figure


def _rank_counts(array: Floats) -> tuple[Floats, float]:
    """How many samples of each chain `(nchain, nbins)` stand where among all, and how many would if chains agreed."""
    n = array.shape[1]
    nbins = int(min(20, max(4, n // 10)))
    order = np.argsort(array, axis=None, kind="stable")
    ranks = np.empty(array.size, np.intp)
    ranks[order] = np.arange(array.size)
    bins = (ranks.reshape(array.shape) * nbins) // array.size
    counts = np.stack([np.bincount(chain, minlength=nbins) for chain in bins])
    return counts.astype(np.float64), n / nbins


def _draw_rank_steps(axes: Any, counts: Floats, expected: float) -> None:
    nbins = counts.shape[1]
    edges = np.linspace(0, 1, nbins + 1)
    for i, (chain, colour) in enumerate(zip(counts, _COLOURS, strict=False)):
        axes.stairs(chain / expected, edges, baseline=None, color=colour, linewidth=1.2, label=f"chain {i}")
    axes.axhline(1, color=_INK, linewidth=0.8, linestyle=":")
    axes.set_ylim(0, max(2.0, 1.1 * float(counts.max()) / expected))
    axes.set_xlim(0, 1)
    if axes.get_subplotspec().is_first_col():
        axes.set_ylabel("count / expected")
    if axes.get_subplotspec().is_first_row() and axes.get_subplotspec().is_first_col():
        axes.legend(fontsize=7, frameon=False, ncols=2, loc="upper center")


def _draw_rank_image(axes: Any, counts: Floats, expected: float) -> Any:
    """One row a chain: evenly pale if they agree, stripes if one of them is elsewhere."""
    image = axes.imshow(
        counts / expected, aspect="auto", cmap="RdBu_r", vmin=0, vmax=2, extent=(0, 1, len(counts) - 0.5, -0.5),
        interpolation="nearest",
    )  # fmt: skip
    if axes.get_subplotspec().is_first_col():
        axes.set_ylabel("chain")
    return image


# ---- autocorrelation -------------------------------------------------------------------------------------------------


def _autocorr(figures: Any, each: Sequence[_Each], _first: int, thin: int) -> Any:
    figure, all_axes = _grid(figures, len(each), 3.4, 2.2)
    for (component, array), axes in zip(each, all_axes, strict=True):
        correlations = autocorrelation(array)
        mean = np.nanmean(correlations, axis=0) if np.isfinite(correlations).any() else correlations[0]
        tau, window = _integrated_time(mean)
        most = int(min(array.shape[1] - 1, max(20, 2 * window)))
        lags = thin * np.arange(most + 1)
        if len(array) > 1 and np.isfinite(correlations).any():
            low, high = np.nanquantile(correlations[:, : most + 1], [0.05, 0.95], axis=0)
            axes.fill_between(lags, low, high, color=_BAND, alpha=0.25, linewidth=0)
        axes.plot(lags, mean[: most + 1], color=_BAND)
        axes.axhline(0, color=_INK, linewidth=0.6)
        axes.set_ylim(-0.35, 1.05)
        axes.set_xlim(0, lags[-1])
        known = f"{thin * tau:.3g} samples" if math.isfinite(tau) else "unknown"
        axes.text(0.97, 0.93, f"integrated time: {known}", transform=axes.transAxes, ha="right", va="top", fontsize=8)
        axes.set_title(component.parameter.tex, fontsize=9)
        axes.set_xlabel("lag in samples")
        if axes.get_subplotspec().is_first_col():
            axes.set_ylabel("autocorrelation")
    return figure


def autocorrelation(array: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The autocorrelation of each chain `(nchain, n)` at each lag, by FFT; NaN of a chain that is constant."""
    n = array.shape[1]
    apart = array - array.mean(axis=1, keepdims=True)
    size = 1 << (2 * n - 1).bit_length()
    power = np.abs(np.fft.rfft(apart, size, axis=1)) ** 2
    found = np.fft.irfft(power, size, axis=1)[:, :n]
    with np.errstate(invalid="ignore", divide="ignore"):
        correlations: npt.NDArray[np.float64] = found / np.where(found[:, :1] > 0, found[:, :1], np.nan)
    return correlations


def _integrated_time(mean: Floats) -> tuple[float, int]:
    """The integrated autocorrelation time, and the window that it was summed up in: five times itself (Sokal 1997)."""
    taus = 2 * np.cumsum(mean) - 1
    if not np.isfinite(taus).all():
        return math.nan, 20
    outside = np.nonzero(np.arange(len(taus)) >= 5 * taus)[0]
    window = int(outside[0]) if outside.size else len(taus) - 1
    return float(taus[window]) if outside.size else math.nan, window


# ---- pair ------------------------------------------------------------------------------------------------------------


def _pair(figures: Any, each: Sequence[_Each], _first: int, _thin: int) -> Any:
    n = len(each)
    side = 1.7 * n + 0.8
    figure = figures.Figure(figsize=(side, side + 0.3), layout="constrained")
    grid = figure.subplots(n, n, squeeze=False)
    flat = [_spread(array) for _, array in each]
    edges = [_edges(values) for values in flat]
    for row in range(n):
        for column in range(n):
            axes = grid[row, column]
            if column > row:
                axes.remove()
                continue
            if column == row:
                axes.hist(flat[row], bins=edges[row], density=True, color=_BAND, alpha=0.7)
                axes.set_yticks([])
            else:
                axes.hist2d(flat[column], flat[row], bins=(edges[column], edges[row]), cmap="Blues", cmin=1)
                axes.set_ylim(edges[row][0], edges[row][-1])
            axes.set_xlim(edges[column][0], edges[column][-1])
            _label_pair(axes, row, column, n, each)
    return figure


def _label_pair(axes: Any, row: int, column: int, n: int, each: Sequence[_Each]) -> None:
    axes.locator_params(nbins=4)
    axes.tick_params(axis="x", labelrotation=45)
    if row == n - 1:
        axes.set_xlabel(each[column][0].parameter.tex)
    else:
        axes.set_xticklabels([])
    if column == 0 and row > 0:
        axes.set_ylabel(each[row][0].parameter.tex)
    elif column < row:
        axes.set_yticklabels([])


def _spread(array: Floats) -> Floats:
    """Samples of all chains, as many as a picture can show, the same of each parameter."""
    flat = array.ravel()
    return flat[:: max(1, flat.size // _MOST_PAIRED)]


def _edges(values: Floats) -> Floats:
    """Bins over nearly all of the numbers: a few that are far out don't squeeze the others."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return np.linspace(0, 1, 31)
    low, high = np.quantile(finite, [0.001, 0.999])
    return np.linspace(low, high, 31) if high > low else np.linspace(low - 0.5, low + 0.5, 31)


_DRAW: dict[Kind, Callable[[Any, Sequence[_Each], int, int], Any]] = {
    "trace": _trace,
    "rank": _rank,
    "autocorr": _autocorr,
    "pair": _pair,
}
