"""For autograd functions that call autograd themselves, a block of tokens at a time: gradients and autocast."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn


class ParameterGradients:
    """Gradients of parameters, added up over blocks of tokens."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = parameters
        self.all: list[torch.Tensor | None] = [None] * len(parameters)
        """One a parameter; None for those that are frozen, or that nothing depended on."""

    def add(
        self, ys: Sequence[torch.Tensor], x: torch.Tensor, grad_ys: Sequence[torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Backward from some tensors to x and the parameters; returns the gradient of x, in its shape.

        Args:
            grad_ys: in the shapes of ys; None if these are scalars whose gradient is 1.
        """
        trainable = [index for index, parameter in enumerate(self._parameters) if parameter.requires_grad]
        inputs = [x, *(self._parameters[index] for index in trainable)]
        if grad_ys is not None:
            grad_ys = [grad.to(y.dtype) for y, grad in zip(ys, grad_ys, strict=True)]
        grad_x, *grads = torch.autograd.grad(ys, inputs, grad_ys, allow_unused=True)
        for index, grad in zip(trainable, grads, strict=True):
            before = self.all[index]
            if before is None:
                self.all[index] = grad
            elif grad is not None:
                before.add_(grad)
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
