"""Conversion between seconds and frames of a video, also for varying frame rates, as phones record them."""

from __future__ import annotations

from typing import Protocol, TypeVar

import numpy as np

Numbers = TypeVar("Numbers", float, np.ndarray)


class Timed(Protocol):
    """When the frames of a video are shown.

    Attributes:
        fps: Frames per second, the average where they vary.
        times: (num_frames,) float64, ascending seconds since the first frame; None where frame k is shown at k / fps.
    """

    @property
    def fps(self) -> float: ...

    @property
    def times(self) -> np.ndarray | None: ...


def measured_rate(times: np.ndarray, stated_fps: float) -> tuple[float, np.ndarray | None]:
    """Frame rate and, if it varies, times of the frames.

    A rate fits if no frame is further than half a frame from where it would be. Some containers (Matroska, WebM) state
    a rate that the file does not have.

    Args:
        times: (num_frames,) seconds at which frames are shown, ascending.
        stated_fps: Rate that the container states.

    Returns:
        `fps` and `times` as in `Timed`.
    """
    since = times - times[0]
    for fps in (stated_fps, average_rate(since, stated_fps)):
        if np.abs(since * fps - np.arange(len(since))).max() <= 0.5:
            return fps, None
    return fps, since


def average_rate(times: np.ndarray, otherwise: float) -> float:
    """Frames per second between the first frame and the last; `otherwise` for a single frame."""
    return float((len(times) - 1) / times[-1]) if times[-1] > 0 else otherwise


def shown_at(video: Timed, second: np.ndarray) -> np.ndarray:
    """The frame on screen at each `second`, int64; it may lie beyond the video's ends.

    At a constant rate that is the nearest frame. Where the rate varies a frame stays until the next one, however long
    that takes; it counts as shown half a usual interval early, at most 1 / 50 s, as times are rounded.
    """
    if video.times is None:
        return np.floor(second * video.fps + 0.5).astype(np.int64)
    early = min(0.5 * float(np.median(np.diff(video.times))), 0.02)
    return np.searchsorted(video.times, second + early, side="right") - 1


def frame_at(video: Timed, second: Numbers) -> Numbers:
    """`second` in frames, with the fraction of the interval that has passed; beyond the ends at the average rate."""
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
    """How far a value lies below 0 (negative) or above `end`."""
    return value - np.clip(value, 0, end)
