"""The device a program runs on: its choice, its memory, and what makes it run well."""

from __future__ import annotations

import ctypes
import resource
import sys
from pathlib import Path

import torch

PROCESS_STATUS = Path("/proc/self/status")


def peak_memory_mb(device: torch.device) -> float:
    """Largest memory since `reset_peak_memory`, in MiB: allocated on a CUDA device, else resident in the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if PROCESS_STATUS.is_file():  # ru_maxrss also counts the parent's memory before the start of this program
        return next(int(line.split()[1]) for line in PROCESS_STATUS.open() if line.startswith("VmHWM:")) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def reset_peak_memory(device: torch.device) -> bool:
    """Measure from now on; False where a process cannot (anything but Linux), whose peak is that since its start."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


# Of malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def chosen_device(accelerator: str) -> torch.device:
    """What commands without a Trainer compute on: CUDA where there is any, unless `trainer.accelerator` is cpu."""
    return torch.device("cuda" if torch.cuda.is_available() and accelerator != "cpu" else "cpu")


def keep_freed_memory() -> bool:
    """Let the C library keep the memory of freed tensors for the next ones instead of giving it back at once.

    By default glibc maps every large tensor anew, and each of its pages costs a fault when first written: 5 to 8 % of a
    forward pass of ViT-B on a virtual machine. The peak of the memory in use stays the same, but it is not returned
    before the process ends. Call it before the first large tensor, where the detector runs on the CPU.

    Returns:
        Whether the C library took the settings; False where it is not glibc.
    """
    library = c_library()
    if library is None:
        return False
    # Tensors below 1 GiB come from the heap; before version 2.35 glibc accepts 32 MiB at the most.
    mapped = any(library.mallopt(_M_MMAP_THRESHOLD, limit) for limit in (2**30, 2**25))
    return mapped and bool(library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


def release_freed_memory() -> None:
    """Give kept memory back, so that it does not count as the next job's."""
    library = c_library()
    if library is not None:
        library.malloc_trim(0)


def c_library() -> ctypes.CDLL | None:
    """glibc, or None where the C library is another."""
    if sys.platform != "linux":
        return None
    try:
        library = ctypes.CDLL("libc.so.6")
    except OSError:
        return None
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
