"""Lifespans joined, lifespans of mounted applications, probes, and the engine of a request."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any

import pytest
from actors import flatten, names
from fakeserver import Lifespan, until
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Host, Mount, Route, Router, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.testclient import TestClient
from starlette.websockets import WebSocket

from engine_bridge import Engine, EngineError, State
from engine_bridge.core import signals
from engine_bridge.frameworks.asgi import EngineMiddleware
from engine_bridge.frameworks.starlette import (
    compose,
    current_engine,
    health_routes,
    mounted_lifespans,
)
from engine_bridge.plugins import Health

Life = Callable[[Any], AbstractAsyncContextManager[Any]]
Naming = Callable[[int], Engine]


@pytest.fixture
def notes() -> list[str]:
    """Return what lifespans of this test note."""
    return []


def noting(
    notes: list[str],
    name: str,
    *,
    state: Any = None,
    startup: BaseException | None = None,
    shutdown: BaseException | None = None,
) -> Life:
    """Return a lifespan that notes its two halves, without `try … finally`."""

    @asynccontextmanager
    async def noted(app: object) -> AsyncIterator[Any]:
        notes.append(f"+{name}")
        if startup is not None:
            raise startup
        yield state
        notes.append(f"-{name}")
        if shutdown is not None:
            raise shutdown

    return noted


async def show_state(request: Request) -> JSONResponse:
    """Answer with the lifespan state that the request got."""
    return JSONResponse(dict(request.state._state))


async def show_engine(request: Request) -> PlainTextResponse:
    """Answer with the name of the engine that serves the request."""
    return PlainTextResponse(str(current_engine(request).start_timeout))


def showing(life: Life | None = None, *routes: Any) -> Starlette:
    """Return an application with *life* that shows its state, with *routes* besides."""
    return Starlette(routes=[*routes, Route("/", show_state)], lifespan=life)


def run(life: Life, app: object = "the application") -> Any:
    """Take *life* from its beginning to its end; return what it yields."""

    async def main() -> Any:
        async with life(app) as state:
            return state

    return asyncio.run(main())


# compose


def test_compose_enters_in_order_and_leaves_in_reverse(
    engine: Engine, notes: list[str], heard: list[str]
) -> None:
    """The first lifespan is the outermost; all get the application."""
    apps = []

    async def plain(app: object) -> AsyncIterator[None]:
        apps.append(app)
        yield

    life = compose(engine.lifespan, noting(notes, "a"), plain, noting(notes, "b"))
    engine.subscribe("start", lambda: notes.append("start"))
    engine.subscribe("drain", lambda: notes.append("drain"))
    engine.subscribe("exit", lambda: notes.append("exit"))
    assert run(life, apps) is None
    assert apps == [apps]
    assert notes == ["start", "+a", "+b", "drain", "-b", "-a", "exit"]


def test_compose_merges_what_they_yield_and_the_later_one_wins(engine: Engine) -> None:
    """All mappings become one state, as in `{**first, **second}`."""

    @engine.resource
    async def database() -> AsyncIterator[dict[str, int]]:
        yield {"database": 1, "cache": 1}

    later = noting([], "later", state={"cache": 2, "queue": 2})
    assert run(compose(engine.lifespan, later)) == {"database": 1, "cache": 2, "queue": 2}
    assert run(compose(compose(later), noting([], "last", state={"queue": 3}))) == {
        "cache": 2,
        "queue": 3,
    }
    assert run(compose()) is None


@pytest.mark.parametrize("way", ["lifespan", "app.router"])
def test_compose_gives_requests_the_state(engine: Engine, way: str) -> None:
    """Starlette takes it for a lifespan, and may be opened again and again."""
    life = compose(engine.lifespan, noting([], "a", state={"one": 1}))
    app = showing(life if way == "lifespan" else None)
    if way == "app.router":
        app.router.lifespan_context = life
    for _ in range(2):
        with TestClient(app) as client:
            assert client.get("/").json() == {"one": 1}
            assert engine.wait(State.STARTED, 0)
        assert engine.wait(State.EXITING, 0)


@pytest.mark.parametrize("fails", [False, True])
def test_compose_drains_before_anything_ends(engine: Engine, notes: list[str], fails: bool) -> None:
    """What is left before the engine exits may wait for the drain, also when a start fails."""

    @asynccontextmanager
    async def working(app: object) -> AsyncIterator[None]:
        task = asyncio.create_task(engine.draining.wait_async(5))
        yield
        assert await task

    life = compose(compose(engine.lifespan), working)
    if not fails:
        run(life)
        return
    with pytest.raises(LookupError):
        run(compose(life, noting(notes, "broken", startup=LookupError())))


@pytest.mark.parametrize("error", [LookupError("no database"), asyncio.CancelledError()])
def test_compose_leaves_all_although_the_drain_fails(
    engine: Engine, notes: list[str], error: BaseException
) -> None:
    """A drain that fails, or is given up, keeps no lifespan from its end, and is told."""

    @engine.subscribe("drain")
    async def fail() -> None:
        raise error

    life = compose(engine.lifespan, noting(notes, "a", shutdown=ValueError("a")))

    async def main() -> list[str]:
        try:
            async with life(None):
                pass
        except BaseException as exc:
            return names(flatten(exc))
        raise AssertionError

    told = asyncio.run(main())
    assert notes == ["+a", "-a"]
    assert engine.state is State.EXITING
    assert type(error).__name__ in told


def test_compose_leaves_all_whatever_fails_to_start(notes: list[str]) -> None:
    """Those before the one that failed are left as on a shutdown; later ones never began."""
    error = LookupError("no database")
    life = compose(
        noting(notes, "a"),
        noting(notes, "b"),
        noting(notes, "c", startup=error),
        noting(notes, "d"),
    )
    with pytest.raises(LookupError) as caught:
        run(life)
    assert caught.value is error
    assert notes == ["+a", "+b", "+c", "-b", "-a"]


def test_compose_tells_all_that_fails(notes: list[str]) -> None:
    """A failing start and failing ends are told together."""
    life = compose(
        noting(notes, "a", shutdown=OSError("a")),
        noting(notes, "b", shutdown=ValueError("b")),
        noting(notes, "c", startup=LookupError("c")),
    )
    with pytest.raises(ExceptionGroup) as caught:
        run(life)
    assert names(caught.value.exceptions) == ["LookupError", "ValueError", "OSError"]
    assert notes == ["+a", "+b", "+c", "-b", "-a"]


@pytest.mark.parametrize("failing", ["one", "two", "body"])
def test_compose_leaves_all_whatever_fails_to_end(notes: list[str], failing: str) -> None:
    """A lifespan that fails to end keeps no other from it; one failure is raised as it is."""
    first = OSError("a") if failing == "two" else None
    life = compose(noting(notes, "a", shutdown=first), noting(notes, "b", shutdown=ValueError("b")))

    async def main() -> None:
        async with life(None):
            if failing == "body":
                raise LookupError("body")

    with pytest.raises((ValueError, ExceptionGroup)) as caught:
        asyncio.run(main())
    wanted = {
        "one": ["ValueError"],
        "two": ["ValueError", "OSError"],
        "body": ["LookupError", "ValueError"],
    }
    assert names(flatten(caught.value)) == wanted[failing]
    assert notes == ["+a", "+b", "-b", "-a"]


def test_compose_raises_what_its_body_raises() -> None:
    """An error of who uses it is passed on, and given to no lifespan."""
    life = compose(noting([], "a"))

    async def main() -> None:
        async with life(None):
            raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        asyncio.run(main())


@pytest.mark.parametrize("when", ["inside", "startup", "shutdown"])
def test_compose_that_is_cancelled_leaves_all(
    notes: list[str], when: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that gives up still has everything closed; what fails then is in the log."""
    cancelled = asyncio.CancelledError()
    life = compose(
        noting(notes, "a", shutdown=ValueError("a")),
        noting(notes, "b", shutdown=cancelled if when == "shutdown" else None),
        noting(notes, "c", startup=cancelled if when == "startup" else None),
    )

    async def main() -> None:
        async with life(None):
            if when == "inside":
                raise cancelled

    async def cancelled_main() -> None:
        with pytest.raises(asyncio.CancelledError):
            await main()

    asyncio.run(cancelled_main())
    assert notes[-1] == "-a"
    assert "ValueError: a" in caplog.text
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


