"""Small tensors to the device and back, with one wait a decode step: for what comes back."""

from collections.abc import Sequence

import torch


def to_device(numbers: Sequence[int], device: torch.device) -> torch.Tensor:
    """int64 [n] on the device; a GPU is not waited for."""
    on_host = torch.tensor(numbers, dtype=torch.long)
    return on_host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else on_host.to(device)


def to_host(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """The tensors on the CPU: copied into pinned memory one behind the other, and waited for once."""
    if tensors[0].device.type != "cuda":
        return list(tensors)
    copies = [torch.empty_like(x, device="cpu", pin_memory=True) for x in tensors]
    for copy, x in zip(copies, tensors, strict=True):
        copy.copy_(x, non_blocking=True)
    torch.cuda.current_stream().synchronize()
    return copies
