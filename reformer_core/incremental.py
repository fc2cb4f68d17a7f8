"""Appending tokens to cached documents: one token for each of many sessions (decode), or many tokens to one (extend).

Both run the same layers over *rows*: in `decode_step` a row is a session, in `extend_slice` a token of one session that
sees the tokens before it. A row costs rounds × (window + log tail), whatever the document's length.

Shapes: B rows, H heads, R rounds, D head size, W positions a local layer sees, d width.
"""

from collections.abc import Callable

import torch
from torch.nn.functional import scaled_dot_product_attention

from reformer_core.bucket_index import Tail, Windows
from reformer_core.local_attention import LocalAttention
from reformer_core.lsh_attention import LSHAttention, normalised_keys
from reformer_core.model import ReformerModel
from reformer_core.session import Session
from reformer_core.session_table import SessionRows, SessionTable
from reformer_core.window_attention import FUTURE, SELF


@torch.inference_mode()
def decode_step(
    model: ReformerModel, table: SessionTable, rows: torch.Tensor, token_ids: torch.Tensor, tail_capacity: int
) -> None:
    """Appends one token to each of B sessions and leaves the next token's logits in `table.next_logits`.

    Fixed shapes, no look at any value: one CUDA graph a pair of B and tail_capacity.

    Args:
        rows: int64 [B], different rows of the table, their pages reserved.
        token_ids: int64 [B].
        tail_capacity: more than the tokens in the longest tail of these rows.
    """
    sessions = SessionRows(table, rows)
    positions = sessions.length
    windows = Windows(model.config, positions + 1)
    # Position p of a local layer lies at p % W; what is held in each place once the new token is.
    heads, window = table.local_keys.shape[-3:-1]
    held = positions.unsqueeze(1) - (positions.unsqueeze(1) - torch.arange(window, device=rows.device)) % window
    local_mask = _local_mask(model, held, positions).view(-1, 1, 1, window)
    local_heads = rows.unsqueeze(1) * heads + torch.arange(heads, device=rows.device)  # [B, H]
    local_rows = (local_heads * window + (positions % window).unsqueeze(1)).flatten()

    def lsh(layer: int, attention: LSHAttention, hidden: torch.Tensor) -> torch.Tensor:
        query_key, value, buckets = _project(attention, hidden)
        _store(sessions, layer, positions, query_key, value)
        tail, place = sessions.tail(layer, tail_capacity).appended(buckets, positions)
        sessions.store_tail(layer, tail)
        out = _attend_window(sessions, layer, windows, tail, place, query_key, positions)
        return attention.output(out)  # type: ignore[no-any-return]

    def local(layer: int, attention: LocalAttention, hidden: torch.Tensor) -> torch.Tensor:
        query, key, value = attention.project(hidden.unsqueeze(-2))  # [B, H, 1, D]
        keys, values = table.local_keys[layer], table.local_values[layer]
        for ring, new in ((keys, key), (values, value)):
            ring.view(-1, ring.shape[-1]).index_copy_(0, local_rows, new.reshape(-1, ring.shape[-1]))
        keys, values = keys.index_select(0, rows), values.index_select(0, rows)
        out = scaled_dot_product_attention(query, keys, values, attn_mask=local_mask, scale=1.0)
        return attention.output(out.flatten(1))  # type: ignore[no-any-return]

    table.next_logits.index_copy_(0, rows, _run_layers(model, token_ids, positions, lsh, local))
    table.length.index_add_(0, rows, torch.ones_like(rows))


@torch.inference_mode()
def extend_slice(model: ReformerModel, session: Session, token_ids: torch.Tensor) -> torch.Tensor:
    """Appends m tokens to one session, as m decode steps would.

    Args:
        token_ids: int64 [m], at most `extend_tokens`, their pages reserved; the tail has room for them.

    Returns:
        float32 [m, vocab]: logits of the token after each.
    """
    table, m = session.table, len(token_ids)
    row = torch.tensor([session.row], device=token_ids.device)
    before, after = SessionRows(table, row), SessionRows(table, row.expand(m))
    positions = session.length + torch.arange(m, device=token_ids.device)
    windows = Windows(model.config, positions + 1)
    capacity = tail_capacity_for(session.tail_tokens + m, table.tail_capacity)
    # In a local layer: what is held before the first of the tokens, and the tokens themselves.
    window, newest = table.local_keys.shape[-2], session.length - 1
    held = newest - (newest - torch.arange(window, device=row.device)) % window
    local_mask = _local_mask(model, torch.cat([held, positions]), positions)  # [m, W + m]

    def lsh(layer: int, attention: LSHAttention, hidden: torch.Tensor) -> torch.Tensor:
        query_key, value, buckets = _project(attention, hidden)
        _store(after, layer, positions, query_key, value)
        tails, place = before.tail(layer, capacity).appended_one_by_one(buckets, positions)
        before.store_tail(layer, Tail(tails.buckets[-1:], tails.positions[-1:], tails.tokens[-1:]))
        out = _attend_window(after, layer, windows, tails, place, query_key, positions)
        return attention.output(out)  # type: ignore[no-any-return]

    def local(layer: int, attention: LocalAttention, hidden: torch.Tensor) -> torch.Tensor:
        query, key, value = attention.project(hidden)  # [H, m, D]
        rings = table.local_keys[layer, session.row], table.local_values[layer, session.row]  # [H, W, D]
        keys, values = (torch.cat(both, dim=-2) for both in zip(rings, (key, value), strict=True))
        out = scaled_dot_product_attention(query[None], keys[None], values[None], attn_mask=local_mask, scale=1.0)
        for ring, new in zip(rings, (key, value), strict=True):
            ring[:, positions[-window:] % window] = new[:, -window:]
        return attention.output(out[0].transpose(0, 1).flatten(1))  # type: ignore[no-any-return]

    logits = _run_layers(model, token_ids, positions, lsh, local)
    table.next_logits[session.row] = logits[-1]
    table.length[session.row] += m
    session.appended(m)
    return logits


