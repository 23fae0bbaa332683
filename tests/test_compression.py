"""Runs that are compressed: all that works without it works with it, mixed and changed, and however a run ends."""

import errno
import logging
import os
import shutil
import struct
import subprocess
import sys
import textwrap
import time

import h5py
import numpy as np
import pytest

from known import assert_same, epoch_dict, joined
from posterity import Damaged, DefaultBackend, MissingExtra, NewerFormat, open_run, read_epoch, repair, verify
from posterity._format import codec_trial
from posterity._format.codec import Packing
from posterity._format.file_reader import Reader
from posterity._format.layout import layout_of
from posterity._format.schema import encode_items
from posterity._model.file_names import JOURNAL
from posterity._model.metadata import Metadata
from posterity._store import journal
from posterity._system.disk import Disk
from smallchunks import small_chunks

LENGTHS = [30, 40, 50, 30]
CODECS = pytest.mark.parametrize(
    "options",
    [
        {"compression": "gzip"},
        {"compression": "gzip", "compression_level": 9, "shuffle": True},
        {"compression": "zstd"},
        {"compression": "zstd", "shuffle": True},
        {"compression": "auto"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)


@pytest.fixture(autouse=True)
def _small_chunks():
    with small_chunks():
        yield


@pytest.fixture
def without_metadata(monkeypatch):
    """Runs of which nothing is known but when they began, as earlier versions made them."""
    monkeypatch.setattr("posterity._model.metadata.begun", lambda _: Metadata(started_at=time.time()))


def epochs_of(lengths=LENGTHS):
    first, found = 0, []
    for index, nsamples in enumerate(lengths):
        found.append(epoch_dict(first, nsamples, state={"index": index, "zeros": np.zeros(500)}))
        first += nsamples
    return found


EPOCHS = epochs_of()


def write(outdir, epochs=EPOCHS, **options):
    with DefaultBackend(outdir=outdir, **{"epochs_per_file": 2, **options}) as backend:
        for epoch in epochs:
            backend.ingest(epoch)


def packings(outdir):
    """How each epoch of a run is packed, by the files themselves; None: not at all."""
    disk = Disk(outdir)
    disk.enter()
    found = {}
    for name in disk.names():
        if name.startswith("epochs_") or name.endswith(".filling"):
            with Reader.open(disk, name) as reader:
                for base, frame in reader.walk():
                    found[frame.epoch] = reader.region(base, frame).layout.packing
    disk.leave()
    return [found[index] for index in sorted(found)]


def version_of(path):
    """The format version in the head of a file, or of the journal."""
    return struct.unpack_from("<I", path.read_bytes(), 8 if path.name == JOURNAL else 72)[0]


def check(outdir, epochs=EPOCHS, burn=0):
    """All of it is there, for readers and for who goes on."""
    assert verify(outdir).is_good, str(verify(outdir))
    with open_run(outdir) as run:
        p = joined(epochs)
        np.testing.assert_array_equal(run.get_samples()["p"], p[:, :, burn:])
        np.testing.assert_array_equal(run.get_samples(verify=True)["p"], p[:, :, burn:])
        np.testing.assert_array_equal(
            run.get_samples(thin=3, mask=[2, 0], pars=["ll"])["ll"],
            joined(epochs, "ll")[[2, 0]][:, :, burn::3],
        )
        first = 0
        for index, epoch in enumerate(epochs):
            cut, nsamples = max(0, burn - first), epoch["samples"]["p"].shape[2]
            first += nsamples
            if cut < nsamples:
                samples = {name: array[:, :, cut:] for name, array in epoch["samples"].items()}
                assert_same(run.get(index), {**epoch, "samples": samples})
        assert_same(run.load().state, epochs[-1]["state"])


# ---- a run -----------------------------------------------------------------------------------------------------------


@CODECS
def test_a_run_is_compressed(tmp_path, options):
    """All reads give what was ingested; h5py opens the files, and sees gzip where there is gzip."""
    write(tmp_path, **options)
    check(tmp_path)
    assert None not in packings(tmp_path)
    with h5py.File(tmp_path / "epochs_1.h5") as file:
        p = file["epoch_0/samples/p"]
        assert p.chunks is not None
        assert (p.compression == "gzip") is (packings(tmp_path)[0].codec == "gzip")
    for index, epoch in enumerate(EPOCHS):
        assert_same(read_epoch(tmp_path / f"epochs_{index // 2 + 1}.h5", index), epoch)


@CODECS
@pytest.mark.parametrize("burn", [1, 29, 30, 35, 95, 149])
def test_burn_cuts_compressed_epochs(tmp_path, options, burn):
    """An epoch that is cut stays compressed as it was, also by who asks for no compression; the others aren't touched."""
    write(tmp_path, **options)
    was = packings(tmp_path)
    with DefaultBackend(burn, outdir=tmp_path):
        pass
    check(tmp_path, burn=burn)
    left = packings(tmp_path)
    assert left == was[len(was) - len(left) :]
    assert {version_of(path) for path in tmp_path.glob("*.h5")} == {3}


@CODECS
def test_a_run_mixes_compressions(tmp_path, options):
    """Each session has its own; it holds from the next file on."""
    epochs = epochs_of([30] * 6)
    write(tmp_path, epochs[:2])
    write(tmp_path, epochs[2:4], **options)
    write(tmp_path, epochs[4:], compression="gzip", compression_level=2)
    check(tmp_path, epochs)
    found = packings(tmp_path)
    assert found[:2] == [None, None]
    assert None not in found[2:]
    assert found[4:] == [Packing("gzip", 2, False)] * 2
    write(tmp_path, epochs[:1])
    check(tmp_path, [*epochs, epochs[0]])
    assert packings(tmp_path)[6:] == [None]


def test_a_file_that_was_begun_without_goes_on_without(tmp_path, without_metadata):
    """Who knows the first format only may be reading it; unless it has to be copied."""
    epochs = epochs_of([30] * 5)
    with DefaultBackend(outdir=tmp_path / "run", epochs_per_file=3) as backend:
        backend.ingest(epochs[0])
        backend.flush()
        shutil.copytree(tmp_path / "run", tmp_path / "left", ignore=shutil.ignore_patterns("*.lock"))
    write(tmp_path / "left", epochs[1:], epochs_per_file=3, compression="gzip")
    check(tmp_path / "left", epochs)
    assert [packing is None for packing in packings(tmp_path / "left")] == [True, True, True, False, False]
    assert [version_of(tmp_path / "left" / f"epochs_{n}.h5") for n in (1, 2)] == [1, 2]
    write(tmp_path / "run", epochs[1:], epochs_per_file=3, compression="gzip")  # published, so it is copied
    check(tmp_path / "run", epochs)
    assert [packing is None for packing in packings(tmp_path / "run")] == [True, False, False, False, False]


# ---- versions --------------------------------------------------------------------------------------------------------


def test_without_compression_nothing_changes(tmp_path, without_metadata):
    """Files and journal are of the first version, for those who know no other."""
    write(tmp_path)
    assert [version_of(tmp_path / name) for name in ("epochs_1.h5", "epochs_2.h5", JOURNAL)] == [1, 1, 1]


def test_who_does_not_know_compression_is_told(tmp_path, monkeypatch, without_metadata):
    """A run in which compression begins gets a journal of the second version before anything else."""
    write(tmp_path, EPOCHS[:2])
    write(tmp_path, EPOCHS[2:], compression="gzip")
    assert [version_of(tmp_path / name) for name in ("epochs_1.h5", "epochs_2.h5", JOURNAL)] == [1, 2, 2]
    monkeypatch.setattr(journal, "VERSION", 1)
    monkeypatch.setattr("posterity._format.file_header.METADATA_VERSION", 1)
    with pytest.raises(NewerFormat):
        open_run(tmp_path)
    with pytest.raises(NewerFormat):
        read_epoch(tmp_path / "epochs_2.h5")
    assert_same(read_epoch(tmp_path / "epochs_1.h5"), EPOCHS[1])


def test_a_journal_goes_back_when_nothing_is_compressed_any_more(tmp_path, monkeypatch, without_metadata):
    """A new one has the version that what is in it needs."""
    write(tmp_path, EPOCHS, epochs_per_file=1, compression="gzip")
    monkeypatch.setattr("posterity._store.store._is_long", lambda _: True)
    with DefaultBackend(outdir=tmp_path, epochs_per_file=1) as backend:
        assert version_of(tmp_path / JOURNAL) == 2
        backend.ingest(EPOCHS[0])
        backend.flush()
        assert version_of(tmp_path / JOURNAL) == 2
        backend.set_burn(sum(LENGTHS))
        backend.flush()
        backend.ingest(EPOCHS[1])
        backend.flush()
        assert version_of(tmp_path / JOURNAL) == 1
    assert verify(tmp_path).is_good


# ---- "auto" ----------------------------------------------------------------------------------------------------------


def told(caplog):
    return [record.getMessage() for record in caplog.records if "compression='auto'" in record.getMessage()]


@pytest.fixture
def noise():
    rng = np.random.default_rng(0)
    return [{"samples": {"p": rng.integers(0, 2**63, (3, 2, 100)).view(float)}} for _ in range(2)]


def test_auto_tells_what_it_chose(tmp_path, caplog):
    """Once, with what came of each way; and all epochs are compressed that way."""
    caplog.set_level(logging.INFO, "posterity")
    write(tmp_path, compression="auto")
    (message,) = told(caplog)
    chosen = set(packings(tmp_path))
    assert len(chosen) == 1
    assert f"{chosen.pop()} it is" in message
    assert message.count("x at") == 4


def test_auto_may_say_no(tmp_path, caplog, noise):
    """Noise isn't worth it; the run is written as without compression."""
    caplog.set_level(logging.INFO, "posterity")
    write(tmp_path, noise, compression="auto")
    assert "it isn't worth it" in told(caplog)[0]
    assert len(told(caplog)) == 1
    assert packings(tmp_path) == [None, None]


def test_auto_waits_for_an_epoch_that_can_be_compressed(tmp_path, caplog):
    """One without any large array says nothing about the run."""
    caplog.set_level(logging.INFO, "posterity")
    tiny = {"samples": {"p": np.zeros((1, 1, 2))}}
    larger = {"samples": {"p": np.zeros((1, 1, 200))}}
    with DefaultBackend(outdir=tmp_path, compression="auto") as backend:
        backend.ingest(tiny).flush()
        assert not told(caplog)
        backend.ingest(larger).flush()
        assert len(told(caplog)) == 1
    assert packings(tmp_path)[0] is None
    assert packings(tmp_path)[1] is not None


def test_auto_stays_with_what_it_chose(tmp_path, caplog, monkeypatch):
    """Who goes on with the run takes what it has; a reset begins anew."""
    write(tmp_path, compression="gzip", compression_level=7, shuffle=True)
    caplog.set_level(logging.INFO, "posterity")
    with DefaultBackend(outdir=tmp_path, compression="auto", epochs_per_file=2) as backend:
        backend.ingest(EPOCHS[0]).flush()
        assert packings(tmp_path)[-1] == Packing("gzip", 7, True)
        assert not told(caplog)
        backend.reset()
        backend.ingest(EPOCHS[0]).flush()
        assert len(told(caplog)) == 1


@pytest.mark.parametrize(
    ("parts", "seconds", "expected"),
    [
        ([0.3, 0.5, 0.31, 0.6], [4, 1, 1, 1], 2),  # hardly worse, and faster
        ([0.3, 0.5, 0.34, 0.6], [4, 1, 1, 1], 0),
        ([0.9, 0.81, 0.85, 0.95], [1, 1, 1, 1], None),
        ([0.9, 0.79, 0.85, 0.95], [1, 1, 1, 1], 1),
    ],
)
def test_the_choice(monkeypatch, parts, seconds, expected):
    """The fastest among the good ones; none if a fifth isn't saved."""
    tried = []

    def trial(packing, sample, nbytes):
        tried.append(packing)
        return codec_trial._Trial(packing, parts[len(tried) - 1], seconds[len(tried) - 1])

    monkeypatch.setattr(codec_trial, "_try", trial)
    items, leaves = layout_and_arrays(np.zeros((2, 2, 100)))
    chosen = codec_trial.choose(items, leaves)
    assert len(tried) == 4
    assert chosen == (None if expected is None else tried[expected])


def layout_and_arrays(array):
    from posterity._format.flatten import flatten

    items, leaves = flatten({"p": array})
    return layout_of(encode_items(items)), leaves


def test_auto_looks_at_little_and_at_all_places():
    """A few chunks, from the beginning to the end of each array."""
    plain, arrays = layout_and_arrays(np.arange(60_000.0).reshape(2, 3, 10_000))
    sample = codec_trial._sample(plain, arrays)
    assert 4 <= len(sample) <= 8
    firsts = [raw.view(float)[0] for _, raw in sample]
    assert firsts == sorted(firsts)
    assert firsts[0] < 6000
    assert firsts[-1] > 50_000


# ---- crashes, losses, repairs ----------------------------------------------------------------------------------------


@CODECS
def test_a_run_whose_writer_was_killed_goes_on(tmp_path, options):
    """What is in the filling file is taken over, also what the journal doesn't know."""
    with DefaultBackend(outdir=tmp_path / "run", epochs_per_file=9, **options) as backend:
        backend.ingest(EPOCHS[0]).flush()
        short = (tmp_path / "run" / JOURNAL).read_bytes()
        backend.ingest(EPOCHS[1]).flush()
        shutil.copytree(tmp_path / "run", tmp_path / "left", ignore=shutil.ignore_patterns("*.lock"))
    for folder, data in [("knows", None), ("knows not", short)]:
        shutil.copytree(tmp_path / "left", tmp_path / folder)
        if data is not None:
            (tmp_path / folder / JOURNAL).write_bytes(data)
        write(tmp_path / folder, EPOCHS[2:], epochs_per_file=9, **options)
        check(tmp_path / folder)
        assert None not in packings(tmp_path / folder)


@CODECS
def test_an_epoch_that_was_being_written_is_not_taken_in(tmp_path, options):
    """Wherever the power went: what isn't whole at the end of the filling file never was."""
    with DefaultBackend(outdir=tmp_path / "run", epochs_per_file=9, **options) as backend:
        backend.ingest(EPOCHS[0]).flush()
        short = (tmp_path / "run" / JOURNAL).read_bytes()
        end = (tmp_path / "run" / ".epochs_1.h5.filling").stat().st_size
        backend.ingest(EPOCHS[1]).flush()
        whole = (tmp_path / "run" / ".epochs_1.h5.filling").read_bytes()
        shutil.copytree(tmp_path / "run", tmp_path / "left", ignore=shutil.ignore_patterns("*.lock"))
    (tmp_path / "left" / JOURNAL).write_bytes(short)
    for at in range(end + 10, len(whole) - 8, 997):
        data = bytearray(whole)
        data[at : at + 64] = bytes(len(data[at : at + 64]))
        if data == whole:
            continue
        (tmp_path / "left" / ".epochs_1.h5.filling").write_bytes(data)
        with open_run(tmp_path / "left") as run:
            assert run.snapshot().nepochs == 1
        folder = shutil.copytree(tmp_path / "left", tmp_path / f"left-{at}")
        with DefaultBackend(outdir=folder) as backend:
            assert backend.status.epochs == 1
            np.testing.assert_array_equal(backend.get_samples(verify=True)["p"], EPOCHS[0]["samples"]["p"])


@CODECS
@pytest.mark.parametrize("burn", [0, 35])
def test_a_lost_journal_is_rebuilt(tmp_path, options, burn):
    """From the files alone, and the run goes on."""
    write(tmp_path, **options)
    with DefaultBackend(burn, outdir=tmp_path):
        pass
    (tmp_path / JOURNAL).unlink()
    write(tmp_path, EPOCHS[:1], **options)
    check(tmp_path, [*EPOCHS, EPOCHS[0]], burn=burn)


@CODECS
def test_a_damaged_journal_is_repaired(tmp_path, options):
    """`repair` writes one of the right version, from the files."""
    write(tmp_path, **options)
    data = bytearray((tmp_path / JOURNAL).read_bytes())
    data[len(data) // 2] ^= 0x41
    (tmp_path / JOURNAL).write_bytes(data)
    repair(tmp_path)
    check(tmp_path)
    assert version_of(tmp_path / JOURNAL) == 3


@CODECS
def test_a_damaged_chunk_costs_its_epoch_only(tmp_path, options, caplog):
    """It is named by `verify`; the others are read; a burn that writes the file anew doesn't hide it."""
    write(tmp_path, **options)
    disk = Disk(tmp_path)
    disk.enter()
    with Reader.open(disk, "epochs_1.h5") as reader:
        base, frame = list(reader.walk())[1]
        region = reader.region(base, frame)
    disk.leave()
    path = tmp_path / "epochs_1.h5"
    data = bytearray(path.read_bytes())
    data[base + region.layout.size + 3] ^= 0x41
    path.write_bytes(data)
    for burn in (0, 10, 35):
        if burn:
            with DefaultBackend(burn, outdir=tmp_path):
                pass
            assert "isn't what was written" in caplog.text
        (problem,) = verify(tmp_path).problems
        assert problem.epoch == 1
        assert "samples/p" in str(problem)
        with open_run(tmp_path) as run:
            with pytest.raises(Damaged, match="chunk 0 isn't what was written"):
                run.get(1)
            with pytest.raises(Damaged):
                run.get_samples()
            assert_same(run.get(2), EPOCHS[2])
        caplog.clear()


# ---- without zstd ----------------------------------------------------------------------------------------------------


def test_a_run_in_zstd_needs_the_extra(tmp_path, monkeypatch):
    """Who goes on with it is told at opening, a reader when it reads; neither takes it for damage."""
    write(tmp_path, compression="zstd")
    write(tmp_path, EPOCHS[:1])
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(MissingExtra, match=r"posterity\[zstd\]"):
        DefaultBackend(outdir=tmp_path)
    with open_run(tmp_path) as run:
        with pytest.raises(MissingExtra):
            run.get(0)
        with pytest.raises(MissingExtra):
            run.get_samples()
        assert_same(run.get(len(EPOCHS)), EPOCHS[0])
    DefaultBackend(outdir=tmp_path, mode="w", compression="auto").ingest(EPOCHS[0]).close()
    assert packings(tmp_path)[0].codec == "gzip"


# ---- the end of a process, and a fork --------------------------------------------------------------------------------

SCRIPT = """
    import os, sys
    import numpy as np
    from posterity import DefaultBackend

    backend = DefaultBackend(outdir=sys.argv[1], compression=sys.argv[2], epochs_per_file=2)
    for i in range(4):
        backend.ingest({"samples": {"p": np.repeat(np.arange(100_000.0), 8).reshape(2, 2, -1) + i}})
"""


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
def test_a_script_that_ends_without_closing_loses_nothing(tmp_path, codec):
    """At the end of the interpreter, chunks are compressed all the same."""
    script = [sys.executable, "-W", "error", "-c", textwrap.dedent(SCRIPT), str(tmp_path), codec]
    done = subprocess.run(script, capture_output=True, text=True, check=False, env=os.environ)
    assert (done.returncode, done.stderr) == (0, "")
    assert verify(tmp_path).is_good
    with open_run(tmp_path) as run:
        assert run.get_samples()["p"].shape == (2, 2, 800_000)


def test_an_error_of_the_disk_leaves_no_threads(tmp_path, monkeypatch):
    """A write that fails in the middle of an epoch is tried again, with a file of its own."""
    write_at, left = Disk.write_at, [3]

    def failing(disk, fd, offset, buffers):
        left[0] -= 1
        if left[0] == 0:
            raise OSError(errno.EIO, "Input/output error")
        write_at(disk, fd, offset, buffers)

    monkeypatch.setattr(Disk, "write_at", failing)
    write(tmp_path, compression="gzip", retry_after_s=0.0)
    assert left[0] < 0
    check(tmp_path)
