"""Dropout whose randomness is an argument: the backward pass repeats it exactly by seeding the generator again."""

import torch


def dropout(x: torch.Tensor, probability: float, generator: torch.Generator | None) -> torch.Tensor:
    """Zeroes elements with the probability and scales up the rest; without a generator (inference) returns x."""
    if generator is None or probability == 0:
        return x
    keep = torch.rand(x.shape, generator=generator, device=x.device) >= probability
    return x * keep / (1 - probability)
