"""A writer and readers as processes of their own, over a run whose every number tells where it belongs.

The generation of the run, the index of an epoch and the position of a sample make each value, so a reader knows what
it must get without asking the writer. `kind` says whether all epochs are of one length.

Run as a script: `elsewhere.py write OUTDIR KIND SEED`, until it is killed, or `elsewhere.py read OUTDIR KIND SEED FACE`,
until its standard input ends; then it says what it counted.
"""

import json
import logging
import random
import sys
import threading
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial

import anyio
import numpy as np

from posterity import Closed, DefaultBackend, Epoch, SnapshotExpired, open_run
from posterity.errors import Burned

NCHAIN, DIM = 3, 2
MASKS = {"all": ..., "some": [2, 0], "flags": [False, True, True], "slice": slice(1, None)}
MOST_OWED = 900  # a reset doesn't forget a burn that was asked for: the next run would begin with nothing to read
CALLS = ["get", "get_samples", "get_stats", "load"]

_guard = threading.Lock()
_starts = defaultdict(lambda: [0])


# ---- the numbers of a run --------------------------------------------------------------------------------------------


def length(kind, generation, index):
    """How many samples an epoch has; a few of the unequal ones are long."""
    if kind == "equal":
        return 20
    return 9000 if index % 41 == 40 else 1 + (37 * generation + 11 * index + index * index) % 97


def first(kind, generation, index):
    """The position of an epoch's first sample in the run."""
    if kind == "equal":
        return 20 * index
    with _guard:
        starts = _starts[kind, generation]
        while len(starts) <= index:
            starts.append(starts[-1] + length(kind, generation, len(starts) - 1))
        return starts[index]


def numbers(generation, positions):
    """Samples `(NCHAIN, DIM, n)` of a generation at some positions."""
    chain, row, position = np.ogrid[:NCHAIN, :DIM, 0 : len(positions)]
    return 1e9 * generation + 100.0 * np.asarray(positions)[position] + 10 * chain + row


def lls(positions):
    return np.repeat(-np.asarray(positions, np.float32)[None, None], NCHAIN, axis=0)


def epoch(kind, generation, index):
    start = first(kind, generation, index)
    positions = range(start, start + length(kind, generation, index))
    return {
        "samples": {"p": numbers(generation, positions), "ll": lls(positions)},
        "covs": np.stack([np.eye(DIM) * (1 + index + chain) for chain in range(NCHAIN)]),
        "stats": {"index": index, "generation": generation, "steps": np.arange(index % 5)},
        "cycle": index,
    }


# ---- the writer ------------------------------------------------------------------------------------------------------


