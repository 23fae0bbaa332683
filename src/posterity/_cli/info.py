"""`info`, `ls`, `epochs`: what runs there are, and what they are."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from .arguments import Json, RunFolder
from .exit_codes import Exit
from .terminal import complain, count, moment, print_facts, print_json, print_table, rate, size

if TYPE_CHECKING:
    from posterity._admin.run_info import RunInfo

MOST_NAMES = 12


def info(run: RunFolder, /, *, json: Json = False) -> Exit:
    """Tell what a run is, and who writes it.

    Only the journal is read, so it is quick for large runs, and a writer isn't disturbed.
    """
    from posterity._admin.run_info import run_info

    found = run_info(run)
    if json:
        print_json(found)
    else:
        print_facts(_facts(found))
    return Exit.FINE


def _facts(run: "RunInfo") -> list[tuple[str, str]]:
    facts = [
        ("run", run.folder),
        ("written by", _writer(run)),
        ("epochs", _with_burned(run.epochs, run.epochs_left)),
        ("samples", f"{_with_burned(run.samples, run.samples_left)}, in each of {count(run.nchain, 'chain')}"),
        ("burn", count(run.burn, "sample")),
        ("names", ", ".join(f"{each.name} ({each.dim} x {each.dtype})" for each in run.names) or "none yet"),
        *_meaning(run),
        (
            "on disk",
            f"{size(run.file_bytes)} in {count(run.files, 'file')}, {count(run.epochs_per_file, 'epoch')} each",
        ),
        ("", f"{size(run.journal_bytes)} of journal; {size(run.free_bytes)} are free"),
        ("compression", ", ".join(run.compression) or "none"),
    ]
    if run.compression and run.file_bytes:
        facts.append(("", f"{run.array_bytes / run.file_bytes:.1f} times smaller"))
    if run.dead_bytes:
        facts.append(("", f"about {size(run.dead_bytes)} were burned and can be given back: posterity compact"))
    if run.began_at is not None:
        facts.append(("began", moment(run.began_at)))
    facts.append(("last written", moment(run.changed_at)))
    if run.samples_per_s is not None and run.bytes_per_s is not None:
        facts.append(("on average", f"{rate(run.samples_per_s)} samples/s, {size(run.bytes_per_s)}/s"))
    facts.append(("format", f"version {run.format_version}, generation {run.generation}, run {run.run_id}"))
    return facts


def _writer(run: "RunInfo") -> str:
    return f"{run.writer}, since {moment(run.writer.since)}" if run.writer is not None else "nobody just now"


def _with_burned(n: int, left: int) -> str:
    return f"{n:,}" if n == left else f"{left:,} of {n:,}, the others are burned"


def _meaning(run: "RunInfo") -> list[tuple[str, str]]:
    """What the run's metadata tell."""
    metadata = run.metadata
    facts = []
    for name, parameters in metadata.parameters.items():
        titles = [parameter.title for parameter in parameters]
        more = f" and {len(titles) - MOST_NAMES} more" if len(titles) > MOST_NAMES else ""
        facts.append((f"  {name}", ", ".join(titles[:MOST_NAMES]) + more))
    if metadata.chains:
        facts.append(("chains", " x ".join(f"{n} {axis}" for axis, n in metadata.chains.items())))
    facts += [(f"  {name}", str(value)) for name, value in metadata.attributes.items()]
    if metadata.host:
        facts.append(("host", metadata.host))
    if metadata.versions:
        facts.append(("versions", ", ".join(f"{name} {version}" for name, version in metadata.versions.items())))
    return facts


def ls(folder: Annotated[Path, Parameter(name="FOLDER")] = Path(), /, *, json: Json = False) -> Exit:
    """List the runs in a folder and below it.

    Args:
        folder: where to look.
    """
    from posterity._admin.run_info import find_runs, run_info
    from posterity.errors import PosterityError

    found, code = [], Exit.FINE
    for path in find_runs(folder):
        try:
            found.append((path, run_info(path)))
        except FileNotFoundError:
            continue  # taken away just now
        except (PosterityError, OSError) as error:
            complain(f"{path}: {error}")
            code = Exit.NO
    if json:
        print_json([each for _, each in found])
        return code
    rows = [
        (
            str(path),
            str(run.writer) if run.writer is not None else "-",
            moment(run.changed_at),
            f"{run.epochs_left:,}",
            f"{run.samples_left:,}",
            f"{run.nchain}",
            size(run.file_bytes),
        )
        for path, run in found
    ]
    if rows:
        print_table(("run", "written by", "last written", "epochs", "samples", "chains", "size"), rows, left=3)
    else:
        complain(f"there is no run in {folder}, or below it")
    return code


def epochs(run: RunFolder, /, *, json: Json = False) -> Exit:
    """List the epochs of a run."""
    from posterity._admin.run_info import run_epochs

    found = run_epochs(run)
    if json:
        print_json(found)
        return Exit.FINE
    rows = [
        (
            f"{each.index}",
            each.file or "-",
            f"{each.first:,}",
            f"{each.nsamples:,}",
            f"{each.burned:,}",
            size(each.nbytes),
        )
        for each in found
    ]
    print_table(("epoch", "file", "first sample", "samples", "burned", "size"), rows, left=2)
    return Exit.FINE
