"""The top of the command: which server, how to reach it, and the commands below."""

from pathlib import Path

import click

from reformer_client.cli.admin import admin
from reformer_client.cli.complete_image import complete_image
from reformer_client.cli.documents import documents
from reformer_client.cli.generate import generate
from reformer_client.cli.group import ReformerGroup
from reformer_client.cli.score import score
from reformer_client.cli.settings import Settings
from reformer_client.connection import TLS

_pem_file = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group(
    name="reformer",
    cls=ReformerGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    commands={
        "admin": admin,
        "complete-image": complete_image,
        "documents": documents,
        "generate": generate,
        "score": score,
    },
)
@click.version_option(package_name="reformer-serve")
@click.option(
    "--server", default="localhost:50051", envvar="REFORMER_SERVER", show_default=True, show_envvar=True,
    help="Address of the server, host:port.",
)  # fmt: skip
@click.option(
    "--timeout", type=click.FloatRange(min=0, min_open=True), envvar="REFORMER_TIMEOUT", show_envvar=True,
    metavar="SECONDS", help="Give up on a call after this long.",
)  # fmt: skip
@click.option("--token", envvar="REFORMER_TOKEN", show_envvar=True, help="Bearer token; better in the environment.")
@click.option("--tls/--no-tls", default=None, envvar="REFORMER_TLS", show_envvar=True, help="Encrypt the connection.")
@click.option(
    "--tls-ca", type=_pem_file, envvar="REFORMER_TLS_CA", show_envvar=True,
    help="PEM file of the authorities to trust; implies --tls.",
)  # fmt: skip
@click.option(
    "--tls-cert", type=_pem_file, envvar="REFORMER_CLIENT_CERT", show_envvar=True,
    help="PEM file of the client's certificate (mTLS); implies --tls.",
)  # fmt: skip
@click.option(
    "--tls-key", type=_pem_file, envvar="REFORMER_CLIENT_KEY", show_envvar=True,
    help="PEM file of the key of --tls-cert.",
)  # fmt: skip
@click.pass_context
def main(
    context: click.Context,
    server: str,
    timeout: float | None,
    token: str | None,
    tls: bool | None,
    tls_ca: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
) -> None:
    """Read long documents once with a Reformer, then generate and score from them.

    `reformer serve` starts a server; the other commands talk to it.
    """
    try:
        encrypted = tls if tls is not None else any((tls_ca, tls_cert, tls_key))
        context.obj = Settings(server, timeout, token, TLS(tls_ca, tls_cert, tls_key) if encrypted else None)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