def tail_capacity_for(tokens: int, most: int) -> int:
    """Places to look at for a tail of so many tokens: a power of two, so that there are few different shapes."""
    return min(max(1 << (tokens - 1).bit_length(), 16), most)


def _run_layers(
    model: ReformerModel,
    token_ids: torch.Tensor,
    positions: torch.Tensor,
    lsh: Callable[[int, LSHAttention, torch.Tensor], torch.Tensor],
    local: Callable[[int, LocalAttention, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """All layers over B rows: int64 [B] and int64 [B] -> logits float32 [B, vocab]."""
    stream1 = stream2 = model.embed(token_ids, positions)
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
    buckets = attention.hash(query_key).permute(2, 0, 1).contiguous()
    return query_key.transpose(0, 1).unsqueeze(-2), value.transpose(0, 1).unsqueeze(-2), buckets


def _store(
    sessions: SessionRows, layer: int, positions: torch.Tensor, query_key: torch.Tensor, value: torch.Tensor
) -> None:
    """Writes keys and values [B, H, 1, D], at positions int64 [B], to their pages."""
    pool, head_size = sessions.pool, query_key.shape[-1]
    where = sessions.key_rows(layer, positions.view(-1, 1, 1)).flatten()
    pool.rows.index_copy_(0, where, normalised_keys(query_key).reshape(-1, head_size))
    pool.rows.index_copy_(0, where + pool.layout.value_distance, value.reshape(-1, head_size))


def _attend_window(
    sessions: SessionRows,
    layer: int,
    windows: Windows,
    tail: Tail,
    place: torch.Tensor,
    query_key: torch.Tensor,
    positions: torch.Tensor,
) -> torch.Tensor:
    """Attention of each row's newest token, [B, H D].

    One softmax over the windows of all rounds side by side is the same as combining the rounds by their log-sum-exp.
    """
    pool, newest = sessions.pool, positions.view(-1, 1, 1)
    seen = windows.positions(pool, sessions.base(layer), tail, place).flatten(-2)  # [B, H, R (1 + b) L]
    where = sessions.key_rows(layer, torch.minimum(seen, newest))  # anything that exists, where there is nothing
    shape = (*where.shape, query_key.shape[-1])
    keys = pool.rows.index_select(0, where.flatten()).view(shape)
    values = pool.rows.index_select(0, where.flatten() + pool.layout.value_distance).view(shape)
    mask = _lsh_mask(seen, newest, query_key.dtype).unsqueeze(-2)
    return scaled_dot_product_attention(query_key, keys, values, attn_mask=mask, scale=1.0).flatten(1)


def _lsh_mask(seen: torch.Tensor, newest: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What is added to the logits of queries at `newest`, for keys at positions `seen` [..., w].

    Adding is as good as replacing, which a full pass does, for the newest token hardly ever has only its own key. Where
    it has, which takes several rounds and no chunk before, a full pass is coarser (`CombinedRounds.finish`), by 0.4 %.
    """
    smallest = torch.finfo(dtype).min
    unseen = torch.where(seen == newest, max(SELF, smallest / 2), max(FUTURE, smallest))
    return torch.where(seen < newest, 0.0, unseen).to(dtype)


def _local_mask(model: ReformerModel, held: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """The same for queries at positions int64 [q] and keys at positions int64 [q or 1, w]: their window is [q, w]."""
    length, before = model.config.local_attn_chunk_length, model.config.local_num_chunks_before
    query = positions.unsqueeze(1)
    first = ((query // length - before) * length).clamp(min=0)
    unseen = max(FUTURE, torch.finfo(model.dtype).min)
    return torch.where((held >= first) & (held <= query), 0.0, unseen).to(model.dtype)
