"""A few threads for a short while: results in order, no more ahead than said, and none is left behind."""

import threading

import pytest

from posterity._system.parallel import in_order


def crew():
    return [thread for thread in threading.enumerate() if thread.name.startswith("posterity-crew")]


@pytest.mark.parametrize("nthreads", [1, 2, 5])
@pytest.mark.parametrize("n", [0, 1, 2, 100])
def test_results_come_in_order(n, nthreads):
    """However many threads there are, and items."""
    assert list(in_order(lambda: lambda i: i * i, range(n), nthreads)) == [i * i for i in range(n)]
    assert not crew()


def test_each_thread_makes_its_own():
    """What threads can't share is made once in each of them, and used there only."""
    made = []

    def make():
        mine = threading.get_ident()
        made.append(mine)
        return lambda _: mine == threading.get_ident()

    assert all(in_order(make, range(50), 3))
    assert len(made) == 3


def test_items_are_worked_on_at_the_same_time():
    """With two threads, an item may wait for the next one."""
    both = threading.Barrier(2, timeout=30)
    assert list(in_order(lambda: lambda i: both.wait() * 0 + i, range(2), 2)) == [0, 1]


@pytest.mark.parametrize("nthreads", [1, 3])
def test_an_error_is_raised_where_the_results_are_taken(nthreads):
    """The threads end, and what isn't begun isn't done."""

    def work(i):
        if i == 5:
            raise ValueError("item 5")
        return i

    with pytest.raises(ValueError, match="item 5"):
        list(in_order(lambda: work, range(1000), nthreads))
    assert not crew()


def test_nobody_runs_far_ahead():
    """Results that nobody takes don't pile up: each thread has at most four."""
    began = []
    results = in_order(lambda: began.append, range(1000), 2)
    for taken in range(1, 100):
        next(results)
        assert len(began) <= taken + 8
    results.close()
    assert len(began) < 120
    assert not crew()


def test_closing_early_ends_the_threads():
    """Who takes no more results leaves nobody waiting."""
    results = in_order(lambda: lambda i: i, range(1000), 3)
    assert next(results) == 0
    assert crew()
    results.close()
    assert not crew()


@pytest.mark.parametrize("nstarted", [0, 1])
def test_where_no_thread_can_be_started_it_is_done_all_the_same(monkeypatch, nstarted):
    """Threads may have run out, or the interpreter may be about to end."""
    start, left = threading.Thread.start, [nstarted]

    def refuse(thread):
        if not left[0]:
            raise RuntimeError("can't start new thread")
        left[0] -= 1
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert list(in_order(lambda: lambda i: i + 1, range(20), 4)) == list(range(1, 21))
