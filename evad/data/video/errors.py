"""The interface of all video readers, and their errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

REENCODE = "download it again or re-encode it (ffmpeg -i OLD -c:v libx264 -crf 18 NEW.mp4)"


class VideoError(RuntimeError):
    """A video cannot be opened or decoded; the text names the video, the reason and a remedy."""


class VideoReader(Protocol):
    """Random access to the frames of one video.

    Attributes:
        fps: Frames per second, see `Timed`.
        times: Times of the frames if the rate varies, see `Timed`.
        height, width: Size of a frame in pixels, as displayed.
    """

    num_frames: int
    fps: float
    times: np.ndarray | None
    height: int
    width: int

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Read frames as (T, H, W, 3) uint8 RGB; `indices` may be in any order and may repeat.

        Raises:
            IndexError: An index is outside [0, num_frames).
            VideoError: A frame cannot be decoded.
        """
        ...


def check_indices(indices: Sequence[int] | np.ndarray, num_frames: int, name: object) -> tuple[np.ndarray, np.ndarray]:
    """Sort and deduplicate frame indices; also returns the place of each requested index in the result."""
    requested = np.asarray(indices, dtype=np.int64)
    if requested.ndim != 1 or not len(requested):
        raise ValueError(f"{name}: frame indices must be a non-empty list, got shape {requested.shape}")
    wrong = requested[(requested < 0) | (requested >= num_frames)]
    if len(wrong):
        raise IndexError(f"{name}: frame {wrong[0]} is outside the video, which has frames 0 to {num_frames - 1}")
    return np.unique(requested, return_inverse=True)


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
