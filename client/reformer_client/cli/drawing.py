"""The options that say how tokens are drawn: of all commands that generate."""

from collections.abc import Callable
from typing import Any

import click

AnyCommand = Callable[..., Any]

_OPTIONS = (
    click.option("--temperature", type=float, help="0 takes the most likely token. [default: 1]"),
    click.option("--top-k", type=int, help="Draw from the k most likely tokens. [default: all]"),
    click.option("--top-p", type=float, help="Draw from the most likely tokens of this probability. [default: 1]"),
    click.option("--min-p", type=float, help="Draw from tokens this likely, relative to the likeliest. [default: 0]"),
    click.option("--repetition-penalty", type=float, help="Above 1 makes repetitions less likely. [default: 1]"),
    click.option("--seed", type=int, help="The same seed gives the same tokens. [default: random]"),
)


def drawing_options(command: AnyCommand) -> AnyCommand:
    """Adds them, as arguments of the names of `Drawing`; None: left out."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
