"""What arguments of several plugins must be; each refusal is one sentence."""

from collections.abc import Collection

from engine_bridge.core.errors import EngineError

LONGEST = 366 * 86400.0  # seconds; threads cannot sleep for much longer
PROBES = ("livez", "readyz", "startupz")


def seconds(name: str, value: object, least: float = 0.0) -> float:
    """
    Return *value*, the argument *name*, as a duration.

    Raises:
        EngineError: It is none, or less than *least*.
    """
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not least <= value <= LONGEST
    ):
        limits = "a year at most" if least < 0 else f"from {least:g} to a year"
        raise EngineError(f"{name}=… wants seconds, {limits}; got {value!r}")
    return float(value)


def probes(value: Collection[str]) -> tuple[str, ...]:
    """
    Return *value* as names of probes.

    Raises:
        EngineError: It holds something else.
    """
    if isinstance(value, str) or not set(value) <= set(PROBES):
        raise EngineError(f"probes=… wants a tuple with some of {PROBES}; got {value!r}")
    return tuple(value)
