"""Faults that can be counted: each call fails, or is the last one of the process; bytes of files are changed."""

import errno
import itertools
import logging
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import faulty
import test_broken_disk
import test_damage
import test_faults
import test_full_disk
from posterity import verify

Case = tuple[str, Callable[[], object]]
GROUPINGS = [faulty.options_of(*grouping) for grouping in test_faults.GROUPINGS]


class Lines(logging.Handler):
    """What was logged, as tests get it."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        logging.getLogger("posterity").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        self.records.append(record)


def failing_calls(folder: Path) -> Iterator[Case]:
    """Each call of a workload fails once."""
    faults = {**test_faults.FAULTS, "quota": partial(test_faults.fail, code=errno.EDQUOT)}
    for options, (name, fault) in itertools.product(GROUPINGS, faults.items()):
        ncalls = test_faults.check_failing(folder / "whole", fault, 0, options)
        shutil.rmtree(folder / "whole")
        for at in range(1, ncalls + 1):
            outdir = folder / f"run-{at}"
            yield f"{name}, call {at}, {options}", partial(test_faults.check_failing, outdir, fault, at, options)
            shutil.rmtree(outdir, ignore_errors=True)


def broken_disks(folder: Path) -> Iterator[Case]:
    """All calls fail, from each one of a workload on, until the disk is mended."""
    lines = Lines()
    for options, (name, ailment) in itertools.product(GROUPINGS, faulty.AILMENTS.items()):
        ncalls, _ = test_broken_disk.check_lasting(folder / "whole", ailment, 10**9, options, lines)
        shutil.rmtree(folder / "whole")
        for at in range(1, ncalls + 1):
            outdir = folder / f"run-{at}"
            check = partial(test_broken_disk.check_lasting, outdir, ailment, at, options, lines)
            yield f"{name}, from call {at} on, {options}", check
            shutil.rmtree(outdir, ignore_errors=True)


def short_writes(folder: Path) -> Iterator[Case]:
    """Each write of a workload is done by half, and all of them from each one on."""
    lines = Lines()
    whole = partial(test_broken_disk.check_lasting, ailment=faulty.AILMENTS["full disk"], at=10**9, caplog=lines)

    def check(outdir: Path, options: dict[str, int], at: int, *, for_good: bool) -> int:
        with faulty.short_writes(at, for_good=for_good) as calls:
            whole(outdir, options=options)
            return next(calls)

    for options, for_good in itertools.product(GROUPINGS, [False, True]):
        ncalls = check(folder / "whole", options, 10**9, for_good=False)
        shutil.rmtree(folder / "whole")
        for at in range(1, ncalls):
            outdir = folder / f"run-{at}"
            yield f"write {at}, {for_good=}, {options}", partial(check, outdir, options, at, for_good=for_good)
            shutil.rmtree(outdir, ignore_errors=True)


def failing_openings(folder: Path) -> Iterator[Case]:
    """Each call fails with which a run is opened that a kill left."""
    with faulty.Workers() as workers:
        for grouping in test_faults.GROUPINGS:
            for killed_at in range(1, 1 + test_faults.count_calls(workers, folder / "whole", grouping, faulty.CHANGES)):
                left, opened = folder / "left", folder / "opened"
                durable = test_faults.killed(workers, left, grouping, kill_at=killed_at, counted=faulty.CHANGES)
                check = partial(test_faults.check_opening_that_fails, left, opened, durable=durable)
                ncalls = check(fault=None, at=0) if left.exists() else 0
                shutil.rmtree(opened, ignore_errors=True)
                for at, (name, fault) in itertools.product(range(1, ncalls + 1), test_faults.FAULTS.items()):
                    yield f"killed at {killed_at}, {name}, call {at}, {grouping}", partial(check, fault=fault, at=at)
                    shutil.rmtree(opened, ignore_errors=True)
                shutil.rmtree(left, ignore_errors=True)
            shutil.rmtree(folder / "whole")


def kills(folder: Path) -> Iterator[Case]:
    """The process is killed at each call, and half-way through each write."""
    with faulty.Workers() as workers:
        for grouping in test_faults.GROUPINGS:
            for at in range(1, 1 + test_faults.count_calls(workers, folder / "whole", grouping, faulty.CALLS)):
                outdir = folder / f"run-{at}"
                yield f"call {at}, {grouping}", partial(test_faults.check_killed, workers, outdir, grouping, kill_at=at)
                shutil.rmtree(outdir, ignore_errors=True)
            shutil.rmtree(folder / "whole")


def killed_openings(folder: Path) -> Iterator[Case]:
    """The process is killed at each change, and the one that opens the run next at each change that it makes.

    Killed at another call, it leaves what it leaves when it is killed at the change before.
    """
    with faulty.Workers() as workers:
        for grouping in test_faults.GROUPINGS:
            for at in range(1, 1 + test_faults.count_calls(workers, folder / "whole", grouping, faulty.CHANGES)):
                killed = folder / f"killed-{at}"
                for again_at, check in test_faults.killed_openings(workers, killed, grouping, at, faulty.CHANGES):
                    yield f"change {at}, then {again_at}, {grouping}", check
                shutil.rmtree(killed, ignore_errors=True)
            shutil.rmtree(folder / "whole")


def full_disks(folder: Path) -> Iterator[Case]:
    """A small file system is filled, and there is room again, or a burn makes some."""

    def check(at: Path, look: Callable[[Path], None]) -> None:
        with test_full_disk.mounted(at, 2) as small_disk:
            look(small_disk)

    for epochs_per_file, compression in itertools.product(range(1, 9), [None, "gzip"]):
        look = partial(test_full_disk.check_full, epochs_per_file=epochs_per_file, compression=compression)
        yield f"{epochs_per_file=}, {compression=}", partial(check, folder / f"{epochs_per_file}-{compression}", look)
    yield "a burn makes room", partial(check, folder / "burn", test_full_disk.test_a_burn_makes_room)


def damage(folder: Path) -> Iterator[Case]:
    """Every seventh byte of each file is changed: it is found, or all can be read; at most one epoch can't."""

    def look(run: Path, path: Path, at: int) -> None:
        test_damage.flip(path, at)
        try:
            left = test_damage.readable(run)
            assert len(left) >= len(test_damage.LENGTHS) - (not verify(run).is_good)
        finally:
            test_damage.flip(path, at)

    for options in test_damage.OPTIONS:
        run = folder / f"run-{len(options)}"
        test_damage.write(run, options)
        for path in sorted(run.glob("*.h5")):
            for at in range(0, path.stat().st_size, 7):
                yield f"{path.name}, byte {at}, {options}", partial(look, run, path, at)
