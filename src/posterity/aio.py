"""`AsyncBackend`: the awaited face of a run, on asyncio and on trio.

It has no rule of its own, and no task or thread in the caller's loop: it waits for the service, which has its own.
Being cancelled, by an anyio scope or by asyncio itself, leaves a call as if it had happened or not.
"""

import os
from collections.abc import AsyncIterator
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

import anyio
from anyio.lowlevel import checkpoint

from .aioreads import AsyncReads, AsyncSnapshot, Readers
from .epoch import EpochDict, Prepared
from .errors import Closed
from .options import Options, parse_options
from .receipts import Receipt
from .service import Service, caller
from .snapshot import Snapshot
from .status import Status
from .waiting import until

if TYPE_CHECKING:
    from .backend import DefaultBackend

EpochT = TypeVar("EpochT")
_COPIED_IN_LOOP_BYTES = 1 << 22  # about a millisecond's copy


class AsyncBackend(AsyncReads[EpochT]):
    """Keeps the samples of long-running samplers, awaited: see `DefaultBackend`, which has the same names and options.

    Options are checked at once; the folder is looked at, and a run in it locked, on entering:

        async with AsyncBackend(outdir="my_run") as backend:
            await backend.ingest(epoch)

    One more option, `reader_threads`: how many reads may be under way at once.

    Raises:
        UnknownOption, TypeError, ValueError: at once; see `DefaultBackend`.
        RunExists, RunLocked, ForeignFiles, Damaged: on entering; see `DefaultBackend`.
    """

    def __init__(self, burn: int = 0, *, outdir: str | os.PathLike[str] = "./", **options: object) -> None:
        self._take(parse_options(burn, outdir, options), None)
        self._where = caller()

    def _take(self, options: Options, service: Service | None) -> None:
        self._options = options
        self._opened = service
        self._readers = Readers(options.reader_threads)

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
                self._opened = await self._readers.run(opening.run)
            finally:
                if self._opened is None:
                    opening.abandon()
            self._opened.add_face(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._opened is not None and self._opened.is_of_this_process:
            with anyio.CancelScope(shield=True):
                await self.aclose()

    def __repr__(self) -> str:
        if self._opened is None:
            return f"<{type(self).__name__} of {self._options.outdir}: not open yet>"
        return f"<{type(self).__name__} of {self._opened.disk.folder}: {self.status}>"

    @property
    def blocking(self) -> "DefaultBackend[EpochT]":
        """The blocking face of the same run; closing either closes the run."""
        from .backend import DefaultBackend  # noqa: PLC0415  # each of the twins knows the other

        return DefaultBackend._of(self._service)

    # ---- handing over --------------------------------------------------------------------------------------------

    async def ingest(self, epoch: object, eind: int = -1, *, timeout_s: float | None = None) -> Self:
        """See `DefaultBackend.ingest`. Large copies are made in a thread."""
        await self._ingest(epoch, eind, copy=True, timeout_s=timeout_s)
        return self

    async def ingest_dict(self, epoch: EpochDict, copy: bool = True) -> Self:
        """See `DefaultBackend.ingest_dict`."""
        await self._ingest(epoch, -1, copy=copy, timeout_s=None)
        return self

    async def _ingest(self, epoch: object, eind: int, *, copy: bool, timeout_s: float | None) -> None:
        service, ledger = self._service, self._service.ledger
        await checkpoint()
        if isinstance(epoch, dict):
            prepared = service.prepare(epoch, eind)
        else:  # a file is read, and to_backend may wait for a device
            prepared = await self._readers.run(partial(service.prepare, epoch, eind))
        ticket = ledger.ask_room(prepared.nbytes)
        try:
            waited_s = 0.0
            if not ledger.has_room(ticket):
                if service.options.on_full == "raise":
                    raise ledger.full_error()
                start = anyio.current_time()
                with anyio.move_on_after(timeout_s):
                    await until(ledger, partial(ledger.has_room, ticket))
                if not ledger.has_room(ticket):
                    raise ledger.full_error()
                waited_s = anyio.current_time() - start
            if _is_large(prepared, copy=copy):
                held = await self._readers.run(partial(service.own, prepared, copy=copy))
            else:
                held = service.own(prepared, copy=copy)
            service.hand_over(ticket, prepared, held, copy=copy, waited_s=waited_s)
        finally:
            ledger.give_up(ticket)

    def ingest_nowait(self, epoch: object, copy: bool = True) -> Receipt:
        """See `DefaultBackend.ingest_nowait`; what the receipt promises can be awaited."""
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
        await self._settle(self._service.ledger.failures)

    async def reset(self) -> None:
        """See `DefaultBackend.reset`."""
        await checkpoint()
        failures = self._service.ledger.failures
        self._service.reset()
        await self._settle(failures)

    async def _settle(self, failures: int) -> None:
        service, ledger = self._service, self._service.ledger
        service.check_process()
        await until(ledger, lambda: ledger.is_settled() or ledger.has_failed(failures))
        ledger.check_failure(failures)

    # ---- reading -------------------------------------------------------------------------------------------------

    def _snapshot(self) -> Snapshot[Any]:
        return self._service.snapshot()

    def updates(self, min_samples: int = 1) -> "AsyncIterator[AsyncSnapshot[EpochT]]":
        """See `DefaultBackend.updates`: `async for snapshot in backend.updates()`."""
        return _Updates(self._service, self._readers, min_samples)

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
        await self._readers.run(partial(service.check_closed, timeout_s))


class _Updates(Generic[EpochT]):
    """The newest snapshot each time something changed. Each one is let go when the next is asked for."""

    def __init__(self, service: Service, readers: Readers, min_samples: int) -> None:
        self._service = service
        self._readers = readers
        self._min_samples = min_samples
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
        given: AsyncSnapshot[EpochT] = AsyncSnapshot(self._service.snapshot(), self._readers)  # type: ignore[arg-type]
        registry = given.registry
        self._seen = (registry.generation, registry.nsamples, registry.burn)
        self._given = given
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
        self._options = options
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
            self._service.ask_close()


def _is_large(prepared: Prepared, *, copy: bool) -> bool:
    """Whether taking the epoch over would hold the caller's loop up."""
    return prepared.nbytes > _COPIED_IN_LOOP_BYTES and (copy or not prepared.is_contiguous)
