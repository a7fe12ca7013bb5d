"""Boxes and tubes of many videos, and their overlap by counted pixels."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from evad.metrics.frame_ap import Rows, within

_PAIRED_FRAMES = 2_000_000
"""Pairs of boxes compared at once by `tube_iou`; limits memory to a few hundred MB."""


@dataclass(frozen=True)
class FrameBoxes(Rows):
    """Boxes in frames of videos.

    Attributes:
        video: (n,) int64, number of the video.
        frame: (n,) int64, number of the frame.
        label: (n,) int64, class number.
        boxes: (n, 4) float64, xyxy in pixels, corner pixels included.
    """

    video: np.ndarray
    frame: np.ndarray
    label: np.ndarray
    boxes: np.ndarray


@dataclass(frozen=True)
class ScoredFrameBoxes(FrameBoxes):
    """Detected boxes in frames of videos.

    Attributes:
        score: (n,) float64, by which boxes are ranked.
    """

    score: np.ndarray


@dataclass(frozen=True)
class Tubes:
    """Boxes over consecutive frames of videos.

    Attributes:
        video: (t,) int64, number of the video.
        label: (t,) int64, class number.
        first_frame: (t,) int64, number of the first frame.
        length: (t,) int64, number of frames.
        boxes: (sum of lengths, 4) float64, boxes of the first tube, then of the second, ...; see `FrameBoxes`.
    """

    video: np.ndarray
    label: np.ndarray
    first_frame: np.ndarray
    length: np.ndarray
    boxes: np.ndarray

    def __len__(self) -> int:
        return len(self.video)

    def as_boxes(self) -> FrameBoxes:
        video, label, first_frame = (
            np.repeat(values, self.length) for values in (self.video, self.label, self.first_frame)
        )
        return FrameBoxes(video, first_frame + within(self.length), label, self.boxes)


@dataclass(frozen=True)
class ScoredTubes(Tubes):
    """Detected tubes.

    Attributes:
        score: (t,) float64, by which tubes are ranked.
    """

    score: np.ndarray

    def select(self, chosen: np.ndarray) -> ScoredTubes:
        """The tubes of a boolean mask (t,)."""
        rows = np.repeat(chosen, self.length)
        kept = {name: getattr(self, name)[chosen] for name in ("video", "label", "first_frame", "length", "score")}
        return replace(self, **kept, boxes=self.boxes[rows])


def pixel_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of box pairs in counted pixels.

    Args:
        a, b: (n, 4) float64, xyxy, corner pixels included: a box is x2 - x1 + 1 wide.

    Returns:
        (n,) float64.
    """
    width = np.minimum(a[:, 2], b[:, 2]) - np.maximum(a[:, 0], b[:, 0]) + 1
    height = np.minimum(a[:, 3], b[:, 3]) - np.maximum(a[:, 1], b[:, 1]) + 1
    intersection = np.maximum(width, 0) * np.maximum(height, 0)
    area_a = (a[:, 2] - a[:, 0] + 1) * (a[:, 3] - a[:, 1] + 1)
    area_b = (b[:, 2] - b[:, 0] + 1) * (b[:, 3] - b[:, 1] + 1)
    return intersection / (area_a + area_b - intersection)


def tube_iou(a: Tubes, of_a: np.ndarray, b: Tubes, of_b: np.ndarray) -> np.ndarray:
    """Overlap of tube pairs in space and time.

    Args:
        a, b: The tubes that form pairs.
        of_a, of_b: (p,) int64, number in `a` and number in `b` of the tubes of each pair.

    Returns:
        (p,) float64: mean box IoU over common frames, times common frames / frames of the union.
    """
    begin_a, begin_b = a.first_frame[of_a], b.first_frame[of_b]
    end_a, end_b = begin_a + a.length[of_a], begin_b + b.length[of_b]
    begin = np.maximum(begin_a, begin_b)
    common = np.maximum(np.minimum(end_a, end_b) - begin, 0)
    row_a = (np.cumsum(a.length) - a.length)[of_a] + begin - begin_a
    row_b = (np.cumsum(b.length) - b.length)[of_b] + begin - begin_b
    spatial = np.zeros(len(common))
    chunk = np.cumsum(common) // _PAIRED_FRAMES
    for pairs in np.split(np.arange(len(common)), np.flatnonzero(np.diff(chunk)) + 1):
        offset = within(common[pairs])
        iou = pixel_iou(
            a.boxes[np.repeat(row_a[pairs], common[pairs]) + offset],
            b.boxes[np.repeat(row_b[pairs], common[pairs]) + offset],
        )
        total = np.bincount(np.repeat(np.arange(len(pairs)), common[pairs]), iou, minlength=len(pairs))
        spatial[pairs] = total / np.maximum(common[pairs], 1)
    return spatial * (common / (np.maximum(end_a, end_b) - np.minimum(begin_a, begin_b)))


def combined_keys(*keys: np.ndarray) -> np.ndarray:
    """One number (n,) int64 for each combination of keys >= 0; the first key is the most significant."""
    number = keys[0]
    for key in keys[1:]:
        number = number * (int(key.max(initial=0)) + 1) + key
    return number


def run_starts(sorted_values: np.ndarray) -> np.ndarray:
    """Where each run of equal values starts."""
    if not len(sorted_values):
        return np.zeros(0, dtype=np.int64)
    return np.flatnonzero(np.append(True, sorted_values[1:] != sorted_values[:-1]))


def equal_pairs(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of an element of a and an equal element of b: (p,) int64 places in a and in b."""
    order = np.argsort(b, kind="stable")
    left, right = np.searchsorted(b[order], a, "left"), np.searchsorted(b[order], a, "right")
    return np.repeat(np.arange(len(a)), right - left), order[np.repeat(left, right - left) + within(right - left)]
