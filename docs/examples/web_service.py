"""A web service that samples: it starts runs, streams their progress, gives posteriors, and ends without losing any.

    scripts/example web_service

serves http://127.0.0.1:8000/ until Ctrl-C or SIGTERM. Open that page in a browser, or use curl:
docs/how-to/serve-runs-over-http.md has the commands, and says how the pieces fit.

It shows `AsyncBackend` in an ASGI application (Starlette, served by uvicorn). emcee samples in worker threads and hands
over through `backend.blocking`. Requests read from the same backend: they wait neither for the sampler nor for the
disk. A run that nobody samples is read from its folder by `open_run`, so all runs are found again after a restart.
"""

import argparse
import asyncio
import contextlib
import io
import re
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal, TypeVar

import anyio
import anyio.abc
import anyio.to_thread
import emcee
import msgspec
import numpy as np
import uvicorn
from msgspec import Meta
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.routing import Route

from posterity import (
    AsyncBackend,
    AsyncSnapshot,
    BurnLowered,
    Closed,
    DefaultBackend,
    NotWritten,
    PosterityError,
    RunExists,
    RunLocked,
    open_run,
)

T = TypeVar("T")

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
"""What a run may be called: it is the name of its folder, and nothing else may become a path."""
HOSTS = ["127.0.0.1", "localhost"]
"""The names by which it is reached; any other is refused, or a web page could reach it by a name of its own."""
MOST_BYTES = 1 << 30
"""As large as a run may be asked for at once."""
MOST_BODY = 10_000
"""Bytes of a request's body."""
PAUSE_S = 0.2
"""Between two events of a stream; a client gets the newest numbers, not all of them."""
HEARTBEAT_S = 5.0
"""An event comes at least so often: it tells of a disk that fails, and shows proxies that the stream is alive."""
PIECE = 10_000
"""Numbers encoded at once: JSON is made with the interpreter's lock held, and the event loop waits for that."""


# --- what can be asked for; msgspec checks it, and says what is wrong ---


Epochs = Annotated[int, Meta(ge=1, le=100_000)]


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a run is sampled. It is stored with each epoch, so that a run can be continued from its folder alone."""

    model: Literal["gaussian", "rosenbrock"] = "gaussian"
    dim: Annotated[int, Meta(ge=2, le=20)] = 3
    walkers: Annotated[int, Meta(ge=4, le=1000)] = 32
    steps: Annotated[int, Meta(ge=1, le=10_000)] = 200  # in an epoch
    seed: Annotated[int, Meta(ge=0, le=2**32 - 1)] = 1

    def __post_init__(self) -> None:
        if self.walkers < 2 * self.dim:
            raise ValueError(f"emcee needs at least two walkers for each dimension: {2 * self.dim}, got {self.walkers}")


class NewRun(Recipe, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A run to start."""

    name: str
    epochs: Epochs = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        if not NAME.fullmatch(self.name):
            raise ValueError(f"a name has 1 to 64 of a-z, 0-9, - and _, got {self.name!r}")


