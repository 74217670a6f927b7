"""`block` and `wait`."""

import threading
from typing import Any

import pytest
from actors import ALL, Call, Part, flatten, names, noting, wait_blocked, within
from processes import run_script

from engine_bridge import (
    ChannelFailures,
    Engine,
    State,
)

# block


def blocking(engine: Engine, interval: float = 0.1) -> Call:
    """Have a thread in `block`, and return once it is there."""
    call = Call(lambda: engine.block(interval))
    while not engine.notes.readers:
        assert not call.ended.is_set()
    return call


def test_block_returns_when_the_exit_is_complete(notes: list[str]) -> None:
    """block() returns after the last exit listener has, not when the state changes."""
    engine = Engine()
    exiting, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        exiting.set()
        go_on.wait(10)
        notes.append("exit")

    ticks = threading.Semaphore(0)
    engine.subscribe("exit", hold)
    engine.subscribe("main", ticks.release)
    engine.start()
    block = blocking(engine, 0.001)
    exit_ = Call(engine.exit)
    assert exiting.wait(10)
    assert engine.state is State.EXITING
    while ticks.acquire(blocking=False):
        pass  # those of before
    for _ in range(2):  # it has looked at the state since
        assert ticks.acquire(timeout=10)
    assert not block.ended.is_set()
    go_on.set()
    assert block.end().error is None
    assert notes == ["exit"]
    exit_.end()


def test_block_returns_at_once_after_an_exit() -> None:
    """Who blocks on an engine that has exited is not held."""
    engine = Engine()
    engine.exit()
    within(engine.block)


def test_block_raises_the_failures_of_the_exit() -> None:
    """What failed in the exit comes out of block() as one group, whoever asked for the exit."""
    engine = Engine()
    engine.subscribe("stop", lambda: 1 / 0)
    engine.subscribe("exit", [].pop)
    engine.start()
    block = blocking(engine)
    assert Call(engine.exit).end().error is not None
    assert names(flatten(block.end().error)) == ["ZeroDivisionError", "IndexError"]
    assert isinstance(block.error, ChannelFailures)


def test_block_raises_the_system_exit_of_the_exit() -> None:
    """A SystemExit of a stop or exit listener reaches the thread that decides the exit code."""
    engine = Engine()
    engine.subscribe("stop", Part("part", [], {"stop": SystemExit(5)}).stop)
    engine.start()
    block = blocking(engine)
    Call(engine.exit).end()
    error = block.end().error
    assert isinstance(error, SystemExit)
    assert error.code == 5


def test_block_ticks_main_only_while_it_has_listeners() -> None:
    """`main` comes again and again at the interval, as soon as and as long as somebody listens."""
    engine = Engine()
    ticks = threading.Semaphore(0)
    engine.start()
    block = blocking(engine, 0.01)
    listener = engine.subscribe("main", ticks.release)
    for _ in range(4):
        assert ticks.acquire(timeout=5)
    engine.unsubscribe("main", listener)
    engine.exit()
    assert block.end().error is None


def test_block_wakes_for_nothing_while_nobody_listens() -> None:
    """Without a listener on `main` the thread in block() sleeps: no tick, no wakeup."""
    engine = Engine()
    waits: list[float | None] = []
    get = engine.notes.get

    def counted(timeout: float | None) -> Any:
        waits.append(timeout)
        return get(timeout)

    engine.notes.get = counted  # type: ignore[method-assign]  # what it sleeps on, counted
    engine.start()
    block = blocking(engine, 0.001)
    assert not block.ended.wait(0.05)
    assert waits == [None]
    engine.exit()
    block.end()


def test_block_survives_a_failing_main_listener() -> None:
    """A `main` listener that fails is logged and called again; block() goes on."""
    engine = Engine()
    ticks = threading.Semaphore(0)

    def fail() -> None:
        ticks.release()
        raise ValueError("tick")

    engine.subscribe("main", fail)
    engine.start()
    block = blocking(engine, 0.001)
    for _ in range(2):
        assert ticks.acquire(timeout=5)
    engine.exit()
    assert block.end().error is None


