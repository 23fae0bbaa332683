"""Which rows of an array a reader needs."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from posterity._format.rows import overlap, pieces_of, rows_of, shares_of

NCHAIN, DIM = 6, 3
CHAINS = st.none() | st.lists(st.integers(0, NCHAIN - 1), max_size=10)


def mapping(rows):
    """Which row of the array each row of the result is, row by row."""
    return {run.at + k: run.first + k for run in rows for k in range(run.n)}


@given(CHAINS)
def test_rows_are_those_that_numpy_takes(chains):
    """Each row of `array[chains]`, seen as rows, is named once, with the row of the array that it is."""
    array = np.arange(NCHAIN * DIM).reshape(NCHAIN, DIM)
    expected = (array if chains is None else array[np.array(chains, int)]).reshape(-1)
    rows = rows_of(chains, NCHAIN, DIM)
    assert mapping(rows) == dict(enumerate(expected))
    assert sum(run.n for run in rows) == len(expected)


@given(CHAINS, st.lists(st.integers(0, DIM - 1), max_size=5))
def test_rows_of_some_dimensions_are_those_that_numpy_takes(chains, dims):
    """Each row of `array[chains][:, dims]` is named once, with the row of the array that it is."""
    array = np.arange(NCHAIN * DIM).reshape(NCHAIN, DIM)
    expected = (array if chains is None else array[np.array(chains, int)])[:, np.array(dims, int)].reshape(-1)
    rows = rows_of(chains, NCHAIN, DIM, dims)
    assert mapping(rows) == dict(enumerate(expected))
    assert sum(run.n for run in rows) == len(expected)


def test_neighbouring_chains_are_one_run():
    """What lies side by side in the file is read at once; what doesn't, isn't."""
    assert [run.n for run in rows_of([0, 1, 2, 4, 5, 1, 1], NCHAIN, DIM)] == [9, 6, 3, 3]
    assert rows_of(None, NCHAIN, DIM) == rows_of(range(NCHAIN), NCHAIN, DIM)


@given(CHAINS, st.integers(1, 30))
def test_pieces_are_all_the_rows_a_few_at_a_time(chains, most):
    """No piece has more rows than wanted, and together they are the same rows in the same order."""
    rows = rows_of(chains, NCHAIN, DIM)
    pieces = list(pieces_of(rows, most))
    assert all(0 < piece.n <= most for piece in pieces)
    assert list(mapping(pieces).items()) == list(mapping(rows).items())


@given(CHAINS, st.integers(1, 30))
def test_shares_are_all_the_rows_in_equal_parts(chains, nshares):
    """There are at most so many shares, none empty, of one size but for the last, and no row is lost or read twice."""
    rows = rows_of(chains, NCHAIN, DIM)
    shares = shares_of(rows, nshares)
    sizes = [sum(run.n for run in share) for share in shares]
    assert len(shares) <= nshares
    assert all(size == sizes[0] for size in sizes[:-1])
    assert all(0 < size <= sizes[0] for size in sizes)
    assert list(mapping(itertools.chain(*shares)).items()) == list(mapping(rows).items())


@given(CHAINS, st.integers(1, 30), st.integers(1, 7))
def test_shares_of_whole_units(chains, nshares, unit):
    """No share ends within a unit, but where the rows that are wanted do; and they are all the rows, as before."""
    rows = rows_of(chains, NCHAIN, DIM)
    shares = shares_of(rows, nshares, unit)
    ends = {run.first + run.n for run in rows}
    assert all(share[-1].first + share[-1].n in ends or (share[-1].first + share[-1].n) % unit == 0 for share in shares)
    assert len(shares) <= nshares
    assert all(share and all(run.n > 0 for run in share) for share in shares)
    assert list(mapping(itertools.chain(*shares)).items()) == list(mapping(rows).items())


@given(CHAINS, st.integers(0, NCHAIN * DIM), st.integers(0, NCHAIN * DIM))
def test_an_overlap_is_what_lies_among_the_given_rows(chains, first, n):
    """Of all rows those that come from the given part of the array are left."""
    rows = rows_of(chains, NCHAIN, DIM)
    expected = {at: row for at, row in mapping(rows).items() if first <= row < first + n}
    assert mapping(overlap(rows, first, n)) == expected
