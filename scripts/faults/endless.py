"""Faults at random, for as long as there is time: power cuts, samplers that are killed, readers in the middle of it."""

import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import test_killed_sampler
import test_powercut
import test_readers_elsewhere
from posterity._store import data_files, store

Case = tuple[str, Callable[[], object]]
NKILLS = 5


def power_cuts(folder: Path, seconds: float) -> Iterator[Case]:  # noqa: ARG001  # its disk is in memory
    """States that a power cut may leave in random workloads."""
    store._is_long = lambda catalog: catalog.nrecords > 6 + 2 * len(catalog.places)  # noqa: SLF001
    data_files._MOST_OPEN = test_powercut.MOST_OPEN  # noqa: SLF001
    end = time.monotonic() + seconds
    seed = random.randrange(1 << 30)
    while time.monotonic() < end:
        seed += 1
        workload = test_powercut.done(*test_powercut.random_workload(random.Random(seed)))
        checker = test_powercut.Checker(random.Random(seed))
        for cut in checker.new_cuts(workload.disk.log, workload.disk):
            yield f"seed {seed}, step {cut.at}", partial(checker.check, cut)


def killed_samplers(folder: Path, seconds: float) -> Iterator[Case]:
    """A real sampler is killed at random moments, some times in one run."""
    end = time.monotonic() + seconds
    nth = 0
    while time.monotonic() < end:
        nth += 1
        outdir = folder / f"{nth}"
        outdir.mkdir()
        grouping = random.choice([(1, 0), (4, 2), (50, 0)])
        check = test_killed_sampler.test_a_sampler_that_is_killed_again_and_again
        yield f"run {nth}, {grouping}", partial(check, outdir, *grouping)


def readers_elsewhere(folder: Path, seconds: float) -> Iterator[Case]:
    """Readers in other processes, of all faces, while the writer is killed, burns, resets and replaces its run."""
    end = time.monotonic() + seconds

    def look(outdir: Path, kind: str, seed: int) -> None:
        with test_readers_elsewhere.processes() as start:
            test_readers_elsewhere.storm(outdir, start, kind, seed, NKILLS)

    while time.monotonic() < end:
        seed = random.randrange(1 << 32)
        kind = random.choice(["equal", "unequal"])
        yield f"seed {seed}, {kind}", partial(look, folder / f"{seed}", kind, seed)
