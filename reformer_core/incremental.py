"""Appending tokens to cached documents: one token for each of many sessions (decode), or many tokens to one (extend).

Both run the same layers over *rows*: in `decode_step` a row is a session, in `extend_slice` a token of one session that
sees the tokens before it. A row costs rounds × (window + log tail), whatever the document's length.

Shapes: B rows, H heads, R rounds, D head size, W positions a local layer sees, d width.
"""

from collections.abc import Callable

import torch
from torch.nn.functional import scaled_dot_product_attention

from reformer_core.bucket_index import ABSENT, Tail, Windows
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
    seen_locally = _within_local_window(model, held, positions).unsqueeze(1)  # [B, 1, W]
    local_mask = _mask(seen_locally, positions.view(-1, 1, 1), model.dtype, shared_qk=False)
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

    def lsh(layer: int, attention: LSHAttention, hidden: torch.Tensor) -> torch.Tensor:
        query_key, value, buckets = _project(attention, hidden)
        _store(after, layer, positions, query_key, value)
        tails, place = before.tail(layer, capacity).appended_one_by_one(buckets, positions)
        before.store_tail(layer, Tail(tails.buckets[-1:], tails.positions[-1:], tails.tokens[-1:]))
        out = _attend_window(after, layer, windows, tails, place, query_key, positions)
        return attention.output(out)  # type: ignore[no-any-return]

    def local(layer: int, attention: LocalAttention, hidden: torch.Tensor) -> torch.Tensor:
        query, key, value = attention.project(hidden)  # [H, m, D]
        window = table.local_keys.shape[-2]
        lane = torch.arange(window, device=row.device)
        newest = session.length - 1
        held = torch.cat([newest - (newest - lane) % window, positions])  # [W + m]
        # Each row's window, W positions long, ends with the last position of its chunk: some are still to come.
        length, chunks_before = attention.config.local_attn_chunk_length, attention.config.local_num_chunks_before
        wanted = ((positions // length - chunks_before) * length).unsqueeze(1) + lane  # [m, W]
        source = torch.where(wanted < session.length, wanted % window, wanted - session.length + window)
        source = source.clamp(0, window + m - 1)
        keys = torch.cat([table.local_keys[layer, session.row], key], dim=-2)  # [H, W + m, D]
        values = torch.cat([table.local_values[layer, session.row], value], dim=-2)
        found = torch.where(held[source] == wanted, wanted, ABSENT)
        seen = _within_local_window(model, found, positions)
        mask = _mask(seen, positions.unsqueeze(1), model.dtype, shared_qk=False)
        out = scaled_dot_product_attention(
            query.unsqueeze(-2), keys[:, source], values[:, source], attn_mask=mask, scale=1.0
        )  # [H, m, 1, D]
        newest_positions = positions[-window:]
        table.local_keys[layer, session.row, :, newest_positions % window] = key[:, -window:]
        table.local_values[layer, session.row, :, newest_positions % window] = value[:, -window:]
        return attention.output(out.squeeze(-2).transpose(0, 1).flatten(1))  # type: ignore[no-any-return]

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
    mask = _mask(seen, newest, query_key.dtype, shared_qk=True)
    return scaled_dot_product_attention(query_key, keys, values, attn_mask=mask, scale=1.0).flatten(1)


def _mask(seen: torch.Tensor, newest: torch.Tensor, dtype: torch.dtype, *, shared_qk: bool) -> torch.Tensor:
    """What is added to the logits of queries at `newest`, for keys at positions `seen`: [..., w] -> [..., 1, w].

    Adding is as good as replacing, which a full pass does, for the newest token hardly ever has only its own key. Where
    it has, which takes several rounds and no chunk before, a full pass is coarser (`CombinedRounds.finish`), by 0.4 %.
    """
    own = max(SELF, torch.finfo(dtype).min / 2) if shared_qk else 0.0
    mask = torch.where(seen < newest, 0.0, torch.where(seen == newest, own, max(FUTURE, torch.finfo(dtype).min)))
    return mask.to(dtype).unsqueeze(-2)


def _within_local_window(model: ReformerModel, held: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Positions int64 [B, W], ABSENT for what lies before the window of the row's query at positions int64 [B]."""
    length, before = model.config.local_attn_chunk_length, model.config.local_num_chunks_before
    first = ((positions // length - before) * length).clamp(min=0).unsqueeze(1)
    return torch.where(held >= first, held, ABSENT)
