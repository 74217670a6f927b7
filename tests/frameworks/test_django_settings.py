"""Django: what may stand in `ENGINE_BRIDGE`, the signals, and the database in the background."""

import asyncio
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest
from processes import run_script

from engine_bridge import ChannelFailures, Engine, EngineError, State

pytest.importorskip("django")

from engine_bridge.frameworks.django import conf, health_urls, signals, uses_database

GOOD = [
    {},
    {"ENGINE": {"drain_timeout": 20, "slow_after": 0.5}},
    {"PLUGINS": {"PIDFile": {"pidfile": "/run/x.pid"}, "SignalHandler": {}}},
    {"PLUGINS": {"PIDFile": [{"pidfile": "one.pid"}, {"pidfile": "two.pid"}]}},
    {"PLUGINS": {"engine_bridge.plugins.log.Log": {}}},
    {"PLUGINS": {"actors.Anything": {"colour": "red"}}},
    {"INSTANCE": "engine_bridge.engine"},
    {"INSTANCE": None},
]
PLUGIN = "ENGINE_BRIDGE['PLUGINS']"
INSTANCE = "ENGINE_BRIDGE['INSTANCE'] wants the dotted path of an Engine"
A_DICT = 'write ENGINE_BRIDGE = {"PLUGINS": {"PIDFile": {"pidfile": "/run/shop.pid"}}}'
A_CLASS = 'write the dotted path of a plugin class, e.g. "shop.plugins.Clock"'
A_FUNCTION = 'write the dotted path of a function, e.g. "shop.tasks.tidy"'
A_VARIABLE = 'write the path of a variable, e.g. "shop.lifecycle.engine", or leave it out'
A_PATH = "'/run/app.pid'"
SECONDS = "write a number of seconds, 0 or more"
OURS = (
    "known: Autoreloader, Daemonizer, DropPrivileges, FollowMain, Health, Log, Monitor, PIDFile, "
    "SignalHandler, Systemd, ThreadManager"
)
BAD: list[tuple[object, str, str, str]] = [
    ([], "E001", "ENGINE_BRIDGE wants a dict, got []", A_DICT),
    ({"plugin": {}}, "E002", "ENGINE_BRIDGE has no key 'plugin'", "did you mean 'PLUGINS'?"),
    ({"ROOT": 1}, "E002", "ENGINE_BRIDGE has no key 'ROOT'", "known: ENGINE, PLUGINS, INSTANCE"),
    (
        {"ENGINE": 3},
        "E003",
        "ENGINE_BRIDGE['ENGINE'] wants a dict, got 3",
        'write e.g. {"drain_timeout": 20}',
    ),
    (
        {"ENGINE": {"timeout": 3}},
        "E003",
        "ENGINE_BRIDGE['ENGINE'] has no parameter 'timeout'",
        "did you mean 'stop_timeout'?",
    ),
    (
        {"ENGINE": {"drain_timeout": "3"}},
        "E003",
        "ENGINE_BRIDGE['ENGINE']['drain_timeout'] is '3'",
        SECONDS,
    ),
    (
        {"ENGINE": {"slow_after": True}},
        "E003",
        "ENGINE_BRIDGE['ENGINE']['slow_after'] is True",
        SECONDS,
    ),
    (
        {"PLUGINS": {"PidFile": {}}},
        "E004",
        f"{PLUGIN}['PidFile']: there is no such plugin",
        "did you mean 'PIDFile'?",
    ),
    (
        {"PLUGINS": {"no.such.Plugin": {}}},
        "E004",
        f"{PLUGIN}['no.such.Plugin']: No module named 'no'",
        A_CLASS,
    ),
    ({"PLUGINS": {"os.sep": {}}}, "E004", f"{PLUGIN}['os.sep']: '/' is no plugin class", A_CLASS),
    ({"PLUGINS": {3: {}}}, "E004", f"{PLUGIN}[3]: the name of a plugin is a string", OURS),
    (
        {"PLUGINS": ["Log"]},
        "E005",
        f"{PLUGIN} wants a dict, got ['Log']",
        'write the options behind each name: {"Log": {}}',
    ),
    (
        {"PLUGINS": {"Log": True}},
        "E005",
        f"{PLUGIN}['Log'] wants a dict of options, got True",
        "write 'Log': {} for a plugin without options, a list for several of them",
    ),
    (
        {"PLUGINS": {"PIDFile": {"file": "x"}}},
        "E005",
        f"{PLUGIN}['PIDFile'] has no option 'file'",
        "its options: pidfile",
    ),
    (
        {"PLUGINS": {"PIDFile": {"pidfile": 3}}},
        "E005",
        f"{PLUGIN}['PIDFile']: not the path of a file: 3; example: PIDFile(engine, '/run/app.pid')",
        "its options: pidfile",
    ),
    (
        {"PLUGINS": {"Monitor": {"callback": "no.such"}}},
        "E005",
        f"{PLUGIN}['Monitor']: No module named 'no'",
        A_FUNCTION,
    ),
    (
        {"INSTANCE": "engine_bridge.Engine"},
        "E006",
        f"{INSTANCE}; 'engine_bridge.Engine' is <class 'engine_bridge.core.engine.Engine'>",
        A_VARIABLE,
    ),
    (
        {"INSTANCE": "no.such"},
        "E006",
        f"{INSTANCE}; 'no.such' cannot be imported: No module named 'no'",
        A_VARIABLE,
    ),
    ({"INSTANCE": 3}, "E006", f"{INSTANCE}, got 3", A_VARIABLE),
]


