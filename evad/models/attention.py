"""Pre-norm transformer layers shared by the encoder and the context refinement decoder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import timm.layers
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DropPath(timm.layers.DropPath):
    """timm's DropPath, not compiled: blocks with different probabilities could not share their compiled code."""

    forward = torch.compiler.disable(timm.layers.DropPath.forward)


class Attention(nn.Module):
    """Multi-head self-attention with a bias on queries and values, but not on keys.

    Args:
        dim: Channels C.
        num_heads: Heads; C must be divisible by it.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"width {dim} is not divisible by {num_heads} attention heads")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.proj = nn.Linear(dim, dim)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (B, N, C) -> queries, keys and values, each (B, heads, N, C / heads)."""
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias).unflatten(2, (3, self.num_heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # (B, N, 3, heads, d) -> (3, B, heads, N, d)
        return query, key, value

    def project_last(self, x: Tensor, num_queries: int) -> tuple[Tensor, Tensor, Tensor]:
        """Like `project`, but computes queries of the last `num_queries` tokens only."""
        dim = self.q_bias.shape[0]
        query = F.linear(x[:, -num_queries:], self.qkv.weight[:dim], self.q_bias)
        bias = torch.cat([torch.zeros_like(self.v_bias), self.v_bias])
        key_value = F.linear(x, self.qkv.weight[dim:], bias).unflatten(2, (2, self.num_heads, -1))
        key, value = key_value.permute(2, 0, 3, 1, 4)  # (B, N, 2, heads, d) -> (2, B, heads, N, d)
        return query.unflatten(2, (self.num_heads, -1)).transpose(1, 2), key, value

    def merge(self, attended: Tensor) -> Tensor:
        """Join the heads and project: (B, heads, N, d) -> (B, N, C)."""
        return self.proj(attended.transpose(1, 2).flatten(2))


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention output (B, heads, M, d) of M queries over N keys and values.

    Uses the fused kernel, except for bfloat16 inference on a CPU: there the kernel is as slow as in float32, and
    plain matrix products are faster.

    Args:
        query: (B, heads, M, d).
        key, value: (B, heads, N, d).
        mask: (B, N) bool, True at keys that may be attended to, or numbers added to the logits of each key. None
            selects the faster kernels without a mask.
    """
    if mask is not None:
        mask = mask if mask.dtype == torch.bool else mask.to(query.dtype)
        return F.scaled_dot_product_attention(query, key, value, mask[:, None, None])
    if query.device.type == "cpu" and query.dtype == torch.bfloat16 and not torch.is_grad_enabled():
        return attention_by_rows(query, key, value)
    return F.scaled_dot_product_attention(query, key, value)


@torch.compiler.disable
def attention_by_rows(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention output (B, heads, M, d) from plain matrix products in the dtype of the inputs."""
    out, flat_value = torch.empty_like(query).flatten(0, 1), value.flatten(0, 1).contiguous()
    with without_autocast(query.device.type):
        for heads, rows, probability in probability_rows(query, key, query.dtype):
            out[heads, rows] = torch.bmm(probability, flat_value[heads])
    return out.view_as(query)


@torch.compiler.disable
def received_attention(
    query: Tensor, key: Tensor, value: Tensor | None = None, row_weight: Tensor | None = None, chunk: int = 256
) -> tuple[Tensor, Tensor | None]:
    """How much attention every key receives: column sums of softmax(q k^T / sqrt(d)), over queries and heads.

    Logits, probabilities and sums are float32 even for half-precision inputs (float64 for float64 inputs): rounding
    to bfloat16 would change scores by up to 0.4 %, more than the difference between many tokens.

    Args:
        query: (B, heads, M, d).
        key: (B, heads, N, d).
        value: (B, heads, N, d) to compute the attention output too, from the same probabilities; None to skip it.
        row_weight: (B, M) weight of each query in the sums; None if all are 1.
        chunk: Query rows per step.

    Returns:
        Sums (B, N), and the output (B, heads, M, d) or None.
    """
    precise = torch.promote_types(query.dtype, torch.float32)
    sums = query.new_zeros(key.shape[0] * key.shape[1], key.shape[2], dtype=precise)
    weight = None if row_weight is None else row_weight.to(precise).repeat_interleave(query.shape[1], 0).unsqueeze(2)
    out = None if value is None else torch.empty_like(query).flatten(0, 1)
    flat_value = None if value is None else value.flatten(0, 1).contiguous()
    with without_autocast(query.device.type):
        for heads, rows, probability in probability_rows(query, key, precise, chunk):
            if out is not None and flat_value is not None:
                out[heads, rows] = torch.bmm(probability.to(query.dtype), flat_value[heads])
            weighted = probability if weight is None else probability * weight[heads, rows]
            sums[heads] += weighted.sum(1)
    return sums.unflatten(0, key.shape[:2]).sum(1), None if out is None else out.view_as(query)


def probability_rows(
    query: Tensor, key: Tensor, dtype: torch.dtype, chunk: int = 256
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Rows of softmax(q k^T / sqrt(d)), a few at a time, so that the M x N matrix is never stored.

    A CPU processes one head at a time, so that a chunk stays in its cache; other devices process all heads at once.
    Memory is O(chunk * N) per head processed.

    Args:
        query: (B, heads, M, d).
        key: (B, heads, N, d).
        dtype: Type of the products and probabilities.
        chunk: Query rows per step.

    Yields:
        Slice of the B * heads attention maps, slice of their rows, and the probabilities (maps, rows, N).
    """
    # Contiguous copies, because the matrix products would otherwise copy them for every chunk.
    flat_query, flat_key = query.flatten(0, 1).contiguous(), key.flatten(0, 1).contiguous()
    step = 1 if query.device.type == "cpu" else len(flat_query)
    for head in range(0, len(flat_query), step):
        heads = slice(head, head + step)
        scaled, transposed = flat_query[heads].to(dtype) * query.shape[3] ** -0.5, flat_key[heads].to(dtype).mT
        for start in range(0, query.shape[2], chunk):
            rows = slice(start, start + chunk)
            yield heads, rows, torch.bmm(scaled[:, rows], transposed).softmax(-1)


def without_autocast(device_type: str) -> AbstractContextManager:
    """Switches autocast off, because it would round the sums.

    Without autocast this does nothing, because exported programs cannot contain the switch.
    """
    autocast = torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)
    return torch.autocast(device_type, enabled=False) if autocast else nullcontext()


def xavier_init(module: nn.Module) -> None:
    """Xavier-uniform matrices and zero biases (App. B) for every Linear and convolution below `module`."""
    for layer in module.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.Conv3d)):
            nn.init.xavier_uniform_(layer.weight.flatten(1))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
