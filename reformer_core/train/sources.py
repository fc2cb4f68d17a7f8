"""Texts or images, as the settings name them: read, tokenized, and ready to be learned from."""

from collections.abc import Sequence
from pathlib import Path

import torch

from reformer_core.config import ReformerConfig
from reformer_core.model import ReformerModel
from reformer_core.tokenizers import Tokenizer, load_tokenizer
from reformer_core.tokenizers.pixels import PixelTokenizer
from reformer_core.train.configurations import image_config, text_config
from reformer_core.train.data import Data, DataFile
from reformer_core.train.images import WholeImages, read_images
from reformer_core.train.initial_pixels import initialise_pixels
from reformer_core.train.initial_text import initialise_text
from reformer_core.train.settings import DataSettings
from reformer_core.train.texts import Crops, read_text, tokenize
from reformer_core.train.validation import ImageValidation, TextValidation
from reformer_core.train.vocabulary import learn_vocabulary


def read_data(settings: DataSettings) -> Data:
    """Reads all files; raises ValueError if one can't be used."""
    return TextData(settings) if settings.texts else ImageData(settings)


class TextData:
    """Texts: learned from in crops."""

    unit = "byte"
    notes: tuple[str, ...] = ()

    def __init__(self, settings: DataSettings) -> None:
        self._vocab_size = settings.vocab_size
        self._tokenizer_directory = settings.tokenizer
        self._texts = [read_text(path) for path in settings.texts]
        self._validation_texts = [read_text(path) for path in settings.validation]

    @property
    def files(self) -> list[DataFile]:
        return [text.file for text in self._texts]

    @property
    def validation_files(self) -> list[DataFile]:
        return [text.file for text in self._validation_texts]

    def tokenizer(self) -> Tokenizer:
        """Raises ValueError if no vocabulary of that size can be learned from the texts."""
        if self._tokenizer_directory is not None:
            return load_tokenizer(self._tokenizer_directory)
        return learn_vocabulary([text.content.decode() for text in self._texts], self._vocab_size)

    def configuration(self, tokenizer: Tokenizer) -> ReformerConfig:
        return text_config(tokenizer.vocab_size)

    def initialise(self, model: ReformerModel) -> None:
        initialise_text(model)

    def examples(self, tokenizer: Tokenizer, config: ReformerConfig, longest: int) -> Crops:
        tokenized = [tokenize(text, tokenizer, config.eos_token_id) for text in self._texts]
        return Crops(tokenized, longest, config.max_tokens)

    def validations(
        self, tokenizer: Tokenizer, config: ReformerConfig, sequence_tokens: int
    ) -> Sequence[TextValidation]:
        longest = min(sequence_tokens, config.max_tokens)
        return [TextValidation(tokenize(text, tokenizer), longest) for text in self._validation_texts]


class ImageData:
    """Images of one size: learned from as they are."""

    unit = "dimension"

    def __init__(self, settings: DataSettings) -> None:
        self._flip = "flip" in settings.augment
        assert settings.images is not None
        self._images = read_images(settings.images, "train")
        self._held_out = None
        if settings.validation_images is not None:
            self._held_out = read_images(settings.validation_images, "validation")
            (_, rows, columns, _), (_, *own, _) = self._images.pixels.shape, self._held_out.pixels.shape
            if own != [rows, columns]:
                raise ValueError(
                    f"{settings.validation_images} has images of {own[1]} x {own[0]} pixels, but those to learn from "
                    f"are {columns} x {rows}; resize them"
                )

    @property
    def files(self) -> list[DataFile]:
        return [self._images.file]

    @property
    def validation_files(self) -> list[DataFile]:
        return [] if self._held_out is None else [self._held_out.file]

    @property
    def notes(self) -> tuple[str, ...]:
        return self._images.notes + (() if self._held_out is None else self._held_out.notes)

    def tokenizer(self) -> Tokenizer:
        _, rows, columns, _ = self._images.pixels.shape
        return PixelTokenizer(rows, columns)

    def configuration(self, tokenizer: Tokenizer) -> ReformerConfig:
        _, rows, columns, _ = self._images.pixels.shape
        return image_config(rows, columns)

    def initialise(self, model: ReformerModel) -> None:
        initialise_pixels(model)

    def examples(self, tokenizer: Tokenizer, config: ReformerConfig, longest: int) -> WholeImages:
        examples = WholeImages(self._images.pixels, flip=self._flip)
        _, rows, columns, _ = self._images.pixels.shape
        if not isinstance(tokenizer, PixelTokenizer) or (tokenizer.height, tokenizer.width) != (rows, columns):
            reads = (
                f"images of {tokenizer.width} x {tokenizer.height} pixels"
                if isinstance(tokenizer, PixelTokenizer)
                else "texts"
            )
            raise ValueError(f"the model to go on from reads {reads}, but the data are images of {columns} x {rows}")
        if examples.length > config.max_tokens:
            raise ValueError(
                f"an image is {examples.length:,} tokens, but the model has {config.max_tokens:,} positions"
            )
        return examples

    def validations(
        self, tokenizer: Tokenizer, config: ReformerConfig, sequence_tokens: int
    ) -> Sequence[ImageValidation]:
        if self._held_out is None:
            return []
        pixels = torch.from_numpy(self._held_out.pixels).flatten(1)
        return [ImageValidation(_name(self._held_out.file.path), pixels)]


def _name(path: Path) -> str:
    return f"{path.name}/" if path.is_dir() else path.name
