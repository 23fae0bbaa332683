"""What the process ends with. The numbers are a contract: scripts go by them."""

from enum import IntEnum

from posterity.errors import (
    Damaged,
    ForeignFiles,
    MissingExtra,
    NewerFormat,
    NotWritten,
    RunExists,
    RunLocked,
    SnapshotExpired,
    WriteFailed,
)


class Exit(IntEnum):
    """Exit codes, beside those of the shell: 128 and the number of a signal."""

    FINE = 0
    """All went well, and the answer is yes."""
    NO = 1
    """The answer is no: damage was found, something is lost, or the chains haven't converged."""
    USAGE = 2
    """The command line makes no sense, names what isn't in the run, or needs an extra that isn't installed."""
    NO_RUN = 3
    """There is no such run, folder or file."""
    IN_USE = 4
    """Somebody else writes the run, or changed it meanwhile: try again later."""
    UNREADABLE = 5
    """It can't be read: damaged so that nothing can be told, or written by a later posterity."""
    DISK = 6
    """The disk is full, broken, or closed to you."""
    EXISTS = 7
    """What should be made is there already; nothing was overwritten."""
    BUG = 70
    """A bug in posterity."""
    INTERRUPTED = 130
    """Ctrl-C."""
    PIPE = 141
    """Who read the output has gone."""


class Refused(Exception):
    """A command can't do what the words of the command line say."""


_CODES: list[tuple[tuple[type[BaseException], ...], Exit]] = [
    ((Refused, MissingExtra), Exit.USAGE),
    ((RunLocked, SnapshotExpired), Exit.IN_USE),
    ((RunExists, ForeignFiles, FileExistsError), Exit.EXISTS),
    ((FileNotFoundError, NotADirectoryError), Exit.NO_RUN),
    ((Damaged, NewerFormat), Exit.UNREADABLE),
    ((WriteFailed, NotWritten, OSError), Exit.DISK),
]


def code_of(error: BaseException) -> Exit:
    """The exit code for an error that ended a command."""
    return next((code for kinds, code in _CODES if isinstance(error, kinds)), Exit.BUG)
