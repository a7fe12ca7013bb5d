"""Detections over time: suppression, linking into tubes, and average precision of boxes and of tubes.

The definitions are those of the ACT and MOC programs for UCF101-24 and JHMDB: box IoU counts pixels (corner pixels
belong to a box), a detection takes the best-overlapping ground truth that is still free, and average precision joins
the points (recall, precision) by straight lines.

Everything works on all videos at once. What is sequential by definition (a suppressed box suppresses no more, a taken
box is gone, a tube grows frame by frame) runs in rounds over all videos in parallel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evad.metrics.frame_boxes import (
    FrameBoxes,
    ScoredFrameBoxes,
    ScoredTubes,
    Tubes,
    _combined,
    _pairs,
    pixel_iou,
    tube_iou,
)
from evad.metrics.linking import (
    greedy_pairs,
    suppressed_tubes,
)


@dataclass(frozen=True)
class ClassResult:
    """Average precision per class.

    Attributes:
        average_precision: (C,) float64 in [0, 1]; 0 for a class without ground truth.
        detections: (C,) int64, number of scored detections.
        recall: (C,) float64, share of the ground truth found by all detections together.
    """

    average_precision: np.ndarray
    detections: np.ndarray
    recall: np.ndarray

    @property
    def mAP(self) -> float:
        """Mean over all classes."""
        return float(self.average_precision.mean())


def frame_ap(truth: FrameBoxes, found: ScoredFrameBoxes, num_classes: int, iou_threshold: float = 0.5) -> ClassResult:
    """Average precision of boxes in frames.

    Args:
        truth: Annotated boxes.
        found: Detected boxes of the same videos; frames without ground truth count.
        num_classes: Number of classes C.
        iou_threshold: Smallest IoU of a match.
    """
    truth_group, found_group = _common_groups(
        (truth.video, truth.frame, truth.label), (found.video, found.frame, found.label)
    )
    by_score = np.argsort(-found.score, kind="stable")
    i, j = _pairs(found_group[by_score], truth_group)
    iou = pixel_iou(found.boxes[by_score[i]], truth.boxes[j])
    hits = _hits(len(found), truth_group[j], i, j, iou, iou_threshold)
    return _class_result(hits, found.label[by_score], truth.label, num_classes)


def video_ap(
    truth: Tubes, found: ScoredTubes, num_classes: int, iou_thresholds: tuple[float, ...]
) -> list[ClassResult]:
    """Average precision of tubes, after suppression among them, at each threshold.

    Args:
        truth: Annotated tubes.
        found: Detected tubes of the same videos.
        num_classes: Number of classes C.
        iou_thresholds: Smallest tube IoUs of a match.
    """
    found = suppressed_tubes(found)
    truth_group, found_group = _common_groups((truth.video, truth.label), (found.video, found.label))
    by_score = np.argsort(-found.score, kind="stable")
    i, j = _pairs(found_group[by_score], truth_group)
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
    """(n,) bool, which detections, numbered by descending score, find a ground truth that is still free."""
    near = iou >= threshold
    hits = np.zeros(num_found, dtype=bool)
    hits[greedy_pairs(group[near], i[near], j[near], iou[near])[0]] = True
    return hits


def _class_result(hits: np.ndarray, label: np.ndarray, truth_label: np.ndarray, num_classes: int) -> ClassResult:
    """Per class, from hits and labels of the detections by descending score."""
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
    """Area under the points (recall, precision) after each detection, from (0, 1), joined by straight lines.

    Args:
        hits: (n,) bool, by descending score.
        num_truth: Number of ground truths there were to find, at least 1.
    """
    found = np.cumsum(hits)
    precision = np.concatenate([[1.0], found / np.arange(1, len(hits) + 1)])
    recall = np.concatenate([[0.0], found / num_truth])
    return float(np.trapezoid(precision, recall))


def _common_groups(a: tuple[np.ndarray, ...], b: tuple[np.ndarray, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Group numbers for two sets of keys, equal where the keys are."""
    groups = _combined(*(np.concatenate(pair) for pair in zip(a, b, strict=True)))
    return groups[: len(a[0])], groups[len(a[0]) :]
