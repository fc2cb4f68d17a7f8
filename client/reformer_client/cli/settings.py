"""What the commands share: the server to talk to."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import click

from reformer_client.client import Client
from reformer_client.connection import TLS


@dataclass(frozen=True)
class Settings:
    """The global options."""

    server: str
    timeout_seconds: float | None
    token: str | None
    tls: TLS | None

    def client(self) -> Client:
        """A client of the server; raises click.UsageError for options that don't go together."""
        try:
            return Client(self.server, timeout=self.timeout_seconds, tls=self.tls, token=self.token)
        except ValueError as error:
            raise click.UsageError(str(error)) from None


pass_settings = click.make_pass_decorator(Settings)
file_argument = click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path))
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs; one line an item.")


def opened(file: Path) -> Path | BinaryIO:
    """What `file_argument` names: `-` is standard input."""
    return sys.stdin.buffer if str(file) == "-" else file
