"""How results look: JSON for programs, aligned lines for people, a progress bar while they wait."""

import dataclasses
import json
import math
import sys
import threading
from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import click
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from reformer_client.results import Progress

DELAY_SECONDS = 1.0
"""What is over sooner needs no progress bar."""


def print_json(value: Any) -> None:
    """One line of JSON; NaN becomes null, bytes become hex digits."""
    click.echo(json.dumps(_plain(value), ensure_ascii=False))


def print_facts(facts: Mapping[str, object]) -> None:
    """A line each, aligned."""
    width = max(map(len, facts))
    for name, value in facts.items():
        click.echo(f"{name:<{width}}  {value}")


def print_notes(file: Path, notes: Sequence[str]) -> None:
    """On stderr: what the server changed in a picture to read it."""
    for note in notes:
        click.echo(f"note: {file}: {note}", err=True)


def _plain(value: Any) -> Any:
    match value:
        case float() if not math.isfinite(value):
            return None
        case bytes():
            return value.hex()
        case datetime():
            return value.isoformat()
        case Enum():
            return value.value
        case dict():
            return {key: _plain(each) for key, each in value.items()}
        case list() | tuple():
            return [_plain(each) for each in value]
        case _ if dataclasses.is_dataclass(value):
            return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        case _:
            return value


class ProgressBar:
    """An `on_progress` that draws a bar on stderr, if that is a terminal and it takes longer than DELAY_SECONDS."""

    def __init__(self, description: str) -> None:
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,.0f} tokens"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task(description, total=None)
        self._timer = threading.Timer(DELAY_SECONDS, self._bar.start)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            self._timer.start()
        return self

    def __call__(self, progress: Progress) -> None:
        self._bar.update(self._task, completed=progress.processed_tokens, total=progress.total_tokens or None)

    def close(self) -> None:
        """Takes the bar away. Needs to be done before anything else is printed; may be done again."""
        if self._timer.is_alive():
            self._timer.cancel()
            self._timer.join()  # it may be about to draw
        if self._bar.live.is_started:
            self._bar.stop()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