@pytest.mark.parametrize("half", ["startup", "shutdown"])
def test_compose_turns_system_exit_into_an_error(notes: list[str], half: str) -> None:
    """SystemExit, let loose in a task, would end the server's loop: it fails the lifespan."""
    life = compose(noting(notes, "a"), noting(notes, "b", **{half: SystemExit(3)}))
    with pytest.raises(EngineError, match=r"lifespan .*noted asked to exit with 3") as caught:
        run(life)
    assert isinstance(caught.value.__cause__, SystemExit)
    assert notes[-1] == "-a"


async def never_yields(app: object) -> AsyncIterator[None]:
    """Return before its only yield."""
    if app is None:
        yield


async def yields_twice(app: object) -> AsyncIterator[None]:
    """Yield once too often."""
    yield
    yield


@pytest.mark.parametrize(
    ("life", "told"),
    [(never_yields, "did not yield"), (yields_twice, "yielded twice")],
)
def test_compose_names_the_lifespan_that_does_not_yield_once(life: Any, told: str) -> None:
    """A lifespan that yields twice or not at all is named."""
    for each in (life, asynccontextmanager(life)):
        with pytest.raises(
            EngineError, match=f"{life.__name__} {told}; it must yield exactly once"
        ):
            run(compose(each))


def test_compose_leaves_an_error_of_its_own_kind_alone(notes: list[str]) -> None:
    """Another RuntimeError is no wrong number of yields."""
    error = RuntimeError("the database is down")
    with pytest.raises(RuntimeError, match="the database is down") as caught:
        run(compose(noting(notes, "a", startup=error)))
    assert caught.value is error
    assert error.__cause__ is None


