"""Ctrl-C and SIGTERM ask a run to stop between two steps."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_on_signals(*, second_ends: bool = True) -> Iterator[Callable[[], int | None]]:
    """While it is open, gives a function that says which signal came, if one did. Main thread only.

    Args:
        second_ends: a second signal ends the process at once. Not under torchrun, which passes on the signals that its
            processes get from the terminal as well.
    """
    received: list[int] = []
    previous = {number: signal.getsignal(number) for number in _SIGNALS}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if second_ends:
            restore()

    for number in _SIGNALS:
        signal.signal(number, receive)
    try:
        yield lambda: received[0] if received else None
    finally:
        restore()
