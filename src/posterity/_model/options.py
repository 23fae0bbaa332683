"""The options of a backend, checked at once, where they are given.

`Options` is the one table of them. Each face has them in its signature too, for `help`, completion and type checkers; a
test keeps these alike.

Up the stream: whoever opens a backend. Down the stream: every module that needs to know what was asked for.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from posterity._format.codec import DEFAULT_LEVEL, LEVELS, Codec, Packing, check_codec
from posterity.errors import UnknownOption

from .bounds import check_count
from .file_names import check_format
from .metadata import Given, Parameter, check_attributes, check_chains, check_parameters, check_size

Mode = Literal["a", "x", "w"]
OnFull = Literal["wait", "raise"]
Compression = Literal[Codec, "auto"]


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What a backend was opened with. Sizes in bytes, times in seconds.

    `outfile_fmt` None: what the run in the folder has, and `DEFAULT_FMT` for a new one. `compression_level` None: the
    codec's own.
    """

    burn: int = 0
    outdir: Path = Path("./")
    outfile_fmt: str | None = None
    epochs_per_file: int = 1
    inmem_epochs: int = 0
    save_stats: bool = True
    compression: Compression | None = None
    compression_level: int | None = None
    shuffle: bool = False
    mode: Mode = "a"
    max_pending_bytes: int = 1 << 30
    max_pending_epochs: int = 10_000
    max_device_bytes: int = 1 << 30
    on_full: OnFull = "wait"
    retry_after_s: float = 0.1
    retry_at_most_s: float = 30.0
    warn_free_bytes: int = 1 << 30
    exit_timeout_s: float = 60.0
    flush_on_sigterm: bool = False
    reader_threads: int = 4
    diagnose: bool | tuple[str, ...] = False
    trusted_classes: tuple[str, ...] = ()
    parameters: dict[str, tuple[Parameter, ...]] | None = None
    chains: dict[str, int] | None = None
    attributes: dict[str, Any] | None = None  # msgspec takes `object` for a class of its own

    @property
    def diagnosed(self) -> tuple[str, ...]:
        """The names of the samples that are diagnosed while the run is written."""
        return self.diagnose if isinstance(self.diagnose, tuple) else ("p",) if self.diagnose else ()

    @property
    def packing(self) -> Packing | None:
        """How large arrays are compressed; None also if that is to be measured."""
        if self.compression is None or self.compression == "auto":
            return None
        level = self.compression_level
        return Packing(self.compression, DEFAULT_LEVEL[self.compression] if level is None else level, self.shuffle)

    @property
    def given(self) -> Given:
        """What was said of the numbers' meaning."""
        return Given(self.parameters, self.chains, self.attributes)


_LEAST = {
    "burn": 0,
    "epochs_per_file": 1,
    "inmem_epochs": 0,
    "max_pending_bytes": 1,
    "max_pending_epochs": 1,
    "max_device_bytes": 1,
    "retry_after_s": 0.0,
    "retry_at_most_s": 0.0,
    "reader_threads": 1,
    "warn_free_bytes": 0,
    "exit_timeout_s": 0.0,
}


_DESCRIBING: dict[str, Callable[[object], object]] = {
    "parameters": check_parameters,
    "chains": check_chains,
    "attributes": check_attributes,
}


def options_in(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options among the parameters of a face: `options_in(locals())`, before it does anything else.

    A face has them in its signature, and `**unknown: Never` behind them: what is unknown is an error for a type
    checker, and is told here. So no option's name is written once more to hand its value on, and none is forgotten.

    Raises:
        UnknownOption: something is in `unknown`; the nearest of the face's parameters is named.
    """
    check_unknown(given)
    return {name: given[name] for name in Options.__struct_fields__ if name in given}


def check_unknown(given: Mapping[str, Any]) -> None:
    """Refuse what is in the `unknown` of a function: `check_unknown(locals())`.

    Raises:
        UnknownOption: something is; the nearest of the function's parameters is named.
    """
    _refuse_unknown(given["unknown"], [name for name in given if name not in {"self", "__class__", "unknown"}])


def _refuse_unknown(given: Iterable[str], names: Sequence[str]) -> None:
    for name in given:
        if name not in names:
            import difflib  # noqa: PLC0415  # only for who mistypes

            near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"the options are {', '.join(names)}."
            raise UnknownOption(f"there is no option {name!r}; {hint}")


def parse_options(burn: int, outdir: str | os.PathLike[str], given: Mapping[str, object]) -> Options:
    """Check what was given at opening.

    Raises:
        UnknownOption: a name that isn't an option; the nearest one is named.
        TypeError, ValueError: a value of the wrong type, or out of its range.
        MissingExtra: the compression asked for needs a package that isn't installed.
    """
    _refuse_unknown(given, Options.__struct_fields__)
    values = {**given, "burn": _plain(burn), "outdir": os.fspath(outdir)}
    if isinstance(values["outdir"], bytes):
        values["outdir"] = os.fsdecode(values["outdir"])
    for name, value in values.items():
        check = _DESCRIBING.get(name)
        values[name] = _plain(value) if check is None else None if value is None else check(value)
    try:
        options = msgspec.convert(values, Options, dec_hook=_decode)
    except msgspec.ValidationError as error:
        raise TypeError(f"an option has the wrong type: {error}") from error
    _check_ranges(options)
    _check_compression(options)
    check_size(options.given)
    if options.outfile_fmt is not None:
        check_format(options.outfile_fmt)
    return options


def _plain(value: object) -> object:
    """A NumPy or other integer as a Python one: `burn` is often computed with NumPy."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        return value
    return value.__index__()


def _decode(kind: type, value: object) -> object:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise TypeError(f"expected {kind.__name__}, got {value!r}")


def _check_ranges(options: Options) -> None:
    for name, least in _LEAST.items():
        value = getattr(options, name)
        if not value >= least:
            raise ValueError(f"{name} must be at least {least}, got {value!r}")
        if isinstance(value, int) and isinstance(least, int):
            check_count(name, value, least)


def _check_compression(options: Options) -> None:
    codec, level = options.compression, options.compression_level
    if codec is None or codec == "auto":
        if level is not None or options.shuffle:
            raise ValueError(
                f"compression_level and shuffle go with compression='gzip' or 'zstd'; compression is {codec!r}"
            )
        return
    levels = LEVELS[codec]
    if level is not None and level not in levels:
        raise ValueError(f"compression_level of {codec!r} must be {levels[0]} to {levels[-1]}, got {level!r}")
    check_codec(codec)