class More(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much more to sample of a run."""

    epochs: Epochs = 100


class Burn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many samples to discard, counted from the first ever ingested."""

    burn: Annotated[int, Meta(ge=0)]


class Nothing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An empty object."""


class Chain(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which part of the chain to look at."""

    burn: Annotated[int, Meta(ge=0)] = 0
    thin: Annotated[int, Meta(ge=1)] = 1


class Samples(Chain, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which samples to get, and how."""

    pars: str = "p"
    flatten: bool = False
    format: Literal["json", "npy"] = "json"


class Info(msgspec.Struct, frozen=True, kw_only=True):
    """What the service tells about a run. `samples`: left in each chain. `summary`: from a thinned chain."""

    name: str
    state: str
    epochs: int
    samples: int
    burn: int
    queued_epochs: int = 0
    samples_per_s: float = 0.0
    watchers: int = 0
    summary: dict[str, list[float]] | None = None
    error: str | None = None


# --- sampling, in a worker thread ---


def gaussian(theta: np.ndarray) -> np.ndarray:
    """Return the log density for each row: every parameter has variance 1, every pair has correlation 1/2."""
    return theta.sum(axis=1) ** 2 / (theta.shape[1] + 1) - (theta**2).sum(axis=1)


def rosenbrock(theta: np.ndarray) -> np.ndarray:
    """Return the log density for each row: a curved, narrow valley."""
    here, after = theta[:, :-1], theta[:, 1:]
    return -(100 * (after - here**2) ** 2 + (1 - here) ** 2).sum(axis=1) / 20


MODELS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"gaussian": gaussian, "rosenbrock": rosenbrock}


def sample(backend: DefaultBackend, recipe: Recipe, epochs: int, stop: threading.Event) -> None:
    """Sample so many epochs, or until told to stop: within a step, and the steps made so far are handed over too.

    The state of the random generator is stored with each epoch, so a run that is stopped and continued has the very
    samples that it would have without the stop.
    """
    sampler = emcee.EnsembleSampler(recipe.walkers, recipe.dim, MODELS[recipe.model], vectorize=True)
    if backend.status.epochs:
        last = backend.load()
        state = emcee.State(last.last["p"], log_prob=last.last["lp"][:, 0], random_state=last.state["random_state"])
    else:
        random = np.random.RandomState(recipe.seed)
        state = emcee.State(random.normal(size=(recipe.walkers, recipe.dim)), random_state=random.get_state())
    for _ in range(epochs):
        for _ in sampler.sample(state, iterations=recipe.steps):
            if stop.is_set():
                break
        state = sampler.get_last_sample()
        p, lp = sampler.get_chain(), sampler.get_log_prob()  # (nsteps, nwalkers, ndim) and (nsteps, nwalkers)
        backend.ingest(
            {
                "samples": {"p": p.transpose(1, 2, 0), "lp": lp.T[:, None, :]},
                "state": {"random_state": state.random_state},
                "sampling": msgspec.to_builtins(recipe),
            }
        )
        sampler.reset()
        if stop.is_set():
            return


def summarise(p: np.ndarray) -> dict[str, list[float]]:
    """Return mean, standard deviation, split R-hat and effective samples of each parameter of `(nchain, dim, n)`.

    The walkers of an ensemble aren't independent: take R-hat as a hint. The effective samples are from emcee's
    autocorrelation time.
    """
    half = p.shape[2] // 2
    halves = np.concatenate([p[:, :, :half], p[:, :, half : 2 * half]])
    with np.errstate(all="ignore"):  # a chain that never moved has no R-hat
        within = halves.var(axis=2, ddof=1).mean(axis=0)
        between = halves.mean(axis=2).var(axis=0, ddof=1)
        rhat = np.sqrt((half - 1) / half + between / within)
        tau = emcee.autocorr.integrated_time(p.transpose(2, 0, 1), tol=0)
    found = {"mean": p.mean(axis=(0, 2)), "sd": p.std(axis=(0, 2)), "rhat": rhat, "ess": p[:, 0].size / tau}
    return {name: values.tolist() for name, values in found.items()}


# --- the runs: those that are sampled here, and those that lie in the folder ---


class Sampling:
    """A run while it is sampled here."""

    def __init__(self) -> None:
        self.backend: AsyncBackend[Any] | None = None  # until it is open
        self.stop = threading.Event()
        self.ended = anyio.Event()
        self.watchers = 0
        self.summary: dict[str, list[float]] | None = None
        self._summarised = 0

    async def summarise(self) -> None:
        """Look at the chain anew when it has become a tenth longer, or shorter, for all who watch."""
        n = self.backend.status.samples
        if n < 10 or 0.9 < n / max(self._summarised, 1) < 1.1:
            return
        self._summarised = n
        with contextlib.suppress(Closed):  # it has just ended
            samples = await self.backend.get_samples(thin=max(1, n // 500))
            if samples is not None:  # else all was burned meanwhile
                self.summary = await anyio.to_thread.run_sync(summarise, samples["p"])


class Runs:
    """All runs of one folder. Each is written by one backend at most, and only while it is sampled or burned."""

    def __init__(self, folder: Path, at_once: int) -> None:
        self.folder = folder
        self.at_once = at_once
        self.tasks: anyio.abc.TaskGroup | None = None  # there while the application is up
        self.stopping = anyio.Event()
        self._sampling: dict[str, Sampling] = {}
        self._errors: dict[str, str] = {}
        self._threads = anyio.CapacityLimiter(at_once)

    def folder_of(self, name: str) -> Path:
        """Return the folder of a run: the one place where a name from outside becomes a path."""
        if not NAME.fullmatch(name):
            raise HTTPException(404, f"there is no run {name!r}")
        return self.folder / name

    def sampling(self, name: str) -> Sampling | None:
        """Return a run if it is being sampled here."""
        run = self._sampling.get(name)
        return run if run is not None and run.backend is not None else None

    def names(self) -> list[str]:
        """Return the names of all folders that may be runs."""
        return sorted(path.name for path in self.folder.iterdir() if NAME.fullmatch(path.name) and path.is_dir())

    # Starting and stopping.

    async def start(self, name: str, recipe: Recipe | None, epochs: int) -> None:
        """Start a run, or continue one (no recipe). Returns when its backend is open and its sampler started."""
        folder = self.folder_of(name)
        if self.stopping.is_set():
            raise HTTPException(503, "the service is shutting down")
        if name in self._sampling:
            raise HTTPException(409, f"run {name!r} is being sampled already")
        if len(self._sampling) >= self.at_once:
            raise HTTPException(429, f"{self.at_once} runs are being sampled, and no more at once: stop one, or wait")
        run = self._sampling[name] = Sampling()
        await self.tasks.start(self._sample, folder, run, recipe, epochs)

    async def _sample(
        self, folder: Path, run: Sampling, recipe: Recipe | None, epochs: int, *, task_status: anyio.abc.TaskStatus
    ) -> None:
        """One run from opening to closing. What goes wrong before it has started is raised where it was asked for."""
        name = folder.name
        try:
            mode = "a" if recipe is None else "x"
            async with AsyncBackend(outdir=folder, mode=mode, epochs_per_file=100) as backend:
                recipe = recipe or await stored_recipe(backend, name)
                check_size(recipe, epochs)
                run.backend = backend
                self._errors.pop(name, None)
                task_status.started()
                print(f"run {name}: sampling, {recipe.model} in {recipe.dim} dimensions", flush=True)
                work = (sample, backend.blocking, recipe, epochs, run.stop)
                try:
                    await anyio.to_thread.run_sync(*work, limiter=self._threads)
                except Exception as error:  # noqa: BLE001  # a sampler that breaks leaves the other runs alone
                    self._tell(name, f"{type(error).__name__}: {error}")
            print(f"run {name}: {backend.status}", flush=True)
        except NotWritten as error:  # the attempts go on, and so do the other runs
            self._tell(name, str(error))
        finally:
            del self._sampling[name]
            run.ended.set()

    def _tell(self, name: str, error: str) -> None:
        self._errors[name] = error
        print(f"run {name}: {error}", flush=True)

    async def stop(self, name: str) -> None:
        """Stop sampling a run. When this returns, all that was sampled is on disk and the run is closed."""
        if run := self.sampling(name):
            run.stop.set()
            await run.ended.wait()

    def stop_all(self) -> None:
        """Tell all samplers to stop, and all streams to end. The task group waits for the runs to be closed."""
        self.stopping.set()
        for run in self._sampling.values():
            run.stop.set()

    # Reading and burning.

    async def describe(self, name: str) -> Info:
        """Tell how a run is doing. Never waits for the sampler or the disk while the run is sampled here."""
        if not (run := self.sampling(name)):
            return await self._from_folder(name, lambda found: describe_stored(name, found, self._errors.get(name)))
        status = run.backend.status
        return Info(
            name=name,
            state="sampling" if status.state.takes_epochs and not status.last_error else str(status.state),
            epochs=status.epochs,
            samples=status.samples,
            burn=status.burn,
            queued_epochs=status.queued_epochs,
            samples_per_s=status.samples_per_s,
            watchers=run.watchers,
            summary=run.summary,
            error=status.last_error or self._errors.get(name),
        )

    async def get_samples(self, name: str, **which: Any) -> dict[str, np.ndarray]:
        """Read from the backend while the run is sampled here: all that a client was told of is in that."""
        samples = None
        if run := self.sampling(name):
            with contextlib.suppress(Closed):  # it has just ended
                samples = await run.backend.get_samples(**which)
        if samples is None:
            samples = await self._from_folder(name, lambda found: found.get_samples(**which))
        if samples is None:
            raise HTTPException(404, f"nothing is left of run {name!r} after that burn")
        return samples

    async def set_burn(self, name: str, burn: int) -> None:
        """Discard the first samples of a run for good. When this returns, that is durable."""
        info = await self.describe(name)
        if burn > info.burn + info.samples:
            raise HTTPException(409, f"run {name!r} has {info.burn + info.samples} samples: can't burn {burn}")
        if run := self.sampling(name):
            await run.backend.set_burn(burn)
            await run.backend.flush()
        else:
            async with AsyncBackend(outdir=self.folder_of(name)) as backend:
                await backend.set_burn(burn)

    async def _from_folder(self, name: str, read: Callable[[Any], T]) -> T:
        """Read a run that isn't sampled here, in a thread. No lock is taken: another process may write it."""
        folder = self.folder_of(name)

        def read_folder() -> T:
            with open_run(folder) as found:
                return read(found)

        try:
            return await anyio.to_thread.run_sync(read_folder)
        except FileNotFoundError as error:
            raise HTTPException(404, f"there is no run {name!r}") from error


def describe_stored(name: str, found: Any, error: str | None) -> Info:
    """Describe a run from its folder."""
    with found.snapshot() as snapshot:
        count = {"epochs": snapshot.nepochs, "samples": snapshot.nsamples, "burn": snapshot.burn}
    return Info(name=name, state="idle", error=error, **count)


async def stored_recipe(backend: AsyncBackend[Any], name: str) -> Recipe:
    """Return how a run that is there was sampled."""
    if not backend.status.epochs:
        raise HTTPException(404, f"there is no run {name!r}")
    try:
        return msgspec.convert((await backend.load()).sampling, Recipe)
    except msgspec.ValidationError as error:
        raise HTTPException(409, f"run {name!r} can't be continued: it isn't from this service ({error})") from error


def check_size(recipe: Recipe, epochs: int) -> None:
    """Refuse a run that would fill the disk by a slip of the finger."""
    nbytes = 8 * epochs * recipe.steps * recipe.walkers * (recipe.dim + 1)
    if nbytes > MOST_BYTES:
        raise HTTPException(413, f"that would be {nbytes / 1e9:.1f} GB, and at most {MOST_BYTES / 1e9:.1f} GB may be")


# --- events ---


async def events(runs: Runs, name: str) -> AsyncIterator[bytes]:
    """Server-sent events: "progress" while the run is sampled, and "end" when that is over.

    The stream ends without "end" when the service shuts down. Each client has an iterator of its own over the updates.
    """
    if run := runs.sampling(name):
        run.watchers += 1
        try:
            updates = run.backend.updates()
            while await has_news(updates, runs.stopping):
                await run.summarise()
                yield event("progress", await runs.describe(name))
                await anyio.sleep(PAUSE_S)
        finally:
            run.watchers -= 1  # the client has left, or the run has ended
        if runs.stopping.is_set():
            return
        await run.ended.wait()
    yield event("end", await runs.describe(name))


async def has_news(updates: AsyncIterator[AsyncSnapshot[Any]], stopping: anyio.Event) -> bool:
    """Wait until the run has changed or it is time for a heartbeat; False when the run or the service ends."""

    async def give_up() -> None:
        await stopping.wait()
        waiting.cancel_scope.cancel()

    is_over = False
    async with anyio.create_task_group() as waiting:
        waiting.start_soon(give_up)
        with anyio.move_on_after(HEARTBEAT_S):
            snapshot = await anext(updates, None)
            if snapshot is None:
                is_over = True
            else:
                snapshot.release()  # now: a client that is slow to take the event must not keep files alive
        waiting.cancel_scope.cancel()
    return not (is_over or stopping.is_set())


def event(kind: str, info: Info) -> bytes:
    """Encode one server-sent event."""
    return b"event: " + kind.encode() + b"\ndata: " + msgspec.json.encode(info) + b"\n\n"


# --- large answers, in pieces ---


def as_json(samples: dict[str, np.ndarray]) -> Iterator[bytes]:
    """Encode samples as an object of nested lists. Starlette asks for each piece in a thread."""
    opening = b"{"
    for name, array in samples.items():
        yield opening + msgspec.json.encode(name) + b":"
        yield from array_as_json(array)
        opening = b","
    yield b"}"


def array_as_json(array: np.ndarray) -> Iterator[bytes]:
    """Encode an array as nested lists, a few rows at once, or a row that is large in pieces of its own."""
    rows = max(1, PIECE * len(array) // array.size)
    opening = b"["
    for start in range(0, len(array), rows):
        yield opening
        block = array[start : start + rows]
        if len(block) == 1 and block.size > PIECE:
            yield from array_as_json(block[0])
        else:
            yield msgspec.json.encode(block.tolist())[1:-1]
        opening = b","
    yield b"]"


def npy_header(array: np.ndarray) -> bytes:
    """Return what comes before the numbers in a .npy file."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    return header.getvalue()


async def as_npy(array: np.ndarray) -> AsyncIterator[bytes | memoryview]:
    """Give an array as a .npy file. It is copied only where it doesn't lie in memory as it will in the file."""
    array = await anyio.to_thread.run_sync(np.ascontiguousarray, array)
    yield npy_header(array)
    numbers = memoryview(array).cast("B")
    for start in range(0, len(numbers), 1 << 20):
        yield numbers[start : start + (1 << 20)]


# --- HTTP ---


def runs_of(request: Request) -> Runs:
    """Return the runs of the application that answers."""
    return request.app.state.runs


def name_of(request: Request) -> str:
    """Return the name of the run that is asked about."""
    return request.path_params["name"]


def answer(content: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Answer with JSON."""
    return Response(msgspec.json.encode(content), status, headers, media_type="application/json")


async def body_of(request: Request, kind: type[T]) -> T:
    """Read and check the JSON object of a request."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        # No other web page can send this type without asking us first, and we don't answer such questions.
        raise HTTPException(415, "send a JSON object as application/json, for instance with curl --json '{}'")
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BODY:
            raise HTTPException(413, f"a request has at most {MOST_BODY} bytes")
    return msgspec.json.decode(body, type=kind)


def query_of(request: Request, kind: type[T]) -> T:
    """Check what comes behind the question mark."""
    return msgspec.convert(dict(request.query_params), kind, strict=False)


async def get_page(_request: Request) -> Response:
    """GET /: the page."""
    return FileResponse(PAGE, headers={"Content-Security-Policy": PAGE_MAY})


async def get_runs(request: Request) -> Response:
    """GET /runs: all runs of the folder."""
    runs = runs_of(request)
    found = []
    for name in await anyio.to_thread.run_sync(runs.names):
        try:
            found.append(await runs.describe(name))
        except HTTPException:  # a folder without a run, or without one yet
            continue
        except PosterityError as error:
            found.append(Info(name=name, state="unreadable", epochs=0, samples=0, burn=0, error=str(error)))
    return answer({"runs": found})


async def post_run(request: Request) -> Response:
    """POST /runs: start a run."""
    new = await body_of(request, NewRun)
    await runs_of(request).start(new.name, msgspec.convert(new, Recipe, from_attributes=True), new.epochs)
    info = await runs_of(request).describe(new.name)
    return answer(info, 201, {"Location": f"/runs/{new.name}"})


async def get_run(request: Request) -> Response:
    """GET /runs/NAME: how it is doing."""
    return answer(await runs_of(request).describe(name_of(request)))


async def post_more(request: Request) -> Response:
    """POST /runs/NAME/continue: sample more of a run that is there."""
    more = await body_of(request, More)
    await runs_of(request).start(name_of(request), None, more.epochs)
    return await get_run(request)


async def post_stop(request: Request) -> Response:
    """POST /runs/NAME/stop: answers when all that was sampled is on disk."""
    await body_of(request, Nothing)
    await runs_of(request).stop(name_of(request))
    return await get_run(request)


async def post_burn(request: Request) -> Response:
    """POST /runs/NAME/burn: answers when it is durable."""
    burn = await body_of(request, Burn)
    await runs_of(request).set_burn(name_of(request), burn.burn)
    return await get_run(request)


async def get_events(request: Request) -> Response:
    """GET /runs/NAME/events: server-sent events."""
    runs, name = runs_of(request), name_of(request)
    await runs.describe(name)  # while it can still be answered that there is no such run
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # nginx would collect them
    return StreamingResponse(events(runs, name), headers=headers, media_type="text/event-stream")


async def get_samples(request: Request) -> Response:
    """GET /runs/NAME/samples: the posterior."""
    want = query_of(request, Samples)
    pars = want.pars.split(",")
    if want.format == "npy" and len(pars) > 1:
        raise HTTPException(400, f"a .npy file holds one array: ask for one of {want.pars}")
    which = {"burn": want.burn, "thin": want.thin, "pars": pars, "flatten": want.flatten}
    try:
        samples = await runs_of(request).get_samples(name_of(request), **which)
    except KeyError as error:
        raise HTTPException(400, error.args[0]) from error
    if want.format == "npy":
        return StreamingResponse(as_npy(samples[pars[0]]), media_type="application/octet-stream")
    return StreamingResponse(as_json(samples), media_type="application/json")


async def get_summary(request: Request) -> Response:
    """GET /runs/NAME/summary: of the whole chain."""
    want = query_of(request, Chain)
    samples = await runs_of(request).get_samples(name_of(request), burn=want.burn, thin=want.thin)
    if samples["p"].shape[2] < 4:
        raise HTTPException(409, "there are too few samples for a summary")
    return answer(await anyio.to_thread.run_sync(summarise, samples["p"]))


async def explain(_request: Request, error: Exception) -> Response:
    """Answer with what went wrong."""
    if isinstance(error, HTTPException):
        return answer({"error": error.detail}, error.status_code, error.headers)
    status = next((status for kind, status in STATUS.items() if isinstance(error, kind)), 500)
    return answer({"error": str(error)}, status)


STATUS = {msgspec.MsgspecError: 400, RunExists: 409, RunLocked: 409, BurnLowered: 409, Closed: 409}
ROUTES = [
    Route("/", get_page),
    Route("/runs", get_runs),
    Route("/runs", post_run, methods=["POST"]),
    Route("/runs/{name}", get_run),
    Route("/runs/{name}/continue", post_more, methods=["POST"]),
    Route("/runs/{name}/stop", post_stop, methods=["POST"]),
    Route("/runs/{name}/burn", post_burn, methods=["POST"]),
    Route("/runs/{name}/events", get_events),
    Route("/runs/{name}/samples", get_samples),
    Route("/runs/{name}/summary", get_summary),
]

PAGE_MAY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'"
PAGE = Path(__file__).with_suffix(".html")


# --- the application and its server ---


def make_app(folder: Path, at_once: int = 4) -> Starlette:
    """Make the application. All runs live in the task group of its lifespan, and are closed when that ends."""
    runs = Runs(folder, at_once)

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        async with anyio.create_task_group() as runs.tasks:
            try:
                yield
            finally:
                runs.stop_all()  # and then the task group waits until every backend is closed

    app = Starlette(
        routes=ROUTES,
        lifespan=lifespan,
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)],
        exception_handlers=dict.fromkeys((HTTPException, PosterityError, msgspec.MsgspecError), explain),
    )
    app.state.runs = runs
    return app


class Server(uvicorn.Server):
    """Ends what would hold uvicorn's shutdown up: it waits for all connections before it ends the lifespan."""

    def __init__(self, app: Starlette, grace_s: int) -> None:
        super().__init__(uvicorn.Config(app, lifespan="on", log_level="warning", timeout_graceful_shutdown=grace_s + 5))
        self._runs = app.state.runs
        self._grace_s = grace_s

    def handle_exit(self, _number: int, _frame: FrameType | None) -> None:
        """SIGTERM or Ctrl-C came. A second one changes nothing.

        uvicorn raises them again at the end. That would kill the process while it writes what a full disk hasn't taken.
        """
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Event streams end at once; a download that isn't read is cut off after a while."""
        self._runs.stop_all()
        asyncio.get_running_loop().call_later(self._grace_s, self._cut_off)
        await super().shutdown(sockets)

    def _cut_off(self) -> None:
        for connection in self.server_state.connections:
            connection.transport.abort()


def main() -> None:
    """Serve until Ctrl-C or SIGTERM; either ends with exit code 0 when all is on disk."""
    parser = argparse.ArgumentParser(description="a web service that samples, on 127.0.0.1 only")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: %(default)s)")
    folder_help = "a run folder for each run is made in it (default: %(default)s)"
    parser.add_argument("--folder", type=Path, default=Path("web-runs"), help=folder_help)
    at_once_help = "runs that are sampled at the same time, at most (default: %(default)s)"
    parser.add_argument("--at-once", type=int, default=4, help=at_once_help)
    grace_help = "seconds that downloads under way are given when it ends (default: %(default)s)"
    parser.add_argument("--grace-s", type=int, default=1, help=grace_help)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    try:
        listener = socket.create_server(("127.0.0.1", args.port))
    except OSError as error:
        parser.error(f"port {args.port} can't be had: {error.strerror}")

    print(f"serving http://127.0.0.1:{listener.getsockname()[1]}/, runs in {args.folder}/; Ctrl-C ends it", flush=True)
    Server(make_app(args.folder, args.at_once), args.grace_s).run(sockets=[listener])
    print("the service has ended")


if __name__ == "__main__":
    main()
