"""Appending tokens to cached documents: one token for each of many sessions (decode), or many tokens to one (extend).

Both run the same layers over *rows*: in `decode_step` a row is a session, in `extend_slice` a token of one session that
sees the tokens before it. A row costs rounds × (window + tail), whatever the document's length.

Shapes: B rows, H heads, R rounds, D head size, W positions a local layer sees, w slots an LSH layer sees, d width.
"""

from collections.abc import Callable

import torch

from reformer_core.attention_kernels import weighted_sums
from reformer_core.bucket_index import Windows
from reformer_core.linear import for_products
from reformer_core.local_attention import LocalAttention
from reformer_core.lsh_attention import LSHAttention, normalised_keys
from reformer_core.model import ReformerModel
from reformer_core.session import Session
from reformer_core.session_table import SessionRows, SessionTable
from reformer_core.window_attention import FUTURE, SELF

SHORT_TAIL = 64  # tokens: looking at so many places costs next to nothing


@torch.inference_mode()
def decode_step(model: ReformerModel, table: SessionTable, token_ids: torch.Tensor, tail_capacity: int) -> None:
    """Appends a token to each session in the first B rows and leaves the next one's logits in `table.next_logits`.

    Fixed shapes, no look at any value: one CUDA graph a pair of B and tail_capacity.

    Args:
        token_ids: int64 [B]; the pages for them are reserved.
        tail_capacity: more than the tokens in the longest tail of these rows.
    """
    batch, rows = len(token_ids), slice(0, len(token_ids))
    positions = table.length[rows].clone()
    sessions = SessionRows(table, torch.arange(batch, device=positions.device))
    windows, place = Windows(model.config, positions + 1), positions - table.base_tokens[rows]
    new_rows = sessions.rows_of_all_layers(positions)
    # Position p of a local layer lies at p % W; what is held in each place once the new token is.
    window = table.local_keys.shape[-2]
    held = positions.unsqueeze(1) - (positions.unsqueeze(1) - torch.arange(window, device=positions.device)) % window
    unseen = _unseen(model, held, positions).view(batch, 1, 1, window)
    heads = torch.arange(batch * model.config.num_attention_heads, device=positions.device).view(batch, -1)
    ring_rows = (heads * window + (positions % window).unsqueeze(1)).flatten()

    def lsh(layer: int, attention: LSHAttention, hidden: torch.Tensor) -> torch.Tensor:
        query_key, value, buckets = _project(attention, hidden)
        _store(sessions, new_rows[layer], query_key, value)
        base, tail = sessions.base(layer), table.tail(layer, rows, tail_capacity)
        seen = windows.positions(table.pool, base, tail, tail.append(base, buckets, place))
        return attention.output(_attend_seen(sessions, layer, seen, query_key, positions))  # type: ignore[no-any-return]

    def local(layer: int, attention: LocalAttention, hidden: torch.Tensor) -> torch.Tensor:
        query, key, value = attention.project(hidden.unsqueeze(-2))  # [B, H, 1, D]
        keys, values = table.local_keys[layer, rows], table.local_values[layer, rows]
        for ring, new in ((keys, key), (values, value)):
            ring.view(-1, ring.shape[-1]).index_copy_(0, ring_rows, new.reshape(-1, ring.shape[-1]))
        return attention.output(_attend(query, keys, values, unseen))  # type: ignore[no-any-return]

    table.next_logits[rows] = _run_layers(model, token_ids, positions, lsh, local)
    table.length[rows] += 1


@torch.inference_mode()
def undo_decode_step(table: SessionTable, batch: int, tail_capacity: int) -> None:
    """After a `decode_step` of the first B rows that failed on its way: the tails are as before, it can be taken again.

    What else the step writes is written again then, and seen by nobody before.
    """
    rows = slice(0, batch)
    place = table.length[rows] - table.base_tokens[rows]
    for layer in range(len(table.tail_buckets)):
        table.tail(layer, rows, tail_capacity).take_back(place)


@torch.inference_mode()
def extend_slice(model: ReformerModel, session: Session, token_ids: torch.Tensor) -> torch.Tensor:
    """Appends m tokens to one session, as m decode steps would.

    Args:
        token_ids: int64 [m], at most `extend_tokens`, their pages reserved; the tail has room for them.

    Returns:
        float32 [m, vocab]: logits of the token after each.
    """
    table, m, row = session.table, len(token_ids), session.row
    device = token_ids.device
    sessions = SessionRows(table, torch.tensor([row], device=device).expand(m))
    positions = session.length + torch.arange(m, device=device)
    windows, place = Windows(model.config, positions + 1), positions - session.base_tokens
    new_rows = sessions.rows_of_all_layers(positions)
    capacity = tail_capacity_for(session.tail_tokens + m, table.tail_capacity)
    # In a local layer: what is held before the first of the tokens, and the tokens themselves.
    window, newest = table.local_keys.shape[-2], session.length - 1
    held = newest - (newest - torch.arange(window, device=device)) % window
    unseen = _unseen(model, torch.cat([held, positions]), positions)  # [m, W + m]

    def lsh(layer: int, attention: LSHAttention, hidden: torch.Tensor) -> torch.Tensor:
        query_key, value, buckets = _project(attention, hidden)
        _store(sessions, new_rows[layer], query_key, value)
        base, tail = sessions.base(layer), table.tail(layer, slice(row, row + 1), capacity)
        seen = windows.positions(table.pool, base, *tail.append_one_by_one(base, buckets, place))
        return attention.output(_attend_seen(sessions, layer, seen, query_key, positions))  # type: ignore[no-any-return]

    def local(layer: int, attention: LocalAttention, hidden: torch.Tensor) -> torch.Tensor:
        query, key, value = attention.project(hidden)  # [H, m, D]
        rings = table.local_keys[layer, row], table.local_values[layer, row]  # [H, W, D]
        keys, values = (torch.cat(both, dim=-2) for both in zip(rings, (key, value), strict=True))
        for ring, new in zip(rings, (key, value), strict=True):
            ring[:, positions[-window:] % window] = new[:, -window:]
        return attention.output(_attend(query[None], keys[None], values[None], unseen))  # type: ignore[no-any-return]

    logits = _run_layers(model, token_ids, positions, lsh, local)
    table.next_logits[row] = logits[-1]
    table.length[row] += m
    session.appended(m)
    return logits


