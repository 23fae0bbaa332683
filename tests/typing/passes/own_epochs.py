"""An epoch class of the user's own."""

from typing import assert_type

from posterity import AsyncBackend, DefaultBackend, Epoch, Run, Snapshot, open_run


class Mine(Epoch):
    """With something more to it."""

    temperature: float = 1.0


backend = DefaultBackend[Mine](outdir="my_run", epochs_per_file=10)
assert_type(backend.load().temperature, float)
assert_type(backend.snapshot(), Snapshot[Mine])
assert_type(backend.asynchronous, AsyncBackend[Mine])

annotated: DefaultBackend[Mine] = DefaultBackend(outdir="my_run")
run: Run[Mine] = open_run("my_run", trusted_classes=["my_sampler.Mine"], wait_s=10)
assert_type(run.load().temperature, float)
assert_type(run.asynchronous.blocking, Run[Mine])


async def awaited() -> float:
    """The same, awaited."""
    async with AsyncBackend[Mine](outdir="my_run") as other:
        return (await other.load()).temperature
