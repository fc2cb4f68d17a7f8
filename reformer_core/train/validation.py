"""Bits per byte: how many bits the model needs for a byte of UTF-8 text. Comparable between all vocabularies."""

import math
from dataclasses import dataclass

import torch

from reformer_core.model import ReformerModel
from reformer_core.train.data import TokenizedText


@dataclass(frozen=True)
class Validation:
    """A held-out text, cut into sequences that are read from the first position on."""

    text: TokenizedText
    sequence_tokens: int

    def bits_per_byte(self, model: ReformerModel, *, bfloat16: bool = False, max_sequences: int | None = None) -> float:
        """Of the text, or of its first sequences as if the rest were like them.

        A sequence's first token, which nothing predicts, counts like the average one.
        """
        nats, tokens = 0.0, 0
        for token_ids in self.text.token_ids.split(self.sequence_tokens)[:max_sequences]:
            if len(token_ids) > 1:
                nats += _nats_per_token(model, token_ids, bfloat16) * len(token_ids)
                tokens += len(token_ids)
        return nats / tokens / math.log(2) * len(self.text.token_ids) / self.text.content_bytes


@torch.no_grad()
def _nats_per_token(model: ReformerModel, token_ids: torch.Tensor, bfloat16: bool) -> float:
    row = token_ids.unsqueeze(0).to(model.device)
    with torch.autocast(row.device.type, dtype=torch.bfloat16, enabled=bfloat16):
        loss = model.loss(row[:, :-1], row[:, 1:], torch.zeros(1, dtype=torch.long, device=row.device))
    return float(loss)
