"""Diagnoses a run while it is written, in a thread of its own, so that `status` can tell without waiting.

It keeps out of the way: it holds no lock, it copies what it reads, so no epoch stays in memory for it, and it isn't
woken at a hand-over but looks by itself, at most ten times a second. When epochs come faster than that it takes several
at once. An epoch that is still in memory is read from there; one that was let go, from its file. What it takes is
processor time: some for each MB and, as long as it keeps up, at most a tenth of a core for the results.

Up the stream: `ledger`, `snapshot`. Down the stream: `service` shows what it found.
"""

import logging
import time
from collections.abc import Callable, Sequence

from posterity._convergence.diagnosis import Diagnosis
from posterity._convergence.diagnostics import Diagnostics
from posterity._reading.snapshot import Snapshot
from posterity._system.threads import OurThread
from posterity._system.uncopyable import Uncopyable
from posterity.errors import Closed

from .ledger import Ledger
from .wakers import Bell

logger = logging.getLogger("posterity.monitor")
_PAUSE_S = 0.1
_REST = 9  # times as long as it took to work out the results: these cost the same however little is new
_RETRY_S = 1.0
_AT_A_TIME_S = 0.5  # no snapshot is kept for longer: the writer can't clear up what it shows


class _InTurns(Diagnosis):
    """A diagnosis that stops before it has taken too long."""

    def __init__(self, pars: Sequence[str], may_go_on: Callable[[], bool]) -> None:
        super().__init__(pars)
        self._asked = may_go_on

    def _may_go_on(self) -> bool:
        return self._asked()


class Monitor(Uncopyable):
    """Keeps `diagnostics` up to date until the run is closed. None: nothing is known, or something went wrong."""

    def __init__(self, ledger: Ledger, take: Callable[[], Snapshot[object]], pars: Sequence[str], name: str) -> None:
        self.diagnostics: Diagnostics | None = None
        self._ledger = ledger
        self._take = take
        self._diagnosis = _InTurns(pars, self._has_time)
        self._folder = name
        self._bell = Bell()
        self._seen: object = None
        self._told = ""
        self._deadline = 0.0
        self._thread = OurThread(f"posterity-diagnose {name}", self._run)

    def start(self) -> None:
        """Start the thread."""
        self._ledger.listen(self, self._nudge)
        self._thread.start()

    def join(self) -> None:
        """Wait until the thread has ended; it does soon when the run is closed."""
        self._thread.join()

    def _nudge(self) -> None:
        """Called at each change, under the ledger's lock; wakes nobody as long as the run is open."""
        if self._ledger.state.is_over:
            self._bell.ring()

    def _run(self) -> None:
        while not self._ledger.state.is_over:
            self._bell.wait(self._look())
        self._ledger.unlisten(self)

    def _look(self) -> float:
        """Take in what is new; returns for how long to rest."""
        registry = self._ledger.registry
        now = (registry.generation, registry.nsamples, registry.burn, self._ledger.on_device)
        if now == self._seen:
            return _PAUSE_S
        self._deadline = time.monotonic() + _AT_A_TIME_S
        try:
            with self._take() as snapshot:
                self.diagnostics = snapshot.diagnose(self._diagnosis)
        except Closed:  # just now
            return _PAUSE_S
        except Exception as error:  # noqa: BLE001  # the top of the thread; the run must go on
            self.diagnostics = None
            if str(error) != self._told:
                self._told = str(error)
                logger.error("%s can't be diagnosed, it is tried again: %s", self._folder, self._told)
            return _RETRY_S
        self._told = ""
        if self._diagnosis.is_behind:
            return 0.0
        self._seen = now
        return max(_PAUSE_S, _REST * self._diagnosis.results_took_s)

    def _has_time(self) -> bool:
        return not self._ledger.state.is_over and time.monotonic() <= self._deadline
