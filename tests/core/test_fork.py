"""What a fork leaves of an engine: its listeners, and nothing else. Real forks, in scripts."""

import json
from typing import Any

import pytest
from processes import run_script

from engine_bridge import Engine, EngineError

HEAD = """
import json, multiprocessing, os, sys, threading
from engine_bridge import Engine, State

engine = Engine()
PARENT = os.getpid()
LIMIT = 10

def tell(**facts):
    print(json.dumps({"who": "parent" if os.getpid() == PARENT else "child", **facts}), flush=True)

for name in ("start", "drain", "stop", "exit"):
    engine.subscribe(name, lambda name=name: tell(ran=name), 1)

def in_child(function):
    "Fork; call *function* in the child, which then ends as a script ends; wait for it."
    pid = os.fork()
    if not pid:
        try:
            function()
        except Exception as exc:
            tell(raised=type(exc).__name__, text=str(exc))
        raise SystemExit(0)
    _, status = os.waitpid(pid, 0)
    tell(child=os.waitstatus_to_exitcode(status))

def look():
    tell(
        state=engine.state.name, ready=engine.ready, alive=engine.alive,
        in_transition=engine.in_transition, in_flight=engine.in_flight,
        draining=engine.draining.is_set(), pid=engine.pid == os.getpid(),
        threads=threading.active_count(),
    )
"""
FRESH = {
    "state": "STOPPED", "ready": False, "alive": True, "in_transition": False, "in_flight": 0,
    "draining": False, "pid": True, "threads": 1,
}  # fmt: skip
LIFE = ["start", "drain", "stop", "exit"]


class Told:
    """What parent and child of a script told."""

    def __init__(self, body: str) -> None:
        done = run_script(HEAD + body, limit=15)
        assert done.returncode == 0, done.stderr
        self.stderr = done.stderr
        self.facts: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]

    def ran(self, who: str) -> list[str]:
        """Return the channels whose listeners ran."""
        return [each["ran"] for each in self.facts if each["who"] == who and "ran" in each]

    def one(self, who: str, key: str) -> Any:
        """Return the one fact of that name."""
        [fact] = [each[key] for each in self.facts if each["who"] == who and key in each]
        return fact

    def child_looked(self) -> dict[str, Any]:
        """Return what the child saw of the engine."""
        [seen] = [each for each in self.facts if each["who"] == "child" and "state" in each]
        return {key: value for key, value in seen.items() if key != "who"}


@pytest.mark.parametrize(
    "before", ["", "engine.start()", "engine.start(); engine.drain()", "engine.exit()"]
)
def test_engine_of_a_child_is_as_new(before: str) -> None:
    """Wherever the parent's engine stands, the child's is STOPPED, with nothing of the parent's."""
    told = Told(f"{before}\nin_child(look)\n")
    assert told.child_looked() == FRESH
    assert told.one("parent", "child") == 0
    assert told.ran("child") == []


def test_end_of_a_child_runs_none_of_the_parents_listeners() -> None:
    """A child that ends as scripts end runs no listener; the parent runs each of its own once."""
    told = Told("engine.start()\nin_child(lambda: None)\ntell(still=engine.state.name)\n")
    assert told.ran("child") == []
    assert told.ran("parent") == LIFE
    assert told.one("parent", "still") == "STARTED"


def test_child_that_leaves_the_parents_block_runs_nothing() -> None:
    """A child forked inside `with engine:` that leaves the block, in any way, ends no engine."""
    told = Told("with engine:\n    in_child(lambda: None)\n")
    assert told.ran("child") == []
    assert told.ran("parent") == LIFE
    told = Told(
        "with engine:\n"
        "    pid = os.fork()\n"
        "    if pid:\n"
        "        os.waitpid(pid, 0)\n"
        "tell(left=True)\n"
    )
    assert told.ran("child") == []
    assert told.one("child", "left")
    assert told.ran("parent") == LIFE


