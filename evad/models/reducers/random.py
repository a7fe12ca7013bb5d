"""Dropping of context tokens before the first block, at random (Table 1b, row `random`)."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from evad.models.tokens import Tokens


def num_sampled(keep_rate: float, num_tokens: int, num_protected: int) -> int:
    """Number of context tokens that enter the encoder: ceil(rho * (N - N1)).

    The paper does not say whether rho is a share of the context tokens or of all tokens. With context tokens
    we count 158.5 GFLOPs, close to the paper's 158.9 (Table 1b, ViT-B, 224 pixels, rho = 0.7); with all tokens 149.7.
    """
    return math.ceil(keep_rate * (num_tokens - num_protected))


class Sampling(nn.Module):
    """Keeps every keyframe token and a share of the context tokens; applied once, before the first block.

    Args:
        keep_rate: rho in (0, 1], the share of context tokens that is kept.

    Raises:
        ValueError: if `keep_rate` is not one number in (0, 1].
    """

    def __init__(self, keep_rate: float) -> None:
        super().__init__()
        if not isinstance(keep_rate, (int, float)):
            raise ValueError(
                f"keep_rate {keep_rate} lists rates of blocks, but tokens are dropped before all blocks: use one number"
            )
        if not 0 < keep_rate <= 1:
            raise ValueError(f"keep_rate {keep_rate} is outside (0, 1]")
        self.keep_rate = keep_rate

    def priority(self, tokens: Tokens, clips: Tensor) -> Tensor:
        """Priority (B, n) of the n context tokens: the highest are kept; among equal ones the first."""
        raise NotImplementedError

    def forward(self, tokens: Tokens, clips: Tensor) -> Tokens:
        """Choose among the N tokens of the complete grid of `clips` (B, 3, T, H, W)."""
        kept = num_sampled(self.keep_rate, tokens.position.shape[1], tokens.num_protected)
        index = self.priority(tokens, clips).argsort(dim=1, descending=True, stable=True)[:, :kept]
        return tokens.select_context(index.sort(dim=1).values)

    def extra_repr(self) -> str:
        return f"keep_rate={self.keep_rate}"


class RandomSampling(Sampling):
    """Keeps a random choice of context tokens.

    In training the choice differs between clips and is drawn from torch's global generator, like dropout. In evaluation
    it is the same for all clips and drawn from a fixed seed, so that results are repeatable for any batch.

    Args:
        keep_rate: See `Sampling`.
        seed: Seed of the choice in evaluation.
    """

    def __init__(self, keep_rate: float, seed: int = 0) -> None:
        super().__init__(keep_rate)
        self.seed = seed

    def priority(self, tokens: Tokens, clips: Tensor) -> Tensor:
        batch, total = tokens.position.shape
        count = total - tokens.num_protected
        if self.training:
            return torch.rand(batch, count, device=tokens.x.device)
        return fixed_priority(count, self.seed).to(tokens.x.device).expand(batch, -1)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, seed={self.seed}"


@torch.compiler.assume_constant_result
def fixed_priority(count: int, seed: int) -> Tensor:
    """The same (count,) random numbers at every call, equal to torch.rand after `manual_seed(seed)`.

    They come from NumPy's Mersenne twister, which gives the same numbers as torch's generator. An exported program
    would call torch's generator again and get new numbers every time.
    """
    drawn = np.random.RandomState(seed).randint(0, 2**32, size=count, dtype=np.uint32)
    return torch.from_numpy((drawn & (2**24 - 1)).astype(np.float32) / 2**24)
