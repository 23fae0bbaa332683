"""Measures how fast posterity is: prints a table with targets and verdicts. See docs/performance.md."""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

from . import handover, reading, sampling, scale, writing  # noqa: F401  # they add their rows
from .measure import Figure, note
from .rows import ROWS, run
from .without import OPTIMISATIONS, switch_off

PACKAGES = [
    "posterity",
    "numpy",
    "h5py",
    "anyio",
    "msgspec",
    "jexplore",
    "jax",
    "emcee",
    "orbax-checkpoint",
    "tensorstore",
]


def machine() -> dict[str, object]:
    """What was measured on."""
    found: dict[str, object] = {
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "python": sys.version.split()[0],
    }
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = {line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line}
        found["cpu"] = ", ".join(models)
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def measured(name: str, args: argparse.Namespace, without: str | None = None) -> list[Figure]:
    """One row, in a process of its own: no thread, no memory of another one is about."""
    command = [sys.executable, "-m", "benchmarks", "--one", name]
    command += ["--folder", str(args.folder)] if args.folder else []
    command += ["--quick"] if args.quick else []
    command += ["--without", without] if without else []
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False, cwd=Path(__file__).parents[1])
    if done.returncode:
        note(f"{name!r} could not be measured: it ended with {done.returncode}")
        return [Figure(what="could not be measured", value=0.0, low=0.0, high=0.0, unit="", target=">= 1")]
    return msgspec.json.decode(done.stdout, type=list[Figure])


def shown(number: float) -> str:
    """Three digits that count."""
    return f"{number:.0f}" if abs(number) >= 100 else f"{number:.3g}"


def lines(name: str, figures: list[Figure], earlier: dict[str, dict[str, object]]) -> list[str]:
    """The lines of a row, as Markdown."""
    found = []
    for figure in figures:
        verdict = "**short**" if figure.verdict == "short" else figure.verdict
        interval = f"{shown(figure.low)} to {shown(figure.high)}"
        target = figure.target or ""
        value = f"{shown(figure.value)} {figure.unit}"
        before = earlier.get(f"{name}: {figure.what}")
        against = (
            f" {figure.value / float(before['value']):.2f} |" if before and before["value"] else " |" if earlier else ""
        )
        found.append(f"| {name} | {figure.what} | {target} | {value} | {interval} | {verdict} |{against}")
        name = "" if not earlier else name
    return found


def falls_short(figure: Figure, before: list[Figure]) -> bool:
    """Whether a figure misses its target for what was switched off: it did better with it, beyond doubt."""
    was = next(other for other in before if other.what == figure.what)
    return figure.target is not None and not figure.meets(figure.value) and figure.is_worse_than(was)


def agreement(found: dict[str, Figure], earlier: dict[str, dict[str, object]]) -> str:
    """How many verdicts are those of an earlier run, and which say the opposite."""
    were = {name: msgspec.convert(figure, Figure).verdict for name, figure in earlier.items()}
    both = [name for name, figure in found.items() if figure.verdict and were.get(name)]
    opposite = [name for name in both if {found[name].verdict, were[name]} == {"met", "short"}]
    same = sum(found[name].verdict == were[name] for name in both)
    text = f"of {len(both)} verdicts {same} are those of the earlier run, {len(opposite)} are the opposite"
    return text + "".join(f"\n  {name}: {were[name]}, and now {found[name].verdict}" for name in opposite)


def main() -> int:
    """Measure the rows that are asked for."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="parts of names of rows (default: all)")
    parser.add_argument("--list", action="store_true", help="only list the rows")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument(
        "--folder", type=Path, help="where to write: on the disk to be measured (default: the system's)"
    )
    parser.add_argument("--json", type=Path, help="a file to write everything to")
    parser.add_argument("--against", type=Path, help="a JSON file of an earlier run, to compare with")
    parser.add_argument("--without", choices=OPTIMISATIONS, help="measure with this switched off")
    parser.add_argument(
        "--prove", action="store_true", help="each row also without its optimisation: it must fall short"
    )
    parser.add_argument("--gpu", action="store_true", help="measure a sampler on JAX's device instead")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        if args.without:
            switch_off(args.without)
        sys.stdout.buffer.write(msgspec.json.encode(run(args.one, args.folder, is_quick=args.quick)))
        sys.stdout.flush()
        os._exit(0)  # a peer's threads may hang on
    if args.gpu:
        command = [sys.executable, str(Path(__file__).parents[1] / "bench_gpu.py")]
        command += ["--json", str(args.json)] if args.json else []
        command += ["--folder", str(args.folder)] if args.folder else []
        return subprocess.run(command, check=False).returncode
    names = [name for name in ROWS if not args.rows or any(part in name for part in args.rows)]
    if args.list or not names:
        print("\n".join(f"{name}: {ROWS[name].what}" for name in ROWS))
        return 0 if args.list else 2
    return table(names, args)


def table(names: list[str], args: argparse.Namespace) -> int:
    """Measure, print, write, compare."""
    earlier = json.loads(args.against.read_text())["figures"] if args.against else {}
    found: dict[str, Figure] = {}
    unproven: list[str] = []
    against = " against earlier |" if earlier else ""
    print(f"| row | what | target | measured | interval | verdict |{against}\n|{'---|' * (7 if earlier else 6)}")
    for name in names:
        note(f"{name} ...")
        start = time.monotonic()
        figures = measured(name, args, args.without)
        found.update({f"{name}: {figure.what}": figure for figure in figures})
        print("\n".join(lines(name, figures, earlier)), flush=True)
        note(f"  {time.monotonic() - start:.0f} s")
        for without in ROWS[name].without if args.prove else ():
            worse = measured(name, args, without)
            print("\n".join(lines(f"{name}, without {without}", worse, earlier)), flush=True)
            if not any(falls_short(figure, figures) for figure in worse):
                unproven.append(f"{name!r} doesn't fall short without {without}")
    print("\n" + ", ".join(f"{key} {value}" for key, value in machine().items()))
    for line in unproven:
        print(line)
    if args.json:
        record = {"machine": machine(), "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "figures": found}
        args.json.write_bytes(msgspec.json.format(msgspec.json.encode(record)))
    counts = Counter(figure.verdict for figure in found.values())
    print(f"{counts['met']} met, {counts['open']} open, {counts['short']} short")
    if earlier:
        print(agreement(found, earlier))
    return 1 if unproven else 0


if __name__ == "__main__":
    sys.exit(main())
