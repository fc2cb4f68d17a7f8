"""The program `reformer`, with faults that a test calls up while it runs.

    python faulty.py FAULT[,FAULT ...] serve ...

Each SIGUSR1 arms the next of these faults, and says so on stdout: it happens once, where it may happen next.
"""

import signal
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

from reformer_client.cli import main


def engine_dies() -> None:
    raise RuntimeError("the device is gone")


def allocation_fails() -> None:
    """As it really does: what is said comes from torch."""
    import torch

    torch.empty(1 << 60, dtype=torch.uint8)


def python_allocation_fails() -> None:
    bytearray(1 << 60)


FAULTS: dict[str, tuple[str, str, Callable[[], None]]] = {
    "engine": ("reformer_core.engine:Engine", "step", engine_dies),
    "upload": ("reformer_server.uploads:Upload", "append", python_allocation_fails),
    "encode": ("reformer_server.content:Encoder", "_encode", python_allocation_fails),
    "read": ("reformer_core.lsh_pass", "attend_slots", allocation_fails),
    "extend": ("reformer_core.extend", "extend_slice", allocation_fails),
    "sample": ("reformer_core.decoding", "sample", allocation_fails),
    "restore": ("reformer_core.pages:PagePool", "write_raw", allocation_fails),
    "decode": ("reformer_core.decode_graphs:DecodeSteps", "take", allocation_fails),
}
"""Where each happens, in which function, and what."""


class Trap:
    """Waits in front of functions until it is armed for one of them."""

    def __init__(self, faults: Iterator[str]) -> None:
        self._faults, self._armed = faults, ""

    def arm(self, *_: object) -> None:
        self._armed = next(self._faults)
        print(self._armed, flush=True)

    def lay(self, fault: str) -> None:
        place, name, happens = FAULTS[fault]
        module, _, cls = place.partition(":")
        owner: Any = getattr(import_module(module), cls) if cls else import_module(module)
        function = getattr(owner, name)

        def trapped(*args: Any, **kwargs: Any) -> Any:
            if self._armed == fault:
                self._armed = ""
                happens()
            return function(*args, **kwargs)

        setattr(owner, name, trapped)


if __name__ == "__main__":
    faults = sys.argv.pop(1).split(",")
    trap = Trap(iter(faults))
    for fault in set(faults):
        trap.lay(fault)
    signal.signal(signal.SIGUSR1, trap.arm)
    main()
