"""`reformer serve`: settings from the command line, a few lines that say what is served, and an exit code."""

import asyncio
import gc
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import click

from reformer_core.errors import ReformerError
from reformer_server.access import Access
from reformer_server.doctor import doctor
from reformer_server.errors import EngineStoppedError
from reformer_server.plan import plan
from reformer_server.served_model import load_served_model
from reformer_server.server import Server
from reformer_server.settings import KEYS, Settings, SettingsError
from reformer_server.token import token
from reformer_server.units import format_size
from reformer_server.version import VERSION

__all__ = ["doctor", "plan", "serve", "token"]

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

Command = TypeVar("Command", bound=Callable[..., Any])


def _settings_options(command: Command) -> Command:
    """An option for each setting, parsed where the file's and the environment's values are: all mean the same."""
    for field in reversed(fields(Settings)):
        key = KEYS[field.name]
        command = click.option(f"--{key}", field.name, metavar=field.metadata["metavar"], help=field.metadata["help"])(
            command
        )
    return command


@click.command()
@_settings_options
@click.option("--config", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="TOML file with settings.")
@click.option("--json", "as_json", is_flag=True, help="Say where the server listens in one line of JSON.")
def serve(config: Path | None, as_json: bool, **flags: str | None) -> None:
    """Serve a Reformer over gRPC until SIGTERM or Ctrl-C.

    Each option can also be set in the environment (REFORMER_MEMORY=12GiB) or in a TOML file (memory = "12GiB").
    """
    try:
        settings = Settings.load(flags, os.environ, config)
    except SettingsError as error:
        raise click.UsageError(str(error)) from None
    logging.basicConfig(level=settings.log_level.upper(), format=LOG_FORMAT, stream=sys.stderr)
    try:
        asyncio.run(_serve(settings, as_json=as_json))
    except (ReformerError, SettingsError, OSError, EngineStoppedError) as error:  # e.g. a port that is taken
        raise click.ClickException(str(error)) from error


async def _serve(settings: Settings, *, as_json: bool) -> None:
    """Returns after a clean stop; raises whatever else ended the server."""
    access = Access(settings)  # before a model is loaded, which takes longer to go wrong
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        # There is nothing to drain yet. A container's first process would ignore what it has no handler for.
        loop.add_signal_handler(number, os._exit, 0)
    server = Server(settings, await asyncio.to_thread(load_served_model, settings), access=access)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.tell_to_stop)
    try:
        await server.start()
        # What is here now stays; to look it through, each full collection would stop all streams for 0.3 s.
        gc.collect()
        gc.freeze()
        click.echo(json_announcement(server) if as_json else announcement(server))
        await server.until_stopped()
    finally:
        await server.stop()


def json_announcement(server: Server) -> str:
    """What has been started, in one line for programs."""
    load = server.engine.load
    facts = {
        "version": VERSION,
        "model": server.model.name,
        "host": server.settings.host,
        "port": server.port,
        "metrics_port": server.metrics_port,
        "access": str(server.access),
        "store": server.settings.store_url,
        "max_tokens": server.model.max_tokens,
        "weights_bytes": load.weights_bytes,
        "page_bytes": load.total_page_bytes,
    }
    return json.dumps(facts)


def announcement(server: Server) -> str:
    """What has been started, in a few lines for people."""
    model, load, host = server.model.model, server.engine.load, server.settings.host
    dtype = str(model.dtype).removeprefix("torch.")
    return "\n".join(
        (
            f"model    {server.model.name}: {model.num_parameters:,} parameters, {dtype} on {model.device}, "
            f"up to {server.model.max_tokens:,} tokens",
            f"memory   {format_size(load.weights_bytes)} weights, "
            f"{format_size(load.total_page_bytes)} for documents and sessions",
            f"store    {server.settings.store_url or 'none: documents end with this process'}",
            f"metrics  http://{host}:{server.metrics_port}/metrics",
            f"serving  {host}:{server.port}, {server.access}  (Ctrl-C stops)",
        )
    )
