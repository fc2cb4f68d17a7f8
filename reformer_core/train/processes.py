"""The processes that train one model together, as torchrun starts them. Without torchrun there is one.

Each has the whole model and learns from its own part of every batch; gradients are added up.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

_PATIENCE = timedelta(days=1)  # the others wait while the first one reads validation data


@dataclass(frozen=True)
class Processes:
    """This process among its equals. Methods are called by all of them; they raise ConnectionError if one has ended."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    def add_up(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replaces tensors of one dtype and device by the sums over all processes, in one exchange."""
        if self.count == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with _others_needed():
            dist.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def largest(self, value: float) -> float:
        """The largest of all processes' values; also waits for all."""
        if self.count == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64)
        with _others_needed():
            dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return tensor.item()


@contextmanager
def joined_processes() -> Iterator[Processes]:
    """Joins those that torchrun has started with this one, if it has; leaves them at the end."""
    if not dist.is_torchelastic_launched():
        yield Processes()
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=_PATIENCE)
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
        with _others_needed():  # what goes wrong with one that leaves would end the first one while it still saves
            dist.barrier()
    finally:
        dist.destroy_process_group()


def own_device(device: torch.device) -> torch.device:
    """Of several processes on a machine, each takes a GPU of its own."""
    if device.type == "cuda" and device.index is None and "LOCAL_RANK" in os.environ:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return device


@contextmanager
def _others_needed() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise ConnectionError("another process of this training has ended; its own message says why") from error
