"""Power cuts: whatever of the unsynced writes and names reached the disk, what was told to be durable is there."""

import errno
import gc
import io
import itertools
import logging
import random
import sys
from typing import NamedTuple

import h5py
import hypothesis.strategies as st
import numpy as np
import pytest
import xxhash
from hypothesis import given, seed, settings

from posterity._format import file_writer
from posterity._model.metadata import decode
from posterity._store import data_files, store
from powercut import Killed, MemoryDisk, Sync, Write, power_cuts
from smallchunks import small_chunks
from synchronous import SynchronousRun, run_of

NSTATES = 20_000  # at least; a state that another one equals isn't counted
LARGE = 1100  # samples: their array begins at a page of its own
SLAB = 8192  # bytes: a large epoch that is written slab by slab has three of them
NO_SLABS = file_writer._WORTH_PUSHING
MOST_OPEN = 2  # files that wait for a sync together

COMPRESSIONS = [None, None, "gzip"]

OPTIONS = st.fixed_dictionaries(
    {
        "epochs_per_file": st.integers(1, 3),
        "inmem_epochs": st.integers(0, 2),
        "compression": st.sampled_from(COMPRESSIONS),
        "describes": st.booleans(),
        "slabs": st.booleans(),
    }
)
DEEDS = st.one_of(
    st.tuples(st.just("ingest"), st.integers(1, 5)),
    st.tuples(st.just("ingest"), st.sampled_from([3, 3, LARGE])),
    st.tuples(st.just("step")),
    st.tuples(st.just("settle")),
    st.tuples(st.just("burn"), st.integers(1, 9)),
    st.tuples(st.just("flush"), st.booleans()),
    st.tuples(st.just("clean")),
    st.tuples(st.just("reset")),
    st.tuples(st.just("reopen"), OPTIONS),
    st.tuples(st.just("killed"), st.integers(0, 30), OPTIONS),
    st.tuples(st.just("failing"), st.integers(0, 30), st.sampled_from([errno.EIO, errno.ENOSPC, errno.EDQUOT])),
)


class Durable(NamedTuple):
    """What somebody was told that it survives a power cut. `session`: the last one that added to the metadata."""

    generation: int
    nepochs: int
    burn: int
    session: int


class Asked(NamedTuple):
    """What the run consists of; `lengths`: the samples of each epoch."""

    generation: int
    lengths: list[int]
    burn: int
    session: int


class Workload:
    """A run on a disk in memory, and all that was done to it."""

    def __init__(self, options, disk=None):
        self.disk = disk or MemoryDisk()
        self._nsessions = 0
        self._open(options)

    def _note(self):
        registry = self.run.registry
        self.disk.tell(Asked(registry.generation, lengths_of(registry), registry.burn, session_of(registry.metadata)))

    def _note_durable(self):
        registry, catalog = self.run.registry, self.run.store.catalog
        if catalog is None or catalog.began.generation < registry.generation:
            return  # nothing was begun, or a reset was asked for and isn't made yet: nobody was told anything
        session = session_of(catalog.metadata)
        assert session == session_of(registry.metadata) or not registry.is_metadata_stored or not registry.nwritten
        self.disk.tell(Durable(registry.generation, registry.nwritten, registry.stored_burn, session))

    def do(self, deed, *args):
        try:
            getattr(self, deed)(*args)
        except Killed:
            self.run.die()
            self._open(self._options_after)

    def _open(self, options):
        self.disk.kill_in = self.disk.fail_in = None
        self.disk.distrusted.clear()
        self._nsessions += 1
        given = {**options}
        file_writer._WORTH_PUSHING = SLAB if given.pop("slabs", True) else NO_SLABS
        if given.pop("describes", True):
            given |= {"parameters": ["x"], "attributes": {"session": self._nsessions}}
        self.run = SynchronousRun(self.disk, **given)
        self._note()
        self._note_durable()

    def ingest(self, nsamples):
        registry = self.run.registry
        self.run.ingest(run_of(registry.generation, registry.next_index, registry.nsamples, nsamples))
        self._note()

    def step(self):
        self.run.step()
        self._note_durable()

    def settle(self):
        self.run.settle()
        self._note_durable()

    def burn(self, more):
        self.run.ledger.set_burn(self.run.registry.burn + more)
        self._note()

    def clean(self):
        self.run.ledger.clean()
        self._note()

    def reset(self):
        self.run.ledger.reset()
        self._note()

    def flush(self, publish):
        self.run.flush(publish=publish)
        registry = self.run.registry
        assert registry.is_metadata_stored or registry.nwritten == 0
        self._note_durable()

    def reopen(self, options):
        self._options_after = options
        self.run.close()
        self._note_durable()
        self._open(options)

    def killed(self, ncalls, options):
        """The process will be killed after some more calls, and the run opened again."""
        self.disk.kill_in = ncalls
        self._options_after = options

    def failing(self, ncalls, code):
        """After some more calls one fails, with what a failing disk does to a file."""
        self.disk.fail(ncalls, code)


