"""A backend in any order of calls against a run in memory of a few lines, with closing, reopening and crashes between."""

import shutil
import tempfile
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from known import assert_same, epoch_dict, joined
from posterity import Burned, BurnLowered, DefaultBackend
from smallchunks import small_chunks

OPTIONS = st.fixed_dictionaries(
    {
        "epochs_per_file": st.integers(1, 4),
        "inmem_epochs": st.integers(0, 4),
        "compression": st.sampled_from([None, None, "gzip", "zstd"]),
    }
)


class Model:
    """What a run is: its epochs, and how many samples are discarded."""

    def __init__(self):
        self.epochs = []
        self.burn = 0
        self.asked_burn = 0

    @property
    def nsamples(self):
        return sum(epoch["samples"]["p"].shape[2] for epoch in self.epochs)

    def left(self, name="p"):
        return joined(self.epochs, name)[:, :, self.burn :] if self.epochs else np.empty((3, 2, 0))

    def spans(self):
        """Each epoch with the positions of its first sample and after its last one."""
        first = 0
        for epoch in self.epochs:
            stop = first + epoch["samples"]["p"].shape[2]
            yield epoch, first, stop
            first = stop

    def copy(self):
        other = Model()
        other.__dict__.update(self.__dict__, epochs=list(self.epochs))
        return other


def assert_equal(reader, model):
    """All that can be read is what the model has."""
    left = model.left()
    samples = reader.get_samples(pars=["p", "ll"], verify=True)
    if left.shape[2] == 0:
        assert samples is None
    else:
        assert_same(samples, {"p": left, "ll": model.left("ll")})
    for i, (epoch, first, stop) in enumerate(model.spans()):
        burned = min(max(model.burn - first, 0), stop - first)
        if stop <= model.burn:
            with pytest.raises(Burned):
                reader.get(i)
        else:
            cut = {name: array[:, :, burned:] for name, array in epoch["samples"].items()}
            assert_same(reader.get(i), {**epoch, "samples": cut})
    with pytest.raises(IndexError):
        reader.get(len(model.epochs))
    stats = {
        f"epoch_{i}": epoch["stats"]
        for i, (epoch, _, stop) in enumerate(model.spans())
        if stop > model.burn and "stats" in epoch
    }
    assert_same(reader.get_stats(), stats)
    if model.epochs:
        newest = reader.load()
        np.testing.assert_array_equal(newest.last["p"], model.epochs[-1]["samples"]["p"][:, :, -1])
        np.testing.assert_array_equal(newest.covs, model.epochs[-1]["covs"])


