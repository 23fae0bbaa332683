"""The optimisations, and how each is switched off: a row that measures one must then fall short."""

from collections.abc import Callable


def _no_recycling() -> None:
    from posterity._system.buffer_pool import Buffers

    Buffers._reuse = lambda _self, _nbytes: None  # type: ignore[method-assign]


def _no_references() -> None:
    from posterity._ingest import cost, prepare

    cost.must_copy = prepare.must_copy = lambda _leaf, **_: True


def _one_core() -> None:
    from posterity._reading import gather

    gather.count_cores = lambda: 1


def _whole_arrays() -> None:
    from posterity._format.row_reader import Place, RowReader

    def read_all(self: RowReader, place: Place, rows: list, into: object, scratch: object) -> None:
        last = max((run.first + run.n for run in rows), default=0)
        self.copy_checked(place, last, rows, into, scratch)

    RowReader.copy = read_all  # type: ignore[method-assign,assignment]


def _anywhere() -> None:
    from posterity._system import aligned

    aligned._WORTH_ALIGNING = 1 << 62


def _no_early_writeback() -> None:
    from posterity._format import file_writer

    file_writer._WORTH_PUSHING = 1 << 62


def _one_by_one() -> None:
    from posterity._store import data_files

    data_files.most_together = lambda _layout: 0


def _no_templates() -> None:
    from posterity._format import hdf5, layout, lookup3

    template = layout.Layout.template

    def made_anew(self: layout.Layout, base: int, run_id: bytes, generation: int) -> bytes:
        self._templates.clear()
        return template(self, base, run_id, generation)

    layout.Layout.template = made_anew  # type: ignore[method-assign]
    hdf5.checksum = layout.checksum = lookup3.worked_out
    _one_by_one()  # what is laid out together keeps templates of its own


def _always_checked() -> None:
    from posterity._ingest.template import Kinds

    Kinds.recognise = lambda _self, _data: None  # type: ignore[method-assign]


def _synced_one_by_one() -> None:
    from posterity._store import data_files

    data_files._MOST_OPEN = 1


OPTIMISATIONS: dict[str, Callable[[], None]] = {
    "recycled buffers": _no_recycling,
    "references": _no_references,
    "reading in parallel": _one_core,
    "memory from a page on": _anywhere,
    "partial reads": _whole_arrays,
    "early write-back": _no_early_writeback,
    "templates of headers": _no_templates,
    "epochs laid out together": _one_by_one,
    "recognised epochs": _always_checked,
    "shared syncs": _synced_one_by_one,
}


def switch_off(name: str) -> None:
    """Take an optimisation away, in this process."""
    OPTIMISATIONS[name]()
