"""`reformer documents`: upload, list, show, renew and delete documents."""

from pathlib import Path

import click

from reformer_client.cli.output import ProgressBar, print_facts, print_json
from reformer_client.cli.settings import Settings, file_argument, json_option, opened, pass_settings
from reformer_client.results import DocumentInfo

_lease_option = click.option(
    "--lease", "lease_seconds", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS",
    help="How long it is kept. [default: the server's, one hour]",
)  # fmt: skip


@click.group()
def documents() -> None:
    """Upload, list, show, renew and delete documents."""


@documents.command()
@file_argument
@click.option("--id", "document_id", metavar="ID", help="1 to 128 of A-Z a-z 0-9 . _ ~ -  [default: a new UUID]")
@_lease_option
@click.option("--keep-scores", is_flag=True, help="Keep the log-probability of each token.")
@json_option
@pass_settings
def create(
    settings: Settings,
    /,
    file: Path,
    document_id: str | None,
    lease_seconds: float | None,
    keep_scores: bool,
    as_json: bool,
) -> None:
    """Upload a text and have it read.

    FILE is UTF-8 text, `-` is standard input.
    """
    with settings.client() as client, ProgressBar("reading") as bar:
        document = client.documents.create(
            opened(file), document_id=document_id, lease_seconds=lease_seconds, keep_scores=keep_scores, on_progress=bar
        )
    _print(document.info, as_json)


@documents.command("list")
@json_option
@pass_settings
def list_(settings: Settings, /, as_json: bool) -> None:
    """List the documents, oldest first."""
    with settings.client() as client:
        for document in client.documents.list():
            if as_json:
                print_json(document.info)
            else:
                until = f"{document.expire_time:%Y-%m-%d %H:%M:%S} UTC"
                click.echo(f"{document.id:<36}  {document.tokens:>10,} tokens  until {until}")


@documents.command()
@click.argument("document_id", metavar="ID")
@json_option
@pass_settings
def show(settings: Settings, /, document_id: str, as_json: bool) -> None:
    """Show one document."""
    with settings.client() as client:
        _print(client.documents.get(document_id).info, as_json)


@documents.command()
@click.argument("document_id", metavar="ID")
@_lease_option
@json_option
@pass_settings
def renew(settings: Settings, /, document_id: str, lease_seconds: float | None, as_json: bool) -> None:
    """Prolong a document's lease: it then ends so long from now."""
    with settings.client() as client:
        _print(client.documents.renew(document_id, lease_seconds).info, as_json)


@documents.command()
@click.argument("document_ids", metavar="ID...", nargs=-1, required=True)
@json_option
@pass_settings
def delete(settings: Settings, /, document_ids: tuple[str, ...], as_json: bool) -> None:
    """Delete documents; unknown ids are no error."""
    with settings.client() as client:
        for document_id in document_ids:
            client.documents.delete(document_id)
            if as_json:
                print_json({"deleted": document_id})


def _print(info: DocumentInfo, as_json: bool) -> None:
    if as_json:
        print_json(info)
        return
    print_facts(
        {
            "id": info.id,
            "content": info.content_type.value,
            "tokens": f"{info.tokens:,}",
            "bytes": f"{info.content_bytes:,}",
            "memory": f"{info.memory_bytes:,} bytes",
            "sha256": info.sha256.hex(),
            "created": f"{info.create_time:%Y-%m-%d %H:%M:%S} UTC",
            "kept until": f"{info.expire_time:%Y-%m-%d %H:%M:%S} UTC",
            "scores": "kept" if info.has_scores else "not kept",
            "stored": "yes" if info.stored else "not yet, or the server has no store",
            "computed": "no, the same content was there already" if info.cached else "yes",
        }
    )