def random_options(rng):
    return {
        "epochs_per_file": rng.randint(1, 3),
        "inmem_epochs": rng.randint(0, 2),
        "compression": rng.choice(COMPRESSIONS),
        "describes": rng.random() < 0.5,
        "slabs": rng.random() < 0.5,
    }


def random_workload(rng):
    """Options and deeds, where hypothesis isn't there to make them."""
    makes = {
        "ingest": lambda: (rng.choice([1, 2, 3, 3, 4, 5, LARGE]),),
        "step": tuple,
        "settle": tuple,
        "burn": lambda: (rng.randint(1, 9),),
        "flush": lambda: (rng.random() < 0.5,),
        "clean": tuple,
        "reset": tuple,
        "reopen": lambda: (random_options(rng),),
        "killed": lambda: (rng.randint(0, 30), random_options(rng)),
        "failing": lambda: (rng.randint(0, 30), rng.choice([errno.EIO, errno.ENOSPC, errno.EDQUOT])),
    }
    names = rng.choices([*["ingest"] * 4, *makes], k=rng.randint(4, 16))
    return random_options(rng), [*((name, *makes[name]()) for name in names), ("flush", False)]


def session_of(metadata):
    return metadata.attributes.get("session", 0)


def lengths_of(registry):
    return [entry.nsamples for entry in registry.entries[: registry.next_index]]


def expected(generation, lengths, burn):
    """All samples of a generation's epochs but the first `burn`."""
    return run_of(generation, 0, 0, sum(lengths))["samples"]["p"][:, :, burn:]


