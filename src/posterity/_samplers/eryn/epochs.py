"""How an ensemble of Eryn's lies in epochs: temperatures and walkers as chains, branches and their leaves as samples.

Each temperature's walkers are chains, one temperature after the other. The leaves of a branch lie one behind the other
along dim. Eryn isn't needed for any of this. Pure.

Up the stream: `backend` and `import_eryn` have steps. Down the stream: `step_run` hands over epochs of them.
"""

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeAlias, cast

import msgspec
import numpy as np

from posterity._format.dtypes import dtype_from_text, dtype_to_text
from posterity._format.flatten import flatten
from posterity._model.metadata import Parameter
from posterity._system.arrays import Array
from posterity.epoch import Epoch, EpochDict

if TYPE_CHECKING:
    import numpy.typing as npt

Numbers: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
Dtype: TypeAlias = np.dtype[np.generic]
RandomState: TypeAlias = tuple[Any, ...]

LOG_LIKE, LOG_PRIOR, BETA, BLOBS = "ll", "lp", "beta", "blobs"
ACCEPTED, RJ_ACCEPTED, SWAPS_ACCEPTED = "accepted", "rj_accepted", "swaps_accepted"
_SAMPLER = "eryn"
_CLASS = f"{Epoch.__module__}.{Epoch.__qualname__}"


class Branch(msgspec.Struct, frozen=True):
    """A kind of model, of which a walker has up to `nleaves_max` leaves with `ndim` parameters each.

    `points` and `inds` name its samples: where the leaves are, and which of them are there.
    """

    name: str
    ndim: int
    nleaves_max: int
    points: str
    inds: str

    @property
    def dim(self) -> int:
        """Parameters of all its leaves."""
        return self.nleaves_max * self.ndim


class Place(NamedTuple):
    """Where in the samples something lies. `axes`: those of one temperature in one step, as Eryn has them."""

    samples: str
    axes: tuple[int, ...] = ()


