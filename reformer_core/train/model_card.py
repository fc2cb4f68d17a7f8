"""The model card: what the model learned from, how, and how good it is."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from reformer_core.model import ReformerModel
from reformer_core.train.data import Data, DataFile
from reformer_core.train.trainer import Trainer

_TEMPLATE = """\
---
library_name: reformer-serve
pipeline_tag: {pipeline}
tags:
- reformer
- long-context
---

# {title}

A Reformer language model ([arXiv 2001.04451](https://arxiv.org/abs/2001.04451)) of {parameters:,} parameters with
positions for {max_tokens:,} tokens and a vocabulary of {vocab_size:,}, trained with `reformer train`. The weights are
{dtype}, in Hugging Face's format: reformer-serve serves them, and transformers can load them.

## Results

{figures}

Trained for {steps:,} steps on {tokens:,} tokens ({epochs:.1f} times the data) in {minutes:.1f} minutes.

## Data

{licence}{files}

## Limits

{limits}

## Settings

| setting | value |
| --- | --- |
{settings}
"""

_LEFT_OUT = (
    "output",
    "card.",
    "model.config",
    "model.init",
    "data.texts",
    "data.validation",
    "data.tokenizer",
    "data.images",
)
_UNITS = {
    "byte": "Bits per byte on held-out texts, read in full, at most {tokens:,} tokens at a time",
    "dimension": "Bits per dimension (a channel of a pixel) on held-out images",
}
_LIMITS = {
    "byte": "It continues texts of the kind that it was trained on, learned no facts, and follows no instructions.",
    "dimension": "It continues images of the size and kind that it was trained on, pixel by pixel, and no others.",
}


def write_model_card(
    directory: Path, model: ReformerModel, trainer: Trainer, data: Data, bits: Mapping[str, float]
) -> None:
    """Writes `README.md` beside the weights.

    Args:
        directory: the model's.
        model: as it is saved.
        trainer: at the end of the training.
        data: what it learned from and was measured by.
        bits: of each validation, by its name.
    """
    settings = trainer.settings
    held_out = [f"| {name} | {value:.4f} |" for name, value in bits.items()]
    results = (
        f"{_UNITS[data.unit].format(tokens=settings.checkpoint.validation_tokens)}:\n\n"
        + "\n".join([f"| data | bits per {data.unit} |", "| --- | --- |", *held_out])
        if held_out
        else "There was no held-out data, so nothing is known about how well the model does on other data."
    )
    card = _TEMPLATE.format(
        pipeline="text-generation" if data.unit == "byte" else "unconditional-image-generation",
        title=settings.card.title or directory.resolve().name,
        parameters=model.num_parameters,
        max_tokens=model.config.max_tokens,
        vocab_size=model.config.vocab_size,
        dtype=settings.dtype,
        figures=results,
        steps=trainer.step,
        tokens=trainer.tokens,
        epochs=trainer.epochs,
        minutes=trainer.seconds / 60,
        licence=f"Licence: {settings.card.data_licence}\n\n" if settings.card.data_licence else "",
        files=_table(data.files) + ("\n\nHeld out:\n\n" + _table(data.validation_files) if held_out else ""),
        limits=_LIMITS[data.unit],
        settings="\n".join(f"| {name} | {value} |" for name, value in _flat(settings.to_dict())),
    )
    (directory / "README.md").write_text(card, encoding="utf-8")


def _table(files: Sequence[DataFile]) -> str:
    rows = [f"| {file.path.name} | {file.size_bytes:,} | `{file.sha256}` |" for file in files]
    return "\n".join(["| file | bytes | SHA-256 |", "| --- | --- | --- |", *rows])


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Values by their dotted names; without the card's own, and without paths, which say something about a machine."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _flat(each, f"{name}.{key}" if name else str(key))
    elif not name.startswith(_LEFT_OUT):
        yield name, value
