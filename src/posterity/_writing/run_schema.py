"""What an epoch must be like to belong to a run: as many chains, and of each name the same dim and dtype.

Up the stream: `ledger` asks, for epochs that come and for a run that is gone on with. To be used under its lock, but
for `check`.
"""

from collections.abc import Collection

from posterity._ingest.template import Kind
from posterity._model.metadata import Metadata
from posterity._model.registry import Registry
from posterity.errors import EpochMismatch

Shapes = dict[str, tuple[int, str]]


def check_described(metadata: Metadata, nchain: int, shapes: Shapes, absent: Collection[str]) -> None:
    """Refuse metadata that are another run's. `absent`: see `Metadata.misfit`.

    Raises:
        EpochMismatch: another number of chains, or of parameters; the message names both.
    """
    misfit = metadata.misfit(nchain, {name: dim for name, (dim, _) in shapes.items()}, absent)
    if misfit:
        raise EpochMismatch(f"{misfit}; open the backend with what fits, or leave it out")


class Fit:
    """What is known of the epochs of a run; of an empty one nothing is."""

    def __init__(self, nchain: int = 0, shapes: Shapes | None = None) -> None:
        self._nchain = nchain
        self._shapes = shapes or {}
        self._kind: Kind | None = None  # of the last epoch: one of the same kind fits

    def check(self, kind: Kind, registry: Registry) -> None:
        """Refuse an epoch that doesn't fit.

        Raises:
            EpochMismatch: another number of chains, or another dim or dtype for a name that was there before, or, as
                the first one, another one than `parameters` or `chains` say.
        """
        if kind is self._kind:
            return
        if not self._nchain:
            metadata = registry.metadata
            check_described(metadata, kind.nchain, kind.shapes, metadata.parameters if registry.entries else ())
        if self._nchain and kind.nchain != self._nchain:
            raise EpochMismatch(
                f"the epoch has {kind.nchain} chains and the run has {self._nchain}; "
                f"reset() the run, or use another outdir"
            )
        for name, shape in kind.shapes.items():
            known = self._shapes.get(name, shape)
            if shape != known:
                raise EpochMismatch(
                    f"samples[{name!r}] has dim {shape[0]} and dtype {shape[1]}, and in the run it has dim {known[0]} "
                    f"and dtype {known[1]}; convert it, reset() the run, or use another outdir"
                )

    def take(self, kind: Kind) -> None:
        """An epoch that fits is part of the run now."""
        if kind is not self._kind:
            self._nchain, self._kind = kind.nchain, kind
            self._shapes = {**self._shapes, **kind.shapes}
