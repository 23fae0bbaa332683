"""Reads real files that were changed at random; a process of its own, as it might crash, hang, or want all memory.

Says each seed before it is tried, so that the last one said is the one that did it.
"""

import contextlib
import faulthandler
import logging
import random
import resource
import shutil
import sys
import threading
import warnings
from pathlib import Path

import h5py
import msgspec
import numpy as np
import xxhash

from posterity import DefaultBackend, EpochMismatch, NotWritten, PosterityError, WriteFailed, open_run, repair, verify
from posterity._format.foreign_hdf5 import read_foreign_epoch
from posterity._model.file_names import JOURNAL
from posterity._store import journal

MOST_S = 30  # for one file, on however busy a machine
MOST_BYTES = 1 << 29  # more than what is used when it begins; a thread's stack and its arena count, too
FIXTURES = Path(__file__).parent / "fixtures"
NUMBERS = [-1, 0, 1, 2, 3, 255, 2**31, 2**32 - 1, 2**53, 2**62, 2**63 - 1, 2**64 - 1]
WORDS = ["", "../x_%d", "/etc/x_%d", "%d" * 9, "%999999999d", "x_%d\0", "x_%s", "epochs_%d.h5" * 99]


def mutated(data, rng):
    """Some bits flipped, the end cut off, a piece of the file at another place, or a field set to something."""
    data = bytearray(data)
    at, nbytes = rng.randrange(len(data)), rng.choice([1, 2, 4, 8])
    match rng.randrange(4):
        case 0:
            for _ in range(rng.choice([1, 1, 2, 4, 16])):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        case 1:
            del data[at:]
        case 2:
            start, length = rng.randrange(len(data)), rng.randrange(1, 200)
            data[at : at + length] = data[start : start + length]
        case 3:
            fields = [bytes(nbytes), b"\xff" * nbytes, b"\xff" * (nbytes - 1) + b"\x7f", rng.randbytes(nbytes)]
            data[at : at + nbytes] = rng.choice(fields)
    return data


def forged(data, rng):
    """A journal whose checksums are right, and one of whose fields isn't."""
    forgery, offset = bytearray(data[:16]), 16
    while (body := journal._body_at(memoryview(data), offset)) is not None:
        records = msgspec.msgpack.decode(body)
        if rng.random() < 0.3 or offset == 16:
            record = rng.choice(records)
            change(record, rng)
        new = msgspec.msgpack.encode(records)
        at = len(forgery)
        forgery += journal._BATCH.pack(journal._MARKER, len(new), xxhash.xxh3_64_intdigest(new, at)) + new
        offset += journal._BATCH.size + len(body)
    return forgery


def change(record, rng):
    """Set a field of a record to something that it shouldn't be."""
    at = rng.randrange(len(record))
    field = record[at]
    if isinstance(field, list) and field:
        change(field, rng)
    elif isinstance(field, bytes):
        record[at] = bytes(mutated(field, rng)) if field else b"x"
    elif isinstance(field, str):
        record[at] = rng.choice(WORDS)
    elif isinstance(field, (int, float)):
        record[at] = rng.choice(NUMBERS)


def repacked(path):
    """A file as a tool leaves it: in chunks, compressed, with text of variable length in its attributes."""
    with h5py.File(path, "w") as file:
        group = file.create_group("epoch_3")
        group.create_dataset("samples/p", data=np.arange(600.0).reshape(4, 3, 50), chunks=(2, 3, 25), compression=6)
        group.create_dataset("texts", data=["a", "bc", "größer"] * 9, dtype=h5py.string_dtype())
        group["texts"].attrs["kind"] = "array"
        group["few"] = np.arange(5)
        group["few"].attrs["dtype"] = "<i8"
    return path.read_bytes()


def read_foreign(folder, data):
    path = folder / "x.h5"
    path.write_bytes(data)
    with contextlib.suppress(IndexError):  # the epoch has another name
        read_foreign_epoch(path, -1)


def use_run(folder, name, data):
    """All that opens a run, each on the damage itself."""
    whole = folder / "whole"
    calls = [read_all, verify, go_on, repair, verify, read_all]
    for call in calls if name == JOURNAL else calls[:2]:
        outdir = folder / "run"
        if call is not verify or not outdir.exists():
            shutil.rmtree(outdir, ignore_errors=True)
            shutil.copytree(whole, outdir)
            (outdir / name).write_bytes(data)
        with contextlib.suppress(PosterityError, FileNotFoundError):
            call(outdir)
    assert {path.name for path in folder.iterdir()} <= {"whole", "run"}, "something was written elsewhere"


def go_on(outdir):
    """Whatever was let in, the writer can add to it, burn and end."""
    backend = DefaultBackend(outdir=outdir, epochs_per_file=2, retry_after_s=0.01)
    try:
        with contextlib.suppress(EpochMismatch):  # a forged layout of the samples
            backend.ingest({"samples": {"p": np.zeros((2, 3, 1))}}).flush()
            backend.set_burn(backend.burn + 3)
            backend.flush(publish=True)
        backend.close(20)
    except (WriteFailed, NotWritten) as error:
        raise AssertionError(f"it was let in, and can't be gone on with: {error}") from None


def read_all(outdir):
    with open_run(outdir) as run, run.snapshot() as snapshot:
        for index in list(snapshot.epochs[:9]):
            with contextlib.suppress(PosterityError):
                snapshot.get(index)
        snapshot.get_samples()


def limit_memory():
    threading.stack_size(1 << 20)
    with open("/proc/self/statm") as statm:
        used = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))


def main(kind, folder, first, count):
    logging.disable()
    warnings.simplefilter("ignore")
    source = FIXTURES / ("version-1" if kind == "file" else "version-3")
    foreign = {
        "jexplore": (FIXTURES / "jexplore-0.0.3" / "epochs_2.h5").read_bytes,
        "ours": (FIXTURES / "version-3" / "epochs_1.h5").read_bytes,
        "repacked": lambda: repacked(folder / "x.h5"),
    }
    name = "epochs_1.h5" if kind == "file" else JOURNAL
    data = foreign[kind]() if kind in foreign else (source / name).read_bytes()
    if kind not in foreign:
        shutil.copytree(source, folder / "whole")
    limit_memory()
    for seed in range(first, first + count):
        rng = random.Random(seed)
        sys.stdout.write(f"{seed}\n")
        faulthandler.dump_traceback_later(MOST_S, exit=True)
        new = forged(data, rng) if kind == "forged journal" else mutated(data, rng)
        try:
            if kind in foreign:
                read_foreign(folder, new)
            else:
                use_run(folder, name, new)
        except PosterityError:
            pass
    faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
