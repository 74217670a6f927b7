"""
What the whole suite writes down, and what of our code it depends on.

The standard library only: the documentation's build asks for `fingerprint` too.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
RECORD = ROOT / "docs" / "servers" / "contract.json"
PAGE = RECORD.with_suffix(".md")
ADAPTERS = (
    "engine_bridge/servers/**/*.py",
    *(f"engine_bridge/core/{name}.py" for name in ("nets", "signals", "door", "host")),
    *(f"engine_bridge/frameworks/{name}.py" for name in ("wsgi", "asgi")),
)
VARIABLE = "ENGINE_BRIDGE_CONTRACT"


def fingerprint() -> str:
    """Return what changes with the sources of the adapters."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in ADAPTERS for path in ROOT.glob(pattern)):
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def folder() -> Path | None:
    """Return where the whole suite writes its cells; None if only the quick ones run."""
    path = os.environ.get(VARIABLE)
    return Path(path) if path else None


def write(path: Path, facts: dict[str, Any], deep: int = 0) -> None:
    """Write *facts*, with a line for each that lies at most *deep*: for people and `git diff`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_text(facts, deep, "\n") + "\n")


def _text(facts: Any, deep: int, line: str) -> str:
    if deep == 0 or not isinstance(facts, dict):
        return json.dumps(facts, sort_keys=True)
    inner = [
        f"{line} {json.dumps(key)}: {_text(facts[key], deep - 1, line + ' ')}"
        for key in sorted(facts)
    ]
    return "{" + ",".join(inner) + line + "}"


def once(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what is in the file *path*; of several test processes one makes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            write(path, make())
        facts: dict[str, Any] = json.loads(path.read_text())
        return facts
