"""The feed-forward block, computed a block of tokens at a time: nothing of size tokens × inner width is ever held."""

import torch
from torch import nn

from reformer_core.config import ReformerConfig
from reformer_core.dropout import dropout
from reformer_core.linear import Linear

BLOCK_TOKENS = 4096  # large enough for full matrix products, small beside the streams

ACTIVATIONS: dict[str, nn.Module] = {
    "relu": nn.ReLU(),
    "gelu": nn.GELU(),
    "gelu_new": nn.GELU(approximate="tanh"),
    "gelu_pytorch_tanh": nn.GELU(approximate="tanh"),
    "silu": nn.SiLU(),
    "swish": nn.SiLU(),
    "tanh": nn.Tanh(),
    "sigmoid": nn.Sigmoid(),
}


class FeedForward(nn.Module):
    """Layer norm, linear, activation, linear."""

    def __init__(self, config: ReformerConfig) -> None:
        super().__init__()
        self.dropout_prob = config.hidden_dropout_prob
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.inner = Linear(config.hidden_size, config.feed_forward_size)
        self.outer = Linear(config.feed_forward_size, config.hidden_size)
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, hidden: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """[..., d] -> [..., d], without the residual."""
        inner = dropout(self.inner(self.norm(hidden)), self.dropout_prob, generator)
        return dropout(self.outer(self.activation(inner)), self.dropout_prob, generator)
