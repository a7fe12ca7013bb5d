"""Triton kernel of the column sums; importing it imports Triton."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


def launch(query: Tensor, key: Tensor, lse: Tensor, row_weight: Tensor | None = None) -> Tensor:
    """Column sums (B, N), see `evad.models.kernels.column_sums`.

    The sums of each head are written apart and added afterwards: atomic additions would come in another order, so with
    other rounding, at every call. For the same reason the block sizes are fixed and not chosen by timing them.

    Args:
        query: (B, heads, M, d) bfloat16, float16 or float32; any strides.
        key: (B, heads, N, d) of the same type.
        lse: (B, heads, M).
        row_weight: (B, M), or None.
    """
    batch, heads, rows, dim = query.shape
    query, key = (x if x.stride(3) == 1 else x.contiguous() for x in (query, key))
    # The kernel computes 2^(s * log2(e) / sqrt(d) + bias); with the weight in there, too, it costs nothing per element.
    bias = lse.float() * -math.log2(math.e)
    if row_weight is not None:
        bias = bias + row_weight.float().log2().unsqueeze(1)  # 2^-inf = 0 where the weight is 0
    sums = torch.empty(batch, heads, key.shape[2], dtype=torch.float32, device=query.device)
    blocks = block_sizes(query.dtype)
    grid = (triton.cdiv(key.shape[2], blocks["BLOCK_N"]), batch * heads)
    with torch.cuda.device_of(query):
        column_sums_kernel[grid](
            query,
            key,
            bias.contiguous(),
            sums,
            *query.stride()[:3],
            *key.stride()[:3],
            heads,
            rows,
            key.shape[2],
            math.log2(math.e) * dim**-0.5,
            DIM=dim,
            BLOCK_D=max(triton.next_power_of_2(dim), 16),
            PRECISION=product_precision(query),
            **blocks,
        )
    return sums.sum(1)


def block_sizes(dtype: torch.dtype) -> dict[str, Any]:
    """Keys and queries per block, and how it is run.

    Compiled for an H100 and d = 64, half precision takes about 100 registers per thread and 40 KiB of shared memory, so
    that four blocks share a multiprocessor: the exponentials of one, which bound the kernel, hide the products of
    another. Float32 products without TF32 run on the ordinary units; larger blocks of them spill registers.
    """
    if dtype == torch.float32:
        return {"BLOCK_N": 128, "BLOCK_M": 32, "num_warps": 8, "num_stages": 2}
    return {"BLOCK_N": 128, "BLOCK_M": 64, "num_warps": 4, "num_stages": 3}


def product_precision(query: Tensor) -> str:
    """`tf32` where torch's own matrix products may round float32 inputs to it, otherwise `ieee`."""
    return "tf32" if query.is_cuda and torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


@triton.jit
def column_sums_kernel(
    query,
    key,
    bias,
    sums,
    query_batch,
    query_head,
    query_row,
    key_batch,
    key_head,
    key_row,
    heads,
    num_queries,
    num_keys,
    scale,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Sums of BLOCK_N keys in one head of one clip: the keys stay in registers, all queries pass by.

    Keys are the rows of the product, so that sums over queries need no exchange between threads.
    """
    batch_head = tl.program_id(1).to(tl.int64)
    batch, head = batch_head // heads, batch_head % heads
    query += batch * query_batch + head * query_head
    key += batch * key_batch + head * key_head
    bias += batch_head * num_queries
    sums += batch_head * num_keys

    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    channel = tl.arange(0, BLOCK_D)
    k_mask = column[:, None] < num_keys
    if BLOCK_D > DIM:
        k_mask = k_mask & (channel[None, :] < DIM)
    k = tl.load(key + column[:, None] * key_row + channel[None, :], mask=k_mask, other=0.0)
    total = tl.zeros((BLOCK_N,), dtype=tl.float32)
    for start in range(0, num_queries, BLOCK_M):
        row = start + tl.arange(0, BLOCK_M)
        q_mask = row[:, None] < num_queries
        if BLOCK_D > DIM:
            q_mask = q_mask & (channel[None, :] < DIM)
        q = tl.load(query + row[:, None] * query_row + channel[None, :], mask=q_mask, other=0.0)
        b = tl.load(bias + row, mask=row < num_queries, other=float("-inf"))  # rows behind the last one add 0
        logits = tl.dot(k, tl.trans(q), input_precision=PRECISION)  # (BLOCK_N, BLOCK_M)
        total += tl.sum(tl.exp2(logits * scale + b[None, :]), 1)
    tl.store(sums + column, total, mask=column < num_keys)
