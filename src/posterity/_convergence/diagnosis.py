"""Follows a run and diagnoses it: reads what is new, a piece at a time, and nothing twice.

Up the stream: `snapshot` hands in what can be read. Down the stream: `diagnostics` keeps what matters of it.
"""

import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeAlias

from posterity._system.uncopyable import Uncopyable

from .diagnostics import Array, Chains, Diagnostics

Read: TypeAlias = Callable[[int, int, Sequence[str]], dict[str, Array]]
LOOK_EVERY_S = 0.2
_PIECE_BYTES = 2 << 20  # too little to be read by several threads; an epoch that is larger is read at once
_FIRST_PIECE = 1


class Diagnosis(Uncopyable):
    """What is known about the chains of a run so far. Hand it to `diagnose` again and again: each costs what is new.

    Any thread may use it, one at a time. It is for one run; after a reset, and for another run, it begins anew.

    Args:
        pars: names of the samples; acceptance is of the first one.
        discard: the part of what is left that is left out at the front, as it remembers where the chains started: 0.5
            looks at the second half.

    Raises:
        ValueError: there is no name, or `discard` isn't from 0 to below 1.
    """

    _INSTEAD = "make a new one where it is needed: it reads what it must know"

    def __init__(self, pars: Sequence[str] = ("p",), *, discard: float = 0.0) -> None:
        self._names = (pars,) if isinstance(pars, str) else tuple(dict.fromkeys(pars))
        if not self._names:
            raise ValueError("pars must name some samples")
        if not 0 <= discard < 1:
            raise ValueError(f"discard must be at least 0 and below 1, got {discard}")
        self._discard = discard
        self._lock = threading.Lock()
        self._run: object = None
        self._chains: Chains | None = None
        self.is_behind = False
        self.results_took_s = 0.0  # of the processor, without reading and taking in

    def follow(self, run: object, burn: int, stop: int, read: Read) -> Diagnostics | None:
        """Take in what is new of a run and tell how it is; called by `Snapshot.diagnose`.

        Args:
            run: which run, and which generation of it.
            burn: the position of the first sample that is left.
            stop: the position after the last one that can be read.
            read: gives samples, from a position to the end of an epoch, about so many, of some names.
        """
        with self._lock:
            if run != self._run:
                self._run, self._chains = run, None
            first = burn + int(self._discard * max(0, stop - burn))
            if first >= stop:
                self._chains = None
                return None
            if self._chains is not None and not first < self._chains.stop <= stop:
                self._chains = None
            chains = self._extended(first, stop, read)
            if chains is not None and not chains.burn(first):
                self._chains = None
                chains = self._extended(first, stop, read)
            self.is_behind = chains is None or chains.stop < stop
            if chains is None:
                return None
            start = time.thread_time()
            found = chains.diagnostics()
            self.results_took_s = time.thread_time() - start
            return found

    def _extended(self, first: int, stop: int, read: Read) -> Chains | None:
        """The chains, up to `stop`; if there are none yet, from `first` on."""
        chains = self._chains
        n = _FIRST_PIECE
        while (chains is None or chains.stop < stop) and self._may_go_on():
            at = first if chains is None else chains.stop
            samples = read(at, min(n, stop - at), self._names)
            self._chains = None  # whoever is interrupted within must begin anew
            chains = chains or Chains(at, {name: array.shape[:2] for name, array in samples.items()})
            chains.add(samples)
            self._chains = chains
            nbytes = sum(array[:, :, :1].nbytes for array in samples.values())
            n = max(1, _PIECE_BYTES // max(1, nbytes))
        return chains

    def _may_go_on(self) -> bool:
        """Whether to read another piece; if not, the next call goes on there, and `is_behind` says so."""
        return True
