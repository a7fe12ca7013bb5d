"""Settings of the process that make the detector run well on a CPU."""

from __future__ import annotations

import ctypes
import sys

# Of malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Let the C library keep the memory of freed tensors for the next ones instead of giving it back at once.

    By default glibc maps every large tensor anew, and each of its pages costs a fault when first written: 5 to 8 % of a
    forward pass of ViT-B on a virtual machine. The peak of the memory in use stays the same, but it is not returned
    before the process ends. Call it before the first large tensor, where the detector runs on the CPU.

    Returns:
        Whether the C library took the settings; False where it is not glibc.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
