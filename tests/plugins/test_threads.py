import gc
import logging
import re
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from actors import LIMIT, Call, at_once, within
from fakeserver import start_response
from processes import answers, get, publishes, run_script, run_server, wait_until

from engine_bridge import ChannelFailures, Engine
from engine_bridge.frameworks.wsgi import EngineMiddleware
from engine_bridge.plugins import ThreadManager

Heard = list[tuple[str, int, int]]


@pytest.fixture
def engine() -> Iterator[Engine]:
    """Return an engine that is ended after the test."""
    engine = Engine()
    yield engine
    with suppress(ChannelFailures):
        engine.exit()


@pytest.fixture
def heard(engine: Engine) -> Heard:
    """Return what is published of threads: the word, the number, and the thread it is said in."""
    found: Heard = []
    for word in ("start_thread", "stop_thread"):
        engine.subscribe(
            word, lambda number, word=word: found.append((word, number, threading.get_ident()))
        )
    return found


@pytest.fixture
def manager(engine: Engine, heard: Heard) -> ThreadManager:
    """Return a manager that is on."""
    manager = ThreadManager(engine)
    manager.subscribe()
    return manager


def acquire(engine: Engine) -> int:
    """Be a thread that answers a request; return which."""
    engine.publish("acquire_thread")
    return threading.get_ident()


def words(heard: Heard) -> list[tuple[str, int]]:
    """Return what was said of which number."""
    return [(word, number) for word, number, _ in heard]


