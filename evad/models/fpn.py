"""Feature pyramid over the keyframe maps of a plain ViT (Sec. 3.3)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from evad.models.attention import xavier_init


class KeyframePyramid(nn.Module):
    """Four keyframe maps of one stride -> four levels at 1/4, 1/2, 1 and 2 times that stride.

    Each map is resized by nearest neighbour (x4, x2, x1, x0.5) and enters a feature pyramid: 1x1 lateral, nearest
    top-down sum, 3x3 output, no norm. For the paper's 16-pixel patches the levels have strides 4, 8, 16, 32.

    A 1x1 convolution commutes with nearest resizing, so the lateral of an enlarged map is computed before the
    enlargement: the same numbers for 1/16 of the work.

    Args:
        in_channels: Channels C of the keyframe maps.
        channels: Channels of every level.
    """

    SCALES = (4.0, 2.0, 1.0, 0.5)

    def __init__(self, in_channels: int, channels: int = 256) -> None:
        super().__init__()
        self.channels = channels
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
            ValueError: if there are not four maps, or one is too small to be halved.
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
        merged = laterals[-1]
        levels = [self.output[-1](merged)]
        for lateral, output in zip(laterals[-2::-1], list(self.output)[-2::-1]):
            merged = lateral + F.interpolate(merged, size=lateral.shape[2:], mode="nearest")
            levels.append(output(merged))
        return levels[::-1]

    @staticmethod
    def _resize(lateral: nn.Module, feature: Tensor, scale: float) -> Tensor:
        if scale < 1:
            return lateral(F.interpolate(feature, scale_factor=scale, mode="nearest"))
        feature = lateral(feature)
        return feature if scale == 1 else F.interpolate(feature, scale_factor=scale, mode="nearest")
