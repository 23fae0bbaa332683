"""Running a kernel epoch by epoch into a backend, and going on with it as if it had never stopped.

An epoch is handed over before it is computed: the next one is computed while it is stored. With the samples it holds
all that the next one depends on: the chains' states and their random keys.

Up the stream: a `Kernel`. Down the stream: a backend.
"""

from collections import deque
from collections.abc import Awaitable, Callable
from inspect import isawaitable
from typing import TYPE_CHECKING, Any

from posterity._system.reader_threads import in_thread
from posterity._writing.awaited import AsyncBackend
from posterity._writing.blocking import DefaultBackend
from posterity.epoch import Epoch, EpochDict
from posterity.errors import EpochMismatch

from .kernel import Kernel
from .pytrees import KEY, encode
from .trees import Tree, jax, plain, restored, settled

if TYPE_CHECKING:
    from jax import Array as JaxArray

AHEAD = 2  # epochs that the device may have to compute when another one is asked for


def run_kernel(
    backend: "DefaultBackend[Any]",
    kernel: Kernel,
    key: "JaxArray",
    *,
    epochs: int,
    samples_per_epoch: int,
    thin: int = 1,
    until: Callable[[int], bool] | None = None,
) -> None:
    """Sample until the run has so many epochs: begin a new run, or continue the one that the backend has.

    A run that is continued, after a kill too, goes on bit for bit as if it had never stopped: if the kernel, the
    versions of what computes it and the device are those that it was begun with.

    Args:
        backend: where the run is kept.
        kernel: the sampler.
        key: of JAX's, typed or raw. A run that is continued goes on from the keys that it has.
        epochs: how many the run has at the end, those that it had included.
        samples_per_epoch: how many samples each chain has in an epoch.
        thin: how many steps each chain takes for a sample. What the sampler tells is kept of the last one of them.
        until: asked after each epoch that was handed over, with how many the run has: true ends the sampling.

    Each epoch's samples: "p", `(nchain, dim, samples_per_epoch)`, the numbers of the position one behind the other; and
    what the sampler tells, under ArviZ's names where it has one. `get_positions` and `get_info` give the pytrees back.

    Returns when the last epoch was handed over: see "what is safe when". Some epochs may still be computed then.

    Raises:
        ValueError: `samples_per_epoch` or `thin` is below 1.
        EpochMismatch: the run that is there was made by another kernel, or with another `thin` (a `ValueError`).
        NotStorable: two keys of a dict are the same as text (a `TypeError`).
        MailboxFull, Closed: see `DefaultBackend.ingest`.
    """
    sampling = _Sampling(kernel, key, samples_per_epoch, thin)
    done = backend.status.epochs
    if done >= epochs:
        return
    sampling.begin(backend.load(eclass=Epoch) if done else None)
    for nepochs in range(done + 1, epochs + 1):
        backend.ingest_dict(sampling.next_epoch(), copy=False)
        if until is not None and until(nepochs):
            return


async def run_kernel_async(
    backend: "AsyncBackend[Any]",
    kernel: Kernel,
    key: "JaxArray",
    *,
    epochs: int,
    samples_per_epoch: int,
    thin: int = 1,
    until: Callable[[int], bool | Awaitable[bool]] | None = None,
) -> None:
    """See `run_kernel`, awaited: JAX compiles and computes in a thread, the event loop is free. `until` may be too.

    What JAX's context managers set (`jax.enable_x64`, `jax.default_device`) doesn't hold in that thread: use
    `jax.config.update`.
    """
    sampling = _Sampling(kernel, key, samples_per_epoch, thin)
    done = backend.status.epochs
    if done >= epochs:
        return
    epoch = await backend.load(eclass=Epoch) if done else None
    await in_thread(lambda: sampling.begin(epoch))
    for nepochs in range(done + 1, epochs + 1):
        await backend.ingest_dict(await in_thread(sampling.next_epoch), copy=False)
        answer = until(nepochs) if until is not None else False
        if await answer if isawaitable(answer) else answer:
            return


class _Sampling:
    """One session of a kernel: where its chains are, and the epochs that the device still computes."""

    def __init__(self, kernel: Kernel, key: "JaxArray", nsamples: int, thin: int) -> None:
        if nsamples < 1 or thin < 1:
            raise ValueError(f"samples_per_epoch and thin must be at least 1, got {nsamples} and {thin}")
        self._kernel = kernel
        self._key = key
        self._nsamples = nsamples
        self._thin = thin
        self._state: Tree = None
        self._structures: dict[str, str] = {}
        self._pending: deque[Any] = deque()

    def begin(self, epoch: Epoch | None) -> None:
        """Begin a run, or continue after an epoch. Waits for the warm-up."""
        if epoch is None:
            self._state = jax.block_until_ready(settled(self._kernel.start(self._key)))
        else:
            self._state = restored(epoch.state, self._kernel.like(self._key))
        structures = self._kernel.structures(self._state)
        self._structures = dict(zip(("position", "info"), map(encode, structures), strict=True))
        if epoch is not None:
            self._check(epoch)

    def _check(self, epoch: Epoch) -> None:
        theirs = epoch.sampling.get("thin") if isinstance(epoch.sampling, dict) else None
        if theirs != self._thin:
            raise EpochMismatch(f"the run has thin={theirs}, and {self._thin} was given; a run keeps its thinning")
        stored = epoch.others.get(KEY)
        if stored != self._structures:
            raise EpochMismatch(
                f"the run's pytrees are {stored}, and the kernel's {self._structures}; a run keeps what is stored of it"
            )

    def next_epoch(self) -> EpochDict:
        """Have an epoch computed. Waits for the one that was asked for some time before."""
        self._state, samples = self._kernel.sample_epoch(self._state, self._nsamples, self._thin)
        self._pending.append(samples["p"])
        if len(self._pending) > AHEAD:
            jax.block_until_ready(self._pending.popleft())
        return {
            "samples": samples,
            "state": plain(self._state),
            "sampling": {"thin": self._thin},
            KEY: self._structures,
        }