def test_child_has_the_listeners_and_lives_a_life_of_its_own() -> None:
    """In the child the engine starts and ends with the listeners that it inherited."""
    told = Told("engine.start()\nin_child(lambda: engine.start())\ntell(still=engine.state.name)\n")
    assert told.ran("child") == LIFE
    assert told.ran("parent") == LIFE
    assert told.one("parent", "still") == "STARTED"


def test_subscribing_in_the_child_does_not_touch_the_parent() -> None:
    """What a child adds is its own."""
    told = Told(
        "engine.start()\n"
        "in_child(lambda: (engine.subscribe('stop', lambda: tell(ran='own')), engine.start()))\n"
    )
    assert told.ran("child") == ["start", "drain", "stop", "own", "exit"]
    assert told.ran("parent") == LIFE


@pytest.mark.parametrize("channel", LIFE)
def test_fork_while_another_thread_holds_a_transition(channel: str) -> None:
    """The transition stays with the parent: the child neither waits for it nor takes part in it."""
    told = Told(f"""
held, go_on = threading.Event(), threading.Event()

@engine.subscribe({channel!r})
def hold():
    if os.getpid() == PARENT:
        held.set()
        assert go_on.wait(LIMIT)

def live():
    engine.start()
    engine.exit()

thread = threading.Thread(target=live)
thread.start()
assert held.wait(LIMIT)
in_child(lambda: (look(), live()))
go_on.set()
thread.join()
""")
    assert told.child_looked() == FRESH
    assert told.ran("child") == LIFE
    assert told.ran("parent") == LIFE


def test_fork_while_other_threads_hold_the_locks() -> None:
    """However busy the other threads are with the engine, no lock of theirs reaches a child."""
    told = Told("""
done = threading.Event()

def churn():
    while not done.is_set():
        engine.subscribe("work", churn)
        engine.unsubscribe("work", churn)
        engine.wait(State.EXITING, 0)
        engine.publish("work2")

def watch():
    while not done.is_set():
        engine.wait(State.EXITING, 0.001)

sys.setswitchinterval(1e-5)
threads = [threading.Thread(target=each) for each in (churn, churn, watch, watch)]
for thread in threads:
    thread.start()

def live():
    for name in ("start", "drain", "stop", "exit"):
        engine.subscribe(name, print)
        engine.unsubscribe(name, print)
    engine.start()
    engine.exit()
    assert engine.wait(State.EXITING, 1)

try:
    for _ in range(15):
        in_child(live)
finally:
    done.set()
    for thread in threads:
        thread.join()
""")
    assert told.ran("child") == LIFE * 15
    assert told.ran("parent") == []


@pytest.mark.parametrize("channel", LIFE)
def test_fork_inside_a_listener(channel: str) -> None:
    """In the child the transition is gone: its frames raise a sentence and run no listener."""
    told = Told(f"""
@engine.subscribe({channel!r})
def fork():
    if os.fork():
        os.wait()
    else:
        look()

try:
    engine.start()
    engine.exit()
except Exception as exc:
    tell(raised=type(exc).__name__, text=str(exc), state_after=engine.state.name)
""")
    assert {**told.child_looked(), "threads": 1} == FRESH
    assert told.one("child", "raised") == "EngineError"
    assert "forked" in told.one("child", "text")
    assert told.one("child", "state_after") == "STOPPED"
    assert told.ran("child") == []
    assert told.ran("parent") == LIFE


@pytest.mark.parametrize("state", ["STARTING", "STARTED", "STOPPING", "STOPPED", "EXITING"])
def test_fork_inside_an_observer(state: str) -> None:
    """Forked between two listeners, by an observer, the child runs none of them either."""
    told = Told(f"""
from engine_bridge.core.records import StateChanged

@engine.observe
def fork(record):
    if isinstance(record, StateChanged) and record.new == {state!r}:
        if os.fork():
            os.wait()

try:
    engine.start()
    engine.exit()
except Exception as exc:
    tell(raised=type(exc).__name__, state_after=engine.state.name)
""")
    assert told.one("child", "raised") == "EngineError"
    assert told.one("child", "state_after") == "STOPPED"
    assert told.ran("child") == []
    assert told.ran("parent") == LIFE


