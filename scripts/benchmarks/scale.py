"""What a long run costs: everything in a run of 100,000 epochs, against one of 1,000."""

import json
import subprocess
import sys
import time
from pathlib import Path

from posterity import DefaultBackend

from . import epochs
from .measure import Figure, figure, in_turns, note, quantile, ratios, seconds
from .rows import Bench, row

SIZES = (1_000, 100_000)


@row("a run of 100,000 epochs")
def long_run(bench: Bench) -> list[Figure]:
    """jexplore-like epochs, 100 a file: an ingest, `get(-1)`, a snapshot, `set_burn`, and opening it again."""
    made = epochs.jexplore_like()
    folders: dict[int, Path] = {}
    n_large = 20_000 if bench.is_quick else SIZES[1]
    for n in (SIZES[0], n_large):
        note(f"  {n} epochs")
        folders[n] = bench.new_folder()
        with DefaultBackend(outdir=folders[n], epochs_per_file=100) as backend:
            for _ in range(n):
                backend.ingest(made)
    small, large = (DefaultBackend(outdir=folder, epochs_per_file=100) for folder in folders.values())
    found = []
    with small, large:

        def ingest(backend: DefaultBackend) -> float:
            taken = [seconds(lambda: backend.ingest_nowait(made)) for _ in range(100)]
            backend.flush()
            return quantile(taken, 0.5)

        def flushed(backend: DefaultBackend) -> float:
            def one() -> None:
                backend.ingest(made)
                backend.flush()

            return quantile([seconds(one) for _ in range(20)], 0.5)

        def last(backend: DefaultBackend) -> float:
            return quantile([seconds(backend.get) for _ in range(100)], 0.5)

        def snapshot(backend: DefaultBackend) -> float:
            def one() -> None:
                with backend.snapshot():
                    pass

            return quantile([seconds(one) for _ in range(100)], 0.5)

        def set_burn(backend: DefaultBackend) -> float:
            taken = []
            for _ in range(20):
                burn = backend.burn + 1
                taken.append(seconds(lambda burn=burn: backend.set_burn(burn)))
                backend.flush()
            return quantile(taken, 0.5)

        for name, call in [
            ("an ingest", ingest),
            ("an ingest and flush", flushed),
            ("get(-1)", last),
            ("a snapshot", snapshot),
            ("set_burn", set_burn),
        ]:
            a, b = in_turns(bench.repetitions, lambda call=call: call(small), lambda call=call: call(large))
            found.append(figure(f"{name}: {n_large} / 1000", ratios(b, a), target="<= 1.2"))
            found.append(figure(f"{name}, {n_large}", [1e6 * t for t in b], unit="us"))

    def opened(folder: Path) -> float:
        start = time.perf_counter()
        backend = DefaultBackend(outdir=folder, epochs_per_file=100)
        taken = time.perf_counter() - start
        backend.close()
        return taken

    a, b = in_turns(bench.repetitions, *(lambda folder=folder: opened(folder) for folder in folders.values()))
    found.append(figure(f"opening again, {n_large}", b, unit="s", target="<= 1"))
    found.append(figure("opening again, 1000", a, unit="s"))
    return found


IMPORTS = {"ours": "from posterity import DefaultBackend", "theirs": "import h5py, anyio, msgspec"}


@row("import")
def imported(bench: Bench) -> list[Figure]:
    """The backend in a fresh process, against `import h5py, anyio, msgspec`; without the interpreter's start."""

    def taken(what: str) -> float:
        code = f"import time; s = time.perf_counter(); {what}; print(time.perf_counter() - s)"
        done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True)
        return float(json.loads(done.stdout))

    mine, theirs = in_turns(6 * bench.repetitions, *(lambda what=what: taken(what) for what in IMPORTS.values()))
    return [
        figure("ours / theirs", ratios(mine, theirs), target="<= 1.3"),
        figure("ours", [1e3 * t for t in mine], unit="ms"),
    ]
