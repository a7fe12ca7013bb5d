"""Actor features from the restored volume, the input of every classification head (Sec. 3.3)."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from evad.models.roi import align_by_product, extend_boxes
from evad.models.tokens import Grid, Tokens

Fill = Literal["mask_token", "zeros"]


class ActorRoI(nn.Module):
    """3D RoIAlign: reads each actor's box, widened to cover the actor's motion, from every slice of a volume.

    Args:
        stride: Pixels per token along each side.
        extension: (x, y) by which boxes are widened, see `extend_boxes`.
        size: Bins S along each side of an RoI.

    Raises:
        ValueError: if `extension` is not two numbers >= 0.
    """

    def __init__(self, stride: int = 16, extension: tuple[float, float] = (0.4, 0.2), size: int = 7) -> None:
        super().__init__()
        if len(extension) != 2 or min(extension) < 0:
            raise ValueError(f"roi_extension {extension} must be two numbers (x, y), neither negative")
        self.stride, self.size = stride, size
        self.extension = (float(extension[0]), float(extension[1]))

    def forward(self, volume: Tensor, grid: Grid, boxes: Tensor, sizes: Tensor) -> Tensor:
        """Read the bins of every actor. All slices share the boxes, so they are stacked as channels and read at once.

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
        extended = extend_boxes(boxes.detach(), sizes, self.extension)  # RoIAlign has no gradient to its boxes
        return align_by_product(stacked, extended, self.size, 1 / self.stride)


class ActorReader(nn.Module):
    """Base of the classification heads: restores the volume and reads actor features from it.

    Args:
        in_dim: Channels C of the encoder.
        dim: Channels D of the restored volume; None to keep the C channels without a projection.
        roi: Reads boxes from the volume.
        fill: Value at dropped positions: a learnable `mask_token` of D channels (released code) or `zeros` (paper).

    Raises:
        ValueError: if `fill` is neither of them.
    """

    mask_token: Tensor

    def __init__(self, in_dim: int, dim: int | None, roi: ActorRoI, fill: Fill) -> None:
        super().__init__()
        if fill not in get_args(Fill):
            raise ValueError(f"fill {fill!r} is neither 'mask_token' nor 'zeros'")
        self.roi = roi
        self.dim = in_dim if dim is None else dim
        self.project = nn.Identity() if dim is None else nn.Linear(in_dim, dim, bias=False)
        if fill == "mask_token":
            self.mask_token = nn.Parameter(torch.empty(self.dim))
            nn.init.normal_(self.mask_token, std=0.02)
        else:
            self.register_buffer("mask_token", torch.zeros(self.dim), persistent=False)

    def forward(
        self, tokens: Tokens, boxes: Tensor, sizes: Tensor, valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Classify the actor in each box.

        Args:
            tokens: Surviving tokens after the encoder's final norm.
            boxes: (B, Q, 4) xyxy pixels of the unpadded clip.
            sizes: (B, 2) valid height and width in pixels.
            valid: (B, Q) bool mask of valid actors, see `Localized`; the other actors do not affect their results.

        Returns:
            Actor features before refinement (B, Q, D), and action logits (D', B, Q, K) of every block in training, of
            the last block otherwise.
        """
        raise NotImplementedError

    def restore(self, tokens: Tokens) -> Tensor:
        """Complete volume (B, T' * H' * W', D) of projected tokens, with the fill at dropped positions."""
        return tokens.with_features(self.project(tokens.x)).restore(self.mask_token)

    def actor_features(self, volume: Tensor, grid: Grid, boxes: Tensor, sizes: Tensor) -> Tensor:
        """One vector per actor (B, Q, D): spatial maximum, then temporal mean of its bins; arguments as `ActorRoI`."""
        pooled = self.roi(volume, grid, boxes, sizes).amax(dim=2)  # (B, Q, T' * D)
        return pooled.unflatten(2, (grid[0], -1)).mean(dim=2).to(volume.dtype)
