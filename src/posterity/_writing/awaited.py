"""`AsyncBackend`: the awaited face of a run, on asyncio and on trio.

It has no rule of its own, and no task or thread in the caller's loop: it waits for the service, which has its own.
Being cancelled, by an anyio scope or by asyncio itself, leaves a call as if it had happened or not.
"""

import os
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Never, Self

import anyio
import msgspec
from anyio.lowlevel import checkpoint

from posterity._convergence.diagnosis import Diagnosis
from posterity._ingest import cost
from posterity._model.metadata import Metadata, Parameters
from posterity._model.options import Compression, Mode, OnFull, Options, options_in, parse_options
from posterity._reading.async_reads import AsyncReads
from posterity._reading.async_snapshot import AsyncSnapshot
from posterity._reading.snapshot import Snapshot
from posterity._system.event_loop import Loop, is_in_loop
from posterity._system.reader_threads import Readers, in_thread
from posterity._system.uncopyable import Uncopyable
from posterity.epoch import EpochDict, EpochT
from posterity.errors import Closed

from .ledger import Asked
from .receipts import Receipt
from .service import Service, caller
from .status import Status
from .waiting import until

if TYPE_CHECKING:
    from .blocking import DefaultBackend


class AsyncBackend(AsyncReads[EpochT], Uncopyable):
    """Keeps the samples of long-running samplers, awaited: see `DefaultBackend`, which has the same names and options.

    Options are checked at once; the folder is looked at, and a run in it locked, on entering:

        async with AsyncBackend(outdir="my_run") as backend:
            await backend.ingest(epoch)

    `reader_threads`: how many reads may be under way at once, each in a thread. Large epochs are copied in threads too,
    as many again, so that ingesting never waits for reads.

    Raises:
        UnknownOption, TypeError, ValueError: at once; see `DefaultBackend`.
        RunExists, RunLocked, ForeignFiles, Damaged: on entering; see `DefaultBackend`.
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
        self._take(parse_options(burn, outdir, options_in(locals())), None)
        self._where = caller()

    def _take(self, options: Options, service: Service | None) -> None:
        self._options = options
        self._opened = service
        self._readers = Readers(options.reader_threads)
        self._copiers = Readers(options.reader_threads, abandons=False)

    @classmethod
    def _of(cls, service: Service) -> "AsyncBackend[Any]":
        """The awaited face of a run that is open."""
        face = cls.__new__(cls)
        face._take(service.options, service)
        service.add_face(face)
        return face

    @property
    def _service(self) -> Service:
        if self._opened is None:
            raise Closed("the backend isn't open yet: use it within 'async with'")
        return self._opened

    async def __aenter__(self) -> Self:
        if self._opened is None:
            opening = _Opening(self._options, self._where)
            try:
                self._opened = await in_thread(opening.run)
            finally:
                if self._opened is None:
                    opening.abandon()
            self._opened.add_face(self)
            if self._options.flush_on_sigterm:
                self._opened.flush_on_sigterm()  # here, as signals are handled in the main thread only
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._opened is None or not self._opened.is_of_this_process:
            return
        if kind is GeneratorExit and not is_in_loop():  # it was closed under us, and nothing can be waited for
            self._opened.ask_close_later()
            return
        with anyio.CancelScope(shield=True):
            await self.aclose()

    def __repr__(self) -> str:
        if self._opened is None:
            return f"<{type(self).__name__} of {self._options.outdir}: not open yet>"
        return f"<{type(self).__name__} of {self._opened.disk.folder}: {self.status}{self.metadata.brief}>"

    @property
    def blocking(self) -> "DefaultBackend[EpochT]":
        """The blocking face of the same run; closing either closes the run."""
        from .blocking import DefaultBackend  # noqa: PLC0415  # each of the twins knows the other

        return DefaultBackend._of(self._service)

    @property
    def metadata(self) -> Metadata:
        """See `Snapshot.metadata`; it is that of now, and nothing is waited for."""
        return self._service.ledger.registry.metadata

    # ---- handing over --------------------------------------------------------------------------------------------

    async def ingest(self, epoch: object, eind: int = -1, *, timeout_s: float | None = None) -> Self:
        """See `DefaultBackend.ingest`. What takes long is done in a thread, for large epochs the copying too."""
        await self._ingest(epoch, eind, copy=True, timeout_s=timeout_s)
        return self

    async def ingest_dict(self, epoch: EpochDict, copy: bool = True) -> Self:
        """See `DefaultBackend.ingest_dict`."""
        await self._ingest(epoch, -1, copy=copy, timeout_s=None)
        return self

    async def _ingest(self, epoch: object, eind: int, *, copy: bool, timeout_s: float | None) -> None:
        service = self._service
        await checkpoint()
        is_quick = isinstance(epoch, dict) and cost.is_quick(epoch, copy=copy)
        prepare = partial(service.prepare, epoch, eind)
        if is_quick:
            prepared = prepare()
        else:
            threads = self._readers if isinstance(epoch, (str, os.PathLike)) else self._copiers
            prepared = await threads.run(prepare)
        if is_quick and service.try_hand_over(prepared, copy=copy) is not None:
            return
        with service.begin_hand_over(prepared, is_alive=Loop().is_open) as handing:
            if handing.must_wait():
                with anyio.move_on_after(timeout_s):
                    await until(service.ledger, handing.may_go_on)
                handing.end_wait()  # here: a thread to copy in may be long in coming
            own = partial(handing.own, prepared, copy=copy)
            handing.enter(prepared, own() if is_quick else await self._copiers.run(own))

    def ingest_nowait(self, epoch: object, copy: bool = True) -> Receipt:
        """See `DefaultBackend.ingest_nowait`; what the receipt promises can be awaited.

        The copy is made here and now: for a large epoch use `ingest`, or `copy=False`.
        """
        return self._service.ingest_nowait(epoch, copy=copy)

    # ---- burning -------------------------------------------------------------------------------------------------

    @property
    def burn(self) -> int:
        """See `DefaultBackend.burn`."""
        return self._service.ledger.registry.burn if self._opened is not None else self._options.burn

    async def set_burn(self, burn: int) -> None:
        """See `DefaultBackend.set_burn`."""
        await checkpoint()
        self._service.set_burn(burn)

    async def clean(self) -> None:
        """See `DefaultBackend.clean`."""
        await checkpoint()
        self._service.clean()

    async def update(self) -> None:
        """See `DefaultBackend.update`."""
        await checkpoint()
        await self._settle(self._service.ledger.ask_settled())

    async def reset(self) -> None:
        """See `DefaultBackend.reset`."""
        await checkpoint()
        failures = self._service.ledger.failures
        self._service.reset()
        await self._settle(self._service.ledger.ask_settled(failures))

    async def _settle(self, asked: Asked) -> None:
        service, ledger = self._service, self._service.ledger
        service.check_process()
        await until(ledger, partial(ledger.is_settled, asked))
        ledger.check_settled(asked)

    # ---- reading -------------------------------------------------------------------------------------------------

    def _snapshot(self) -> Snapshot[Any]:
        return self._service.snapshot()

    async def _take_snapshot(self) -> Snapshot[Any]:
        await checkpoint()
        return self._service.snapshot()

    def updates(
        self, min_samples: int = 1, *, diagnosis: Diagnosis | None = None
    ) -> "AsyncIterator[AsyncSnapshot[EpochT]]":
        """See `DefaultBackend.updates`: `async for snapshot in backend.updates()`."""
        return _Updates(self._service, self._readers, min_samples, diagnosis)

    # ---- the disk ------------------------------------------------------------------------------------------------

    async def flush(self, publish: bool = False) -> None:
        """See `DefaultBackend.flush`."""
        service, ledger = self._service, self._service.ledger
        service.check_process()
        await checkpoint()
        asked = ledger.demand(publish=publish)
        await until(ledger, partial(ledger.is_done, asked))
        ledger.check_done(asked)

    @property
    def status(self) -> Status:
        """See `DefaultBackend.status`."""
        return self._service.status()

    async def aclose(self, timeout_s: float | None = 60) -> None:
        """See `DefaultBackend.close`. Cancelled, it goes on being closed behind the caller's back."""
        if self._opened is None:
            return
        service, ledger = self._opened, self._opened.ledger
        service.check_process()
        service.ask_close()
        with anyio.move_on_after(timeout_s):
            await until(ledger, lambda: ledger.state.is_over)
        await in_thread(partial(service.check_closed, timeout_s))


