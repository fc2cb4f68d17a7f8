"""Reading a long sequence, slice by slice, so that others can take turns: the full forward pass of one document.

It goes layer by layer, since sorting needs the whole layer, as a generator that yields after each bounded slice. The streams are
updated in place; keys and values go straight into pages. The result doesn't depend on what happens between slices.

Shapes: n tokens, H heads, R rounds, L chunk length, b chunks before, D head size, d width, K buckets, N padded tokens.
"""

from collections.abc import Iterator

import torch
from torch import nn

from reformer_core.bucket_index import bucket_offsets, write_order
from reformer_core.document import Document
from reformer_core.local_attention import LocalAttention
from reformer_core.lsh_attention import LSHAttention, normalised_keys, sorted_order
from reformer_core.model import HEAD_BLOCK_TOKENS, ReformerModel
from reformer_core.pages import PagePool
from reformer_core.rounds import combine
from reformer_core.window_attention import attend_slots

SLICE_WORK = 2**30  # multiply-adds a slice: some 10 ms on two CPU cores, which is what a decode step may wait
LEAST_SLICE_TOKENS = 256


class Prefill:
    """One sequence being read. Drive `slices` to its end, then take `document` or `scores`."""

    def __init__(
        self,
        model: ReformerModel,
        pool: PagePool,
        token_ids: torch.Tensor,
        *,
        keep_document: bool,
        keep_scores: bool,
    ) -> None:
        """Takes the pages it needs.

        Args:
            token_ids: int [n], checked already.
            keep_document: leave a document behind; else only scores.
            keep_scores: compute the log-probability of each token.

        Raises:
            OutOfMemoryError: too few pages are free; nothing is taken.
        """
        self.document: Document | None = None
        self.scores: torch.Tensor | None = None
        self.done_fraction = 0.0
        self._model, self._pool, self._keep, self._keep_scores = model, pool, keep_document, keep_scores
        self._token_ids = token_ids.to(torch.int32).cpu()
        self._token_pages, self._order_pages = _page_counts(model, pool, len(token_ids), keep_document)
        self._pages: list[int] = pool.allocate(sum(self._token_pages) + sum(self._order_pages))

    @staticmethod
    def pages_needed(model: ReformerModel, pool: PagePool, tokens: int, *, keep_document: bool) -> int:
        """Pages that reading so many tokens takes."""
        token_pages, order_pages = _page_counts(model, pool, tokens, keep_document)
        return sum(token_pages) + sum(order_pages)

    def slices(self) -> Iterator[None]:
        """Does the work, yielding after each slice; closing it early frees everything."""
        try:
            yield from self._run()
        finally:
            self.close()

    def close(self) -> None:
        """Frees the pages, unless a document has them; idempotent."""
        if self.document is None:
            self._pool.release(self._pages)
        self._pages = []

    def _run(self) -> Iterator[None]:
        model, config = self._model, self._model.config
        n, layers = len(self._token_ids), self._model.reversible_layers
        stream1 = torch.empty(n, config.hidden_size, dtype=model.dtype, device=model.device)
        for part in _parts(n, _slice_tokens(model)):
            positions = torch.arange(part.start, part.stop, device=model.device)
            stream1[part] = model.embed(self._token_ids[part].long().to(model.device), positions)
            yield
        stream2 = stream1.clone()
        lsh_layers, local_layers = config.attn_layers.count("lsh"), config.attn_layers.count("local")
        kept_layers = lsh_layers if self._keep else min(lsh_layers, 1)  # scoring uses one layer's pages again and again
        per_layer = self._token_pages[0] if lsh_layers else 0
        token_pages = torch.tensor(self._pages[: kept_layers * per_layer], dtype=torch.long).view(
            kept_layers, per_layer
        )
        order_pages = torch.tensor(self._pages[kept_layers * per_layer :], dtype=torch.long).view(
            lsh_layers if self._keep else 0, -1 if self._keep and lsh_layers else 0
        )
        ring = (local_layers, config.num_attention_heads, config.local_window, config.attention_head_size)
        local_keys = torch.zeros(ring, dtype=model.dtype, device=model.device)
        local_values = torch.zeros_like(local_keys)
        offsets = []
        lsh_layer = local_layer = 0
        for index, layer in enumerate(layers):
            if isinstance(layer.attention, LSHAttention):
                pages = token_pages[lsh_layer if self._keep else 0]
                lsh = _LSHLayer(
                    layer.attention, self._pool, pages, order_pages[lsh_layer] if self._keep else None, n, model
                )
                yield from lsh.attend(stream2)
                for part in _parts(n, _slice_tokens(model)):
                    stream1[part] += layer.attention.output(lsh.out[part])
                    stream2[part] += layer.feed_forward(stream1[part])
                    yield
                offsets.append(lsh.offsets)
                lsh_layer += 1
            else:
                keys, values = local_keys[local_layer], local_values[local_layer]
                for part in _parts(n, _slice_tokens(model)):
                    stream1[part] += _attend_locally(layer.attention, stream2[part], part.start, keys, values)
                    stream2[part] += layer.feed_forward(stream1[part])
                    yield
                local_layer += 1
            self.done_fraction = (index + 1) / (len(layers) + 1)
        if self._keep_scores:
            self.scores = torch.full((n,), torch.nan)
            for part in _parts(n - 1, HEAD_BLOCK_TOKENS):
                logits = model.logits(torch.cat([stream1[part], stream2[part]], dim=-1))
                targets = self._token_ids[part.start + 1 : part.stop + 1].long().to(model.device)
                log_probabilities = logits.log_softmax(dim=-1).gather(-1, targets.unsqueeze(-1))
                self.scores[part.start + 1 : part.stop + 1] = log_probabilities.squeeze(-1).cpu()
                yield
        if self._keep:
            heads, rounds = config.num_attention_heads, config.num_hashes
            shape = (lsh_layers, heads, rounds, config.total_buckets + 1)
            self.document = Document(
                pool=self._pool,
                token_ids=self._token_ids,
                token_pages=token_pages,
                order_pages=order_pages,
                offsets=torch.stack(offsets) if offsets else torch.zeros(shape, dtype=torch.int32, device=model.device),
                local_keys=local_keys,
                local_values=local_values,
                next_logits=model.logits(torch.cat([stream1[-1], stream2[-1]], dim=-1)),
                scores=self.scores,
            )
        self.done_fraction = 1.0


