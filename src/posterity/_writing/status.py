"""What a backend tells about itself, without waiting for anything.

Down the stream: progress lines, monitoring.
"""

import time
from collections import deque

import msgspec

from posterity._convergence.diagnostics import Diagnostics
from posterity._model.states import State

_WINDOW_S = 30.0


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """A backend at one moment. Times in seconds since 1970, rates over the last half minute.

    `device_bytes`: of epochs that weren't fetched yet from the device that computes them. `samples`: left in each
    chain. `epochs_on_disk`, `bytes_written`: synced, and since opening. `ingest_waited_s`: how long all ingests
    together waited for room. `full_in_s`: when the disk is full if it goes on like this; None if it won't be.
    `last_error` None: all is well. `diagnostics`: of a tenth of a second ago or, if much is new, of longer ago; they
    say of how many samples. None if the option `diagnose` is off, nothing is left, or it can't be done (the log says
    why).
    """

    state: State
    queued_epochs: int
    queued_bytes: int
    device_bytes: int
    epochs: int
    epochs_on_disk: int
    samples: int
    burn: int
    bytes_written: int
    bytes_per_s: float
    samples_per_s: float
    ingest_waited_s: float
    free_bytes: int | None
    full_in_s: float | None
    last_error: str | None
    last_error_at: float | None
    diagnostics: Diagnostics | None = None

    def __str__(self) -> str:
        text = f"{self.state}: {self.epochs} epochs, {self.samples} samples left, {self.queued_epochs} epochs queued"
        return text + (f", {self.last_error}" if self.last_error else "")


class Meter:
    """Rates over the last half minute, from readings of two counters."""

    def __init__(self) -> None:
        self._readings: deque[tuple[float, int, int]] = deque([(time.monotonic(), 0, 0)])

    def read(self, nbytes: int, nsamples: int) -> tuple[float, float]:
        """Note what the counters of bytes and of samples say now; returns their rates per second."""
        now = time.monotonic()
        readings = self._readings
        if now - readings[-1][0] >= 0.1:
            readings.append((now, nbytes, nsamples))
        while len(readings) > 2 and now - readings[1][0] > _WINDOW_S:
            readings.popleft()
        then, bytes_then, samples_then = readings[0]
        seconds = max(now - then, 1e-3)
        return (nbytes - bytes_then) / seconds, max(0, nsamples - samples_then) / seconds
