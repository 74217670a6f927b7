"""
The engine for any WSGI application: `app = EngineMiddleware(app)`.

The engine starts on the first request, or earlier where the server has a hook, and ends with the
process.

Source:
    PEP 3333.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from math import ceil

from engine_bridge.core.door import Gate
from engine_bridge.core.engine import Engine
from engine_bridge.core.errors import EngineError
from engine_bridge.core.interface import interface_of
from engine_bridge.core.requests import Requests, new_token
from engine_bridge.frameworks.arguments import engine_for, refuse_factory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


class EngineMiddleware:
    """
    Wrap a WSGI application so that its process has an engine.

    Args:
        app: The application.
        engine: The engine; the default one of the package if none is given.

    Raises:
        EngineError: *app* is not a WSGI application, or has another engine; *engine* is none.
    """

    def __init__(self, app: "WSGIApplication", engine: Engine | None = None) -> None:
        _check(app)
        self.app = app
        self.engine = engine_for(app, engine, EngineMiddleware)
        self.gate = Gate(self.engine, "wsgi")

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Answer a request while the engine is STARTED, else with 503."""
        engine = self.engine
        requests = engine.requests
        token = new_token()
        # Before the look at `serves`: who still passes is waited for.
        requests.open[token] = threading.get_ident()
        finish = None
        try:
            if not engine.serves:
                retry_after = self.gate.admit()
                if retry_after is not None:
                    requests.end(token)
                    return _unavailable(retry_after, environ, start_response)
            if engine.hears_requests:
                finish = engine.publish  # now: of several listeners the last may fail
                finish("acquire_thread")
                finish("before_request")
            body = self.app(environ, start_response)
        except BaseException:
            _finish(requests, token, finish)
            raise
        if type(body) is list:
            answer = _List(body)
            answer.requests, answer.token, answer.finish = requests, token, finish
            return answer
        return _wrap(body, environ, requests, token, finish)


class _List(list[bytes]):
    """A body that is complete; it stays a list, since servers take its length from it."""

    # Set by whoever makes one: an `__init__` of its own would cost a quarter of all that a request
    # pays. `requests` is None once it is closed.
    __slots__ = ("finish", "requests", "token")
    requests: Requests | None
    token: int
    finish: "Callable[..., object] | None"

    def close(self) -> None:
        """Count the request no more."""
        requests = self.requests
        if requests is None:
            return
        self.requests = None
        if self.finish is None:
            del requests.open[self.token]  # as `requests.end` does it
            if requests.quiet is not None:
                requests.check()
        else:
            _finish(requests, self.token, self.finish)

    __del__ = close  # uvicorn's WSGI interface closes no body; dropping it must do


class _Body:
    """A body that is produced bit by bit."""

    __slots__ = ("_body", "_finish", "_requests", "_token")

    def __init__(
        self,
        body: Iterable[bytes],
        requests: Requests,
        token: int,
        finish: "Callable[..., object] | None",
    ) -> None:
        self._body = body
        self._requests = requests
        self._token = token
        self._finish = finish

    def __iter__(self) -> Iterator[bytes]:
        # A generator, since it keeps this object alive to its end. No `yield from`: when the client
        # goes away that would close the application's body, and `close` would do it once more.
        for piece in self._body:  # noqa: UP028  # see above
            yield piece

    def close(self) -> None:
        """Close the application's body, and count the request no more."""
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                close()
        finally:
            _finish(self._requests, self._token, self._finish)

    def __del__(self) -> None:
        _finish(self._requests, self._token, self._finish)


class _SizedBody(_Body):
    """A body with a length, other than a list."""

    __slots__ = ()

    def __len__(self) -> int:
        return len(self._body)  # type: ignore[arg-type]  # that is why it was chosen


def _wrap(
    body: Iterable[bytes],
    environ: "WSGIEnvironment",
    requests: Requests,
    token: int,
    finish: "Callable[..., object] | None",
) -> Iterable[bytes]:
    """Return *body*, or one like it, whose `close` ends the request."""
    wrapper = environ.get("wsgi.file_wrapper")
    if wrapper is not None:
        # uWSGI's wrapper is a function that notes a file, and gives back that very file.
        is_type = isinstance(wrapper, type)
        if isinstance(body, wrapper) if is_type else hasattr(body, "read"):
            return _hook_close(body, requests, token, finish)
    kind = _SizedBody if hasattr(body, "__len__") else _Body
    return kind(body, requests, token, finish)


def _hook_close(
    body: Iterable[bytes],
    requests: Requests,
    token: int,
    finish: "Callable[..., object] | None",
) -> Iterable[bytes]:
    """Replace the `close` of a server's own file wrapper, which must stay what it is."""
    closing = getattr(body, "close", None)
    try:
        body.close = closing  # type: ignore[attr-defined]  # servers look it up on the object
    except AttributeError:
        return _Body(body, requests, token, finish)
    body.close = _Close(closing, requests, token, finish)  # type: ignore[attr-defined]  # likewise
    return body


class _Close:
    """The `close` of a file wrapper; it ends the request, also when it is dropped uncalled."""

    __slots__ = ("_closing", "_finish", "_requests", "_token")

    def __init__(
        self,
        closing: "Callable[[], object] | None",
        requests: Requests,
        token: int,
        finish: "Callable[..., object] | None",
    ) -> None:
        self._closing = closing
        self._requests = requests
        self._token = token
        self._finish = finish

    def __call__(self) -> None:
        closing, self._closing = self._closing, None  # which may hold the wrapper that holds us
        try:
            if closing is not None:
                closing()
        finally:
            _finish(self._requests, self._token, self._finish)

    def __del__(self) -> None:
        _finish(self._requests, self._token, self._finish)


def _finish(requests: Requests, token: int, finish: "Callable[..., object] | None") -> None:
    """End a request once, with `after_request` for whoever heard of its beginning."""
    if token not in requests.open:
        return
    try:
        if finish is not None:
            finish("after_request")
    finally:
        requests.end(token)


def _unavailable(
    retry_after: float, environ: "WSGIEnvironment", start_response: "StartResponse"
) -> list[bytes]:
    """Answer that the engine is not STARTED."""
    body = b"The application is not available; try again later.\n"
    headers = [
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Content-Length", str(len(body))),
        ("Retry-After", str(ceil(retry_after))),
    ]
    status = HTTPStatus.SERVICE_UNAVAILABLE
    start_response(f"{status.value} {status.phrase}", headers)
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]


def _check(app: object) -> None:
    if not callable(app):
        raise EngineError(
            f"EngineMiddleware wants a WSGI application, which is callable; got {app!r}"
        )
    refuse_factory(app)
    if interface_of(app) != "wsgi":
        raise EngineError(
            f"{app!r} is no WSGI application, to be called with environ and start_response; "
            "an ASGI application wants engine_bridge.frameworks.asgi.EngineMiddleware"
        )
