"""Muon (Jordan et al. 2024, scaled as in arXiv 2502.16982): momentum, made orthogonal, for the layers' matrices.

torch.optim.Muon always orthogonalises in bfloat16, which most CPUs multiply fifty times slower than float32. This one
does it in the parameters' own dtype, and all matrices of one shape in one product.
"""

from collections.abc import Callable, Iterable

import torch
from torch import nn

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_NEWTON_SCHULZ_STEPS = 5


class Muon(torch.optim.Optimizer):
    """For matrices only. The updates' size is AdamW's, so that both can share one learning rate and weight decay."""

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.1, momentum: float = 0.95
    ) -> None:
        """Args:
        parameters: matrices [rows, columns].
        lr: learning rate.
        weight_decay: decoupled.
        momentum: of the running mean of gradients; Nesterov's.
        """
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of all parameters that have a gradient."""
        assert closure is None, "Muon looks at gradients, not at the loss"
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in by_shape.items():
                updates = orthogonalised(torch.stack([self._momentum(each, group["momentum"]) for each in parameters]))
                size = group["lr"] * 0.2 * max(shape) ** 0.5
                for parameter, update in zip(parameters, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-size)

    def _momentum(self, parameter: nn.Parameter, momentum: float) -> torch.Tensor:
        state, grad = self.state[parameter], parameter.grad
        assert grad is not None
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        mean: torch.Tensor = state["momentum"].lerp_(grad, 1 - momentum)
        return grad.lerp(mean, momentum)


def orthogonalised(matrices: torch.Tensor) -> torch.Tensor:
    """[k, rows, columns] -> the same with all singular values near 1 (0.7 to 1.2), by Newton and Schulz's iteration."""
    a, b, c = _NEWTON_SCHULZ
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(_NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: torch.Tensor = x.mT if tall else x
    return result
