"""`DefaultBackend`: the blocking face of a run, for plain sampling loops.

A drop-in for `jexplore.backends.DefaultBackend`. It has no rule of its own: it waits, and the service does the rest.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Never, Self

from posterity._convergence.diagnosis import Diagnosis
from posterity._model.metadata import Metadata, Parameters
from posterity._model.options import Compression, Mode, OnFull, options_in, parse_options
from posterity._reading.reads import Reads
from posterity._reading.snapshot import Snapshot
from posterity._system.uncopyable import Uncopyable
from posterity.epoch import EpochDict, EpochT
from posterity.errors import Closed

from .ledger import Asked
from .receipts import Receipt
from .service import Service
from .status import Status

if TYPE_CHECKING:
    from .awaited import AsyncBackend


class DefaultBackend(Reads[EpochT], Uncopyable):
    """Keeps the samples of a long-running sampler. The sampler hands over an epoch and goes on at once.

    What is handed over is part of the run when the call returns, and every later read sees it. It is on disk soon
    after; `flush` waits for that. See "what is safe when" in the documentation.

    Args:
        burn: how many samples, counted from the first ever ingested, are discarded. With a run that is there already,
            the larger one holds.
        outdir: the run folder. Without a run in it, it isn't touched before the first epoch must be written.
        outfile_fmt: names of the HDF5 files, with one `%d` for the number; by default what the run has, and
            "epochs_%d.h5" for a new one.
        epochs_per_file: how many epochs go to one file.
        inmem_epochs: this many of the newest epochs are in memory only, until `flush`, `close` or the end of the
            process.
        save_stats: whether `stats` of the epochs are kept.
        compression: how large arrays are compressed: "gzip", "zstd" (needs `posterity[zstd]`), or "auto", which tries
            both with the first epoch and takes what pays; by default not at all. It holds from the next file on.
        compression_level: 1 to 9 for "gzip", 1 to 22 for "zstd"; by default 1, which is fast.
        shuffle: whether the bytes of numbers are sorted before they are compressed. It helps chains that never repeat
            a sample, and hurts those that do.
        mode: what to do with a run that is there: "a" continues it, "x" refuses, "w" replaces it at the first write.
        max_pending_bytes, max_pending_epochs: the size of the mailbox, by default 1 GiB and 10,000 epochs. A
            larger epoch is taken alone.
        max_device_bytes: of those, the bytes that may still be on the device that computes them (a GPU), by default
            1 GiB. A larger epoch is taken when nothing else is there.
        on_full: what `ingest` does when the mailbox is full: "wait" or "raise" (`MailboxFull`).
        retry_after_s, retry_at_most_s: the first and the longest pause before writing is tried again after a failure.
        warn_free_bytes: a warning is logged when less is free on the disk, by default 1 GiB.
        exit_timeout_s: how long the end of the process waits for a disk that fails, and opening for a backend of the
            same folder that is being closed in this process.
        flush_on_sigterm: on SIGTERM write everything first, then die of it. Needs the main thread.
        reader_threads: how many reads of the awaited face may be under way at once, in each event loop; see
            `AsyncBackend`.
        diagnose: whether `status.diagnostics` has R-hat, ESS and acceptance of "p", or of the names that are given. A
            thread works them out: 0.05 ms for each epoch, 1 to 4 ms for each MB of samples, and about a tenth of a core
            at most for the results.
        trusted_classes: dotted names of epoch classes that `load` may import.
        parameters: names of the components of "p", or `Parameter`s with label, unit and LaTeX; or a dict of such lists,
            for other samples too.
        chains: what the axis of chains is made of, outermost first: `{"temperature": 4, "walker": 16}`.
        attributes: text, numbers, bools, None, and lists and dicts of them, to be kept with the run. With a run that is
            there already, these three add to what it knows; names of parameters and the layout of chains stay.

    Raises:
        UnknownOption: an option that doesn't exist (a `TypeError`); the nearest one is named.
        TypeError, ValueError: an option of the wrong type, or out of its range.
        MissingExtra: "zstd" is asked for, or in the run already, and isn't installed (an `ImportError`).
        RunExists: there is a run, and the mode is "x" (a `FileExistsError`).
        RunLocked: somebody else writes the run (a `BlockingIOError`).
        ForeignFiles: files match `outfile_fmt` and aren't the run's (a `FileExistsError`).
        Damaged: the journal is damaged (an `OSError`).
    """

    _INSTEAD = "send the path of its folder, and read it with `open_run` there; a run has one writer"

    def __init__(
        self,
        burn: int = 0,
        *,
        outdir: str | os.PathLike[str] = "./",
        outfile_fmt: str | None = None,
        epochs_per_file: int = 1,
        inmem_epochs: int = 0,
        save_stats: bool = True,
        compression: Compression | None = None,
        compression_level: int | None = None,
        shuffle: bool = False,
        mode: Mode = "a",
        max_pending_bytes: int = 1 << 30,
        max_pending_epochs: int = 10_000,
        max_device_bytes: int = 1 << 30,
        on_full: OnFull = "wait",
        retry_after_s: float = 0.1,
        retry_at_most_s: float = 30.0,
        warn_free_bytes: int = 1 << 30,
        exit_timeout_s: float = 60.0,
        flush_on_sigterm: bool = False,
        reader_threads: int = 4,
        diagnose: bool | Sequence[str] = False,
        trusted_classes: Sequence[str] = (),
        parameters: Parameters | None = None,
        chains: Mapping[str, int] | None = None,
        attributes: Mapping[str, object] | None = None,
        **unknown: Never,
    ) -> None:
        self._service = Service(parse_options(burn, outdir, options_in(locals())))
        self._service.add_face(self)

    @classmethod
    def _of(cls, service: Service) -> "DefaultBackend[Any]":
        """The blocking face of a run that is open."""
        face = cls.__new__(cls)
        face._service = service
        service.add_face(face)
        return face

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._service.is_of_this_process:  # a forked child that leaves the block has nothing to close
            self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._service.disk.folder}: {self.status}{self.metadata.brief}>"

    @property
    def asynchronous(self) -> "AsyncBackend[EpochT]":
        """The awaited face of the same run; closing either closes the run."""
        from .awaited import AsyncBackend  # noqa: PLC0415  # each of the twins knows the other

        return AsyncBackend._of(self._service)

    @property
    def metadata(self) -> Metadata:
        """See `Snapshot.metadata`; it is that of now, and nothing is waited for."""
        return self._service.ledger.registry.metadata

    # ---- handing over --------------------------------------------------------------------------------------------

    def ingest(self, epoch: object, eind: int = -1, *, timeout_s: float | None = None) -> Self:
        """Hand over an epoch. Returns once that is done: the caller may change or free its arrays.

        Args:
            epoch: an object with `to_backend(burn, stats)`, a dict, or the path of a backend's file.
            eind: which epoch of that file, as in `read_epoch`.
            timeout_s: how long to wait for room in the mailbox; None: as long as it takes.

        Cost: a copy of NumPy arrays. It never waits for the disk, unless the mailbox is full.

        Raises:
            NotStorable: an item can't be stored (a `TypeError`); the message gives its path. Nothing was handed over.
            EpochMismatch: the epoch doesn't fit the run (a `ValueError`). Nothing was handed over.
            MailboxFull: no room in time, or at all with `on_full="raise"` (a `BlockingIOError`).
            Closed: the backend was closed (a `ValueError`).
        """
        self._ingest(epoch, eind, copy=True, timeout_s=timeout_s)
        return self

    def ingest_dict(self, epoch: EpochDict, copy: bool = True) -> Self:
        """Hand over an epoch given as a dict; see `ingest`.

        `copy=False` gives the arrays away, by reference: don't change, donate or delete them until the epoch is
        released (see `ingest_nowait`).
        """
        self._ingest(epoch, -1, copy=copy, timeout_s=None)
        return self

    def _ingest(self, epoch: object, eind: int, *, copy: bool, timeout_s: float | None) -> None:
        service = self._service
        prepared = service.prepare(epoch, eind)
        if service.try_hand_over(prepared, copy=copy) is not None:
            return
        with service.begin_hand_over(prepared) as handing:
            if handing.must_wait():
                service.ledger.wait(handing.may_go_on, timeout_s)
            handing.complete(prepared, copy=copy)

    def ingest_nowait(self, epoch: object, copy: bool = True) -> Receipt:
        """Hand over an epoch without ever waiting; see `ingest` and `ingest_dict`.

        Returns:
            A receipt: `index`; `released`, the arrays are free again; `durable`, it survives a power cut.

        Raises:
            MailboxFull: there is no room now (a `BlockingIOError`).
        """
        return self._service.ingest_nowait(epoch, copy=copy)

    # ---- burning -------------------------------------------------------------------------------------------------

    @property
    def burn(self) -> int:
        """How many samples, counted from the first ever ingested, are discarded."""
        return self._service.ledger.registry.burn

    def set_burn(self, burn: int) -> None:
        """Discard the first `burn` samples ever ingested, or to be ingested. Waits for no disk.

        Every later read sees it. It is as durable as an ingest that returned: `flush` waits for that.

        Raises:
            BurnLowered: it is lower than before (a `ValueError`).
            ValueError: it is over 2**62, more than any run can have.
        """
        self._service.set_burn(burn)

    def clean(self) -> None:
        """Discard all that was ingested so far; see `set_burn`."""
        self._service.clean()

    def update(self) -> None:
        """Apply the storing policy now; returns when memory and disk are as it says.

        Raises:
            WriteFailed: an attempt to write failed (an `OSError`); the attempts go on.
        """
        self._settle(self._service.ledger.ask_settled())

    def reset(self) -> None:
        """Remove the run's own files and start empty; nobody else's file is touched.

        The burn that was asked for goes on to be owed. Returns when the files are gone.

        Raises:
            WriteFailed: removing them failed (an `OSError`); the run is empty, and the attempts go on.
        """
        failures = self._service.ledger.failures
        self._service.reset()
        self._settle(self._service.ledger.ask_settled(failures))

    def _settle(self, asked: Asked) -> None:
        self._service.check_process()
        ledger = self._service.ledger
        ledger.wait(partial(ledger.is_settled, asked))
        ledger.check_settled(asked)

    # ---- reading -------------------------------------------------------------------------------------------------

    def snapshot(self) -> "Snapshot[EpochT]":
        """The run at this moment, to read from as often as needed; use it with `with`, or `release` it.

        Every ingest that returned before is in it.
        """
        return self._service.snapshot()  # type: ignore[return-value]  # the epoch class is the caller's word

    def updates(self, min_samples: int = 1, *, diagnosis: Diagnosis | None = None) -> "Iterator[Snapshot[EpochT]]":
        """The newest snapshot each time something changed, and at least `min_samples` came or a burn took some.

        None queue up; it ends when the backend is closed. Each snapshot is released when the next one is asked for.
        With a `diagnosis` each has `diagnostics`.

        Raises:
            KeyError, TypeError: see `Snapshot.diagnose`.
        """
        self._service.check_process()
        ledger = self._service.ledger
        seen: tuple[int, int, int] | None = None
        while True:
            ledger.wait(partial(ledger.has_news, seen, min_samples))
            if ledger.state.is_over:
                return
            try:
                snapshot = self.snapshot()
            except Closed:  # just now
                return
            with snapshot:
                registry = snapshot.registry
                seen = (registry.generation, registry.nsamples, registry.burn)
                if diagnosis is not None:
                    snapshot.diagnose(diagnosis)
                yield snapshot

    # ---- the disk ------------------------------------------------------------------------------------------------

    def flush(self, publish: bool = False) -> None:
        """Wait until all that was ingested and burned before survives a power cut.

        `publish`: also give the file that is filling up its name, so that others can open it.

        Raises:
            WriteFailed: an attempt made since failed (an `OSError`); nothing is dropped and the attempts go on.
            Closed: the backend was closed before all was written (a `ValueError`).
        """
        self._service.check_process()
        ledger = self._service.ledger
        asked = ledger.demand(publish=publish)
        ledger.wait(lambda: ledger.is_done(asked))
        ledger.check_done(asked)

    @property
    def status(self) -> Status:
        """What the backend is doing; never waits."""
        return self._service.status()

    def close(self, timeout_s: float | None = 60) -> None:
        """Write all, publish, and let the folder go; idempotent.

        Raises:
            NotWritten: not all was written in time (a `TimeoutError`); the message names the epochs. The attempts go
                on, and `close` can be called again.
        """
        service = self._service
        service.check_process()
        service.ask_close()
        ledger = service.ledger
        ledger.wait(lambda: ledger.state.is_over, timeout_s)
        service.check_closed(timeout_s)
