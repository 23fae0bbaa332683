"""How the steps of an ensemble of walkers, emcee's, lie in epochs: each walker is a chain. Pure.

An epoch has the samples "p" (nwalkers, ndim, nsteps) and "lp", the log-probability (nwalkers, 1, nsteps). Blobs are
samples as well where they are numbers: "blobs" (nwalkers, n, nsteps), or "blobs.<field>" for each field of a structured
dtype. Other blobs, text for example, are the item "blobs" of the epoch (nsteps, nwalkers, ...). `stats` has how many
proposals of each walker were accepted in the epoch; `state` what emcee needs to go on; `emcee` says how to put the
blobs together again, and that emcee's steps are in the epoch.

Up the stream: `backend` and `import_emcee` have steps. Down the stream: `step_run` hands over epochs of them.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import msgspec
import numpy as np

from posterity._format.dtypes import dtype_from_text, dtype_to_text
from posterity._format.flatten import flatten
from posterity._samplers.step_buffer import Shapes
from posterity._system.arrays import Array
from posterity.epoch import Epoch, EpochDict
from posterity.errors import NotStorable

_CLASS = f"{Epoch.__module__}.{Epoch.__qualname__}"


class WalkersState(NamedTuple):
    """What emcee needs to go on from a step, besides the step.

    `random_state`: of its random number generator. `accepted`: (nwalkers,), how many proposals of each walker were
    accepted since the run began.
    """

    random_state: object
    accepted: Array


class Blobs(msgspec.Struct, frozen=True):
    """What blobs a step has: of each walker an array of this shape; `dtype` as text."""

    dtype: str
    shape: tuple[int, ...] = ()

    @classmethod
    def like(cls, blobs: Array) -> "Blobs":
        """Those of one step, (nwalkers, ...).

        Raises:
            NotStorable: Python objects among them (a `TypeError`).
        """
        if blobs.dtype.hasobject:
            raise NotStorable(
                f"blobs of dtype {blobs.dtype} hold Python objects, which can't be stored: pass blobs_dtype to the "
                f"sampler, for example [('log_prior', float), ('name', 'S20')]"
            )
        flatten({"blobs": blobs[:0]})  # raises if the type can't be stored
        return cls(dtype_to_text(blobs.dtype), tuple(blobs.shape[1:]))

    @property
    def numpy_dtype(self) -> np.dtype[np.generic]:
        """The dtype."""
        return dtype_from_text(self.dtype)

    @property
    def fields(self) -> dict[str, np.dtype[np.generic]] | None:
        """Name of the samples -> dtype of the field, if each field is numbers; a field may be an array."""
        dtype = self.numpy_dtype
        if dtype.fields is None or self.shape:
            return None
        fields = {f"blobs.{name}": dtype.fields[name][0] for name in dtype.names or ()}
        is_plain = all(_is_numbers(field.base) and math.prod(field.shape) for field in fields.values())
        return fields if is_plain and not any("/" in name or "\0" in name for name in fields) else None

    @property
    def is_plain(self) -> bool:
        """Whether they are an array of numbers."""
        return _is_numbers(self.numpy_dtype) and math.prod(self.shape) > 0


def _is_numbers(dtype: np.dtype[np.generic]) -> bool:
    """Whether samples may be of this dtype."""
    return dtype.kind in "?biuf" or (dtype.kind == "c" and dtype.itemsize <= 16)


class Ensemble(msgspec.Struct, frozen=True):
    """What all steps of a run have in common. `dtype`: of positions and log-probabilities."""

    written_by: ClassVar[str] = "EmceeBackend"

    nwalkers: int
    ndim: int
    dtype: np.dtype[np.generic]
    blobs: Blobs | None = None

    @property
    def shapes(self) -> Shapes:
        """Of each array of a step: its shape and dtype."""
        shapes: dict[str, tuple[tuple[int, ...], np.dtype[np.generic]]] = {
            "p": ((self.nwalkers, self.ndim), self.dtype),
            "lp": ((self.nwalkers,), self.dtype),
            "accepted": ((self.nwalkers,), np.dtype(bool)),
        }
        if self.blobs is not None:
            shapes["blobs"] = ((self.nwalkers, *self.blobs.shape), self.blobs.numpy_dtype)
        return shapes

    def with_blobs(self, blobs: Array) -> "Ensemble":
        """This ensemble with blobs like those of a step, (nwalkers, ...).

        Raises:
            ValueError: it has others.
            NotStorable: Python objects among them (a `TypeError`).
        """
        given = Blobs.like(blobs)
        if self.blobs is None:
            return msgspec.structs.replace(self, blobs=given)
        if self.blobs.shape != given.shape:
            raise ValueError(f"the blobs have shape {given.shape}, and in the run they have {self.blobs.shape}")
        return self

    def epoch(self, steps: Mapping[str, Array], state: WalkersState | None) -> EpochDict:
        """An epoch of some steps: "p", "lp", and if they are there "accepted" and "blobs": (nsteps, nwalkers, ...).

        Nothing is copied but fields of blobs. Without a state a run can't be continued from it.
        """
        samples: dict[str, object] = {"p": steps["p"].transpose(1, 2, 0), "lp": steps["lp"].T[:, None]}
        epoch: EpochDict = {"samples": samples}
        if self.blobs is not None:
            fields = self.blobs.fields
            if fields is not None:
                blobs: Any = steps["blobs"]
                samples |= {name: _as_samples(blobs[name.partition(".")[2]]) for name in fields}
            elif self.blobs.is_plain:
                samples["blobs"] = _as_samples(steps["blobs"])
            else:
                epoch["blobs"] = steps["blobs"]
        if "accepted" in steps:
            epoch["stats"] = {"accepted": steps["accepted"].sum(axis=0)}
        epoch["state"] = None if state is None else state._asdict()
        epoch["emcee"] = {"blobs": None if self.blobs is None else msgspec.structs.asdict(self.blobs)}
        epoch["class"] = _CLASS
        return epoch

    @classmethod
    def found_in(cls, epoch: Epoch) -> "tuple[Ensemble, WalkersState | None] | None":
        """What an epoch says of the ensemble, and the state in it; None if it is an epoch of another sampler's."""
        mark = epoch.others.get("emcee")
        if not isinstance(mark, dict) or "lp" not in epoch.samples:
            return None
        p = epoch.samples["p"]
        blobs = None if mark["blobs"] is None else Blobs(mark["blobs"]["dtype"], tuple(mark["blobs"]["shape"]))
        state = WalkersState(**epoch.state) if isinstance(epoch.state, dict) else None
        return cls(p.shape[0], p.shape[1], p.dtype, blobs), state


def _as_samples(blobs: Array) -> Array:
    """(nsteps, nwalkers, ...) as (nwalkers, n, nsteps)."""
    return np.moveaxis(blobs.reshape(*blobs.shape[:2], -1), 0, -1)


def as_steps(samples: Array, shape: tuple[int, ...]) -> Array:
    """The opposite of `_as_samples`."""
    return np.moveaxis(samples, -1, 0).reshape(samples.shape[2], samples.shape[0], *shape)


def as_blobs(samples: dict[str, Array], blobs: Blobs) -> Array:
    """Blobs that are samples, as emcee has them."""
    fields = blobs.fields
    if fields is None:
        return as_steps(samples["blobs"], blobs.shape)
    nwalkers, _, nsteps = next(iter(samples.values())).shape
    found = np.empty((nsteps, nwalkers), blobs.numpy_dtype)
    for name, dtype in fields.items():
        found[name.partition(".")[2]] = as_steps(samples[name], dtype.shape)
    return found
