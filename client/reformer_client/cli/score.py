"""`reformer score`: how well the model predicts a text."""

from pathlib import Path

import click

from reformer_client.cli.output import ProgressBar, print_facts, print_json
from reformer_client.cli.settings import Settings, file_argument, json_option, opened, pass_settings


@click.command()
@file_argument
@json_option
@pass_settings
def score(settings: Settings, /, file: Path, as_json: bool) -> None:
    """Score a text: bits per byte and perplexity.

    FILE is UTF-8 text, `-` is standard input. The server retains nothing of it.
    """
    with settings.client() as client, ProgressBar("scoring") as bar:
        scores = client.score(opened(file), on_progress=bar)
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