class Ensemble(msgspec.Struct, frozen=True, kw_only=True):
    """All that `reset` fixes for a run, and the first blobs.

    `moves`: their names; None if they aren't tracked. `dtype`: of all samples that are numbers. `blobs`, `blob_dtype`:
    the axes of a walker's blobs; None without any. `info`: what else was given.
    """

    written_by: ClassVar[str] = "ErynBackend"

    nwalkers: int
    ntemps: int
    branches: tuple[Branch, ...]
    rj: bool = False
    moves: tuple[str, ...] | None = None
    key_order: dict[str, list[str | int]] | None = None
    dtype: str = "<f8"
    blobs: tuple[int, ...] | None = None
    blob_dtype: str = ""
    info: dict[str, Any] = {}

    @property
    def nchain(self) -> int:
        """Walkers at all temperatures."""
        return self.ntemps * self.nwalkers

    @property
    def chains(self) -> dict[str, int]:
        """The axes of which the axis of chains is made."""
        return {"temperature": self.ntemps, "walker": self.nwalkers}

    @property
    def shape(self) -> dict[str, tuple[int, int, int, int]]:
        """Of each branch: temperatures, walkers, leaves, parameters."""
        return {b.name: (self.ntemps, self.nwalkers, b.nleaves_max, b.ndim) for b in self.branches}

    def parameters(self, given: Mapping[str, Sequence[Parameter]]) -> dict[str, tuple[Parameter, ...]]:
        """Name of samples -> its parameters: of a branch as given, else by the order of its keys.

        Args:
            given: branch, or "p" for the first one -> the parameters of a leaf.

        Raises:
            ValueError: there is no such branch, or it has more or fewer parameters.
        """
        known = {name: branch for branch in self.branches for name in (branch.points, branch.name)}
        if strange := [name for name in given if name not in known]:
            raise ValueError(
                f"parameters are given of {strange}, and the branches are {[b.name for b in self.branches]}"
            )
        found = {branch.points: self._keys(branch) for branch in self.branches}
        found |= {known[name].points: tuple(parameters) for name, parameters in given.items()}
        for branch in self.branches:
            if len(found[branch.points]) != branch.ndim:
                names = [parameter.name for parameter in found[branch.points]]
                raise ValueError(f"the branch {branch.name!r} has {branch.ndim} parameters, and {names} are named")
        return {branch.points: _of_leaves(found[branch.points], branch.nleaves_max) for branch in self.branches}

    def _keys(self, branch: Branch) -> tuple[Parameter, ...]:
        keys = (self.key_order or {}).get(branch.name) or range(branch.ndim)
        return tuple(Parameter(key if isinstance(key, str) else f"{branch.name}_{key}") for key in keys)

    def places(self, name: str, branches: str | Iterable[str] | None) -> dict[str, "Place"]:
        """Where something lies that Eryn calls "chain", "inds", "log_like", "log_prior", "betas" or "blobs".

        Raises:
            KeyError: there is no such name, or no such branch.
        """
        walkers = (self.nwalkers,)
        if name == "chain":
            return {b.name: Place(b.points, (*walkers, b.nleaves_max, b.ndim)) for b in self.chosen(branches)}
        if name == "inds":
            return {b.name: Place(b.inds, (*walkers, b.nleaves_max)) for b in self.chosen(branches)}
        others = {"log_like": Place(LOG_LIKE, walkers), "log_prior": Place(LOG_PRIOR, walkers), "betas": Place(BETA)}
        others["blobs"] = Place(BLOBS, walkers + (self.blobs or ()))
        if name not in others:
            raise KeyError(f"there is no {name!r}; there are chain, inds, {', '.join(others)}")
        return {name: others[name]}

    def chosen_chains(self, temperature: int | None, *, one_each: bool = False) -> slice:
        """The walkers of one temperature, or of all; `one_each`: only the first of each temperature."""
        if temperature is None:
            return slice(0, None, self.nwalkers if one_each else 1)
        first = temperature * self.nwalkers
        return slice(first, first + (1 if one_each else self.nwalkers))

    def chosen(self, names: str | Iterable[str] | None) -> list[Branch]:
        """Some branches by name; all of them for None.

        Raises:
            KeyError: there is no such branch; the message names those there are.
        """
        if names is None:
            return list(self.branches)
        known = {branch.name: branch for branch in self.branches}
        wanted = [names] if isinstance(names, str) else list(names)
        if missing := [name for name in wanted if name not in known]:
            raise KeyError(f"there is no branch {', '.join(map(repr, missing))}; there are {', '.join(known)}")
        return [known[name] for name in wanted]

    @property
    def shapes(self) -> dict[str, tuple[tuple[int, ...], Dtype]]:
        """Name -> shape and dtype of all that a step has: its samples, and the proposals and swaps accepted in it."""
        counts: dict[str, tuple[int, ...]] = {ACCEPTED: (self.nchain,), SWAPS_ACCEPTED: (self.ntemps - 1,)}
        if self.rj:
            counts[RJ_ACCEPTED] = (self.nchain,)
        return {**self.samples, **{name: (shape, np.dtype(np.float64)) for name, shape in counts.items()}}

    @property
    def samples(self) -> dict[str, tuple[tuple[int, int], Dtype]]:
        """Name of samples -> the shape `(nchain, dim)` that they have in one step, and their dtype."""
        dtype = dtype_from_text(self.dtype)
        dims: dict[str, tuple[int, Dtype]] = {branch.points: (branch.dim, dtype) for branch in self.branches}
        dims |= {branch.inds: (branch.nleaves_max, np.dtype(np.bool_)) for branch in self.branches}
        dims |= dict.fromkeys((LOG_LIKE, LOG_PRIOR, BETA), (1, dtype))
        if self.blobs is not None:
            dims[BLOBS] = (math.prod(self.blobs), dtype_from_text(self.blob_dtype))
        return {name: ((self.nchain, dim), dtype) for name, (dim, dtype) in dims.items()}

    def with_blobs(self, blobs: Array) -> "Ensemble":
        """This ensemble with blobs like these, `(ntemps, nwalkers, ...)`.

        Raises:
            ValueError: it has others.
            NotStorable: they can't be stored (a `TypeError`).
        """
        flatten({BLOBS: blobs[:0]})
        shape, dtype = blobs.shape[2:], dtype_to_text(blobs.dtype)
        if self.blobs is not None and (shape, dtype) != (self.blobs, self.blob_dtype):
            raise ValueError(
                f"the blobs of each walker have shape {shape} and dtype {dtype}, and in the run they have {self.blobs} "
                f"and {self.blob_dtype}"
            )
        return msgspec.structs.replace(self, blobs=shape, blob_dtype=dtype)

    def epoch(self, steps: Mapping[str, Array], state: "Counted | None") -> EpochDict:
        """An epoch of some steps, and what was counted by the last of them. Nothing is copied.

        Args:
            steps: name -> `(nsteps, nchain, dim)` for samples; also what was accepted in each step, `(nsteps, nchain)`
                and `(nsteps, ntemps - 1)`, if that is known.
            state: None in the middle of an import: the run can't be continued from here.
        """
        counts = {name: steps[name].sum(axis=0) for name in (ACCEPTED, RJ_ACCEPTED, SWAPS_ACCEPTED) if name in steps}
        described = msgspec.structs.asdict(self)
        info = described.pop("info")
        return {
            "samples": {name: steps[name].transpose(1, 2, 0) for name in self.samples},
            "stats": counts,
            "sampling": {_SAMPLER: msgspec.json.encode(described).decode(), "info": info},
            "state": None if state is None else state._asdict(),
            "class": _CLASS,
        }

    @classmethod
    def found_in(cls, epoch: Epoch) -> "tuple[Ensemble, Counted | None] | None":
        """What an epoch says of the ensemble, and what was counted; None if it is an epoch of another sampler's."""
        if not isinstance(epoch.sampling, dict) or _SAMPLER not in epoch.sampling:
            return None
        ensemble = msgspec.json.decode(epoch.sampling[_SAMPLER], type=cls)
        counted = Counted(**epoch.state) if isinstance(epoch.state, dict) else None
        return msgspec.structs.replace(ensemble, info=epoch.sampling["info"]), counted


