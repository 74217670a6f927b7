"""What a process costs that has nothing to do: wakeups and CPU time."""

from .measure import FLOOR, OURS, Budget, Row, Samples, Table, peers, spread
from .processes import IDLE_SECONDS, Idle, costs_of_idling

WAKEUPS = Budget(1.0, "<= 1 /s")
CPU = Budget(
    100.0, "< 1 ms in 10 s"
)  # no measurable CPU: a clock tick of the kernel is 4 ms or more

# Each prints what it has turned on, and waits. All that there is to turn on is turned on, but for
# what would fork or take rights away. One more is as a process in production.
PRODUCTION = "ours without Autoreloader"
WAITS = {
    FLOOR: """
import threading
print("nothing", flush=True)
threading.Event().wait()
""",
    OURS: f"""
import os, socket, tempfile
from engine_bridge import engine, plugins

folder = tempfile.TemporaryDirectory()
manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
manager.bind(b"\\0engine-bridge-bench-%d" % os.getpid())  # its queue is enough: nobody reads
os.environ["NOTIFY_SOCKET"] = f"@engine-bridge-bench-{{os.getpid()}}"
os.environ["WATCHDOG_USEC"] = "{IDLE_SECONDS * 2_000_000:.0f}"

MAKE = {{
    "SignalHandler": lambda plugin: plugin(engine),
    "Log": lambda plugin: plugin(engine, file=folder.name + "/log"),
    "PIDFile": lambda plugin: plugin(engine, folder.name + "/pid"),
    "Systemd": lambda plugin: plugin(engine),
    "Monitor": lambda plugin: plugin(engine, list, 60),
    "ThreadManager": lambda plugin: plugin(engine),
    "Health": lambda plugin: plugin(engine),
    "Autoreloader": lambda plugin: plugin(engine),
}}
found = [name for name in MAKE if hasattr(plugins, name) and name != "WITHOUT"]
for name in found:
    MAKE[name](getattr(plugins, name)).subscribe()
engine.start()
print(*found, flush=True)
engine.block()
""",
    "CherryPy": """
import tempfile
from cherrypy.process import plugins
from cherrypy.process.wspbus import Bus

bus = Bus()
folder = tempfile.TemporaryDirectory()
for plugin in (
    plugins.SignalHandler(bus),
    plugins.PIDFile(bus, folder.name + "/pid"),
    plugins.Monitor(bus, list, 60),
    plugins.ThreadManager(bus),
    plugins.Autoreloader(bus),
):
    plugin.subscribe()
bus.start()
print("SignalHandler PIDFile Monitor ThreadManager Autoreloader", flush=True)
bus.block()
""",
    "MagicBus": """
import tempfile
from magicbus.plugins import opsys, signalhandler, tasks
from magicbus.process import ProcessBus

bus = ProcessBus()
folder = tempfile.TemporaryDirectory()
for plugin in (
    signalhandler.SignalHandler(bus),
    opsys.PIDFile(bus, folder.name + "/pid"),
    tasks.Monitor(bus, list, 60),
    tasks.ThreadManager(bus),
    tasks.Autoreloader(bus),
):
    plugin.subscribe()
bus.transition("RUN")
print("SignalHandler PIDFile Monitor ThreadManager Autoreloader", flush=True)
bus.block()
""",
}

WAITS[PRODUCTION] = WAITS[OURS].replace("WITHOUT", "Autoreloader")


def run() -> list[Table]:
    costs = costs_of_idling(WAITS)
    plugins = costs[OURS][0].says
    wakeups = _of(costs, "wakeups")
    cpu = _of(costs, "cpu")
    return [
        Table(
            f"waiting in block() with {plugins.replace(' ', ', ')}",
            f"what a second takes, over {IDLE_SECONDS:g} s",
            [
                _row("wakeups", wakeups, WAKEUPS, 1, 1),
                _row("CPU us", cpu, CPU, 1e-6, 0),
                _row("threads", _of(costs, "threads"), None, 1, 0),
            ],
        )
    ]


def _of(costs: dict[str, list[Idle]], what: str) -> Samples:
    return {name: [getattr(cost, what) for cost in found] for name, found in costs.items()}


def _row(what: str, samples: Samples, budget: Budget | None, unit: float, digits: int) -> Row:
    values = [value / unit for value in samples[OURS]]
    return Row(
        what,
        ours=spread(samples[OURS], unit, digits),
        floor=spread(samples[FLOOR], unit, digits),
        peers=peers(samples, unit, digits),
        budget=budget.text if budget else "",
        verdict=budget.verdict(values) if budget else "",
    )
