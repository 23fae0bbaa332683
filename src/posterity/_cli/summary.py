"""`summary`, `plot`: what the chains say."""

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from .arguments import Burn, Chains, Json, Pars, RunFolder, Thin
from .exit_codes import Exit, Refused
from .terminal import count, figure, print_json, print_table, progress, say

if TYPE_CHECKING:
    from posterity._analysis.summaries import Summary

_SLICE = re.compile(r"(-?\d*):(-?\d*)(?::(-?\d*))?|(\d+)")


def summary(
    run: RunFolder,
    /,
    *,
    burn: Burn = 0,
    thin: Thin = 1,
    pars: Pars = None,
    chains: Chains = None,
    quantiles: Annotated[
        list[float] | None,
        Parameter(
            consume_multiple=True, validator=Number(gte=0, lte=1), help="Which quantiles; 0.05 0.5 0.95, if left out."
        ),
    ] = None,
    rhat: Annotated[float | None, Parameter(validator=Number(gt=1), help="End with 1 if an R-hat is larger.")] = None,
    ess: Annotated[float | None, Parameter(validator=Number(gte=0), help="End with 1 if an ESS is smaller.")] = None,
    json: Json = False,
) -> Exit:
    """Tell mean, standard deviation, quantiles, ESS and R-hat of each parameter.

    Parameters are read one after the other: a run may be larger than memory. Needs the extra stats.
    """
    from posterity._analysis.summaries import summarize
    from posterity._reading.run import open_run

    asked: dict[str, Any] = {"burn": burn, "thin": thin, "pars": pars, "chains": chosen_chains(chains)}
    with open_run(run) as opened, opened.snapshot() as snapshot, progress("summing up") as shown:
        try:
            found = summarize(snapshot, quantiles=quantiles or (0.05, 0.5, 0.95), progress=shown, **asked)
        except (KeyError, TypeError, ValueError) as error:
            raise Refused(str(error.args[0])) from error
    if json:
        print_json(found)
    else:
        _show(found)
    is_fine = (rhat is None or found.max_rhat <= rhat) and (ess is None or found.min_ess >= ess)
    return Exit.FINE if is_fine else Exit.NO


def _show(found: "Summary") -> None:
    titles = ["parameter", "mean", "sd", "mcse", *(f"{100 * each:g}%" for each in found.quantiles)]
    rows = [
        (
            f"{row.name} [{row.unit}]" if row.unit else row.name,
            *map(figure, (row.mean, row.sd, row.mcse, *row.quantiles)),
            *("-" if math.isnan(each) else f"{each:.0f}" for each in (row.ess_bulk, row.ess_tail)),
            "-" if math.isnan(row.rhat) else f"{row.rhat:.3f}",
        )
        for row in found.rows
    ]
    print_table([*titles, "ESS bulk", "ESS tail", "R-hat"], rows)
    say(f"{count(found.nchain, 'chain')} of {count(found.samples, 'sample')}, burn {found.burn}, thin {found.thin}")


def plot(
    run: RunFolder,
    /,
    *,
    kind: Annotated[
        Literal["trace", "rank", "autocorr", "pair"],
        Parameter(
            name=("--kind", "-k"),
            help="trace: each parameter along the run; rank: whether the chains agree; autocorr: how long they "
            "remember; pair: each parameter against each other.",
        ),
    ] = "trace",
    output: Annotated[
        Path | None,
        Parameter(name=("--output", "-o"), help="The picture: .png, .pdf or .svg. KIND.png, if left out."),
    ] = None,
    burn: Burn = 0,
    thin: Thin = 1,
    pars: Pars = None,
    chains: Chains = None,
) -> Exit:
    """Draw a picture of the chains.

    A picture that is there is replaced. Needs the extra plot. Of many parameters the first few are drawn, and
    the picture says so; --pars takes others.
    """
    from posterity._analysis.plots import save_plot
    from posterity._reading.run import open_run

    target = output or Path(f"{kind}.png")
    asked: dict[str, Any] = {"burn": burn, "thin": thin, "pars": pars, "chains": chosen_chains(chains)}
    with open_run(run) as opened, opened.snapshot() as snapshot, progress("drawing") as shown:
        try:
            save_plot(snapshot, kind, target, progress=shown, **asked)
        except (KeyError, TypeError, ValueError) as error:
            raise Refused(str(error.args[0])) from error
    say(f"wrote {target}")
    return Exit.FINE


def chosen_chains(text: str | None) -> slice:
    """What `--chains` means: a slice, as in Python, or one chain."""
    if text is None:
        return slice(None)
    match = _SLICE.fullmatch(text)
    if match is None:
        raise Refused(f"--chains must be like 0:16, 0::4 or 3; got {text!r}")
    if match[4]:
        return slice(int(match[4]), int(match[4]) + 1)
    start, stop, step = (int(each) if each else None for each in match.groups()[:3])
    if step is not None and step < 1:
        raise Refused(f"the step of --chains must be at least 1; got {text!r}")
    return slice(start, stop, step)
