"""Chooses the frame indices of the clip around a keyframe."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evad.data.video.clock import frame_at, second_at, shown_at
from evad.data.video.errors import VideoReader
from evad.structures import Keyframe


def clip_indices(center: float, num_frames: int, stride: float, length: int) -> np.ndarray:
    """Frame indices of a clip around a keyframe; beyond the video's ends the first or last frame is repeated.

    The keyframe is entry `num_frames // 2`: 16 frames with stride 4 are center-32, center-28, ..., center+28.

    Args:
        center: Frame index of the keyframe; fractions are rounded to the nearest frame, halves up.
        num_frames: Number of frames of the clip, T.
        stride: Distance between two frames of the clip, in frames of the video; may be fractional.
        length: Number of frames of the video.

    Returns:
        (T,) int64, each in [0, length).
    """
    instants = center + (np.arange(num_frames) - num_frames // 2) * stride
    return np.clip(np.floor(instants + 0.5), 0, length - 1).astype(np.int64)


@dataclass(frozen=True)
class ClipSampler:
    """Chooses the frames of a keyframe's clip by time, so that clips span the same time at any frame rate.

    Attributes:
        num_frames: Number of frames of a clip, T.
        frame_stride: Distance between two frames of a clip, in ticks of `annotated_fps`; 0 repeats the keyframe, a
            control experiment without motion.
        annotated_fps: Ticks per second of `Keyframe.position` and `frame_stride` (AVA: 30); None: a tick is a frame of
            the video, whatever its frame rate (UCF101-24, JHMDB).
    """

    num_frames: int = 16
    frame_stride: int = 4
    annotated_fps: float | None = None

    def __post_init__(self) -> None:
        if self.num_frames < 1 or self.frame_stride < 0:
            settings = f"num_frames is {self.num_frames}, frame_stride {self.frame_stride}"
            raise ValueError(f"{settings}; use at least 1 frame, and a stride of at least 0")
        if self.annotated_fps is not None and self.annotated_fps <= 0:
            raise ValueError(f"annotated_fps is {self.annotated_fps}; give frames per second, or null for frames")

    def __call__(self, keyframe: Keyframe, reader: VideoReader) -> np.ndarray:
        """(T,) int64 frame indices of the clip around a keyframe.

        Raises:
            ValueError: The keyframe is more than a frame outside the video.
        """
        center = self._center(keyframe.position, reader)
        # One frame of tolerance, because the position of the last frame may round to the video's length.
        if not -1 <= center <= reader.num_frames:
            clock = "" if self.annotated_fps is None else f" ({keyframe.position / self.annotated_fps:g} s)"
            raise ValueError(
                f"video {keyframe.video}: keyframe {keyframe.timestamp} is frame {center:g}{clock}, but the video has "
                f"{reader.num_frames} frames at {reader.fps:g} per second; check the annotation, the second the video "
                f"starts at, and whether the file is complete"
            )
        return self.around(center, reader)

    def around(self, center: float, reader: VideoReader) -> np.ndarray:
        """(T,) int64 frame indices of the clip around frame `center` of the video."""
        if self.annotated_fps is None or reader.times is None:
            stride = self.frame_stride * self._frames_per_tick(reader)
            return clip_indices(center, self.num_frames, stride, reader.num_frames)
        offsets = (np.arange(self.num_frames) - self.num_frames // 2) * (self.frame_stride / self.annotated_fps)
        return np.clip(shown_at(reader, second_at(reader, center) + offsets), 0, reader.num_frames - 1)

    def _center(self, position: float, reader: VideoReader) -> float:
        if self.annotated_fps is None or reader.times is None:
            return position * self._frames_per_tick(reader)
        return frame_at(reader, position / self.annotated_fps)

    def _frames_per_tick(self, reader: VideoReader) -> float:
        return 1.0 if self.annotated_fps is None else reader.fps / self.annotated_fps