@pytest.mark.parametrize("value", [7, ["state"]])
def test_compose_names_the_lifespan_that_yields_no_mapping(notes: list[str], value: object) -> None:
    """What is yielded must be a mapping; what was opened by then is closed."""
    with pytest.raises(EngineError, match=r"noted yielded .*; it must yield a mapping"):
        run(compose(noting(notes, "a"), noting(notes, "b", state=value)))
    assert notes == ["+a", "+b", "-b", "-a"]


async def coroutine(app: object) -> None:
    """Be no generator."""


def generator(app: object) -> Any:
    """Be a lifespan, but for an `async`."""
    yield


def no_argument() -> None:
    """Take no application."""


def opened() -> object:
    """Return what a lifespan returns."""
    return noting([], "a")(None)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (None, "it is no function"),
        ("engine.lifespan", "it is no function"),
        (Engine, "it must take one argument, the application"),
        (no_argument, "it must take one argument, the application"),
        (coroutine, "it is an async function that never yields"),
        (generator, "write `async def`"),
        (opened(), "give the function itself, not what it returns"),
    ],
    ids=["None", "str", "class", "no_argument", "coroutine", "generator", "opened"],
)
def test_compose_refuses_what_is_no_lifespan(wrong: Any, told: str) -> None:
    """What is no lifespan is refused at once, in one sentence that says what to write."""
    with pytest.raises(EngineError) as caught:
        compose(wrong)
    assert told in str(caught.value)
    assert repr(wrong) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_compose_refuses_the_engine_itself(engine: Engine) -> None:
    """Whoever gives the engine is told of its lifespan."""
    with pytest.raises(EngineError, match=r"give its method engine\.lifespan"):
        compose(engine)  # type: ignore[arg-type]  # that is what is wrong


def test_compose_names_the_function_that_returns_no_context(notes: list[str]) -> None:
    """A function that only looks like a lifespan is found out when it is called."""

    def looks_like_one(app: object) -> int:
        return 7

    wrong: list[Any] = [looks_like_one, iter]  # the second does not even say what it takes
    for function in wrong:
        told = f"{function.__name__} returned .*, which is no async context manager"
        with pytest.raises(EngineError, match=told):
            run(compose(noting(notes, "a"), function))
    assert notes == ["+a", "-a"] * 2


# mounted_lifespans


def test_mounted_lifespans_run_at_any_depth_in_order(engine: Engine, notes: list[str]) -> None:
    """Every mounted application is started, before those mounted in it; ended in reverse."""
    deep = showing(noting(notes, "deep"))
    app = showing(
        compose(engine.lifespan, noting(notes, "app"), mounted_lifespans),
        Mount("/one", showing(noting(notes, "one"), Mount("/deep", deep))),
        Mount("/group", routes=[Mount("/two", showing(noting(notes, "two")))]),
        Host("three.example", showing(noting(notes, "three"))),
        Mount("/router", Router(routes=[Route("/", show_state)], lifespan=noting(notes, "router"))),
        Mount("/static", StaticFiles(directory=".")),
    )
    with TestClient(app) as client:
        assert notes == ["+app", "+one", "+deep", "+two", "+three", "+router"]
        for path in ("/", "/one/", "/one/deep/", "/group/two/", "/router/"):
            assert client.get(path).status_code == 200
    assert notes[6:] == ["-router", "-three", "-two", "-deep", "-one", "-app"]


