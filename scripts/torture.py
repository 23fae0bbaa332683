"""Tries faults on runs, and ends with a table of what was lost.

The tests do a part of this; here all of it is done, and of what is endless as much as there is time for.
"""

import argparse
import logging
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from faults import counted, endless, soak
from smallchunks import small_chunks

Case = tuple[str, Callable[[], object]]
COUNTED: dict[str, Callable[[Path], Iterator[Case]]] = {
    "failing calls": counted.failing_calls,
    "broken disks": counted.broken_disks,
    "short writes": counted.short_writes,
    "failing openings": counted.failing_openings,
    "full disks": counted.full_disks,
    "kills": counted.kills,
    "kills while opening": counted.killed_openings,
    "damage": counted.damage,
}
ENDLESS: dict[str, Callable[[Path, float], Iterator[Case]]] = {
    "power cuts": endless.power_cuts,
    "killed samplers": endless.killed_samplers,
    "readers elsewhere": endless.readers_elsewhere,
}


def cases_of(name: str, minutes: float, soak_minutes: float) -> Callable[[Path], Iterator[Case]]:
    """All faults of a kind, in a folder that is theirs."""
    if name in COUNTED:
        return COUNTED[name]
    if name in ENDLESS:
        return partial(ENDLESS[name], seconds=60 * minutes)
    return partial(soak.soak, seconds=60 * soak_minutes)


@small_chunks()  # there are compressed runs among those that are tried
def tried(name: str, minutes: float, soak_minutes: float, most: int | None) -> tuple[int, int]:
    """Try all faults of a kind, or the first `most`; returns how many, and after how many something was lost."""
    logging.getLogger("posterity").propagate = False
    logging.getLogger("posterity").addHandler(logging.NullHandler())
    ntried = nlost = 0
    told = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="torture-"))
    try:
        for case, look in islice(cases_of(name, minutes, soak_minutes)(folder), most):
            ntried += 1
            try:
                look()
            except Exception:  # noqa: BLE001  # whatever it is, it is a loss, and the next one is tried
                nlost += 1
                print(f"LOST: {name}: {case}\n{traceback.format_exc()}", flush=True)
            if time.monotonic() - told > 10:
                told = time.monotonic()
                print(f"{name}: {ntried} tried, {nlost} lost", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{name}: {ntried} tried, {nlost} lost", flush=True)
    return ntried, nlost


def main() -> int:
    """Try all kinds, print the table."""
    ncores = os.cpu_count() or 1
    names = [*COUNTED, *ENDLESS, "soak"]
    parser = argparse.ArgumentParser(description="tries faults on runs, and tells what was lost")
    parser.add_argument("--minutes", type=float, default=5, help="for each kind without an end (default: %(default)s)")
    parser.add_argument("--soak-minutes", type=float, default=15, help="for the soak (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=ncores, help="how many kinds at once (default: %(default)s)")
    parser.add_argument("--most", type=int, metavar="N", help="try no more than N faults of each kind (default: all)")
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"{', '.join(names)} (default: all)")
    args = parser.parse_args()
    if unknown := set(args.kinds) - set(names):
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    kinds = args.kinds or names
    with ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn")) as processes:
        ends = [processes.submit(tried, name, args.minutes, args.soak_minutes, args.most) for name in kinds]
    found = dict(zip(kinds, [end.result() for end in ends], strict=True))
    print(f"\n| fault | tried | survived | lost |\n|{'---|' * 4}")
    for name, (ntried, nlost) in found.items():
        print(f"| {name} | {ntried} | {ntried - nlost} | {nlost} |")
    return 1 if any(nlost for _, nlost in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
