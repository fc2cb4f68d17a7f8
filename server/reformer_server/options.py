"""Settings as options of a command."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

import click

from reformer_server.settings import KEYS, Settings

Command = TypeVar("Command", bound=Callable[..., Any])


def settings_options(*names: str) -> Callable[[Command], Command]:
    """An option for each of these fields, parsed where the file's and the environment's values are: all mean the same.

    The command gets their text by name, for `Settings.load`; None: not given.
    """

    def add(command: Command) -> Command:
        for field in reversed([field for field in fields(Settings) if field.name in names]):
            metavar, help_text = field.metadata["metavar"], field.metadata["help"]
            command = click.option(f"--{KEYS[field.name]}", field.name, metavar=metavar, help=help_text)(command)
        return command

    return add