class Counted(NamedTuple):
    """What comes with each step besides its samples; Eryn keeps only the newest.

    `accepted`, `rj_accepted`: `(ntemps, nwalkers)`, `swaps_accepted`: `(ntemps - 1,)`, all counted from the first step
    on. `moves`: name -> acceptance fraction `(ntemps, nwalkers)`. `random_state`: of the sampler's generator;
    `numpy_state`: of NumPy's global one, from which Eryn's moves draw as well.
    """

    accepted: Numbers
    swaps_accepted: Numbers
    rj_accepted: Numbers | None = None
    moves: dict[str, Numbers] | None = None
    random_state: RandomState | None = None
    numpy_state: RandomState | None = None


def nothing_counted(ensemble: Ensemble) -> Counted:
    """What is counted before the first step."""
    each: Numbers = np.zeros((ensemble.ntemps, ensemble.nwalkers))
    moves = None if ensemble.moves is None else dict.fromkeys(ensemble.moves, each)
    return Counted(each, np.zeros(ensemble.ntemps - 1), each if ensemble.rj else None, moves)


def ensemble_of(
    nwalkers: int,
    ndims: object,
    nleaves_max: object = 1,
    ntemps: int = 1,
    branch_names: str | Sequence[str] | None = None,
    *,
    nbranches: int = 1,
    rj: bool = False,
    moves: Iterable[str] | None = None,
    key_order: Mapping[str, Iterable[str | int]] | None = None,
    dtype: Dtype,
    info: Mapping[str, object] | None = None,
) -> Ensemble:
    """The ensemble that the arguments of Eryn's `reset` mean.

    Raises:
        ValueError: they contradict each other, or a number is below 1.
        NotStorable: a name can't be one in HDF5, or an item of `info` can't be stored; the message gives it.
    """
    called = _branch_names(branch_names, nbranches)
    dims = _per_branch(ndims, called, "ndims")
    leaves = _per_branch(nleaves_max, called, "nleaves_max")
    branches = tuple(_branch(name, dims[name], leaves[name], is_first=i == 0) for i, name in enumerate(called))
    orders = None if key_order is None else {name: list(keys) for name, keys in key_order.items()}
    ensemble = Ensemble(
        nwalkers=_count(nwalkers, "nwalkers"),
        ntemps=_count(ntemps, "ntemps"),
        branches=branches,
        rj=bool(rj),
        moves=None if moves is None else tuple(moves),
        key_order=orders,
        dtype=dtype_to_text(dtype),
        info=dict(info or {}),
    )
    names: dict[str, object] = {name: 0 for branch in branches for name in (branch.points, branch.inds)}
    flatten({**names, "moves": dict.fromkeys(ensemble.moves or (), 0), "info": ensemble.info})
    return ensemble


