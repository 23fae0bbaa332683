"""What we know of jexplore's epochs: how to take one over without waiting for the device that computes it.

Its `to_backend` fetches every array. But its epochs are replaced, not changed, after they were handed over, and arrays
of a device can't change: so they can be taken as they are, and fetched behind the sampler's back.
jexplore isn't imported here: it is known by the module that the caller has imported.

Down the stream: `epoch`.
"""

import sys
from typing import Any


def unfetched(epoch: object, *, stats: bool) -> dict[str, object] | None:
    """The dict of an epoch of jexplore 0.0.3, with the arrays of the device.

    None: it isn't one, or none that we know; then its `to_backend` is to be asked.
    """
    if getattr(getattr(epoch, "to_backend", None), "__func__", None) is not _their_to_backend():
        return None
    parts: Any = epoch
    try:
        data: dict[str, object] = {
            "covs": parts.covs,
            "samples": {name: getattr(parts.samples, name) for name in type(parts.samples).__dataclass_fields__},
            "cycle": parts.cycle.to_backend(),
            "sampling": parts.sampling.to_backend(),
            "class": f"{type(epoch).__module__}.{type(epoch).__qualname__}",
        }
        if stats:
            data["stats"] = {name: getattr(parts.stats, name) for name in ("steps", "counts", "stats")}
    except AttributeError:
        return None
    return data


def _their_to_backend() -> object:
    """The method that all epochs of jexplore's have, unless a subclass has its own; a new object if there is none."""
    module = sys.modules.get("jexplore.sampling.epoch")
    return getattr(getattr(module, "Epoch", None), "to_backend", object())
