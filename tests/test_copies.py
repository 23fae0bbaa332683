"""What owns something of the system can't be copied: a copy is refused in words, or is whole, and the original goes on."""

import copy
import dataclasses
import gc
import pickle
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import pytest

import posterity
from known import epoch_dict
from posterity import AsyncBackend, AsyncSnapshot, DefaultBackend, Diagnosis, open_run
from posterity._system.reader_threads import Readers

DESCRIPTORS = Path("/proc/self/fd")


@dataclasses.dataclass
class Config:
    """What programs keep a backend in."""

    name: str
    store: object


def by_dataclass(thing):
    return dataclasses.asdict(Config("fit", thing))["store"]


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "asdict": by_dataclass,
    "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),
}


@pytest.fixture
def backend(tmp_path):
    with DefaultBackend(outdir=tmp_path / "run", epochs_per_file=4, diagnose=True) as backend:
        backend.ingest(epoch_dict(0, 10))
        backend.flush()
        yield backend


@pytest.fixture
def things(backend):
    """One of each public kind that has a run behind it, by name."""
    run = open_run(backend._service.disk.folder)
    found = {
        "DefaultBackend": backend,
        "AsyncBackend": backend.asynchronous,
        "AsyncBackend, not entered": AsyncBackend(outdir=backend._service.disk.folder),
        "Snapshot of a backend": backend.snapshot(),
        "Run": run,
        "AsyncRun": run.asynchronous,
        "Snapshot of a run": run.snapshot(),
        "AsyncSnapshot": AsyncSnapshot(run.snapshot(), Readers(1)),
        "AskedSnapshot": run.asynchronous.snapshot(),
        "Diagnosis": Diagnosis(),
    }
    found["Receipt"] = receipt = backend.ingest_nowait(epoch_dict(10, 10))
    backend.flush()
    found["Promise"] = receipt.durable
    found["Promise of release"] = receipt.released
    yield found
    for name in ("Snapshot of a backend", "Snapshot of a run", "AsyncSnapshot"):
        found[name].release()
    run.close()


def goes_on(backend):
    """The backend writes and reads as before; what was opened meanwhile has the numbers of what was closed, if any was."""
    gc.collect()
    with ExitStack() as others:
        for _ in range(6):
            others.enter_context(Path(__file__).open())
        n = backend.status.samples
        backend.ingest(epoch_dict(n, 10))
        backend.flush(publish=True)
        assert backend.get_samples(verify=True)["p"].shape[2] == n + 10
        with open_run(backend._service.disk.folder) as run:
            assert run.get_samples(verify=True)["p"].shape[2] == n + 10


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_is_refused_in_words_or_is_whole(backend, things, how):
    """Each public object, in each way: the error says what to do; a run that is only read is opened once more."""
    for name, thing in things.items():
        if name in ("Run", "AsyncRun"):
            again = COPIES[how](thing)
            blocking = again.blocking if name == "AsyncRun" else again
            assert blocking.get_samples()["p"].shape[2] == backend.get_samples()["p"].shape[2]
            if again is not thing:
                blocking.close()
        else:
            with pytest.raises(TypeError, match=rf"^{type(thing).__name__} can't be copied or pickled: \w+ \w+"):
                COPIES[how](thing)
    goes_on(backend)


def open_files():
    """The numbers and files of descriptors of the run that are open."""
    found = set()
    for descriptor in list(DESCRIPTORS.iterdir()) if DESCRIPTORS.is_dir() else []:
        with suppress(OSError):
            found.add((descriptor.name, str(descriptor.readlink())))
    return {each for each in found if each[1].startswith("/") and not each[1].startswith(("/dev/", "/proc/"))}


def reached(thing):
    """Every object of ours that can be reached from one, through whatever holds it."""
    found, todo = {}, [thing]
    while todo:
        each = todo.pop()
        if id(each) in found or isinstance(each, (type, np.ndarray)) or type(each).__name__ in ("module", "function"):
            continue
        found[id(each)] = each
        todo += [other for other in gc.get_referents(each) if gc.is_tracked(other)]
    return [each for each in found.values() if type(each).__module__.startswith("posterity.")]


def test_what_is_reached_from_public_objects_can_not_be_half_copied(backend, things):
    """However deep it lies, and whichever way: it is refused, or the copy harms nobody. It is found, not listed."""
    kinds = {}
    for thing in things.values():
        for each in reached(thing):
            kinds.setdefault(type(each), each)
    assert {"Disk", "Ledger", "Store", "Journal", "Lock", "Writer", "FollowedRun", "PinnedView"} <= {
        kind.__name__ for kind in kinds
    }
    before = open_files()
    for each in kinds.values():
        for do in COPIES.values():
            try:
                do(each)
            except Exception:  # noqa: BLE001  # any refusal will do here
                continue
    gc.collect()
    assert before <= open_files()
    goes_on(backend)


def test_each_public_class_that_has_a_run_is_tried(things):
    """A new one must be among those above."""
    tried = {type(thing).__name__ for thing in things.values()}
    mine = {name for name in posterity.__all__ if isinstance(getattr(posterity, name), type)}
    owns = {name for name in mine if hasattr(getattr(posterity, name), "_INSTEAD")}
    assert owns <= tried
