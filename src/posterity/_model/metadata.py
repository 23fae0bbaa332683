"""What the numbers of a run mean, and where they come from: names of parameters, the layout of chains, provenance.

Pure, but for `begun`, which looks at the clock and at what this process is. As text it is JSON, the same in the journal
and in the files.

Up the stream: `options`, and an epoch that knows its parameters. Down the stream: `registry` carries it; `journal` and
`file_header` store it; plots and exports use it.
"""

import json
import math
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeAlias

import msgspec
import numpy as np

from posterity.errors import Damaged

CHAIN = "chain"
MAX_BYTES = 1 << 24
_MAX_DEPTH = 32
_SAMPLERS = ("jexplore", "emcee", "eryn", "blackjax", "numpyro", "jax")
_SHOWN = 8


class Given(NamedTuple):
    """What was given at opening; None: it wasn't."""

    parameters: dict[str, tuple["Parameter", ...]] | None = None
    chains: dict[str, int] | None = None
    attributes: dict[str, object] | None = None


class Parameter(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One component of the samples: `Parameter("m1", "Primary mass", "Msun", latex="m_1")`.

    Args:
        name: short and unique among its fellows; what one types.
        label: what stands beside an axis; by default the name.
        unit: as text.
        latex: what to set in math mode, without dollars.
    """

    name: str
    label: str = ""
    unit: str = ""
    latex: str = ""

    def __post_init__(self) -> None:
        for field in self.__struct_fields__:
            text = getattr(self, field)
            if not isinstance(text, str):
                raise TypeError(f"the {field} of a parameter must be text, got {text!r}")
            _check_text(text, f"the {field} of a parameter")
        if not self.name:
            raise ValueError("a parameter needs a name, got ''")

    @property
    def title(self) -> str:
        """Its label, or else its name, with the unit: "Primary mass [Msun]"."""
        return (self.label or self.name) + (f" [{self.unit}]" if self.unit else "")

    @property
    def tex(self) -> str:
        """As `title`, for matplotlib and its like: its LaTeX between dollars, if there is some."""
        return (f"${self.latex}$" + (f" [{self.unit}]" if self.unit else "")) if self.latex else self.title


Parameters: TypeAlias = Iterable[str | Parameter] | Mapping[str, Iterable[str | Parameter]]
"""The option `parameters`, as it may be given: of "p", or by the name of samples."""


class Metadata(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the numbers of a run mean, and where they come from.

    Args:
        parameters: name of samples -> a `Parameter` for each of its components along dim; may lack names.
        chains: the axes of which the axis of chains is made, outermost first, with their sizes; empty: it is one axis.
        attributes: whatever the user wants to keep: text, numbers, bools, None, lists and dicts of them.
        versions: of what wrote the run when it began: name -> version.
        host: where that was.
        started_at: when that was, in seconds since 1970; 0: it isn't known.
    """

    parameters: dict[str, tuple[Parameter, ...]] = {}
    chains: dict[str, int] = {}
    attributes: dict[str, Any] = {}  # msgspec takes `object` for a class of its own
    versions: dict[str, str] = {}
    host: str = ""
    started_at: float = 0.0

    def __post_init__(self) -> None:
        for name, parameters in self.parameters.items():
            names = Counter(parameter.name for parameter in parameters)
            if len(names) < len(parameters):
                twice = names.most_common(1)[0][0]
                raise ValueError(f"parameters[{name!r}] has {twice!r} twice; each name must be another one")
        for axis, size in self.chains.items():
            if not axis or size < 1:
                raise ValueError(f"an axis of chains has a name and at least one member, got {axis!r}: {size}")

    @property
    def nchain(self) -> int | None:
        """How many chains the layout has; None if none is given."""
        return math.prod(self.chains.values()) if self.chains else None

    def parameters_of(self, name: str, dim: int) -> tuple[Parameter, ...]:
        """The parameters of some samples with `dim` components: as given, else named `p_0`, `p_1`, or `ll` for one."""
        given = self.parameters.get(name)
        if given is not None and len(given) == dim:
            return given
        return (Parameter(name),) if dim == 1 else tuple(Parameter(f"{name}_{i}") for i in range(dim))

    def chain_axes(self, nchain: int) -> dict[str, int]:
        """The axes of which the axis of chains is made, outermost first; without a layout it is "chain"."""
        return dict(self.chains) if self.nchain == nchain else {CHAIN: nchain}

    def misfit(self, nchain: int, dims: Mapping[str, int], absent: Collection[str] = ()) -> str | None:
        """How it contradicts the number of chains and the dim of each name of samples; None if it doesn't.

        `absent`: names that needn't be there: not every epoch has all.
        """
        for name, parameters in self.parameters.items():
            if name not in dims and name not in absent:
                return f"parameters names those of {name!r}, and the samples are {', '.join(dims)}"
            if len(parameters) != dims.get(name, len(parameters)):
                return f"parameters names {len(parameters)} of {name!r}, and samples[{name!r}] has dim {dims[name]}"
        if self.nchain not in (None, nchain):
            return f"chains={self.chains} makes {self.nchain} chains, and samples['p'] has {nchain}"
        return None

    @property
    def brief(self) -> str:
        """Names and layout in a line, each behind a "; ": "; p: m1, chi; 4 temperature x 16 walker"."""
        parts = [f"{name}: {shortened([each.name for each in given])}" for name, given in self.parameters.items()]
        return "".join(f"; {part}" for part in [*parts, *self._layout()])

    def __str__(self) -> str:
        lines = [f"{name}: {shortened([each.title for each in given])}" for name, given in self.parameters.items()]
        lines += [f"chains: {layout}" for layout in self._layout()]
        lines += [f"{name}: {value!r}" for name, value in self.attributes.items()]
        return "\n".join([*lines, *self._provenance()])

    def _layout(self) -> list[str]:
        return [" x ".join(f"{size} {axis}" for axis, size in self.chains.items())] if self.chains else []

    def _provenance(self) -> list[str]:
        parts = []
        if self.started_at:
            parts.append(f"started {datetime.fromtimestamp(self.started_at, UTC):%Y-%m-%d %H:%M:%S} UTC")
        if self.host:
            parts.append(f"on {self.host}")
        if self.versions:
            parts.append("with " + ", ".join(f"{name} {version}" for name, version in self.versions.items()))
        return [" ".join(parts)] if parts else []


def shortened(words: Sequence[str]) -> str:
    """Words as one text, the first few of many."""
    more = [f"and {len(words) - _SHOWN} more"] if len(words) > _SHOWN else []
    return ", ".join([*words[:_SHOWN], *more])


# ---- what is given at opening ----------------------------------------------------------------------------------------


def check_parameters(given: object) -> dict[str, tuple[Parameter, ...]]:
    """The option `parameters`: a list of names or `Parameter`s, of "p"; or a dict of such lists.

    Raises:
        TypeError, ValueError: the message says what is wrong with which one.
    """
    lists = given if isinstance(given, Mapping) else {"p": given}
    parameters: dict[str, tuple[Parameter, ...]] = {}
    for name, members in lists.items():
        if not isinstance(name, str) or isinstance(members, (str, bytes)) or not isinstance(members, Iterable):
            raise TypeError(
                f"parameters is a list of names, or a dict: name of samples -> list of names; got {name!r}: {members!r}"
            )
        parameters[name] = tuple(_parameter(name, i, member) for i, member in enumerate(members))
    Metadata(parameters=parameters)
    return parameters


def _parameter(name: str, i: int, given: object) -> Parameter:
    if isinstance(given, Parameter):
        return given
    if not isinstance(given, str):
        raise TypeError(f"parameters[{name!r}][{i}] must be a name or a Parameter, got {given!r}")
    return Parameter(str(given))


def check_chains(given: object) -> dict[str, int]:
    """The option `chains`: axis -> size, outermost first.

    Raises:
        TypeError, ValueError: the message says what is wrong with which one.
    """
    if not isinstance(given, Mapping):
        raise TypeError(f"chains is a dict: axis -> size, outermost first; got {given!r}")
    chains: dict[str, int] = {}
    for axis, size in given.items():
        if not isinstance(axis, str) or isinstance(size, bool) or not hasattr(size, "__index__"):
            raise TypeError(f"chains is a dict: axis -> size, an int; got {axis!r}: {size!r}")
        chains[str(axis)] = size.__index__()
    Metadata(chains=chains)
    return chains


def check_attributes(given: object) -> dict[str, object]:
    """The option `attributes`, made plain: text, bools, numbers, None, lists and dicts of them.

    Raises:
        TypeError, ValueError: the message gives the path of what can't be kept.
    """
    if not isinstance(given, Mapping):
        raise TypeError(f"attributes is a dict: name -> value; got {given!r}")
    return {_key(name, "attributes"): _plain(value, f"attributes[{name!r}]", 0) for name, value in given.items()}


def check_size(given: Given) -> None:
    """Refuse what is too much to be kept in each file of a run.

    Raises:
        ValueError: as text it is larger than `MAX_BYTES`.
    """
    metadata = Metadata(parameters=given.parameters or {}, chains=given.chains or {}, attributes=given.attributes or {})
    nbytes = len(encode(metadata).encode())
    if nbytes > MAX_BYTES:
        raise ValueError(
            f"parameters, chains and attributes take {nbytes} bytes as text, and at most {MAX_BYTES} are kept in each "
            f"file; put large things into the samples, or into a file beside them"
        )


def _key(name: object, path: str) -> str:
    if not isinstance(name, str):
        raise TypeError(f"the names in {path} must be text, got {name!r}")
    return _check_text(str(name), f"a name in {path}")


def _plain(value: object, path: str, depth: int) -> object:
    if depth > _MAX_DEPTH:
        raise ValueError(f"{path[:80]}... nests more than {_MAX_DEPTH} deep")
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, float)):
        return value if value is None or isinstance(value, bool) else float(value)
    if isinstance(value, int):
        if not -(2**63) <= value < 2**64:
            raise ValueError(f"{path} doesn't fit into 64 bits; keep it as text")
        return int(value)
    if isinstance(value, str):
        return _check_text(str(value), path)
    if isinstance(value, Mapping):
        return {_key(name, path): _plain(member, f"{path}[{name!r}]", depth + 1) for name, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(member, f"{path}[{i}]", depth + 1) for i, member in enumerate(value)]
    raise TypeError(
        f"{path} must be text, a number, a bool, None, or a list or dict of them; got a {type(value).__qualname__}"
        + (": use tolist()" if isinstance(value, np.ndarray) else "")
    )


