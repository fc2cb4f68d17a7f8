"""All that a training run is told: one frozen object, from a TOML file, from flags, or from Python.

Each section is a table of the TOML file. docs/training.md explains every key; a test holds it to these classes.
"""

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, create_model, model_validator

from reformer_core.config import ReformerConfig


def _in_folder(path: Path, info: ValidationInfo) -> Path:
    """Paths in a TOML file are relative to the file's folder, which the context names."""
    return (info.context or Path()) / path


FilePath = Annotated[Path, AfterValidator(_in_folder)]
DEFAULT_LENGTHS = (1024, 2048, 2048, 4096)

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Section(BaseModel):
    """A table: values are not converted from other types, and unknown keys are errors."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, use_attribute_docstrings=True)


_KEYS: Any = {field.name: (field.type, field.default) for field in fields(ReformerConfig)}
_Hyperparameters: Any = create_model("_Hyperparameters", __base__=Section, **_KEYS)


class ModelSettings(_Hyperparameters):  # type: ignore[misc]  # its fields are ReformerConfig's
    """What is trained: a configuration or a trained model, and single keys of `config.json` that differ from it."""

    config: FilePath | None = None
    """A `config.json` to train from random weights. Without it and `init`: a small model for the kind of data."""
    init: FilePath | None = None
    """A model directory to go on from, with its configuration and tokenizer."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.config is not None and self.init is not None:
            raise ValueError("init brings its own configuration; leave out config")
        return self

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """The keys of `config.json` that were given."""
        given: dict[str, Any] = self.model_dump(exclude_unset=True, exclude={"config", "init"})
        return given


