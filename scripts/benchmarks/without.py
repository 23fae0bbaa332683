"""The optimisations, and how each is switched off: a row that measures one must then fall short."""

from collections.abc import Callable


def _no_recycling() -> None:
    from posterity.buffers import Buffers

    Buffers._reuse = lambda _self, _nbytes: None  # type: ignore[method-assign]


def _no_references() -> None:
    from posterity import epoch

    epoch._must_copy = lambda _leaf, **_: True


OPTIMISATIONS: dict[str, Callable[[], None]] = {
    "recycled buffers": _no_recycling,
    "references": _no_references,
}


def switch_off(name: str) -> None:
    """Take an optimisation away, in this process."""
    OPTIMISATIONS[name]()
