"""Where the model runs and in which number format: chosen here and nowhere else."""

import os
from functools import lru_cache
from pathlib import Path

import torch

from reformer_core.errors import InvalidParameterError

DEVICE_TYPES = ("cpu", "cuda")
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}

# Instruction sets that multiply bfloat16, as `torch.cpu.get_capabilities` names them: two of x86, one of ARM.
# `torch.ops.mkldnn._is_mkldnn_bf16_supported` is no substitute: it is true as well where AVX-512 only emulates it.
NATIVE_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")

CGROUP = Path("/sys/fs/cgroup")


def choose_device(device: str | torch.device = "auto") -> torch.device:
    """The device: as named, or for "auto" the GPU if there is one, else the CPU.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:1" ….

    Raises:
        InvalidParameterError: there is no such device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise InvalidParameterError("device", f"must be auto, cpu, cuda or cuda:<index>, but is {device!r}") from error
    if chosen.type not in DEVICE_TYPES:
        raise InvalidParameterError("device", f"must be on one of {', '.join(DEVICE_TYPES)}, but is {device!r}")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise InvalidParameterError("device", f"is {device!r}, but torch finds {found} CUDA devices on this machine")
    return chosen


def choose_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The number format: as named, or for "auto" the fastest on the device that loses little.

    That is float16 on CUDA; on a CPU bfloat16 where it multiplies that natively, else float32 (float16 is a hundred
    times slower there).

    Args:
        dtype: "auto", "float16", "bfloat16", "float32", or torch's own name of one of them.
        device: where the model will run.

    Raises:
        InvalidParameterError: another format.
    """
    if dtype == "auto":
        if device.type == "cuda":
            return torch.float16
        return torch.bfloat16 if cpu_multiplies_bfloat16() else torch.float32
    chosen = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if chosen is None or chosen not in DTYPES.values():
        raise InvalidParameterError("dtype", f"must be auto, {', '.join(DTYPES)}, but is {dtype}")
    return chosen


def product_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The format to compute products in of what is stored as `dtype`: the same, but on CPUs that would crawl.

    That is float32 for float16 on any CPU, and for bfloat16 where the CPU doesn't multiply it natively: without such
    instructions products are a hundred times slower than in float32. Weights, pages and streams stay as they are
    stored; only what is multiplied is converted, a block at a time.
    """
    if dtype.itemsize == 2 and device.type == "cpu" and not (dtype == torch.bfloat16 and cpu_multiplies_bfloat16()):
        return torch.float32
    return dtype


def multiplies_bfloat16(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether it is a CPU that computes products of what is stored as `dtype` in bfloat16."""
    return device.type == "cpu" and product_dtype(dtype, device) == torch.bfloat16


def second_stream_dtype(dtype: torch.dtype) -> torch.dtype:
    """The format of the second residual stream in a model that is stored as `dtype`: float32 for float16.

    Attention reads that stream, and some of its numbers get large: rounding them was most of the error of float16's
    logits.
    """
    return torch.float32 if dtype == torch.float16 else dtype


@lru_cache  # asked for every product
def cpu_multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions that multiply bfloat16."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in NATIVE_BFLOAT16)


def available_memory(device: torch.device) -> int:
    """Bytes that are free on the device now; for the CPU, of this machine's memory, as kernel and cgroup tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        values = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = int(values["MemAvailable"].split()[0]) * 1024
    limit, used = _cgroup_limit(), CGROUP / "memory.current"
    if limit is not None and used.exists():
        free = min(free, max(limit - int(used.read_text()), 0))
    return free


def total_memory(device: torch.device) -> int:
    """Bytes that the device has, or for the CPU: that this process's cgroup may use, and the machine has."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)  # known: the device itself isn't asked
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = _cgroup_limit()
    return total if limit is None else min(total, limit)


def _cgroup_limit() -> int | None:
    limit = CGROUP / "memory.max"
    if not limit.exists() or (most := limit.read_text().strip()) == "max":
        return None
    return int(most)
