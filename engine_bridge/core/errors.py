"""What can go wrong; every error of the library is an `EngineError`."""

from collections.abc import Sequence


class EngineError(Exception):
    """The base of all errors that the library raises."""


class TransitionError(EngineError):
    """The engine cannot go from its present state to the one asked for."""

    def __init__(self, current: str, target: str, hint: str = "") -> None:
        super().__init__(f"cannot go from {current} to {target}" + (f": {hint}" if hint else ""))
        self.current = current
        self.target = target


class StartAborted(EngineError):
    """The start was given up because an exit was asked for meanwhile; what started was stopped."""

    def __init__(self) -> None:
        super().__init__("the start was aborted: an exit was asked for while it ran")


class TransitionTimeout(EngineError):
    """A listener did not return within the budget of its transition."""

    def __init__(
        self, channel: str, listener: str, seconds: float, setting: str, *, left_behind: bool = True
    ) -> None:
        fate = "left behind" if left_behind else "cancelled"
        super().__init__(
            f"{listener} on channel {channel!r} still ran after {seconds:.1f} s "
            f"and was {fate}; its stack is in the log, Engine({setting}=…) sets the limit"
        )
        self.channel = channel
        self.listener = listener
        self.seconds = seconds


class WouldDeadlock(EngineError):
    """A call would have waited, on the application's event loop, for that very loop."""

    def __init__(self, call: str, instead: str) -> None:
        super().__init__(
            f"{call} would block the application's event loop on which it waits; "
            f"use `await {instead}` there, or call it from another thread"
        )


class RestartRefused(EngineError):
    """No new process is to be had from here; nothing has been stopped."""


class ListenerError(EngineError, TypeError):
    """What was handed over as a listener, resource or observer is not one."""


class ResourceError(EngineError):
    """A resource's generator yielded twice, or not at all."""


class ChannelFailures(EngineError, ExceptionGroup[Exception]):
    """One or more listeners of a channel failed; the originals, with tracebacks, are inside."""

    def derive(self, excs: Sequence[Exception]) -> "ChannelFailures":  # type: ignore[override]  # typeshed asks for a generic method; the group of a group of ours is ours
        """Return the same kind of group around *excs*, so that `subgroup` and `split` keep it."""
        return ChannelFailures(self.message, excs)


def plain_text(error: BaseException) -> str:
    """Return what *error* says where that is all there is to say; empty where a trace is needed."""
    if isinstance(error, ChannelFailures):
        texts = [plain_text(failure) for failure in error.exceptions]
        return "\n".join(texts) if all(texts) else ""
    if isinstance(error, EngineError) and isinstance(error.__cause__, OSError | EngineError | None):
        return str(error)
    return ""