class Checker:
    """Looks at what a power cut left: what must be there is, what is there is right, and the run goes on."""

    def __init__(self, rng):
        self.rng = rng
        self.nstates = 0
        self._seen = set()
        self._good_files = set()

    def check_all(self, log, disk):
        for cut in self.new_cuts(log, disk):
            self.check(cut)

    def new_cuts(self, log, disk):
        """The states that weren't looked at yet."""
        return filter(self._is_new, power_cuts(log, disk.base, self.rng, 1))

    def _is_new(self, cut):
        durable = [what for what in cut.told if isinstance(what, Durable)][-1:]
        files = sorted((name, xxhash.xxh3_64_intdigest(data)) for name, data in cut.files.items())
        key = repr((durable, files))
        is_new = key not in self._seen
        self._seen.add(key)
        return is_new

    def check(self, cut, *, is_nested=False):
        self.nstates += 1
        durable = [what for what in cut.told if isinstance(what, Durable)]
        asked = [what for what in cut.told if isinstance(what, Asked)]
        for name, data in cut.files.items():
            if name.startswith("epochs_"):
                self.check_file(name, data)
        disk = MemoryDisk(cut.files)
        run = SynchronousRun(disk)
        opened = len(disk.log)
        self.check_run(run, durable[-1] if durable else None, asked)
        self.check_goes_on(run, disk)
        if not is_nested and opened and self.rng.random() < 0.2:
            del disk.log[opened:]
            for again in power_cuts(disk.log, disk.base, self.rng, 0):
                nested = again._replace(told=cut.told)
                if self._is_new(nested):
                    self.check(nested, is_nested=True)

    def check_run(self, run, durable, asked):
        if run.store.catalog is None:
            assert durable is None
            return
        registry = run.registry
        generation, nepochs, burn = registry.generation, registry.next_index, registry.burn
        session = session_of(registry.metadata)
        assert [each.name for each in registry.metadata.parameters.get("p", ())] == ["x"] * bool(session)
        if durable is not None:
            assert generation >= durable.generation
            if generation == durable.generation:
                assert nepochs >= durable.nepochs
                assert burn >= durable.burn
                assert session >= durable.session
        lengths = lengths_of(registry)
        mine = [what for what in asked if what.generation == generation]
        assert any(lengths == what.lengths[:nepochs] for what in mine)
        assert burn <= max(what.burn for what in mine)
        assert session in [what.session for what in mine]
        self.check_numbers(run, lengths)

    def check_numbers(self, run, lengths):
        registry = run.registry
        assert lengths_of(registry) == lengths
        with run.snapshot() as snapshot:
            samples = snapshot.get_samples(verify=True)
            wanted = expected(registry.generation, lengths, registry.burn)
            np.testing.assert_array_equal(np.empty((2, 1, 0)) if samples is None else samples["p"], wanted)
            if lengths:
                newest = snapshot.load()
                start = sum(lengths[:-1])
                last = run_of(registry.generation, len(lengths) - 1, start, lengths[-1])
                np.testing.assert_array_equal(newest.last["p"], last["samples"]["p"][:, :, -1])
                assert newest.state == last["state"]

    def check_goes_on(self, run, disk):
        registry = run.registry
        lengths = lengths_of(registry)
        for nsamples in (2, 3):
            run.ingest(run_of(registry.generation, len(lengths), sum(lengths), nsamples))
            lengths.append(nsamples)
        self.check_numbers(run, lengths)
        run.close()
        found = disk.contents()
        hidden = [name for name in found if name.startswith(".")]
        assert not hidden, hidden
        again = SynchronousRun(MemoryDisk(found))
        assert again.registry.metadata == registry.metadata
        self.check_numbers(again, lengths)
        again.die()
        for name, data in found.items():
            if name.startswith("epochs_"):
                self.check_file(name, data)

    def check_file(self, name, data):
        """What has a file's name is an HDF5 file that anybody can read."""
        key = xxhash.xxh3_128_digest(data)
        if key in self._good_files:
            return
        with h5py.File(io.BytesIO(data)) as file:
            metadata = decode(file.attrs["posterity_metadata"])
            assert len(metadata.parameters.get("p", ())) == bool(session_of(metadata))
            for group in file.values():
                p = group["samples/p"][()]
                assert p.shape[:2] == (2, 1), name
                np.testing.assert_array_equal(p[0], -p[1])
                assert group["state/index"][()] == int(group.name.rpartition("_")[2])
        self._good_files.add(key)


@pytest.fixture(autouse=True)
def thresholds(monkeypatch):
    """The journal is written anew after a few records, and few files wait for a sync together.

    What recovery says isn't of interest here.
    """
    monkeypatch.setattr(file_writer, "_WORTH_PUSHING", NO_SLABS)  # workloads change it
    monkeypatch.setattr(data_files, "_MOST_OPEN", MOST_OPEN)
    logging.getLogger("posterity").setLevel(logging.CRITICAL)
    monkeypatch.setattr(store, "_is_long", lambda catalog: catalog.nrecords > 7 + 2 * len(catalog.places))
    with small_chunks(target=4000, worth_writing=2000):
        yield
    logging.getLogger("posterity").setLevel(logging.NOTSET)


@pytest.fixture(autouse=True)
def unhindered():
    """Coverage has seen the code elsewhere, and garbage of other tests was looked at: both would double the time."""
    tracer = sys.gettrace()
    sys.settrace(None)
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
    sys.settrace(tracer)


def done(options, deeds):
    """A workload that ends without a word: the power is cut."""
    workload = Workload(options)
    for deed in deeds:
        workload.do(*deed)
    workload.run.die()
    return workload


