"""`Epoch`: what a sampler hands over, and what it gets back to continue from.

Up the stream: a sampler. Down the stream: `prepare` checks and owns what is handed over; `load` makes it again.
Files name the class by where it is, `posterity.epoch.Epoch`: it can't move.
"""

from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from ._system.arrays import Array

if TYPE_CHECKING:
    from typing_extensions import TypeVar  # which every type checker knows, installed or not

    # Whose class of epochs `load` gives: ours, unless it is said: `DefaultBackend[MyEpoch](...)`.
    EpochT = TypeVar("EpochT", default="Epoch")
    E_co = TypeVar("E_co", covariant=True, default="Epoch")
else:
    from typing import TypeVar  # knows no defaults before Python 3.13, and needs none to run

    EpochT = TypeVar("EpochT")
    E_co = TypeVar("E_co", covariant=True)

EpochDict = dict[str, Any]  # what is in it, the sampler knows


@runtime_checkable
class ToBackend(Protocol):
    """Anything that can be ingested: jexplore's epochs, ours, yours."""

    def to_backend(self, burn: int, stats: bool, /) -> tuple[int, int, EpochDict | None]:
        """The number of samples, how many of them `burn` takes, and the rest as a dict; None if nothing is left."""


class Epoch:
    """One block of samples, as a sampler produced it.

    `samples`: name -> array `(nchain, dim_name, nsamples)`; "p" must be there. `covs`: `(nchain, dim, dim)`. `stats`,
    `cycle`, `sampling`, `state`: whatever the sampler wants to have back, a random generator's state for example.
    Other items are kept in `others`. A subclass comes back as itself from `load`.
    """

    _NAMES: ClassVar = ("samples", "covs", "stats", "cycle", "sampling", "state")

    def __init__(
        self,
        samples: dict[str, Array],
        *,
        covs: Array | None = None,
        stats: object = None,
        cycle: object = None,
        sampling: object = None,
        state: object = None,
        **others: object,
    ) -> None:
        self.samples = samples
        self.covs = covs
        self.stats = stats
        self.cycle = cycle
        self.sampling = sampling
        self.state = state
        self.others = others

    @classmethod
    def from_backend(cls, epoch: EpochDict) -> "Epoch":
        """An epoch from the dict that a backend gives back."""
        fields: dict[str, Any] = {name: value for name, value in epoch.items() if name != "class"}
        return cls(**fields)

    def to_backend(self, burn: int = 0, stats: bool = True) -> tuple[int, int, EpochDict | None]:
        """The number of samples, how many of them `burn` takes, and the rest as a dict; None if nothing is left."""
        nsamples = self.nsamples
        burned = min(max(burn, 0), nsamples)
        if burned == nsamples and nsamples:
            return nsamples, burned, None
        epoch: EpochDict = {"samples": {name: array[:, :, burned:] for name, array in self.samples.items()}}
        for name in self._NAMES[1:]:
            value = getattr(self, name)
            if value is not None and (stats or name != "stats"):
                epoch[name] = value
        kind = type(self)
        return nsamples, burned, {**epoch, **self.others, "class": f"{kind.__module__}.{kind.__qualname__}"}

    @property
    def nsamples(self) -> int:
        """Samples in each chain."""
        return int(next(iter(self.samples.values())).shape[2])

    @property
    def last(self) -> dict[str, Array]:
        """The last sample of each name, `(nchain, dim_name)`: where sampling goes on from."""
        return {name: array[:, :, -1] for name, array in self.samples.items()}

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}: {tuple(array.shape)}" for name, array in self.samples.items())
        return f"<{type(self).__name__} {shapes}>"
