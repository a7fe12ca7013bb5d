"""Matching with ground truth and average precision, as the AVA programs define them, for the boxes of many frames.

All computations are float64 and vectorized over frames and detections.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TypeVar

import numpy as np

AnyRows = TypeVar("AnyRows", bound="Rows")


@dataclass(frozen=True)
class Rows:
    """Base of tables: each field is an array with one entry per row."""

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))

    def select(self: AnyRows, rows: np.ndarray) -> AnyRows:
        """The rows of a boolean mask or an index array, in that order."""
        return replace(self, **{field.name: getattr(self, field.name)[rows] for field in fields(self)})


@dataclass(frozen=True)
class Boxes(Rows):
    """Annotated boxes of many frames, one row per person and action.

    Attributes:
        frame: (n,) int64, frame number, the same in ground truth and detections.
        boxes: (n, 4) float64, xyxy.
        action: (n,) int64, action id.
    """

    frame: np.ndarray
    boxes: np.ndarray
    action: np.ndarray


@dataclass(frozen=True)
class ScoredBoxes(Boxes):
    """Detected boxes of many frames, one row per person and action.

    Attributes:
        score: (n,) float64, by which rows are ranked.
    """

    score: np.ndarray


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of box pairs in continuous coordinates.

    Args:
        a, b: (..., 4) float64, xyxy, of the same shape.

    Returns:
        (...) float64; 0 if both areas are 0.
    """
    width = np.minimum(a[..., 2], b[..., 2]) - np.maximum(a[..., 0], b[..., 0])
    height = np.minimum(a[..., 3], b[..., 3]) - np.maximum(a[..., 1], b[..., 1])
    intersection = np.maximum(width, 0.0) * np.maximum(height, 0.0)
    area_a = (a[..., 2] - a[..., 0]) * (a[..., 3] - a[..., 1])
    area_b = (b[..., 2] - b[..., 0]) * (b[..., 3] - b[..., 1])
    union = area_a + area_b - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union != 0)


def match(
    ground_truth: np.ndarray,
    ground_truth_group: np.ndarray,
    detections: np.ndarray,
    detection_group: np.ndarray,
    iou_threshold: float,
) -> np.ndarray:
    """Which detections are true positives, if each can only match the ground-truth box it overlaps best.

    Args:
        ground_truth: (m, 4) float64, xyxy; among equal overlaps the first box is chosen.
        ground_truth_group: (m,) int64; boxes are compared within a group (frame and class).
        detections: (n, 4) float64, xyxy; the first detection to reach the threshold with a box matches it.
        detection_group: (n,) int64.
        iou_threshold: Smallest IoU of a match.

    Returns:
        (n,) bool.
    """
    true_positive = np.zeros(len(detections), dtype=bool)
    if not len(ground_truth) or not len(detections):
        return true_positive
    by_group = np.argsort(ground_truth_group, kind="stable")
    groups, starts, counts = np.unique(ground_truth_group[by_group], return_index=True, return_counts=True)
    group = np.minimum(np.searchsorted(groups, detection_group), len(groups) - 1)
    rivals = np.where(groups[group] == detection_group, counts[group], 0)
    # Sorted by the number of ground-truth boxes, so that the detections with a j-th box are a leading slice.
    by_rivals = np.argsort(-rivals, kind="stable")
    rivals = rivals[by_rivals]
    first = starts[group[by_rivals]]
    best_iou = np.full(len(detections), -1.0)
    best = np.zeros(len(detections), dtype=np.int64)
    for j in range(rivals[0]):
        some = by_rivals[: np.searchsorted(-rivals, -j)]  # rivals > j
        candidate = by_group[first[: len(some)] + j]
        iou = box_iou(detections[some], ground_truth[candidate])
        better = iou > best_iou[some]
        best_iou[some[better]] = iou[better]
        best[some[better]] = candidate[better]
    hits = np.flatnonzero(best_iou >= iou_threshold)
    _, earliest = np.unique(best[hits], return_index=True)
    true_positive[hits[earliest]] = True
    return true_positive


def average_precision(true_positive: np.ndarray, num_ground_truth: int) -> float:
    """Area under the precision envelope over all recall steps.

    Args:
        true_positive: (n,) bool, by descending score.
        num_ground_truth: Number of annotated boxes, at least 1.
    """
    found = np.cumsum(true_positive)
    precision = found / np.arange(1, len(found) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(envelope[true_positive].sum() / num_ground_truth)


def best_rows(rows: ScoredBoxes, limit: int) -> np.ndarray:
    """Which rows are kept if each frame keeps only its `limit` best-scored rows.

    The AVA programs insert rows one by one into a list of `limit` rows. If the list is full, a row is inserted only if
    it scores strictly higher than the lowest row, which has the smallest (score, action id, y1, x1, y2, x2) and is
    replaced. This matters for rows that share the lowest kept score. Such a row is inserted only if fewer than `limit`
    rows before it have at least this score; better rows that come later then replace the smallest of them.

    Args:
        rows: n rows, in the order of the file.
        limit: Rows per frame, at least 1.

    Returns:
        (n,) bool.
    """
    ranking = np.lexsort((-rows.score, rows.frame))
    frames, starts, counts = np.unique(rows.frame[ranking], return_index=True, return_counts=True)
    full = counts > limit
    lowest = np.full(len(frames), -np.inf)
    lowest[full] = rows.score[ranking[starts[full] + limit - 1]]
    frame = np.searchsorted(frames, rows.frame)
    keep = rows.score > lowest[frame]
    free = limit - np.bincount(frame[keep], minlength=len(frames))
    at_least = np.flatnonzero(rows.score >= lowest[frame])
    entered = at_least[_rank_in_group(frame[at_least]) < limit]
    tied = entered[~keep[entered]]
    x1, y1, x2, y2 = rows.boxes[tied].T
    largest_first = tied[np.lexsort((-x2, -y2, -x1, -y1, -rows.action[tied]))]
    keep[largest_first[_rank_in_group(frame[largest_first]) < free[frame[largest_first]]]] = True
    return keep


def _rank_in_group(group: np.ndarray) -> np.ndarray:
    """For each element the number of elements of the same group before it."""
    order = np.argsort(group, kind="stable")
    counts = np.unique(group[order], return_counts=True)[1]
    rank = np.empty(len(group), dtype=np.int64)
    rank[order] = within(counts)
    return rank


def within(counts: np.ndarray) -> np.ndarray:
    """0 to counts[0] - 1, then 0 to counts[1] - 1, ..."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
