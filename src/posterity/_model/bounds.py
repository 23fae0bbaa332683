"""How large a number of a run may be: the same where it comes in, where it is journaled, and where it is read again.

Up the stream: `options`, and calls that take numbers. Down the stream: `records`, which refuses what no writer wrote.
"""

MOST = 1 << 62  # of samples, epochs, files and bytes: sums of two fit into 64 bits


def check_count(name: str, value: int, least: int = 0) -> None:
    """Refuse a number that could be written and never read again.

    Raises:
        ValueError: it is out of bounds; the message says which they are.
    """
    if not least <= value <= MOST:
        raise ValueError(f"{name} must be {least} to 2**62, got {value}")