@pytest.mark.parametrize("settings", GOOD, ids=str)
def test_settings_that_are_fine(settings: dict[str, object]) -> None:
    """No problem is found where there is none, and the plugins are those that were named."""
    assert not list(conf.find_problems(settings))
    engine = Engine()
    assert all(plugin.engine is engine for plugin in conf.build_plugins(engine, settings))


@pytest.mark.parametrize(("settings", "number", "found", "hint"), BAD, ids=str)
def test_settings_that_are_wrong(settings: object, number: str, found: str, hint: str) -> None:
    """Each fault has an id, says what was found, and a hint says what to write."""
    (problem,) = conf.find_problems(settings)
    assert problem.id == f"engine_bridge.{number}"
    assert (problem.found, problem.hint) == (found, hint)
    assert str(problem) == f"{found}; {hint}"


def test_each_fault_is_told() -> None:
    """Several faults are told at once, those of one plugin of several included."""
    plugins = {"PIDFile": [{"pidfile": "fine"}, {"pidfile": 3}], "Log": {"colour": 1}}
    problems = conf.find_problems({"x": 1, "ENGINE": {"a": 1, "b": 2}, "PLUGINS": plugins})
    assert [problem.id[-1] for problem in problems] == ["2", "3", "3", "5", "5"]


def test_missing_django_is_told_of() -> None:
    """Without Django the error names the extra."""
    lines = ("import sys", "sys.modules['django'] = None", "import engine_bridge.frameworks.django")
    finished = run_script("\n".join(lines))
    assert finished.returncode == 1
    last = finished.stderr.splitlines()[-1]
    assert last.endswith(
        "EngineError: Django is not installed: pip install 'engine-bridge[django]'"
    )


# -- signals -------------------------------------------------------------------------------------


NAMES = ("engine_started", "engine_draining", "engine_stopped")


@contextmanager
def received(engine: Engine, *receivers: tuple[str, Callable[..., object]]) -> Iterator[list[str]]:
    """Connect *receivers* to signals of *engine*, and one to each that notes it was sent."""
    seen: list[str] = []
    connected = [(name, partial(lambda name, **kwargs: seen.append(name), name)) for name in NAMES]
    for name, receiver in [*receivers, *connected]:
        getattr(signals, name).connect(receiver, sender=engine)
    try:
        yield seen
    finally:
        for name, receiver in [*receivers, *connected]:
            getattr(signals, name).disconnect(receiver, sender=engine)


def fail(**kwargs: object) -> None:
    """Be a receiver that fails."""
    raise RuntimeError("no licence")


def fail_too(**kwargs: object) -> None:
    """Be another one."""
    raise RuntimeError("no file either")


def test_signals_are_sent(engine: Engine) -> None:
    """Receivers hear of the start, the drain and the stop, each once."""
    signals.send_for(engine)
    with received(engine) as seen:
        engine.start()
        assert seen == ["engine_started"]
        engine.exit()
    assert seen == list(NAMES)


