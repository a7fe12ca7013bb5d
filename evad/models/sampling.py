"""Dropping of context tokens before the first block, without attention (Table 1b, row `random`)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from evad.models.tokens import Tokens


def num_sampled(keep_rate: float, num_tokens: int, num_keyframe: int) -> int:
    """How many context tokens enter the encoder: ceil(rho * (N - N1)).

    The paper does not say what rho counts here. Its 158.9 GFLOPs (Table 1b, ViT-B, 224 pixels, rho = 0.7) are those
    of rho of the *context* tokens beside the whole keyframe: 158.5 by this rule. rho of all tokens, as in the pruning
    blocks, would cost 149.7.
    """
    return math.ceil(keep_rate * (num_tokens - num_keyframe))


class RandomSampling(nn.Module):
    """Keeps every keyframe token and a random choice of the others, once, before the first block.

    In training every clip draws anew, from torch's global generator as dropout does. In evaluation a generator of its
    own seed gives every clip the same choice, so that results repeat and do not depend on the batch.

    Args:
        keep_rate: rho in (0, 1], the share of context tokens that stays.
        seed: Of the choice in evaluation.

    Raises:
        ValueError: if `keep_rate` is not one number in (0, 1].
    """

    num_extra = 0

    def __init__(self, keep_rate: float, seed: int = 0) -> None:
        super().__init__()
        check_rate(keep_rate)
        self.keep_rate, self.seed = keep_rate, seed

    def num_tokens(self, num_tokens: int, num_keyframe: int) -> int:
        """Tokens that enter the first block."""
        return num_keyframe + num_sampled(self.keep_rate, num_tokens, num_keyframe)

    def forward(self, tokens: Tokens, clips: Tensor) -> Tokens:
        """Choose among the N tokens of a complete grid; `clips` (B, 3, T, H, W) are not looked at."""
        batch, total = tokens.position.shape
        context = total - tokens.num_keyframe
        if self.training:
            priority = torch.rand(batch, context, device=tokens.x.device)
        else:
            generator = torch.Generator().manual_seed(self.seed)
            priority = torch.rand(context, generator=generator).to(tokens.x.device).expand(batch, -1)
        kept = num_sampled(self.keep_rate, total, tokens.num_keyframe)
        index = priority.argsort(dim=1, stable=True)[:, :kept]
        return tokens.select_context(index.sort(dim=1).values)

    def extra_repr(self) -> str:
        return f"keep_rate={self.keep_rate}, seed={self.seed}"


def check_rate(keep_rate: float) -> None:
    """One share for the whole encoder.

    Raises:
        ValueError: if it is a list, or outside (0, 1].
    """
    if not isinstance(keep_rate, (int, float)):
        raise ValueError(
            f"keep_rate {keep_rate} lists rates of blocks, but tokens are dropped once, before them: give one"
        )
    if not 0 < keep_rate <= 1:
        raise ValueError(f"keep_rate {keep_rate} is outside (0, 1]")
