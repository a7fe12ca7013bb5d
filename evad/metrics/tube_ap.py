"""Detections over time: suppression, linking into tubes, and average precision of boxes and of tubes.

The definitions are those of the ACT and MOC programs for UCF101-24 and JHMDB: box IoU counts pixels (corner pixels
belong to a box), a detection takes the best-overlapping ground truth that is still free, and average precision joins
the points (recall, precision) by straight lines.

Everything works on all videos at once. What is sequential by definition (a suppressed box suppresses no more, a taken
box is gone, a tube grows frame by frame) runs in rounds over all videos in parallel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import numpy as np

_Boxes = TypeVar("_Boxes", bound="FrameBoxes")
_PAIRED_FRAMES = 2_000_000
"""Boxes compared at once between tubes: bounds memory to a few hundred MB."""


@dataclass(frozen=True)
class FrameBoxes:
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

    def __len__(self) -> int:
        return len(self.frame)

    def select(self: _Boxes, rows: np.ndarray) -> _Boxes:
        """The rows of a boolean mask or an index array, in that order."""
        return replace(self, **{field.name: getattr(self, field.name)[rows] for field in fields(self)})


@dataclass(frozen=True)
class ScoredFrameBoxes(FrameBoxes):
    """Detected boxes in frames of videos.

    Attributes:
        score: (n,) float64, what ranks a box.
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
        """The boxes of all tubes, each by itself."""
        video, label, first_frame = (
            np.repeat(values, self.length) for values in (self.video, self.label, self.first_frame)
        )
        return FrameBoxes(video, first_frame + _within(self.length), label, self.boxes)


@dataclass(frozen=True)
class ScoredTubes(Tubes):
    """Detected tubes.

    Attributes:
        score: (t,) float64, what ranks a tube.
    """

    score: np.ndarray

    def select(self, chosen: np.ndarray) -> ScoredTubes:
        """The tubes of a boolean mask (t,)."""
        rows = np.repeat(chosen, self.length)
        kept = {name: getattr(self, name)[chosen] for name in ("video", "label", "first_frame", "length", "score")}
        return replace(self, **kept, boxes=self.boxes[rows])


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


def pixel_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of box pairs in counted pixels.

    Args:
        a: (n, 4) float64, xyxy, corner pixels included: a box is x2 - x1 + 1 wide.
        b: (n, 4) float64.

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
        a: Tubes.
        of_a: (p,) int64, the first tube of each pair.
        b: Tubes.
        of_b: (p,) int64, the second tube of each pair.

    Returns:
        (p,) float64: mean box IoU over the frames both have, times these frames' share of all frames of either.
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
        within = _within(common[pairs])
        iou = pixel_iou(
            a.boxes[np.repeat(row_a[pairs], common[pairs]) + within],
            b.boxes[np.repeat(row_b[pairs], common[pairs]) + within],
        )
        total = np.bincount(np.repeat(np.arange(len(pairs)), common[pairs]), iou, minlength=len(pairs))
        spatial[pairs] = total / np.maximum(common[pairs], 1)
    return spatial * (common / (np.maximum(end_a, end_b) - np.minimum(begin_a, begin_b)))


def suppression(
    group: np.ndarray, score: np.ndarray, overlap: Callable[[np.ndarray, np.ndarray], np.ndarray], threshold: float
) -> np.ndarray:
    """By how much the better-scored overlap each item: nothing for those that stand.

    Per group by descending score, an item that stands suppresses all later ones it overlaps by more than the threshold;
    a suppressed item suppresses nothing.

    Args:
        group: (n,) int64; items meet only items of the same group.
        score: (n,) float64; among equal scores the first goes first.
        overlap: Called with two (p,) int64 arrays of items; overlap of each pair.
        threshold: Largest overlap that does not suppress.

    Returns:
        (n,) float64: overlap with the item that suppressed this one, 0 for items that stand.
    """
    order = np.lexsort((-score, group))
    starts = _starts(group[order])
    ends = np.append(starts[1:], len(order))
    standing = np.ones(len(order), dtype=bool)
    suppressed_by = np.zeros(len(order))
    for rank in range(int((ends - starts).max(initial=0)) - 1):
        larger = ends - starts > rank + 1
        starts, ends = starts[larger], ends[larger]
        leaders = standing[starts + rank]
        followers = (ends - starts - rank - 1)[leaders]
        first = np.repeat((starts + rank)[leaders], followers)
        second = first + 1 + _within(followers)
        first, second = first[standing[second]], second[standing[second]]
        iou = overlap(order[first], order[second])
        hit = iou > threshold
        standing[second[hit]] = False
        suppressed_by[order[second[hit]]] = iou[hit]
    return suppressed_by