def test_main_is_not_published_once_the_exit_is_complete(notes: list[str]) -> None:
    """No `main` listener runs after the exit listeners have cleaned up."""
    engine = Engine()
    engine.subscribe("main", noting(notes, "main"))
    engine.subscribe("exit", noting(notes, "exit"))
    engine.start()
    block = blocking(engine, 60)
    engine.exit()
    block.end()
    assert notes[-1] == "exit"


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt(), SystemExit(4)])
def test_interrupt_in_block_means_exit(interrupt: BaseException, notes: list[str]) -> None:
    """Ctrl-C in block() exits and returns; SystemExit exits too, and goes on up with its code."""
    engine = Engine()
    Part("part", notes).on(engine, *ALL)

    def leave() -> None:
        raise interrupt

    engine.start()
    engine.subscribe("main", leave)
    error = Call(lambda: engine.block(0.001)).end().error
    assert error is (interrupt if isinstance(interrupt, SystemExit) else None)
    assert notes == ["part.start", "part.stop", "part.exit"]


def test_two_threads_may_block() -> None:
    """Everyone in block() returns at the exit."""
    engine = Engine()
    engine.start()
    calls = [blocking(engine), Call(engine.block)]
    while len(engine.notes.readers) < 2:
        pass
    engine.exit()
    assert [call.end().error for call in calls] == [None, None]


# wait


def test_wait_wakes_when_the_state_comes() -> None:
    """wait() takes one state or several and returns True once the engine is in one."""
    engine = Engine()
    one = Call(lambda: engine.wait(State.STARTED))
    several = Call(lambda: engine.wait([State.EXITING, State.STARTED]))
    last = Call(lambda: engine.wait({State.EXITING}, 10))
    engine.start()
    assert one.end().outcome is True
    assert several.end().outcome is True
    assert not last.ended.is_set()
    engine.exit()
    assert last.end().outcome is True


@pytest.mark.parametrize("state", State)
def test_wait_wakes_for_a_state_that_passes(state: State) -> None:
    """Every state wakes who waits for it, as soon as it has begun and though it may be over."""
    engine = Engine()
    if state is State.STOPPED:
        engine.start()
    waiting = wait_blocked(Call(lambda: engine.wait(state, 10)))
    assert not waiting.ended.is_set()

    def look() -> None:
        assert waiting.ended.wait(3)

    for channel in ("start", "drain", "stop", "exit"):
        engine.subscribe(channel, lambda: look() if engine.state is state else None)
    engine.start()
    engine.exit()  # it passes STOPPED without a halt
    assert waiting.end().outcome is True


def test_wait_tells_when_time_is_up() -> None:
    """With a timeout it returns whether the engine is there; a state that holds costs no wait."""
    engine = Engine()
    assert engine.wait(State.STARTED, 0) is False
    assert engine.wait(State.STARTED, timeout=0.01) is False
    assert engine.wait(State.STOPPED, 0) is True
    assert engine.wait((), 0.01) is False


# signals, in a process of its own

ROUNDS = """
import os, signal, threading
from engine_bridge import Engine, State
from engine_bridge.plugins.signals import SignalHandler

engine = Engine()
SignalHandler(engine).subscribe()
lost = 0

def signal_it():
    "Send SIGTERM at the very moment at which the main thread falls asleep."
    global lost
    while not engine.notes.readers:
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    if not engine.wait(State.EXITING, 2):
        lost += 1
        os.kill(os.getpid(), signal.SIGTERM)

for _ in range(150):
    engine.start()
    thread = threading.Thread(target=signal_it)
    thread.start()
    engine.block()
    thread.join()
    if lost:
        break
print("lost", lost)
"""


def test_signal_that_comes_as_block_falls_asleep_is_acted_on() -> None:
    """Between the last look and the sleep there is no moment at which a signal is lost."""
    done = run_script(ROUNDS)
    assert (done.returncode, done.stdout) == (0, "lost 0\n"), done.stderr


def test_block_gives_back_the_wakeup_descriptor() -> None:
    """What it borrows of the `signal` module it gives back, to whom had it before."""
    done = run_script("""
        import os, signal
        from engine_bridge import Engine
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing)
        engine = Engine()
        engine.subscribe("main", engine.exit)
        engine.start()
        engine.block(0.001)
        print(signal.set_wakeup_fd(-1) == writing)
    """)
    assert done.stdout == "True\n", done.stderr
