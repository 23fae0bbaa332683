"""A stream of samples, kept as the mean and the sum of squares of so many blocks, however long it gets.

At first each sample is a block. When there are too many, neighbours are joined and blocks are twice as long from then
on. So memory is bounded, each sample is looked at once, and what lies at the front can be taken away block by block.
Moments come out exact, to rounding, since they can be joined exactly: Chan, Golub & LeVeque (1983), The American
Statistician 37, 242. What lies within a block is lost for correlations alone.

Down the stream: `diagnostics` makes R-hat, ESS and acceptance of them.
"""

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

Floats: TypeAlias = "npt.NDArray[np.float64]"


class Moments(NamedTuple):
    """Of `n` numbers in each row: their mean, and the sum of the squares of what differs from it."""

    n: int
    mean: Floats
    squares: Floats

    def joined(self, other: "Moments") -> "Moments":
        """Those of these numbers and others."""
        if not other.n:
            return self
        if not self.n:
            return other
        n = self.n + other.n
        apart = other.mean - self.mean
        mean = self.mean + apart * (other.n / n)
        return Moments(n, mean, self.squares + other.squares + apart**2 * (self.n * other.n / n))

    @property
    def variance(self) -> Floats:
        """The unbiased variance in each row; NaN of a single number."""
        return self.squares / (self.n - 1) if self.n > 1 else np.full_like(self.squares, np.nan)


def moments_of(x: Floats) -> Moments:
    """The moments over the last axis."""
    mean = x.mean(axis=-1)
    apart = x - mean[..., None]
    return Moments(x.shape[-1], mean, np.einsum("...i,...i->...", apart, apart))


class Blocks:
    """A stream `(nchain, dim, n)` in `most` blocks, at most, of `size` samples each, and a tail of fewer.

    `means`, `squares`: `(nchain, dim, number of blocks)`.
    """

    def __init__(self, nchain: int, dim: int, most: int) -> None:
        self.size = 1
        self._most = most
        self._n = 0
        self._means = np.empty((nchain, dim, most))
        self._squares = np.empty((nchain, dim, most))
        self.tail = self._nothing()

    def _nothing(self) -> Moments:
        nothing = np.zeros(self._means.shape[:2])
        return Moments(0, nothing, nothing)

    def __len__(self) -> int:
        return self._n

    @property
    def nsamples(self) -> int:
        """Samples in all blocks and in the tail."""
        return self._n * self.size + self.tail.n

    @property
    def means(self) -> Floats:
        """The mean of each block."""
        return self._means[:, :, : self._n]

    @property
    def squares(self) -> Floats:
        """In each block, the sum of the squares of what differs from its mean."""
        return self._squares[:, :, : self._n]

    def moments(self, start: int, stop: int) -> Moments:
        """The moments of some blocks together."""
        if start == stop:
            return self._nothing()
        among = moments_of(self._means[:, :, start:stop])
        squares = self._squares[:, :, start:stop].sum(axis=-1) + self.size * among.squares
        return Moments(self.size * (stop - start), among.mean, squares)

    def add(self, x: Floats) -> None:
        """Take in more samples, `(nchain, dim, n)`."""
        at, n = 0, x.shape[2]
        while at < n:
            if self._n == self._most:
                self.coarsen()
            count = (n - at) // self.size if not self.tail.n else 0
            if count:
                count = min(count, self._most - self._n)
                self._add_blocks(x[:, :, at : at + count * self.size], count)
                at += count * self.size
            else:
                missing = min(self.size - self.tail.n, n - at)
                self._add_to_tail(moments_of(x[:, :, at : at + missing]))
                at += missing

    def _add_blocks(self, x: Floats, count: int) -> None:
        into = slice(self._n, self._n + count)
        if self.size == 1:
            self._means[:, :, into] = x
            self._squares[:, :, into] = x - x  # zero, and NaN where a sample is no number
        else:
            found = moments_of(x.reshape(*x.shape[:2], count, self.size))
            self._means[:, :, into], self._squares[:, :, into] = found.mean, found.squares
        self._n += count

    def _add_to_tail(self, more: Moments) -> None:
        self.tail = self.tail.joined(more)
        if self.tail.n == self.size:
            self._means[:, :, self._n], self._squares[:, :, self._n] = self.tail.mean, self.tail.squares
            self._n += 1
            self.tail = self._nothing()

    def coarsen(self) -> None:
        """Join neighbours: blocks are twice as long from now on."""
        half, is_odd = divmod(self._n, 2)
        if is_odd:
            last = Moments(self.size, self._means[:, :, self._n - 1].copy(), self._squares[:, :, self._n - 1].copy())
            self.tail = last.joined(self.tail)
        even, odd = slice(0, 2 * half, 2), slice(1, 2 * half, 2)
        first = Moments(self.size, self._means[:, :, even], self._squares[:, :, even])
        both = first.joined(Moments(self.size, self._means[:, :, odd], self._squares[:, :, odd]))
        self._means[:, :, :half], self._squares[:, :, :half] = both.mean, both.squares
        self._n, self.size = half, 2 * self.size

    def drop(self, count: int) -> None:
        """Take away the first blocks."""
        left = self._n - count
        self._means[:, :, :left] = self._means[:, :, count : self._n]
        self._squares[:, :, :left] = self._squares[:, :, count : self._n]
        self._n = left
