"""The names of all files in a run folder: made here, and told apart here.

A file of epochs is named by `outfile_fmt` and its number. It has other, hidden names while it fills up, is written
anew, or is set aside for those who still read it. Beside them lie the journal and the lock file.
"""

import re
from collections.abc import Collection, Iterable

DEFAULT_FMT = "epochs_%d.h5"
JOURNAL = "posterity.journal"
NEW_JOURNAL = ".posterity.journal.new"
LOCK = "posterity.lock"

_FIELD = re.compile(r"%(?:%|0?\d{0,3}[di])")


def check_format(fmt: str) -> None:
    """Refuse a format that doesn't have one field, for the file's number, in a plain name: files stay in the folder.

    Raises:
        ValueError: the message shows it, and says what it must have.
    """
    fields = [field for field in _FIELD.findall(fmt) if field != "%%"]
    if len(fields) != 1 or "%" in _FIELD.sub("", fmt):
        raise ValueError(f"outfile_fmt must have one %d for the file's number, got {fmt!r}")
    if "/" in fmt or "\0" in fmt or "\\" in fmt or fmt.startswith("."):
        raise ValueError(f"outfile_fmt must be a plain, visible file name, got {fmt!r}; use outdir for the folder")
    if len((fmt % 10**12).encode()) > 200:
        raise ValueError(f"outfile_fmt is too long for a file name: {fmt!r}")


def file_name(fmt: str, number: int) -> str:
    """The published name of file `number`, 1 being the first."""
    return fmt % number


def file_pattern(fmt: str) -> re.Pattern[str]:
    """A pattern that matches the published names of all files, with the number as its group."""
    parts = re.split(r"(%%|%0?\d*[di])", fmt)
    return re.compile("".join(_part_pattern(part) for part in parts))


def _part_pattern(part: str) -> str:
    if part == "%%":
        return "%"
    if part.startswith("%"):
        return r"[ 0]*(\d+)"
    return re.escape(part)


def filling_name(fmt: str, number: int) -> str:
    """The name of a file while it is filling up."""
    return f".{file_name(fmt, number)}.filling"


def rewrite_name(fmt: str, number: int, rewrite: int) -> str:
    """The name of a file that was written anew, until it takes the place of the old one."""
    return f".{file_name(fmt, number)}.{rewrite}.new"


def aside_name(fmt: str, number: int, generation: int) -> str:
    """The name of a file that a reset removed while somebody still read from it."""
    return f".{file_name(fmt, number)}.g{generation}.old"


def numbered(names: Iterable[str], fmt: str) -> dict[int, str]:
    """The published names among `names`, by number."""
    pattern = file_pattern(fmt)
    found: dict[int, str] = {}
    for name in names:
        match = pattern.fullmatch(name)
        if match is not None and file_name(fmt, int(match.group(1))) == name:
            found[int(match.group(1))] = name
    return found


def candidates(names: list[str], fmt: str) -> list[str]:
    """The names among `names` of files that may hold epochs of a run."""
    filling = re.compile(rf"\.({file_pattern(fmt).pattern})\.filling")
    return [*numbered(names, fmt).values(), *(name for name in names if filling.fullmatch(name))]


def hidden(names: Iterable[str], fmt: str) -> list[tuple[int, str]]:
    """The hidden names among `names` that files of epochs may have, each with the file's number."""
    pattern = re.compile(rf"\.({file_pattern(fmt).pattern})\.(filling|\d+\.new|g\d+\.old)")
    return [(int(match.group(2)), name) for name in names if (match := pattern.fullmatch(name)) is not None]


def set_aside_name(name: str, names: Collection[str]) -> str:
    """A name for a file that is kept beside the run: its own with `.aside` behind it, none of `names`."""
    return next(each for n in range(len(names) + 1) if (each := f"{name}.aside{n or ''}") not in names)
