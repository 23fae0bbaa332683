"""An epoch that was handed over, in memory and ours alone.

Up the stream: `prepare` makes it. Down the stream: `ledger` keeps it until it is written, `store` writes it, and
readers read from it meanwhile.
"""

from collections.abc import Sequence
from typing import cast

from posterity._format.layout import Layout
from posterity._system.arrays import Array
from posterity._system.uncopyable import Uncopyable

from .device import OnDevice
from .template import Kind


class Held(Uncopyable):
    """An epoch in memory, ours alone, with the layout that it will have on disk. Some of it may still be on a device.

    `device_nbytes`: the bytes that were there when it was handed over.
    """

    __slots__ = ("__weakref__", "_leaves", "device_nbytes", "is_fetched", "kind")

    def __init__(self, kind: Kind, leaves: Sequence[Array | OnDevice]) -> None:
        self.kind = kind
        self._leaves = list(leaves)
        self.device_nbytes = 0
        if not kind.is_in_memory:
            self.device_nbytes = sum(leaf.nbytes for leaf in leaves if isinstance(leaf, OnDevice))
        self.is_fetched = self.device_nbytes == 0

    @property
    def layout(self) -> Layout:
        """Where its parts will lie in a file."""
        return self.kind.layout

    def fetch(self) -> None:
        """Have all of it in memory. Waits for the device that computes it."""
        for i, leaf in enumerate(self._leaves):
            if isinstance(leaf, OnDevice):
                self._leaves[i] = leaf.fetch()
        self.is_fetched = True

    def arrays(self) -> list[Array]:
        """The arrays; those on a device are fetched."""
        if self.is_fetched:
            return cast("list[Array]", self._leaves.copy())
        return [self.array(i) for i in range(len(self._leaves))]

    def array(self, i: int) -> Array:
        """One of the arrays; it is fetched if it lies on a device."""
        leaf = self._leaves[i]
        return leaf.fetch() if isinstance(leaf, OnDevice) else leaf
