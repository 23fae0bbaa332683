"""The states of a backend."""

import pytest

from posterity._model.states import Event, State, after

RUNNING, WAITING, CLOSING, CLOSED, FAILED = State
TABLE = [
    (RUNNING, Event.WRITE_WORKED, RUNNING),
    (RUNNING, Event.WRITE_FAILED, WAITING),
    (RUNNING, Event.CLOSE_ASKED, CLOSING),
    (RUNNING, Event.BROKE, FAILED),
    (WAITING, Event.WRITE_WORKED, RUNNING),
    (WAITING, Event.WRITE_FAILED, WAITING),
    (WAITING, Event.CLOSE_ASKED, CLOSING),
    (WAITING, Event.BROKE, FAILED),
    (CLOSING, Event.WRITE_WORKED, CLOSING),
    (CLOSING, Event.WRITE_FAILED, CLOSING),
    (CLOSING, Event.CLOSE_ASKED, CLOSING),
    (CLOSING, Event.ALL_RELEASED, CLOSED),
    (CLOSING, Event.BROKE, FAILED),
    (CLOSED, Event.CLOSE_ASKED, CLOSED),
    (FAILED, Event.CLOSE_ASKED, FAILED),
    (FAILED, Event.BROKE, FAILED),
]
KNOWN = {(state, event) for state, event, _ in TABLE}


@pytest.mark.parametrize(("state", "event", "then"), TABLE)
def test_an_event_leads_to_the_next_state(state, event, then):
    """Each state says which events it knows, and where they lead."""
    assert after(state, event) is then


@pytest.mark.parametrize(("state", "event"), [(s, e) for s in State for e in Event if (s, e) not in KNOWN])
def test_an_event_that_cannot_happen_is_an_error(state, event):
    """Whatever isn't in the table raises, with both names."""
    with pytest.raises(ValueError, match=f"{event} can't happen while {state}"):
        after(state, event)


def test_nothing_leads_out_of_an_end():
    """Closed and failed are for good."""
    ends = {state for state in State if state.is_over}
    assert ends == {CLOSED, FAILED}
    assert all(then in ends for state, _, then in TABLE if state in ends)


@pytest.mark.parametrize("state", State)
def test_epochs_are_taken_until_closing(state):
    """A backend takes epochs while it runs, also while it waits for the disk."""
    assert state.takes_epochs is (state in {RUNNING, WAITING})
