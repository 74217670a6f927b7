"""URLs for probes: `urlpatterns += health_urls(health)`."""

from collections.abc import Iterator

from engine_bridge.core.errors import EngineError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    class Probes(Protocol):
        """What answers probes: the plugin `Health`."""

        def probe(
            self, name: str, *, verbose: bool = False
        ) -> tuple[int, list[tuple[str, str]], bytes]:
            """Return status, headers and body."""
            ...


PROBES = ("livez", "readyz", "startupz")


def health_urls(health: "Probes") -> "list[Any]":
    """
    Return URL patterns for `livez`, `readyz` and `startupz`.

    They are views like all others: middleware sees them, and while the engine is not STARTED they
    get its 503.

    Args:
        health: The plugin `Health`.

    Raises:
        EngineError: *health* does not answer probes.
    """
    if not callable(getattr(health, "probe", None)):
        raise EngineError(
            f"health_urls wants the plugin Health, got {health!r}: health_urls(Health(engine))"
        )
    return list(_patterns(health))


def _patterns(health: "Probes") -> "Iterator[Any]":
    from django.http import HttpResponse
    from django.urls import path

    def view(request: "Any", probe: str) -> "Any":
        status, headers, body = health.probe(probe, verbose="verbose" in request.GET)
        return HttpResponse(body, status=status, headers=dict(headers))

    for probe in PROBES:
        yield path(probe, view, {"probe": probe}, name=f"engine_bridge_{probe}")