@pytest.mark.parametrize(
    "way", ["function", "argument", "call", "later", "skipping"], ids=lambda way: f"by_{way}"
)
def test_mounted_lifespans_may_be_written_in_several_ways(notes: list[str], way: str) -> None:
    """It is a lifespan, with or without its application, and may be opened twice."""
    app = showing(None, Mount("/sub", showing(noting(notes, "sub"))))
    ways: dict[str, Any] = {
        "function": mounted_lifespans,
        "argument": mounted_lifespans(app),
        "call": partial(mounted_lifespans, skip=()),
        "later": compose(mounted_lifespans()),
        "skipping": compose(mounted_lifespans(skip=[])),
    }
    app.router.lifespan_context = ways[way]
    for _ in range(2):
        with TestClient(app):
            assert notes == ["+sub"]
        assert notes == ["+sub", "-sub"]
        notes.clear()


def test_mounted_lifespans_run_each_once(notes: list[str]) -> None:
    """An application that is mounted twice, wrapped or not, or in itself, is started once."""
    sub = showing(noting(notes, "sub", state={"sub": 1}))
    sub.mount("/self", sub)
    app = showing(
        compose(noting(notes, "app"), mounted_lifespans),
        Mount("/a", sub),
        Mount("/b", CORSMiddleware(sub)),
        Mount("/c", sub, middleware=[Middleware(CORSMiddleware)]),
    )
    app.mount("/again", app)
    app.mount("/router", app.router)
    with TestClient(app) as client:
        for path in ("/a/", "/b/", "/c/", "/a/self/", "/again/a/"):
            assert client.get(path).json() == {"sub": 1}
    assert notes == ["+app", "+sub", "-sub", "-app"]


def test_mounted_lifespans_of_a_mounted_application_that_runs_them_itself(notes: list[str]) -> None:
    """Whoever runs those mounted in it already has them run once all the same."""
    deep = showing(noting(notes, "deep", state={"deep": 1}))
    sub = showing(compose(noting(notes, "sub"), mounted_lifespans), Mount("/deep", deep))
    app = showing(compose(noting(notes, "app"), mounted_lifespans), Mount("/sub", sub))
    for opened_app, path in ((app, "/sub/deep/"), (sub, "/deep/")):
        with TestClient(opened_app) as client:
            assert client.get(path).json() == {"deep": 1}
    assert notes == [
        *("+app", "+sub", "+deep", "-deep", "-sub", "-app"),
        *("+sub", "+deep", "-deep", "-sub"),
    ]


def test_mounted_lifespans_leave_out_what_is_skipped(notes: list[str]) -> None:
    """Who is to be left alone is, with all that is mounted in it."""
    deep = showing(noting(notes, "deep"))
    admin = showing(noting(notes, "admin"), Mount("/deep", deep))
    app = showing(
        mounted_lifespans(skip=[admin]),
        Mount("/admin", CORSMiddleware(admin)),
        Mount("/shop", showing(noting(notes, "shop"))),
    )
    with TestClient(app):
        assert notes == ["+shop"]


def test_mounted_lifespans_give_each_application_its_own_state(notes: list[str]) -> None:
    """A mounted application sees its own state over that around it; nobody else sees it."""
    deep = showing(noting(notes, "deep", state={"name": "deep", "deep": 1}))
    one = showing(noting(notes, "one", state={"name": "one", "one": 1}), Mount("/deep", deep))
    two = showing(noting(notes, "two"))
    outer = noting(notes, "app", state={"name": "app", "app": 1})
    app = showing(compose(outer, mounted_lifespans), Mount("/one", one), Mount("/two", two))
    expected = {
        "/": {"name": "app", "app": 1},
        "/one/": {"name": "one", "app": 1, "one": 1},
        "/one/deep/": {"name": "deep", "app": 1, "one": 1, "deep": 1},
        "/two/": {"name": "app", "app": 1},
    }
    for _ in range(2):
        with TestClient(app) as client:
            for path in (*expected, *expected):
                assert client.get(path).json() == expected[path]
    assert TestClient(app).get("/one/").json() == {}, "a state ends with its lifespan"


