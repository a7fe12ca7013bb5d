"""Actor features from the restored volume, which every classification head reads (Sec. 3.3)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from evad.models.roi import align_by_product, extend_boxes

Fill = Literal["mask_token", "zeros"]


class ActorReader(nn.Module):
    """Base of the classification heads: how an actor's box is read from the slices of a volume.

    Args:
        stride: Pixels per token along each side.
        roi_extension: (x, y) by which boxes are widened before RoIAlign.
        roi_size: Bins S along each side of an RoI.

    Raises:
        ValueError: if `roi_extension` is not two numbers >= 0.
    """

    mask_token: Tensor

    def __init__(self, stride: int, roi_extension: tuple[float, float], roi_size: int) -> None:
        super().__init__()
        if len(roi_extension) != 2 or min(roi_extension) < 0:
            raise ValueError(f"roi_extension {roi_extension} must be two numbers (x, y), neither negative")
        self.stride, self.roi_size = stride, roi_size
        self.roi_extension = (float(roi_extension[0]), float(roi_extension[1]))

    def add_mask_token(self, dim: int, fill: Fill) -> None:
        """Make `mask_token` (D,), what stands at dropped positions: learnable or zeros.

        Raises:
            ValueError: if `fill` is another word.
        """
        if fill not in ("mask_token", "zeros"):
            raise ValueError(f"fill {fill!r} is neither 'mask_token' nor 'zeros'")
        if fill == "mask_token":
            self.mask_token = nn.Parameter(torch.empty(dim))
            nn.init.normal_(self.mask_token, std=0.02)
        else:
            self.register_buffer("mask_token", torch.zeros(dim), persistent=False)

    def actor_bins(self, volume: Tensor, grid: tuple[int, int, int], boxes: Tensor, sizes: Tensor) -> Tensor:
        """Each actor's extended box on every slice (3D RoIAlign).

        All slices share the boxes, so they are stacked as channels and read at once.

        Args:
            volume: (B, T' * H' * W', D) in time, row, column order.
            grid: (T', H', W').
            boxes: (B, Q, 4) xyxy pixels of the unpadded clip.
            sizes: (B, 2) valid height and width in pixels.

        Returns:
            (B, Q, S * S, T' * D), bins row by row.
        """
        slices, height, width = grid
        stacked = volume.unflatten(1, (slices, -1)).transpose(1, 2)  # (B, T', H' * W', D) -> (B, H' * W', T', D)
        stacked = stacked.flatten(2).unflatten(1, (height, width))
        extended = extend_boxes(boxes.detach(), sizes, self.roi_extension)  # RoIAlign has no gradient to its boxes
        return align_by_product(stacked, extended, self.roi_size, 1 / self.stride)

    def actor_features(self, volume: Tensor, grid: tuple[int, int, int], boxes: Tensor, sizes: Tensor) -> Tensor:
        """One vector per actor: spatial maximum, then temporal mean of its bins; arguments as for `actor_bins`.

        Returns:
            (B, Q, D).
        """
        pooled = self.actor_bins(volume, grid, boxes, sizes).amax(dim=2)  # (B, Q, T' * D)
        return pooled.unflatten(2, (grid[0], -1)).mean(dim=2).to(volume.dtype)
