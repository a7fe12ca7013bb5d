"""Resizes, augments and normalises decoded frames and their boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch import Generator, Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional


def resize_scale(height: int, width: int, short_side: int, max_size: int) -> Fraction:
    """Factor that resizes the short side to `short_side`, or the long side to `max_size` if it would be longer."""
    return min(Fraction(short_side, min(height, width)), Fraction(max_size, max(height, width)))


@dataclass(frozen=True)
class VideoTransform:
    """Resizes, flips, jitters and normalises a clip, and changes its boxes accordingly.

    Sizes and boxes follow the released pipeline: resized sides are rounded down, resizing is bilinear without
    antialias, boxes are clipped to [0, w-1] x [0, h-1] in the original size and again after scaling.

    A flip mirrors frames and boxes (x -> 1 - x in fractions, w - x in pixels) before all other steps, so it gives the
    same result as transforming the mirrored video without a flip. Mirroring pixel indices (w - 1 - x) instead would
    move the boxes by one pixel relative to the picture.

    Attributes:
        short_side: Length of the resized short side in pixels; a pair (low, high) draws one from this range, both
            ends included.
        max_size: Largest length of the long side in pixels.
        flip: Probability of a horizontal flip.
        color_jitter: Brightness and contrast (about the clip's mean) are multiplied by factors from
            [1 - color_jitter, 1 + color_jitter], the same for all frames.
        mean: Subtracted from RGB / 255.
        std: Divisor after subtracting the mean.
    """

    short_side: int | Sequence[int] = 288
    max_size: int = 1333
    flip: float = 0.0
    color_jitter: float = 0.0
    mean: float = 0.45
    std: float = 0.225

    def __post_init__(self) -> None:
        low, high = self.short_side_range
        if not 1 <= low <= high <= self.max_size:
            limits = f"short_side {self.short_side} with max_size {self.max_size}"
            raise ValueError(f"{limits}: need 1 <= low <= high <= max")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip is {self.flip}; it must be a probability, from 0 to 1")
        if not 0 <= self.color_jitter < 1:
            raise ValueError(f"color_jitter is {self.color_jitter}; it must be at least 0 and below 1")

    @property
    def short_side_range(self) -> tuple[int, int]:
        if isinstance(self.short_side, int):
            return self.short_side, self.short_side
        low, high = self.short_side
        return low, high

    @property
    def is_random(self) -> bool:
        """Whether two calls with the same clip may differ."""
        low, high = self.short_side_range
        return low < high or 0 < self.flip < 1 or self.color_jitter > 0

    def __call__(
        self, frames: np.ndarray, boxes: np.ndarray, generator: Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Transform one clip.

        Args:
            frames: (T, H, W, 3) uint8 RGB.
            boxes: (n, 4) xyxy as fractions of width and height.
            generator: Source of the random choices; required only if `is_random`.

        Returns:
            (3, T, h, w) float32 normalised clip; (n, 4) float32 boxes, xyxy in pixels of the clip.
        """
        if generator is None and self.is_random:
            raise ValueError("a random VideoTransform needs a generator; pass a seeded torch.Generator")
        _, height, width, _ = frames.shape
        low, high = self.short_side_range
        short_side = low if low == high else int(torch.randint(low, high + 1, (), generator=generator))
        flip = self.flip == 1 or (self.flip > 0 and bool(torch.rand((), generator=generator) < self.flip))
        video = torch.from_numpy(frames).permute(0, 3, 1, 2)  # T H W 3 -> T 3 H W
        pixel_boxes = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4)
        if flip:
            video = video.flip(-1)
            pixel_boxes = flip_boxes(pixel_boxes, 1.0)
        size, scale = self.resized(height, width, short_side)
        pixel_boxes = clip_boxes(pixel_boxes * pixel_boxes.new_tensor((width, height, width, height)), (height, width))
        pixel_boxes = clip_boxes(pixel_boxes * float(scale), size)
        return self.to_clip(video, size, generator), pixel_boxes.float()

    def resized(self, height: int, width: int, short_side: int) -> tuple[tuple[int, int], Fraction]:
        """Resized height and width, and the factor between the sizes."""
        scale = resize_scale(height, width, short_side, self.max_size)
        return (int(height * scale), int(width * scale)), scale

    def to_clip(self, video: Tensor, size: tuple[int, int], generator: Generator | None = None) -> Tensor:
        """Resize and normalise frames without boxes: (T, 3, H, W) uint8 -> (3, T, h, w) float32."""
        if size != tuple(video.shape[2:]):
            video = functional.resize(video, list(size), InterpolationMode.BILINEAR, antialias=False)
        frames, channels, height, width = video.shape
        clip = torch.empty(channels, frames, height, width, device=video.device)
        clip.copy_(video.transpose(0, 1))  # T 3 h w -> 3 T h w, uint8 -> float32
        if self.color_jitter > 0:
            jitter = (torch.rand(2, generator=generator) * 2 - 1) * self.color_jitter + 1
            brightness, contrast = jitter.tolist()
            mean = float(clip.mean())
            clip.mul_(brightness * contrast).add_(brightness * mean * (1 - contrast)).clamp_(0, 255)
        return clip.mul_(1 / (255 * self.std)).sub_(self.mean / self.std)


def flip_boxes(boxes_xyxy: Tensor, width: float) -> Tensor:
    """Mirror (n, 4) boxes, x -> width - x; `width` is in the unit of the boxes."""
    x1, y1, x2, y2 = boxes_xyxy.unbind(-1)
    return torch.stack((width - x2, y1, width - x1, y2), dim=-1)


def clip_boxes(boxes_xyxy: Tensor, size: tuple[int, int]) -> Tensor:
    """Clip (n, 4) boxes in pixels to [0, w-1] x [0, h-1]; `size` is height and width in pixels."""
    height, width = size
    return boxes_xyxy.clamp(min=0).minimum(boxes_xyxy.new_tensor((width - 1, height - 1, width - 1, height - 1)))
