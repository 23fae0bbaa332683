"""An epoch object from the dict that was stored, of a class that a file may name and may not import.

Up the stream: `snapshot` and `single_file` read the dict. Down the stream: a sampler that goes on from there.
"""

import importlib
import inspect
import sys
from collections.abc import Collection

from posterity.epoch import Epoch, EpochDict
from posterity.errors import UntrustedClass


def to_epoch(data: EpochDict, eclass: type | None, pars: Collection[str] | None, trusted: Collection[str]) -> object:
    """An epoch object from a dict, of the class asked for, or of the one that the dict names.

    Raises:
        UntrustedClass: the named class isn't imported; files can't make us import code.
    """
    kind = eclass if eclass is not None else named_class(data.get("class"), trusted)
    if pars is not None:
        data = {**data, "samples": _only(data["samples"], pars)}
    statecls = getattr(kind, "statecls", None)
    if statecls is not None:
        return kind(_state_fields(data, statecls))
    from_backend = getattr(kind, "from_backend", kind)
    return from_backend(data)


def _only(samples: object, pars: Collection[str]) -> dict[str, object]:
    assert isinstance(samples, dict)
    missing = [name for name in pars if name not in samples]
    if missing:
        raise KeyError(f"the epoch has no {', '.join(missing)}; it has {', '.join(samples)}")
    return {name: samples[name] for name in pars}


def _state_fields(data: EpochDict, statecls: type) -> dict[str, object]:
    """What a class of jexplore's is made from: the names that its state has, and the covariances."""
    fields = getattr(statecls, "__dataclass_fields__", {})
    samples = data["samples"]
    assert isinstance(samples, dict)
    state = {name: array for name, array in samples.items() if name in fields}
    return state | ({"covs": data["covs"]} if "covs" in data else {})


def named_class(name: object, trusted: Collection[str]) -> type:
    """The class with a dotted name, if it is ours, imported already, or trusted by the caller."""
    if name is None:
        return Epoch
    if isinstance(name, str):
        if name in trusted:
            _import_module_of(name.split("."))
        found = _find_class(name.split("."))
        if isinstance(found, type) and hasattr(found, "to_backend"):
            return found
    raise UntrustedClass(
        f"the epoch names its class {name!r}, which isn't imported; import it first, "
        f"pass it as eclass, or name it in trusted_classes"
    )


def _import_module_of(parts: list[str]) -> None:
    """Import the module of a class, which may lie within another class."""
    for n in range(len(parts) - 1, 0, -1):
        try:
            importlib.import_module(".".join(parts[:n]))
        except ModuleNotFoundError as error:
            if str(error.name) not in [".".join(parts[:i]) for i in range(1, n + 1)]:
                raise  # the module is there, and one that it needs isn't
        else:
            return


def _find_class(parts: list[str]) -> object:
    """What a dotted name means among the modules that are imported already: the longest module name wins.

    Nobody is asked for attributes that are made when they are asked for: that may run code, or import some.
    """
    for n in range(len(parts) - 1, 0, -1):
        found: object = sys.modules.get(".".join(parts[:n]))
        if found is not None:
            for part in parts[n:]:
                found = inspect.getattr_static(found, part, None)
            return found
    return None