def soft_suppressed(boxes: ScoredFrameBoxes, threshold: float = 0.6) -> ScoredFrameBoxes:
    """Boxes with the scores of overlapping ones lowered (MOC): times 1 - IoU, per frame and class; none is removed."""
    overlap = suppression(_frame_group(boxes), boxes.score, _box_overlap(boxes), threshold)
    return replace(boxes, score=boxes.score * (1 - overlap))


def hard_suppressed(boxes: ScoredFrameBoxes, threshold: float = 0.3) -> ScoredFrameBoxes:
    """Boxes without those that overlap a better-scored one (ACT), per frame and class."""
    return boxes.select(suppression(_frame_group(boxes), boxes.score, _box_overlap(boxes), threshold) == 0)


def suppressed_tubes(tubes: ScoredTubes, threshold: float = 0.3) -> ScoredTubes:
    """Tubes without those that overlap a better-scored one, per video and class."""
    group = _combined(tubes.video, tubes.label)
    overlap = suppression(group, tubes.score, lambda i, j: tube_iou(tubes, i, tubes, j), threshold)
    return tubes.select(overlap == 0)


def greedy_pairs(
    group: np.ndarray, chooser: np.ndarray, choice: np.ndarray, preference: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs made when choosers come one after another and each takes its dearest choice that is still free.

    Args:
        group: (p,) int64; choosers and choices belong to one group each, and groups don't compete.
        chooser: (p,) int64; inside a group the smallest comes first.
        choice: (p,) int64.
        preference: (p,) float64; a chooser takes the largest, among equals the smallest choice.

    Returns:
        (m,) int64 choosers and (m,) int64 choices of the pairs made.
    """
    order = np.lexsort((choice, -preference, chooser, group))
    group, chooser, choice = group[order], chooser[order], choice[order]
    served = np.zeros(int(chooser.max(initial=-1)) + 1, dtype=bool)
    taken = np.zeros(int(choice.max(initial=-1)) + 1, dtype=bool)
    choosers, choices = [chooser[:0]], [choice[:0]]
    while len(group):
        first = _starts(group)  # of each group the next chooser with its dearest free choice
        served[chooser[first]] = True
        taken[choice[first]] = True
        choosers.append(chooser[first])
        choices.append(choice[first])
        left = ~(served[chooser] | taken[choice])
        group, chooser, choice = group[left], chooser[left], choice[left]
    return np.concatenate(choosers), np.concatenate(choices)


def link(
    boxes: ScoredFrameBoxes, min_iou: float = 0.5, min_length: int = 15, min_score: float = 0.005
) -> tuple[ScoredTubes, np.ndarray]:
    """Tubes grown frame by frame through the boxes of each video and class (MOC with tubelets of one frame).

    Open tubes, best mean score first, each take the best-scored free box that overlaps their last box enough; a tube
    that finds none is closed, boxes that are left open new tubes. So the open tubes of a frame are exactly the boxes of
    the frame before.

    Args:
        boxes: What to link: n boxes, after suppression and with few per frame and class (`link_candidates`).
        min_iou: Smallest IoU of a box with the last box of the tube it continues.
        min_length: Smallest number of frames of a tube.
        min_score: Smallest mean score of a tube, which is its score.

    Returns:
        The tubes, and for each of their boxes its row in `boxes`.
    """
    chain = _combined(boxes.video, boxes.label)
    order = np.lexsort((-boxes.score, chain, boxes.frame))
    boxes, chain = boxes.select(order), chain[order]
    tube = np.full(len(boxes), -1)
    total, count = np.zeros(len(boxes)), np.zeros(len(boxes), dtype=np.int64)
    num_tubes = 0
    starts = _starts(boxes.frame)
    open_rows = np.zeros(0, dtype=np.int64)
    for start, end in zip(starts, np.append(starts[1:], len(boxes))):
        rows = np.arange(start, end)
        if len(open_rows) and boxes.frame[open_rows[0]] + 1 == boxes.frame[start]:
            open_tubes = tube[open_rows]
            by_mean = np.lexsort((open_tubes, -total[open_tubes] / count[open_tubes], chain[open_rows]))
            tails = open_rows[by_mean]
            i, j = _pairs(chain[tails], chain[rows])
            near = pixel_iou(boxes.boxes[tails[i]], boxes.boxes[rows[j]]) >= min_iou
            i, j = greedy_pairs(chain[tails[i[near]]], i[near], j[near], boxes.score[rows[j[near]]])
            tube[rows[j]] = tube[tails[i]]
        new = rows[tube[rows] < 0]
        tube[new] = num_tubes + np.arange(len(new))
        num_tubes += len(new)
        total[tube[rows]] += boxes.score[rows]
        count[tube[rows]] += 1
        open_rows = rows
    members = np.argsort(tube, kind="stable")
    first = members[_starts(tube[members])]
    length, score = count[:num_tubes], total[:num_tubes] / np.maximum(count[:num_tubes], 1)
    tubes = ScoredTubes(boxes.video[first], boxes.label[first], boxes.frame[first], length, boxes.boxes[members], score)
    good = (length >= min_length) & (score >= min_score)
    return tubes.select(good), order[members[np.repeat(good, length)]]


def link_candidates(boxes: ScoredFrameBoxes, limit: int = 10) -> ScoredFrameBoxes:
    """The boxes MOC links: the best of each frame and class after soft suppression.

    Args:
        boxes: Detections as the model scores them.
        limit: Boxes per frame and class.
    """
    boxes = soft_suppressed(boxes)
    group = _frame_group(boxes)
    order = np.lexsort((-boxes.score, group))
    starts = _starts(group[order])
    rank = _within(np.diff(np.append(starts, len(order))))
    return boxes.select(order[rank < limit])


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


def _box_overlap(boxes: FrameBoxes) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """IoU of rows."""
    return lambda i, j: pixel_iou(boxes.boxes[i], boxes.boxes[j])


def _frame_group(boxes: FrameBoxes) -> np.ndarray:
    """(n,) int64, a number per video, frame and class."""
    return _combined(boxes.video, boxes.frame, boxes.label)


def _combined(*keys: np.ndarray) -> np.ndarray:
    """(n,) int64, a number per combination of keys (not negative); the first key is the most significant."""
    number = keys[0]
    for key in keys[1:]:
        number = number * (int(key.max(initial=0)) + 1) + key
    return number


def _common_groups(a: tuple[np.ndarray, ...], b: tuple[np.ndarray, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Group numbers for two sets of keys, equal where the keys are."""
    groups = _combined(*(np.concatenate(pair) for pair in zip(a, b, strict=True)))
    return groups[: len(a[0])], groups[len(a[0]) :]


def _starts(sorted_values: np.ndarray) -> np.ndarray:
    """Where each run of equal values starts."""
    if not len(sorted_values):
        return np.zeros(0, dtype=np.int64)
    return np.flatnonzero(np.append(True, sorted_values[1:] != sorted_values[:-1]))


def _within(counts: np.ndarray) -> np.ndarray:
    """0 to counts[0] - 1, then 0 to counts[1] - 1, ..."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


def _pairs(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of an element of a and an equal element of b: (p,) int64 places in a and in b."""
    order = np.argsort(b, kind="stable")
    left, right = np.searchsorted(b[order], a, "left"), np.searchsorted(b[order], a, "right")
    return np.repeat(np.arange(len(a)), right - left), order[np.repeat(left, right - left) + _within(right - left)]
