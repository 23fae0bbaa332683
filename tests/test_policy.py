"""The storing policy: what should happen to memory and disk next."""

import msgspec
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from posterity._model.metadata import Metadata
from posterity._model.policy import (
    Demand,
    DropFiles,
    PublishFile,
    RewriteFile,
    StoreBurn,
    StoreMetadata,
    WriteEpochs,
    done,
    is_met,
    memory_floor,
    pending,
    plan,
    reclaimable,
    write_target,
)
from posterity._model.registry import (
    Log,
    Registry,
    admit,
    describe,
    mark_burn_stored,
    mark_published,
    mark_written,
    raise_burn,
    start_series,
)

SAMPLES = 10  # in each epoch of the tables


def run_of(nepochs, *, epochs_per_file=2, written=0, cuts=None, published=0, dropped=0, burn=0, stored=None):
    """A run of epochs of 10 samples and 1000 bytes."""
    registry = start_series(Registry(), epochs_per_file)
    for _ in range(nepochs):
        registry = admit(registry, SAMPLES, 1000)
    registry = mark_written(registry, cuts or [0] * written)
    registry = raise_burn(mark_published(registry, published), burn, asked=True)
    registry = mark_burn_stored(registry, *[burn if stored is None else stored] * 2)
    return msgspec.structs.replace(registry, ndropped=dropped)


def planned(registry, *, inmem_epochs=0, demand=None, pinned_burn=None, **others):
    return plan(registry, inmem_epochs=inmem_epochs, demand=demand or Demand(), pinned_burn=pinned_burn, **others)


def told(action):
    """An action in a few words: what, the file's number, and what becomes of which epoch."""
    match action:
        case StoreBurn():
            return ("burn", action.burn)
        case WriteEpochs():
            parts = {part.entry.index: part.cut for part in action.parts}
            return ("write+publish" if action.publishes else "write", action.file.number, parts)
        case PublishFile():
            return ("publish", action.file.number, action.stop)
        case RewriteFile():
            return ("rewrite", action.file.number, {part.entry.index: part.cut for part in action.parts})
        case DropFiles():
            return ("drop", list(action.numbers), action.stop)