def tail_capacity_for(tokens: int, most: int) -> int:
    """Places to look at for a tail of so many tokens: a power of two, so that there are few different shapes."""
    return min(max(1 << (tokens - 1).bit_length(), SHORT_TAIL), most)


def _run_layers(
    model: ReformerModel,
    token_ids: torch.Tensor,
    positions: torch.Tensor,
    lsh: Callable[[int, LSHAttention, torch.Tensor], torch.Tensor],
    local: Callable[[int, LocalAttention, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """All layers over B rows: int64 [B] and int64 [B] -> logits float32 [B, vocab]."""
    stream2 = model.embed(token_ids, positions)
    stream1 = stream2.to(model.dtype)
    lsh_layer = local_layer = 0
    for layer in model.reversible_layers:
        if isinstance(layer.attention, LSHAttention):
            stream1 = stream1 + lsh(lsh_layer, layer.attention, stream2)
            lsh_layer += 1
        else:
            stream1 = stream1 + local(local_layer, layer.attention, stream2)
            local_layer += 1
        stream2 = stream2 + layer.feed_forward(stream1)
    return model.logits(torch.cat([stream1, stream2], dim=-1))


def _project(attention: LSHAttention, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows [B, d] -> shared queries and keys, and values, [B, H, 1, D], and buckets int64 [B, H, R]."""
    query_key, value = attention.project(hidden)  # [H, B, D]
    buckets = attention.hash(query_key).permute(2, 0, 1)
    return query_key.transpose(0, 1).unsqueeze(-2), value.transpose(0, 1).unsqueeze(-2), buckets


def _store(sessions: SessionRows, rows: torch.Tensor, query_key: torch.Tensor, value: torch.Tensor) -> None:
    """Writes keys and values [B, H, 1, D] to rows int64 [B, H] of the pool."""
    pool, head_size, where = sessions.pool, query_key.shape[-1], rows.flatten()
    pool.rows.index_copy_(0, where, normalised_keys(query_key).reshape(-1, head_size))
    pool.rows.index_copy_(0, where + pool.layout.value_distance, value.reshape(-1, head_size))


def _attend_seen(
    sessions: SessionRows, layer: int, seen: torch.Tensor, query_key: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    """Attention of each row's newest token, at `positions`, to those at positions int64 [B, H, w]: [B, H D].

    One softmax over the windows of all rounds side by side is the same as combining the rounds by their log-sum-exp.
    """
    pool = sessions.pool
    where = sessions.key_rows(layer, seen)  # [B, H, w]
    keys = pool.rows.index_select(0, where.flatten()).view(*where.shape, -1)
    weights = _weights(query_key, keys, (seen == positions.view(-1, 1, 1)).unsqueeze(-2), SELF)
    weights, where = weights.to(pool.rows.dtype).view(-1, where.shape[-1]), where.flatten(0, 1)
    return weighted_sums(pool.rows, where + pool.layout.value_distance, weights).view(len(seen), -1)


def _attend(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
    """Attention of queries [B, H, q, D] to windows of their own, keys and values [B, H, w, D]: [B q, H D].

    Args:
        masked: bool, broadcastable to [B, H, q, w]: what isn't seen.
    """
    batch, heads, queries, _ = query.shape
    stored, (values,) = values.dtype, for_products(values)
    weights = _weights(query, keys, masked, FUTURE).to(values.dtype).view(batch * heads, queries, -1)
    out = torch.bmm(weights, values.flatten(0, 1)).view_as(query)
    return out.transpose(1, 2).reshape(batch * queries, -1).to(stored)


def _weights(query: torch.Tensor, keys: torch.Tensor, masked: torch.Tensor, masked_logit: float) -> torch.Tensor:
    """Attention weights of queries [B, H, q, D] to keys [B, H, w, D]: float32 [B, H, q, w].

    Products of small matrices: kernels for attention are made for many queries, and take twice the time for one.

    Args:
        masked: bool, broadcastable to [B, H, q, w]: where logits are replaced by masked_logit.
    """
    batch, heads, queries, head_size = query.shape
    query, keys = for_products(query, keys)
    logits = torch.bmm(query.reshape(-1, queries, head_size), keys.flatten(0, 1).transpose(1, 2))
    masked_logit = max(masked_logit, torch.finfo(logits.dtype).min)
    logits = logits.view(batch, heads, queries, -1).masked_fill_(masked, masked_logit)
    return torch.softmax(logits, dim=-1, dtype=torch.float32)


def _unseen(model: ReformerModel, held: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """What local queries at positions int64 [q] don't see of keys at positions int64 [q or 1, w]: bool [q, w]."""
    length, before = model.config.local_attn_chunk_length, model.config.local_num_chunks_before
    query = positions.unsqueeze(1)
    first = ((query // length - before) * length).clamp(min=0)
    return (held < first) | (held > query)
