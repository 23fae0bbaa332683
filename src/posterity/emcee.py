"""`EmceeBackend`: emcee's samplers on a run."""

from ._samplers.emcee.backend import EmceeBackend

__all__ = ["EmceeBackend"]