def _check_text(text: str, what: str) -> str:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{what} can't be written as UTF-8: {text!r}") from error
    return text


# ---- beginning and going on ------------------------------------------------------------------------------------------


def begun(given: Given) -> Metadata:
    """The metadata of a run that begins now, here."""
    versions = {"posterity": _version_of("posterity"), "python": platform.python_version()}
    versions |= {name: _version_of(name) for name in ("numpy", "h5py", *_SAMPLERS)}
    return Metadata(
        parameters=given.parameters or {},
        chains=given.chains or {},
        attributes=given.attributes or {},
        versions={name: version for name, version in versions.items() if version},
        host=os.uname().nodename,
        started_at=time.time(),
    )


def _version_of(name: str) -> str:
    """The version of a package that is imported; none if it isn't, or has none."""
    module = sys.modules.get(name)
    if module is None:
        return ""
    version = getattr(module, "__version__", None)
    if isinstance(version, str):
        return version
    import importlib.metadata  # noqa: PLC0415  # it is slow, and few need it

    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def continued(known: Metadata, given: Given) -> Metadata:
    """The metadata of a run that goes on: what is given now takes the place of what was there, all else stays.

    Raises:
        ValueError: names of parameters or the layout of chains that the run has are given as others.
    """
    named = {**known.parameters}
    for name, parameters in (given.parameters or {}).items():
        named[name] = _renewed(name, named[name], parameters) if name in named else parameters
    chains = known.chains if given.chains is None else given.chains
    if known.chains and list(chains.items()) != list(known.chains.items()):
        raise ValueError(
            f"the run has chains={known.chains}, and {chains} was given; leave it out: the layout belongs to the run "
            f"until reset()"
        )
    attributes = {**known.attributes, **(given.attributes or {})}
    return msgspec.structs.replace(known, parameters=named, chains=chains, attributes=attributes)


