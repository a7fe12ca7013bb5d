"""Pruning by the attention of a learnable class token (Table 1b, row `CLS token`)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from evad.models.attention import received_attention
from evad.models.pruning import TokenPruning
from evad.models.reducers.extra import ExtendedTokens, with_extra
from evad.models.tokens import Tokens


class ClassToken(nn.Module):
    """Adds a learnable token without position code, which takes part in the attention of all blocks.

    Args:
        dim: Channels C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.empty(dim))
        nn.init.normal_(self.token, std=0.02)

    def forward(self, tokens: Tokens, clips: Tensor) -> ExtendedTokens:
        """Append the class token to the tokens of every clip; `clips` is not used."""
        return with_extra(tokens, self.token.to(tokens.x.dtype).expand(tokens.x.shape[0], 1, -1))


class ClassTokenScore(nn.Module):
    """Importance: the attention that the class token pays to each token, averaged over heads."""

    @torch.no_grad()
    def forward(self, query: Tensor, key: Tensor, tokens: Tokens) -> Tensor:
        """Queries and keys (B, heads, N + 1, d), the class token last -> importance (B, N + 1).

        Raises:
            ValueError: if there is no class token.
        """
        if not isinstance(tokens, ExtendedTokens):
            raise ValueError("no class token to prune by: choose model/pruning=cls_token, which adds one")
        return received_attention(query[:, :, -1:], key)[0] / query.shape[1]


class ClassTokenPruning(TokenPruning):
    """Keeps every keyframe token and the context tokens that the class token attends to most; `w_kf` is not used."""

    def __init__(self, keep_rate: float) -> None:
        super().__init__(keep_rate, ClassTokenScore())
