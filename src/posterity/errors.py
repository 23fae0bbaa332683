"""What can go wrong, named after the condition.

Every error of ours is a `PosterityError` and also the builtin that a caller would expect, so that code written for
another backend goes on catching what it caught.
"""


class PosterityError(Exception):
    """The root of all errors raised on purpose by posterity."""


class UnknownOption(PosterityError, TypeError):
    """An option was given that no backend has; the message names the nearest one that exists."""


class NotStorable(PosterityError, TypeError):
    """An item of an epoch can't be stored; the message gives its path in the epoch."""


class EpochMismatch(PosterityError, ValueError):
    """An epoch doesn't fit its run: another number of chains, or another dim or dtype for a name."""


class Burned(PosterityError, ValueError):
    """The epoch asked for was ingested, and all its samples have been burned since."""


class BurnLowered(PosterityError, ValueError):
    """The burn can only grow: what was discarded can't come back."""


class MailboxFull(PosterityError, BlockingIOError):
    """There is no room for the epoch now; `__cause__` is the disk's error where that is the reason."""


class RunLocked(PosterityError, BlockingIOError):
    """Somebody else writes this run; the message says who, where and since when."""


class RunExists(PosterityError, FileExistsError):
    """`mode="x"` was asked for and the folder holds a run."""


class ExportExists(PosterityError, FileExistsError):
    """There is something already where an export would go."""


class ForeignFiles(PosterityError, FileExistsError):
    """Files match `outfile_fmt` and aren't the run's."""


class Damaged(PosterityError, OSError):
    """Bytes on disk aren't those that were written; the message names the file and the place in it."""


class NewerFormat(PosterityError, OSError):
    """The file was written by a later posterity than this one."""


class SnapshotExpired(PosterityError, LookupError):
    """What the snapshot needs is gone: the run was reset or burned behind it."""


class OnlyInMemory(PosterityError, LookupError):
    """Another process was asked for epochs that only the run's writer has, in memory; `flush` has them written."""


class WriteFailed(PosterityError, OSError):
    """An attempt to write failed; nothing was dropped and the attempts go on. `__cause__` is the disk's error."""


class NotWritten(PosterityError, TimeoutError):
    """`close` ran out of time; the message names the epochs that aren't on disk. The attempts go on."""


class MissingExtra(PosterityError, ImportError):
    """An optional package is needed and isn't installed; the message names the extra that has it."""


class Closed(PosterityError, ValueError):
    """The backend was closed, by you or by the end of the process."""


class Forked(PosterityError, RuntimeError):
    """A backend was used in a forked child; only the process that opened it may use it."""


class UntrustedClass(PosterityError, LookupError):
    """A file names an epoch class that isn't imported here; pass `eclass` to say which one to use."""
