"""Which rows of an array a reader needs. Pure: numbers in, numbers out.

A row is one dimension of one chain: an array `(nchain, dim, nsamples)` has `nchain * dim` rows of `nsamples`.

Up the stream: `selection` says which chains. Down the stream: `row_reader` fetches the rows.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Rows(NamedTuple):
    """`n` neighbouring rows of an array, from `first` on, become the rows of the result from `at` on."""

    at: int
    first: int
    n: int


def rows_of(chains: Sequence[int] | None, nchain: int, dim: int, dims: Sequence[int] | None = None) -> list[Rows]:
    """The rows of the chosen chains, None for all, in their order; neighbours are taken together.

    `dims`: which of the dimensions of each chain; None for all.
    """
    if dims is not None:
        chosen = [chain * dim + each for chain in (range(nchain) if chains is None else chains) for each in dims]
        return rows_of(chosen, nchain * dim, 1)
    if chains is None:
        return [Rows(0, 0, nchain * dim)]
    found: list[Rows] = []
    at = 0
    while at < len(chains):
        stop = at + 1
        while stop < len(chains) and chains[stop] == chains[stop - 1] + 1:
            stop += 1
        found.append(Rows(at * dim, chains[at] * dim, (stop - at) * dim))
        at = stop
    return found


def pieces_of(rows: Sequence[Rows], most: int) -> Iterator[Rows]:
    """The same rows, at most so many neighbours at a time."""
    for at, first, n in rows:
        for done in range(0, n, most):
            yield Rows(at + done, first + done, min(most, n - done))


def shares_of(rows: Sequence[Rows], nshares: int, unit: int = 1) -> list[list[Rows]]:
    """The same rows in parts of about equal size, at most so many, none of them empty.

    A part begins where `unit` rows of the array do, or where neighbours do.
    """
    most = max(1, -(-sum(run.n for run in rows) // max(1, nshares)))
    shares: list[list[Rows]] = []
    room = 0
    for at, first, n in rows:
        done = 0
        while done < n:
            if room <= 0:
                shares.append([])
                room = most
            stop = first + min(done + room, n)
            taken = min(n, -(-stop // unit) * unit - first) - done
            shares[-1].append(Rows(at + done, first + done, taken))
            done += taken
            room -= taken
    return shares


def overlap(rows: Sequence[Rows], first: int, n: int) -> Iterator[Rows]:
    """What of the rows lies among those from `first` to `first + n`."""
    for run in rows:
        begin, end = max(run.first, first), min(run.first + run.n, first + n)
        if begin < end:
            yield Rows(run.at + begin - run.first, begin, end - begin)
