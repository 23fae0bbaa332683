"""What comes back has types; a sample needs no check for None in each line, and may have one."""

from typing import assert_type

import numpy as np
import numpy.typing as npt

from posterity import AsyncBackend, AsyncRun, AsyncSnapshot, DefaultBackend, Epoch, Receipt, Run, Snapshot, open_run

epoch = {"samples": {"p": np.zeros((4, 2, 50))}, "note": "text"}
backend = DefaultBackend(outdir="my_run")
assert_type(backend, DefaultBackend[Epoch])
assert_type(backend.ingest(epoch).ingest_dict(epoch), DefaultBackend[Epoch])
assert_type(backend.ingest_nowait(epoch), Receipt)
assert_type(backend.load(), Epoch)
assert_type(backend.asynchronous, AsyncBackend[Epoch])
assert backend.get()["samples"]["p"].shape == (4, 2, 50)
with backend.snapshot() as snapshot:
    assert_type(snapshot, Snapshot[Epoch])
for update in backend.updates():
    assert_type(update, Snapshot[Epoch])

run = open_run("my_run")
assert_type(run, Run[Epoch])
assert_type(run.asynchronous, AsyncRun[Epoch])


def exponentials(of: Run) -> npt.NDArray[np.float64]:
    """The name of a class alone means our epochs."""
    assert_type(of, Run[Epoch])
    samples = of.get_samples(thin=10, flatten=True)
    if samples is None:
        return np.zeros(2)
    exponential: npt.NDArray[np.float64] = np.exp(samples["p"])
    return exponential


def moved() -> npt.NDArray[np.float64]:
    """Arrays can be counted with."""
    last = backend.load().samples["p"][:, :, -1]
    step: npt.NDArray[np.float64] = 0.5 * (last - backend.get_samples()["p"].mean(axis=2))
    return step


async def awaited() -> None:
    """The awaited face has the same types."""
    async with AsyncBackend(outdir="my_run") as other:
        assert_type(other, AsyncBackend[Epoch])
        await (await other.ingest(epoch)).flush()
        assert_type(await other.load(), Epoch)
        assert_type(await other.snapshot(), AsyncSnapshot[Epoch])
        async for update in other.updates():
            assert_type(await update.load(), Epoch)
        assert (await other.get_samples())["p"].shape == (4, 2, 50)
