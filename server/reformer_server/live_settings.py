"""Settings that may change while the server runs: SIGHUP has the file read again."""

import logging
from collections.abc import Callable
from dataclasses import replace

from reformer_server import logs
from reformer_server.settings import KEYS, Settings, SettingsError

LIVE = ("drain_grace_seconds", "log_level")
"""Tenants, their limits and TLS files aren't among them: they are read again by themselves."""

logger = logging.getLogger(__name__)


def read_again(current: Settings, load: Callable[[], Settings]) -> Settings:
    """The current settings, with what may change as `load` has it now. The log says what did, and what needs a restart.

    If they can't be read, all stay as they are.
    """
    try:
        loaded = load()
    except SettingsError as error:
        logger.error("%s; going on with the settings from before", error)
        return current
    changed = [name for name in KEYS if getattr(loaded, name) != getattr(current, name)]
    settings = replace(current, **{name: getattr(loaded, name) for name in changed if name in LIVE})
    logs.set_level(settings.log_level)
    for name in changed:
        if name in LIVE:
            logger.info("%s is now %s", KEYS[name], getattr(loaded, name))
        else:
            logger.warning("%s has changed, which needs a restart", KEYS[name])
    if not changed:
        logger.info("no setting has changed")
    return settings
