"""
The setting `ENGINE_BRIDGE`: what the engine of this project is, and which plugins it has.

    ENGINE_BRIDGE = {
        "ENGINE": {"drain_timeout": 20},
        "PLUGINS": {
            "PIDFile": {"pidfile": "/run/shop.pid"},
            "Monitor": [{"callback": "shop.tasks.tidy", "frequency": 60}],
            "shop.plugins.Clock": {},
        },
    }

| key | what it says |
|---|---|
| `ENGINE` | parameters of `Engine`, in seconds |
| `PLUGINS` | plugins by name, with their options; a list of options makes several |
| `INSTANCE` | the dotted path of another engine than `engine_bridge.engine` |

A name without a dot is one of `engine_bridge.plugins`. Where an option is a function it is given by
its dotted path; it may use the database, see `database.py`.
"""

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from importlib import import_module
from inspect import isclass, signature

from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from engine_bridge import engine as default_engine
from engine_bridge.core.engine import Engine
from engine_bridge.core.errors import EngineError
from engine_bridge.frameworks import report
from engine_bridge.frameworks.django import database, signals
from engine_bridge.frameworks.django.database import uses_database

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

APP = "engine_bridge.frameworks.django"
KEYS = ("ENGINE", "PLUGINS", "INSTANCE")
FUNCTIONS = ("callback", "checks")  # options of plugins that are functions, or a mapping to some
EXAMPLE = '{"PLUGINS": {"PIDFile": {"pidfile": "/run/shop.pid"}}}'

_prepared: "weakref.WeakSet[Engine]" = weakref.WeakSet()
_preparing = threading.RLock()


class SettingError(EngineError, ImproperlyConfigured):
    """
    What the settings say cannot be.

    Attributes:
        id: The number under which Django's system checks report it.
        found: What is wrong.
        hint: What to write instead.
    """

    def __init__(self, number: str, found: str, hint: str) -> None:
        super().__init__(f"{found}; {hint}")
        self.id = f"engine_bridge.{number}"
        self.found = found
        self.hint = hint


def get_engine() -> Engine:
    """
    Return the engine as the settings describe it, with its plugins turned on.

    For commands of your own that run it: `with get_engine(): …`. The first call turns them on.

    Raises:
        SettingError: `ENGINE_BRIDGE`, or `INSTALLED_APPS`, is not what it should be.
    """
    with _preparing:
        settings = read()
        for problem in find_problems(settings):
            raise problem
        engine = find_instance(settings)
        if engine not in _prepared:
            set_parameters(engine, settings)
            database.keep_fresh(engine)
            signals.send_for(engine)
            for plugin in build_plugins(engine, settings):
                plugin.subscribe()
            _prepared.add(engine)
        return engine


def read() -> "Mapping[str, Any]":
    """
    Return what the setting says.

    Raises:
        SettingError: It says something, but this app is not installed, so that nobody checks it or
            looks for `engine` modules.
    """
    from django.apps import apps
    from django.conf import settings

    found: Mapping[str, Any] = getattr(settings, "ENGINE_BRIDGE", {})
    if found and not apps.is_installed(APP):
        raise SettingError("E007", "ENGINE_BRIDGE is set", f"add {APP!r} to INSTALLED_APPS")
    return found


def find_instance(settings: "Mapping[str, Any]") -> Engine:
    """Return the engine that *settings*, which have been checked, name."""
    path = settings.get("INSTANCE")
    engine: Engine = default_engine if path is None else import_string(path)
    return engine


def set_parameters(engine: Engine, settings: "Mapping[str, Any]") -> None:
    """Have *engine* keep to the durations of *settings*, which have been checked."""
    for name, seconds in settings.get("ENGINE", {}).items():
        setattr(engine, name, seconds)


def build_plugins(engine: Engine, settings: "Mapping[str, Any]") -> "Iterator[Any]":
    """Return the plugins of *settings*, which have been checked; none is turned on."""
    for name, options in _entries(settings.get("PLUGINS", {})):
        yield _find_class(name)(engine, **_with_functions(options))


# -- what may be wrong ---------------------------------------------------------------------------


def find_problems(settings: object) -> Iterator[SettingError]:
    """Return what is wrong with the value of the setting."""
    if not isinstance(settings, Mapping):
        yield SettingError(
            "E001",
            f"ENGINE_BRIDGE wants a dict, got {settings!r}",
            f"write ENGINE_BRIDGE = {EXAMPLE}",
        )
        return
    for key in settings:
        if key not in KEYS:
            found = f"ENGINE_BRIDGE has no key {key!r}"
            yield SettingError("E002", found, _did_you_mean(key, KEYS))
    yield from _problems_of_instance(settings.get("INSTANCE"))
    yield from _problems_of_parameters(settings.get("ENGINE", {}))
    yield from _problems_of_plugins(settings.get("PLUGINS", {}))


def _problems_of_instance(path: object) -> Iterator[SettingError]:
    if path is None:
        return
    if not isinstance(path, str):
        found = f", got {path!r}"
    else:
        try:
            instance = import_string(path)
        except (ImportError, AttributeError) as exc:
            found = f"; {path!r} cannot be imported: {exc}"
        else:
            if isinstance(instance, Engine):
                return
            found = f"; {path!r} is {instance!r}"
    yield SettingError(
        "E006",
        f"ENGINE_BRIDGE['INSTANCE'] wants the dotted path of an Engine{found}",
        'write the path of a variable, e.g. "shop.lifecycle.engine", or leave it out',
    )


