"""Compression of arrays so small that a test can have many chunks of them."""

import contextlib

from posterity import chunks, layout

WORTH_PACKING, TARGET = 24, 256


@contextlib.contextmanager
def small_chunks():
    """Arrays of a few numbers are large ones here, and chunks hold 32 numbers."""
    was = layout.WORTH_PACKING, chunks.TARGET
    layout.WORTH_PACKING, chunks.TARGET = WORTH_PACKING, TARGET
    layout.packed_layout.cache_clear()
    try:
        yield
    finally:
        layout.WORTH_PACKING, chunks.TARGET = was
        layout.packed_layout.cache_clear()
