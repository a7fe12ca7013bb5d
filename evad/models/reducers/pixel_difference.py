"""Dropping of context tokens whose pixels change least, before the first block (RLT)."""

from __future__ import annotations

import torch
from torch import Tensor

from evad.models.reducers.random import Sampling
from evad.models.tokens import Tokens


class PixelDifferenceSampling(Sampling):
    """Keeps the context tokens whose pixels differ most from the neighbouring slice (like RLT, Choudhury et al., 2024).

    RLT compares a cube with the previous slice; we compare it with the neighbouring slice on the side of the keyframe,
    because the keyframe is always kept: a chain of unchanged cubes then ends at a kept one. RLT drops tokens below a
    threshold; here rho sets the number, so that all clips of a batch have equally many tokens.
    """

    def priority(self, tokens: Tokens, clips: Tensor) -> Tensor:
        """See `pixel_differences`.

        Raises:
            ValueError: if keyframe tokens may be dropped too; pixel differences rank context tokens only.
        """
        if tokens.num_protected == 0:
            raise ValueError(
                "pixel differences are defined for context tokens only: use model.keyframe=keep with "
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
    # The difference of slices i and i + 1 belongs to the one farther from the keyframe: slice i before the keyframe,
    # slice i + 1 after it. So the T' - 1 differences are in the order of the T' - 1 context slices.
    steps = cubes.diff(dim=2).abs().mean(dim=(1, 3))  # (B, 3, T', 2, H, W) -> (B, T' - 1, H, W)
    return steps.unflatten(3, (width, -1)).unflatten(2, (height, -1)).mean(dim=(3, 5)).flatten(1)