class _LSHLayer:
    """One LSH layer over the whole sequence: project and hash, sort, attend round after round."""

    def __init__(
        self,
        attention: LSHAttention,
        pool: PagePool,
        token_pages: torch.Tensor,
        order_pages: torch.Tensor | None,
        tokens: int,
        model: ReformerModel,
    ) -> None:
        config, device = attention.config, model.device
        heads, head_size = config.num_attention_heads, config.attention_head_size
        self._attention, self._pool, self._tokens, self._config = attention, pool, tokens, config
        self._pages, self._order_pages = token_pages.to(device), order_pages
        self._slice_tokens = _slice_tokens(model)
        self.out = torch.zeros(tokens, heads * head_size, dtype=model.dtype, device=device)
        self.offsets = torch.zeros(heads, config.num_hashes, config.total_buckets + 1, dtype=torch.int32, device=device)
        self._norms = torch.empty(heads, tokens, dtype=torch.float32, device=device)  # query = key × norm
        bucket_type = torch.int16 if config.total_buckets <= 2**15 else torch.int32
        self._buckets = torch.empty(heads, config.num_hashes, tokens, dtype=bucket_type, device=device)

    def attend(self, hidden: torch.Tensor) -> Iterator[None]:
        """From the residual stream [n, d] to `out` [n, H D]."""
        for part in _parts(self._tokens, self._slice_tokens):
            self._project(hidden[part], part)
            yield
        for head in range(self._config.num_attention_heads):
            yield from self._attend_head(head)

    def _project(self, hidden: torch.Tensor, part: slice) -> None:
        query_key, value = self._attention.project(hidden)  # [H, m, D]
        self._buckets[..., part] = self._attention.hash(query_key).to(self._buckets.dtype)
        mean_square = query_key.float().pow(2).mean(dim=-1)
        self._norms[:, part] = torch.sqrt((mean_square + 1e-6) * query_key.shape[-1])
        position = torch.arange(part.start, part.stop, device=hidden.device).expand(len(query_key), -1)
        head = torch.arange(len(query_key), device=hidden.device).unsqueeze(-1)
        where, head_size = self._key_rows(head, position).flatten(), query_key.shape[-1]
        self._pool.rows[where] = normalised_keys(query_key).reshape(-1, head_size)
        self._pool.rows[where + self._pool.layout.value_distance] = value.reshape(-1, head_size)

    def _attend_head(self, head: int) -> Iterator[None]:
        config, n = self._config, self._tokens
        padded = config.padded_length(n)
        single_chunk = padded <= config.lsh_attn_chunk_length
        orders = []
        for round_ in range(config.num_hashes):
            buckets = self._buckets[head, round_]
            order = sorted_order(buckets, n if single_chunk else padded)
            if self._order_pages is not None:
                write_order(self._pool, self._order_pages, head, round_, order[:n].to(torch.int32))
                self.offsets[head, round_] = bucket_offsets(buckets, config.total_buckets)
            orders.append(order)
            yield
        if single_chunk:  # everything sees everything, once
            ring, length, before = torch.arange(n, device=orders[0].device), n, 0
        else:
            ring, length, before = torch.cat(orders), config.lsh_attn_chunk_length, config.lsh_num_chunks_before
        del orders
        out = self.out.view(n, config.num_attention_heads, -1)[:, head]
        many = len(ring) > max(padded, n)
        peak = torch.full((n,), -torch.inf, device=ring.device) if many else None
        total = torch.zeros(n, device=ring.device) if many else None
        step = max(self._slice_tokens // length, 1) * length
        for round_start in range(0, len(ring), max(padded, n)):
            for part in _parts(min(max(padded, n), len(ring)), step):
                start, stop = round_start + part.start, round_start + part.stop
                window = ring[torch.arange(start - before * length, stop, device=ring.device) % len(ring)]
                real = min(n - part.start, stop - start)  # the rest is padding, last in its round
                if real > 0:
                    own, own_out, log_sum_exp = self._attend_slots(head, window, length, before)
                    own, own_out, log_sum_exp = own[:real], own_out[:real], log_sum_exp[:real]
                    if peak is None or total is None:
                        out[own] = own_out
                    else:
                        out[own], peak[own], total[own] = combine(out[own], peak[own], total[own], own_out, log_sum_exp)
                yield
        if peak is not None and total is not None:
            for part in _parts(n, self._slice_tokens):
                share = torch.exp(peak[part] - (peak[part] + total[part].log()))
                out[part] = (out[part] * share.unsqueeze(-1)).to(out.dtype)
                yield

    def _attend_slots(
        self, head: int, window: torch.Tensor, length: int, before: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Positions in slots int64 [b L + m] -> the last m of them, their outputs [m, D] and log-sum-exps [m]."""
        where = self._key_rows(head, window.clamp(max=self._tokens - 1))
        keys = self._pool.rows.index_select(0, where)
        values = self._pool.rows.index_select(0, where + self._pool.layout.value_distance)
        own = window[before * length :]
        norms = self._norms[head].index_select(0, own.clamp(max=self._tokens - 1))
        queries = (keys[before * length :] * norms.unsqueeze(-1)).to(keys.dtype)
        out, log_sum_exp = attend_slots(
            queries[None], keys[None], values[None], window[None], length=length, before=before, shared_qk=True
        )
        return own, out[0], log_sum_exp[0]

    def _key_rows(self, head: torch.Tensor | int, positions: torch.Tensor) -> torch.Tensor:
        layout = self._pool.layout
        return layout.key_row(self._pages[positions // layout.tokens], head, positions % layout.tokens)


def _attend_locally(
    attention: LocalAttention, hidden: torch.Tensor, start: int, keys: torch.Tensor, values: torch.Tensor
) -> torch.Tensor:
    """Local attention of a slice [m, d] that begins at a chunk boundary; keeps the last W keys and values [H, W, D].

    Position p lies at p % W.
    """
    config = attention.config
    length, before, window = config.local_attn_chunk_length, config.local_num_chunks_before, config.local_window
    query, key, value = attention.project(hidden)  # [H, m, D]
    m, padding = len(hidden), -len(hidden) % length
    history = torch.arange(start - before * length, start, device=hidden.device)
    all_keys = torch.cat([keys[:, history % window], key], dim=-2)
    all_values = torch.cat([values[:, history % window], value], dim=-2)
    end = start + m + padding
    position = torch.arange(start - before * length, end, device=hidden.device)
    position = torch.where(position < 0, end, position)  # before the beginning there is nothing to see
    pad = (0, 0, 0, padding)
    out, _ = attend_slots(
        nn.functional.pad(query, pad),
        nn.functional.pad(all_keys, pad),
        nn.functional.pad(all_values, pad),
        position.expand(len(query), -1),
        length=length,
        before=before,
        shared_qk=False,
    )
    newest = torch.arange(max(start, start + m - window), start + m, device=hidden.device)
    keys[:, newest % window] = key[:, newest - start]
    values[:, newest % window] = value[:, newest - start]
    return attention.output(out[:, :m].transpose(0, 1).flatten(1))  # type: ignore[no-any-return]


def _page_counts(model: ReformerModel, pool: PagePool, tokens: int, keep_document: bool) -> tuple[list[int], list[int]]:
    """Pages of each layer: for keys and values, and for orders."""
    layers = model.config.attn_layers.count("lsh")
    if not keep_document:
        return [pool.layout.token_pages(tokens)] * min(layers, 1), []
    return [pool.layout.token_pages(tokens)] * layers, [pool.layout.order_pages(tokens)] * layers


def _slice_tokens(model: ReformerModel) -> int:
    """Tokens a slice: a multiple of the chunk lengths, and of bounded work."""
    config = model.config
    inner = config.num_attention_heads * config.attention_head_size
    work = config.hidden_size * (2 * config.feed_forward_size + 4 * inner)
    wanted = max(SLICE_WORK // work, LEAST_SLICE_TOKENS)
    return max(wanted // config.chunk_multiple, 1) * config.chunk_multiple


def _parts(tokens: int, step: int) -> Iterator[slice]:
    for start in range(0, tokens, step):
        yield slice(start, min(start + step, tokens))
