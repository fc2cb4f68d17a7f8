"""What training computes in. Weights, gradients and the optimizer's state are float32 always."""

from contextlib import AbstractContextManager, nullcontext

import torch

from reformer_core.placement import DTYPES, cpu_multiplies_bfloat16


def choose_precision(precision: str, device: torch.device) -> torch.dtype:
    """The dtype that is named, or for "auto" the fastest that the device multiplies natively.

    That is bfloat16 where there are instructions for it; else float32 on CPUs and float16, with loss scaling, on CUDA.

    Raises:
        ValueError: float16 on a CPU, which is a hundred times slower there than float32.
    """
    if precision == "float16" and device.type == "cpu":
        raise ValueError("precision is 'float16', which is for CUDA; on a CPU choose 'float32', 'bfloat16' or 'auto'")
    if precision != "auto":
        return DTYPES[precision]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if cpu_multiplies_bfloat16() else torch.float32


def computing_in(precision: torch.dtype, device: torch.device) -> AbstractContextManager[object]:
    """Within it, matrix products are of that precision; sums, norms and losses stay float32."""
    if precision is torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype=precision)
