"""How a run grows, seen from its folder: what somebody who watches it from another process wants to see.

Up the stream: `run` gives snapshots, `lock` knows the writer. Down the stream: `posterity tail`.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from posterity._convergence.diagnosis import Diagnosis
from posterity._convergence.diagnostics import Diagnostics
from posterity._model.registry import Registry
from posterity._reading.run import Run, open_run
from posterity._system.disk import Disk
from posterity._writing.status import Meter
from posterity.errors import SnapshotExpired

from .run_info import RunWriter, last_change, run_writer


class Pulse(msgspec.Struct, frozen=True, kw_only=True):
    """A run at one moment, seen from outside. Times in seconds since 1970, rates over the last half minute.

    Epochs and samples are those on disk; those that wait in the writer's memory are known there alone. `samples`: of
    each chain, burned ones too. `samples_per_s`, `bytes_per_s` None: this is the first look. `lag_s`: how long ago
    something was written last. `diagnostics` None: they weren't asked for, or nothing can be said. `writer` None:
    nobody writes it now.
    """

    at: float
    epochs: int
    samples: int
    samples_left: int
    burn: int
    samples_per_s: float | None
    bytes_per_s: float | None
    lag_s: float
    diagnostics: Diagnostics | None
    writer: RunWriter | None


def follow(
    outdir: str | os.PathLike[str], *, every_s: float = 2.0, wait_s: float = 0.0, diagnosis: Diagnosis | None = None
) -> Iterator[Pulse]:
    """Look at a run again and again; nobody is disturbed. It doesn't end by itself.

    Args:
        outdir: the run folder.
        every_s: seconds between two looks.
        wait_s: how long to wait for a run that isn't there yet.
        diagnosis: works out R-hat, ESS and acceptance; the first look then reads all that is left of the run.

    Raises:
        FileNotFoundError: there is no run in the folder, or it went away.
        Damaged, NewerFormat: see `open_run`.
        KeyError, TypeError: the samples to diagnose aren't there, or aren't real numbers.
    """
    disk = Disk(Path(os.fsdecode(outdir)))
    with open_run(outdir, wait_s=wait_s) as run:
        disk.enter(make=False)
        try:
            rates = _Rates()
            while True:
                registry, found = _look(run, diagnosis)
                yield _pulse(disk, registry, rates.read(registry), found)
                time.sleep(every_s)
        finally:
            disk.leave()


def _look(run: Run[Any], diagnosis: Diagnosis | None) -> tuple[Registry, Diagnostics | None]:
    with run.snapshot() as snapshot:
        try:
            return snapshot.registry, None if diagnosis is None else snapshot.diagnose(diagnosis)
        except SnapshotExpired:  # burned meanwhile: the next look sees what is left
            return snapshot.registry, None


class _Rates:
    """Samples and bytes for each second, as long as the run isn't reset."""

    def __init__(self) -> None:
        self._meter = Meter()
        self._first: tuple[int, int, int] | None = None

    def read(self, registry: Registry) -> tuple[float | None, float | None]:
        nbytes, nsamples = registry.bytes_before(registry.next_index), registry.nsamples
        if self._first is None or self._first[0] != registry.generation or nsamples < self._first[2]:
            self._first, self._meter = (registry.generation, nbytes, nsamples), Meter()
            return None, None
        bytes_per_s, samples_per_s = self._meter.read(nbytes - self._first[1], nsamples - self._first[2])
        return samples_per_s, bytes_per_s


def _pulse(
    disk: Disk, registry: Registry, rates: tuple[float | None, float | None], diagnostics: Diagnostics | None
) -> Pulse:
    now = time.time()
    return Pulse(
        at=now,
        epochs=registry.next_index,
        samples=registry.nsamples,
        samples_left=registry.nsamples_left,
        burn=registry.burn,
        samples_per_s=rates[0],
        bytes_per_s=rates[1],
        lag_s=max(0.0, now - last_change(disk)),
        diagnostics=diagnostics,
        writer=run_writer(disk),
    )
