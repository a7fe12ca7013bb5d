"""Feature pyramid over the keyframe maps of a plain ViT (Sec. 3.3)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from evad.models.attention import xavier_init


class KeyframePyramid(nn.Module):
    """Four keyframe maps of one stride -> four levels at 1/4, 1/2, 1 and 2 times that stride.

    Each map is resized by nearest neighbour (x4, x2, x1, x0.5) and enters a feature pyramid: 1x1 lateral convolution,
    top-down sum after nearest resizing, 3x3 output convolution, no norm. With 16-pixel patches the strides are 4, 8,
    16, 32.

    A 1x1 convolution commutes with nearest resizing, so the lateral convolution runs before the enlargement: the
    result is the same, at as little as 1/16 of the cost.

    Args:
        in_channels: Channels C of the keyframe maps.
        channels: Channels of every level.
    """

    SCALES = (4.0, 2.0, 1.0, 0.5)

    def __init__(self, in_channels: int, channels: int = 256) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(in_channels, channels, 1) for _ in self.SCALES)
        self.output = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in self.SCALES)
        xavier_init(self)

    def forward(self, keyframe_maps: list[Tensor]) -> list[Tensor]:
        """Levels from fine to coarse.

        Args:
            keyframe_maps: Four maps (B, C, H', W') from shallow to deep blocks.

        Returns:
            Four maps (B, channels, h_l, w_l), h_l = H' * (4, 2, 1, 0.5).

        Raises:
            ValueError: if there are not four maps, or they are too small to be halved.
        """
        if len(keyframe_maps) != len(self.SCALES):
            raise ValueError(
                f"the pyramid has {len(self.SCALES)} levels but got {len(keyframe_maps)} keyframe maps: list four "
                "blocks in map_blocks"
            )
        if min(keyframe_maps[0].shape[2:]) < 2:
            raise ValueError(
                f"keyframe map of {tuple(keyframe_maps[0].shape[2:])} tokens cannot be halved for the coarsest level: "
                "use a larger image (at least two patches along each side)"
            )
        laterals = [
            self._resize(lateral, feature, scale)
            for lateral, feature, scale in zip(self.lateral, keyframe_maps, self.SCALES)
        ]
        for finer in range(len(laterals) - 2, -1, -1):
            size = laterals[finer].shape[2:]
            laterals[finer] = laterals[finer] + F.interpolate(laterals[finer + 1], size=size, mode="nearest")
        return [output(merged) for output, merged in zip(self.output, laterals)]

    @staticmethod
    def _resize(lateral: nn.Module, feature: Tensor, scale: float) -> Tensor:
        if scale < 1:
            return lateral(F.interpolate(feature, scale_factor=scale, mode="nearest"))
        feature = lateral(feature)
        return feature if scale == 1 else F.interpolate(feature, scale_factor=scale, mode="nearest")
