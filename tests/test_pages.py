"""Memory that the system copies into quickly."""

import numpy as np
import pytest

from posterity._system import aligned


@pytest.mark.parametrize("nbytes", [1 << 15, (1 << 15) + 1, 100_000, 1 << 20, (1 << 22) + 12_345])
def test_memory_begins_with_a_page(nbytes):
    """However much it is, and wherever the system has it: there are as many bytes as asked for, and they can be set."""
    kept = [aligned.empty_bytes(nbytes) for _ in range(5)]
    for memory in kept:
        assert memory.__array_interface__["data"][0] % 4096 == 0
        assert memory.shape == (nbytes,)
        memory[...] = 7


@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3), (64, 8, 1000)])
@pytest.mark.parametrize("dtype", ["<f8", "|b1", "S5", [("a", "<i8"), ("b", "S3")]])
def test_arrays_are_those_that_numpy_makes(shape, dtype):
    """Shape, dtype and order are those asked for, small or large, and it is the caller's to change."""
    array = aligned.empty(shape, np.dtype(dtype))
    expected = np.empty(shape, dtype)
    assert (array.shape, array.dtype) == (expected.shape, expected.dtype)
    assert array.flags.c_contiguous
    assert array.flags.writeable
