"""Files that are read again when they change."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from reformer_server.settings import SettingsError

T = TypeVar("T")

logger = logging.getLogger(__name__)


class Reloaded(Generic[T]):
    """What some files say, as `load` reads it; while they can't be used, what they said before.

    Links are followed: so a secret that Kubernetes mounts, a link to a folder that is replaced at once, is seen to
    change like any other file.
    """

    def __init__(self, files: Sequence[Path], load: Callable[[], T]) -> None:
        """Raises what `load` raises, for there is nothing from before."""
        self._files = tuple(files)
        self._load = load
        self._seen = self._signature()
        self.is_current = True
        """Whether `value` is what the files say; False: they can't be used as they are now."""
        self.value = load()

    def poll(self) -> None:
        """Reads the files if they have changed since the latest time. What is wrong with them is logged, once."""
        signature = self._signature()  # first: what changes while it is read will be noticed by the next poll
        if signature == self._seen:
            return
        self._seen = signature
        try:
            self.value = self._load()
        except SettingsError as error:
            self.is_current = False
            logger.error("%s; going on with what was read before", error)
        else:
            self.is_current = True
            logger.info("read again: %s", ", ".join(map(str, self._files)))

    def _signature(self) -> list[tuple[int, ...] | None]:
        return [_signature(file) for file in self._files]


def _signature(file: Path) -> tuple[int, ...] | None:
    """Differs whenever the file does; None: there is none."""
    try:
        stat = file.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