TABLE = [
    # ---- writing
    ("an empty run", run_of(0), {}, []),
    ("one epoch", run_of(1), {}, [("write", 1, {0: 0})]),
    ("a full file", run_of(2), {}, [("write+publish", 1, {0: 0, 1: 0})]),
    ("into the next file", run_of(3, written=1), {}, [("write+publish", 1, {1: 0}), ("write", 2, {2: 0})]),
    ("all is written", run_of(2, written=2, published=2), {}, []),
    (
        "one epoch a file",
        run_of(2, epochs_per_file=1),
        {},
        [("write+publish", 1, {0: 0}), ("write+publish", 2, {1: 0})],
    ),
    ("the newest stays in memory", run_of(3), {"inmem_epochs": 1}, [("write+publish", 1, {0: 0, 1: 0})]),
    ("all stay in memory", run_of(3), {"inmem_epochs": 3}, []),
    ("more may stay than there are", run_of(3), {"inmem_epochs": 9}, []),
    ("more stay in memory than before", run_of(3, written=3), {"inmem_epochs": 2}, [("publish", 1, 2)]),
    ("flush", run_of(3), {"inmem_epochs": 9, "demand": Demand(2)}, [("write+publish", 1, {0: 0, 1: 0})]),
    ("flush of more than there is", run_of(1), {"inmem_epochs": 9, "demand": Demand(5)}, [("write", 1, {0: 0})]),
    # ---- in batches
    ("a batch", run_of(5), {"batch_bytes": 3000}, [("write+publish", 1, {0: 0, 1: 0}), ("write", 2, {2: 0})]),
    ("an epoch larger than a batch", run_of(3), {"batch_bytes": 10}, [("write", 1, {0: 0})]),
    # ---- while a device computes
    ("all but what is on a device", run_of(5), {"nfetched": 1}, [("write", 1, {0: 0})]),
    ("nothing was fetched", run_of(5), {"nfetched": 0, "demand": Demand(5, 5)}, []),
    ("fetched and to stay in memory", run_of(3), {"nfetched": 3, "inmem_epochs": 9}, []),
    # ---- when the disk failed
    (
        "files go last when the disk is in doubt",
        run_of(5, burn=20, written=4, published=4),
        {"is_in_doubt": True},
        [("write", 3, {4: 0}), ("drop", [1], 2)],
    ),
    (
        "files go first otherwise",
        run_of(5, burn=20, written=4, published=4),
        {},
        [("drop", [1], 2), ("write", 3, {4: 0})],
    ),
    # ---- publishing
    ("on demand", run_of(1, written=1), {"demand": Demand(1, 1)}, [("publish", 1, 1)]),
    ("published on demand already", run_of(1, written=1, published=1), {"demand": Demand(1, 1)}, []),
    ("not before it is written", run_of(2), {"inmem_epochs": 2, "demand": Demand(0, 1)}, []),
    ("full without a write", run_of(2, written=2), {}, [("publish", 1, 2)]),
    ("demand of an earlier epoch", run_of(3, written=3, published=2), {"demand": Demand(2, 2)}, []),
    # ---- burn before, inside, across and beyond what there is
    ("burn inside the newest", run_of(1, burn=4, stored=0), {}, [("burn", 4), ("write", 1, {0: 4})]),
    ("burn before it was written", run_of(2, burn=10), {}, [("write+publish", 1, {0: 10, 1: 0})]),
    ("burn across, before it was written", run_of(2, burn=14), {}, [("write+publish", 1, {0: 10, 1: 4})]),
    ("burn beyond all", run_of(2, burn=99), {}, [("write+publish", 1, {0: 10, 1: 9})]),
    ("burn of an empty run", run_of(0, burn=99, stored=0), {}, []),
    ("burn of a run in memory", run_of(1, burn=5, stored=0), {"inmem_epochs": 1}, []),
    (
        "burn of a run in memory, flushed",
        run_of(1, burn=5, stored=0),
        {"inmem_epochs": 1, "demand": Demand(1, 0, 5)},
        [("burn", 5), ("write", 1, {0: 5})],
    ),
    ("a burn is durable before it takes", run_of(2, written=2, published=2, burn=10, stored=0), {}, [("burn", 10)]),
    # ---- dropping and cutting
    (
        "whole files go",
        run_of(6, written=6, published=6, burn=40),
        {},
        [("drop", [1, 2], 4)],
    ),
    (
        "a file with something left stays",
        run_of(4, written=4, published=4, burn=19),
        {},
        [("rewrite", 1, {0: 10, 1: 9})],
    ),
    ("less than half is dead", run_of(4, written=4, published=4, burn=9), {}, []),
    ("half is dead", run_of(4, written=4, published=4, burn=10), {}, [("rewrite", 1, {0: 10, 1: 0})]),
    (
        "less than half is dead and somebody waits",
        run_of(4, written=4, published=4, burn=9),
        {"demand": Demand(0, 0, 9)},
        [("rewrite", 1, {0: 9, 1: 0})],
    ),
    (
        "less than half is dead and somebody waits for less",
        run_of(4, written=4, cuts=[5, 0, 0, 0], published=4, burn=9),
        {"demand": Demand(0, 0, 5)},
        [],
    ),
    ("cut already", run_of(4, written=4, cuts=[10, 0, 0, 0], published=4, burn=10), {}, []),
    (
        "the file with the newest stays",
        run_of(4, written=4, published=4, burn=99),
        {},
        [("drop", [1], 2), ("rewrite", 2, {2: 10, 3: 9})],
    ),
    ("the newest is cut already", run_of(4, written=4, cuts=[0, 0, 10, 9], published=4, dropped=2, burn=99), {}, []),
    (
        "a dead file goes while the next one fills up",
        run_of(3, written=3, published=2, burn=20),
        {},
        [("drop", [1], 2)],
    ),
    ("a dead file is published before it goes", run_of(3, written=3, burn=20), {}, [("publish", 1, 2)]),
    # ---- readers
    (
        "a reader keeps what it needs",
        run_of(6, written=6, published=6, burn=40),
        {"pinned_burn": 20},
        [("drop", [1], 2)],
    ),
    ("a reader of all keeps all", run_of(6, written=6, published=6, burn=60), {"pinned_burn": 0}, []),
    (
        "a reader keeps what isn't written yet",
        run_of(2, burn=99),
        {"pinned_burn": 3},
        [("write+publish", 1, {0: 3, 1: 0})],
    ),
    (
        "a reader of less than is burned keeps nothing",
        run_of(2, burn=14),
        {"pinned_burn": 99},
        [("write+publish", 1, {0: 10, 1: 4})],
    ),
    # ---- together
    (
        "a file is cut before more is added, if somebody waits",
        run_of(3, epochs_per_file=4, written=2, burn=10),
        {"demand": Demand(0, 0, 10)},
        [("rewrite", 1, {0: 10, 1: 0}), ("write", 1, {2: 0})],
    ),
    (
        "a file is not cut while more is added",
        run_of(3, epochs_per_file=4, written=2, burn=10),
        {},
        [("write", 1, {2: 0})],
    ),
]


