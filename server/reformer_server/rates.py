"""How fast this machine multiplies and copies: what `reformer doctor` measures, in some seconds."""

import time
from collections.abc import Callable

import torch

PRODUCT_SIZE = {"cpu": 512, "cuda": 4096}  # a product of two square matrices this wide
COPY_BYTES = 64 * 2**20
LEAST_SECONDS, MOST_RUNS = 0.2, 200


def product_flops(dtype: torch.dtype, device: torch.device) -> float:
    """Floating-point operations a second of a matrix product in this format."""
    size = PRODUCT_SIZE[device.type]
    a, b = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
    return 2 * size**3 / _seconds(lambda: torch.mm(a, b), device)


def copy_bytes_per_second(source: torch.device, target: torch.device) -> float:
    """Bytes a second of copying a tensor; between host and GPU, from or to pinned memory."""
    pinned = source.type != target.type
    x = torch.ones(COPY_BYTES, dtype=torch.uint8, device=source, pin_memory=pinned and source.type == "cpu")
    y = torch.empty(COPY_BYTES, dtype=torch.uint8, device=target, pin_memory=pinned and target.type == "cpu")
    gpu = source if source.type == "cuda" else target
    return COPY_BYTES / _seconds(lambda: y.copy_(x, non_blocking=pinned), gpu)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """The least that one run took, of as many as fit into LEAST_SECONDS, two at least."""

    def run() -> float:
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    run()  # once to warm up
    seconds = [run()]
    while sum(seconds) < LEAST_SECONDS and len(seconds) < MOST_RUNS:
        seconds.append(run())
    return min(seconds)