def test_mounted_lifespans_of_two_lives_at_once_end_apart(notes: list[str]) -> None:
    """Two clients of one application have a life each; the end of one leaves the other alone."""
    app = showing(mounted_lifespans, Mount("/sub", showing(noting(notes, "s", state={"sub": 1}))))
    first, second = TestClient(app), TestClient(app)
    with second:
        with first:
            assert first.get("/sub/").json() == {"sub": 1}
        assert second.get("/sub/").json() == {"sub": 1}
    assert notes == ["+s", "+s", "-s", "-s"]


async def strict(scope: Any, receive: Any, send: Any) -> None:
    """Be an application that knows no lifespan, and says so by raising."""
    raise ValueError(f"no scope for me: {scope['type']}")


class Careless:
    """A middleware that takes every scope for a request."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["method"]
        await self.app(scope, receive, send)


class Loop:
    """A middleware that wraps itself."""

    @property
    def app(self) -> "Loop":
        return self

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...


def test_mounted_lifespans_see_through_middleware_that_knows_none(
    engine: Engine, notes: list[str]
) -> None:
    """A middleware that fails on a lifespan does not keep the application from its own."""
    sub = showing(noting(notes, "sub", state={"sub": 1}))
    other = showing(noting(notes, "other"))
    app = showing(
        mounted_lifespans,
        Mount("/sub", Careless(sub)),
        Mount("/other", EngineMiddleware(other, engine)),
        Mount("/strict", strict),
        Mount("/loop", Loop()),
    )
    with TestClient(app) as client:
        assert notes == ["+sub", "+other"]
        assert engine.wait(State.STARTED, 0), "who knows the lifespan is asked"
        assert client.get("/sub/").json() == {"sub": 1}
    assert engine.wait(State.EXITING, 0)


def test_mounted_lifespans_leave_the_state_of_middleware_alone() -> None:
    """What middleware around the mount has put into `request.state`, it finds there afterwards."""

    class Marking:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                request = Request(scope)
                request.state.marks = marks = ["before"]
                await self.app(scope, receive, send)
                assert request.state.marks is marks
                assert request.state.inner == "set inside"
            else:
                await self.app(scope, receive, send)

    async def inside(request: Request) -> PlainTextResponse:
        request.state.inner = "set inside"
        return PlainTextResponse("".join(request.state.marks))

    sub = Starlette(
        routes=[Route("/", inside)],
        lifespan=noting([], "sub", state={"inner": "from the lifespan"}),
    )
    app = Starlette(
        routes=[Mount("/sub", sub)], lifespan=mounted_lifespans, middleware=[Middleware(Marking)]
    )
    with TestClient(app) as client:
        assert client.get("/sub/").text == "before"


@pytest.mark.parametrize("kind", ["Starlette", "EngineMiddleware"])
def test_mounted_lifespan_that_fails_to_start_is_told_with_its_path(
    engine: Engine, notes: list[str], kind: str
) -> None:
    """The startup fails with the path of the mount and the original error; the others are ended."""

    def broken() -> None:
        raise LookupError("no database")

    sub: Any = showing(noting(notes, "sub", startup=LookupError("no database")))
    if kind == "EngineMiddleware":
        engine.subscribe("start", broken)
        sub = EngineMiddleware(strict, engine)
    app = showing(
        compose(noting(notes, "app"), mounted_lifespans),
        Mount("/fine", showing(noting(notes, "fine"))),
        Mount("/api", routes=[Mount("/v1", sub)]),
    )

    async def main() -> None:
        server = Lifespan(app)
        message = await server.startup()
        assert message["type"] == "lifespan.startup.failed"
        assert "the application mounted at /api/v1 failed to start up" in message["message"]
        assert "LookupError: no database" in message["message"]
        assert isinstance(server.error, EngineError)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
    assert notes[-2:] == ["-fine", "-app"]


def test_mounted_lifespan_that_fails_to_end_is_told_with_its_path(notes: list[str]) -> None:
    """All that fail to end are told, with the paths of their mounts."""
    first = showing(noting(notes, "a", shutdown=LookupError("first")))
    second = showing(noting(notes, "b", shutdown=ValueError("second")))
    app = showing(mounted_lifespans, Mount("/first", first), Host("b.example", second))
    with pytest.raises(ExceptionGroup) as caught, TestClient(app):
        pass
    told = [str(error) for error in caught.value.exceptions]
    assert told == [
        "the application mounted at //b.example failed to shut down",
        "the application mounted at /first failed to shut down",
    ]
    assert names([error.__cause__ for error in caught.value.exceptions]) == [
        "ValueError",
        "LookupError",
    ]


@pytest.mark.parametrize("half", ["startup", "shutdown"])
def test_mounted_lifespan_that_is_cancelled_leaves_no_task(half: str) -> None:
    """A server that gives up while a mounted application starts or ends leaves no task behind."""
    notes: list[str] = []

    @asynccontextmanager
    async def slow(app: object) -> AsyncIterator[None]:
        try:
            if half == "startup":
                notes.append("here")
                await asyncio.Event().wait()
            yield
            notes.append("here")
            await asyncio.Event().wait()
        finally:
            notes.append("left")

    app = showing(mounted_lifespans, Mount("/sub", showing(slow)))

    async def main() -> None:
        task = asyncio.create_task(_open(app))
        await until(lambda: "here" in notes)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
    assert notes == ["here", "left"]


async def _open(app: Starlette) -> None:
    async with mounted_lifespans(app):
        pass


@pytest.mark.parametrize("wrong", [7, "app", strict])
def test_mounted_lifespans_refuse_what_has_no_routes(wrong: Any) -> None:
    """Where no routes are there is nothing to look for, and that is said at once."""
    with pytest.raises(EngineError, match="wants a Starlette or FastAPI application, got"):
        mounted_lifespans(wrong)


@pytest.mark.parametrize("skip", [7, "admin", strict])
def test_mounted_lifespans_refuse_what_is_no_list_to_skip(skip: Any) -> None:
    """`skip` takes applications, in a list."""
    with pytest.raises(EngineError, match=r"skip=…\) wants a list of applications, got"):
        mounted_lifespans(skip=skip)


def test_mounted_lifespans_without_an_application_say_so() -> None:
    """Entered before any application was given, they say what is missing."""

    async def main() -> None:
        async with mounted_lifespans():
            pass

    with pytest.raises(EngineError, match=r"has no application: mounted_lifespans\(app\)"):
        asyncio.run(main())


def test_mounted_router_is_given_the_outermost_application() -> None:
    """The lifespan of a bare router gets the application that it is part of."""
    seen = []

    @asynccontextmanager
    async def life(app: object) -> AsyncIterator[None]:
        seen.append(app)
        yield

    app = showing(mounted_lifespans, Mount("/router", Router(lifespan=life)))
    with TestClient(app):
        assert seen == [app]


# health_routes


@pytest.mark.parametrize("prefix", ["", "/health"])
def test_health_routes_are_answered_by_the_plugin(engine: Engine, prefix: str) -> None:
    """Each probe has a route, for GET and HEAD, also below a mount; 503 while it drains."""
    routes = health_routes(Health(engine))
    app = Starlette(
        routes=[Mount(prefix, routes=routes)] if prefix else routes, lifespan=engine.lifespan
    )
    with TestClient(app) as client:
        for name in ("livez", "readyz", "startupz"):
            answer = client.get(f"{prefix}/{name}")
            assert (answer.status_code, answer.text) == (200, "ok")
            assert client.head(f"{prefix}/{name}").status_code == 200
        assert client.get(f"{prefix}/other").status_code == 404
        engine.draining.set()
        assert client.get(f"{prefix}/readyz").status_code == 503
        assert client.get(f"{prefix}/livez").status_code == 200


@pytest.mark.parametrize("wrong", [None, "health", Health, strict])
def test_health_routes_refuse_what_is_no_plugin(wrong: Any) -> None:
    """What answers no probes is refused in one sentence, a class that was not called included."""
    with pytest.raises(EngineError, match=r"health_routes\(…\) wants a Health plugin, got"):
        health_routes(wrong)


# current_engine


@pytest.fixture
def named() -> Iterator[Naming]:
    """Return a function that makes an engine which `show_engine` can tell from others."""
    made = []

    def make(name: int) -> Engine:
        made.append(Engine(start_timeout=name))
        return made[-1]

    yield make
    for engine in made:
        engine.exit()
        signals.unwatch(engine)


def engine_showing(**options: Any) -> Starlette:
    """Return an application that shows the engine of a request."""
    return Starlette(routes=[Route("/", show_engine)], **options)


def test_current_engine_is_that_of_the_lifespan(named: Naming) -> None:
    """Two applications in one process, each with an engine, are told apart; wrapped ones too."""
    one, two = named(1), named(2)

    @asynccontextmanager
    async def own(app: Starlette) -> AsyncIterator[None]:
        async with two.lifespan(app):
            yield

    first = engine_showing(lifespan=compose(noting([], "a"), one.lifespan))
    second = engine_showing(lifespan=own)
    with TestClient(first) as first_client, TestClient(second) as second_client:
        assert (first_client.get("/").text, second_client.get("/").text) == ("1", "2")
        second.mount("/first", first)
        assert second_client.get("/first/").text == "1", (
            "its own lifespan's, wherever it is mounted"
        )


@pytest.mark.parametrize("way", ["add_middleware", "around"])
@pytest.mark.parametrize("entered", [True, False])
def test_current_engine_is_that_of_the_middleware(named: Naming, way: str, entered: bool) -> None:
    """Also where a TestClient is used without `with`, so that it starts with the request."""
    one, two = named(1), named(2)
    app: Any = engine_showing()
    if way == "add_middleware":
        app.add_middleware(EngineMiddleware, engine=two)
    else:
        app = EngineMiddleware(app, two)
    client = TestClient(app)
    with one:
        if entered:
            with client:
                assert client.get("/").text == "2"
        else:
            assert client.get("/").text == "2"
    assert not two.in_flight


@pytest.mark.parametrize("way", ["add_middleware", "around", "mounted"])
def test_two_engines_for_one_application_are_told(
    named: Naming, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A middleware with another engine than the lifespan's is warned of; a mounted one may have."""
    one, two = named(1), named(2)
    app: Any = engine_showing(lifespan=one.lifespan)
    if way == "add_middleware":
        app.add_middleware(EngineMiddleware, engine=two)
    elif way == "around":
        app = EngineMiddleware(app, two)
    else:
        app.router.lifespan_context = compose(one.lifespan, mounted_lifespans)
        app.mount("/sub", EngineMiddleware(engine_showing(), two))
    with TestClient(app):
        if way == "mounted":
            assert caplog.messages == []
            return
    (told,) = caplog.messages
    assert "two engines for <starlette.applications.Starlette object" in told
    assert "give it that of the application's lifespan: EngineMiddleware(app, engine)" in told


