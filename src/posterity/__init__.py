"""posterity: an asynchronous background-writer service for the samples of long-running samplers.

Each name is imported when it is first asked for: `import posterity`, and so `posterity --help`, waits neither for NumPy
nor for h5py.
"""

import typing as _typing
from importlib import import_module as _import_module

from ._system.old_pickles import find_moved as _find_moved

if _typing.TYPE_CHECKING:
    from ._admin.compact import Compaction, compact
    from ._admin.repair import Repairs, repair
    from ._admin.run_info import EpochInfo, RunInfo, find_runs, run_epochs, run_info
    from ._admin.verify import Findings, Problem, verify
    from ._convergence.diagnosis import Diagnosis
    from ._convergence.diagnostics import Diagnostics, Stop
    from ._format.single_file import read_epoch
    from ._interop.export import export_netcdf, export_zarr
    from ._interop.import_jexplore import import_jexplore
    from ._interop.imported import Imported
    from ._model.metadata import Metadata, Parameter
    from ._model.states import State
    from ._reading.async_run import AsyncRun
    from ._reading.async_snapshot import AsyncSnapshot
    from ._reading.run import Run, open_run
    from ._reading.snapshot import Snapshot
    from ._writing.awaited import AsyncBackend
    from ._writing.blocking import DefaultBackend
    from ._writing.receipts import Promise, Receipt
    from ._writing.status import Status
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

__version__ = "0.1.0"

__all__ = [
    "AsyncBackend",
    "AsyncRun",
    "AsyncSnapshot",
    "BurnLowered",
    "Burned",
    "Closed",
    "Compaction",
    "Damaged",
    "DefaultBackend",
    "Diagnosis",
    "Diagnostics",
    "Epoch",
    "EpochInfo",
    "EpochMismatch",
    "ExportExists",
    "Findings",
    "ForeignFiles",
    "Forked",
    "Imported",
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
    "RunInfo",
    "RunLocked",
    "Snapshot",
    "SnapshotExpired",
    "State",
    "Status",
    "Stop",
    "UnknownOption",
    "UntrustedClass",
    "WriteFailed",
    "compact",
    "export_netcdf",
    "export_zarr",
    "find_runs",
    "import_jexplore",
    "open_run",
    "read_epoch",
    "repair",
    "run_epochs",
    "run_info",
    "verify",
]

if not _typing.TYPE_CHECKING:  # a type checker knows the names from above, and no others
    _MODULES = {
        "_writing.awaited": ["AsyncBackend"],
        "_reading.async_run": ["AsyncRun"],
        "_reading.async_snapshot": ["AsyncSnapshot"],
        "_admin.verify": ["Findings", "Problem", "verify"],
        "_writing.blocking": ["DefaultBackend"],
        "_admin.compact": ["Compaction", "compact"],
        "_convergence.diagnosis": ["Diagnosis"],
        "_convergence.diagnostics": ["Diagnostics", "Stop"],
        "epoch": ["Epoch"],
        "errors": [
            "BurnLowered",
            "Burned",
            "Closed",
            "Damaged",
            "EpochMismatch",
            "ExportExists",
            "ForeignFiles",
            "Forked",
            "MailboxFull",
            "MissingExtra",
            "NewerFormat",
            "NotStorable",
            "NotWritten",
            "OnlyInMemory",
            "PosterityError",
            "RunExists",
            "RunLocked",
            "SnapshotExpired",
            "UnknownOption",
            "UntrustedClass",
            "WriteFailed",
        ],
        "_interop.export": ["export_netcdf", "export_zarr"],
        "importing": ["Imported", "import_jexplore"],
        "_model.metadata": ["Metadata", "Parameter"],
        "_writing.receipts": ["Promise", "Receipt"],
        "_admin.repair": ["Repairs", "repair"],
        "_reading.run": ["Run", "open_run"],
        "_admin.run_info": ["EpochInfo", "RunInfo", "find_runs", "run_epochs", "run_info"],
        "_format.single_file": ["read_epoch"],
        "_reading.snapshot": ["Snapshot"],
        "_model.states": ["State"],
        "_writing.status": ["Status"],
    }
    _HOMES = {name: module for module, names in _MODULES.items() for name in names}

    _DOORS = ["emcee", "epoch", "errors", "eryn", "importing", "kernels", "plots", "pulse", "pytrees", "summaries"]

    def __getattr__(name):
        module = _HOMES.get(name)
        if module is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(_import_module(f".{module}", __name__), name)
        return value

    def __dir__():  # what completion offers: no room of ours
        return sorted({*(name for name in globals() if name.startswith("__")), *__all__, *_DOORS})


_find_moved()