class Worker:
    """A thread that answers requests when it is told to, until it ends."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._step = threading.Semaphore(0)
        self._done = threading.Semaphore(0)
        self._work: Callable[[], object] | None = None
        self.thread = threading.Thread(target=self._main, daemon=True)
        self.thread.start()

    def _main(self) -> None:
        while True:
            assert self._step.acquire(timeout=LIMIT)
            if self._work is None:
                return
            with suppress(ChannelFailures):
                self._work()
            self._done.release()

    def do(self, work: Callable[[], object]) -> None:
        """Have it call *work*."""
        self._work = work
        self._step.release()
        assert self._done.acquire(timeout=LIMIT)

    def request(self) -> None:
        """Have it answer a request."""
        self.do(lambda: self.engine.publish("acquire_thread"))

    def end(self) -> None:
        """Have it end."""
        self._work = None
        self._step.release()
        self.thread.join(LIMIT)
        assert not self.thread.is_alive()


@pytest.fixture
def workers(engine: Engine) -> Iterator[list[Worker]]:
    """Return three threads, which end with the test."""
    workers = [Worker(engine) for _ in range(3)]
    yield workers
    for worker in workers:
        if worker.thread.is_alive():
            worker.end()


def test_thread_is_started_once_and_stopped_where_it_ends(
    engine: Engine, heard: Heard, manager: ThreadManager, workers: list[Worker]
) -> None:
    """`start_thread` is published in it with its first request, `stop_thread` as it ends."""
    one, two, _ = workers
    for worker in (one, two, one, two):
        worker.request()
    idents = (one.thread.ident, two.thread.ident)
    assert heard == [("start_thread", 1, idents[0]), ("start_thread", 2, idents[1])]
    assert manager.threads == {idents[0]: 1, idents[1]: 2}
    one.end()
    assert heard[2:] == [("stop_thread", 1, idents[0])]
    assert manager.threads == {idents[1]: 2}


def test_numbers_are_never_given_twice(
    engine: Engine, heard: Heard, manager: ThreadManager
) -> None:
    """Threads one after another, which the system gives the same number, are told apart."""
    idents = [within(lambda: acquire(engine)) for _ in range(20)]
    assert len(set(idents)) < 20
    wait_until(lambda: len(heard) == 40)
    assert words(heard) == [
        (word, number) for number in range(1, 21) for word in ("start_thread", "stop_thread")
    ]
    assert manager.threads == {}


def test_number_of_a_released_thread_is_not_given_again(
    engine: Engine, heard: Heard, manager: ThreadManager, workers: list[Worker]
) -> None:
    """Released, a thread is stopped in itself, and with its next request started anew."""
    one, two, three = workers
    one.request()
    two.request()
    one.do(lambda: engine.publish("release_thread"))
    one.do(lambda: engine.publish("release_thread"))
    assert heard[2:] == [("stop_thread", 1, one.thread.ident)]
    three.request()
    one.request()
    assert words(heard)[3:] == [("start_thread", 3), ("start_thread", 4)]
    assert sorted(manager.threads.values()) == [2, 3, 4]


@pytest.mark.parametrize("verb", ["stop", "graceful"])
def test_threads_that_are_left_are_stopped_with_the_engine(
    engine: Engine, heard: Heard, manager: ThreadManager, workers: list[Worker], verb: str
) -> None:
    """On `stop` and on `graceful` all are told, once; who answers again starts anew."""
    engine.start()
    for worker in workers:
        worker.request()
    getattr(engine, verb)()
    assert sorted(words(heard)[3:]) == [("stop_thread", number) for number in (1, 2, 3)]
    assert {ident for _, _, ident in heard[3:]} == {threading.get_ident()}
    assert manager.threads == {}
    manager.stop()
    workers[0].request()
    assert words(heard)[6:] == [("start_thread", 4)]
    workers[0].end()
    workers[1].end()
    assert words(heard)[7:] == [("stop_thread", 4)]


def test_sixteen_threads_at_once_have_sixteen_numbers(
    engine: Engine, heard: Heard, manager: ThreadManager
) -> None:
    """Each thread is started once and stopped once, whatever the others do meanwhile."""

    def requests() -> None:
        for number in range(30):
            engine.publish("acquire_thread")
            if number % 10 == 9:
                engine.publish("release_thread")

    at_once([requests] * 16)
    for _ in range(3):
        calls = [Call(lambda: acquire(engine)) for _ in range(8)]
        manager.stop()
        for call in calls:
            assert call.end().error is None
    del calls
    manager.stop()
    gc.collect()
    wait_until(lambda: len(heard) == 2 * (16 * 3 + 24))
    starts = [number for word, number, _ in heard if word == "start_thread"]
    stops = [number for word, number, _ in heard if word == "stop_thread"]
    assert len(set(starts)) == len(starts)
    assert sorted(stops) == sorted(starts)


def test_listener_that_fails_fails_the_request_and_is_tried_again(
    engine: Engine, heard: Heard, manager: ThreadManager, workers: list[Worker]
) -> None:
    """A thread that could not be started is stopped; its next request tries anew."""
    failing = [OSError("no connection")]

    @engine.subscribe("start_thread")
    def connect(number: int) -> None:
        if failing:
            raise failing.pop()

    worker = workers[0]
    errors: list[Exception] = []

    def request() -> None:
        try:
            engine.publish("acquire_thread")
        except ChannelFailures as exc:
            errors.append(exc)

    worker.do(request)
    worker.do(request)
    assert len(errors) == 1
    assert words(heard) == [("start_thread", 1), ("stop_thread", 1), ("start_thread", 2)]


def test_stop_tells_all_threads_whatever_fails(
    engine: Engine, heard: Heard, manager: ThreadManager, workers: list[Worker]
) -> None:
    """Each failure is in the group that the stop raises."""

    @engine.subscribe("stop_thread")
    def close(number: int) -> None:
        raise OSError(f"connection {number}")

    engine.start()
    for worker in workers:
        worker.request()
    with pytest.raises(ChannelFailures) as caught:
        engine.stop()
    [group] = caught.value.exceptions
    assert isinstance(group, ChannelFailures)
    assert sorted(map(str, group.exceptions)) == [f"connection {number}" for number in (1, 2, 3)]


def test_failure_in_an_ending_thread_is_logged(
    engine: Engine,
    manager: ThreadManager,
    workers: list[Worker],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nobody could catch it there; and no stand-in for the ended thread stays behind."""

    @engine.subscribe("stop_thread")
    def close(number: int) -> None:
        raise OSError("cannot close")

    before = set(threading.enumerate())
    worker = workers[0]
    worker.request()
    worker.end()
    [entry] = caplog.records
    assert entry.levelno == logging.ERROR
    assert "stop_thread of thread 1 failed: " in entry.getMessage()
    assert "cannot close" in entry.getMessage()
    assert set(threading.enumerate()) == before - {worker.thread}


def test_manager_that_is_off_hears_nothing(
    engine: Engine, heard: Heard, manager: ThreadManager, workers: list[Worker]
) -> None:
    """Turned off it stops whom it had started; turned on twice it starts each once."""
    manager.subscribe()
    workers[0].request()
    manager.unsubscribe()
    assert words(heard) == [("start_thread", 1), ("stop_thread", 1)]
    workers[0].request()
    workers[0].end()
    assert len(heard) == 2
    assert not engine.hears_requests


