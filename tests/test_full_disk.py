"""A file system that really is full: nothing is lost, everybody is told, and all goes on when there is room."""

import errno
import subprocess
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest

from known import epoch_dict, joined
from posterity import DefaultBackend, MailboxFull, State, WriteFailed, verify
from posterity._format import file_writer

NSAMPLES = 2000  # about 150 kB an epoch


class NotMountedError(Exception):
    """No file system may be mounted here; the message says why."""


@contextmanager
def mounted(folder, megabytes):
    """A small file system in memory."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "posterity-tests", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise NotMountedError("there is no mount here") from error
    if done.returncode:
        raise NotMountedError(f"no file system may be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of two megabytes."""
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(mounted(tmp_path / "small", 2))
        except NotMountedError as error:
            pytest.skip(str(error))
        yield folder


@pytest.mark.parametrize("epochs_per_file", [1, 3, 100])
@pytest.mark.parametrize("compression", [None, "gzip", "zstd"])
def test_a_full_disk(small_disk, epochs_per_file, compression, caplog):
    """The epochs stay in memory, reads have all of them, and each is written exactly once when there is room again."""
    check_full(small_disk, epochs_per_file, compression)
    assert "writing failed" in caplog.text


def test_a_full_disk_and_large_epochs(small_disk, monkeypatch):
    """The same for epochs that are written slab by slab."""
    monkeypatch.setattr(file_writer, "_WORTH_PUSHING", 1 << 14)
    check_full(small_disk, 3, None)


def check_full(small_disk, epochs_per_file, compression):
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(1 << 20))
    options = {"epochs_per_file": epochs_per_file, "max_pending_epochs": 4, "on_full": "raise", "retry_after_s": 0.01}
    options["compression"] = compression
    epochs = []
    with DefaultBackend(outdir=small_disk / "run", **options) as backend:
        with pytest.raises(MailboxFull) as caught:
            while len(epochs) < 100:
                backend.ingest(epoch_dict(NSAMPLES * len(epochs), NSAMPLES))
                epochs.append(epoch_dict(NSAMPLES * len(epochs), NSAMPLES))
                backend._service.ledger.wait(lambda: backend.status.queued_epochs == 0, 0.2)
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.errno == errno.ENOSPC
        assert backend.status.state is State.WAITING
        assert "No space left" in backend.status.last_error
        with pytest.raises(WriteFailed):
            backend.flush()
        np.testing.assert_array_equal(backend.get_samples()["p"], joined(epochs))
        ballast.unlink()
        backend._service.ledger.wait(lambda: backend.status.queued_epochs == 0)
        backend.flush()
        assert backend.status.state is State.RUNNING
        assert backend.status.last_error is None
    with DefaultBackend(outdir=small_disk / "run", epochs_per_file=epochs_per_file) as backend:
        np.testing.assert_array_equal(backend.get_samples(verify=True)["p"], joined(epochs))
    assert verify(small_disk / "run").is_good
    nbytes = sum(path.stat().st_size for path in (small_disk / "run").glob("*.h5"))
    assert (nbytes < joined(epochs).nbytes) is (compression is not None)


def test_a_burn_makes_room(small_disk):
    """On a full disk a burn frees whole files, and the epochs that wait are written without anybody's help."""
    options = {"max_pending_epochs": 4, "on_full": "raise", "retry_after_s": 0.01}
    epochs = []
    with DefaultBackend(outdir=small_disk / "run", **options) as backend:
        with pytest.raises(MailboxFull):
            while len(epochs) < 100:
                backend.ingest(epoch_dict(NSAMPLES * len(epochs), NSAMPLES))
                epochs.append(epoch_dict(NSAMPLES * len(epochs), NSAMPLES))
                backend._service.ledger.wait(lambda: backend.status.queued_epochs == 0, 0.2)
        backend.set_burn(6 * NSAMPLES)
        assert backend._service.ledger.wait(lambda: backend.status.queued_epochs == 0, 30)
        backend.flush()
        np.testing.assert_array_equal(backend.get_samples(verify=True)["p"], joined(epochs)[:, :, 6 * NSAMPLES :])
