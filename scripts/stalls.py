"""Measures what a disk that stalls does to others: to a thread that samples, an event loop, and a small read.

Each I/O call of the writer takes so much longer, while large epochs are written. Prints a table; the exit code is 1 if
a median is over half of one delay. On a machine that is busy otherwise it measures that.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import stalling


def main() -> int:
    """Measure all, print the table."""
    parser = argparse.ArgumentParser(description="measures what a disk that stalls does to others")
    parser.add_argument("--delay-ms", type=float, default=100, help="of each I/O call (default: %(default)s)")
    parser.add_argument("--megabytes", type=float, default=256, help="of each epoch (default: %(default)s)")
    parser.add_argument("--repetitions", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--folder", type=Path, help="where to write (default: that of temporary files)")
    args = parser.parse_args()
    delay_s = args.delay_ms / 1000
    print(f"each I/O call of the writer takes {args.delay_ms:g} ms longer; epochs of {args.megabytes:g} MB\n")
    print(f"| longest in a stall | stalls | median | worst | median, of a delay | worst, of a delay |\n|{'---|' * 6}")
    medians = []
    for name, measure in stalling.MEASURES.items():
        with (
            tempfile.TemporaryDirectory(prefix="stalls-", dir=args.folder) as folder,
            stalling.Run(Path(folder) / "run", delay_s, int(args.megabytes * 1e6)) as run,
        ):
            found = [longest for _ in range(args.repetitions) for longest in measure(run)]
        median, worst = statistics.median(found), max(found)
        medians.append(median)
        shares = f"{median / delay_s:.0%} | {worst / delay_s:.0%}"
        print(f"| {name} | {len(found)} | {median * 1000:.1f} ms | {worst * 1000:.1f} ms | {shares} |", flush=True)
    return 1 if max(medians) > delay_s / 2 else 0


if __name__ == "__main__":
    sys.exit(main())
