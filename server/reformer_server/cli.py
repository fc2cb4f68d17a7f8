"""`reformer serve`: settings from the command line, a few lines that say what is served, and an exit code."""

import asyncio
import gc
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click

from reformer_core.errors import ReformerError
from reformer_server import logs
from reformer_server.access import Access
from reformer_server.building import open_traces
from reformer_server.doctor import doctor
from reformer_server.errors import EngineStoppedError
from reformer_server.live_settings import read_again
from reformer_server.options import settings_options
from reformer_server.plan import plan
from reformer_server.served_model import load_served_model
from reformer_server.server import Server
from reformer_server.settings import KEYS, Settings, SettingsError
from reformer_server.token import token
from reformer_server.units import format_size
from reformer_server.version import VERSION

__all__ = ["doctor", "plan", "serve", "token"]

logger = logging.getLogger(__name__)


@click.command()
@settings_options(*KEYS)
@click.option("--config", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="TOML file with settings.")
@click.option("--json", "as_json", is_flag=True, help="Say where the server listens in one line of JSON.")
def serve(config: Path | None, as_json: bool, **flags: str | None) -> None:
    """Serve a Reformer over gRPC until SIGTERM or Ctrl-C.

    Each option can also be set in the environment (REFORMER_MEMORY=12GiB) or in a TOML file (memory = "12GiB").
    """
    load = partial(Settings.load, flags, os.environ, config)
    try:
        settings = load()
    except SettingsError as error:
        raise click.UsageError(str(error)) from None
    logs.configure(settings.log_format, settings.log_level)
    try:
        asyncio.run(_serve(settings, load if config else None, as_json=as_json))
    except (ReformerError, SettingsError, OSError, EngineStoppedError) as error:  # e.g. a port that is taken
        if settings.log_format == "json":
            logger.critical("%s", error)
            sys.exit(1)
        raise click.ClickException(str(error)) from error


async def _serve(settings: Settings, reload: Callable[[], Settings] | None, *, as_json: bool) -> None:
    """Returns after a clean stop; raises whatever else ended the server.

    `reload` reads the settings again, on SIGHUP; None: there is no file, and SIGHUP ends the process as ever.
    """
    access = Access(settings)  # before a model is loaded, which takes longer to go wrong
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        # There is nothing to drain yet. A container's first process would ignore what it has no handler for.
        loop.add_signal_handler(number, os._exit, 0)
    told_to_reload = asyncio.Event()
    if reload is not None:
        loop.add_signal_handler(signal.SIGHUP, told_to_reload.set)  # else it would end the process
    traces = open_traces(settings)
    links = () if traces is None else (traces.link,)
    server = Server(settings, await asyncio.to_thread(load_served_model, settings), access=access, links=links)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.tell_to_stop)

    def read_settings_again() -> None:
        if reload is not None:
            server.settings = read_again(server.settings, reload)

    if reload is not None:
        loop.add_signal_handler(signal.SIGHUP, read_settings_again)
    if told_to_reload.is_set():
        read_settings_again()
    try:
        await server.start()
        # What is here now stays; to look it through, each full collection would stop all streams for 0.3 s.
        gc.collect()
        gc.freeze()
        click.echo(json_announcement(server) if as_json else announcement(server))
        await server.until_stopped()
    finally:
        await server.stop()
        if traces is not None:
            await asyncio.to_thread(traces.close)  # sends what it still has


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
