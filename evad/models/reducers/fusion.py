"""Pruning that fuses the dropped tokens (EViT, Liang et al., ICLR 2022)."""

from __future__ import annotations

import torch
from torch import Tensor

from evad.models.pruning import KeyframePruning, most_important
from evad.models.reducers.extra import with_extra
from evad.models.tokens import Tokens, complement, take


class FusingPruning(KeyframePruning):
    """Keyframe-centric pruning that replaces the tokens dropped in a stage by their mean, weighted by importance.

    The fused token takes part in the attention of later blocks, has no grid cell and is not counted by the keep rate.
    EViT's weights are attention values, which sum to less than one and make the fused token's norm small; here they sum
    to one. No gradient flows through the weights.
    """

    def forward(self, tokens: Tokens, importance: Tensor) -> Tokens:
        """Survivors as in `TokenPruning`, followed by the fused token if any token was dropped."""
        index = most_important(tokens, importance, self.keep_rate)
        survivors = tokens.select_context(index)
        first, total = tokens.num_protected, tokens.position.shape[1]
        dropped = complement(index, total - first) + first
        if dropped.shape[1] == 0:
            return survivors
        return with_extra(survivors, weighted_mean(take(tokens.x, dropped), importance.gather(1, dropped)).unsqueeze(1))


def weighted_mean(x: Tensor, weight: Tensor) -> Tensor:
    """Mean of x (B, n, C) over n with weights (B, n) >= 0 -> (B, C)."""
    weight = weight / weight.sum(1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)
    return (x * weight.unsqueeze(2).to(x.dtype)).sum(1)