class Run(RuleBasedStateMachine):
    """One run folder, and every call that changes what is in it."""

    def __init__(self):
        super().__init__()
        self.small_chunks = small_chunks()
        self.small_chunks.__enter__()
        self.root = Path(tempfile.mkdtemp(prefix="run-"))
        self.outdir = self.root / "run"
        self.model = Model()
        self.snapshots = []
        self.ningested = 0
        self.backend = None

    @initialize(options=OPTIONS, burn=st.integers(0, 10))
    def open(self, options, burn):
        self.inmem_epochs = options["inmem_epochs"]
        self.backend = DefaultBackend(burn, outdir=self.outdir, **options)
        self.model.burn = self.model.asked_burn = burn

    # ---- what changes the run ----------------------------------------------------------------------------------------

    @rule(nsamples=st.integers(1, 6), has_stats=st.booleans(), copy=st.booleans())
    def ingest(self, nsamples, has_stats, copy):
        epoch = epoch_dict(10 * self.ningested, nsamples, note=f"epoch {self.ningested}")
        if not has_stats:
            del epoch["stats"]
        self.ningested += 1
        self.backend.ingest_dict(epoch, copy=copy)
        self.model.epochs.append(epoch)

    @rule(more=st.integers(0, 12))
    def set_burn(self, more):
        burn = self.model.burn + more
        self.backend.set_burn(burn)
        self.model.burn = burn
        self.model.asked_burn = max(self.model.asked_burn, burn)

    @precondition(lambda self: self.model.burn > 0)
    @rule(less=st.integers(1, 5))
    def lower_burn(self, less):
        with pytest.raises(BurnLowered):
            self.backend.set_burn(self.model.burn - less)

    @rule()
    def clean(self):
        self.backend.clean()
        self.model.burn = max(self.model.burn, self.model.nsamples)

    @rule()
    def reset(self):
        self.backend.reset()
        self.model.epochs = []
        self.model.burn = self.model.asked_burn

    @rule()
    def update(self):
        self.backend.update()
        assert self.backend.status.epochs_on_disk >= len(self.model.epochs) - self.inmem_epochs

    @rule(publish=st.booleans())
    def flush(self, publish):
        self.backend.flush(publish=publish)
        assert self.backend.status.epochs_on_disk == len(self.model.epochs)

    # ---- closing and crashing ----------------------------------------------------------------------------------------

    @rule(options=OPTIONS, burn=st.integers(0, 10), crash=st.booleans())
    def reopen(self, options, burn, crash):
        """Close or crash after a flush, and go on with other options."""
        if crash:
            self.flush(publish=False)
            self.backend.update()
            copy = self.copy_folder()
            self.backend.close()
            self.release_snapshots()
            shutil.rmtree(self.outdir, ignore_errors=True)
            if copy is not None:
                copy.rename(self.outdir)
        else:
            self.backend.close()
            for snapshot, model in self.snapshots:
                assert_equal(snapshot, model)
            self.release_snapshots()
        if not self.outdir.exists():
            assert not self.model.epochs
            self.model = Model()
        self.inmem_epochs = options["inmem_epochs"]
        self.backend = DefaultBackend(burn, outdir=self.outdir, **options)
        self.model.burn = max(self.model.burn, burn)
        self.model.asked_burn = max(self.model.asked_burn, burn)

    @rule()
    def look_at_a_copy_after_flush(self):
        """What a crash now would leave is all that was flushed."""
        self.flush(publish=False)
        self.backend.update()
        copy = self.copy_folder()
        if copy is None:
            assert not self.model.epochs
            return
        with DefaultBackend(outdir=copy) as crashed:
            assert crashed.burn == self.model.burn
            assert_equal(crashed, self.model)
        shutil.rmtree(copy)

    def copy_folder(self):
        """A copy, without the lock: a process that closes any descriptor of that file loses the lock."""
        if not self.outdir.exists():
            return None
        return Path(shutil.copytree(self.outdir, self.root / "copy", ignore=shutil.ignore_patterns("*.lock")))

    # ---- snapshots ---------------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.snapshots) < 3)
    @rule()
    def take_snapshot(self):
        self.snapshots.append((self.backend.snapshot(), self.model.copy()))

    @precondition(lambda self: self.snapshots)
    @rule(data=st.data())
    def release_a_snapshot(self, data):
        snapshot, model = self.snapshots.pop(data.draw(st.integers(0, len(self.snapshots) - 1)))
        assert_equal(snapshot, model)
        snapshot.release()

    @rule()
    def read_snapshots(self):
        for snapshot, model in self.snapshots:
            assert_equal(snapshot, model)

    def release_snapshots(self):
        for snapshot, _ in self.snapshots:
            snapshot.release()
        self.snapshots = []

    # ---- what always holds -------------------------------------------------------------------------------------------

    @invariant()
    def reads_are_exact(self):
        if self.backend is not None:
            assert self.backend.burn == self.model.burn
            assert self.backend.status.samples == max(0, self.model.nsamples - self.model.burn)
            assert_equal(self.backend, self.model)

    def teardown(self):
        if self.backend is not None:
            self.release_snapshots()
            self.backend.close()
            if self.outdir.exists():
                assert [path.name for path in self.outdir.iterdir() if path.name.startswith(".")] == []
                with DefaultBackend(outdir=self.outdir) as again:
                    assert_equal(again, self.model)
        shutil.rmtree(self.root)
        self.small_chunks.__exit__(None, None, None)


TestRun = Run.TestCase
TestRun.settings = settings(max_examples=40, stateful_step_count=30)
