"""Large tensors that are freed go back to the system, instead of leaving gaps in the C library's heap.

glibc raises the size from which a block is mapped by itself as soon as one is freed, up to 32 MB. From then on most
tensors of a training step lie in the heap, and what outlives them keeps their memory from being used again: the deeper
the model, the more of it. A fixed size costs next to no time.
"""

import ctypes
import os
import sys

MAPPED_BYTES = 4 << 20  # smaller ones cost more time than they save memory
_M_MMAP_THRESHOLD = -3  # of malloc.h


def map_large_tensors() -> None:
    """Fixes the size for this process. Does nothing without glibc, or if the user has set MALLOC_MMAP_THRESHOLD_."""
    if sys.platform == "linux" and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:  # musl has none
            mallopt(_M_MMAP_THRESHOLD, MAPPED_BYTES)
