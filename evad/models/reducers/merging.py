"""Merging of similar tokens instead of dropping (ToMe, Bolya et al., ICLR 2023)."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from evad.models.attention import attention
from evad.models.pruning import ContextOrder, TokenPruning, num_kept
from evad.models.tokens import Tokens, complement, take


class MergingPruning(TokenPruning):
    """Merges context tokens with similar keys until ceil(rho * N) tokens are left; keyframe tokens never merge.

    The tokens that may merge alternate between two sets, and the tokens of the first that are most similar to one of
    the second become part of it: a mean weighted by how many cells each holds. If more than half must go, the rest is
    matched again. A merged token stands at the place of the token it was merged into; the other places are free.
    Attention counts a token as often as it holds cells (log size added to its logits), here and in all later blocks,
    not in the decoder. If no context token is to be left, there is nothing to merge into, and all are dropped.

    Args:
        keep_rate: See `TokenPruning`.
        context_order: `position` only: merging has no score to order by.

    Raises:
        ValueError: if `context_order` is another word.
    """

    def use_order(self, context_order: ContextOrder) -> None:
        """`position`, nothing else."""
        if context_order != "position":
            raise ValueError(f"context_order {context_order!r}: merged tokens have no score, use 'position'")
        super().use_order(context_order)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Attention output (B, heads, N + E, d), and keys averaged over heads (B, N + E, d)."""
        return attention(query, key, value, tokens.attention_bias()), key.detach().mean(1)

    def forward(self, tokens: Tokens, importance: Tensor) -> Tokens:
        """Merge N tokens by their keys (B, N + E, d), called `importance` as in `TokenPruning`."""
        first, total = tokens.num_protected, tokens.position.shape[1]
        kept = num_kept(self.keep_rate, total, first)
        if kept == 0:
            return tokens.select_context(tokens.position[:, :0])
        keys = importance[:, first:total]
        if tokens.size is None:
            precise = torch.promote_types(tokens.x.dtype, torch.float32)
            tokens = replace(tokens, size=torch.ones_like(tokens.position, dtype=precise))
        for count in rounds(total - first, kept):
            tokens, keys = merge_most_similar(tokens, keys, count)
        return tokens

    def matching_macs(self, num_tokens: int, num_protected: int, head_dim: int) -> int:
        """Similarity of every token of the first set to every token of the second, in every round."""
        n, total = num_tokens - num_protected, 0
        for count in rounds(n, num_kept(self.keep_rate, num_tokens, num_protected)):
            total += (n - n // 2) * (n // 2) * head_dim
            n -= count
        return total

    def extra_repr(self) -> str:
        return f"keep_rate={self.keep_rate}"


def rounds(num_tokens: int, kept: int) -> list[int]:
    """How many of n tokens each round merges away until `kept` are left: half of them at most. None if kept is 0."""
    counts = []
    while 0 < kept < num_tokens:
        counts.append(min(num_tokens - kept, num_tokens // 2))
        num_tokens -= counts[-1]
    return counts


def merge_most_similar(tokens: Tokens, keys: Tensor, count: int) -> tuple[Tokens, Tensor]:
    """One round: `count` tokens at even places join the most similar token at an odd place.

    Args:
        tokens: With sizes. The n tokens behind the protected ones take part.
        keys: (B, n, d) what similarity (the cosine) is measured on.
        count: At most n // 2.

    Returns:
        The tokens left, in their former order, and their keys.
    """
    first, total = tokens.num_protected, tokens.position.shape[1]
    unit = F.normalize(keys, dim=2)
    best, partner = (unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)).max(dim=2)
    chosen = best.topk(count, dim=1).indices
    source, target = 2 * chosen, 2 * partner.gather(1, chosen) + 1
    left = complement(source, total - first)
    assert tokens.size is not None
    size = tokens.size
    keys = join(keys, size[:, first:], source, target)
    x = join(tokens.x, size, source + first, target + first)
    size = size.scatter_add(1, target + first, size.gather(1, source + first))
    return replace(tokens, x=x, size=size).select_context(left), take(keys, left)


def join(x: Tensor, size: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Rows of x become means of themselves and the rows that join them, weighted by size; the others do not change.

    Args:
        x: (B, n, C).
        size: (B, n).
        source: (B, r) int64, the rows that join; they stay in the result as they are.
        target: (B, r) int64, which row each joins; none of `source`, repetitions allowed.
    """
    weight = size.gather(1, source)
    added_size = torch.zeros_like(size).scatter_add(1, target, weight)
    sources = take(x, source) * weight.unsqueeze(2).to(x.dtype)
    added = torch.zeros_like(x).scatter_add(1, target.unsqueeze(2).expand(-1, -1, x.shape[2]), sources)
    change = added - x * added_size.unsqueeze(2).to(x.dtype)
    return x + change / (size + added_size).unsqueeze(2).to(x.dtype)
