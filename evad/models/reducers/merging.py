"""Merging of similar tokens in place of pruning (ToMe, Bolya et al., ICLR 2023)."""

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
    """Tokens that each represent one or more grid cells.

    Attributes:
        size: (B, N) number of cells each token represents, float32 or wider.
    """

    size: Tensor = None  # type: ignore[assignment]  # a default is required after inherited defaults

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention in which a token of s cells counts as s tokens: log s is added to its logits."""
        return attention(query, key, value, self.size.log())

    def select(self, index: Tensor) -> Self:
        return replace(super().select(index), size=self.size.gather(1, index))


class MergingPruning(TokenPruning):
    """Merges context tokens with similar keys until ceil(rho * N) tokens are left; keyframe tokens never merge.

    Context tokens are assigned alternately to two sets. The tokens of the first set that are most similar to a token of
    the second are merged into it: the mean of both, weighted by the number of cells they represent. If more than half
    of the tokens must go, this is repeated. A merged token has the position of the second set's token; the other
    position counts as dropped. In this and all later encoder blocks, attention counts a token once per cell it
    represents; the decoder does not. If the keep rate leaves no context token, all of them are dropped without merging.

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
        """Merge N tokens by their keys (B, N, d), which `attend` returns instead of an importance."""
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
    """Number of tokens merged in each round until `kept` are left, at most half of them; no rounds if `kept` is 0."""
    counts = []
    while 0 < kept < num_tokens:
        counts.append(min(num_tokens - kept, num_tokens // 2))
        num_tokens -= counts[-1]
    return counts


def merge_most_similar(tokens: MergedTokens, keys: Tensor, count: int) -> tuple[MergedTokens, Tensor]:
    """One round: merge `count` tokens at even places into their most similar tokens at odd places.

    Args:
        tokens: The n tokens after the protected ones may merge.
        keys: (B, n, d) keys whose cosine is the similarity.
        count: Number of tokens to merge, at most n // 2.

    Returns:
        The remaining tokens in unchanged order, and their keys.
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
    """Merge rows `source` of x into rows `target`: means weighted by size; all other rows keep their values.

    Args:
        x: (B, n, C).
        size: (B, n).
        source: (B, r) int64, rows to merge; they are not changed or removed.
        target: (B, r) int64, the row each is merged into; not in `source`, may repeat.
    """
    weight = size.gather(1, source)
    added_size = torch.zeros_like(size).scatter_add(1, target, weight)
    sources = take(x, source) * weight.unsqueeze(2).to(x.dtype)
    added = torch.zeros_like(x).scatter_add(1, target.unsqueeze(2).expand(-1, -1, x.shape[2]), sources)
    change = added - x * added_size.unsqueeze(2).to(x.dtype)
    return x + change / (size + added_size).unsqueeze(2).to(x.dtype)