class _Updates(Generic[EpochT]):
    """The newest snapshot each time something changed. Each one is let go when the next is asked for."""

    def __init__(self, service: Service, readers: Readers, min_samples: int, diagnosis: Diagnosis | None) -> None:
        self._service = service
        self._readers = readers
        self._min_samples = min_samples
        self._diagnosis = diagnosis
        self._seen: tuple[int, int, int] | None = None
        self._given: AsyncSnapshot[EpochT] | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> AsyncSnapshot[EpochT]:
        self._let_go()
        ledger = self._service.ledger
        await until(ledger, lambda: ledger.has_news(self._seen, self._min_samples))
        if ledger.state.is_over:
            raise StopAsyncIteration
        try:
            snapshot: Snapshot[Any] = self._service.snapshot()
        except Closed:  # just now
            raise StopAsyncIteration from None
        registry = snapshot.registry
        self._seen = (registry.generation, registry.nsamples, registry.burn)
        self._given = given = AsyncSnapshot(snapshot, self._readers)
        if self._diagnosis is not None:
            await given.diagnose(self._diagnosis)
        return given

    def _let_go(self) -> None:
        if self._given is not None:
            self._given.release()
            self._given = None

    async def aclose(self) -> None:
        """Let the last snapshot go."""
        self._let_go()


class _Opening:
    """Opens a run in a thread that may outlive the task that asked: then the run is closed again."""

    def __init__(self, options: Options, where: str) -> None:
        if options.flush_on_sigterm and threading.current_thread() is not threading.main_thread():
            raise ValueError("flush_on_sigterm needs the backend to be opened in the main thread")
        self._options = msgspec.structs.replace(options, flush_on_sigterm=False)  # not for the thread that opens it
        self._where = where
        self._service: Service | None = None
        self._is_abandoned = False

    def run(self) -> Service:
        self._service = Service(self._options, where=self._where)
        if self._is_abandoned:
            self._service.ask_close()
        return self._service

    def abandon(self) -> None:
        self._is_abandoned = True
        if self._service is not None:
            self._service.ask_close_later()
