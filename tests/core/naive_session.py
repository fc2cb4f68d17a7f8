"""The incremental model by its definition: at each token sort everything again, lay out all chunks, look at one."""

import math

import numpy as np
import torch

from reformer_core.config import ReformerConfig
from reformer_core.local_attention import LocalAttention
from reformer_core.lsh_attention import LSHAttention, normalised_keys
from reformer_core.model import ReformerModel


class NaiveSession:
    """A document and appended tokens, all of whose keys, values and buckets are kept in order of position."""

    def __init__(self, model: ReformerModel, token_ids: torch.Tensor) -> None:
        """Reads a document, int64 [n], by a full pass."""
        self._model, self._tokens = model, len(token_ids)
        self._keys: list[torch.Tensor] = []  # [H, n, D] a layer
        self._values: list[torch.Tensor] = []
        self._buckets: list[torch.Tensor] = []  # int64 [H, R, n] an LSH layer, else empty
        stream1 = stream2 = model.embed(token_ids, torch.arange(len(token_ids)))
        for layer in model.reversible_layers:
            _, key, value, buckets = _project(layer.attention, stream2)
            self._keys.append(key)
            self._values.append(value)
            self._buckets.append(buckets)
            stream1 = stream1 + layer.attention(stream2[None])[0]
            stream2 = stream2 + layer.feed_forward(stream1)

    def append(self, token_id: torch.Tensor) -> torch.Tensor:
        """One more token, int64 [1] -> logits of the next, [vocab]."""
        model, position = self._model, self._tokens
        self._tokens += 1
        stream1 = stream2 = model.embed(token_id, torch.tensor([position]))
        for index, layer in enumerate(model.reversible_layers):
            attention = layer.attention
            query, key, value, buckets = _project(attention, stream2)
            self._keys[index] = torch.cat([self._keys[index], key], dim=1)
            self._values[index] = torch.cat([self._values[index], value], dim=1)
            self._buckets[index] = torch.cat([self._buckets[index], buckets], dim=-1)
            heads = [self._attend(index, head, attention, query[head, 0]) for head in range(len(query))]
            stream1 = stream1 + attention.output(torch.cat(heads))
            stream2 = stream2 + layer.feed_forward(stream1)
        return model.logits(torch.cat([stream1, stream2], dim=-1))[0]

    def _attend(
        self, index: int, head: int, attention: LSHAttention | LocalAttention, query: torch.Tensor
    ) -> torch.Tensor:
        """The newest token's attention in one head, [D]."""
        newest = self._tokens - 1
        if isinstance(attention, LSHAttention):
            seen = lsh_window(self._buckets[index][head].numpy(), attention.config)
        else:
            length, before = attention.config.local_attn_chunk_length, attention.config.local_num_chunks_before
            seen = list(range(max(newest // length - before, 0) * length, newest + 1))
        logits = (self._keys[index][head, seen].double() @ query.double()).numpy()
        if isinstance(attention, LSHAttention):
            logits = np.where(np.array(seen) == newest, -1e5, logits)
        weights = np.exp(logits - logits.max())
        out = (weights / weights.sum()) @ self._values[index][head, seen].double().numpy()
        return torch.from_numpy(out).to(query.dtype)


def lsh_window(buckets: np.ndarray, config: ReformerConfig) -> list[int]:
    """Positions that the newest token of one head sees, with repetitions; buckets [R, n]."""
    rounds, tokens = buckets.shape
    length, multiple = config.lsh_attn_chunk_length, math.lcm(*config.chunk_lengths)
    padded = tokens if tokens <= min(config.chunk_lengths) else math.ceil(tokens / multiple) * multiple
    if padded <= length:
        return list(range(tokens))
    order = np.argsort(buckets, axis=-1, kind="stable")
    slots = np.concatenate([order, np.tile(np.arange(tokens, padded), (rounds, 1))], axis=-1)
    chunks = slots.reshape(-1, length)
    seen: list[int] = []
    for round_ in range(rounds):
        slot = int(np.flatnonzero(slots[round_] == tokens - 1)[0])
        own = (round_ * padded + slot) // length
        for chunk in range(own - config.lsh_num_chunks_before, own + 1):
            seen += chunks[chunk % len(chunks)].tolist()
    return [position for position in seen if position < tokens]


def _project(
    attention: LSHAttention | LocalAttention, hidden: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values [H, m, D], buckets int64 [H, R, m]."""
    if isinstance(attention, LSHAttention):
        query_key, value = attention.project(hidden)
        return query_key, normalised_keys(query_key), value, attention.hash(query_key)
    query, key, value = attention.project(hidden)
    return query, key, value, torch.empty(0, dtype=torch.long)
