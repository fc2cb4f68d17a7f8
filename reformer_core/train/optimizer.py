"""AdamW and its learning rate."""

import math

import torch
from torch import nn

BETAS = (0.9, 0.98)  # a short memory of the squared gradients: runs are of thousands of steps, not of millions


def build_optimizer(model: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW with decoupled decay of the linear layers' matrices only."""
    decayed = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    decayed_ids = set(map(id, decayed))
    others = [parameter for parameter in model.parameters() if id(parameter) not in decayed_ids]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=BETAS, fused=True)


def learning_rate_share(done: float, warmup: float) -> float:
    """Share of the peak learning rate after the share `done` of the budget: up linearly, then down along a cosine."""
    if done < warmup:
        return done / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (done - warmup) / (1 - warmup))))