def test_fork_inside_a_listener_that_leaves_at_once() -> None:
    """A helper that a listener forks leaves by os._exit or sys.exit with the code it wants."""
    told = Told("""
@engine.subscribe("start")
def helpers():
    for leave in (os._exit, sys.exit):
        pid = os.fork()
        if not pid:
            leave(7)
        _, status = os.waitpid(pid, 0)
        tell(helper=os.waitstatus_to_exitcode(status))

engine.start()
engine.exit()
""")
    assert [each["helper"] for each in told.facts if "helper" in each] == [7, 7]
    assert told.ran("child") == []
    assert told.ran("parent") == LIFE


def test_fork_of_an_engine_with_a_loop_of_its_own() -> None:
    """The loop stays with the parent; a child's async listeners get a loop of its own."""
    told = Told("""
for name in ("start", "stop"):
    @engine.subscribe(name)
    async def listen(name=name):
        tell(ran="async " + name)

engine.start()
in_child(lambda: (look(), engine.start(), engine.stop()))
engine.stop()
""")
    assert told.child_looked() == FRESH
    life = ["start", "async start", "drain", "stop", "async stop"]
    assert told.ran("child") == [*life, "exit"]
    assert told.ran("parent") == [*life, "exit"]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_child_runs_none_of_the_parents_listeners(method: str) -> None:
    """A multiprocessing child, however it is made, ends without a listener of the parent's."""
    told = Told(
        f"""
def work():
    look()

if __name__ == "__main__":
    engine.start()
    context = multiprocessing.get_context({method!r})
    child = context.Process(target=work)
    child.start()
    child.join(LIMIT)
    tell(child=child.exitcode)
"""
    )
    who = "child" if method == "fork" else "parent"  # spawned, the script runs anew, on its own
    seen = [each for each in told.facts if "state" in each]
    assert [each["who"] for each in seen] == [who]
    assert {**seen[0], "who": ""} == {**FRESH, "who": ""}
    assert told.one("parent", "child") == 0
    assert told.ran("child") == []
    assert told.ran("parent") == LIFE


def test_engine_that_a_multiprocessing_child_starts_is_ended_with_it() -> None:
    """Such children skip atexit; an engine that one of them starts gets its stop all the same."""
    told = Told("""
def work():
    engine.start()

engine.start()
child = multiprocessing.get_context("fork").Process(target=work)
child.start()
child.join(LIMIT)
tell(child=child.exitcode)
""")
    assert told.one("parent", "child") == 0
    assert told.ran("child") == LIFE
    assert told.ran("parent") == LIFE


def test_grandchildren_are_as_new_too() -> None:
    """A fork of a fork starts anew again, and each ends its own life only."""
    told = Told("""
def child():
    engine.start()
    pid = os.fork()
    if not pid:
        tell(grandchild=engine.state.name)
        raise SystemExit(0)
    os.waitpid(pid, 0)

in_child(child)
""")
    assert told.one("child", "grandchild") == "STOPPED"
    assert told.ran("child") == LIFE
    assert told.ran("parent") == []


# A fork that takes the process's place: `Engine.alone`

MOVES = """
from engine_bridge import ChannelFailures, EngineError

def move():
    global PARENT
    tell(alone=[thread.name for thread in threading.enumerate()])
    pid = os.fork()
    if pid:
        os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    PARENT = os.getpid()  # in its place

engine.subscribe("start", lambda: engine.alone(move), 10)
"""


