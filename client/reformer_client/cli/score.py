"""`reformer score`: how well the model predicts a text."""

import os
from pathlib import Path

import click

from reformer_client.cli.output import ProgressBar, print_facts, print_json, print_notes
from reformer_client.cli.settings import Settings, file_argument, json_option, opened, pass_settings


@click.command()
@file_argument
@click.option(
    "--html", "page", type=click.Path(dir_okay=False, writable=True, path_type=Path), metavar="PAGE",
    help="Also write a page to look at: surprise along the text, passages, the text itself. Overwrites PAGE.",
)  # fmt: skip
@json_option
@pass_settings
def score(settings: Settings, /, file: Path, page: Path | None, as_json: bool) -> None:
    """Score a text or a picture: bits per byte and perplexity.

    FILE is UTF-8 text, or a PNG or JPEG file for a model that reads pictures, whose bytes are then the values of its
    pixels; `-` is text from standard input. The server retains nothing of it.
    """
    if page is not None:
        _check_writable(page, file)
    with settings.client() as client, ProgressBar("scoring") as bar:
        model = client.model() if page is not None else None
        scores = client.score(opened(file), on_progress=bar)
    print_notes(file, scores.notes)
    if as_json:
        print_json(
            {
                "tokens": scores.tokens,
                "content_bytes": scores.content_bytes,
                "total_logprob": scores.total_logprob,
                "bits_per_byte": scores.bits_per_byte,
                "perplexity": scores.perplexity,
                "timings": scores.timings,
            }
        )
    else:
        print_facts(
            {
                "tokens": f"{scores.tokens:,}",
                "bytes": f"{scores.content_bytes:,}",
                "bits per byte": f"{scores.bits_per_byte:.4f}",
                "perplexity": f"{scores.perplexity:.2f}",
            }
        )
    if page is not None:
        title = "standard input" if str(file) == "-" else file.name
        try:
            page.write_bytes(scores.to_html(title=title, model=model).encode())
        except OSError as error:
            raise click.ClickException(f"{page} can't be written: {error.strerror}") from error


def _check_writable(page: Path, file: Path) -> None:
    """Before anything is scored, which may take minutes. (click looks at a page that is there, not at a new one.)"""
    if not page.parent.is_dir():
        raise click.BadParameter(f"there is no folder {str(page.parent)!r} to write it to", param_hint="--html")
    if not page.exists() and not os.access(page.parent, os.W_OK):
        raise click.BadParameter(f"no file may be made in {str(page.parent)!r}", param_hint="--html")
    if page.exists() and file.exists() and page.samefile(file):
        raise click.BadParameter(f"{str(page)!r} is the text itself, and would be overwritten", param_hint="--html")
