"""`ErynBackend`: Eryn's sampler on a run."""

from ._samplers.eryn.backend import ErynBackend

__all__ = ["ErynBackend"]
