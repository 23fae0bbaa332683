"""The command line, `posterity`. It tells what the library knows, and decides nothing.

`app` has the commands, which are in `info`, `tail`, `summary`, `transfer` and `maintenance`; `arguments` are those that
several take, `terminal` is what they print with, `exit_codes` what the process ends with. NumPy, h5py and whatever else
takes time are imported in the commands that need them, not before: `posterity --help` waits for none of it.
"""

import sys
from collections.abc import Sequence

_PACKAGES = ("cyclopts", "rich")


def main(tokens: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    Args:
        tokens: the words of the command line; None: those that the process was started with.
    """
    try:
        from .app import run
    except ModuleNotFoundError as error:
        if error.name not in _PACKAGES:
            raise
        sys.stderr.write(f"posterity: the command line needs {error.name}: pip install 'posterity[cli]'\n")
        return 2  # what `exit_codes.USAGE` is
    return run(tokens)
