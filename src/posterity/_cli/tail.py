"""`tail`: how a run grows."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from .arguments import RunFolder
from .exit_codes import Exit, Refused
from .terminal import console, count, duration, facts_table, moment, print_json_line, rate, say, size

if TYPE_CHECKING:
    from posterity._admin.follow import Pulse
    from posterity._convergence.diagnostics import Diagnostics


def tail(
    run: RunFolder,
    /,
    *,
    every: Annotated[float, Parameter(validator=Number(gt=0), help="Seconds between two looks; 2, if left out.")] = 2.0,
    once: Annotated[bool, Parameter(help="Look once, and end.")] = False,
    until_closed: Annotated[bool, Parameter(help="End when nobody writes the run any more.")] = False,
    rhat: Annotated[
        float | None, Parameter(validator=Number(gt=1), help="End when no R-hat is larger; see --ess.")
    ] = None,
    ess: Annotated[
        float | None,
        Parameter(
            validator=Number(gte=0),
            help="End when no ESS is smaller. Both must hold, if both are given. Any other end is 1 then.",
        ),
    ] = None,
    pars: Annotated[
        list[str] | None,
        Parameter(consume_multiple=True, help="Samples whose R-hat and ESS are worked out; p, if left out."),
    ] = None,
    discard: Annotated[
        float,
        Parameter(validator=Number(gte=0, lt=1), help="The part of the chains to leave out at the front: 0.5 is half."),
    ] = 0.0,
    bare: Annotated[bool, Parameter(help="Leave R-hat and ESS out: nothing is read but the journal.")] = False,
    wait: Annotated[
        float, Parameter(validator=Number(gte=0), help="Seconds to wait for a run that isn't there yet.")
    ] = 0.0,
    json: Annotated[bool, Parameter(help="Print a JSON document a line, for programs.")] = False,
) -> Exit:
    """Follow a run while it is written.

    Ctrl-C ends it. R-hat and ESS are the worst of all parameters. What is seen is what is on disk. How many epochs are
    queued is known in the writer's process alone; how long ago something was written is told here.
    """
    from posterity._admin.follow import follow
    from posterity._convergence.diagnosis import Diagnosis
    from posterity._convergence.diagnostics import Stop

    is_asked = rhat is not None or ess is not None
    if bare and is_asked:
        raise Refused("--bare leaves out what --rhat and --ess need")
    stop = Stop(rhat=math.inf if rhat is None else rhat, ess=ess or 0.0)
    diagnosis = None if bare else Diagnosis(pars or ("p",), discard=discard)
    with _shown(as_json=json) as show:
        try:
            for pulse in follow(run, every_s=every, wait_s=wait, diagnosis=diagnosis):
                show(pulse)
                if is_asked and stop.is_met(pulse.diagnostics):
                    return Exit.FINE
                if once or (until_closed and pulse.writer is None):
                    break
        except (KeyError, TypeError) as error:
            raise Refused(str(error.args[0])) from error
    return Exit.NO if is_asked else Exit.FINE


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
        *([("chains", _judged(pulse.diagnostics))] if pulse.diagnostics is not None else []),
    ]


def _line(pulse: "Pulse") -> str:
    who = f"{pulse.writer}" if pulse.writer is not None else "nobody writes it"
    parts = [moment(pulse.at), count(pulse.epochs, "epoch"), count(pulse.samples, "sample"), _speed(pulse)]
    if pulse.diagnostics is not None:
        parts.append(_judged(pulse.diagnostics))
    return "  ".join([*parts, f"written {duration(pulse.lag_s)} ago", who])


def _judged(found: "Diagnostics") -> str:
    text = f"R-hat {found.max_rhat:.3f}  ESS {found.min_ess:,.0f}  acceptance {found.mean_acceptance:.2f}"
    return text + (f"  not finite: {', '.join(found.not_finite)}" if found.not_finite else "")


def _speed(pulse: "Pulse") -> str:
    if pulse.samples_per_s is None or pulse.bytes_per_s is None:
        return "- samples/s"
    return f"{rate(pulse.samples_per_s)} samples/s, {size(pulse.bytes_per_s)}/s"
