"""
Health: answers to `/livez`, `/readyz` and `/startupz`, as a WSGI and as an ASGI application.

What each probe stands for is Kubernetes's idea, and so is what must not go into it. Liveness asks
whether a new process would help, and the answer to "no" is a kill. So it depends on nothing outside
of the process, stays 200 while the engine starts and drains, and knows nothing of checks unless
somebody says so. Readiness asks whether requests are welcome at this moment.

Source:
    Kubernetes, "Liveness, Readiness, and Startup Probes", and its API server's `/livez?verbose`.
"""

from collections.abc import Callable, Iterable, Mapping
from time import monotonic
from typing import NamedTuple, overload

from engine_bridge.core import nets
from engine_bridge.core.engine import Engine
from engine_bridge.core.errors import ChannelFailures, EngineError
from engine_bridge.core.records import INFO, WARNING, Record, StateChanged
from engine_bridge.core.states import State
from engine_bridge.plugins import arguments
from engine_bridge.plugins.arguments import PROBES
from engine_bridge.plugins.base import Plugin
from engine_bridge.plugins.checks import Check, Run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Collection, MutableMapping
    from typing import Any, TypeVar
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    Scope = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
    Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
    Application = Callable[[Scope, Receive, Send], Awaitable[None]]
    Function = TypeVar("Function", bound=Callable[[], Any])

RETRY_AFTER = 5  # seconds
PHRASES = {200: "OK", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}
REFUSALS = {"livez": "not alive", "readyz": "not ready", "startupz": "not started"}


