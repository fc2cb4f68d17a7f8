"""The Reformer language model: embeddings, reversible layers, head. The forward pass for training and for reference.

Serving reads long documents with `prefill` and appends tokens with `incremental`; both use these same layers.

Shapes: B batch, n tokens, d width.
"""

import hashlib
import json

import torch
from torch import nn

from reformer_core.config import ReformerConfig
from reformer_core.dropout import dropout
from reformer_core.errors import InvalidTokensError, TooManyTokensError
from reformer_core.feed_forward import FeedForward
from reformer_core.head_loss import HEAD_BLOCK_TOKENS, head_loss
from reformer_core.linear import LayerNorm, Linear, linear
from reformer_core.local_attention import LocalAttention
from reformer_core.lsh_attention import LSHAttention
from reformer_core.placement import second_stream_dtype
from reformer_core.positions import AxialPositions, PlainPositions
from reformer_core.reversible import Layer, run_layers


class Embeddings(nn.Module):
    """Token embedding plus position embedding."""

    def __init__(self, config: ReformerConfig) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions: AxialPositions | PlainPositions
        if config.axial_pos_embds:
            self.positions = AxialPositions(config.axial_pos_shape, config.axial_pos_embds_dim, config.axial_norm_std)
        else:
            self.positions = PlainPositions(
                config.max_position_embeddings, config.hidden_size, config.initializer_range
            )

    def forward(self, token_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """int64 [...] and int64 [...], broadcastable -> [..., d], in the second stream's format."""
        tokens, places = self.tokens(token_ids), self.positions(positions)
        embedded: torch.Tensor = tokens.to(second_stream_dtype(tokens.dtype)) + places
        return embedded


class ReformerModel(nn.Module):
    """The model. Built with random weights in evaluation mode; `load_model` gives one with a checkpoint's."""

    def __init__(self, config: ReformerConfig) -> None:
        super().__init__()
        self.config = config = config.pinned
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(
            Layer(LSHAttention(config) if kind == "lsh" else LocalAttention(config), FeedForward(config))
            for kind in config.attn_layers
        )
        self.final_norm = LayerNorm(2 * config.hidden_size, eps=config.layer_norm_eps)
        self.head = Linear(2 * config.hidden_size, config.vocab_size)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=config.initializer_range)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        self.eval()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, the streams, and cached keys and values."""
        return self.head.weight.dtype

    @property
    def num_parameters(self) -> int:
        """Parameters in all."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def reversible_layers(self) -> list[Layer]:
        """The layers, first to last."""
        return [layer for layer in self.layers if isinstance(layer, Layer)]

    @property
    def weights_digest(self) -> bytes:
        """SHA-256 over the configuration, the hash configuration included, and all weights, 32 bytes."""
        digest = hashlib.sha256(json.dumps(self.config.to_dict(), sort_keys=True).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name} {tensor.dtype}".encode())
            digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.digest()

    def check_token_ids(self, token_ids: torch.Tensor) -> None:
        """Raises InvalidTokensError or TooManyTokensError if the model can't read token_ids, int [..., n]."""
        if token_ids.dim() == 0:
            raise InvalidTokensError("token ids must be a sequence or a batch of sequences, but are a single number")
        if token_ids.numel() == 0:
            raise InvalidTokensError("there are no tokens; at least one is needed")
        if token_ids.is_floating_point() or token_ids.dtype == torch.bool:
            raise InvalidTokensError(f"token ids must be integers, but are {token_ids.dtype}")
        outside = (token_ids < 0) | (token_ids >= self.config.vocab_size)
        if outside.any():
            place = tuple(outside.nonzero()[0].tolist())
            raise InvalidTokensError(
                f"token id {int(token_ids[place])} at position {place[-1]} is outside the vocabulary: "
                f"ids are 0 to {self.config.vocab_size - 1}"
            )
        if token_ids.shape[-1] > self.config.max_tokens:
            raise TooManyTokensError(token_ids.shape[-1], self.config.max_tokens)

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Logits of the next token at each position: int [n] or [B, n] -> float32 [..., n, vocab].

        Raises:
            InvalidTokensError, TooManyTokensError: the model can't read these tokens.
        """
        self.check_token_ids(token_ids)
        batch = token_ids.long().reshape(-1, token_ids.shape[-1]).to(self.device)
        streams = self._streams(batch, torch.zeros(len(batch), dtype=torch.long, device=self.device))
        blocks = zip(*(stream.split(HEAD_BLOCK_TOKENS, dim=1) for stream in streams), strict=True)
        logits = [self.logits(torch.cat(block, dim=-1)) for block in blocks]
        return torch.cat(logits, dim=1).view(*token_ids.shape, -1)

    def loss(self, token_ids: torch.Tensor, targets: torch.Tensor, start_positions: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy in nats a token, differentiable; memory doesn't grow with the number of layers.

        Args:
            token_ids: int64 [B, n].
            targets: int64 [B, n]; -100 is left out.
            start_positions: int64 [B], the absolute position of each row's first token.
        """
        stream1, stream2 = self._streams(token_ids, start_positions)
        parameters = [*self.final_norm.parameters(), *self.head.parameters()]
        return head_loss(stream1, stream2, targets, self.logits, parameters) / (targets != -100).sum()

    def embed(self, token_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """What both streams start as, not rounded to float16: int64 [...] and int64 [...], broadcast -> [..., d]."""
        embedded: torch.Tensor = self.embeddings(token_ids, positions)
        return embedded

    def logits(self, streams: torch.Tensor) -> torch.Tensor:
        """Both streams side by side, [..., 2 d] -> float32 [..., vocab]."""
        return linear(self.final_norm(streams), self.head.weight, self.head.bias).float()

    def _streams(self, token_ids: torch.Tensor, start_positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Both streams after the layers: [B, n] -> [B, n, d] each."""
        positions = start_positions.unsqueeze(1) + torch.arange(token_ids.shape[1], device=token_ids.device)
        seed, generator = None, None
        if self.training:  # inference must not touch the global random state; training is seeded by it
            seed = int(torch.randint(2**31, ()))
            generator = torch.Generator(token_ids.device).manual_seed(seed - 1)
        hidden = dropout(self.embed(token_ids, positions), self.config.hidden_dropout_prob, generator)
        return run_layers(self.reversible_layers, hidden, seed)
