"""Views: plain ones, and some that last."""

import os
from collections.abc import AsyncIterator, Iterator

from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from journal import record
from released import wait_released

from engine_bridge import engine
from shop.models import Sale


def index(request: HttpRequest) -> HttpResponse:
    """Tell who answers."""
    record("request")
    return HttpResponse(f"{os.getpid()}\n")


def restart(request: HttpRequest) -> HttpResponse:
    """Ask the host for a new process."""
    engine.restart()
    return HttpResponse("restarting\n")


def held(request: HttpRequest) -> HttpResponse:
    """Answer once the test says so."""
    record("held")
    wait_released()
    record("released")
    return HttpResponse("released\n")


def state(request: HttpRequest) -> HttpResponse:
    """Tell the lifespan state."""
    return HttpResponse(", ".join(f"{key}={value}" for key, value in request.state.items()))


def sale(request: HttpRequest) -> HttpResponse:
    """Sell something."""
    Sale.objects.create(what="a book")
    return HttpResponse(f"{Sale.objects.count()}")


def events(request: HttpRequest) -> StreamingHttpResponse:
    """Send an event a while, until the engine drains."""

    def generate() -> Iterator[str]:
        yield "data: first\n\n"
        while not engine.draining.wait(0.05):
            yield "data: tick\n\n"
        yield "data: bye\n\n"

    return StreamingHttpResponse(generate(), content_type="text/event-stream")


async def events_async(request: HttpRequest) -> StreamingHttpResponse:
    """Send one event, then nothing until the engine drains."""

    async def generate() -> AsyncIterator[str]:
        yield "data: first\n\n"
        await engine.draining.wait_async(60)
        record("never", draining=engine.draining.is_set())
        yield "data: late\n\n"

    async def generate_and_part() -> AsyncIterator[str]:
        async for event in engine.until_drain(generate()):
            yield event
        yield "data: bye\n\n"

    return StreamingHttpResponse(generate_and_part(), content_type="text/event-stream")


def poll(request: HttpRequest) -> HttpResponse:
    """Answer when there is something new, or when the engine drains."""
    record("polled")
    return HttpResponse("draining" if engine.draining.wait(60) else "nothing")


async def poll_async(request: HttpRequest) -> HttpResponse:
    """Do what `poll` does without a thread."""
    record("polled")
    return HttpResponse("draining" if await engine.draining.wait_async(60) else "nothing")


def download(request: HttpRequest) -> StreamingHttpResponse:
    """Send it all, however long that takes: the drain waits for it."""

    def generate() -> Iterator[str]:
        yield "first half "
        record("half")
        wait_released()
        yield "second half"

    return StreamingHttpResponse(generate())
