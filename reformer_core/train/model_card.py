"""The model card: what the model learned from, how, and how good it is."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from reformer_core.train.data import TextFile
from reformer_core.train.trainer import Trainer

_TEMPLATE = """\
---
library_name: reformer-serve
pipeline_tag: text-generation
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

Trained for {steps:,} steps on {tokens:,} tokens ({epochs:.1f} times the training texts) in {minutes:.1f} minutes.

## Training texts

{texts}

## Settings

| setting | value |
| --- | --- |
{settings}
"""


def write_model_card(
    directory: Path,
    trainer: Trainer,
    texts: Sequence[TextFile],
    validation_texts: Sequence[TextFile],
    bits_per_byte: Mapping[str, float],
    dtype: str,
) -> None:
    """Writes `README.md` beside the weights.

    Args:
        directory: the model's.
        trainer: at the end of the training.
        texts: that it learned from.
        validation_texts: that it didn't.
        bits_per_byte: of the validation texts, by file name.
        dtype: of the saved weights.
    """
    model, settings = trainer.model, trainer.settings
    held_out = [f"| {name} | {value:.4f} |" for name, value in bits_per_byte.items()]
    results = (
        f"Bits per byte on held-out texts, read in full, at most {settings.validation_tokens:,} tokens at a time:\n\n"
        + "\n".join(["| text | bits per byte |", "| --- | --- |", *held_out])
        if held_out
        else "No held-out text was given, so nothing is known about how well the model does on other texts."
    )
    card = _TEMPLATE.format(
        title=directory.resolve().name,
        parameters=model.num_parameters,
        max_tokens=model.config.max_tokens,
        vocab_size=model.config.vocab_size,
        dtype=dtype,
        figures=results,
        steps=trainer.step,
        tokens=trainer.tokens,
        epochs=trainer.epochs,
        minutes=trainer.seconds / 60,
        texts=_table(texts) + ("\n\nHeld out:\n\n" + _table(validation_texts) if validation_texts else ""),
        settings="\n".join(f"| {name} | {value} |" for name, value in settings.to_dict().items() if value is not None),
    )
    (directory / "README.md").write_text(card, encoding="utf-8")


def _table(texts: Sequence[TextFile]) -> str:
    rows = [f"| {text.path.name} | {len(text.content):,} | `{text.sha256}` |" for text in texts]
    return "\n".join(["| file | bytes | SHA-256 |", "| --- | --- | --- |", *rows])