def work(backend, kind, rng):
    """One step of a sampler's life."""
    with backend.snapshot() as snapshot:
        registry = snapshot.registry
    step = rng.random()
    if step < 0.75:
        backend.ingest(epoch(kind, registry.generation, registry.next_index))
    elif step < 0.82:
        backend.flush()
    elif step < 0.86:
        backend.flush(publish=True)
    elif step < 0.90:
        backend.update()
    elif step < 0.985:
        burn = registry.burn + rng.randrange(1 + registry.nsamples_left // 4)
        backend.set_burn(max(registry.burn, min(burn, MOST_OWED)))
        backend.flush()  # the file that it cuts is written anew
    elif step < 0.99:
        backend.clean()
    else:
        backend.reset()


def write(outdir, kind, seed):
    """Write a run, closing and opening it again, until somebody kills this process."""
    logging.disable(logging.WARNING)
    rng = random.Random(seed)
    while True:
        options = {"epochs_per_file": rng.randint(1, 3), "inmem_epochs": rng.choice([0, 0, 2])}
        with DefaultBackend(outdir=outdir, mode=rng.choice("aaaaaw"), **options) as backend:
            for _ in range(rng.randrange(1, 120)):
                work(backend, kind, rng)
                say("step")


def say(word):
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


# ---- questions and answers -------------------------------------------------------------------------------------------


def question(rng, registry):
    """What to ask a snapshot: the name of a call, and its arguments."""
    name = rng.choice(CALLS)
    anywhere = rng.randint(-registry.next_index - 1, registry.next_index)
    index = rng.choice([-1, registry.first_left, rng.randint(registry.first_left, registry.next_index), anywhere])
    if name == "get":
        return name, {"ind": index}
    if name == "load":
        return name, {"iepoch": index, "pars": rng.choice([None, ["p"]])}
    if name == "get_stats":
        left = range(registry.first_left, registry.next_index)
        return name, {"epochs": rng.choice([None, [index], list(left[-3:])])}
    return name, {
        "burn": rng.choice([0, 0, rng.randrange(1 + registry.nsamples_left)]),
        "thin": rng.choice([1, 1, 3, 10]),
        "pars": rng.choice([None, ["ll", "p"], ["ll"]]),
        "mask": MASKS[rng.choice(list(MASKS))],
        "flatten": rng.random() < 0.3,
        "verify": rng.random() < 0.5,
    }


def is_refused(name, asked, registry):
    """The error with which a snapshot must answer; None if it must give numbers."""
    if name == "get_samples":
        return None
    indices = asked["epochs"] or [] if name == "get_stats" else [asked.get("ind", asked.get("iepoch"))]
    n = registry.next_index
    for index in indices:
        if not -n <= index < n:
            return IndexError
    for index in indices:
        may_be_last = name == "load" and index % n == n - 1
        if registry.entries[index].is_burned(registry.burn) and not may_be_last:
            return Burned
    return None


def check_registry(kind, registry, rng):
    """What a snapshot says of the run is what was ingested."""
    n = registry.next_index
    for index in {0, n - 1, rng.randrange(n), registry.first_left} & set(range(n)) if n else ():
        entry = registry.entries[index]
        start = first(kind, registry.generation, index)
        assert (entry.index, entry.first, entry.stop) == (
            index,
            start,
            start + length(kind, registry.generation, index),
        )
    assert len(registry.cuts) == n


def check_answer(kind, name, asked, registry, answer):
    """What a snapshot answered is exact."""
    check = {"get": check_get, "load": check_load, "get_samples": check_samples, "get_stats": check_stats}[name]
    check(kind, asked, registry, answer)


def left_of(kind, registry, index, *, keeps_last):
    """The positions of an epoch's samples that aren't burned."""
    start = first(kind, registry.generation, index)
    stop = start + length(kind, registry.generation, index)
    return range(max(start, min(registry.burn, stop - keeps_last)), stop)


def check_get(kind, asked, registry, answer):
    index = asked["ind"] % registry.next_index
    expected = epoch(kind, registry.generation, index)
    left = left_of(kind, registry, index, keeps_last=False)
    np.testing.assert_array_equal(answer["samples"]["p"], numbers(registry.generation, left))
    np.testing.assert_array_equal(answer["samples"]["ll"], lls(left))
    np.testing.assert_array_equal(answer["covs"], expected["covs"])
    check_stat(answer["stats"], expected["stats"])
    assert answer["cycle"] == index


def check_load(kind, asked, registry, answer):
    index = asked["iepoch"] % registry.next_index
    left = left_of(kind, registry, index, keeps_last=index == registry.next_index - 1)
    assert isinstance(answer, Epoch)
    assert set(answer.samples) == ({"p"} if asked["pars"] else {"p", "ll"})
    np.testing.assert_array_equal(answer.samples["p"], numbers(registry.generation, left))


def check_samples(kind, asked, registry, answer):
    left = range(registry.burn + asked["burn"], registry.nsamples)[:: asked["thin"]]
    if not left:
        assert answer is None
        return
    expected = {"p": partial(numbers, registry.generation), "ll": lls}
    assert set(answer) == set(asked["pars"] or ["p"])
    for name, array in answer.items():
        whole = expected[name](left)[asked["mask"]]
        if asked["flatten"]:
            whole = DefaultBackend.flatten_samples({name: whole})[name]
        np.testing.assert_array_equal(array, whole)


def check_stats(kind, asked, registry, answer):
    n = registry.next_index
    indices = range(registry.first_left, n) if asked["epochs"] is None else [i % n for i in asked["epochs"]]
    assert set(answer) == {f"epoch_{index}" for index in indices}
    for index in indices:
        check_stat(answer[f"epoch_{index}"], epoch(kind, registry.generation, index)["stats"])


def check_stat(stats, expected):
    assert {name: np.asarray(value).tolist() for name, value in stats.items()} == {
        name: np.asarray(value).tolist() for name, value in expected.items()
    }


def check_unasked(samples, thin):
    """Samples of whatever the run was at some moment: of one generation, and neighbours."""
    if samples is None:
        return
    p = samples["p"]
    generation, position = divmod(int(p[0, 0, 0]), 10**9)
    start = position // 100
    np.testing.assert_array_equal(p, numbers(generation, range(start, start + thin * p.shape[2], thin)))


# ---- the readers -----------------------------------------------------------------------------------------------------


class Witness:
    """Asks, checks, counts; and sees to it that time never runs backwards."""

    def __init__(self, kind, seed, counts):
        self.kind = kind
        self.rng = random.Random(seed)
        self.counts = counts
        self._last = (0, 0, 0)
        self._kept = []

    def check_fresh(self, registry):
        """A run only grows, burns and begins anew."""
        now = (registry.generation, registry.next_index, registry.burn)
        last, self._last = self._last, now
        assert now[0] >= last[0], (last, now)
        if now[0] > last[0]:
            say(f"generation {now[0]}")
        assert now[0] > last[0] or (now[1] >= last[1] and now[2] >= last[2]), (last, now)
        check_registry(self.kind, registry, self.rng)

    def keep(self, snapshot):
        """Keep some snapshots for long; gives one of any age."""
        if len(self._kept) > 5:
            self._kept.pop(self.rng.randrange(len(self._kept))).release()
        self._kept.append(snapshot)
        return self.rng.choice(self._kept)

    def release(self):
        for snapshot in self._kept:
            snapshot.release()

    def ask(self, snapshot):
        with self._asking(snapshot) as (name, asked):
            self._check(name, asked, snapshot.registry, getattr(snapshot, name)(**asked))

    async def ask_awaited(self, snapshot):
        with self._asking(snapshot) as (name, asked):
            self._check(name, asked, snapshot.registry, await getattr(snapshot, name)(**asked))

    @contextmanager
    def _asking(self, snapshot):
        name, asked = question(self.rng, snapshot.registry)
        try:
            yield name, asked
        except SnapshotExpired:
            self.count("expired")
        except (IndexError, Burned) as error:
            if type(error) is not is_refused(name, asked, snapshot.registry):
                raise
            self.count("refused")

    def _check(self, name, asked, registry, answer):
        assert is_refused(name, asked, registry) is None, (name, asked)
        check_answer(self.kind, name, asked, registry, answer)
        self.count(name)

    def count(self, what):
        is_first = not self.counts[what]
        self.counts[what] += 1
        if is_first:
            say(f"first {what}")


def read_blocking(run, witness):
    """Read from fresh snapshots, and from some that are older and older."""
    while True:
        snapshot = run.snapshot()
        witness.check_fresh(snapshot.registry)
        witness.ask(snapshot)
        witness.ask(witness.keep(snapshot))
        with suppress(SnapshotExpired):
            check_unasked(run.get_samples(thin=3), 3)


def listen_blocking(run, witness):
    for nth, snapshot in enumerate(run.updates(every_s=0.01)):
        witness.check_fresh(snapshot.registry)
        witness.ask(snapshot)
        witness.count("updates")
        if nth == 20:
            break


async def read_awaited(run, witness):
    while True:
        snapshot = await run.snapshot()
        witness.check_fresh(snapshot.registry)
        await witness.ask_awaited(snapshot)
        await witness.ask_awaited(witness.keep(snapshot))
        with suppress(SnapshotExpired):
            check_unasked(await run.get_samples(thin=3), 3)


async def listen_awaited(run, witness):
    nth = 0
    async for snapshot in run.updates(every_s=0.01):
        witness.check_fresh(snapshot.registry)
        await witness.ask_awaited(snapshot)
        witness.count("updates")
        nth += 1
        if nth == 20:
            break


class Reading:
    """A run that is read until the standard input ends, or something is wrong."""

    def __init__(self, outdir):
        self.run = open_run(outdir)
        self.is_over = threading.Event()
        threading.Thread(target=self._wait, daemon=True).start()

    def _wait(self):
        sys.stdin.read()
        self.end()

    def end(self):
        """The run is closed under the hands of those who read."""
        self.is_over.set()
        self.run.close()

    def go_on(self, read, witness):
        """Read again and again."""
        with self._ending(witness):
            while not self.is_over.is_set():
                read(self.run, witness)

    async def go_on_awaited(self, read, witness):
        with self._ending(witness):
            while not self.is_over.is_set():
                await read(self.run.asynchronous, witness)

    @contextmanager
    def _ending(self, witness):
        try:
            yield
        except Closed:
            assert self.is_over.is_set()
        finally:
            witness.release()
            self.end()

    def read(self, witness, listener):
        with ThreadPoolExecutor() as threads:
            ends = [
                threads.submit(self.go_on, read_blocking, witness),
                threads.submit(self.go_on, listen_blocking, listener),
            ]
        for end in ends:
            end.result()

    async def read_awaited(self, witness, listener):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.go_on_awaited, read_awaited, witness)
            tasks.start_soon(self.go_on_awaited, listen_awaited, listener)


def read(outdir, kind, seed, face):
    reading = Reading(outdir)
    say("open")
    counts = Counter()
    witness, listener = Witness(kind, seed, counts), Witness(kind, f"{seed} listens", counts)
    if face == "blocking":
        reading.read(witness, listener)
    else:
        anyio.run(reading.read_awaited, witness, listener, backend=face)
    say(json.dumps(counts))


if __name__ == "__main__":
    {"write": write, "read": read}[sys.argv[1]](*sys.argv[2:])
