"""What we know of jexplore's epochs: how to take one over without waiting for its device, and what its numbers mean.

Its `to_backend` fetches every array. But its epochs are replaced, not changed, after they were handed over, and arrays
of a device can't change: so they can be taken as they are, and fetched behind the sampler's back.
jexplore isn't imported here: it is known by the module that the caller has imported.

Down the stream: `epoch`.
"""

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from posterity._model.metadata import Metadata, Parameter

_KNOWN = {
    "ll": Parameter("ll", "log-likelihood", latex=r"\ln L"),
    "lp": Parameter("lp", "log-prior", latex=r"\ln \pi"),
    "k": Parameter("k", "model"),
}


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


def described(arrays: Mapping[str, object], nchain: int) -> Metadata | None:
    """What an epoch says of its numbers, if it was sampled with jexplore's `SamplingMH` or a class made from it.

    The temperatures of each walker lie one behind the other: chain `i` is of walker `i // ntemps`. No component of `p`
    has a name.

    Args:
        arrays: of the epoch, by path.
        nchain: the number of chains of its samples.
    """
    nwalker, temps = arrays.get("sampling/nwalker"), arrays.get("sampling/temps")
    if not (isinstance(nwalker, np.ndarray) and isinstance(temps, np.ndarray) and "sampling/class" in arrays):
        return None
    if nwalker.dtype.kind not in "iu" or temps.dtype.kind != "f" or nwalker.ndim != 0 or temps.ndim != 1:
        return None
    if int(nwalker) * temps.size != nchain:
        return None
    return Metadata(
        parameters={name: (known,) for name, known in _KNOWN.items() if f"samples/{name}" in arrays},
        chains={"walker": int(nwalker), "temperature": temps.size},
        attributes={"temperatures": temps.tolist()},
    )