def test_a_start_goes_on_in_a_child_that_takes_the_process_s_place() -> None:
    """The child completes the start, has its own watch, hears signals, and ends its life once."""
    told = Told(
        "import signal\n"
        "from engine_bridge.plugins import SignalHandler\n"
        "SignalHandler(engine).subscribe()\n"
        "other = Engine()\n"
        "other.subscribe('fork', lambda: tell(fork='other'))\n"
        f"{MOVES}\n"
        "engine.subscribe('fork', lambda: tell(fork='this'))\n"
        "threads = lambda: [thread.name for thread in threading.enumerate()]\n"
        "engine.subscribe('start', lambda: tell(threads=threads()), 11)\n"
        "engine.start()\n"
        "tell(state=engine.state.name, pid=engine.pid == os.getpid())\n"
        "heard = threading.Event()\n"
        "engine.subscribe('graceful', heard.set)\n"
        "os.kill(os.getpid(), signal.SIGUSR1)\n"
        "tell(heard=heard.wait(LIMIT))\n"
    )
    assert told.ran("parent") == LIFE
    assert told.one("parent", "alone") == ["MainThread"]
    assert told.one("parent", "threads") == ["MainThread", "engine watch"]
    assert told.one("parent", "state") == "STARTED"
    assert told.one("parent", "pid") is True
    assert told.one("parent", "heard") is True
    [fact] = [each for each in told.facts if "fork" in each]
    assert fact == {"who": "child", "fork": "other"}, told.facts  # before PARENT was changed


def test_limits_hold_in_a_child_that_takes_the_process_s_place() -> None:
    """A listener that hangs there is left behind once the budget of the start is spent."""
    told = Told(
        f"{MOVES}\n"
        "engine.start_timeout = 0.1\n"
        "hung = threading.Event()\n"
        "engine.subscribe('start', lambda: hung.wait(10), 11)\n"
        "engine.subscribe('stop', hung.set)\n"
        "try:\n"
        "    engine.start()\n"
        "except ChannelFailures as exc:\n"
        "    tell(raised=type(exc.exceptions[0]).__name__)\n"
    )
    assert told.one("parent", "raised") == "TransitionTimeout"


def test_alone_is_for_listeners_of_a_transition() -> None:
    """Elsewhere there is no transition to go on with, and a sentence."""
    engine = Engine()
    with pytest.raises(EngineError, match="is for listeners of a transition"):
        engine.alone(lambda: None)


def test_alone_is_too_late_once_the_listener_has_been_left_behind() -> None:
    """A listener that comes back when its transition is another thread's forks nothing."""
    told = Told(
        f"{MOVES}\n"
        "engine.start_timeout = 0.1\n"
        "rolled_back = threading.Event()\n"
        "engine.subscribe('stop', rolled_back.set)\n"
        "engine.subscribe('start', lambda: (rolled_back.wait(10), engine.alone(os.abort)), 9)\n"
        "try:\n"
        "    engine.start()\n"
        "except ChannelFailures as exc:\n"
        "    tell(raised=type(exc.exceptions[0]).__name__)\n"
    )
    assert told.one("parent", "raised") == "TransitionTimeout"


UNTOLD = """
import ctypes
from engine_bridge.frameworks.wsgi import EngineMiddleware

def respond(environ, start_response):
    start_response("200 OK", [])
    return []

app = EngineMiddleware(respond, engine)
pid = ctypes.PyDLL(None).fork()
if not pid:
    app({}, lambda status, headers: tell(status=status)).close()
    look()
    raise SystemExit(0)
_, status = os.waitpid(pid, 0)
tell(child=os.waitstatus_to_exitcode(status))
"""


def test_fork_that_python_is_not_told_of() -> None:
    """A worker that a server has forked behind Python's back, as uWSGI does, starts and stops."""
    told = Told(UNTOLD)
    assert [f["ran"] for f in told.facts if f["who"] == "child" and "ran" in f] == LIFE
    assert {"who": "child", "status": "200 OK"} in told.facts
    assert [f["pid"] for f in told.facts if "pid" in f] == [True]
    assert {"who": "parent", "child": 0} in told.facts
