"""What the commands share: the server to talk to."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import click

from reformer_client.cli.explain import explain
from reformer_client.client import Client
from reformer_client.connection import TLS
from reformer_client.errors import ReformerError


@dataclass(frozen=True)
class Settings:
    """The global options."""

    server: str
    timeout_seconds: float | None
    token: str | None
    tls: TLS | None

    @contextmanager
    def client(self) -> Iterator[Client]:
        """A client of the server; what goes wrong with it becomes one line that says what to do."""
        try:
            with Client(self.server, timeout=self.timeout_seconds, tls=self.tls, token=self.token) as client:
                yield client
        except ReformerError as error:
            raise click.ClickException(explain(error, self.server)) from error
        except BrokenPipeError:
            raise  # whoever read the output has enough of it: click ends the program silently
        except (OSError, ValueError) as error:
            raise click.ClickException(str(error)) from error


pass_settings = click.make_pass_decorator(Settings)
file_argument = click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path))
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs; one line an item.")


def opened(file: Path) -> Path | BinaryIO:
    """What `file_argument` names: `-` is standard input."""
    return sys.stdin.buffer if str(file) == "-" else file
