"""Which optimizer updates which parameters."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from reformer_core.model import ReformerModel
from reformer_core.train.muon import Muon
from reformer_core.train.settings import OptimizerSettings

BETAS = (0.9, 0.98)  # a short memory of the squared gradients: runs are of thousands of steps, not of millions


def build_optimizers(model: ReformerModel, settings: OptimizerSettings) -> list[torch.optim.Optimizer]:
    """AdamW for everything; or Muon for the matrices of the layers and AdamW for all else.

    Weight decay is decoupled, and of the linear layers' matrices only. One learning rate is right for both. Frozen
    parameters are marked as such, and left out.

    Raises:
        ValueError: a name of `settings.freeze` begins none of the model's parameters' names; or nothing is left.
    """
    _freeze(model, settings.freeze)
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    matrices = {id(parameter) for module in linears for parameter in module.parameters() if parameter.dim() == 2}
    hidden = {id(parameter) for parameter in model.layers.parameters()}
    by_muon, decayed, others = [], [], []
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) not in matrices:
            others.append(parameter)
        elif settings.kind == "muon" and id(parameter) in hidden:
            by_muon.append(parameter)
        else:
            decayed.append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=settings.learning_rate, betas=BETAS, fused=True)
    ]
    if by_muon:
        optimizers.append(Muon(by_muon, settings.learning_rate, settings.weight_decay))
    return optimizers


def _freeze(model: ReformerModel, prefixes: Sequence[str]) -> None:
    # A weight that is written in another way while it is trained (`distances`) has its own name all the same.
    parameters = [
        (re.sub(r"parametrizations\.(\w+)\.original\d*$", r"\1", name), value)
        for name, value in model.named_parameters()
    ]
    for prefix in prefixes:
        frozen = [value for name, value in parameters if f"{name}.".startswith(f"{prefix}.")]
        if not frozen:
            parts = ", ".join(sorted({name.rsplit(".", maxsplit=1)[0] for name, _ in parameters}))
            raise ValueError(f"optimizer.freeze names {prefix!r}, but no parameter begins with it; there are {parts}")
        for parameter in frozen:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"optimizer.freeze leaves nothing to train: it names {', '.join(prefixes)}; name fewer parts")
