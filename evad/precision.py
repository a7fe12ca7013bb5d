"""Precision of a computation, as named by `trainer.precision`, for commands that run without a Trainer."""

from __future__ import annotations

import logging

import torch

from evad.device import keep_freed_memory

log = logging.getLogger(__name__)

_AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
_SPELLINGS = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}
PRECISIONS = ("32-true", *_AUTOCAST)


def precision_name(precision: str | int) -> str:
    """The full name of a precision: `32-true` for 32, `bf16-mixed` for bf16.

    Raises:
        ValueError: if only training supports this precision (through Lightning).
    """
    name = _SPELLINGS.get(str(precision), str(precision))
    if name not in PRECISIONS:
        raise ValueError(f"precision {precision} is only for training: choose one of {', '.join(PRECISIONS)}")
    return name


def autocast(precision: str | int, device_type: str) -> torch.autocast:
    """Context in which matrix products have this precision, like in Lightning's Trainer.

    Args:
        precision: A value of `trainer.precision`.
        device_type: cpu or cuda.

    Raises:
        ValueError: see `precision_name`.
    """
    dtype = _AUTOCAST.get(precision_name(precision))
    return torch.autocast(device_type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


def prepare(device: torch.device, precision: str | int, matmul_precision: str) -> None:
    """Configure the process for fast computation on a device; call this before the first large tensor.

    Args:
        device: Where the detector will run.
        precision: A value of `trainer.precision`; a warning is logged if the processor has to emulate bfloat16.
        matmul_precision: Precision of float32 products on a GPU: `high` uses TF32, `highest` does not.
    """
    torch.set_float32_matmul_precision(matmul_precision)
    if device.type != "cpu":
        return
    keep_freed_memory()
    if "bf16" in str(precision) and torch.backends.cpu.get_cpu_capability() == "AVX2":
        log.warning(
            "precision %s on a processor without AVX-512: its bfloat16 matrix products are emulated and may take "
            "hundreds of times as long as float32; use precision 32-true here",
            precision,
        )
