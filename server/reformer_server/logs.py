"""The log: lines on stderr for people, or one JSON object a line for programs."""

import json
import logging
import sys
import threading
import time
from typing import Any

from reformer_server import call_facts

HUMAN_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
OUR_PACKAGES = ("reformer_server", "reformer_core")
FIELDS = "fields"
"""The attribute of a record that holds its fields: `logger.info(…, extra={FIELDS: {…}})`."""

IN_THE_MESSAGE = {"method", "code"}

logger = logging.getLogger(__name__)


def configure(log_format: str, level: str) -> None:
    """Sets the process's log up; `log_format` is "json" or "human".

    What other packages tell for debugging is never shown: it could be a document's content.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else HumanFormatter(HUMAN_FORMAT))
    logging.basicConfig(handlers=[handler])
    set_level(level)
    if log_format == "json":
        logging.captureWarnings(True)
        sys.excepthook = _log_uncaught
        threading.excepthook = lambda args: _log_uncaught(args.exc_type, args.exc_value, args.exc_traceback)


def set_level(level: str) -> None:
    """Of ours; others' is "info" at least."""
    logging.getLogger().setLevel(max(logging.getLevelName(level.upper()), logging.INFO))
    for package in OUR_PACKAGES:
        logging.getLogger(package).setLevel(level.upper())


class HumanFormatter(logging.Formatter):
    """The message on one line, and behind it, as `name=value`, the fields that it doesn't tell.

    What isn't printable is escaped: nothing that came from elsewhere can forge a line, or command the terminal.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:
        fields = {name: value for name, value in getattr(record, FIELDS, {}).items() if name not in IN_THE_MESSAGE}
        line = " ".join([super().formatMessage(record), *(f"{name}={value}" for name, value in fields.items())])
        return "".join(each if each.isprintable() else repr(each)[1:-1] for each in line)


class JsonFormatter(logging.Formatter):
    """One object a line: time, level, logger, message, the fields, and the traceback of an error."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := call_facts.current_request_id():
            line["request_id"] = request_id
        line |= getattr(record, FIELDS, {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(
            line, default=str
        )  # in ASCII, which is the same in every locale, and in no terminal a command


def _log_uncaught(kind: type[BaseException], error: BaseException | None, traceback: Any) -> None:
    if error is None or issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error or kind(), traceback)
    else:
        logger.critical("the process ends with an error that nobody expected", exc_info=(kind, error, traceback))