def completed(known: Metadata, learned: Metadata) -> Metadata:
    """What is known, and what an epoch says where nothing is."""
    return msgspec.structs.replace(
        known,
        parameters={**known.parameters, **{n: p for n, p in learned.parameters.items() if n not in known.parameters}},
        chains=known.chains or learned.chains,
        attributes={**known.attributes, **{n: v for n, v in learned.attributes.items() if n not in known.attributes}},
    )


def _renewed(name: str, known: Sequence[Parameter], given: Sequence[Parameter]) -> tuple[Parameter, ...]:
    """What is empty in `given` stays as it is known."""
    names = [[parameter.name for parameter in each] for each in (known, given)]
    if names[0] != names[1]:
        raise ValueError(
            f"the run's parameters of {name!r} are {shortened(names[0])}, and {shortened(names[1])} was given; leave "
            f"them out: names belong to the run until reset(), labels don't"
        )
    pairs = zip(known, given, strict=True)
    return tuple(
        Parameter(new.name, new.label or old.label, new.unit or old.unit, new.latex or old.latex) for old, new in pairs
    )


# ---- as text ---------------------------------------------------------------------------------------------------------


def encode(metadata: Metadata) -> str:
    """Metadata as JSON; floats that aren't numbers are `NaN` and `Infinity`, as Python's `json` has them."""
    return json.dumps(msgspec.to_builtins(metadata), ensure_ascii=False, separators=(",", ":"))


def decode(text: str | bytes) -> Metadata:
    """The metadata that `encode` wrote.

    Raises:
        Damaged: it makes no sense.
    """
    try:
        return msgspec.convert(json.loads(text), Metadata)
    except (ValueError, RecursionError, msgspec.ValidationError) as error:
        raise Damaged(f"the run's metadata make no sense: {error}") from error