@pytest.mark.timeout(900)
def test_whatever_a_power_cut_leaves():
    """Each state that a power cut may leave opens, has all that was durable and nothing that never was, and goes on."""
    nstates = 0

    @settings(max_examples=40, deadline=None, database=None)
    @given(options=OPTIONS, deeds=st.lists(DEEDS, min_size=4, max_size=16), choice=st.integers(0, 1 << 30))
    def look(options, deeds, choice):
        nonlocal nstates
        workload = done(options, [*deeds, ("flush", False)])
        checker = Checker(random.Random(choice))
        checker.check_all(workload.disk.log, workload.disk)
        nstates += checker.nstates

    for number in itertools.count():  # always the same ones here; `scripts/torture` tries others each time
        seed(number)(look)()
        if nstates >= NSTATES:
            return


@pytest.mark.parametrize("ncalls", range(6))
def test_a_reset_that_failed_is_tried_again(ncalls):
    """A reset whose journal could not be written, for want of room, is made as soon as it can be."""
    options = {"epochs_per_file": 2, "inmem_epochs": 0}
    deeds = [("ingest", 2), ("settle",), ("failing", ncalls, errno.ENOSPC), ("reset",), ("settle",)]
    workload = done(options, deeds)
    again = SynchronousRun(MemoryDisk(workload.disk.contents()))
    assert (again.registry.generation, again.registry.next_index) == (1, 0)
    again.die()


# ---- each sync earns its place ---------------------------------------------------------------------------------------


def done_twice(options, deeds):
    """Once as it is, and once compressed."""
    for compression in (None, "gzip"):
        yield done({**options, "compression": compression}, deeds)


def workloads(name):  # noqa: C901  # a case for each kind of step
    """Short workloads that meet a kind of step."""
    flush, publish = ("flush", False), ("flush", True)
    epochs = [("ingest", 3), ("ingest", 2), ("ingest", LARGE)]
    match name:
        case "filled":
            yield from done_twice({"epochs_per_file": 1}, [*epochs, flush])
        case "published":
            yield done({"epochs_per_file": 3}, [epochs[0], publish])
        case "filled up":
            yield done({"epochs_per_file": 3}, [epochs[0], publish, epochs[1], flush])
        case "burned":
            yield from done_twice({"epochs_per_file": 2}, [*epochs, flush, ("burn", 4), flush])
        case "described":
            again = {"epochs_per_file": 1, "inmem_epochs": 0}
            yield done(again, [epochs[0], flush, ("reopen", again), flush, ("reopen", again), ("settle",)])
        case "reset":
            yield done({"epochs_per_file": 1}, [*epochs[:2], flush, ("reset",), ("settle",), *epochs[:2], flush])
        case "compacted":
            deeds = [*[("burn", 1), ("settle",)] * 6, ("ingest", 1), flush]
            yield done({"epochs_per_file": 9}, [("ingest", 9), flush, *deeds])
        case "killed":
            for ncalls in range(3, 30):
                again = {"epochs_per_file": 2, "inmem_epochs": 0}
                yield done({"epochs_per_file": 2}, [*epochs[:2], ("killed", ncalls, again), flush, *epochs[:1]])
            for ncalls in range(2):
                yield done({"epochs_per_file": 2}, [epochs[0], flush, ("burn", 2), ("killed", ncalls, again), flush])


def survive(steps):
    """Whether every power cut in some workloads is survived; `steps`: what becomes of the log of each."""

    def look(name):
        for workload in workloads(name):
            log = steps(workload.disk.log)
            if log != workload.disk.log:
                Checker(random.Random(1)).check_all(log, workload.disk)

    return look


SYNCS = {
    "Names < Chores.do < Store._do_chores": "filled",
    "Names < Chores.do < Store._take_over": "killed",
    "Names < Files.copy < Files.copy_whole": "filled up",
    "Names < Files.copy < Store._do": "burned",
    "Names < Files.write < Store._do": "filled",
    "Names < Journal.create < Store._begin": "filled",
    "Names < Journal.create < Store._start_journal": "compacted",
    "Names < Store._sync_found < Store._take_over": "killed",
    "Sync < EpochFile.sync < Files._sync": "filled",
    "Sync < EpochFile.sync < Files.copy": "burned",
    "Sync < EpochFile.sync < Files.publish": "published",
    "Sync < Journal.append < Store._commit": "filled",
    "Sync < Journal.create < Store._begin": "filled",
    "Sync < Journal.create < Store._start_journal": "compacted",
    "Sync < Journal.go_on < Store._take_over": "killed",
    "Sync < Store._sync_found < Store._take_over": "killed",
}


