"""Samplers in JAX, run epoch by epoch: BlackJAX's kernels, NumPyro's and your own, and what they gave as pytrees."""

from ._samplers.jax.chain_kernel import ChainKernel, Chains, Tuned  # noqa: F401  # pickles name Chains here
from ._samplers.jax.kernel import Kernel
from ._samplers.jax.numpyro_kernel import NumpyroKernel
from ._samplers.jax.pytrees import get_info, get_info_async, get_positions, get_positions_async
from ._samplers.jax.run_kernel import run_kernel, run_kernel_async

__all__ = [
    "ChainKernel",
    "Kernel",
    "NumpyroKernel",
    "Tuned",
    "get_info",
    "get_info_async",
    "get_positions",
    "get_positions_async",
    "run_kernel",
    "run_kernel_async",
]
