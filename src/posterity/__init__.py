"""posterity: an asynchronous background-writer service for the samples of long-running samplers."""

from .aio import AsyncBackend
from .aioreads import AsyncSnapshot
from .audit import Findings, Problem, verify
from .backend import DefaultBackend
from .diagnosis import Diagnosis
from .diagnostics import Diagnostics, Stop
from .epoch import Epoch
from .errors import (
    Burned,
    BurnLowered,
    Closed,
    Damaged,
    EpochMismatch,
    ExportExists,
    ForeignFiles,
    Forked,
    MailboxFull,
    MissingExtra,
    NewerFormat,
    NotStorable,
    NotWritten,
    OnlyInMemory,
    PosterityError,
    RunExists,
    RunLocked,
    SnapshotExpired,
    UnknownOption,
    UntrustedClass,
    WriteFailed,
)
from .export import export_netcdf, export_zarr
from .metadata import Metadata, Parameter
from .receipts import Promise, Receipt
from .repairs import Repairs, repair
from .run import AsyncRun, Run, open_run
from .singlefile import read_epoch
from .snapshot import Snapshot
from .states import State
from .status import Status

__version__ = "0.1.0"

__all__ = [
    "AsyncBackend",
    "AsyncRun",
    "AsyncSnapshot",
    "BurnLowered",
    "Burned",
    "Closed",
    "Damaged",
    "DefaultBackend",
    "Diagnosis",
    "Diagnostics",
    "Epoch",
    "EpochMismatch",
    "ExportExists",
    "Findings",
    "ForeignFiles",
    "Forked",
    "MailboxFull",
    "Metadata",
    "MissingExtra",
    "NewerFormat",
    "NotStorable",
    "NotWritten",
    "OnlyInMemory",
    "Parameter",
    "PosterityError",
    "Problem",
    "Promise",
    "Receipt",
    "Repairs",
    "Run",
    "RunExists",
    "RunLocked",
    "Snapshot",
    "SnapshotExpired",
    "State",
    "Status",
    "Stop",
    "UnknownOption",
    "UntrustedClass",
    "WriteFailed",
    "export_netcdf",
    "export_zarr",
    "open_run",
    "read_epoch",
    "repair",
    "verify",
]
