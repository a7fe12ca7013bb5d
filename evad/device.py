"""Device of a computation: its choice, its memory use, and settings that make the CPU faster."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import torch

PROCESS_STATUS = Path("/proc/self/status")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from malloc.h


def chosen_device(accelerator: str) -> torch.device:
    """Device of commands that run without a Trainer: CUDA if available and `trainer.accelerator` is not cpu."""
    return torch.device("cuda" if torch.cuda.is_available() and accelerator != "cpu" else "cpu")


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory in MiB since `reset_peak_memory`: allocated on a CUDA device, otherwise resident in this process.

    Returns:
        The peak; NaN on Windows, where Python's standard library cannot measure it.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if PROCESS_STATUS.is_file():  # ru_maxrss would include the parent process's memory before the fork
        lines = PROCESS_STATUS.read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 2**10
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def reset_peak_memory(device: torch.device) -> bool:
    """Restart the measurement of `peak_memory_mb`.

    Returns:
        True if the measurement restarted; if not (on a CPU without Linux), the peak is since the process started.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def keep_freed_memory() -> bool:
    """Make inference and training on the CPU faster: glibc reuses the memory of freed tensors.

    By default glibc returns the memory of every large tensor to the system and requests it again for the next tensor,
    which costs a page fault per page: 5 to 8 % of a forward pass of ViT-B on a virtual machine. Peak memory stays the
    same, but freed memory is not returned until the process ends. Call this before the first large tensor.

    Returns:
        Whether glibc accepted the settings; False with another C library.
    """
    library = c_library()
    if library is None:
        return False
    # Tensors below 1 GiB come from the heap; glibc before 2.35 accepts at most 32 MiB.
    mapped = any(library.mallopt(_M_MMAP_THRESHOLD, limit) for limit in (2**30, 2**25))
    return mapped and bool(library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


def release_freed_memory() -> None:
    """Return freed memory to the system, so that it does not count in the next job of this process."""
    library = c_library()
    if library is not None:
        library.malloc_trim(0)


def c_library() -> ctypes.CDLL | None:
    """glibc; None with another C library."""
    if sys.platform != "linux":
        return None
    try:
        library = ctypes.CDLL("libc.so.6")
    except OSError:
        return None
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
