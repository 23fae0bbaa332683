"""What the commands print with: facts to standard output, everything else to standard error.

Colours and progress bars only where a terminal shows them; `NO_COLOR` is respected. A pipe gets whole lines, however
long they are.
"""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

Progress = Callable[[int, int], None]
_WIDE = 1 << 16  # columns, for a pipe
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def console(*, of_errors: bool = False) -> Console:
    """What prints to standard output, or to standard error."""
    stream = sys.stderr if of_errors else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else _WIDE, highlight=False, emoji=False, markup=False)


def _print(table: Table) -> None:
    terminal = console()
    if terminal.is_terminal:
        terminal.print(table)
        return
    with terminal.capture() as captured:
        terminal.print(table)
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))


def say(text: str) -> None:
    """Print a line, or some, of what was asked for."""
    sys.stdout.write(f"{text}\n")


def complain(text: str) -> None:
    """Tell on standard error why something can't be done."""
    sys.stderr.write(f"posterity: {text}\n")


def note(text: str) -> None:
    """Tell on standard error what was done, beside what was asked for."""
    sys.stderr.write(f"{text}\n")


def print_json(facts: object) -> None:
    """Print one JSON document. What isn't a number (NaN) is null."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(facts, enc_hook=_plain), indent=2).decode() + "\n")


def print_json_line(facts: object) -> None:
    """Print one JSON document as one line, at once."""
    sys.stdout.write(msgspec.json.encode(facts, enc_hook=_plain).decode() + "\n")
    sys.stdout.flush()


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"{type(value).__name__} has no form in JSON")


def print_table(titles: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> None:
    """Print columns; the first `left` of them are texts, the others numbers, which end at the same place."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, title in enumerate(titles):
        table.add_column(title, justify="left" if i < left else "right", overflow="fold", no_wrap=i > 0)
    for row in rows:
        table.add_row(*map(Text, row))
    _print(table)


def facts_table(facts: Sequence[tuple[str, str]]) -> Table:
    """Names and what they are, one below the other."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(Text(name), Text(value))
    return table


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Print names and what they are."""
    _print(facts_table(facts))


@contextmanager
def progress(what: str) -> Iterator[Progress]:
    """A bar on standard error for what takes long, where a terminal shows it; give it what is done, and of how much."""
    errors = console(of_errors=True)
    if not errors.is_terminal or os.environ.get("TERM") == "dumb":
        yield lambda _done, _all: None
        return
    from rich import progress as bars

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.TaskProgressColumn(),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=errors, transient=True) as shown:
        task = shown.add_task(what, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)


class _Handler(logging.Handler):
    """What the library logs, on standard error as it is at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        note(f"posterity: {record.levelname.lower()}: {record.getMessage()}")


def show_log() -> None:
    """Show what the library warns of, as lines like our own."""
    logger = logging.getLogger("posterity")
    if not any(isinstance(handler, _Handler) for handler in logger.handlers):
        logger.addHandler(_Handler())
        logger.propagate = False


# ---- numbers as text -------------------------------------------------------------------------------------------------


def size(nbytes: float) -> str:
    """A size: 1.3 GB."""
    power = 0
    while abs(nbytes) >= 999.5 and power < len(_UNITS) - 1:
        nbytes, power = nbytes / 1000, power + 1
    return f"{nbytes:.0f} {_UNITS[power]}" if power == 0 or abs(nbytes) >= 99.95 else f"{nbytes:.1f} {_UNITS[power]}"


def rate(per_s: float) -> str:
    """A number for each second, with three digits or so."""
    return f"{per_s:,.0f}" if per_s >= 100 else f"{per_s:.3g}"


def moment(seconds: float) -> str:
    """A time, in the local zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def duration(seconds: float) -> str:
    """How long something took, in the unit that fits."""
    if seconds < 1:
        return "less than 1 s"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}" if seconds < 10 * length else f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def figure(value: float) -> str:
    """A number of a summary; a dash where there is none."""
    return "-" if value != value else f"{value:.4g}"  # noqa: PLR0124  # NaN


def count(n: int, what: str) -> str:
    """A number of things: 1 epoch, 2 epochs."""
    return f"{n:,} {what}" + ("" if n == 1 else "s")
