"""Pytrees given back from a run's samples. JAX isn't needed."""

from ._samplers.jax.pytrees import get_info, get_info_async, get_positions, get_positions_async

__all__ = ["get_info", "get_info_async", "get_positions", "get_positions_async"]
