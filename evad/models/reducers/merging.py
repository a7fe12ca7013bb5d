"""Merging of similar tokens instead of dropping (ToMe, Bolya et al., ICLR 2023)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from evad.models.attention import attention
from evad.models.pruning import TokenPruning, num_kept
from evad.models.reducers.dropped import RememberingTokens, as_kind
from evad.models.tokens import Tokens, complement, take

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class MergedTokens(RememberingTokens):
    """Tokens that hold several cells each.

    Attributes:
        size: (B, N) how many cells were merged into each token, float32 or wider.
    """

    size: Tensor = None  # type: ignore[assignment]  # always given; only fields with defaults may follow those with

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention in which a token of s cells counts as s tokens: log s is added to its logits."""
        return attention(query, key, value, self.size.log())

    def select(self, index: Tensor) -> Self:
        return replace(super().select(index), size=self.size.gather(1, index))


class MergingPruning(TokenPruning):
    """Merges context tokens with similar keys until ceil(rho * N) tokens are left; keyframe tokens never merge.

    The tokens that may merge are assigned to two sets in turn, and those of the first set that are most similar to one
    of the second are merged into it: a mean weighted by how many cells each holds. If more than half must be merged
    away, the rest is matched again. A merged token keeps the position of the token it was merged into; the other
    position counts as dropped. Attention counts a token once per cell it holds, here and in all later blocks, not in
    the decoder. If no context token may be left, there is nothing to merge into, and all are dropped.

    Args:
        keep_rate: See `TokenPruning`.
    """

    ranks = False

    def __init__(self, keep_rate: float) -> None:
        super().__init__(keep_rate, score=None)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Attention output (B, heads, N, d), and keys averaged over heads (B, N, d)."""
        return tokens.attend(query, key, value), key.detach().mean(1)

    def forward(self, tokens: Tokens, keys: Tensor) -> Tokens:
        """Merge N tokens by their keys (B, N, d), which `attend` returns in place of an importance."""
        first, total = tokens.num_protected, tokens.position.shape[1]
        kept = num_kept(self.keep_rate, total, first)
        if kept == 0:
            return tokens.select_context(tokens.position[:, :0])
        if not isinstance(tokens, MergedTokens):
            precise = torch.promote_types(tokens.x.dtype, torch.float32)
            tokens = as_kind(MergedTokens, tokens, size=torch.ones_like(tokens.position, dtype=precise))
        keys = keys[:, first:]
        for count in rounds(total - first, kept):
            tokens, keys = merge_most_similar(tokens, keys, count)
        return tokens


def rounds(num_tokens: int, kept: int) -> list[int]:
    """How many of n tokens each round merges away until `kept` are left: half of them at most. None if kept is 0."""
    counts = []
    while 0 < kept < num_tokens:
        counts.append(min(num_tokens - kept, num_tokens // 2))
        num_tokens -= counts[-1]
    return counts


def merge_most_similar(tokens: MergedTokens, keys: Tensor, count: int) -> tuple[MergedTokens, Tensor]:
    """One round: `count` tokens at even places join the most similar token at an odd place.

    Args:
        tokens: The n tokens behind the protected ones take part.
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
