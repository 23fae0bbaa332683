"""The demo's two pictures: the walkers against the step, and the parameters against each other."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure


def save_trace(path: Path, chain: np.ndarray, names: Sequence[str]) -> None:
    """Draw about 40 of the walkers in `chain` (nchain, ndim, nsamples), a panel for each parameter."""
    figure = Figure(figsize=(9, 9), layout="constrained")
    axes = figure.subplots(len(names), sharex=True)
    for k, (axis, name) in enumerate(zip(axes, names, strict=True)):
        axis.plot(chain[:: max(1, len(chain) // 40), k].T, lw=0.3, color="k", alpha=0.4)
        axis.set_ylabel(name)
    axes[-1].set_xlabel("samples read")
    figure.savefig(path, dpi=110)


def save_pairs(path: Path, flat: np.ndarray, names: Sequence[str], marks: Mapping[str, float]) -> None:
    """Draw the histograms of each parameter and of each pair in `flat` (n, ndim), with a red line at each mark."""
    figure = Figure(figsize=(10, 10), layout="constrained")
    axes = figure.subplots(len(names), len(names), sharex="col")
    limits = np.percentile(flat, [0.5, 99.5], axis=0).T
    for row, column in np.ndindex(axes.shape):
        axis = axes[row, column]
        if column > row:
            axis.axis("off")
            continue
        if column == row:
            axis.hist(flat[:, row], bins=60, range=tuple(limits[row]), histtype="step", color="k")
            axis.set_yticks([])
        else:
            axis.hist2d(flat[:, column], flat[:, row], bins=60, range=limits[[column, row]], cmap="Greys")
        if names[column] in marks:
            axis.axvline(marks[names[column]], color="r", lw=0.8)
        if row == len(names) - 1:
            axis.set_xlabel(names[column])
        if column == 0 and row > 0:
            axis.set_ylabel(names[row])
    figure.savefig(path, dpi=110)
