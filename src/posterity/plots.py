"""What the chains of a run say, in pictures."""

from ._analysis.plots import plot, save_plot

__all__ = ["plot", "save_plot"]
