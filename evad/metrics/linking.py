"""Suppression of overlapping detections, and linking of boxes into tubes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from evad.metrics.frame_boxes import (
    FrameBoxes,
    ScoredFrameBoxes,
    ScoredTubes,
    _combined,
    _pairs,
    _starts,
    _within,
    pixel_iou,
    tube_iou,
)


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


def _box_overlap(boxes: FrameBoxes) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """IoU of rows."""
    return lambda i, j: pixel_iou(boxes.boxes[i], boxes.boxes[j])


def _frame_group(boxes: FrameBoxes) -> np.ndarray:
    """(n,) int64, a number per video, frame and class."""
    return _combined(boxes.video, boxes.frame, boxes.label)
