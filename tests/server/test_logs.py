"""How lines of the log look, for people and for programs. What is in them for each call is tested end to end."""

import json
import logging
import subprocess
import sys
from typing import Any

import pytest

from reformer_server import call_facts
from reformer_server.call_facts import CallFacts
from reformer_server.logs import FIELDS, HUMAN_FORMAT, HumanFormatter, JsonFormatter

UNCAUGHT = """
import threading
import warnings
from reformer_server import logs
logs.configure("json", "debug")
warnings.warn("careful")
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
raise KeyError("key")
"""


def record(message: str, fields: dict[str, Any] | None = None, exc_info: Any = None) -> logging.LogRecord:
    made = logging.makeLogRecord({"msg": message, "levelname": "INFO", "name": "reformer_server.x"})
    made.exc_info = exc_info
    if fields is not None:
        setattr(made, FIELDS, fields)
    return made


def test_json_is_one_line_whatever_it_says() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        text = JsonFormatter().format(record("a\nb", {"tenant": "ä"}, sys.exc_info()))
    assert "\n" not in text
    line = json.loads(text)
    assert (line["message"], line["tenant"], line["level"], line["logger"]) == (
        "a\nb",
        "ä",
        "info",
        "reformer_server.x",
    )
    assert line["time"].endswith("Z")
    assert line["exception"].endswith("ValueError: two\nlines")


def test_nothing_in_a_line_can_end_it_or_move_a_terminal() -> None:
    """Whatever reads it: for some, U+2028 ends a line, and U+009B begins a command of a terminal."""
    said = "a\x1b[2J\x9b2J\x7f\x85\u2028\ud800b"
    fields = {"request_id": said}
    text = JsonFormatter().format(record(said, fields))
    assert text.isascii()
    assert text.isprintable()
    assert json.loads(text)["message"] == json.loads(text)["request_id"] == said
    text = HumanFormatter(HUMAN_FORMAT).format(record(f"two\nlines {said}", fields))
    assert text.isprintable()
    assert r"two\nlines a\x1b[2J" in text


def test_people_see_tracebacks_as_they_are() -> None:
    try:
        raise ValueError("Ä")
    except ValueError:
        text = HumanFormatter(HUMAN_FORMAT).format(record("bug: ä", exc_info=sys.exc_info()))
    assert text.splitlines()[0].endswith("bug: ä")
    assert text.splitlines()[-1] == "ValueError: Ä"


def test_json_names_the_call_in_which_something_is_logged() -> None:
    assert "request_id" not in json.loads(JsonFormatter().format(record("a")))
    with call_facts.entered(CallFacts("S/M", "r-1")):
        assert json.loads(JsonFormatter().format(record("a")))["request_id"] == "r-1"


def test_people_see_the_fields_behind_the_message() -> None:
    line = HumanFormatter(HUMAN_FORMAT).format(record("S/M OK", {"code": "OK", "total_seconds": 0.5}))
    assert line.endswith("INFO reformer_server.x: S/M OK total_seconds=0.5")


def test_warnings_and_what_nobody_expected_are_lines_of_json() -> None:
    ended = subprocess.run([sys.executable, "-c", UNCAUGHT], capture_output=True, text=True)
    assert ended.returncode == 1
    warning, in_thread, uncaught = map(json.loads, ended.stderr.splitlines())
    assert "careful" in warning["message"]
    assert "ZeroDivisionError" in in_thread["exception"]
    assert "KeyError: 'key'" in uncaught["exception"]
    assert uncaught["level"] == "critical"


@pytest.mark.parametrize(("level", "shown"), [("debug", {"ours"}), ("error", set())])
def test_other_packages_dont_tell_for_debugging(level: str, shown: set[str]) -> None:
    program = (
        "import logging\nfrom reformer_server import logs\n"
        f"logs.configure('json', '{level}')\n"
        "logging.getLogger('reformer_server.x').debug('ours')\nlogging.getLogger('PIL.Image').debug('theirs')\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert {json.loads(line)["message"] for line in ended.stderr.splitlines()} == shown
