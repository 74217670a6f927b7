"""The page, and the stream of what rings."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import datetime, timedelta

from django.core.handlers.asgi import ASGIRequest
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.shortcuts import redirect, render
from django.utils.timezone import now

from engine_bridge import engine
from reminders.models import Reminder

LOOK_EVERY = 0.5  # seconds


def index(request: HttpRequest) -> HttpResponse:
    """Show the reminders; add one that is posted."""
    if request.method == "POST":
        minutes = request.POST.get("minutes", "")
        if not minutes.isdecimal() or len(minutes) > 4:
            return HttpResponse("`minutes` is a number of minutes.\n", status=400)
        due = now() + timedelta(minutes=int(minutes))
        Reminder.objects.create(text=request.POST.get("text", "")[:200], due=due)
        return redirect("/")
    return render(request, "reminders/index.html", {"reminders": Reminder.objects.order_by("due")})


def events(request: HttpRequest) -> StreamingHttpResponse:
    """Send what rings from now on, until the engine drains."""
    is_async = isinstance(request, ASGIRequest)
    stream = engine.until_drain(rung_async(now())) if is_async else rung(now())
    return StreamingHttpResponse(stream, content_type="text/event-stream")


def rung(since: datetime) -> Iterator[str]:
    """Yield what has rung since then; each stream takes a thread."""
    yield "retry: 1000\n\n"
    while not engine.draining.wait(LOOK_EVERY):
        for reminder in Reminder.objects.filter(rung__gt=since).order_by("rung"):
            since = reminder.rung
            yield f"data: {reminder}\n\n"


async def rung_async(since: datetime) -> AsyncIterator[str]:
    """Do what `rung` does, on the event loop; `until_drain` ends it."""
    yield "retry: 1000\n\n"
    while True:
        await asyncio.sleep(LOOK_EVERY)
        async for reminder in Reminder.objects.filter(rung__gt=since).order_by("rung"):
            since = reminder.rung
            yield f"data: {reminder}\n\n"
