"""Signals that come where nobody expects them: inside a server's handler, between two steps."""

import pytest
from processes import run_script

from engine_bridge import Engine, State
from engine_bridge.core import lifecycle
from engine_bridge.core.transition import Watch

SERVER = """
import signal
from engine_bridge import Engine
from engine_bridge.core import signals

said = []

def handler(signum, frame):
    name = signal.Signals(signum).name
    said.append(f"{name} begins")
    if name == "SIGINT":
        signal.raise_signal(signal.SIGQUIT)
        signal.raise_signal(signal.SIGABRT)
    said.append(f"{name} ends")

for each in (signal.SIGINT, signal.SIGQUIT, signal.SIGABRT):
    signal.signal(each, handler)
engine = Engine()
signals.chain(engine)
signal.raise_signal(signal.SIGINT)
print(*said, sep=", ")
"""


def test_handlers_of_a_server_do_not_nest() -> None:
    """A server's handler runs to its end before that of the next signal; SIGABRT does not wait."""
    finished = run_script(SERVER)
    assert finished.stdout.strip() == (
        "SIGINT begins, SIGABRT begins, SIGABRT ends, SIGINT ends, SIGQUIT begins, SIGQUIT ends"
    )


@pytest.mark.parametrize("error", [SystemExit(0), KeyboardInterrupt()])
def test_interruption_between_steps_leaves_no_transition(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a signal's handler raises between two steps is raised once the transition is done."""

    class Interrupted(Watch):
        raised = False

        def stop(self) -> None:
            super().stop()
            if not Interrupted.raised:  # as gunicorn's handler does while this joins a thread
                Interrupted.raised = True
                raise error

    monkeypatch.setattr(lifecycle, "Watch", Interrupted)
    engine = Engine()
    with pytest.raises(type(error)):
        engine.start()
    assert engine.wait(State.STARTED, 0)
    engine.exit()
    assert engine.wait(State.EXITING, 0)
