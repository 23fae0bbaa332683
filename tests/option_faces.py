"""What takes options, and how it departs from the table of them: `test_option_faces` and `typing/` check each one."""

from dataclasses import dataclass, field

import pytest


@dataclass(frozen=True)
class Face:
    """A class or a function that takes options.

    `lacks`: the options that it doesn't take, `differs`: those with other defaults, each with the reason. `by_place`:
    the options that may be given without their names.
    """

    name: str
    module: str = "posterity"
    lacks: dict[str, str] = field(default_factory=dict)
    differs: dict[str, str] = field(default_factory=dict)
    by_place: tuple[str, ...] = ("burn",)

    def __str__(self):
        return self.name

    def find(self):
        """The thing itself; skips where a package that it needs isn't installed."""
        return getattr(pytest.importorskip(self.module, exc_type=ImportError), self.name)


NEW = "an import makes a new run, and refuses one that is there"
OF_STEPS = {
    "epochs_per_file": "steps are many small epochs, as the sampler's own backend makes them",
    "max_pending_bytes": "a file is read faster than it is written: no more of it need be in memory",
    "outdir": "it must be given",
}
OF_STEPS_ALONE = {"epochs_per_file": OF_STEPS["epochs_per_file"]}
FACES = [
    Face("DefaultBackend"),
    Face("AsyncBackend"),
    Face("EmceeBackend", "posterity.emcee", differs=OF_STEPS_ALONE, by_place=("outdir", "compression")),
    Face(
        "ErynBackend",
        "posterity.eryn",
        {"burn": "Eryn's own discard= leaves steps out when they are read", "chains": "`reset` says what they are"},
        OF_STEPS_ALONE,
        by_place=("outdir", "compression"),
    ),
    Face(
        "import_jexplore",
        lacks={"mode": NEW, "outfile_fmt": "it says how jexplore named its files"},
        differs={"outdir": "it must be given"},
        by_place=("outdir",),
    ),
    Face("import_emcee", "posterity.importing", {"mode": NEW}, OF_STEPS, by_place=("outdir",)),
    Face("import_eryn", "posterity.importing", {"mode": NEW}, OF_STEPS, by_place=("outdir",)),
]
