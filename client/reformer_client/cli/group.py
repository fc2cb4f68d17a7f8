"""The group of commands: it finds those of other packages without importing them."""

from importlib.metadata import EntryPoint, entry_points
from typing import Any

import click

_HELP = {
    "plan": "Show how much memory a model and its documents need.",
    "score-corpus": "Score many documents with Ray.",
    "serve": "Start a server.",
    "train": "Train a Reformer on texts or images.",
}


class ReformerGroup(click.Group):
    """Adds the commands of the entry-point group `reformer.commands`, such as `serve`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *entry_points(group="reformer.commands").names})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if (command := super().get_command(ctx, cmd_name)) is not None:
            return command
        found = entry_points(group="reformer.commands", name=cmd_name)
        return next((LazyCommand(entry_point) for entry_point in found), None)


class LazyCommand(click.Command):
    """Stands for a command of another package until it is called: `reformer --help` must not import torch."""

    def __init__(self, entry_point: EntryPoint) -> None:
        super().__init__(entry_point.name, short_help=_HELP.get(entry_point.name, f"(from {entry_point.module})"))
        self._entry_point = entry_point

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        try:
            command: click.Command = self._entry_point.load()
        except ModuleNotFoundError as error:
            needed = "train" if self.name == "train" else "server"
            raise click.ClickException(
                f'`reformer {self.name}` needs more than the client ({error}): pip install "reformer-serve[{needed}]"'
            ) from error
        return command.make_context(info_name, args, parent, **extra)