@pytest.mark.parametrize(
    ("registry", "given_options", "expected"), [pytest.param(*row[1:], id=row[0]) for row in TABLE]
)
def test_a_state_leads_to_actions(registry, given_options, expected):
    """In each state of a run, the policy says what to do next, in this order."""
    assert [told(action) for action in planned(registry, **given_options)] == expected


@pytest.mark.parametrize(
    ("registry", "action", "expected"),
    [
        (run_of(2, burn=5, stored=0), StoreBurn(5, 5), {"stored_burn": 5}),
        (run_of(2), planned(run_of(2))[0], {"nwritten": 2, "npublished": 2}),
        (run_of(1), planned(run_of(1))[0], {"nwritten": 1, "npublished": 0}),
        (run_of(2, written=2), planned(run_of(2, written=2))[0], {"npublished": 2}),
        (run_of(6, written=6, published=6, burn=40), DropFiles(0, 4, (1, 2)), {"ndropped": 4}),
    ],
)
def test_an_action_that_was_done_changes_the_registry(registry, action, expected):
    """What was done is counted, and nothing else."""
    after = done(registry, action)
    counts = ["stored_burn", "nwritten", "npublished", "ndropped", "burn", "next_index"]
    changed = {name: getattr(after, name) for name in counts if getattr(after, name) != getattr(registry, name)}
    assert changed == {name: value for name, value in expected.items() if value != getattr(registry, name)}


def test_a_rewrite_changes_the_cuts():
    """A file that was written anew lacks what the burn took."""
    registry = run_of(4, written=4, published=4, burn=19)
    after = done(registry, planned(registry)[0])
    assert list(after.cuts) == [10, 9, 0, 0]


@pytest.mark.parametrize(
    ("nepochs", "written", "inmem_epochs", "is_planned"),
    [(0, 0, 0, False), (2, 0, 5, False), (2, 0, 0, True), (2, 2, 0, True), (2, 1, 5, True)],
)
def test_what_the_numbers_mean_is_stored_before_them(nepochs, written, inmem_epochs, is_planned):
    """Once there are epochs on disk, or about to be, and before anything else; somebody who flushes waits for it."""
    registry = describe(run_of(nepochs, written=written, published=written), Metadata(host="h"))
    actions = planned(registry, inmem_epochs=inmem_epochs)
    assert ([StoreMetadata(registry.metadata)] == actions[:1]) is is_planned
    assert is_met(registry, Demand(write_to=written), None) is (written == 0)


def test_metadata_that_changed_meanwhile_are_stored_too():
    """What was stored counts only as long as nothing else is known."""
    first = describe(run_of(2, written=2, published=2), Metadata(host="h"))
    action = planned(first)[0]
    assert planned(done(first, action)) == []
    second = describe(first, Metadata(host="h"))
    assert planned(done(second, action)) == [StoreMetadata(second.metadata)]


