"""posterity: an asynchronous background-writer service for the samples of long-running samplers."""

import importlib
from typing import TYPE_CHECKING

from .aio import AsyncBackend
from .aioreads import AsyncSnapshot
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
from .metadata import Metadata, Parameter
from .receipts import Promise, Receipt
from .run import AsyncRun, Run, open_run
from .singlefile import read_epoch
from .snapshot import Snapshot
from .states import State
from .status import Status

if TYPE_CHECKING:
    from .audit import Findings, Problem, verify
    from .export import export_netcdf, export_zarr
    from .repairs import Repairs, repair

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

# What no sampler needs while it runs is imported when it is asked for: a sampler starts sooner.
_LATER = {
    "Findings": "audit",
    "Problem": "audit",
    "Repairs": "repairs",
    "export_netcdf": "export",
    "export_zarr": "export",
    "repair": "repairs",
    "verify": "audit",
}


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f".{_LATER[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
