"""Dropping of context tokens before the first block, without attention (Table 1b, row `random`)."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from evad.models.tokens import Tokens


def num_sampled(keep_rate: float, num_tokens: int, num_protected: int) -> int:
    """How many of the tokens that may leave enter the encoder: ceil(rho * (N - N1)) context tokens.

    The paper does not say what rho counts here. Its 158.9 GFLOPs (Table 1b, ViT-B, 224 pixels, rho = 0.7) are those
    of rho of the *context* tokens beside the whole keyframe: 158.5 by this rule. rho of all tokens, as in the pruning
    blocks, would cost 149.7.
    """
    return math.ceil(keep_rate * (num_tokens - num_protected))


class Sampling(nn.Module):
    """Keeps every keyframe token and a share of the others, once, before the first block.

    Args:
        keep_rate: rho in (0, 1], the share of context tokens that stays.

    Raises:
        ValueError: if `keep_rate` is not one number in (0, 1].
    """

    num_extra = 0  # tokens without a grid cell that enter beside the others

    def __init__(self, keep_rate: float) -> None:
        super().__init__()
        check_rate(keep_rate)
        self.keep_rate = keep_rate

    def num_tokens(self, num_tokens: int, num_protected: int) -> int:
        """Tokens that enter the first block."""
        return num_protected + num_sampled(self.keep_rate, num_tokens, num_protected)

    def priority(self, tokens: Tokens, clips: Tensor) -> Tensor:
        """(B, n) of the n tokens that may leave: those of the highest values stay, the first of equal ones."""
        raise NotImplementedError

    def forward(self, tokens: Tokens, clips: Tensor) -> Tokens:
        """Choose among the N tokens of the complete grid of `clips` (B, 3, T, H, W)."""
        kept = num_sampled(self.keep_rate, tokens.position.shape[1], tokens.num_protected)
        index = self.priority(tokens, clips).argsort(dim=1, descending=True, stable=True)[:, :kept]
        return tokens.select_context(index.sort(dim=1).values)

    def extra_repr(self) -> str:
        return f"keep_rate={self.keep_rate}"


class RandomSampling(Sampling):
    """A random choice of context tokens.

    In training every clip draws anew, from torch's global generator as dropout does. In evaluation a generator of its
    own seed gives every clip the same choice, so that results repeat and do not depend on the batch.

    Args:
        keep_rate: See `Sampling`.
        seed: Of the choice in evaluation.
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
    """The same (count,) random numbers at every call: those of torch.rand after `manual_seed(seed)`.

    They are drawn by numpy's Mersenne twister, the same one: an exported program would hold torch's generator and draw
    on from it.
    """
    drawn = np.random.RandomState(seed).randint(0, 2**32, size=count, dtype=np.uint32)
    return torch.from_numpy((drawn & (2**24 - 1)).astype(np.float32) / 2**24)


class PixelDifferenceSampling(Sampling):
    """The context tokens whose pixels differ most from those next to them in time (as RLT, Choudhury et al., 2024).

    A cube is compared with the same cube of the neighbouring slice on the side of the keyframe, not of the previous
    slice as in RLT: the keyframe stays, so a cube that repeats its neighbour repeats, step by step, something that is
    kept. RLT drops below a threshold; here rho says how many stay, so that a batch has one length.
    """

    def priority(self, tokens: Tokens, clips: Tensor) -> Tensor:
        """Mean absolute difference per cube, as `pixel_differences`.

        Raises:
            ValueError: under unified pruning, since nothing lies nearer to the keyframe than itself.
        """
        if tokens.num_protected == 0:
            raise ValueError(
                "keyframe tokens have no slice nearer to the keyframe to differ from: use model.keyframe=keep with "
                "model/pruning=pixel_difference"
            )
        return pixel_differences(clips, tokens.grid)


def pixel_differences(clips: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Mean absolute difference of every context cube from the same cube one slice nearer to the keyframe.

    Args:
        clips: (B, 3, T, H, W).
        grid: (T', H', W').

    Returns:
        (B, N - N1) in time, row, column order, float32 or wider.
    """
    slices, height, width = grid
    cubes = clips.unflatten(2, (slices, -1)).to(torch.promote_types(clips.dtype, torch.float32))
    # Between slices i and i + 1: what slice i shows if it lies before the keyframe, else slice i + 1. Each pair has
    # one of them that is farther away, so these are the context slices in order.
    steps = cubes.diff(dim=2).abs().mean(dim=(1, 3))  # (B, 3, T', 2, H, W) -> (B, T' - 1, H, W)
    return steps.unflatten(3, (width, -1)).unflatten(2, (height, -1)).mean(dim=(3, 5)).flatten(1)


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
