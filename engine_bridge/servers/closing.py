"""Have an ASGI application's answers ask to close the connection, for servers that cannot."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

CLOSE = (b"connection", b"close")


def asking_to_close(
    app: Callable[..., Awaitable[Any]], is_time: Callable[[], object]
) -> Callable[..., Awaitable[Any]]:
    """
    Wrap *app*; what it answers over HTTP/1 asks to close once *is_time*.

    Args:
        app: It may take more arguments than ASGI has.
        is_time: Asked when an answer begins.
    """

    async def send_and_ask(send: Callable[..., Awaitable[None]], message: Any) -> None:
        if message["type"] == "http.response.start" and is_time():
            message = {**message, "headers": [*message.get("headers", ()), CLOSE]}
        await send(message)

    async def answer(scope: Any, receive: Any, send: Any, *more: Any) -> None:
        if scope["type"] == "http" and scope["http_version"].startswith("1"):
            send = partial(send_and_ask, send)
        await app(scope, receive, send, *more)

    return answer
