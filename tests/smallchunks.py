"""Compression of arrays so small that a test can have many chunks of them."""

import contextlib

from posterity._format import chunks, file_writer, layout


@contextlib.contextmanager
def small_chunks(worth_packing=24, target=256, worth_writing=1000):
    """Arrays of a few numbers are large ones here, chunks hold 32 numbers, and a few of them are one write."""
    was = layout.WORTH_PACKING, chunks.TARGET, file_writer._WORTH_WRITING
    layout.WORTH_PACKING, chunks.TARGET, file_writer._WORTH_WRITING = worth_packing, target, worth_writing
    layout.packed_layout.cache_clear()
    try:
        yield
    finally:
        layout.WORTH_PACKING, chunks.TARGET, file_writer._WORTH_WRITING = was
        layout.packed_layout.cache_clear()
