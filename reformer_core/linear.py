"""Linear layers and norms, computed in formats that fit device and input, whatever their weights are stored in."""

import torch
from torch import nn

from reformer_core.placement import product_dtype


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x W^T + b: [..., in], [out, in] and [out] -> [..., out], in the format that it is computed in.

    That is the `product_dtype` of the weight. But a single row is multiplied by float16 weights as they are, on CPUs as
    well: their kernel for that adds in float32, and what it takes is the time to read the weights.

    A converted weight is not kept: a slice of tokens shares it, and in time it is little beside its product.
    """
    dtype = product_dtype(weight.dtype, weight.device)
    if dtype == weight.dtype or (weight.dtype == torch.float16 and _is_one_row(x)):
        return nn.functional.linear(x.to(weight.dtype), weight, bias)
    return nn.functional.linear(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))


def for_products(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """In the format that the device multiplies; a window's tokens at a time, so that little is held in it."""
    return tuple(x.to(product_dtype(x.dtype, x.device)) for x in tensors)


def unrounded(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x W^T, x not being rounded to the weight's format before: float32 [..., in], float16 [out, in] -> [..., out].

    Where the device multiplies float16, what rounding takes from x is multiplied, too. Elsewhere the weight is
    converted: even for a single row that is less than two products.
    """
    if product_dtype(weight.dtype, weight.device) == x.dtype:
        return nn.functional.linear(x, weight.to(x.dtype)).to(weight.dtype)
    high = x.to(weight.dtype)
    low = (x - high).to(weight.dtype)
    return nn.functional.linear(high, weight) + nn.functional.linear(low, weight)


class Linear(nn.Linear):
    """torch's layer, computed by `linear`; what comes out is in the weight's format, or in autocast's."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out]."""
        weight = self.weight
        if product_dtype(weight.dtype, weight.device) == weight.dtype:  # mostly; it counts when a step decodes
            return nn.functional.linear(x, weight, self.bias)
        return linear(x, weight, self.bias).to(x.dtype)


def _is_one_row(x: torch.Tensor) -> bool:
    return x.numel() == x.shape[-1]


class LayerNorm(nn.LayerNorm):
    """torch's layer; of float32 numbers it gives float32 ones, also if its own are float16."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., d] -> [..., d]."""
        if x.dtype == self.weight.dtype or self.weight.dtype != torch.float16:
            return super().forward(x)
        return nn.functional.layer_norm(x, self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)