# ---- counting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nepochs", "written", "inmem_epochs", "target", "waits", "floor"),
    [
        (0, 0, 0, 0, (0, 0), 0),
        (3, 0, 0, 3, (3, 3000), 0),
        (3, 1, 0, 3, (2, 2000), 1),
        (3, 3, 0, 3, (0, 0), 3),
        (3, 0, 2, 1, (1, 1000), 0),
        (3, 2, 2, 1, (0, 0), 1),
        (3, 0, 9, 0, (0, 0), 0),
    ],
)
def test_what_waits_and_what_stays(nepochs, written, inmem_epochs, target, waits, floor):
    """The epochs that belong on disk and aren't there are the mailbox; those on disk needn't stay in memory."""
    registry = run_of(nepochs, written=written)
    assert write_target(registry, inmem_epochs, Demand()) == target
    assert pending(registry, inmem_epochs) == waits
    assert memory_floor(registry, inmem_epochs) == floor


@pytest.mark.parametrize(
    ("burn", "stored", "pinned_burn", "expected"),
    [(30, 30, None, 30), (30, 20, None, 20), (30, 30, 10, 10), (30, 20, 25, 20), (0, 0, 5, 0)],
)
def test_what_may_go(burn, stored, pinned_burn, expected):
    """Samples may go when their burn is durable and nobody reads them."""
    assert reclaimable(run_of(4, burn=burn, stored=stored), pinned_burn) == expected


@pytest.mark.parametrize(
    ("one", "other", "joined"),
    [
        (Demand(), Demand(1, 2, 3), Demand(1, 2, 3)),
        (Demand(5, 1, 9), Demand(1, 2, 3), Demand(5, 2, 9)),
    ],
)
def test_demands_are_joined(one, other, joined):
    """Two who wait want the larger of what each wants."""
    assert one.joined(other) == other.joined(one) == joined


@pytest.mark.parametrize(
    ("registry", "demand", "pinned_burn", "expected"),
    [
        (run_of(2), Demand(), None, True),
        (run_of(2, written=1), Demand(2), None, False),
        (run_of(2, written=2), Demand(2), None, True),
        (run_of(1, written=1), Demand(1, 1), None, False),
        (run_of(1, written=1, published=1), Demand(1, 1), None, True),
        (run_of(2, burn=5, stored=0), Demand(0, 0, 5), None, False),
        (run_of(4, written=4, published=4, burn=5), Demand(0, 0, 5), None, False),
        (run_of(4, written=4, published=4, burn=5), Demand(0, 0, 5), 0, True),
        (run_of(4, written=4, published=4, cuts=[5, 0, 0, 0], burn=5), Demand(0, 0, 5), None, True),
    ],
)
def test_a_demand_is_met(registry, demand, pinned_burn, expected):
    """A demand is met when all of it is on disk, but for what a reader delays."""
    assert is_met(registry, demand, pinned_burn) is expected


# ---- any sequence of events ------------------------------------------------------------------------------------------


class Folder:
    """What the actions make of a run folder.

    `files`: for each file, which epochs are in it and how much of each was cut. `published`: the epochs before this one
    are in the file that has the number's name.
    """

    def __init__(self):
        self.files = {}
        self.published = {}
        self.nwritten = 0
        self.dropped = set()

    def do(self, action, registry):
        match action:
            case WriteEpochs(file=file, parts=parts):
                for part in parts:
                    assert part.entry.index == self.nwritten, "written once, in order"
                    assert file.start <= part.entry.index < file.stop
                    self.nwritten += 1
                    if not part.is_empty:
                        self.files.setdefault(file.number, {})[part.entry.index] = part.cut
                if action.publishes:
                    assert self.nwritten == file.stop
                    self.published[file.number] = file.stop
            case PublishFile(file=file, stop=stop):
                assert file.start < stop == min(file.stop, self.nwritten)
                self.published[file.number] = stop
            case RewriteFile(file=file, parts=parts):
                span = range(file.start, min(file.stop, self.nwritten))
                assert [part.entry.index for part in parts] == list(span), "nothing in the file is forgotten"
                old = self.files[file.number]
                new = {part.entry.index: part.cut for part in parts if not part.is_empty}
                assert new != old
                assert all(i in old and cut >= old[i] for i, cut in new.items()), "what was cut doesn't come back"
                self.files[file.number] = new
            case DropFiles(start=start, stop=stop, numbers=numbers):
                for number in numbers:
                    gone = self.files.pop(number, {})
                    assert all(start <= i < stop for i in gone), "an epoch is dropped with its file"
                    assert all(i < self.published[number] for i in gone), "a file that is filling up stays"
                self.dropped |= set(range(start, stop))
        for i, entry in enumerate(registry.entries[: self.nwritten]):
            cut = self.cut_of(registry, i)
            assert cut <= entry.burned(registry.stored_burn), "what a burn took is gone only once the burn is durable"

    def cut_of(self, registry, index):
        """How many of an epoch's first samples are in no file."""
        number = registry.file_of(index).number
        return self.files.get(number, {}).get(index, registry.entries[index].nsamples)


