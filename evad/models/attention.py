"""Pre-norm transformer layers shared by the encoder and the context refinement decoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention output: (B, heads, N, d) each -> (B, N, C)."""
        out = F.scaled_dot_product_attention(query, key, value)
        return self.proj(out.transpose(1, 2).flatten(2))  # (B, heads, N, d) -> (B, N, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(*self.project(x))


def xavier_init(module: nn.Module) -> None:
    """Xavier-uniform matrices and zero biases (App. B) for every Linear and convolution below `module`."""
    for layer in module.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.Conv3d)):
            nn.init.xavier_uniform_(layer.weight.flatten(1))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
