"""The words of the command line that several commands take."""

from pathlib import Path
from typing import Annotated, TypeAlias

from cyclopts import Group, Parameter
from cyclopts.validators import Number

LOOK = Group("Look at runs, while they are written or after", sort_key=1)
JUDGE = Group("Judge the chains", sort_key=2)
MOVE = Group("Take runs elsewhere", sort_key=3)
CARE = Group("Look after runs", sort_key=4)

RunFolder: TypeAlias = Annotated[Path, Parameter(name="RUN", help="The run folder.")]
Json: TypeAlias = Annotated[bool, Parameter(name="--json", help="Print one JSON document, for programs.")]
Burn: TypeAlias = Annotated[
    int,
    Parameter(
        name="--burn",
        validator=Number(gte=0),
        help="Samples to leave out at the beginning, on top of what is burned for good.",
    ),
]
Thin: TypeAlias = Annotated[int, Parameter(name="--thin", validator=Number(gte=1), help="Take one sample of so many.")]
Pars: TypeAlias = Annotated[
    list[str] | None,
    Parameter(
        name="--pars",
        consume_multiple=True,
        help="Names of samples (p, ll) or of single parameters (p_0, or as the run calls them). All, if left out.",
    ),
]
Chains: TypeAlias = Annotated[
    str | None,
    Parameter(name="--chains", help="Which chains: 0:16 are the first 16, 0::4 is every fourth one. All, if left out."),
]
