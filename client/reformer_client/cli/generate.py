"""`reformer generate`: streams a continuation to stdout."""

import contextlib
import sys
from pathlib import Path
from typing import Any, cast

import click

from reformer_client.cli.drawing import drawing_options
from reformer_client.cli.output import ProgressBar, print_json
from reformer_client.cli.settings import Settings, json_option, pass_settings
from reformer_client.client import Client, GenerationStream
from reformer_client.messages import Sampling


@click.command()
@click.argument("prompt", required=False)
@click.option("--document", "document_id", metavar="ID", help="Continue this document.")
@click.option("--file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Continue this text file.")
@click.option("--max-tokens", type=int, help="Generate at most so many tokens. [default: 256]")
@drawing_options
@click.option("--stop", multiple=True, metavar="TEXT", help="End before this text; may be repeated.")
@click.option(
    "--stop-id", "stop_ids", multiple=True, type=int, metavar="ID", help="End at this token id; may be repeated."
)
@click.option("--top-logprobs", type=int, help="With --json: report so many alternatives a token. [default: 0]")
@json_option
@pass_settings
def generate(
    settings: Settings, /, prompt: str | None, document_id: str | None, file: Path | None, as_json: bool, **options: Any
) -> None:
    """Continue a prompt, a document, or both in a row.

    PROMPT follows the document; `-` reads it from standard input.

    With --json: a line a token, then one that says how it ended.
    """
    if document_id is not None and file is not None:
        raise click.UsageError("--document and --file can't be used together: name one document")
    if prompt is None and document_id is None and file is None:
        raise click.UsageError("there is nothing to continue: give a PROMPT, `-`, --document or --file")
    if prompt == "-":
        prompt = _prompt_from_stdin()
    sampling = cast(Sampling, {name: value for name, value in options.items() if value not in (None, ())})
    with settings.client() as client, ProgressBar("reading") as bar, contextlib.ExitStack() as stack:
        _print(_stream(client, stack, bar, prompt, document_id, file, sampling), bar, as_json)


def _prompt_from_stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise click.ClickException(f"standard input isn't UTF-8 text: {error}") from None


def _stream(
    client: Client,
    stack: contextlib.ExitStack,
    bar: ProgressBar,
    prompt: str | None,
    document_id: str | None,
    file: Path | None,
    sampling: Sampling,
) -> GenerationStream:
    if file is not None:
        document = stack.enter_context(client.documents.create(file, on_progress=bar))
    elif document_id is not None:
        document = client.documents.get(document_id)
    else:
        return client.generate(prompt or "", on_progress=bar, **sampling)
    return document.generate(prompt, on_progress=bar, **sampling)


def _print(stream: GenerationStream, bar: ProgressBar, as_json: bool) -> None:
    with stream:
        try:
            for token in stream:
                bar.close()
                print_json(token) if as_json else click.echo(token.text, nl=False)
        finally:
            if not as_json:
                click.echo()  # also before an error, which is to stand on a line of its own
        if as_json:
            print_json(stream.finished)