class DataSettings(Section):
    """What the model learns from: texts or images."""

    texts: tuple[FilePath, ...] = ()
    """UTF-8 files to learn from."""
    validation: tuple[FilePath, ...] = ()
    """Held-out texts."""
    vocab_size: Count = 1024
    """Pieces of the SentencePiece vocabulary that is learned from the texts."""
    tokenizer: FilePath | None = None
    """A model directory whose tokenizer is used; none is learned then."""
    images: FilePath | None = None
    """Images to learn from, all of one size: an `.npz` file (its array `train`, or the only one), or a folder of PNG
    and JPEG files."""
    validation_images: FilePath | None = None
    """Held-out images: an `.npz` file (its array `validation`, or the only one), or a folder."""
    augment: tuple[Literal["flip"], ...] = ()
    """`["flip"]`: each image is mirrored half of the times."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if bool(self.texts) == (self.images is not None):
            raise ValueError("either texts or images must be given, not both")
        wrong = ("images", "validation_images", "augment") if self.texts else ("texts", "validation", "tokenizer")
        for name in wrong:
            if getattr(self, name):
                raise ValueError(f"{name} is of no use for {'texts' if self.texts else 'images'}; leave it out")
        return self


class Phase(Section):
    """A stretch of the training. Exactly one of `tokens`, `steps` and `minutes` says how long it is."""

    tokens: Count | None = None
    """Tokens to train; the last step is made smaller, so that it ends with the example that reaches them."""
    steps: Count | None = None
    """Steps to train."""
    minutes: Positive | None = None
    """Minutes of training, pauses between interruption and resumption left out."""
    lengths: tuple[Count, ...] | None = None
    """Lengths of the texts' crops in tokens; each step draws one, so a length that is given twice is drawn twice as
    often. Images are never cut."""
    batch_tokens: Count = 2048
    """Tokens that a step learns from, about: whole examples of one length, one at least."""
    accumulate: Count = 1
    """Parts that a batch is cut into, one after the other: less memory, the same result."""
    num_hashes: Count | None = None
    """Hash rounds in this phase; by default, like the next two, the model's."""
    lsh_attn_chunk_length: Count | None = None
    """Chunk length of LSH attention in this phase."""
    num_buckets: Count | tuple[Count, ...] | None = None
    """Buckets, or their factors, in this phase."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if sum(budget is not None for budget in (self.tokens, self.steps, self.minutes)) != 1:
            raise ValueError("exactly one of tokens, steps and minutes must be given")
        if self.lengths == ():
            raise ValueError("lengths is empty; give one length or more")
        return self

    @property
    def unit(self) -> str:
        """What its length is counted in: the name of one of the first three fields."""
        return next(name for name in ("tokens", "steps", "minutes") if getattr(self, name) is not None)

    @property
    def budget(self) -> float:
        """Its length in that unit."""
        return float(getattr(self, self.unit))

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Keys of the model's configuration that are different in this phase."""
        return self.model_dump(include={"num_hashes", "lsh_attn_chunk_length", "num_buckets"}, exclude_none=True)

    @property
    def crop_lengths(self) -> tuple[int, ...]:
        """`lengths`, or their default."""
        return self.lengths or DEFAULT_LENGTHS

    def examples(self, length: int) -> int:
        """Of a batch of examples of `length` tokens."""
        return max(1, self.batch_tokens // length)


class OptimizerSettings(Section):
    """How gradients become updates."""

    kind: Literal["muon", "adamw"] = "muon"
    """`muon`: Muon for the matrices of the layers, AdamW for all else; `adamw`: AdamW alone."""
    learning_rate: Positive = 4e-3
    """Its peak."""
    warmup: Share = 0.02
    """Share of the training in which the learning rate rises from zero."""
    decay: Share = 0.4
    """Share of the training, its last one, in which the learning rate falls to zero."""
    decay_shape: Literal["linear", "cosine"] = "linear"
    """How it falls."""
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1
    """Decoupled; of the linear layers' matrices, not of norms, biases and embeddings."""
    clip_norm: Positive = 1.0
    """Gradients are scaled down to this norm."""
    freeze: tuple[str, ...] = ()
    """Parameters that stay as they are, by the beginning of their names, such as `embeddings.positions`."""

    @model_validator(mode="after")
    def _shares(self) -> Self:
        if self.warmup + self.decay > 1:
            raise ValueError(f"warmup and decay add up to {self.warmup + self.decay:g}, but must to 1 at most")
        return self


class CheckpointSettings(Section):
    """What is written and measured on the way."""

    minutes: Positive = 5.0
    """A checkpoint is written, and validation data is read, this often."""
    validation_tokens: Annotated[int, Field(ge=2)] = 65536
    """Tokens that are read then; at the end, all. Texts are read in sequences of so many tokens."""


class CardSettings(Section):
    """For the model card, `README.md`."""

    title: str | None = None
    """Heading; the folder's name unless it is given."""
    data_licence: str | None = None
    """Licence and origin of the training data."""


class RunSettings(Section):
    """A training run."""

    output: FilePath | None = None
    """Folder for the model; `--output` wins."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Of weights, order of the data and dropout."""
    device: str = "auto"
    """`cpu`, `cuda`, or `auto`."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What products are computed in, while the weights that are trained stay float32; float16 with loss scaling.
    `auto`: bfloat16 where it is native, else float32 on CPUs and float16 on CUDA."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float16"
    """Of the weights that are saved at the end."""
    model: ModelSettings = ModelSettings()
    data: DataSettings
    schedule: tuple[Phase, ...]
    """The phases, in order. All are measured in the same unit."""
    optimizer: OptimizerSettings = OptimizerSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    card: CardSettings = CardSettings()

    @model_validator(mode="after")
    def _phases(self) -> Self:
        if not self.schedule:
            raise ValueError("schedule is empty; give one phase or more")
        units = sorted({phase.unit for phase in self.schedule})
        if len(units) > 1:
            raise ValueError(f"the phases of schedule are measured in {' and '.join(units)}; choose one for all")
        for index, phase in enumerate(self.schedule):
            if self.data.images is not None and phase.lengths is not None:
                raise ValueError(f"schedule.{index}.lengths is of no use for images, which are never cut; leave it out")
        return self

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as TOML or JSON has them; of the model, what was given."""
        model = self.model.model_dump(mode="json", exclude_unset=True)
        return self.model_dump(mode="json", exclude_none=True) | {"model": model}
