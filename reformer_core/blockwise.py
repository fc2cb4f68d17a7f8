"""For autograd functions that call autograd themselves, a block of tokens at a time: gradients and autocast."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn


class ParameterGradients:
    """Gradients of parameters, added up over blocks of tokens; allocated at the beginning."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._parameters = list(parameters)
        self.all = [torch.zeros_like(x) if x.requires_grad else None for x in self._parameters]
        """One a parameter; None for those that are frozen."""

    def add(
        self, ys: Sequence[torch.Tensor], x: torch.Tensor, grad_ys: Sequence[torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Backward from some tensors to x and the parameters; returns the gradient of x, in its shape.

        Args:
            grad_ys: in the shapes of ys; None if these are scalars whose gradient is 1.
        """
        sums = [
            (parameter, grad) for parameter, grad in zip(self._parameters, self.all, strict=True) if grad is not None
        ]
        if grad_ys is not None:
            grad_ys = [grad.to(y.dtype) for y, grad in zip(ys, grad_ys, strict=True)]
        inputs = [x, *(parameter for parameter, _ in sums)]
        grad_x, *more = torch.autograd.grad(ys, inputs, grad_ys, allow_unused=True)
        for (_, grad), grad_more in zip(sums, more, strict=True):
            if grad_more is not None:
                grad.add_(grad_more)
        return grad_x


@dataclass(frozen=True)
class Autocast:
    """Whether operations on a device are cast to a smaller dtype, and to which."""

    device: str
    dtype: torch.dtype
    enabled: bool

    @classmethod
    def current(cls, device: torch.device) -> "Autocast":
        """As it is now; off for a device that has no autocast, e.g. meta."""
        if not torch.amp.is_autocast_available(device.type):
            return cls("cpu", torch.bfloat16, enabled=False)
        return cls(device.type, torch.get_autocast_dtype(device.type), torch.is_autocast_enabled(device.type))

    def again(self) -> torch.autocast:
        """As it was. Without its cache: weights that were cast where nothing is differentiated have no gradient."""
        return torch.autocast(self.device, dtype=self.dtype, enabled=self.enabled, cache_enabled=False)
