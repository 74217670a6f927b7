"""Resources: a generator whose first half runs on `start` and whose second half on `stop`."""

from collections.abc import AsyncGenerator, Callable, Generator, Mapping

from .errors import ListenerError, ResourceError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .life import Life

START_PRIORITY = 40
STOP_PRIORITY = 90
CO_GENERATOR = 0x20  # inspect.CO_GENERATOR
CO_ASYNC_GENERATOR = 0x200  # inspect.CO_ASYNC_GENERATOR


class Resource:
    """What both kinds share; its owner's rules are those of any object with `start` and `stop`."""

    def __init__(self, function: "Callable[[], Any]", life: "Callable[[], Life]") -> None:
        self._function = function
        self._life = life
        self.__name__ = getattr(function, "__qualname__", repr(function))

    def _keep(self, value: object) -> None:
        """Let the mapping that was yielded become lifespan state."""
        if isinstance(value, Mapping):
            self._life().state.update(value)

    def _wrong(self, what: str) -> ResourceError:
        return ResourceError(f"the resource {self.__name__} {what}; it must yield exactly once")


class SyncResource(Resource):
    """A resource made of a generator; it runs in the thread that runs the transition."""

    _generator: "Generator[Any, None, None] | None" = None

    def start(self) -> None:
        """Run what precedes the yield."""
        generator = self._function()
        try:
            self._keep(next(generator))
        except StopIteration:
            raise self._wrong("did not yield") from None
        self._generator = generator

    def stop(self) -> None:
        """Run what follows the yield."""
        generator, self._generator = self._generator, None
        if generator is None:
            return
        try:
            next(generator)
        except StopIteration:
            return
        generator.close()
        raise self._wrong("yielded twice")


class AsyncResource(Resource):
    """A resource made of an async generator; it is entered and left in the life's own task."""

    _generator: "AsyncGenerator[Any, None] | None" = None

    async def start(self) -> None:
        """Run what precedes the yield."""
        generator = self._function()
        try:
            self._keep(await anext(generator))
        except StopAsyncIteration:
            raise self._wrong("did not yield") from None
        self._generator = generator

    async def stop(self) -> None:
        """Run what follows the yield."""
        generator, self._generator = self._generator, None
        if generator is None:
            return
        try:
            await anext(generator)
        except StopAsyncIteration:
            return
        await generator.aclose()
        raise self._wrong("yielded twice")

    start.in_life_task = stop.in_life_task = True  # type: ignore[attr-defined]  # read by aio


def make_resource(
    function: "Callable[[], Any]", life: "Callable[[], Life]"
) -> SyncResource | AsyncResource:
    """Return the resource for a generator *function*, of the kind that it asks for."""
    flags = getattr(getattr(function, "__code__", None), "co_flags", 0)
    if flags & CO_ASYNC_GENERATOR:
        return AsyncResource(function, life)
    if flags & CO_GENERATOR:
        return SyncResource(function, life)
    raise ListenerError(
        f"@engine.resource wants a generator function (one that yields once), got {function!r}"
    )
