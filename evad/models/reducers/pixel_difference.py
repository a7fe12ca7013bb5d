"""Dropping of context tokens before the first block by what changes between frames (RLT)."""

from __future__ import annotations

import torch
from torch import Tensor

from evad.models.reducers.random import Sampling
from evad.models.tokens import Tokens


class PixelDifferenceSampling(Sampling):
    """The context tokens whose pixels differ most from those next to them in time (as RLT, Choudhury et al., 2024).

    A cube is compared with the same cube of the neighbouring slice on the side of the keyframe, not of the previous
    slice as in RLT: the keyframe stays, so a cube that repeats its neighbour repeats, step by step, something that is
    kept. RLT drops below a threshold; here rho says how many stay, so that a batch has one length.
    """

    def priority(self, tokens: Tokens, clips: Tensor) -> Tensor:
        """Mean absolute difference per cube, as `pixel_differences`.

        Raises:
            ValueError: if keyframe tokens may be dropped too: no slice is nearer to the keyframe than itself.
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
