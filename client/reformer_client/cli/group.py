"""The group of commands: finds those of other packages without importing them, and explains errors in one line."""

from importlib.metadata import EntryPoint, entry_points
from typing import Any

import click

from reformer_client import errors
from reformer_client.cli.settings import Settings

_HELP = {
    "plan": "Show how much memory a model and its documents need.",
    "serve": "Start a server.",
    "train": "Train a Reformer on text files.",
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

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except errors.ReformerError as error:
            server = ctx.obj.server if isinstance(ctx.obj, Settings) else "the server"
            raise click.ClickException(explain(error, server)) from error
        except OSError as error:
            if isinstance(error, BrokenPipeError):
                raise  # click ends the program silently
            raise click.ClickException(str(error)) from error


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
            raise click.ClickException(
                f"`reformer {self.name}` needs the server's dependencies ({error}): "
                'pip install "reformer-serve[server]"'
            ) from error
        return command.make_context(info_name, args, parent, **extra)


def explain(error: errors.ReformerError, server: str) -> str:
    """What went wrong and what to do, in one line."""
    told = "; ".join(f"{each.field}: {each.description}" for each in error.field_violations)
    message = " ".join((f"{error.message} ({told})" if told and told not in error.message else error.message).split())
    hint = _hint(error, server)
    return f"{message.rstrip('.')}. {hint}" if hint else message


def _hint(error: errors.ReformerError, server: str) -> str:
    match error:
        case errors.UnavailableError():
            return f"Is a server running at {server}? `reformer serve` starts one, --server names another."
        case errors.DeadlineExceededError():
            return "Allow more with --timeout SECONDS."
        case errors.NotFoundError():
            return "`reformer documents list` shows what is there."
        case errors.AlreadyExistsError():
            return "Choose another --id, or delete the document first."
        case errors.ResourceExhaustedError(retry_after_seconds=None):
            return "Delete documents that are not needed, or try again later."
        case errors.ResourceExhaustedError():
            return f"Try again in {error.retry_after_seconds:.0f} s."
        case errors.UnauthenticatedError() | errors.PermissionDeniedError():
            return "Pass a valid token: --token, or REFORMER_TOKEN in the environment."
        case errors.UnimplementedError():
            return f"Does a Reformer server of this version run at {server}?"
        case errors.InternalError() | errors.UnknownError():
            return f"The server's log says more about request {error.request_id or 'unknown'}."
        case _:
            return ""
