"""Tries faults on runs: power cuts, calls that fail, kills, and damage. Ends with a table of what was lost.

The tests do a part of this; here all of it is done, and of what is endless as much as there is time for.
"""

import argparse
import logging
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import faulty
import test_damage
import test_faults
import test_powercut
from posterity import store, verify
from posterity.options import parse_options
from smallchunks import small_chunks

Case = tuple[str, Callable[[], object]]


def power_cuts(folder: Path, seconds: float) -> Iterator[Case]:  # noqa: ARG001  # its disk is in memory
    """States that a power cut may leave in random workloads, for as long as there is time."""
    store._is_long = lambda catalog: catalog.nrecords > 6 + 2 * len(catalog.places)  # noqa: SLF001
    end = time.monotonic() + seconds
    seed = random.randrange(1 << 30)
    while time.monotonic() < end:
        seed += 1
        workload = test_powercut.done(*test_powercut.random_workload(random.Random(seed)))
        checker = test_powercut.Checker(random.Random(seed))
        for cut in checker.new_cuts(workload.disk.log, workload.disk):
            yield f"seed {seed}, step {cut.at}", lambda cut=cut, checker=checker: checker.check(cut)


def failing_calls(folder: Path, seconds: float) -> Iterator[Case]:  # noqa: ARG001  # they are counted
    """Each call of a workload fails once."""
    for grouping in test_faults.GROUPINGS:
        options = faulty.options_of(*grouping)
        parse_options(0, folder, options)
        for name, fault in test_faults.FAULTS.items():
            ncalls = test_faults.check_failing(folder / "whole", fault, 0, options)
            shutil.rmtree(folder / "whole")
            for at in range(1, ncalls + 1):
                outdir = folder / f"run-{at}"
                yield (
                    f"{name}, call {at}, {options}",
                    lambda outdir=outdir, fault=fault, at=at, options=options: test_faults.check_failing(
                        outdir, fault, at, options
                    ),
                )
                shutil.rmtree(outdir, ignore_errors=True)


def kills(folder: Path, seconds: float) -> Iterator[Case]:  # noqa: ARG001  # they are counted
    """The process is killed at each call, and half-way through each write."""
    for grouping in test_faults.GROUPINGS:
        _, ncalls = test_faults.killed(folder / "whole", grouping, 0)
        shutil.rmtree(folder / "whole")
        for at in range(1, ncalls + 1):
            outdir = folder / f"run-{at}"
            yield (
                f"call {at}, {grouping}",
                lambda outdir=outdir, at=at, grouping=grouping: test_faults.check_killed(outdir, grouping, at),
            )
            shutil.rmtree(outdir, ignore_errors=True)


def damage(folder: Path, seconds: float) -> Iterator[Case]:  # noqa: ARG001  # they are counted
    """Every seventh byte of each file is changed: it is found, or all can be read; at most one epoch can't."""
    for options in test_damage.OPTIONS:
        run = folder / f"run-{len(options)}"
        test_damage.write(run, options)
        yield from _damaged(run)


def _damaged(run: Path) -> Iterator[Case]:
    for path in sorted(run.glob("*.h5")):
        for at in range(0, path.stat().st_size, 7):

            def look(path: Path = path, at: int = at) -> None:
                test_damage.flip(path, at)
                try:
                    left = test_damage.readable(run)
                    assert len(left) >= len(test_damage.LENGTHS) - (not verify(run).is_good)
                finally:
                    test_damage.flip(path, at)

            yield f"{path.name}, byte {at}", look


KINDS = {"power cuts": power_cuts, "failing calls": failing_calls, "kills": kills, "damage": damage}


def tried(name: str, seconds: float) -> tuple[int, int]:
    """Try all faults of a kind; returns how many, and after how many something was lost."""
    ntried = nlost = 0
    told = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="torture-"))
    try:
        for case, look in KINDS[name](folder, seconds):
            ntried += 1
            try:
                with small_chunks():
                    look()
            except Exception:  # noqa: BLE001  # whatever it is, it is a loss, and the next one is tried
                nlost += 1
                print(f"LOST: {name}: {case}\n{traceback.format_exc()}", flush=True)
            if time.monotonic() - told > 10:
                told = time.monotonic()
                print(f"{name}: {ntried} tried, {nlost} lost", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return ntried, nlost


def main() -> int:
    """Try all kinds, print the table."""
    parser = argparse.ArgumentParser(description="tries faults on runs, and tells what was lost")
    parser.add_argument("--minutes", type=float, default=10, help="for the power cuts (default: %(default)s)")
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"{', '.join(KINDS)} (default: all)")
    args = parser.parse_args()
    if unknown := set(args.kinds) - set(KINDS):
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    logging.getLogger("posterity").setLevel(logging.CRITICAL + 1)
    found = {name: tried(name, 60 * args.minutes) for name in args.kinds or KINDS}
    print(f"\n| fault | tried | survived | lost |\n|{'---|' * 4}")
    for name, (ntried, nlost) in found.items():
        print(f"| {name} | {ntried} | {ntried - nlost} | {nlost} |")
    return 1 if any(nlost for _, nlost in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
