"""How good a model is on held-out data: bits a byte of a text, bits a dimension of an image.

Both are comparable between models with different vocabularies. A sequence's first token, which nothing predicts, counts
like the average one.
"""

import math
from dataclasses import dataclass

import torch

from reformer_core.model import ReformerModel
from reformer_core.train.precision import computing_in
from reformer_core.train.texts import TokenizedText

_IMAGES_AT_A_TIME = 8


@dataclass(frozen=True)
class TextValidation:
    """A held-out text, cut into sequences that are read from the first position on."""

    text: TokenizedText
    sequence_tokens: int

    @property
    def name(self) -> str:
        return self.text.name

    def bits(
        self, model: ReformerModel, precision: torch.dtype = torch.float32, max_tokens: int | None = None
    ) -> float:
        """Bits a byte of UTF-8, of the text or of its first sequences as if the rest were like them."""
        nats, tokens = 0.0, 0
        for token_ids in self.text.token_ids.split(self.sequence_tokens):
            if len(token_ids) > 1:
                nats += _nats_per_token(model, token_ids.unsqueeze(0), precision) * len(token_ids)
                tokens += len(token_ids)
            if max_tokens is not None and tokens >= max_tokens:
                break
        return nats / tokens / math.log(2) * len(self.text.token_ids) / self.text.content_bytes


@dataclass(frozen=True)
class ImageValidation:
    """Held-out images, uint8 [N, n]: their values row by row, pixel by pixel, red, green, blue."""

    name: str
    pixels: torch.Tensor

    def bits(
        self, model: ReformerModel, precision: torch.dtype = torch.float32, max_tokens: int | None = None
    ) -> float:
        """Bits a dimension, that is, a value of one channel of a pixel."""
        count = len(self.pixels) if max_tokens is None else max(1, max_tokens // self.pixels.shape[1])
        images = self.pixels[:count]
        nats = sum(
            _nats_per_token(model, batch.long(), precision) * len(batch) for batch in images.split(_IMAGES_AT_A_TIME)
        )
        return nats / len(images) / math.log(2)


@torch.no_grad()
def _nats_per_token(model: ReformerModel, rows: torch.Tensor, precision: torch.dtype) -> float:
    """Of rows [B, n] that begin at the first position."""
    rows = rows.to(model.device)
    with computing_in(precision, model.device):
        loss = model.loss(rows[:, :-1], rows[:, 1:], torch.zeros(len(rows), dtype=torch.long, device=rows.device))
    return float(loss)
