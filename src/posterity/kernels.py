"""Samplers in JAX, run epoch by epoch: BlackJAX's kernels, NumPyro's and your own, and what they gave as pytrees."""

from .chainkernel import ChainKernel, Tuned
from .epochkernel import Kernel
from .kernelrun import run_kernel, run_kernel_async
from .numpyrokernel import NumpyroKernel
from .pytrees import get_info, get_info_async, get_positions, get_positions_async

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
