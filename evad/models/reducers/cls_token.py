"""Pruning by the attention of one learnable token (Table 1b, row `CLS token`)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from evad.models.attention import attention, attention_by_rows
from evad.models.pruning import TokenPruning
from evad.models.tokens import Tokens


class ClassToken(nn.Module):
    """A learnable token that attends with the others through all blocks and stands for no grid cell.

    It has no position code, and neither the restored volume nor the decoder sees it.

    Args:
        dim: Channels C.
    """

    num_extra = 1

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.empty(dim))
        nn.init.normal_(self.token, std=0.02)

    def num_tokens(self, num_tokens: int, num_protected: int) -> int:
        """Grid tokens that enter the first block: all."""
        return num_tokens

    def forward(self, tokens: Tokens, clips: Tensor) -> Tokens:
        """The tokens of every clip and this one; `clips` are not looked at."""
        return tokens.with_extra(self.token.to(tokens.x.dtype).expand(tokens.x.shape[0], 1, -1))


class ClassTokenPruning(TokenPruning):
    """Keeps every keyframe token and the context tokens that the class token attends to most.

    Importance is the class token's row of the attention, averaged over heads; `w_kf` has no part in it.
    """

    def attend(self, query: Tensor, key: Tensor, value: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Attention output (B, heads, N + 1, d) and importance (B, N + 1) of a block's tokens.

        Raises:
            ValueError: if there is no class token.
        """
        if tokens.extra is None:
            raise ValueError("no class token to prune by: choose model/pruning=cls_token, which adds one")
        with torch.no_grad():
            _, sums = attention_by_rows(query[:, :, -1:], key, None)
        return attention(query, key, value), sums[1] / query.shape[1]

    def scoring_macs(self, num_tokens: int, dim: int) -> int:
        return num_tokens * dim

    def extra_repr(self) -> str:
        return f"keep_rate={self.keep_rate}, context_order={self.context_order!r}"
