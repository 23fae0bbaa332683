"""The optimisations, and how each is switched off: a row that measures one must then fall short."""

from collections.abc import Callable


def _no_recycling() -> None:
    from posterity.buffers import Buffers

    Buffers._reuse = lambda _self, _nbytes: None  # type: ignore[method-assign]


def _no_references() -> None:
    from posterity import epoch

    epoch._must_copy = lambda _leaf, **_: True


def _one_core() -> None:
    from posterity import snapshot

    snapshot.count_cores = lambda: 1


def _whole_arrays() -> None:
    from posterity.epochfile import Reader

    copied = Reader._copy_checked

    def read_all(self: Reader, place: tuple, rows: object, into: object, scratch: object) -> None:
        last = max((run.first + run.n for run in rows), default=0)
        copied(self, place, last, rows, into, scratch)

    Reader._copy_slabs = Reader._copy_rows = read_all  # type: ignore[method-assign,assignment]


OPTIMISATIONS: dict[str, Callable[[], None]] = {
    "recycled buffers": _no_recycling,
    "references": _no_references,
    "reading in parallel": _one_core,
    "partial reads": _whole_arrays,
}


def switch_off(name: str) -> None:
    """Take an optimisation away, in this process."""
    OPTIMISATIONS[name]()
