"""Pre-norm transformer layers shared by the encoder and the context refinement decoder."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import timm.layers
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DropPath(timm.layers.DropPath):
    """timm's, but left alone by torch.compile: blocks differ in the probability, and would get a program each."""

    forward = torch.compiler.disable(timm.layers.DropPath.forward)


class Attention(nn.Module):
    """Multi-head self-attention with a bias on queries and values but none on keys.

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
        """Queries, keys and values of every token: (B, N, C) -> three times (B, heads, N, C / heads)."""
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias).unflatten(2, (3, self.num_heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # (B, N, 3, heads, d) -> (3, B, heads, N, d)
        return query, key, value

    def project_last(self, x: Tensor, num_queries: int) -> tuple[Tensor, Tensor, Tensor]:
        """As `project`, but queries of the last `num_queries` tokens only."""
        dim = self.q_bias.shape[0]
        query = F.linear(x[:, -num_queries:], self.qkv.weight[:dim], self.q_bias)
        bias = torch.cat([torch.zeros_like(self.v_bias), self.v_bias])
        key_value = F.linear(x, self.qkv.weight[dim:], bias).unflatten(2, (2, self.num_heads, -1))
        key, value = key_value.permute(2, 0, 3, 1, 4)  # (B, N, 2, heads, d) -> (2, B, heads, N, d)
        return query.unflatten(2, (self.num_heads, -1)).transpose(1, 2), key, value

    def merge(self, attended: Tensor) -> Tensor:
        """Heads joined and projected: (B, heads, N, d) -> (B, N, C)."""
        return self.proj(attended.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.merge(attention(*self.project(x)))


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention output, (B, heads, M, d) queries over N keys and values -> (B, heads, M, d).

    Fused, except for bfloat16 inference on a CPU: there the fused kernel multiplies no faster than in float32, while
    plain matrix products do.

    Args:
        query: (B, heads, M, d).
        key: (B, heads, N, d).
        value: (B, heads, N, d).
        mask: (B, N) bool, True at keys that may be attended to, or numbers added to the logits of each key; None: all
            of them count alike. Fused kernels that take one are slower.
    """
    if mask is not None:
        mask = mask if mask.dtype == torch.bool else mask.to(query.dtype)
        return F.scaled_dot_product_attention(query, key, value, mask[:, None, None])
    if query.device.type == "cpu" and query.dtype == torch.bfloat16 and not torch.is_grad_enabled():
        return attention_by_rows(query, key, value)[0]
    return F.scaled_dot_product_attention(query, key, value)


@torch.compiler.disable
def attention_by_rows(
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    boundary: int = 0,
    chunk: int = 256,
    row_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention computed a few query rows at a time, so that the column sums of its probabilities come for free.

    Nothing of size M x N is ever held: memory is O(chunk * N) per head at work. A CPU works on one head at a time, so
    that a chunk stays in its cache, other devices on all of them.

    Args:
        query: (B, heads, M, d).
        key: (B, heads, N, d).
        value: (B, heads, N, d), or None to leave the output out.
        boundary: Queries before and behind it are summed apart.
        chunk: Query rows per step.
        row_weight: (B, M) weight of each query in the sums; None: 1.

    Returns:
        Output (B, heads, M, d), empty without values; sums (2, B, N) over heads and queries of the probability that
        each key receives from the queries before and behind `boundary`, float32 or the inputs' type if wider.
    """
    batch, heads, rows, dim = query.shape
    flat_query = (query * dim**-0.5).flatten(0, 1)
    # Copied once into one piece each: the products below would otherwise copy them for every chunk.
    flat_key = key.flatten(0, 1).contiguous().transpose(1, 2)
    flat_value = None if value is None else value.flatten(0, 1).contiguous()
    out = torch.empty_like(flat_query) if value is not None else query.new_empty(batch * heads, 0, dim)
    precise = torch.promote_types(query.dtype, torch.float32)
    sums = torch.zeros(2, batch * heads, key.shape[2], dtype=precise, device=query.device)
    weight = None if row_weight is None else row_weight.to(precise).repeat_interleave(heads, 0).unsqueeze(2)
    step = 1 if query.device.type == "cpu" else batch * heads
    parts = [(0, 0, boundary), (1, boundary, rows)]
    with without_autocast(query.device.type):
        for head in range(0, batch * heads, step):
            at = slice(head, head + step)
            for part, first, end in parts:
                for start in range(first, end, chunk):
                    here = slice(start, min(start + chunk, end))
                    probability = torch.bmm(flat_query[at, here], flat_key[at]).softmax(-1)
                    weighted = probability if weight is None else probability * weight[at, here]
                    sums[part, at] += weighted.sum(1, dtype=precise)
                    if flat_value is not None:
                        out[at, here] = torch.bmm(probability, flat_value[at])
    return out.unflatten(0, (batch, heads)), sums.unflatten(1, (batch, heads)).sum(2)


def without_autocast(device_type: str) -> AbstractContextManager:
    """No autocast, which would round the sums; where there is none, nothing: exported programs cannot hold it."""
    autocast = torch.is_autocast_enabled(device_type)
    return torch.autocast(device_type, enabled=False) if autocast else nullcontext()


def xavier_init(module: nn.Module) -> None:
    """Xavier-uniform matrices and zero biases (App. B) for every Linear and convolution below `module`."""
    for layer in module.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.Conv3d)):
            nn.init.xavier_uniform_(layer.weight.flatten(1))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
