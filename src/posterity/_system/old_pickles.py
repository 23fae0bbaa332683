"""Pickles of earlier versions name classes by the modules that they were in: these are found where they are now.

A program that kept a status, a summary or a lazy dataset loads it again with a later posterity. Nobody imports by these
names: they are no modules, and aren't listed.
"""

import sys
from functools import partial
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED: dict[str, str] = {
    "posterity.audit": "posterity._admin.verify",
    "posterity.compaction": "posterity._admin.compact",
    "posterity.diagnostics": "posterity._convergence.diagnostics",
    "posterity.draws": "posterity._reading.draws",
    "posterity.metadata": "posterity._model.metadata",
    "posterity.repairs": "posterity._admin.repair",
    "posterity.runinfo": "posterity._admin.run_info",
    "posterity.states": "posterity._model.states",
    "posterity.status": "posterity._writing.status",
    "posterity.variables": "posterity._reading.variables",
    "posterity.xarrays": "posterity._reading.xarray_data",
}


class _MovedModules:
    """Finds a module under its old name; its members are those of the module that it is now."""

    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in MOVED else None  # type: ignore[arg-type]  # a loader by its methods

    def create_module(self, spec: ModuleSpec) -> None:
        pass

    def exec_module(self, module: ModuleType) -> None:
        module.__getattr__ = partial(getattr, import_module(MOVED[module.__name__]))  # type: ignore[method-assign]


def find_moved() -> None:
    """Have them found from now on, where nothing else has such a name."""
    sys.meta_path.append(_MovedModules())
