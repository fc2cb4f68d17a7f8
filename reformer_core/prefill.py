"""Reading a long sequence, slice by slice, so that others can take turns: the full forward pass of one document.

It goes layer by layer, since sorting needs the whole layer, as a generator that yields after each bounded slice. The
streams are updated in place; keys and values go straight into pages. The result doesn't depend on what happens between
slices.

Shapes: n tokens, H heads, R rounds, D head size, d width, K buckets, W positions a local layer sees.
"""

from collections.abc import Iterator

import torch

from reformer_core.document import Document, DocumentState, arrange_pages, document_pages
from reformer_core.head_loss import HEAD_BLOCK_TOKENS
from reformer_core.local_attention import LocalAttention
from reformer_core.lsh_pass import LSHPass
from reformer_core.model import ReformerModel
from reformer_core.pages import PagePool
from reformer_core.placement import second_stream_dtype
from reformer_core.reversible import Layer
from reformer_core.slicing import parts, slice_tokens


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
        self._step = slice_tokens(model.config, model.dtype, model.device)
        self._pages = pool.allocate(self.pages_needed(model, pool, len(token_ids), keep_document=keep_document))

    @staticmethod
    def pages_needed(model: ReformerModel, pool: PagePool, tokens: int, *, keep_document: bool) -> int:
        """Pages that reading so many tokens takes."""
        if keep_document:
            return sum(document_pages(pool.layout, tokens))
        # Scoring uses one layer's pages again and again.
        return pool.layout.token_pages(tokens) if "lsh" in model.config.attn_layers else 0

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

    @torch.inference_mode()  # as a decorator: a `with` would stay in force between the slices
    def _run(self) -> Iterator[None]:
        model, config, n = self._model, self._model.config, len(self._token_ids)
        token_pages, order_pages, state_pages = self._pages_by_use()
        state = DocumentState.empty(config, model.dtype, model.device)
        stream1 = torch.empty(n, config.hidden_size, dtype=model.dtype, device=model.device)
        stream2 = torch.empty_like(stream1, dtype=second_stream_dtype(model.dtype))
        for part in parts(n, self._step):
            positions = torch.arange(part.start, part.stop, device=model.device)
            stream1[part] = stream2[part] = model.embed(self._token_ids[part].long().to(model.device), positions)
            yield
        seen = {"lsh": 0, "local": 0}  # layers of each kind
        for kind, layer in zip(config.attn_layers, model.reversible_layers, strict=True):
            index = seen[kind]
            if isinstance(layer.attention, LocalAttention):
                keys, values = state.local_keys[index], state.local_values[index]
                yield from self._local_layer(layer, stream1, stream2, keys, values)
            else:
                own_pages = token_pages[index if self._keep else 0]
                lsh = LSHPass(layer.attention, self._pool, own_pages, order_pages[index] if self._keep else None, n)
                yield from lsh.slices(stream2)
                for part in parts(n, self._step):
                    stream1[part].add_(layer.attention.merge(lsh.out[:, part], None))
                    stream2[part].add_(layer.feed_forward(stream1[part]))
                    yield
                state.offsets[index] = lsh.offsets
                del lsh
            seen[kind] += 1
            self.done_fraction = sum(seen.values()) / (len(config.attn_layers) + 1)
        if self._keep_scores:
            yield from self._score(stream1, stream2)
        if self._keep:
            state.next_logits.copy_(model.logits(torch.cat([stream1[-1], stream2[-1]], dim=-1)))
            self._pool.write(state_pages, list(vars(state).values()))
            self.document = Document(
                self._pool, self._token_ids, token_pages, order_pages, state_pages, scores=self.scores
            )
        self.done_fraction = 1.0

    def _local_layer(
        self, layer: Layer, stream1: torch.Tensor, stream2: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> Iterator[None]:
        """One local layer, attention and feed-forward in one pass: a slice needs only the chunks before it."""
        assert isinstance(layer.attention, LocalAttention)
        for part in parts(len(stream1), self._step):
            stream1[part].add_(layer.attention.attend_slice(stream2[part], part.start, keys, values))
            stream2[part].add_(layer.feed_forward(stream1[part]))
            yield

    def _score(self, stream1: torch.Tensor, stream2: torch.Tensor) -> Iterator[None]:
        """Each token's log-probability, from the logits of the token before it."""
        self.scores = torch.full((len(stream1),), torch.nan)
        for part in parts(len(stream1) - 1, HEAD_BLOCK_TOKENS):
            logits = self._model.logits(torch.cat([stream1[part], stream2[part]], dim=-1))
            after = slice(part.start + 1, part.stop + 1)
            targets = self._token_ids[after].long().to(logits.device).unsqueeze(-1)
            self.scores[after] = logits.log_softmax(dim=-1).gather(-1, targets).squeeze(-1).cpu()
            yield

    def _pages_by_use(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Pages for keys and values, int64 [layers, pages], for orders, likewise, and for the state, [pages]; CPU."""
        if not self._keep:
            pages = torch.tensor(self._pages, dtype=torch.long)
            return pages[None], pages[None, :0], pages[:0]
        token_pages, order_pages, state_pages = arrange_pages(self._pool.layout, self._pages, len(self._token_ids))
        # What the last pages don't fill is somebody's from before, and a document can leave this machine.
        self._pool.clear(torch.cat([token_pages[:, -1:].flatten(), order_pages[:, -1:].flatten()]))
        return token_pages, order_pages, state_pages
