"""Suppression of overlapping detections, and linking of boxes into tubes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from evad.metrics.frame_ap import within
from evad.metrics.frame_boxes import (
    FrameBoxes,
    ScoredFrameBoxes,
    ScoredTubes,
    combined_keys,
    equal_pairs,
    pixel_iou,
    run_starts,
    tube_iou,
)


def suppression(
    group: np.ndarray, score: np.ndarray, overlap: Callable[[np.ndarray, np.ndarray], np.ndarray], threshold: float
) -> np.ndarray:
    """Non-maximum suppression: overlap of each item with the better-scored item that suppresses it.

    In each group, by descending score, an item that is not suppressed suppresses all later items that it overlaps by
    more than the threshold.

    Args:
        group: (n,) int64; items are compared within a group.
        score: (n,) float64; items with equal scores keep their order.
        overlap: Returns the overlap of each pair, given two (p,) int64 arrays of item numbers.
        threshold: Largest overlap without suppression.

    Returns:
        (n,) float64: overlap with the suppressing item, 0 for items that are not suppressed.
    """
    order = np.lexsort((-score, group))
    starts = run_starts(group[order])
    ends = np.append(starts[1:], len(order))
    standing = np.ones(len(order), dtype=bool)
    suppressed_by = np.zeros(len(order))
    for rank in range(int((ends - starts).max(initial=0)) - 1):
        larger = ends - starts > rank + 1
        starts, ends = starts[larger], ends[larger]
        leaders = standing[starts + rank]
        followers = (ends - starts - rank - 1)[leaders]
        first = np.repeat((starts + rank)[leaders], followers)
        second = first + 1 + within(followers)
        first, second = first[standing[second]], second[standing[second]]
        iou = overlap(order[first], order[second])
        hit = iou > threshold
        standing[second[hit]] = False
        suppressed_by[order[second[hit]]] = iou[hit]
    return suppressed_by


def soft_suppressed(boxes: ScoredFrameBoxes, threshold: float = 0.6) -> ScoredFrameBoxes:
    """Soft suppression of MOC, per frame and class: multiplies the scores of suppressed boxes by 1 - IoU."""
    overlap = suppression(_frame_group(boxes), boxes.score, _box_overlap(boxes), threshold)
    return replace(boxes, score=boxes.score * (1 - overlap))


def hard_suppressed(boxes: ScoredFrameBoxes, threshold: float = 0.3) -> ScoredFrameBoxes:
    """Hard suppression of ACT, per frame and class: removes boxes that overlap a better-scored box."""
    return boxes.select(suppression(_frame_group(boxes), boxes.score, _box_overlap(boxes), threshold) == 0)


def suppressed_tubes(tubes: ScoredTubes, threshold: float = 0.3) -> ScoredTubes:
    """Hard suppression of tubes, per video and class."""
    group = combined_keys(tubes.video, tubes.label)
    overlap = suppression(group, tubes.score, lambda i, j: tube_iou(tubes, i, tubes, j), threshold)
    return tubes.select(overlap == 0)


def greedy_pairs(
    group: np.ndarray, chooser: np.ndarray, choice: np.ndarray, preference: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Greedy matching: each chooser in turn is paired with its most preferred free choice.

    Args:
        group: (p,) int64; each chooser and each choice belongs to one group.
        chooser: (p,) int64; in each group the smallest number is first.
        choice: (p,) int64.
        preference: (p,) float64; a chooser prefers the largest value, and the smallest choice if values are equal.

    Returns:
        (m,) int64 choosers and (m,) int64 choices of the pairs.
    """
    order = np.lexsort((choice, -preference, chooser, group))
    group, chooser, choice = group[order], chooser[order], choice[order]
    served = np.zeros(int(chooser.max(initial=-1)) + 1, dtype=bool)
    taken = np.zeros(int(choice.max(initial=-1)) + 1, dtype=bool)
    choosers, choices = [chooser[:0]], [choice[:0]]
    while len(group):
        first = run_starts(group)  # the next chooser of each group and its most preferred free choice
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

    In each frame the open tubes, by descending mean score, are each extended by the best-scored free box with at least
    `min_iou` to their last box. A tube that cannot be extended is closed; each remaining box starts a new tube. So each
    box of the previous frame is the end of exactly one open tube.

    Args:
        boxes: n boxes to link, after suppression and with few per frame and class (`link_candidates`).
        min_iou: Smallest IoU of consecutive boxes of a tube.
        min_length: Smallest number of frames of a tube.
        min_score: Smallest score of a tube, which is the mean of its boxes' scores.

    Returns:
        The tubes, and the row in `boxes` of each of their boxes.
    """
    chain = combined_keys(boxes.video, boxes.label)
    order = np.lexsort((-boxes.score, chain, boxes.frame))
    boxes, chain = boxes.select(order), chain[order]
    tube = np.full(len(boxes), -1)
    total, count = np.zeros(len(boxes)), np.zeros(len(boxes), dtype=np.int64)
    num_tubes = 0
    starts = run_starts(boxes.frame)
    open_rows = np.zeros(0, dtype=np.int64)
    for start, end in zip(starts, np.append(starts[1:], len(boxes))):
        rows = np.arange(start, end)
        if len(open_rows) and boxes.frame[open_rows[0]] + 1 == boxes.frame[start]:
            open_tubes = tube[open_rows]
            by_mean = np.lexsort((open_tubes, -total[open_tubes] / count[open_tubes], chain[open_rows]))
            tails = open_rows[by_mean]
            i, j = equal_pairs(chain[tails], chain[rows])
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
    first = members[run_starts(tube[members])]
    length, score = count[:num_tubes], total[:num_tubes] / np.maximum(count[:num_tubes], 1)
    tubes = ScoredTubes(boxes.video[first], boxes.label[first], boxes.frame[first], length, boxes.boxes[members], score)
    good = (length >= min_length) & (score >= min_score)
    return tubes.select(good), order[members[np.repeat(good, length)]]


def link_candidates(boxes: ScoredFrameBoxes, limit: int = 10) -> ScoredFrameBoxes:
    """The boxes that MOC links: the best of each frame and class after soft suppression.

    Args:
        boxes: Detections before suppression.
        limit: Boxes per frame and class.
    """
    boxes = soft_suppressed(boxes)
    group = _frame_group(boxes)
    order = np.lexsort((-boxes.score, group))
    starts = run_starts(group[order])
    rank = within(np.diff(np.append(starts, len(order))))
    return boxes.select(order[rank < limit])


def _box_overlap(boxes: FrameBoxes) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    return lambda i, j: pixel_iou(boxes.boxes[i], boxes.boxes[j])


def _frame_group(boxes: FrameBoxes) -> np.ndarray:
    """(n,) int64, one number for each video, frame and class."""
    return combined_keys(boxes.video, boxes.frame, boxes.label)
