"""`reformer plan`: what a model takes in memory at a given length, before anything is loaded."""

import dataclasses
import json
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from reformer_core import MemoryPlan, embedded_model_path, load_config
from reformer_core.errors import ReformerError
from reformer_core.placement import choose_device, choose_dtype
from reformer_server.fitting import Fitting, longest_within
from reformer_server.settings import Settings
from reformer_server.units import format_size, parse_size


class Size(click.ParamType[int]):
    """A size such as 16GiB, in bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return value if isinstance(value, int) else parse_size(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command()
@click.argument("model", required=False)
@click.option(
    "--tokens",
    type=click.IntRange(min=1),
    help="Length of a document. Default: the model's positions; with --memory, the longest that fits.",
)
@click.option("--memory", type=Size(), help="Memory there is, e.g. 16GiB: what fits, and what limits it?")
@click.option("--dtype", default="auto", show_default=True, help="float32, bfloat16, float16, or auto.")
@click.option("--num-hashes", type=click.IntRange(min=1), help="LSH hash rounds. Default: the model's.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON instead of a table.")
def plan(
    model: str | None, tokens: int | None, memory: int | None, dtype: str, num_hashes: int | None, as_json: bool
) -> None:
    """Show what MODEL (a folder or hub id; default: the embedded model) takes in memory. Loads no weights.

    The exit code is 1 if --memory isn't enough for one document.
    """
    try:
        config = load_config(model or embedded_model_path())
        device = choose_device()
        number_format = choose_dtype(dtype, device)
    except ReformerError as error:
        raise click.ClickException(str(error)) from error
    if num_hashes is not None:
        config = dataclasses.replace(config, num_hashes=num_hashes)
    if tokens is not None and tokens > config.max_tokens:
        raise click.BadParameter(f"the model has positions for {config.max_tokens:,}", param_hint="--tokens")
    memory_plan = MemoryPlan(config, number_format, config.max_tokens, device)
    max_running, fitting = Settings().max_running, None
    if tokens is not None:
        memory_plan = dataclasses.replace(memory_plan, tokens=tokens)
    elif memory is not None:
        memory_plan = longest_within(memory_plan, memory, max_running) or memory_plan
    if memory is not None:
        fitting = Fitting.of(memory_plan, memory, max_running)
    if as_json:
        click.echo(json.dumps(facts(memory_plan) | (dataclasses.asdict(fitting) if fitting else {})))
    else:
        Console().print(table(memory_plan))
        if fitting is not None:
            click.echo(in_words(fitting))
    if fitting is not None and not fitting.documents:
        raise SystemExit(1)


def facts(memory_plan: MemoryPlan) -> dict[str, int | str]:
    """The plan in bytes."""
    return {
        "tokens": memory_plan.tokens,
        "dtype": str(memory_plan.dtype).removeprefix("torch."),
        "num_hashes": memory_plan.config.num_hashes,
        "weights_bytes": memory_plan.weights_bytes,
        "document_bytes": memory_plan.document_bytes,
        "workspace_bytes": memory_plan.workspace_bytes,
        "session_bytes": memory_plan.session_bytes,
        "step_bytes": memory_plan.step_bytes(sessions=1),
        "total_bytes": memory_plan.total_bytes,
    }


def table(memory_plan: MemoryPlan) -> Table:
    """The plan for people."""
    dtype = str(memory_plan.dtype).removeprefix("torch.")
    title = f"{memory_plan.tokens:,} tokens, {dtype}, {memory_plan.config.num_hashes} hash rounds"
    rows = Table("", "memory", "", title=title, title_justify="left")
    rows.columns[1].justify = "right"
    rows.add_row("weights", format_size(memory_plan.weights_bytes), "once")
    rows.add_row("document", format_size(memory_plan.document_bytes), "each document, shared by its sessions")
    rows.add_row("workspace", format_size(memory_plan.workspace_bytes), "while a document is read")
    rows.add_row("session", format_size(memory_plan.session_bytes), "each generation, besides its own tokens")
    step = format_size(memory_plan.step_bytes(sessions=1))
    rows.add_row("step", step, "while tokens are generated, or a prompt is read", end_section=True)
    rows.add_row("total", format_size(memory_plan.total_bytes), "one document, one session")
    return rows


def in_words(fitting: Fitting) -> str:
    """What fits, for people."""
    memory, longest_text = format_size(fitting.memory_bytes), fitting.longest_text_tokens
    scored = ""
    if longest_text > fitting.longest_tokens:
        scored = f"\nTexts that it can score and not keep: {longest_text:,} tokens, with --max-text {longest_text}."
    if not fitting.documents:
        return f"A server with {memory} can't read such a document: {fitting.limit}.{scored}"
    documents = f"{fitting.documents:,} such document{'' if fitting.documents == 1 else 's'}"
    sessions = f"Generations that can run together on one of them: {fitting.sessions:,}."
    return f"A server with {memory} holds {documents}. {sessions}\nLimit: {fitting.limit}.{scored}"
