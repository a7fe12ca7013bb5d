"""How much attention every key receives, computed from the log-sum-exp that a fused attention leaves behind.

A fused attention never holds its matrix of probabilities, but it knows lse_i = log sum_j exp(q_i . k_j / sqrt(d)) of
every query i. With it, each probability takes one product and one exponential, in any order:

    sum_i w_i * softmax_j(q_i . k_j / sqrt(d)) = sum_i w_i * exp(q_i . k_j / sqrt(d) - lse_i)

So the column sums that pruning needs (Eq. 1) take no softmax, no second pass over the rows and no memory beyond their
own. On CUDA a Triton kernel adds them up; elsewhere the same sums are taken a few rows at a time.
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from evad.models.attention import received_attention

HALF = (torch.bfloat16, torch.float16)
# Channels per head up to which the Triton kernel fits into registers and the shared memory of every GPU it runs on.
TRITON_DIM = {torch.bfloat16: 128, torch.float16: 128, torch.float32: 64}


def attention_with_lse(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor | None]:
    """Attention output and, if the device's fused attention offers it, the log-sum-exp of every query's logits.

    Gradients flow through the output, none through the log-sum-exp.

    Args:
        query: (B, heads, M, d).
        key: (B, heads, N, d).
        value: (B, heads, N, d).

    Returns:
        Output (B, heads, M, d); log-sum-exp (B, heads, M), float32, natural logarithm. None instead of it where there
        is no such fused attention (CPU, float64, see `fused_attention`) and in exported programs, which must run on
        any device.
    """
    name = fused_attention(query, key)
    if name == "flash":
        output, lse = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[:2]
        return output, lse
    if name == "efficient":
        output, lse = torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, None, True)[:2]
        return output, lse[:, :, : query.shape[2]]  # it is padded with infinity to a multiple of 32 rows
    return F.scaled_dot_product_attention(query, key, value), None


def fused_attention(query: Tensor, key: Tensor) -> Literal["flash", "efficient"] | None:
    """Which fused attention takes these queries and keys and returns their log-sum-exp."""
    if query.device.type != "cuda" or exporting() or not query.shape[2] or not key.shape[2]:
        return None
    dim, dtype = query.shape[3], query.dtype
    if dtype in HALF and dim % 8 == 0 and dim <= 256 and compute_capability(query.device) >= (8, 0):
        return "flash"
    if (dtype == torch.float32 and dim % 4 == 0) or (dtype == torch.float16 and dim % 8 == 0):
        return "efficient"
    return None


def exporting() -> bool:
    """Whether `torch.export` is tracing. torch 2.9 says so of `torch.compile`, too, which runs under Dynamo."""
    return torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling()


@torch.compiler.assume_constant_result
def compute_capability(device: torch.device) -> tuple[int, int]:
    """A GPU's generation, (8, 0) being the first that multiplies bfloat16 matrices."""
    return torch.cuda.get_device_capability(device)


@torch.no_grad()
def column_sums(query: Tensor, key: Tensor, lse: Tensor | None = None, row_weight: Tensor | None = None) -> Tensor:
    """Attention that every key receives, summed over heads and queries, for the importance of Eq. 1.

    S_j = sum_{h, i} w_i * softmax_j(q_i . k_j / sqrt(d)). Products and sums are taken in float32, or wider if the
    inputs are, also under autocast, so that the relative error stays below 1e-5 for bfloat16 inputs, too. Where torch
    may round matrix products to TF32, these may be rounded as well (1e-3). Nothing of size M x N is ever held. No
    gradient flows.

    The device decides how: a Triton kernel on CUDA (compute capability 8.0 or newer, up to 128 channels per head, 64 in
    float32), otherwise, and in exported programs, plain operations on a few rows at a time.

    Args:
        query: (B, heads, M, d).
        key: (B, heads, N, d).
        lse: (B, heads, M) log-sum-exp from `attention_with_lse`; None: it is computed here, by rows.
        row_weight: (B, M) weight of each query, at least 0; None: 1.

    Returns:
        (B, N) sums, float32 or the inputs' type if wider.
    """
    query, key = query.detach(), key.detach()
    lse = None if lse is None else lse.detach()
    if exporting():  # an operator of this package could not be loaded without it
        return column_sums_by_rows(query, key, row_weight)
    return torch.ops.evad.column_sums(query, key, lse, row_weight)


# An operator of its own is opaque to torch.compile: no graph break, and no program of unrolled rows.
@torch.library.custom_op(
    "evad::column_sums",
    mutates_args=(),
    schema="(Tensor query, Tensor key, Tensor? lse, Tensor? row_weight) -> Tensor",
)
def _column_sums(query: Tensor, key: Tensor, lse: Tensor | None, row_weight: Tensor | None) -> Tensor:
    return column_sums_by_rows(query, key, row_weight)


@_column_sums.register_kernel("cuda")
def _column_sums_cuda(query: Tensor, key: Tensor, lse: Tensor | None, row_weight: Tensor | None) -> Tensor:
    fits = query.shape[3] <= TRITON_DIM.get(query.dtype, 0)
    if lse is not None and fits and triton_works(query.device, query.dtype):
        return column_sums_by_triton(query, key, lse, row_weight)
    return column_sums_by_rows(query, key, row_weight)


@_column_sums.register_fake
def _column_sums_fake(query: Tensor, key: Tensor, lse: Tensor | None, row_weight: Tensor | None) -> Tensor:
    return query.new_empty(query.shape[0], key.shape[2], dtype=torch.promote_types(query.dtype, torch.float32))


@register_flop_formula(torch.ops.evad.column_sums)
def _column_sums_flops(query: Any, key: Any, *args: Any, **kwargs: Any) -> int:
    batch, heads, rows, dim = query
    return 2 * batch * heads * rows * key[2] * dim


def column_sums_by_rows(query: Tensor, key: Tensor, row_weight: Tensor | None = None) -> Tensor:
    """As `column_sums`, in plain operations on a few query rows at a time, on any device and in any type."""
    return received_attention(query, key, row_weight=row_weight)[0]


def column_sums_by_triton(query: Tensor, key: Tensor, lse: Tensor, row_weight: Tensor | None = None) -> Tensor:
    """As `column_sums`, by the Triton kernel: bfloat16, float16 or float32 inputs, float32 sums."""
    from evad.models.kernels import column_sums_triton  # Triton is imported only where it is used

    return column_sums_triton.launch(query, key, lse, row_weight)


@functools.cache
def triton_works(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the Triton kernel compiles on a GPU and gives the right sums for inputs of a type.

    Its log-sum-exp comes from `attention_with_lse`, so that is checked as well. A warning says what failed.

    Compiling needs a C compiler and Python's headers, which slim images lack.
    """
    if importlib.util.find_spec("triton") is None or compute_capability(device) < (8, 0):
        return False
    generator = torch.Generator(device).manual_seed(0)
    query, key = torch.randn(2, 1, 2, 150, 64, generator=generator, device=device).to(dtype)
    try:
        lse = attention_with_lse(query, key, key)[1]
        assert lse is not None
        difference = (column_sums_by_triton(query, key, lse) / column_sums_by_rows(query, key) - 1).abs().max().item()
    except Exception as error:
        reason = f"{error!r}. It needs a C compiler (gcc) and Python's headers (python3-dev)"
    else:
        if difference < 1e-2:
            return True
        reason = f"its sums are off by {difference:.1e}"
    warnings.warn(
        f"Triton does not work here, so pruning scores are computed several times more slowly: {reason}", stacklevel=2
    )
    return False
