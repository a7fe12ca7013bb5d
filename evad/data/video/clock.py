"""Converts between seconds and frames of a video, also if its frame rate varies, as in recordings of phones."""

from __future__ import annotations

from typing import Protocol, TypeVar

import numpy as np

Numbers = TypeVar("Numbers", float, np.ndarray)


class Timed(Protocol):
    """When the frames of a video are shown.

    Attributes:
        fps: Frames per second; the average if the rate varies.
        times: (num_frames,) float64, ascending seconds since the first frame; None if frame k is shown at k / fps.
    """

    @property
    def fps(self) -> float: ...

    @property
    def times(self) -> np.ndarray | None: ...


def measured_rate(times: np.ndarray, stated_fps: float) -> tuple[float, np.ndarray | None]:
    """Find the frame rate and, if it varies, the times of the frames.

    The rate is constant if it predicts the time of every frame to within half a frame. The rate stated by the container
    is not always correct (Matroska, WebM), so the average rate is tried as well.

    Args:
        times: (num_frames,) ascending seconds at which frames are shown.

    Returns:
        `fps` and `times` as in `Timed`.
    """
    since = times - times[0]
    for fps in (stated_fps, average_rate(since, stated_fps)):
        if np.abs(since * fps - np.arange(len(since))).max() <= 0.5:
            return fps, None
    return fps, since


def average_rate(times: np.ndarray, otherwise: float) -> float:
    """Frames per second between the first and the last frame; `otherwise` if there is only one frame."""
    return float((len(times) - 1) / times[-1]) if times[-1] > 0 else otherwise


def shown_at(video: Timed, second: np.ndarray) -> np.ndarray:
    """The int64 index of the frame on screen at each `second`; may be beyond the video's ends.

    At a constant rate this is the nearest frame. At a varying rate a frame stays on screen until the next one. Because
    times are rounded, a frame is treated as shown early, by half the median interval but at most 1 / 50 s.
    """
    if video.times is None:
        return np.floor(second * video.fps + 0.5).astype(np.int64)
    early = min(0.5 * float(np.median(np.diff(video.times))), 0.02)
    return np.searchsorted(video.times, second + early, side="right") - 1


def frame_at(video: Timed, second: Numbers) -> Numbers:
    """Convert seconds to fractional frames, linearly between two frames, at the average rate beyond the ends."""
    if video.times is None:
        return second * video.fps
    frames = np.arange(len(video.times), dtype=np.float64)
    return np.interp(second, video.times, frames) + _beyond(second, video.times[-1]) * video.fps


def second_at(video: Timed, frame: Numbers) -> Numbers:
    """The inverse of `frame_at`."""
    if video.times is None:
        return frame / video.fps
    frames = np.arange(len(video.times), dtype=np.float64)
    return np.interp(frame, frames, video.times) + _beyond(frame, frames[-1]) / video.fps


def _beyond(value: Numbers, end: float) -> Numbers:
    """Distance of a value from [0, end]; negative below 0."""
    return value - np.clip(value, 0, end)
