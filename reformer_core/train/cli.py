"""The command `reformer train`."""

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from reformer_core.errors import ReformerError
from reformer_core.heap import map_large_tensors
from reformer_core.train.distances import plain_copy
from reformer_core.train.processes import Processes, joined_processes
from reformer_core.train.report import Report
from reformer_core.train.run import TrainingRun, begin, resume
from reformer_core.train.settings import RunSettings
from reformer_core.train.settings_file import build_settings, read_table, set_values
from reformer_core.train.stopping import stop_on_signals

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_DIRECTORY = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command()
@click.argument("files", metavar="RUN.toml | TEXTS...", nargs=-1, type=_FILE)
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), help="Folder for the model.")
@click.option("--resume", "resumed", type=_DIRECTORY, help="Go on with the unfinished training in this folder.")
@click.option("--validation", multiple=True, type=_FILE, help="With TEXTS: a held-out text; may be repeated.")
@click.option("--minutes", type=float, help="With TEXTS: how long to train.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Changes a setting; may be repeated.")
def train(**options: Any) -> None:
    """Trains a Reformer as a TOML file says, or on TEXTS (UTF-8 files), and saves a Hugging Face model directory.

    Ctrl-C writes a checkpoint first; --resume goes on from the last one exactly as if nothing had happened.
    """
    map_large_tensors()
    try:
        with joined_processes() as processes:
            _train(options, processes)
    except (ValueError, OSError, ReformerError, FloatingPointError) as error:
        raise click.ClickException(str(error)) from error


def _train(options: dict[str, Any], processes: Processes) -> None:
    console = Console(quiet=not processes.first)
    run = _run(options, processes)
    _describe(run, console)
    with _report(run, console) as report, stop_on_signals(second_ends=processes.count == 1) as signal_received:
        finished = run.execute(report, lambda: signal_received() is not None)
    if finished:
        console.print(f"saved the model in {run.directory}", highlight=False, markup=False, soft_wrap=True)
        return
    console.print(
        f"stopped after step {run.trainer.step:,}; go on with: reformer train --resume {run.directory}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    sys.exit(128 + (signal_received() or 0))


def _run(options: dict[str, Any], processes: Processes) -> TrainingRun:
    if options["resumed"] is not None:
        if any(value for name, value in options.items() if name != "resumed"):
            raise click.UsageError("--resume takes the data and all settings from the checkpoint; give it alone")
        return resume(options["resumed"], processes)
    settings = _settings(options)
    directory = options["output"] or settings.output
    if directory is None:
        raise click.UsageError("where to? Give a folder with --output, or as output in the TOML file")
    return begin(settings, directory, processes)


def _settings(options: dict[str, Any]) -> RunSettings:
    files: tuple[Path, ...] = options["files"]
    if not files:
        raise click.UsageError("what to train on? Give a TOML file, or one or more UTF-8 texts")
    if files[0].suffix == ".toml":
        if len(files) > 1 or options["validation"] or options["minutes"] is not None:
            raise click.UsageError(f"{files[0]} says what to train on, and how long; change it there, or with --set")
        table, source, folder = read_table(files[0]), str(files[0]), files[0].absolute().parent
    else:
        texts, held_out = ([str(path) for path in paths] for paths in (files, options["validation"]))
        table, source, folder = {"data": {"texts": texts, "validation": held_out}}, "settings", Path.cwd()
        if options["minutes"] is not None:
            table["schedule"] = [{"minutes": options["minutes"]}]
    set_values(table, options["assignments"])
    if files[0].suffix != ".toml" and "schedule" not in table:
        raise click.UsageError("how long? Give --minutes")
    return build_settings(table, source, folder)


def _report(run: TrainingRun, console: Console) -> Report | nullcontext[None]:
    """None in all processes but the first."""
    if not run.processes.first:
        return nullcontext()
    examples = run.trainer.examples
    titles = [_title(sorted({*run.trainer.lengths(phase)})) for phase in run.settings.schedule]
    return Report(run.directory, run.data.unit, examples.bits_per_nat, titles, console)


def _title(lengths: list[int]) -> str:
    shortest = f"{lengths[0]:,} to " if len(lengths) > 1 else ""
    return f"{shortest}{lengths[-1]:,} tokens"


def _describe(run: TrainingRun, console: Console) -> None:
    model, trainer = plain_copy(run.trainer.model), run.trainer
    lines = [
        *run.data.notes,
        f"data: {sum(file.size_bytes for file in run.data.files):,} bytes, {trainer.examples.total_tokens:,} tokens; "
        f"{model.num_parameters:,} parameters; {str(trainer.precision).removeprefix('torch.')} on {model.device}"
        + (f"; {run.processes.count} processes" if run.processes.count > 1 else ""),
    ]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
