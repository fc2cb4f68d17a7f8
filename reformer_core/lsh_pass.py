"""One LSH layer over a whole document, slice by slice: project and hash, sort, attend round after round.

Keys and values go into pages. Queries are kept as the norms of the shared vectors only, since query = key × norm.

Shapes: n tokens, N padded tokens, H heads, R rounds, L chunk length, b chunks before, D head size, d width, K buckets.
"""

from collections.abc import Generator, Iterator

import torch

from reformer_core.bucket_index import bucket_offsets, write_order
from reformer_core.lsh_attention import LSHAttention, key_norms, normalised_keys, sorted_order
from reformer_core.pages import PagePool
from reformer_core.rounds import combine
from reformer_core.slicing import parts, slice_tokens
from reformer_core.window_attention import attend_slots


class LSHPass:
    """The pass through one layer; afterwards `out` [H, n, D] is what the heads got, and the pages hold the rest."""

    def __init__(
        self,
        attention: LSHAttention,
        pool: PagePool,
        token_pages: torch.Tensor,
        order_pages: torch.Tensor | None,
        tokens: int,
    ) -> None:
        """Args:
        token_pages: int64 [pages], for the keys and values.
        order_pages: int64 [pages], for the sorted orders; None: they aren't kept.
        tokens: n.
        """
        config, device, dtype = attention.config, pool.device, pool.layout.dtype
        heads, rounds, head_size = config.num_attention_heads, config.num_hashes, config.attention_head_size
        self._attention, self._config, self._pool, self._tokens = attention, config, pool, tokens
        self._order_pages = order_pages
        padded = config.padded_length(tokens)
        position = torch.arange(padded, device=device).clamp_(max=tokens - 1)  # padding is masked by its position
        bases = pool.layout.key_bases(token_pages.to(device))[position >> pool.layout.token_bits]
        self._first_rows = pool.layout.key_row(bases, 0, position)  # of the first head's keys
        self._of_heads = pool.layout.head_distance * torch.arange(heads, device=device).unsqueeze(-1)
        self._step = slice_tokens(config, dtype, device)
        self._head_step = self._step * heads  # of one head, which is so much less work
        self.out = torch.empty(heads, tokens, head_size, dtype=dtype, device=device)  # each round writes all of it
        self.offsets = torch.zeros(heads, rounds, config.total_buckets + 1, dtype=torch.int32, device=device)
        self._norms = torch.zeros(heads, padded, dtype=torch.float32, device=device)
        bucket_type = torch.int16 if config.total_buckets <= 2**15 else torch.int32
        self._buckets = torch.empty(heads, rounds, tokens, dtype=bucket_type, device=device)

    def slices(self, hidden: torch.Tensor) -> Iterator[None]:
        """Reads the residual stream [n, d], yielding after each slice."""
        for part in parts(self._tokens, self._step):
            self._project(hidden[part], part)
            yield
        for head in range(self._config.num_attention_heads):
            order = yield from self._sort(head)
            yield from self._attend(head, order)

    def _project(self, hidden: torch.Tensor, part: slice) -> None:
        query_key, value = self._attention.project(hidden)  # [H, m, D]
        self._buckets[..., part] = self._attention.hash(query_key).to(self._buckets.dtype)
        norms = self._norms[:, part] = key_norms(query_key)
        where = self._first_rows[part]
        for vectors, offset in ((normalised_keys(query_key, norms), 0), (value, self._pool.layout.value_distance)):
            rows = where + self._of_heads + offset
            self._pool.rows.index_copy_(0, rows.flatten(), vectors.flatten(0, 1))

    def _sort(self, head: int) -> Generator[None, None, torch.Tensor]:
        """The head's orders int64 [R, N]: slot -> position, n and more for padding."""
        padded = self._norms.shape[-1]
        order = torch.empty(self._config.num_hashes, padded, dtype=torch.long, device=self.out.device)
        for round_, buckets in enumerate(self._buckets[head]):
            order[round_] = sorted_order(buckets, padded)
            if self._order_pages is not None:
                tokens_order = order[round_, : self._tokens].to(torch.int32)
                write_order(self._pool, self._order_pages, head * len(order) + round_, tokens_order)
                self.offsets[head, round_] = bucket_offsets(buckets, self._config.total_buckets)
            yield
        return order

    def _attend(self, head: int, order: torch.Tensor) -> Iterator[None]:
        length, before = self._config.lsh_attn_chunk_length, self._config.lsh_num_chunks_before
        if order.shape[-1] <= length:  # one chunk: everything sees everything, once
            order, length, before = torch.arange(self._tokens, device=order.device)[None], self._tokens, 0
        sums = _Rounds(self.out[head], len(order))
        ring = order.flatten()
        for round_ in range(len(order)):
            for part in parts(order.shape[-1], max(self._head_step // length, 1) * length):
                real = min(part.stop, self._tokens) - part.start  # the rest is padding, last in its round
                if real > 0:
                    start = round_ * order.shape[-1] + part.start
                    window = _on_ring(ring, start - before * length, start + part.stop - part.start)
                    out, log_sum_exp = self._attend_window(head, window, length, before)
                    sums.add(round_, window[before * length :][:real], out[:real], log_sum_exp[:real])
                yield

    def _attend_window(
        self, head: int, window: torch.Tensor, length: int, before: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Positions in consecutive slots int64 [b L + m] -> outputs [m, D] and log-sum-exps [m] of the last m."""
        where, layout = self._first_rows.index_select(0, window), self._pool.layout
        of_head = self._pool.rows[head * layout.head_distance :]
        keys, values = of_head.index_select(0, where), of_head[layout.value_distance :].index_select(0, where)
        norms = self._norms[head].index_select(0, window[before * length :])
        queries = (keys[before * length :] * norms.unsqueeze(-1)).to(keys.dtype)
        out, log_sum_exp = attend_slots(
            queries[None],
            keys[None],
            values[None],
            window[None],
            length=length,
            before=before,
            shared_qk=True,
            has_backward=False,
        )
        return out[0], log_sum_exp[0]


def _on_ring(ring: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    """ring[start:stop], where a negative start goes around the ring."""
    if start >= 0:
        return ring[start:stop]
    return torch.cat([ring[torch.arange(start, 0, device=ring.device) % len(ring)], ring[:stop]])


class _Rounds:
    """The running combination of one head's rounds, in place. Each round has each token once: the last one ends it."""

    def __init__(self, out: torch.Tensor, rounds: int) -> None:
        """Sums up in out [n, D]."""
        self._out, self._last = out, rounds - 1
        size = len(out) if rounds > 1 else 0
        self._peak = torch.empty(size, device=out.device)
        self._total = torch.empty(size, device=out.device)

    def add(self, round_: int, positions: torch.Tensor, out: torch.Tensor, log_sum_exp: torch.Tensor) -> None:
        """Outputs [m, D] and log-sum-exps [m] of a round at positions int64 [m]."""
        if self._last > 0:
            peak, total = log_sum_exp, torch.ones_like(log_sum_exp)
            if round_ > 0:
                out_so_far, peak, total = (x.index_select(0, positions) for x in (self._out, self._peak, self._total))
                out, peak, total = combine(out_so_far, peak, total, out, log_sum_exp)
            if round_ < self._last:
                self._peak.index_copy_(0, positions, peak)
                self._total.index_copy_(0, positions, total)
            else:  # divided by the total weight, rounded as in `CombinedRounds.finish`
                share = torch.exp(peak - (peak + total.log()))
                out = (out * share.unsqueeze(-1)).to(out.dtype)
        self._out.index_copy_(0, positions, out)
