"""The command `reformer`."""

from reformer_client.cli.main import main

__all__ = ["main"]