class Simulation:
    """A run, the folder that the policy makes of it, and what must hold at any moment."""

    def __init__(self, inmem_epochs, epochs_per_file, batch_bytes):
        self.inmem_epochs = inmem_epochs
        self.batch_bytes = batch_bytes
        self.registry = start_series(Registry(), epochs_per_file)
        self.folder = Folder()
        self.demand = Demand()
        self.asked_to_publish = 0
        self.pins = []

    @property
    def pinned_burn(self):
        return min(self.pins, default=None)

    def steps(self):
        """What the policy says, in steps: neighbouring writes become durable together."""
        steps = []
        for action in plan(
            self.registry,
            inmem_epochs=self.inmem_epochs,
            demand=self.demand,
            pinned_burn=self.pinned_burn,
            batch_bytes=self.batch_bytes,
        ):
            if isinstance(action, WriteEpochs) and steps and isinstance(steps[-1][0], WriteEpochs):
                steps[-1].append(action)
            else:
                steps.append([action])
        return steps

    def do(self, steps):
        for step in steps:
            for action in step:
                self.registry = done(self.registry, action)
                self.folder.do(action, self.registry)
            self.check()

    def check(self):
        """What must hold after each action."""
        registry, folder = self.registry, self.folder
        assert registry.nwritten == folder.nwritten
        needed_from = min([registry.burn, *self.pins])
        for index in range(registry.nwritten):
            entry = registry.entries[index]
            cut = folder.cut_of(registry, index)
            assert index in folder.dropped or registry.cuts[index] == cut, "the registry knows what is in the files"
            assert cut <= entry.burned(needed_from) or (cut == entry.nsamples and entry.is_burned(needed_from))
        if registry.nwritten:
            newest = registry.nwritten - 1
            assert folder.cut_of(registry, newest) < registry.entries[newest].nsamples, "sampling can be continued"
        for index in range(registry.npublished):
            number = registry.file_of(index).number
            assert number not in folder.files or index < folder.published[number]

    def settle(self):
        """Do what the policy says until it says nothing; it must come to an end soon."""
        for _ in range(3 * len(self.registry.entries) + 5):
            steps = self.steps()
            if not steps:
                break
            self.do(steps)
        else:
            pytest.fail(f"the policy doesn't come to an end: {steps}")
        self.check_settled()

    def check_settled(self):
        """What must hold when nothing is to be done."""
        registry, folder = self.registry, self.folder
        target = write_target(registry, self.inmem_epochs, self.demand)
        assert registry.nwritten >= target
        assert is_met(registry, self.demand, self.pinned_burn)
        for index in range(registry.nwritten):
            file = registry.file_of(index)
            if file.number in folder.files:
                stop = folder.published.get(file.number, file.start)
                if registry.nwritten >= file.stop:
                    assert stop == file.stop, "a full file is published"
                else:
                    assert stop == file.start or self.asked_to_publish > file.start, "others are when somebody asked"
        self.check_reclaimed()

    def check_reclaimed(self):
        """Whole files are gone, and no file is half dead."""
        registry, folder = self.registry, self.folder
        gone = reclaimable(registry, self.pinned_burn)
        for number, cuts in folder.files.items():
            entries = [registry.entries[i] for i in cuts]
            newest = registry.nwritten - 1
            if newest in cuts:
                continue
            assert not all(entry.is_burned(gone) for entry in entries), f"file {number} is dead"
            total = sum(entry.nbytes * (1 - cuts[entry.index] / entry.nsamples) for entry in entries)
            left = sum(entry.nbytes * (1 - entry.burned(gone) / entry.nsamples) for entry in entries)
            assert left == pytest.approx(total) or 2 * left >= total * (1 - 1e-9), f"file {number} is half dead"

    # ---- events: each takes a number, and makes of it what it needs

    def admit(self, n):
        nsamples = 1 + n % 5
        self.registry = admit(self.registry, nsamples, 8 * nsamples)

    def burn(self, n):
        self.registry = raise_burn(self.registry, n, asked=True)

    def clean(self, _):
        self.registry = raise_burn(self.registry, self.registry.nsamples, asked=False)

    def flush(self, n):
        count, publish = self.registry.next_index, n % 2
        self.demand = self.demand.joined(Demand(count, count * publish, self.registry.burn if count else 0))
        self.asked_to_publish = max(self.asked_to_publish, count * publish)

    def pin(self, _):
        self.pins.append(self.registry.burn)

    def unpin(self, n):
        if self.pins:
            del self.pins[n % len(self.pins)]

    def settle_down(self, _):
        self.settle()

    def work(self, n, meanwhile):
        """Do some of what the policy says; other things happen between deciding and doing."""
        steps = self.steps()
        for name, number in meanwhile:
            getattr(self, name)(number)
        self.do(steps[: n % 5])

    def reopen(self, n):
        """The process died: what wasn't written never was, and the run goes on with another grouping."""
        registry = self.registry
        kept = Registry(
            entries=Log(registry.entries[: registry.nwritten]),
            series=registry.series,
            burn=registry.stored_burn,
            asked_burn=registry.stored_asked_burn,
            stored_burn=registry.stored_burn,
            stored_asked_burn=registry.stored_asked_burn,
            cuts=registry.cuts,
            npublished=registry.npublished,
            ndropped=registry.ndropped,
        )
        self.registry = start_series(kept, 1 + n % 4)
        self.demand, self.pins = Demand(), []


