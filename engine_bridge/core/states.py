"""The engine's states, and the table of the ways between them."""

import enum


class State(enum.Enum):
    """Where an engine stands; read it as `engine.state`."""

    STOPPED = "STOPPED"
    STARTING = "STARTING"
    STARTED = "STARTED"
    STOPPING = "STOPPING"
    EXITING = "EXITING"

    def __str__(self) -> str:
        return self.name


TRANSITIONS: dict[State, frozenset[State]] = {
    State.STOPPED: frozenset({State.STARTING, State.EXITING}),
    State.STARTING: frozenset({State.STARTED, State.STOPPING}),  # a failed start rolls back
    State.STARTED: frozenset({State.STOPPING}),  # draining is a flag of STARTED
    State.STOPPING: frozenset({State.STOPPED}),
    State.EXITING: frozenset({State.STOPPED}),  # a new life, once the exit is complete
}
