"""`reformer admin`: how busy a server is, whose documents it has, and taking it out of service."""

import itertools
import time

import click
from rich.filesize import decimal

from reformer_client.cli.output import print_facts, print_json
from reformer_client.cli.settings import Settings, json_option, pass_settings
from reformer_client.results import Load, OwnedDocument

POLL_SECONDS = 0.5


@click.group()
def admin() -> None:
    """Look into a server, and take it out of service.

    `drain` and `documents` are for a tenant that is marked as an admin; without tenants, for a server that only this
    machine reaches.
    """


@admin.command()
@json_option
@pass_settings
def load(settings: Settings, /, as_json: bool) -> None:
    """Show how busy the server is: queue, memory, documents."""
    with settings.client() as client:
        found = client.load()
    if as_json:
        print_json(found)
        return
    quota = f" of {decimal(found.store_quota_bytes)}" if found.store_quota_bytes else ""
    print_facts(
        {
            "state": "draining" if found.draining else "serving",
            "calls": f"{found.running_calls:,} under way",
            "requests": f"{found.running_requests:,} running, {found.waiting_requests:,} waiting",
            "decoding": f"{found.decode_batch_size:,} streams in the latest step",
            "weights": decimal(found.weights_bytes),
            "pages": f"{decimal(found.used_page_bytes)} of {decimal(found.total_page_bytes)}",
            "workspace": decimal(found.workspace_bytes),
            "documents": f"{found.documents:,} in memory, {decimal(found.document_bytes)}",
            "store": f"{found.stored_documents:,} documents, {decimal(found.stored_bytes)}{quota}",
            "not stored yet": f"{found.unstored_documents:,} documents",
        }
    )


@admin.command()
@json_option
@pass_settings
def drain(settings: Settings, /, as_json: bool) -> None:
    """Have the server take nothing new, and wait until it has finished what it has.

    Then it can be stopped, and nobody notices. It goes on draining if this command is interrupted. There is no way back
    but to start it anew.
    """
    with settings.client() as client:
        client.admin.drain()
        said = ""
        while True:
            found = client.load()
            if not as_json and (now := _left(found)) != said:
                said = now
                click.echo(said, err=True)
            if not found.running_calls and not found.unstored_documents:
                break
            time.sleep(POLL_SECONDS)
    if as_json:
        print_json(found)
    else:
        click.echo("drained: the server can be stopped")


@admin.command()
@json_option
@pass_settings
def documents(settings: Settings, /, as_json: bool) -> None:
    """List all tenants' documents, the largest first."""
    with settings.client() as client:
        found = client.admin.documents()
        first = list(itertools.islice(found, 1))  # before the heading, which would be all that stdout gets of an error
        if not as_json:
            _print_row("tenant", "document", "tokens", "size", "memory", "store", "kept until (UTC)", "last use (UTC)")
        for document in itertools.chain(first, found):
            if as_json:
                print_json(document)
            else:
                _print_document(document)


def _left(load: Load) -> str:
    return f"draining: {load.running_calls:,} calls under way, {load.unstored_documents:,} documents not stored yet"


def _print_document(document: OwnedDocument) -> None:
    info, last_use = document.info, document.last_use_time
    _print_row(
        document.tenant,
        info.id,
        f"{info.tokens:,}",
        decimal(info.memory_bytes),
        "yes" if document.in_memory else "no",
        "yes" if info.stored else "no",
        f"{info.expire_time:%Y-%m-%d %H:%M:%S}",
        f"{last_use:%Y-%m-%d %H:%M:%S}" if last_use else "",
    )


def _print_row(
    tenant: str, document: str, tokens: str, size: str, memory: str, store: str, until: str, last_use: str
) -> None:
    line = f"{tenant:<16}  {document:<36}  {tokens:>9}  {size:>9}  {memory:<6}  {store:<5}  {until:<19}  {last_use}"
    click.echo(line.rstrip())
