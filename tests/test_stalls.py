"""A disk that stalls holds up neither a thread that only samples, nor one that reads."""

import threading
import time

from known import epoch_dict
from posterity import DefaultBackend
from posterity.disk import Disk

DELAY_S = 0.5


def test_a_stalling_disk_stalls_nobody_else(tmp_path, monkeypatch):
    """With each write and sync taking long, no gap of a sampling thread and no small read comes near to one of them."""
    with DefaultBackend(outdir=tmp_path / "run", epochs_per_file=2) as backend:
        backend.ingest(epoch_dict(0, 10))
        backend.flush()
        backend.get(0)
        stalls = threading.Semaphore(0)

        def late(name):
            call = getattr(Disk, name)

            def stall(*args, **kwargs):
                if threading.current_thread().name.startswith("posterity-io"):
                    stalls.release()
                    time.sleep(DELAY_S)
                return call(*args, **kwargs)

            return stall

        for name in ("write_at", "sync", "sync_data", "sync_names"):
            monkeypatch.setattr(Disk, name, late(name))
        gaps, reads = [], []
        backend.ingest(epoch_dict(10, 200_000))  # 15 MB
        for _ in range(3):
            stalls.acquire()
            gaps.append(longest_gap(DELAY_S / 2))
            start = time.perf_counter()
            backend.get(0)
            reads.append(time.perf_counter() - start)
        monkeypatch.undo()
    assert sorted(gaps)[1] < DELAY_S / 2
    assert sorted(reads)[1] < DELAY_S / 2


def longest_gap(seconds):
    """The longest time between two steps of a thread that does nothing but Python."""
    now = start = time.perf_counter()
    longest = 0.0
    while now - start < seconds:
        before, now = now, time.perf_counter()
        longest = max(longest, now - before)
    return longest
