"""`tail`: how a run grows."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from .exits import Exit
from .terminal import console, count, duration, facts_table, moment, print_json_line, rate, say, size
from .words import RunFolder

if TYPE_CHECKING:
    from posterity.pulse import Pulse


def tail(
    run: RunFolder,
    /,
    *,
    every: Annotated[float, Parameter(validator=Number(gt=0), help="Seconds between two looks.")] = 2.0,
    once: Annotated[bool, Parameter(help="Look once, and end.")] = False,
    until_closed: Annotated[bool, Parameter(help="End when nobody writes the run any more.")] = False,
    wait: Annotated[
        float, Parameter(validator=Number(gte=0), help="Seconds to wait for a run that isn't there yet.")
    ] = 0.0,
    json: Annotated[bool, Parameter(help="Print a JSON document a line, for programs.")] = False,
) -> Exit:
    """Follow a run while it is written.

    Ctrl-C ends it. What is seen is what is on disk. How many epochs are queued is known in the writer's process alone;
    how long ago something was written is told here.
    """
    from posterity.pulse import follow

    with _shown(as_json=json) as show:
        for pulse in follow(run, every_s=every, wait_s=wait):
            show(pulse)
            if once or (until_closed and pulse.writer is None):
                break
    return Exit.FINE


@contextmanager
def _shown(*, as_json: bool) -> "Iterator[Callable[[Pulse], None]]":
    """How a pulse is shown: as JSON, in place on a terminal, or else a line at each change."""
    if as_json:
        yield print_json_line
        return
    terminal = console()
    if not terminal.is_terminal or terminal.is_dumb_terminal:
        seen: list[tuple[object, ...]] = []

        def print_change(pulse: "Pulse") -> None:
            now = (pulse.epochs, pulse.burn, pulse.writer)
            if [now] != seen:
                seen[:] = [now]
                say(_line(pulse))
                console().file.flush()

        yield print_change
        return
    from rich.live import Live

    with Live(console=terminal, auto_refresh=False) as live:
        yield lambda pulse: live.update(facts_table(_facts(pulse)), refresh=True)


def _facts(pulse: "Pulse") -> list[tuple[str, str]]:
    return [
        ("written by", f"{pulse.writer}" if pulse.writer is not None else "nobody just now"),
        ("last written", f"{duration(pulse.lag_s)} ago"),
        ("epochs", f"{pulse.epochs:,}"),
        ("samples", f"{pulse.samples:,}" + (f", {pulse.samples_left:,} left" if pulse.burn else "")),
        ("speed", _speed(pulse)),
    ]


def _line(pulse: "Pulse") -> str:
    who = f"{pulse.writer}" if pulse.writer is not None else "nobody writes it"
    parts = [moment(pulse.at), count(pulse.epochs, "epoch"), count(pulse.samples, "sample"), _speed(pulse)]
    return "  ".join([*parts, f"written {duration(pulse.lag_s)} ago", who])


def _speed(pulse: "Pulse") -> str:
    if pulse.samples_per_s is None or pulse.bytes_per_s is None:
        return "- samples/s"
    return f"{rate(pulse.samples_per_s)} samples/s, {size(pulse.bytes_per_s)}/s"
