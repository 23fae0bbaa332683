"""What the backends of ensemble samplers share, seen on a third sampler: this much is all that one has to bring."""

import copy
import pickle
from typing import ClassVar

import msgspec
import numpy as np
import pytest

from posterity import Closed, DefaultBackend, EpochMismatch, open_run
from posterity._samplers.step_backend import StepBackend


class Walk(msgspec.Struct, frozen=True):
    """Walkers on a line, and a blob for each."""

    written_by: ClassVar[str] = "WalkBackend"

    nwalkers: int
    blobs: str | None = None

    @property
    def shapes(self):
        shapes = {"p": ((self.nwalkers,), np.dtype(float))}
        return shapes if self.blobs is None else {**shapes, "blobs": ((self.nwalkers,), np.dtype(self.blobs))}

    def with_blobs(self, blobs):
        if self.blobs not in (None, blobs.dtype.str):
            raise ValueError(f"the blobs are {blobs.dtype.str}, and in the run they are {self.blobs}")
        return msgspec.structs.replace(self, blobs=blobs.dtype.str)

    def epoch(self, steps, state):
        samples = {name: array.T[:, None] for name, array in steps.items()}
        return {
            "samples": samples,
            "walk": msgspec.structs.asdict(self),
            "state": state,
            "class": "posterity.epoch.Epoch",
        }

    @classmethod
    def found_in(cls, epoch):
        walk = epoch.others.get("walk")
        return None if walk is None else (cls(**walk), epoch.state)


class Backend:
    """As the sampler's package has it."""

    initialized = False

    def _check_blobs(self, blobs):
        if self.has_blobs() and blobs is None:
            raise ValueError("inconsistent use of blobs")


class WalkBackend(StepBackend, Backend):
    """Keeps the steps of a walk."""

    _ensemble_class = Walk

    def __init__(self, outdir, name=None, read_only=False, **options):
        super().__init__(
            outdir, name, read_only=read_only, dtype=None, compression_opts=None, max_step_age_s=60.0,
            max_epoch_bytes=100, options=options if read_only else {"epochs_per_file": 10, **options},
        )  # fmt: skip
        if not read_only:
            self._written = self._open_run(self._options)

    def reset(self, nwalkers):
        self._writable().reset_for(Walk(nwalkers))

    def save_step(self, **step):
        self._writable().steps.add(step, {"at": step["p"][0]})

    def get_chain(self, thin=1):
        """Those in memory only, and those in epochs: (nsteps, nwalkers)."""
        view = self._view()
        with view.snapshot:
            stored, gathered = view.split(range(view.nsteps)[::thin])
            parts = [view.snapshot.get_samples(pars=["p"])["p"][:, 0].T[stored]] if stored else []
            return np.concatenate([*parts, view.tail["p"][gathered]] if gathered else parts)


def walked(backend, nsteps, start=0):
    for i in range(start, nsteps):
        backend.save_step(p=np.full(3, float(i)))


@pytest.fixture
def backend(tmp_path):
    with WalkBackend(tmp_path / "run") as backend:
        yield backend


def test_steps_are_read_wherever_they_are(backend, tmp_path):
    """Gathered, in epochs, from the folder after closing, by another one that only reads; and they go on."""
    backend.reset(3)
    walked(backend, 15)
    for thin in (1, 4):
        np.testing.assert_array_equal(backend.get_chain(thin)[:, 1], np.arange(15)[::thin])
    backend.flush()
    with WalkBackend(tmp_path / "run", read_only=True) as reader:
        np.testing.assert_array_equal(reader.get_chain(), backend.get_chain())
        assert (reader.iteration, reader.dtype, reader.dtype_set) == (15, np.dtype(float), True)
    backend.close()
    assert backend.get_chain().shape == (15, 3)
    with WalkBackend(tmp_path / "run") as again:
        walked(again, 20, start=15)
        np.testing.assert_array_equal(again.get_chain()[:, 2], np.arange(20))
    assert backend.iteration == 20, "what is only read follows the run"
    with open_run(tmp_path / "run") as run:
        assert run.load().state == {"at": 19.0}


