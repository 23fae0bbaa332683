"""`AsyncRun`: the awaited face of a run that is only read, on asyncio and on trio.

Up the stream: `run`. Down the stream: a service that shows runs, say.
"""

from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Generic, Self

import anyio
from anyio.lowlevel import checkpoint

from posterity._convergence.diagnosis import Diagnosis
from posterity._model.metadata import Metadata
from posterity._system.reader_threads import Readers
from posterity.epoch import EpochT

from .async_reads import AsyncReads
from .async_snapshot import AsyncSnapshot
from .followed_run import LOOK_EVERY_S
from .run import Run, Watch
from .snapshot import Snapshot


class AsyncRun(AsyncReads[EpochT]):
    """The awaited face of a `Run`, on asyncio and on trio."""

    def __init__(self, run: Run[EpochT], reader_threads: int = 4) -> None:
        self._run = run
        self._most_threads = reader_threads
        self._readers = Readers(reader_threads)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run.close()

    def __repr__(self) -> str:
        return repr(self._run).replace("<", "<Async", 1)

    def __reduce__(self) -> tuple[object, ...]:
        """See `Run.__reduce__`."""
        return AsyncRun, (self._run, self._most_threads)

    @property
    def blocking(self) -> Run[EpochT]:
        """The blocking face of the same run."""
        return self._run

    @property
    def metadata(self) -> Metadata:
        """See `Snapshot.metadata`; it is that of the latest snapshot, and nothing is waited for."""
        return self._run.metadata

    def _snapshot(self) -> Snapshot[Any]:
        return self._run.snapshot()

    def updates(
        self, min_samples: int = 1, *, diagnosis: Diagnosis | None = None, every_s: float = LOOK_EVERY_S
    ) -> "AsyncIterator[AsyncSnapshot[EpochT]]":
        """See `Run.updates`."""
        return _Updates(self._run, self._readers, Watch(self._run, min_samples, every_s, diagnosis))

    async def aclose(self) -> None:
        """See `Run.close`."""
        self._run.close()
        await checkpoint()


class _Updates(Generic[EpochT]):
    """The newest snapshot each time something changed. Each one is let go when the next is asked for."""

    def __init__(self, run: Run[EpochT], readers: Readers, watch: Watch[EpochT]) -> None:
        self._run = run
        self._readers = readers
        self._watch = watch
        self._given: AsyncSnapshot[EpochT] | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> AsyncSnapshot[EpochT]:
        self._let_go()
        while not self._run._followed.is_closed:
            pause_s = self._watch.pause_s()
            await anyio.sleep(min(pause_s, LOOK_EVERY_S))
            found = await self._readers.run(self._watch.look) if pause_s <= LOOK_EVERY_S else None
            if found is not None:
                snapshot, self._watch.seen = found
                self._given = AsyncSnapshot(snapshot, self._readers)
                return self._given
        raise StopAsyncIteration

    def _let_go(self) -> None:
        if self._given is not None:
            self._given.release()
            self._given = None

    async def aclose(self) -> None:
        """Let the last snapshot go."""
        self._let_go()