def _branch_names(given: str | Sequence[str] | None, nbranches: int) -> list[str]:
    if given is None:
        return [f"model_{i}" for i in range(_count(nbranches, "nbranches"))]
    names = [given] if isinstance(given, str) else [str(name) for name in given]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"branch_names must be at least one name, each another one; got {names}")
    return names


def _per_branch(given: object, names: list[str], what: str) -> dict[str, int]:
    """A number for each branch, given as one, as a list, or by name."""
    if isinstance(given, Mapping):
        if set(given) != set(names):
            raise ValueError(f"{what} is for the branches {sorted(map(str, given))}, and there are {sorted(names)}")
        return {name: _count(given[name], f"{what}[{name!r}]") for name in names}
    listed = [given] if np.ndim(cast("npt.ArrayLike", given)) == 0 else list(cast("Sequence[object]", given))
    if len(listed) != len(names):
        raise ValueError(f"{what} must give a number for each of the branches {names}; got {given!r}")
    return {name: _count(number, f"{what}[{name!r}]") for name, number in zip(names, listed, strict=True)}


def _count(given: object, what: str) -> int:
    try:
        number = operator.index(given)  # type: ignore[arg-type]  # whether it is one is what is asked
    except TypeError:
        number = 0
    if number < 1:
        raise ValueError(f"{what} must be a whole number, at least 1; got {given!r}")
    return number


def _branch(name: str, ndim: int, nleaves_max: int, *, is_first: bool) -> Branch:
    """The first branch's points are the mandatory "p"."""
    points, inds = ("p", "inds") if is_first else (f"p_{name}", f"inds_{name}")
    return Branch(name, ndim, nleaves_max, points, inds)


def _of_leaves(parameters: Sequence[Parameter], nleaves: int) -> tuple[Parameter, ...]:
    """The parameters of all leaves, in the names of which the leaf is counted if there may be several."""
    if nleaves == 1:
        return tuple(parameters)
    return tuple(
        Parameter(
            f"{p.name}_{i}", f"{p.label} {i}" if p.label else "", p.unit, f"{{{p.latex}}}_{{{i}}}" if p.latex else ""
        )
        for i in range(nleaves)
        for p in parameters
    )


# ---- from arrays as Eryn has them to samples, and back ---------------------------------------------------------------


def masked(coords: Array, inds: "np.ndarray[Any, np.dtype[np.bool_]]", missing: float) -> Array:
    """A copy of the points of a branch, with `missing` for the leaves that aren't there."""
    points = coords.copy()
    points[~inds] = missing
    return points


def from_samples(samples: Array, axes: tuple[int, ...]) -> Array:
    """Samples `(nchain, dim, n)` as Eryn has them, `(n, *axes)`; of one step, `(nchain, dim)`, as `axes`. A view."""
    steps = samples.shape[2:]
    array = samples.reshape(*axes, *steps)
    return np.moveaxis(array, -1, 0) if steps else array
