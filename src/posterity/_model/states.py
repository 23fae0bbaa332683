"""The states of a backend, changed by one table."""

import enum


class State(enum.StrEnum):
    """What a backend is doing."""

    RUNNING = "running"
    WAITING = "waiting for the disk"
    CLOSING = "closing"
    CLOSED = "closed"
    FAILED = "failed"

    @property
    def takes_epochs(self) -> bool:
        """Whether epochs can be handed over."""
        return self in (State.RUNNING, State.WAITING)

    @property
    def is_over(self) -> bool:
        """Whether nothing will be written any more."""
        return self in (State.CLOSED, State.FAILED)


class Event(enum.StrEnum):
    """What changes a state."""

    WRITE_FAILED = "a write failed"
    WRITE_WORKED = "a write worked"
    CLOSE_ASKED = "close was asked for"
    ALL_RELEASED = "all was released"
    BROKE = "the writer broke"


_TABLE: dict[State, dict[Event, State]] = {
    State.RUNNING: {
        Event.WRITE_FAILED: State.WAITING,
        Event.WRITE_WORKED: State.RUNNING,
        Event.CLOSE_ASKED: State.CLOSING,
        Event.BROKE: State.FAILED,
    },
    State.WAITING: {
        Event.WRITE_FAILED: State.WAITING,
        Event.WRITE_WORKED: State.RUNNING,
        Event.CLOSE_ASKED: State.CLOSING,
        Event.BROKE: State.FAILED,
    },
    State.CLOSING: {
        Event.WRITE_FAILED: State.CLOSING,
        Event.WRITE_WORKED: State.CLOSING,
        Event.CLOSE_ASKED: State.CLOSING,
        Event.ALL_RELEASED: State.CLOSED,
        Event.BROKE: State.FAILED,
    },
    State.CLOSED: {Event.CLOSE_ASKED: State.CLOSED},
    State.FAILED: {Event.CLOSE_ASKED: State.FAILED, Event.BROKE: State.FAILED},
}


def after(state: State, event: Event) -> State:
    """The state that follows.

    Raises:
        ValueError: the event can't happen in this state.
    """
    try:
        return _TABLE[state][event]
    except KeyError:
        raise ValueError(f"{event} can't happen while {state}") from None
