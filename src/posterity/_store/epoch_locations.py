"""Where the epochs of one generation of a run are just now: in memory, or in files.

Up the stream: `ledger` keeps one up for the writer's process, `run` one for others. Down the stream: `snapshot` looks
epochs up, with no lock.
"""

from posterity._format.layout import Layout, layout_of
from posterity._ingest.owned import Held
from posterity.errors import Damaged, PosterityError

from .catalog import Catalog


class Shelf:
    """Epochs by index: `held` in memory, or in files, as the `catalog` says. They leave memory once written."""

    def __init__(self, catalog: Catalog | None) -> None:
        self.held: dict[int, Held] = {}
        self.catalog = catalog

    def layout_of(self, index: int) -> Layout | None:
        """How the arrays of an epoch are laid out; None if it is nowhere any more."""
        held = self.held.get(index)
        if held is not None:
            return held.layout
        place = self.catalog.places[index] if self.catalog is not None else None
        return None if place is None or self.catalog is None else layout_of(self.catalog.specs[place.layout])

    def refresh(self) -> bool:
        """Learn what happened since, if anything can have; returns whether this is still what the run consists of."""
        return True

    def gone(self, what: str) -> PosterityError:
        """The error for what isn't where it should be: here, nothing that is needed is ever taken away."""
        return Damaged(what)
