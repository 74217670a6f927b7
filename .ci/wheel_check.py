"""Check an installed wheel of engine_bridge from outside the checkout: `wheel_check.py WHEEL`."""

import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from importlib.metadata import metadata
from pathlib import Path

PACKAGE = "engine_bridge"
IMPORTED_WHEN_NEEDED = {"asyncio", "logging", "subprocess", "dataclasses", "inspect"}
NEEDS_NO_EXTRA = (
    "core",
    "plugins",
    "frameworks.wsgi",
    "frameworks.asgi",
    "frameworks.starlette",
    "servers.gunicorn",  # a configuration file: gunicorn imports it, not the other way round
)
OTHER_PLATFORM = "_posix" if sys.platform == "win32" else "_windows"

IMPORT_ALONE = f"""
import sys
before = set(sys.modules)
import {PACKAGE}
print(*sorted(set(sys.modules) - before))
"""

SMOKE = f"""
from {PACKAGE} import State, engine
seen = []
engine.subscribe("start", lambda: seen.append("start"))
engine.subscribe("stop", lambda: seen.append("stop"))
engine.subscribe("exit", lambda: seen.append("exit"))
engine.start()
assert engine.state is State.STARTED, engine.state
engine.exit()
assert engine.state is State.EXITING, engine.state
assert seen == ["start", "stop", "exit"], seen
"""


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Run *code* in a fresh interpreter in which every warning is an error."""
    command = [sys.executable, "-I", "-W", "error", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def contents(names: list[str]) -> Iterator[str]:
    """Yield what is wrong with the files of the wheel."""
    if f"{PACKAGE}/py.typed" not in names:
        yield "py.typed is not in the wheel"
    if not any(name.endswith("/licenses/LICENSE") for name in names):
        yield "the licence is not in the wheel"
    for name in names:
        top = name.partition("/")[0]
        if top != PACKAGE and not top.endswith(".dist-info"):
            yield f"{name} has no business in the wheel"


def import_alone() -> Iterator[str]:
    """Yield what is wrong with a bare `import engine_bridge`."""
    result = python(IMPORT_ALONE)
    if result.returncode:
        yield f"import {PACKAGE} fails:\n{result.stderr}"
    loaded = result.stdout.split()
    for name in sorted(IMPORTED_WHEN_NEEDED.intersection(loaded)):
        yield f"import {PACKAGE} imports {name}"
    for name in loaded:
        top, _, rest = name.partition(".")
        if top != PACKAGE and top not in sys.stdlib_module_names:
            yield f"import {PACKAGE} imports {name}, which is not of the standard library"
        if top == PACKAGE and rest and rest.partition(".")[0] != "core":
            yield f"import {PACKAGE} imports {name}, which is not of the core"


def module_names(names: list[str]) -> Iterator[str]:
    """Yield the importable modules of this platform that the wheel holds."""
    for name in names:
        path = Path(name)
        if path.suffix == ".py" and path.stem not in ("__main__", OTHER_PLATFORM):
            yield ".".join(
                path.parent.parts if path.stem == "__init__" else path.with_suffix("").parts
            )


def import_each(names: list[str]) -> Iterator[str]:
    """Yield the modules that neither import without extras nor name the extra that they need."""
    extras = metadata("engine-bridge").get_all("Provides-Extra") or []
    extras.append("pytest")  # its plugin is imported by nobody else
    for module in module_names(names):
        result = python(f"import {module}")
        if result.returncode == 0:
            continue
        last = result.stderr.strip().rpartition("\n")[2]
        wants = any(
            f"No module named '{x}" in last or f"engine-bridge[{x}]" in last for x in extras
        )
        plain = module.removeprefix(f"{PACKAGE}.")
        must = any(plain == name or plain.startswith(f"{name}.") for name in NEEDS_NO_EXTRA)
        if must or not wants:
            yield f"import {module} fails without extras:\n{result.stderr}"


def where_and_smoke() -> Iterator[str]:
    """Yield what is wrong with starting and leaving the default engine."""
    result = python(f"import {PACKAGE}; print({PACKAGE}.__file__)")
    if not result.stdout.startswith(sysconfig.get_path("purelib")):
        yield f"{PACKAGE} is not imported from the wheel: {result.stdout}{result.stderr}"
    result = python(SMOKE)
    if result.returncode:
        yield f"engine.start(); engine.exit() fails:\n{result.stderr}"


def main(wheel: str) -> int:
    names = zipfile.ZipFile(wheel).namelist()
    faults = [*contents(names), *import_alone(), *import_each(names), *where_and_smoke()]
    for fault in faults:
        print(fault, file=sys.stderr)
    modules = len(list(module_names(names)))
    print(f"{Path(wheel).name}: {modules} modules, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
