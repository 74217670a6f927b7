"""The app that stands in `INSTALLED_APPS`."""

from django.apps import AppConfig
from django.core.checks import register
from django.utils.module_loading import autodiscover_modules

from engine_bridge.frameworks.django import checks, conf, process


class EngineConfig(AppConfig):
    """Imports the module `engine` of each installed app; starts nothing."""

    name = conf.APP
    label = "engine_bridge"
    verbose_name = "engine_bridge"

    def ready(self) -> None:
        """Say what this process is, and have the engine's listeners subscribe."""
        register(checks.check_settings, checks.TAG)
        problems = list(conf.find_problems(conf.read()))  # they are for the checks to tell
        if not problems:
            engine = conf.find_instance(conf.read())
            process.tell_role(engine)
            process.warn_if_bare(engine)
        autodiscover_modules("engine")
        if not problems and process.is_runserver():
            conf.get_engine()  # here in the main thread plugins can set handlers of signals