def test_current_engine_of_a_mounted_application_is_that_around_it(named: Naming) -> None:
    """A mounted application without an engine of its own has that of the outermost."""
    one, two = named(1), named(2)
    app = engine_showing(lifespan=two.lifespan)
    app.mount("/sub", engine_showing())
    with one, TestClient(app) as client:
        assert client.get("/sub/").text == "2"


@pytest.mark.parametrize("composed", [False, True])
def test_current_engine_without_a_lifespan_is_that_of_the_one_planned(
    named: Naming, composed: bool
) -> None:
    """A TestClient without `with` runs no lifespan; it is known nevertheless whose it would be."""
    one, two = named(1), named(2)
    life = compose(noting([], "a"), two.lifespan) if composed else two.lifespan
    with one:
        assert TestClient(engine_showing(lifespan=life)).get("/").text == "2"


def test_current_engine_is_the_only_one_that_is_started(named: Naming) -> None:
    """An engine that a script has started needs neither lifespan nor middleware."""
    with named(1):
        assert TestClient(engine_showing()).get("/").text == "1"


def test_current_engine_says_that_there_is_none(named: Naming) -> None:
    """Without any engine, or with two that might be meant, the sentence says what to write."""
    client = TestClient(engine_showing())
    for engines in ([], [named(1), named(2)]):
        for each in engines:
            each.start()
        with pytest.raises(EngineError, match=r"no engine serves /: .*lifespan=engine\.lifespan"):
            client.get("/")


def test_current_engine_is_known_to_a_websocket(engine: Engine) -> None:
    """A WebSocket has the engine of its application like any request."""

    async def talk(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(str(current_engine(websocket) is engine))
        await websocket.close()

    app = Starlette(routes=[WebSocketRoute("/", talk)])
    app.add_middleware(EngineMiddleware, engine=engine)
    with TestClient(app) as client, client.websocket_connect("/") as websocket:
        assert websocket.receive_text() == "True"