_NUMBERS = st.integers(0, 40)
_HAPPENINGS = st.tuples(st.sampled_from(["admit"] * 6 + ["burn", "clean", "pin", "unpin", "flush"]), _NUMBERS)
_WORK = st.tuples(st.just("work"), _NUMBERS, st.lists(_HAPPENINGS, max_size=2))
_CALMS = st.tuples(st.sampled_from(["settle_down"] * 3 + ["reopen"]), _NUMBERS)
_EVENTS = st.lists(_HAPPENINGS | _WORK | _CALMS, min_size=10, max_size=40)


@given(st.integers(0, 3), st.integers(1, 4), st.sampled_from([1, 60, 1 << 26]), _EVENTS)
@settings(max_examples=300)
def test_any_sequence_of_events_leaves_the_run_whole(inmem_epochs, epochs_per_file, batch_bytes, events):
    """Whatever happens, and whenever: nothing that is needed is cut, each epoch is written once, and it ends."""
    simulation = Simulation(inmem_epochs, epochs_per_file, batch_bytes)
    for name, *arguments in events:
        getattr(simulation, name)(*arguments)
    simulation.settle()
    simulation.flush(1)
    simulation.settle()
    registry = simulation.registry
    assert registry.nwritten == registry.npublished == registry.next_index
    simulation.pins.clear()
    simulation.settle()
    last = registry.next_index - 1
    for index in range(registry.next_index):
        entry = registry.entries[index]
        burned = entry.burned(registry.burn)
        cut = simulation.folder.cut_of(simulation.registry, index)
        assert cut == (min(burned, entry.nsamples - 1) if index == last else burned)
    event(f"{min(registry.next_index, 10)} epochs, {len(simulation.folder.files)} files left")