def test_engine_that_is_dropped_publishes_nothing(workers: list[Worker]) -> None:
    """A thread that outlives the engine neither keeps it nor calls its listeners."""
    engine = Engine()
    heard: list[int] = []
    engine.subscribe("stop_thread", heard.append)
    ThreadManager(engine).subscribe()
    workers[0].do(lambda engine=engine: engine.publish("acquire_thread"))  # type: ignore[misc]  # a default binds it
    workers[0].do(int)
    gone = weakref.ref(engine)
    del engine
    gc.collect()
    assert gone() is None
    workers[0].end()
    assert heard == []


def test_child_starts_from_one_and_stops_none_of_the_parents() -> None:
    """After a fork the threads are the parent's; the one that forked is a new one in the child."""
    done = run_script("""
import gc, os, threading
from engine_bridge import engine
from engine_bridge.plugins import ThreadManager

heard = []
engine.subscribe("start_thread", lambda number: heard.append(("start", number)))
engine.subscribe("stop_thread", lambda number: heard.append(("stop", number)))
manager = ThreadManager(engine)
manager.subscribe()

def hold():
    engine.publish("acquire_thread")
    ready.set()
    go.wait()

ready, go = threading.Event(), threading.Event()
engine.publish("acquire_thread")
other = threading.Thread(target=hold)
other.start()
ready.wait()
del heard[:]
pid = os.fork()
if not pid:
    gc.collect()
    assert heard == [] and manager.threads == {}, heard
    engine.publish("acquire_thread")
    engine.publish("acquire_thread")
    manager.stop()
    assert heard == [("start", 1), ("stop", 1)], heard
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert sorted(manager.threads.values()) == [1, 2]
go.set()
other.join()
assert heard == [("stop", 2)], heard
""")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_wsgi_middleware_tells_of_its_threads(
    engine: Engine, heard: Heard, manager: ThreadManager, workers: list[Worker]
) -> None:
    """A request to an application in the middleware is enough."""

    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [b""]

    wrapped = EngineMiddleware(app, engine)
    for _ in range(2):
        workers[0].do(lambda: wrapped({}, start_response).close())  # type: ignore[attr-defined]  # as servers do
    assert words(heard) == [("start_thread", 1)]
    workers[0].end()
    assert words(heard) == [("start_thread", 1), ("stop_thread", 1)]


def test_threads_of_a_server_are_started_and_stopped(tmp_path: Path) -> None:
    """Under waitress each thread that answered is started once, and stopped when the engine is."""
    pytest.importorskip("waitress")
    (tmp_path / "app.py").write_text("""
import threading
from journal import record
from engine_bridge import engine
from engine_bridge.frameworks.wsgi import EngineMiddleware
from engine_bridge.plugins import ThreadManager

ThreadManager(engine).subscribe()
for word in ("start_thread", "stop_thread"):
    engine.subscribe(word, lambda number, word=word: record(word, number=number))
engine.subscribe("stop", lambda: record("stop"), 60)

def hello(environ, start_response):
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]

app = EngineMiddleware(hello)
""")
    command = [sys.executable, "-m", "waitress", "--listen", "127.0.0.1:{port}", "--threads", "3"]
    with run_server(
        [*command, "app:app"], cwd=tmp_path, ready=publishes("start_thread", 0)
    ) as server:
        for _ in range(20):
            assert get(server.port).ok
        server.signal(signal.SIGTERM)
        server.wait_exit()
    told = [(entry.channel, entry.facts.get("number")) for entry in server.journal()]
    starts = [number for word, number in told if word == "start_thread"]
    stops = [number for word, number in told if word == "stop_thread"]
    assert starts == list(range(1, len(starts) + 1))
    assert 1 <= len(starts) <= 3
    assert sorted(map(str, stops)) == sorted(map(str, starts))


# -- the guide -------------------------------------------------------------------------------------


def test_guide_begins_with_a_program_that_runs(tmp_path: Path) -> None:
    """What the guide shows first works as it stands, under the server that it names."""
    pytest.importorskip("waitress")
    guide = Path(__file__).parents[2] / "docs" / "guides" / "threads.md"
    (tmp_path / "app.py").write_text(guide.read_text().split("```python\n")[1].split("```")[0])
    command = [sys.executable, "-m", "waitress", "--listen", "127.0.0.1:{port}", "app:app"]
    with run_server(command, cwd=tmp_path, ready=answers("/")) as server:
        assert re.fullmatch(rb"[1-4] connections\n", get(server.port).body)
        server.signal(signal.SIGTERM)
        server.wait_exit()
        assert "Traceback" not in server.output()