def test_there_is_nothing_to_read_before_the_first_step(backend):
    """An AttributeError says what to do, as the samplers' own do; it holds no snapshot."""
    for call in (backend.get_chain, lambda: backend.iteration, backend.has_blobs, lambda: backend.grow(1, None)):
        with pytest.raises(AttributeError, match="run the sampler"):
            call()
    backend.reset(3)
    assert (backend.iteration, backend.has_blobs(), backend.initialized) == (0, False, True)
    with pytest.raises(AttributeError, match="run the sampler") as refused:
        backend.get_chain()
    assert refused.traceback, "which would keep alive what wasn't released"
    assert not backend._written._service.ledger._pins


def test_blobs_are_those_of_the_run_also_when_it_goes_on(backend, tmp_path):
    """Others are refused before the first step of the sampler that goes on."""
    blobs = np.ones(3, "i4")
    backend.reset(3)
    backend.grow(1, blobs)
    backend.save_step(p=np.zeros(3), blobs=blobs)
    backend.close()
    with WalkBackend(tmp_path / "run") as again:
        with pytest.raises(ValueError, match=r"<f8.*<i4"):
            again.grow(1, np.ones(3))
        with pytest.raises(ValueError, match="inconsistent"):
            again.grow(1, None)


def test_a_reset_starts_empty(backend):
    """For another ensemble too."""
    backend.reset(3)
    walked(backend, 20)
    backend.reset(2)
    assert backend.iteration == 0
    backend.save_step(p=np.zeros(2))
    assert backend.get_chain().shape == (1, 2)


def test_what_only_reads_and_what_was_closed_take_nothing(backend, tmp_path):
    """With errors that say which; a reset of what was closed would remove what others may have added since."""
    backend.reset(3)
    walked(backend, 5)
    backend.close()
    reader = WalkBackend(tmp_path / "run", read_only=True)
    for other, error, what in ((backend, Closed, "open it again"), (reader, RuntimeError, "read_only=False")):
        calls = [lambda b: b.reset(3), lambda b: b.grow(1, None), lambda b: b.flush(), lambda b: b.status]
        for call in [*calls, lambda b: b.save_step(p=np.zeros(3))]:
            with pytest.raises(error, match=what):
                call(other)
        assert other.iteration == 5
        assert "only read" in repr(other)
        other.close()
    with pytest.raises(TypeError, match="mode"):
        WalkBackend(tmp_path / "run", read_only=True, mode="x")


def test_copies_and_closed_backends_find_the_run_wherever_the_program_goes(tmp_path, monkeypatch):
    """A folder that was named from where the program was then."""
    monkeypatch.chdir(tmp_path)
    with WalkBackend("runs", "one") as backend:
        backend.reset(3)
        walked(backend, 5)
        backend.flush()
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        for other in (copy.deepcopy(backend), pickle.loads(pickle.dumps(backend))):
            assert (other.read_only, other.name, other.iteration) == (True, "one", 5)
            other.close()
    assert backend.iteration == 5


def test_a_run_of_another_sampler_and_half_an_import_are_refused(tmp_path):
    """By those that write and those that read; the folder is free again."""
    for name, epoch, what in (
        ("other", {"samples": {"p": np.zeros((3, 1, 5))}}, "no WalkBackend wrote"),
        ("half", Walk(3).epoch({"p": np.zeros((5, 3))}, None), "cut off"),
    ):
        with DefaultBackend(outdir=tmp_path / name) as theirs:
            theirs.ingest(epoch)
        for _ in range(2):
            with pytest.raises(EpochMismatch, match=what):
                WalkBackend(tmp_path / name)
        with pytest.raises(EpochMismatch, match=what):
            WalkBackend(tmp_path / name, read_only=True).get_chain()
