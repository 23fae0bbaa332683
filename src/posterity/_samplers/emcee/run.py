"""The steps of a run, read as emcee has them: step by step, (nsteps, nwalkers, ...).

Up the stream: `step_run` has them at one moment. Down the stream: `backend` gives them back.
"""

from bisect import bisect_left
from typing import Any, TypeAlias, cast

import numpy as np

from posterity._reading.snapshot import samples_at
from posterity._samplers.step_run import StepsView
from posterity._system.arrays import Array
from posterity.epoch import Epoch

from .epochs import Blobs, Ensemble, WalkersState, as_blobs, as_steps

WalkersView: TypeAlias = StepsView[Ensemble, WalkersState]


def read_steps(view: WalkersView, name: str, at: range) -> Array:
    """The steps at some positions, without those that are burned.

    `name`: "p", "lp" or "blobs". `at`: each `at.step`-th one.
    """
    stored, gathered = view.split(at[bisect_left(at, view.snapshot.burn) :])
    parts = [_read_stored(view, name, stored)] if stored else []
    if gathered is not None:
        parts.append(view.tail[name][gathered])
    if not parts:
        shape, dtype = view.ensemble.shapes[name]
        return np.empty((0, *shape), dtype)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def read_last(view: WalkersView) -> dict[str, Array]:
    """The last step, also if it is burned: "p", "lp" and "blobs", each (nwalkers, ...)."""
    ensemble = view.ensemble
    if view.tail and len(view.tail["p"]):
        return {name: rows[-1] for name, rows in view.tail.items()}
    epoch = cast("Epoch", view.snapshot.load(eclass=Epoch))
    last = {name: array[:, :, -1:] for name, array in epoch.samples.items()}
    found = {"p": as_steps(last["p"], (ensemble.ndim,))[0], "lp": as_steps(last["lp"], ())[0]}
    if ensemble.blobs is not None:
        raw: Any = epoch.others.get("blobs")
        found["blobs"] = as_blobs(last, ensemble.blobs)[0] if raw is None else raw[-1]
    return found


def _read_stored(view: WalkersView, name: str, at: range) -> Array:
    """Steps that are in the snapshot: at least one, none of them burned."""
    blobs = view.ensemble.blobs
    if name != "blobs":
        shape = (view.ensemble.ndim,) if name == "p" else ()
        return as_steps(samples_at(view.snapshot, [name], at)[name], shape)
    assert blobs is not None
    if blobs.is_plain or blobs.fields:
        return as_blobs(samples_at(view.snapshot, list(blobs.fields or ["blobs"]), at), blobs)
    return _read_items(view, blobs, at)


def _read_items(view: WalkersView, blobs: Blobs, at: range) -> Array:
    """Blobs that are no samples, epoch by epoch."""
    found = np.empty((len(at), view.ensemble.nwalkers, *blobs.shape), blobs.numpy_dtype)
    registry, n = view.snapshot.registry, 0
    for entry in registry.entries[registry.epoch_at(at.start) :]:
        begin = at[n] - entry.first
        rows = cast("Any", view.snapshot.get(entry.index)["blobs"])[begin :: at.step][: len(at) - n]
        found[n : n + len(rows)] = rows
        n += len(rows)
        if n == len(at):
            break
    return found
