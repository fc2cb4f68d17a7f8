"""The command `reformer train`."""

import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from reformer_core.errors import CheckpointError
from reformer_core.placement import DTYPES
from reformer_core.train.report import Report
from reformer_core.train.run import VOCAB_SIZE, TrainingRun, begin, resume
from reformer_core.train.settings import TrainSettings
from reformer_core.train.stopping import stop_on_signals

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_DIRECTORY = click.Path(exists=True, file_okay=False, path_type=Path)


class _Lengths(click.ParamType[tuple[int, ...]]):
    """Comma-separated lengths in tokens."""

    name = "lengths"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is no comma-separated list of lengths such as 1024,2048", param, ctx)


@click.command()
@click.argument("texts", nargs=-1, type=_FILE)
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), help="Folder for the model.")
@click.option("--resume", "resumed", type=_DIRECTORY, help="Go on with the unfinished training in this folder.")
@click.option("--validation", multiple=True, type=_FILE, help="Held-out text; may be repeated.")
@click.option("--minutes", type=float, help="Budget in minutes.")
@click.option("--steps", type=int, help="Budget in steps.")
@click.option("--config", type=_FILE, help="config.json to train; without it, a small model for 1,048,576 tokens.")
@click.option("--init", type=_DIRECTORY, help="Model to go on from, with its configuration and tokenizer.")
@click.option("--tokenizer", type=_DIRECTORY, help="Model whose tokenizer is used; without it, one is learned.")
@click.option("--vocab-size", default=VOCAB_SIZE, show_default=True, help="Size of the learned vocabulary.")
@click.option("--tokens-per-step", default=TrainSettings.tokens_per_step, show_default=True, help="Tokens of a batch.")
@click.option(
    "--crop-tokens",
    type=_Lengths(),
    default=TrainSettings.crop_tokens,
    show_default=",".join(map(str, TrainSettings.crop_tokens)),
    help="Lengths of the crops; each step draws one of them.",
)
@click.option("--learning-rate", default=TrainSettings.learning_rate, show_default=True, help="Its peak.")
@click.option("--weight-decay", default=TrainSettings.weight_decay, show_default=True, help="Of the matrices.")
@click.option("--seed", default=TrainSettings.seed, show_default=True, help="Of all randomness.")
@click.option(
    "--checkpoint-minutes",
    default=TrainSettings.checkpoint_minutes,
    show_default=True,
    help="A checkpoint is written, and the validation texts are looked at, this often.",
)
@click.option("--dtype", type=click.Choice(list(DTYPES)), default="float16", show_default=True, help="Of the weights.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
def train(**options: Any) -> None:
    """Trains a Reformer on TEXTS (UTF-8 files), and saves it as a Hugging Face model directory.

    Ctrl-C writes a checkpoint first; --resume goes on from the last one exactly as if nothing had happened.
    """
    console = Console()
    try:
        run = _run(options)
        with Report(run.directory, run.bytes_per_token, console) as report, stop_on_signals() as signal_received:
            _describe(run, report)
            finished = run.execute(report, lambda: signal_received() is not None)
    except (ValueError, OSError, CheckpointError, FloatingPointError) as error:
        raise click.ClickException(str(error)) from error
    if finished:
        console.print(f"saved the model in {run.directory}", highlight=False, markup=False)
        return
    console.print(
        f"stopped after step {run.trainer.step:,}; go on with: reformer train --resume {run.directory}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    sys.exit(128 + (signal_received() or 0))


def _run(options: dict[str, Any]) -> TrainingRun:
    if options["resumed"] is not None:
        if options["texts"] or options["output"]:
            raise click.UsageError("--resume takes the texts and all settings from the checkpoint; give it alone")
        return resume(options["resumed"], device=options["device"])
    if not options["texts"]:
        raise click.UsageError("which texts? Give one or more UTF-8 files")
    if options["output"] is None:
        raise click.UsageError("where to? Give a folder with --output")
    if options["init"] is not None and options["config"] is not None:
        raise click.UsageError("--init brings its own configuration; leave out --config")
    settings = TrainSettings(
        **{
            name: options[name]
            for name in (
                "steps",
                "minutes",
                "tokens_per_step",
                "crop_tokens",
                "learning_rate",
                "weight_decay",
                "seed",
                "checkpoint_minutes",
            )
        }
    )
    return begin(
        options["output"],
        options["texts"],
        options["validation"],
        settings,
        config_file=options["config"],
        initial_model=options["init"],
        tokenizer_directory=options["tokenizer"],
        vocab_size=options["vocab_size"],
        dtype=options["dtype"],
        device=options["device"],
    )


def _describe(run: TrainingRun, report: Report) -> None:
    model = run.trainer.model
    report.message(
        f"training texts: {len(run.texts)}, {sum(len(text.content) for text in run.texts):,} bytes, "
        f"{run.bytes_per_token:.2f} bytes a token; {model.num_parameters:,} parameters; "
        f"{'bfloat16' if run.trainer.autocast else 'float32'} on {model.device}"
    )
