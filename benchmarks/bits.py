"""Bits per byte of held-out texts, by position, and how sure a difference is.

Shapes: n tokens of a text.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from reformer_core.tokenizers import Tokenizer

ALL = (0, 2**62)
BANDS = {
    "all": ALL,
    "first 1K": (0, 2**10),
    "1K–16K": (2**10, 2**14),
    "16K–128K": (2**14, 2**17),
    "beyond": (2**17, 2**62),
}
BLOCK_TOKENS = 256  # that are drawn together: tokens near each other are no independent witnesses
RESAMPLES = 2000


@dataclass(frozen=True)
class Text:
    """A held-out text."""

    name: str
    content: bytes  # UTF-8
    token_ids: torch.Tensor  # int64 [n]
    token_bytes: torch.Tensor  # int64 [n], the bytes that each token spells


@dataclass(frozen=True)
class Difference:
    """Of two models' bits per byte on the same tokens, with its 95 % interval."""

    bits: float
    low: float
    high: float


def read_text(name: str, content: bytes, tokenizer: Tokenizer, max_tokens: int | None = None) -> Text:
    """A text, or its beginning; raises ValueError for a tokenizer that doesn't give the text back."""
    token_ids = tokenizer.encode(content)[:max_tokens]
    spelled = tokenizer.decoder().spell(token_ids.tolist())
    read = b"".join(spelled)
    if not content.startswith(read):
        raise ValueError(f"{name}: the tokenizer changes the text, so that bits per byte would mean nothing")
    return Text(name, read, token_ids, torch.tensor([len(each) for each in spelled]))


def bands_of(texts: Sequence[Text]) -> dict[str, tuple[int, int]]:
    """Those of `BANDS` in which any of the texts has tokens: first position, and the first one after."""
    longest = max(len(text.token_ids) for text in texts)
    return {name: band for name, band in BANDS.items() if band[0] < longest}


def bits_of(log_probabilities: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Bits of each token, float64 [n]; a token that nothing predicted, nan, costs as much as in a uniform draw."""
    return log_probabilities.double().nan_to_num(-math.log(vocab_size)) / -math.log(2)


def bits_per_byte(texts: Sequence[Text], bits: Sequence[torch.Tensor], band: tuple[int, int] = ALL) -> float:
    """Of all texts together, of the positions of a band; nan if there are none.

    Args:
        texts: the texts.
        bits: of each token of each text, [n] each.
        band: first position, and the first one after.
    """
    part = slice(*band)
    total_bytes = sum(int(text.token_bytes[part].sum()) for text in texts)
    return sum(float(each[part].sum()) for each in bits) / total_bytes if total_bytes else math.nan


def difference(
    texts: Sequence[Text],
    bits: Sequence[torch.Tensor],
    base_bits: Sequence[torch.Tensor],
    band: tuple[int, int] = ALL,
) -> Difference:
    """bits - base_bits a byte, with a paired bootstrap: blocks of text are drawn, each with both models' bits."""
    part = slice(*band)
    deltas = [(each - base)[part] for each, base in zip(bits, base_bits, strict=True)]
    blocks = torch.cat([_block_sums(delta) for delta in deltas])
    sizes = torch.cat([_block_sums(text.token_bytes[part].double()) for text in texts])
    if not len(blocks):
        return Difference(math.nan, math.nan, math.nan)
    drawn = torch.randint(len(blocks), (RESAMPLES, len(blocks)), generator=torch.Generator().manual_seed(0))
    resampled = blocks[drawn].sum(dim=1) / sizes[drawn].sum(dim=1)
    low, high = torch.quantile(resampled, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Difference(float(blocks.sum() / sizes.sum()), low, high)


def _block_sums(values: torch.Tensor) -> torch.Tensor:
    blocks = values.split(BLOCK_TOKENS) if len(values) else ()
    return torch.stack([block.sum() for block in blocks]) if blocks else values
