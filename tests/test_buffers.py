"""Memory that is used again."""

import resource

import numpy as np
import pytest

from posterity._system.buffer_pool import Buffers

LARGE = 1 << 20


def address(array):
    """Where an array's memory is."""
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize("nbytes", [0, 1, 1 << 16, (1 << 16) + 1, LARGE, LARGE + 12345])
def test_memory_is_at_least_as_long_as_asked_for(nbytes):
    """Memory of any size is bytes that can be written."""
    memory = Buffers(1 << 30).take(nbytes)
    assert memory.dtype == np.uint8
    assert memory.nbytes >= nbytes
    assert memory.nbytes <= nbytes * 1.13
    memory[...] = 7


def test_memory_is_used_again_once_nobody_looks_into_it():
    """What was given back is given out next."""
    buffers = Buffers(1 << 30)
    memory = buffers.take(LARGE)
    at = address(memory)
    del memory
    assert address(buffers.take(LARGE - 100)) == at


def test_memory_is_not_used_again_while_a_view_of_it_is_alive():
    """An array of whatever shape and dtype that looks into a buffer keeps it."""
    buffers = Buffers(1 << 30)
    memory = buffers.take(LARGE)
    at = address(memory)
    view = memory[64 : 64 + 800].view(np.float64).reshape(2, 50)[1:].T
    view[...] = 3.0
    del memory
    other = buffers.take(LARGE)
    other[...] = 0
    assert address(other) != at
    assert (view == 3.0).all()
    del view
    assert address(buffers.take(LARGE)) == at


def test_much_larger_memory_is_not_given_for_a_small_need():
    """A buffer more than twice too large is left for somebody who needs it."""
    buffers = Buffers(1 << 30)
    memory = buffers.take(8 * LARGE)
    at = address(memory)
    del memory
    small = buffers.take(LARGE)
    assert small.nbytes < 2 * LARGE
    assert address(buffers.take(8 * LARGE)) == at


def test_no_more_is_kept_than_allowed():
    """What is free beyond the limit goes back to the system when memory is asked for."""
    buffers = Buffers(2 * LARGE)
    taken = [buffers.take(LARGE) for _ in range(5)]
    taken.clear()
    other = buffers.take(8 * LARGE)
    assert other.nbytes
    assert sum(map(len, buffers._free)) <= 2 * LARGE


def test_clear_gives_all_back():
    """After `clear` nothing is kept."""
    buffers = Buffers(1 << 30)
    buffers.take(LARGE)
    assert buffers._free
    buffers.clear()
    assert not buffers._free


def test_memory_is_made_ready_when_the_last_one_is_taken():
    """Not for the first epoch, which may be the only one; but for the next ones: the disk may be slower for once."""
    buffers = Buffers(1 << 30)
    held = [buffers.take(LARGE)]
    assert not buffers.is_short
    held.append(buffers.take(LARGE))
    assert buffers.is_short
    buffers.make_ready()
    assert not buffers.is_short
    at = address(buffers._free[0])
    held.append(buffers.take(LARGE))
    assert address(held[-1]) == at
    assert buffers.is_short


def test_no_memory_is_made_ready_where_enough_comes_back():
    """A disk that follows gives each buffer back: one more than are out is enough for ever."""
    buffers = Buffers(1 << 30)
    held = [buffers.take(LARGE), buffers.take(LARGE)]
    buffers.make_ready()
    for _ in range(5):
        del held[0]
        held.append(buffers.take(LARGE))
        assert not buffers.is_short
    assert len(buffers._free) == 1


def test_no_memory_is_made_ready_beyond_the_bound():
    """What is out and what is ready come to no more than allowed; what comes back makes room again."""
    buffers = Buffers(3 * LARGE)
    held = [buffers.take(LARGE) for _ in range(3)]
    assert not buffers.is_short
    del held[1:]
    buffers.clear()
    held.append(buffers.take(LARGE))
    assert buffers.is_short


@pytest.mark.parametrize("nbytes", [(1 << 16) + 1, LARGE, 16 * LARGE + 12345])
def test_memory_that_is_ready_is_there(nbytes):
    """The system has given every page of it: nothing is left to be cleared when it is written to."""
    buffers = Buffers(1 << 30)
    held = [buffers.take(nbytes), buffers.take(nbytes)]
    buffers.make_ready()
    ready = buffers.take(nbytes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    ready[...] = 7
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < nbytes / 4096 / 8
    assert len(held) == 2


def test_nothing_is_made_ready_that_nobody_wanted():
    """Whoever asks twice for it gets nothing more."""
    buffers = Buffers(1 << 30)
    buffers.make_ready()
    assert not buffers._free
