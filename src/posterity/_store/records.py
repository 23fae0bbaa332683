"""The records of the journal: each is one change of the run. Their tags and fields are the format on disk.

Up the stream: `store` and `data_files` make them. Down the stream: `journal` writes them, `catalog` takes them in.
"""

import typing
from typing import TypeAlias

import msgspec

from posterity._model.bounds import MOST

# What a number may be, looked at when a record is decoded: a forged one mustn't overflow what it is put into later.
Count: TypeAlias = typing.Annotated[int, msgspec.Meta(ge=0, le=MOST)]
Number: TypeAlias = typing.Annotated[int, msgspec.Meta(ge=1, le=MOST)]
Turn: TypeAlias = typing.Annotated[int, msgspec.Meta(ge=0, le=1 << 31)]  # of 4 bytes in the head of a file
RunId: TypeAlias = typing.Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]


class Record(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One change of the run."""


class Began(Record, frozen=True, tag=0):
    """The run starts empty: its first record, or a reset."""

    run_id: RunId
    generation: Turn
    outfile_fmt: str
    burn: Count
    asked_burn: Count
    began_at: float


class Grouped(Record, frozen=True, tag=1):
    """From epoch `start` on, files take `epochs_per_file` epochs, the first of them goes to file `number`."""

    start: Count
    number: Number
    epochs_per_file: Number


class Described(Record, frozen=True, tag=2):
    """A layout, numbered in the order in which they come; `spec` is what `layout.layout_of` takes."""

    spec: bytes


class Place(msgspec.Struct, frozen=True, array_like=True):
    """Where an epoch's numbers are: in file `number`, as it was after `rewrite` rewrites, from offset `base` on.

    `cut`: how many of its first samples aren't there. `sums`: a checksum of 8 bytes for each array.
    """

    number: Number
    rewrite: Turn
    base: Count
    cut: Count
    layout: Count
    sums: bytes


class Stored(Record, frozen=True, tag=3):
    """An epoch is in its file and synced."""

    index: Count
    first: Count
    nsamples: Count
    nbytes: Count
    place: Place


class Passed(Record, frozen=True, tag=4):
    """An epoch was burned before it was written."""

    index: Count
    first: Count
    nsamples: Count


class Burned(Record, frozen=True, tag=5):
    """Samples before position `burn` are discarded."""

    burn: Count
    asked_burn: Count


class Published(Record, frozen=True, tag=6):
    """A file is complete and about to get its name; it ends before epoch `stop`. Number 0: so are all before `stop`."""

    number: Count
    stop: Count


class Rewritten(Record, frozen=True, tag=7):
    """A file was written anew, and is about to take the place of the old one; `places` of the epochs from `start` on.

    `filling`: more epochs will be added to it. An epoch without a place lost all its samples.
    """

    number: Number
    rewrite: Turn
    start: Count
    filling: bool
    places: list[Place | None]


class Dropped(Record, frozen=True, tag=8):
    """The files of the epochs before `stop` are about to be removed."""

    stop: Count


class Annotated(Record, frozen=True, tag=9):
    """What the numbers mean, as `metadata.encode` has it; the last one holds."""

    text: str


AnyRecord: TypeAlias = (
    Began | Grouped | Described | Stored | Passed | Burned | Published | Rewritten | Dropped | Annotated
)