BATCH = "Sync < EpochFile.sync < Files._sync"
SLABS = "Write < EpochFile._append_large < EpochFile.append"
SAME_LINE = {"Names < Chores.do < Store._clear_up"}  # needless there, once in a run's life


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", sorted({*SYNCS.values(), "described", "reset"}))
def test_every_sync_is_in_the_table(name):
    """The workloads survive as they are, and the syncs in them are those that the next test takes away."""
    for workload in workloads(name):
        Checker(random.Random(1)).check_all(workload.disk.log, workload.disk)
        assert {step.site for step in workload.disk.log if isinstance(step.what, Sync)} <= SYNCS.keys() | SAME_LINE


@pytest.mark.timeout(300)
@pytest.mark.parametrize("site", SYNCS)
def test_no_sync_is_needless(site):
    """Without any one of the syncs, some power cut loses what was told to be durable."""
    with pytest.raises(Exception):  # noqa: B017, PT011  # whatever it is that no longer holds
        survive(lambda log: [step for step in log if step.site != site])(SYNCS[site])


def files_of(log, site):
    """The file of each step of a kind, in their order."""
    return [step.what.file for step in log if step.site == site]


def test_files_wait_for_their_syncs_together():
    """In the workload of the next test two files are complete before one is synced; its large epoch comes in slabs."""
    log = next(workloads("filled")).disk.log
    synced = files_of(log, BATCH)
    assert len(set(synced)) == len(synced) == 3
    before = itertools.takewhile(lambda step: step.site != BATCH, log)
    written = {step.what.file for step in before if isinstance(step.what, Write)}
    assert [file in written for file in synced] == [True, True, False]
    slabs = files_of(log, SLABS)
    assert set(slabs) == {synced[2]}
    assert len(slabs) > LARGE * 16 // SLAB


@pytest.mark.parametrize("nth", range(3))
def test_no_file_of_a_batch_may_be_left_out(nth):
    """Without the sync of any one of the files that are written together, some power cut loses what was durable."""

    def steps(log):
        file = files_of(log, BATCH)[nth]
        return [step for step in log if step.site != BATCH or step.what.file != file]

    with pytest.raises(Exception):  # noqa: B017, PT011  # whatever it is that no longer holds
        survive(steps)("filled")


JOURNALED = "Write < Journal.append < Store._commit"
SWAPS = [
    ("filled", "Sync < Journal.create < Store._begin", "Name < Journal.create < Store._begin"),
    ("filled", "Name < Journal.create < Store._begin", "Names < Journal.create < Store._begin"),
    ("filled", "Names < Files.write < Store._do", JOURNALED),
    ("filled up", "Sync < EpochFile.sync < Files._sync", JOURNALED),
    ("published", "Sync < EpochFile.sync < Files.publish", JOURNALED),
    ("filled up", "Names < Files.copy < Files.copy_whole", JOURNALED),
    ("burned", "Names < Files.copy < Store._do", JOURNALED),
    ("burned", "Sync < Journal.append < Store._commit", "Name < Chores._do < Chores.do"),
    ("filled", "Name < Chores._do < Chores.do", "Names < Chores.do < Store._do_chores"),
    ("filled", "Names < Chores.do < Store._do_chores", "Name < Chores.do < Store._do_chores"),
    ("reset", "Names < Journal.create < Store._begin", "Name < Chores._do < Chores.do"),
    ("compacted", "Sync < Journal.create < Store._start_journal", "Name < Journal.create < Store._start_journal"),
]


def swapped(log, first, second):
    """The log with two kinds of steps in the other order, wherever they follow one another."""
    log = list(log)
    for i in range(len(log) - 1):
        if (log[i].site, log[i + 1].site) == (first, second):
            log[i], log[i + 1] = log[i + 1], log[i]
    return log


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("name", "first", "second"), SWAPS)
def test_the_order_of_steps_matters(name, first, second):
    """With any two steps that depend on each other in the other order, some power cut loses what was durable."""
    with pytest.raises(Exception):  # noqa: B017, PT011  # whatever it is that no longer holds
        survive(lambda log: swapped(log, first, second))(name)
