"""The file that holds an epoch, whatever its name is just now.

Up the stream: `catalog` says which one it is. Down the stream: all that reads epochs, and what decides where to go on.
"""

import errno

from posterity._format.file_header import FileHead
from posterity._format.file_reader import Reader
from posterity._model.file_names import file_name
from posterity._model.registry import FileSpan
from posterity._system.disk import Disk

from .catalog import Catalog, pack_sums
from .records import Began, Place


def open_place(disk: Disk, catalog: Catalog, place: Place) -> Reader:
    """The file that a place is in, whatever its name is just now.

    Raises:
        FileNotFoundError: no file under any of its names is the one that the place means.
    """
    began = catalog.began
    head = FileHead(began.run_id, began.generation, place.number, place.rewrite)
    for name in catalog.names_of(place.number, place.rewrite):
        try:
            reader = Reader.open(disk, name)
        except FileNotFoundError:
            continue
        is_it = False
        try:
            found = reader.read_head()
            is_it = head.is_same(found) or (found is None and _has_epoch(reader, began, place))
        finally:
            if not is_it:
                reader.close()
        if is_it:
            return reader
    raise FileNotFoundError(
        errno.ENOENT, "the file isn't there", str(disk.folder / file_name(began.outfile_fmt, place.number))
    )


def is_there(disk: Disk, catalog: Catalog, span: FileSpan) -> bool:
    """Whether a file has all bytes that its epochs should be in, right or wrong; true if it has none."""
    places = [place for place in catalog.places[span.start : span.stop] if place is not None]
    if not places:
        return True
    try:
        with open_place(disk, catalog, places[0]) as reader:
            return reader.size >= max(catalog.region(place).end for place in places)
    except FileNotFoundError:
        return False


def _has_epoch(reader: Reader, began: Began, place: Place) -> bool:
    """Whether a file whose first bytes are damaged has the epoch all the same."""
    frame = reader.frame_at(place.base)
    return frame is not None and (frame.run_id, frame.generation, frame.cut, pack_sums(frame.sums)) == (
        began.run_id,
        began.generation,
        place.cut,
        place.sums,
    )