def _problems_of_parameters(parameters: object) -> Iterator[SettingError]:
    if not isinstance(parameters, Mapping):
        found = f"ENGINE_BRIDGE['ENGINE'] wants a dict, got {parameters!r}"
        yield SettingError("E003", found, 'write e.g. {"drain_timeout": 20}')
        return
    for name, value in parameters.items():
        if name not in report.PARAMETERS:
            found = f"ENGINE_BRIDGE['ENGINE'] has no parameter {name!r}"
            yield SettingError("E003", found, _did_you_mean(name, report.PARAMETERS))
            continue
        try:
            Engine(**{name: value})  # it knows what its parameters must be
        except EngineError:
            found = f"ENGINE_BRIDGE['ENGINE'][{name!r}] is {value!r}"
            yield SettingError("E003", found, "write a number of seconds, 0 or more")


def _problems_of_plugins(plugins: object) -> Iterator[SettingError]:
    if not isinstance(plugins, Mapping):
        found = f"ENGINE_BRIDGE['PLUGINS'] wants a dict, got {plugins!r}"
        hint = 'write the options behind each name: {"Log": {}}'
        yield SettingError("E005", found, hint)
        return
    for name, options in _entries(plugins):
        try:
            _check_plugin(name, options)
        except SettingError as exc:
            yield exc


def _check_plugin(name: object, options: object) -> None:
    setting = f"ENGINE_BRIDGE['PLUGINS'][{name!r}]"
    try:
        plugin = _find_class(name)
    except Exception as exc:  # whatever the module raises when it is imported
        raise SettingError("E004", f"{setting}: {_reason(exc)}", _known_plugins(name)) from exc
    if not isinstance(options, Mapping) or not all(isinstance(key, str) for key in options):
        raise SettingError(
            "E005",
            f"{setting} wants a dict of options, got {options!r}",
            f"write {name!r}: {{}} for a plugin without options, a list for several of them",
        )
    names = _options(plugin)
    for key in options:
        if names and key not in names:
            raise SettingError("E005", f"{setting} has no option {key!r}", _wanted(names))
    try:
        functions = _with_functions(options)
    except (ImportError, AttributeError) as exc:
        hint = 'write the dotted path of a function, e.g. "shop.tasks.tidy"'
        raise SettingError("E005", f"{setting}: {_reason(exc)}", hint) from exc
    try:
        plugin(Engine(), **functions)  # plugins know what their options must be
    except Exception as exc:
        raise SettingError("E005", f"{setting}: {_reason(exc)}", _wanted(names)) from exc


def _find_class(name: object) -> "Callable[..., Any]":
    """
    Return the plugin class called *name*.

    Raises:
        ImportError: There is none; whatever else its module raises.
    """
    if not isinstance(name, str):
        raise ImportError("the name of a plugin is a string")
    if "." not in name and name not in _plugin_names():
        raise ImportError("there is no such plugin")
    found: Any = import_string(name if "." in name else f"engine_bridge.plugins.{name}")
    if not isclass(found) or not callable(getattr(found, "subscribe", None)):
        raise ImportError(f"{found!r} is no plugin class")
    return found


def _entries(plugins: "Mapping[str, Any]") -> "Iterator[tuple[str, Any]]":
    """Return each plugin's name with its options; a list has several of one kind."""
    for name, options in plugins.items():
        for each in options if isinstance(options, list | tuple) else [options]:
            yield name, each


def _with_functions(options: "Mapping[str, Any]") -> "dict[str, Any]":
    """Return *options* with functions in place of their dotted paths."""
    return {key: _functions(value) if key in FUNCTIONS else value for key, value in options.items()}


def _functions(value: "Any") -> "Any":
    if isinstance(value, Mapping):
        return {key: _functions(each) for key, each in value.items()}
    function = import_string(value) if isinstance(value, str) else value
    return uses_database(function) if callable(function) else function


# -- sentences -----------------------------------------------------------------------------------


def _did_you_mean(key: object, known: tuple[str, ...]) -> str:
    meant = get_close_matches(str(key).lower(), [each.lower() for each in known], n=1)
    for each in known:
        if meant == [each.lower()]:
            return f"did you mean {each!r}?"
    return f"known: {', '.join(known)}"


def _known_plugins(name: object) -> str:
    if isinstance(name, str) and "." in name:
        return 'write the dotted path of a plugin class, e.g. "shop.plugins.Clock"'
    return _did_you_mean(name, _plugin_names())


def _plugin_names() -> tuple[str, ...]:
    """Return the names of our own plugins."""
    plugins = import_module("engine_bridge.plugins")
    base = plugins.Plugin
    found = ((name, getattr(plugins, name)) for name in plugins.__all__)
    return tuple(name for name, each in found if issubclass(each, base) and each is not base)


def _options(plugin: "Callable[..., Any]") -> list[str]:
    """Return the names of the options that *plugin* takes; nothing where it takes any."""
    parameters = list(signature(plugin).parameters.values())[1:]  # the first is the engine
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return []
    return [each.name for each in parameters]


def _wanted(names: list[str]) -> str:
    """Say which options a plugin takes."""
    return f"its options: {', '.join(names) or 'none'}"


def _reason(exc: Exception) -> str:
    return (
        str(exc) if isinstance(exc, EngineError | ImportError) else f"{type(exc).__name__}: {exc}"
    )