@pytest.mark.parametrize("runs_on_loop", [False, True])
def test_async_receivers_have_one_loop(runs_on_loop: bool, engine: Engine) -> None:
    """Async receivers run on the loop that async listeners have."""
    signals.send_for(engine)
    loops = []

    async def note(**kwargs: object) -> None:
        loops.append(asyncio.get_running_loop())

    engine.subscribe("start", note)
    for name in NAMES:
        getattr(signals, name).connect(note, sender=engine)

    async def live() -> None:
        async with engine:
            assert loops[0] is asyncio.get_running_loop()

    if runs_on_loop:
        asyncio.run(live())
    else:
        with engine:
            pass
    for name in NAMES:
        getattr(signals, name).disconnect(note, sender=engine)
    assert len(loops) == 1 + len(NAMES)
    assert len(set(loops)) == 1


def test_failing_receiver_undoes_the_start(engine: Engine) -> None:
    """A receiver of `engine_started` that raises is a failing start; there was none to stop."""
    signals.send_for(engine)
    with received(engine, ("engine_started", fail)) as seen:
        with pytest.raises(ChannelFailures, match="no licence"):
            engine.start()
        assert seen == []
    assert engine.state is State.STOPPED


def test_failing_receivers_do_not_keep_others_from_the_stop(engine: Engine) -> None:
    """All receivers of `engine_stopped` are called, and all that failed is told."""
    signals.send_for(engine)
    failing = [("engine_stopped", fail), ("engine_stopped", fail_too)]
    with received(engine, *failing, ("engine_draining", fail)) as seen:
        engine.start()
        with pytest.raises(ChannelFailures) as caught:
            engine.stop()
    assert seen == list(NAMES)
    assert caught.group_contains(RuntimeError, match="no licence")
    assert caught.group_contains(RuntimeError, match="no file either")


# -- the database --------------------------------------------------------------------------------

CONNECTIONS = """
    import asyncio, threading, time
    from django.conf import settings
    settings.configure(DATABASES={"default": {
        "ENGINE": "django.db.backends.sqlite3", "NAME": "x.db", "CONN_MAX_AGE": 1000,
    }})
    import django
    django.setup()
    from django.db import connection
    from engine_bridge import engine
    from engine_bridge.frameworks.django import uses_database

    used = []

    @uses_database
    def ask():
        "Ask."
        connection.ensure_connection()
        used.append((connection.connection, threading.current_thread()))
        return "answer"

    @uses_database
    async def ask_async():
        return await asyncio.to_thread(lambda: "async answer")

    def let_it_age():
        assert connection.connection is not None, "it is kept"
        connection.close_at = time.monotonic() - 1

    assert ask.__name__ == "ask" and ask.__doc__ == "Ask."
    assert (ask(), ask()) == ("answer", "answer")
    assert used[0][0] is used[1][0]
    let_it_age()
    ask()
    assert used[2][0] is not used[1][0], "a stale one is not used"
    used[2][0].close()
    connection.close_at = time.monotonic() - 1

    async def on_loop():
        assert await ask() == "answer"
        assert used[-1][1] is not threading.main_thread()
        assert await ask_async() == "async answer"

    asyncio.run(on_loop())
    engine.subscribe("start", ask)
    engine.subscribe("start", ask_async)
    with engine:
        assert used[-1][1] is threading.main_thread()
    asyncio.run(engine.start_async())
    assert used[-1][1] is not threading.main_thread()
    print("fine")
"""


def test_uses_database_drops_stale_connections() -> None:
    """Connections are kept for as long as Django would; on a loop another thread asks."""
    finished = run_script(textwrap.dedent(CONNECTIONS))
    assert (finished.returncode, finished.stdout) == (0, "fine\n"), finished.stderr


def test_uses_database_wants_a_function() -> None:
    """Generator functions return before they have done anything, so they are refused."""

    def resource() -> Iterator[None]:
        yield

    with pytest.raises(EngineError, match="wants a function that returns, got <function"):
        uses_database(resource)
    with pytest.raises(EngineError, match="wants a function that returns, got 3"):
        uses_database(3)  # type: ignore[type-var]  # that is what is tested


def test_health_urls_want_the_plugin() -> None:
    """What does not answer probes is refused."""
    with pytest.raises(EngineError, match=r"wants the plugin Health, got <Engine .*Health\(engine"):
        health_urls(Engine())  # type: ignore[arg-type]  # that is what is tested
