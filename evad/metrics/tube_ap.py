"""Average precision of boxes in frames and of tubes.

The definitions follow the ACT and MOC programs for UCF101-24 and JHMDB. Box IoU counts pixels, corner pixels included.
A detection matches the unmatched ground truth that it overlaps best. Average precision joins the points (recall,
precision) by straight lines.

All videos are processed together. Steps that are sequential by definition run in rounds over all videos in parallel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evad.metrics.frame_boxes import (
    FrameBoxes,
    ScoredFrameBoxes,
    ScoredTubes,
    Tubes,
    combined_keys,
    equal_pairs,
    pixel_iou,
    tube_iou,
)
from evad.metrics.linking import greedy_pairs, suppressed_tubes


@dataclass(frozen=True)
class ClassResult:
    """Average precision per class.

    Attributes:
        average_precision: (C,) float64 in [0, 1]; 0 for a class without ground truth.
        detections: (C,) int64, number of detections.
        recall: (C,) float64, share of the ground truth that was found.
    """

    average_precision: np.ndarray
    detections: np.ndarray
    recall: np.ndarray

    @property
    def mAP(self) -> float:
        return float(self.average_precision.mean())


def frame_ap(truth: FrameBoxes, found: ScoredFrameBoxes, num_classes: int, iou_threshold: float = 0.5) -> ClassResult:
    """Average precision of boxes in frames.

    Args:
        truth: Annotated boxes.
        found: Detected boxes of the same videos, also in frames without ground truth.
        num_classes: Number of classes C.
        iou_threshold: Smallest IoU of a match.
    """
    truth_group, found_group = _common_groups(
        (truth.video, truth.frame, truth.label), (found.video, found.frame, found.label)
    )
    by_score = np.argsort(-found.score, kind="stable")
    i, j = equal_pairs(found_group[by_score], truth_group)
    iou = pixel_iou(found.boxes[by_score[i]], truth.boxes[j])
    hits = _hits(len(found), truth_group[j], i, j, iou, iou_threshold)
    return _class_result(hits, found.label[by_score], truth.label, num_classes)


def video_ap(
    truth: Tubes, found: ScoredTubes, num_classes: int, iou_thresholds: tuple[float, ...]
) -> list[ClassResult]:
    """Average precision of tubes at each threshold, after suppression of overlapping tubes.

    Args:
        truth: Annotated tubes.
        found: Detected tubes of the same videos.
        num_classes: Number of classes C.
        iou_thresholds: Thresholds; tubes match if their IoU is at least the threshold.
    """
    found = suppressed_tubes(found)
    truth_group, found_group = _common_groups((truth.video, truth.label), (found.video, found.label))
    by_score = np.argsort(-found.score, kind="stable")
    i, j = equal_pairs(found_group[by_score], truth_group)
    iou = tube_iou(found, by_score[i], truth, j)
    return [
        _class_result(
            _hits(len(found), truth_group[j], i, j, iou, threshold), found.label[by_score], truth.label, num_classes
        )
        for threshold in iou_thresholds
    ]


def _hits(
    num_found: int, group: np.ndarray, i: np.ndarray, j: np.ndarray, iou: np.ndarray, threshold: float
) -> np.ndarray:
    """(n,) bool, which detections, numbered by descending score, match ground truth."""
    near = iou >= threshold
    hits = np.zeros(num_found, dtype=bool)
    hits[greedy_pairs(group[near], i[near], j[near], iou[near])[0]] = True
    return hits


def _class_result(hits: np.ndarray, label: np.ndarray, truth_label: np.ndarray, num_classes: int) -> ClassResult:
    num_truth = np.bincount(truth_label, minlength=num_classes)
    num_found = np.bincount(label, minlength=num_classes)
    ap, recall = np.zeros(num_classes), np.zeros(num_classes)
    per_class = np.split(hits[np.argsort(label, kind="stable")], np.cumsum(num_found)[:-1])
    for number, ranked in enumerate(per_class):
        if num_truth[number] and len(ranked):
            ap[number] = trapezoid_ap(ranked, int(num_truth[number]))
            recall[number] = ranked.sum() / num_truth[number]
    return ClassResult(ap, num_found, recall)


def trapezoid_ap(hits: np.ndarray, num_truth: int) -> float:
    """Area under the points (recall, precision) after each detection, starting at (0, 1), joined by straight lines.

    Args:
        hits: (n,) bool, by descending score.
        num_truth: Number of ground truths, at least 1.
    """
    found = np.cumsum(hits)
    precision = np.concatenate([[1.0], found / np.arange(1, len(hits) + 1)])
    recall = np.concatenate([[0.0], found / num_truth])
    return float(np.trapezoid(precision, recall))


def _common_groups(a: tuple[np.ndarray, ...], b: tuple[np.ndarray, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Group numbers of two sets of keys; equal keys have equal numbers."""
    groups = combined_keys(*(np.concatenate(pair) for pair in zip(a, b, strict=True)))
    return groups[: len(a[0])], groups[len(a[0]) :]