class Answer(NamedTuple):
    """What a probe is told, whatever carries it."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


class Health(Plugin):
    """
    Tell who asks by HTTP whether the process lives, is ready, has started.

    | probe | 200 |
    |---|---|
    | `/livez` | unless the engine has exited, or a listener never returned |
    | `/readyz` | while it is STARTED and does not drain, and all checks pass |
    | `/startupz` | once it has been STARTED in this process |

    Everything else gets 503, and nothing but a word is said about why; with *verbose* and
    `?verbose` it is said in JSON. Other plugins report on the channel `health`, as `Monitor` does:
    a mapping of `name`, `ok`, and perhaps `probes` that fail when it is not ok and `facts` to show.

    Args:
        engine: The engine to tell of.
        checks: Functions by name, as for `check`.
        verbose: Whether to answer `?verbose`, with the texts of errors among others.
        cache: Seconds for which the outcome of a check holds, unless it says otherwise.
        timeout: Seconds in which a check must answer, unless it says otherwise.

    Raises:
        EngineError: An argument is not what it should be.
    """

    channels = ("fork",)

    def __init__(
        self,
        engine: Engine,
        *,
        checks: "Mapping[str, Callable[[], Any]] | None" = None,
        verbose: bool = False,
        cache: float = 1.0,
        timeout: float = 1.0,
    ) -> None:
        super().__init__(engine)
        self.verbose = verbose
        self.cache = arguments.seconds("cache", cache)
        self.timeout = arguments.seconds("timeout", timeout)
        self._checks: dict[str, Check] = {}
        self._has_started = False
        self._known: dict[str, bool] = {}  # how what was checked stood when last told
        for name, function in dict(checks or {}).items():
            _need_function(name, function)  # without one `check` would be a decorator
            self.check(name, function)

    def subscribe(self) -> None:
        """Hear of the start from now on."""
        super().subscribe()
        if self._hear not in self.engine.observers:
            self.engine.observe(self._hear, everything=False)

    def unsubscribe(self) -> None:
        """Hear of nothing any more; probes are still answered."""
        super().unsubscribe()
        self.engine.unobserve(self._hear)

    def fork(self) -> None:
        """In a forked child: nothing has started here, and no check runs."""
        self._has_started = False
        for check in self._checks.values():
            check.forget()

    def _hear(self, record: Record) -> None:
        if isinstance(record, StateChanged) and record.new == str(State.STARTED):
            self._has_started = True

    # -- checks --------------------------------------------------------------------------------

    @overload
    def check(
        self,
        name: str,
        function: None = None,
        *,
        cache: float | None = None,
        timeout: float | None = None,
        probes: "Collection[str]" = ("readyz",),
    ) -> "Callable[[Function], Function]": ...
    @overload
    def check(
        self,
        name: str,
        function: "Function",
        *,
        cache: float | None = None,
        timeout: float | None = None,
        probes: "Collection[str]" = ("readyz",),
    ) -> "Function": ...
    def check(
        self,
        name: str,
        function: "Function | None" = None,
        *,
        cache: float | None = None,
        timeout: float | None = None,
        probes: "Collection[str]" = ("readyz",),
    ) -> "Function | Callable[[Function], Function]":
        """
        Have *function* called for *probes*; it fails them by raising, or by returning False.

        Without a function it is a decorator. A function that is sync runs in a thread, an async one
        on the application's loop under ASGI, on the engine's elsewhere. A check of the same name is
        replaced.

        Args:
            name: A name for people.
            function: What to call.
            cache: Seconds for which its outcome holds.
            timeout: Seconds in which it must answer; while it does not, it is not called again.
            probes: Which probes it counts for. Think twice before you name `livez`: what restarts
                all processes when a database is down makes it worse.

        Returns:
            The function.

        Raises:
            EngineError: An argument is not what it should be.
        """
        if function is None:
            return lambda decorated: self.check(
                name, decorated, cache=cache, timeout=timeout, probes=probes
            )
        _need_function(name, function)
        self._checks[name] = Check(
            self.engine,
            name,
            function,
            cache=self.cache if cache is None else arguments.seconds("cache", cache),
            timeout=self.timeout if timeout is None else arguments.seconds("timeout", timeout),
            probes=arguments.probes(probes),
        )
        return function

    # -- probes --------------------------------------------------------------------------------

    def probe(self, name: str, *, verbose: bool = False) -> Answer:
        """
        Return the answer to the probe *name*: `livez`, `readyz` or `startupz`.

        Raises:
            EngineError: There is no such probe.
        """
        inquiry = self._inquire(name)
        if inquiry.ok:
            for run in inquiry.runs:
                run.done.wait(run.seconds_left())
            try:
                inquiry.reports = self.engine.publish("health")
            except ChannelFailures as exc:
                inquiry.reports = [_unknown(exc)]
        return self._conclude(inquiry, verbose)

    async def probe_async(self, name: str, *, verbose: bool = False) -> Answer:
        """Do what `probe` does without blocking the loop."""
        inquiry = self._inquire(name)
        if inquiry.ok:
            for run in inquiry.runs:
                await run.done.wait_async(run.seconds_left())
            try:
                inquiry.reports = await self.engine.publish_async("health")
            except ChannelFailures as exc:
                inquiry.reports = [_unknown(exc)]
        return self._conclude(inquiry, verbose)

    def _inquire(self, name: str) -> "Inquiry":
        """Ask the engine; if it says yes, have the checks of the probe begin, all at once."""
        if name not in PROBES:
            raise EngineError(f"no probe {name!r}; known: {', '.join(PROBES)}")
        engine = self.engine
        if name == "livez":
            ok = engine.alive
        elif name == "readyz":
            ok = engine.ready
        else:
            ok = self._has_started = self._has_started or engine.state is State.STARTED
        inquiry = Inquiry(name, ok)
        if ok:
            checks = [check for check in tuple(self._checks.values()) if name in check.probes]
            inquiry.runs = [check.begin() for check in checks]
        return inquiry

    def _conclude(self, inquiry: "Inquiry", verbose: bool) -> Answer:
        """Return the answer, now that all have had their time; say what has changed."""
        failing = [run for run in inquiry.runs if run.complaint()]
        for run in inquiry.runs:
            self._note(f"check {run.check.name!r}", run.complaint())
        reports = [_checked(report) for report in inquiry.reports if report is not None]
        for report in reports:
            if inquiry.name in report.get("probes", ()):
                inquiry.ok = inquiry.ok and bool(report["ok"])
                self._note(str(report["name"]), "" if report["ok"] else _complaint(report))
        inquiry.ok = inquiry.ok and not failing
        if verbose and self.verbose:
            return _json_answer(inquiry, self.engine, reports)
        text = "ok" if inquiry.ok else REFUSALS[inquiry.name]
        return _answer(200 if inquiry.ok else 503, text)

    def _note(self, who: str, complaint: str) -> None:
        """Say how *who* stands, if that has changed."""
        ok = not complaint
        if self._known.get(who, True) == ok:
            return
        self._known[who] = ok
        text = f"{who} passes again" if ok else f"{who} fails: {complaint}"
        level = INFO if ok else WARNING
        self.engine.log(f"health: {text}", level)

    def _route(self, method: str, path: str, query: str) -> "tuple[str, bool] | Answer":
        """Return the probe that is meant, and whether it is to be verbose; or a refusal."""
        name = path.removeprefix("/")
        if name not in PROBES or name == path:
            return _answer(404, "not found")
        if method not in ("GET", "HEAD"):
            return _answer(405, "GET or HEAD", ("Allow", "GET, HEAD"))
        return name, any(part.partition("=")[0] == "verbose" for part in query.split("&"))

    # -- WSGI ----------------------------------------------------------------------------------

    def wsgi(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Be a WSGI application with the three probes; mount it anywhere."""
        method = environ["REQUEST_METHOD"]
        route = self._route(method, environ.get("PATH_INFO", ""), environ.get("QUERY_STRING", ""))
        if not isinstance(route, Answer):
            route = self.probe(route[0], verbose=route[1])
        start_response(f"{route.status} {PHRASES[route.status]}", route.headers)
        return [] if method == "HEAD" else [route.body]

    def wsgi_before(self, app: "WSGIApplication", prefix: str = "") -> "WSGIApplication":
        """
        Return a WSGI application that answers the probes, and hands all else to *app*.

        Where the server starts the engine with a worker's first request, `/readyz` or `/startupz`
        is one.

        Args:
            app: The application, wrapped in the `EngineMiddleware`.
            prefix: Where the probes are: with `/health` it is `/health/livez`.
        """
        paths = _paths(prefix)

        def answer(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
            name = paths.get(environ.get("PATH_INFO", ""))
            if name is None:
                return app(environ, start_response)
            if name != "livez" and self._awaits_first_request():
                for gate in nets.gates("wsgi"):
                    if gate.engine is self.engine:
                        gate.admit()
            return self.wsgi({**environ, "PATH_INFO": f"/{name}"}, start_response)

        return answer

    def _awaits_first_request(self) -> bool:
        return self.engine.state is State.STOPPED and not self.engine.in_transition

    # -- ASGI ----------------------------------------------------------------------------------

    async def asgi(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Be an ASGI application with the three probes; mount it anywhere."""
        if scope["type"] == "lifespan":
            await _sit_through(receive, send)
        elif scope["type"] == "http":
            await self._answer_asgi(scope, _path_below_mount(scope), send)
        else:
            await receive()
            await send({"type": "websocket.close", "code": 1000})

    async def _answer_asgi(self, scope: "Scope", path: str, send: "Send") -> None:
        query = scope.get("query_string", b"").decode("latin-1")
        route = self._route(scope["method"], path, query)
        if not isinstance(route, Answer):
            route = await self.probe_async(route[0], verbose=route[1])
        headers = [(key.lower().encode(), value.encode()) for key, value in route.headers]
        await send({"type": "http.response.start", "status": route.status, "headers": headers})
        body = b"" if scope["method"] == "HEAD" else route.body
        await send({"type": "http.response.body", "body": body})

    def asgi_before(self, app: "Application", prefix: str = "") -> "Application":
        """
        Return an ASGI application that answers the probes, and hands all else to *app*.

        Args:
            app: The application, wrapped in the `EngineMiddleware` or with the engine's lifespan.
            prefix: Where the probes are: with `/health` it is `/health/livez`.
        """
        paths = _paths(prefix)

        async def answer(scope: "Scope", receive: "Receive", send: "Send") -> None:
            name = paths.get(_path_below_mount(scope)) if scope["type"] == "http" else None
            if name is None:
                await app(scope, receive, send)
                return
            if name != "livez" and self._awaits_first_request():
                for gate in nets.gates("asgi"):
                    if gate.engine is self.engine:
                        await gate.admit_async()
            await self._answer_asgi(scope, f"/{name}", send)

        return answer


class Inquiry:
    """What one probe has found so far."""

    def __init__(self, name: str, ok: bool) -> None:
        self.name = name
        self.ok = ok
        self.runs: list[Run] = []
        self.reports: list[Any] = []


def _complaint(report: "Mapping[str, Any]") -> str:
    facts = report.get("facts", {})
    return str(facts.get("error") or facts.get("last_error") or "it is not well")


def _need_function(name: object, function: object) -> None:
    if not isinstance(name, str) or not callable(function):
        raise EngineError(
            f"check({name!r}, {function!r}) wants a name and a function: "
            'health.check("database", ping)'
        )


# -- reports -------------------------------------------------------------------------------------


def _checked(report: "Any") -> "Mapping[str, Any]":
    """Return *report*, or one that says that it is none."""
    if isinstance(report, Mapping) and {"name", "ok"} <= report.keys():
        return report
    return _unknown(
        EngineError(f"a listener of 'health' must return a mapping of name and ok, not {report!r}")
    )


def _unknown(error: Exception) -> "Mapping[str, Any]":
    """Report that the reports could not be had: what may be unready counts as unready."""
    facts = {"error": str(error)}
    return {"name": "channel 'health'", "ok": False, "probes": ("readyz",), "facts": facts}


# -- answers -------------------------------------------------------------------------------------


def _answer(
    status: int, text: str, *headers: tuple[str, str], kind: str = "text/plain; charset=utf-8"
) -> Answer:
    body = text.encode()
    fields = [
        ("Content-Type", kind),
        ("Content-Length", str(len(body))),
        ("Cache-Control", "no-store"),
        *headers,
    ]
    if status == 503:
        fields.append(("Retry-After", str(RETRY_AFTER)))
    return Answer(status, fields, body)


def _json_answer(
    inquiry: Inquiry, engine: Engine, reports: "Iterable[Mapping[str, Any]]"
) -> Answer:
    import json

    found = {
        "probe": inquiry.name,
        "ok": inquiry.ok,
        "engine": {
            "state": str(engine.state),
            "draining": engine.state is State.STARTED and engine.draining.is_set(),
            "in_flight": engine.in_flight,
        },
        "checks": {run.check.name: _facts(run) for run in inquiry.runs},
        "reports": {
            str(report["name"]): {"ok": bool(report["ok"]), **report.get("facts", {})}
            for report in reports
        },
    }
    text = json.dumps(found, default=repr, skipkeys=True) + "\n"
    return _answer(200 if inquiry.ok else 503, text, kind="application/json")


def _facts(run: Run) -> "dict[str, Any]":
    complaint = run.complaint()
    end = run.ended if run.done.is_set() else monotonic()
    facts = {"ok": not complaint, "seconds": round(end - run.began, 6)}
    return {**facts, "error": complaint} if complaint else facts


# -- where ---------------------------------------------------------------------------------------


def _paths(prefix: object) -> dict[str, str]:
    """Return the probe for each path below *prefix*."""
    if not isinstance(prefix, str) or (prefix and not prefix.startswith("/")):
        raise EngineError(f"prefix=… wants a path such as '/health'; got {prefix!r}")
    return {f"{prefix.rstrip('/')}/{name}": name for name in PROBES}


def _path_below_mount(scope: "Scope") -> str:
    """
    Return the path as it is below the point where the application is mounted.

    Source:
        ASGI specification, HTTP connection scope: `path` includes `root_path`; older servers and
        frameworks strip it.
    """
    path: str = scope["path"]
    root: str = scope.get("root_path", "").rstrip("/")
    if root and path.startswith(f"{root}/"):
        return path[len(root) :]
    return path


async def _sit_through(receive: "Receive", send: "Send") -> None:
    """Answer a lifespan, of which nothing is wanted."""
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})
