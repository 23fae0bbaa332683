"""The commands of `posterity`, and how each way of ending becomes an exit code."""

import os
import sys
from collections.abc import Callable, Sequence

from cyclopts import App, CycloptsError, Group, Parameter

from posterity import __version__

from . import info, maintenance, summary, tail, transfer
from .arguments import CARE, JUDGE, LOOK, MOVE
from .exit_codes import Exit, code_of
from .terminal import complain, show_log

_ABOUT = """Look at the runs that posterity keeps, and look after them.

A run is a folder in which a sampler's program stores its samples, epoch by epoch.
Looking at it disturbs nobody, while it is written too."""

_ENDS = """Where to begin:

  posterity ls                      which runs are here, and below
  posterity info RUN                what is in one of them
  posterity tail RUN                how it grows
  posterity summary RUN --burn 500  mean, sd, quantiles, ESS and R-hat
  posterity COMMAND --help          what a command takes

Exit codes:

  0  all is well                      4    somebody else writes the run
  1  the answer is no: damaged,       5    it can't be read
     lost, not converged              6    the disk failed
  2  the command line is wrong, or    7    it is there already
     an extra isn't installed         70   a bug in posterity
  3  no such run or file              130  Ctrl-C

With --json facts are for programs. Errors and progress go to standard error.
NO_COLOR=1: no colours. POSTERITY_TRACEBACK=1: where an error is from."""

app = App(
    name="posterity",
    help=_ABOUT,
    help_epilogue=_ENDS,
    help_format="plaintext",
    version=__version__,
    default_parameter=Parameter(negative=(), show_default=False),
    suppress_keyboard_interrupt=False,
)
app["--help"].group = app["--version"].group = "Help"

_COMMANDS: list[tuple[Group, str, Callable[..., Exit]]] = [
    (LOOK, "ls", info.ls),
    (LOOK, "info", info.info),
    (LOOK, "epochs", info.epochs),
    (LOOK, "tail", tail.tail),
    (JUDGE, "summary", summary.summary),
    (JUDGE, "plot", summary.plot),
    (MOVE, "export", transfer.export),
    (MOVE, "import", transfer.import_),
    (CARE, "verify", maintenance.verify),
    (CARE, "repair", maintenance.repair),
    (CARE, "compact", maintenance.compact),
]
for _at, (_group, _name, _command) in enumerate(_COMMANDS):
    app.command(_command, name=_name, group=_group, sort_key=_at, help_epilogue="")


def run(tokens: Sequence[str] | None = None) -> int:
    """Do what the words of the command line say; returns the exit code."""
    show_log()
    try:
        code = app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
    except CycloptsError as error:
        complain(f"{error}\nposterity --help tells more.")
        return Exit.USAGE
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes it once more
        return Exit.PIPE
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except Exception as error:  # noqa: BLE001  # the end of the process: what it was becomes a line and an exit code
        return _ended_by(error)
    return int(code or 0)


def _ended_by(error: Exception) -> Exit:
    code = code_of(error)
    if os.environ.get("POSTERITY_TRACEBACK"):
        sys.excepthook(type(error), error, error.__traceback__)
    elif code is Exit.BUG:
        complain(
            f"this is a bug in posterity: {error!r}\nPOSTERITY_TRACEBACK=1 in the environment shows where; please "
            f"report it"
        )
    else:
        complain(_told(error))
    return code


def _told(error: Exception) -> str:
    """What went wrong, without the number that the system has for it."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.strerror}: {os.fsdecode(error.filename)}"
    return str(error)
