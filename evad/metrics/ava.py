"""Frame-mAP of AVA: quality of detected boxes and their actions in single frames.

    python -m evad.metrics.ava --ground-truth F --detections F --label-map F [--exclude F] [--protocol P]

Several programs compute the AVA mAP, with different rules (`PROTOCOLS`). In all of them, per frame and class, each
detection is compared with the ground-truth box it overlaps best. It is a true positive if their IoU reaches the
threshold and no earlier detection was matched with that box. Average precision is the area under the precision envelope
over all recall steps. We rank detections with equal scores in the order given; the programs do not define their order.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from evad.files.csv_rows import BOX
from evad.files.label_map import read_label_map
from evad.metrics import ava_csv
from evad.metrics.frame_ap import AnyRows, Boxes, ScoredBoxes, average_precision, best_rows, match


@dataclass(frozen=True)
class Protocol:
    """Rules in which the AVA evaluation programs differ.

    Attributes:
        best_first: Detections of a frame are matched by descending score; if False, in the order given.
        rows_per_frame: Number of best-scored rows that count in each frame, over all classes; None for all rows.
        uses_exclusions: Frames on the exclusion list are not evaluated.
        unannotated_frames: Detections in frames without a ground-truth row are false positives; if False, ignored.
        fractional_timestamps: Timestamps may have decimals; if False, they are whole seconds.
    """

    best_first: bool = True
    rows_per_frame: int | None = None
    uses_exclusions: bool = True
    unannotated_frames: bool = True
    fractional_timestamps: bool = False


PROTOCOLS = {
    # ActivityNet's program of 2018; papers report its numbers.
    "activitynet_2018": Protocol(),
    # ActivityNet's program from March 2019 to April 2020.
    "activitynet_2019": Protocol(rows_per_frame=50),
    # ActivityNet's current program.
    "activitynet_2020": Protocol(
        rows_per_frame=50, uses_exclusions=False, unannotated_frames=False, fractional_timestamps=True
    ),
    # EVAD's release, from PySlowFast: the first row is matched even if a later one has a higher score.
    "evad": Protocol(best_first=False),
}


def get_protocol(name: str) -> Protocol:
    if name not in PROTOCOLS:
        raise ValueError(f"unknown protocol {name!r}; choose one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


@dataclass(frozen=True)
class ClassCounts:
    """Numbers of annotated boxes, scored detections and true positives of one class."""

    ground_truth: int
    detections: int
    true_positives: int


@dataclass(frozen=True)
class AVAResult:
    """Outcome of an evaluation.

    Attributes:
        mAP: Mean over the classes with ground truth, in [0, 1]; NaN if there is none.
        per_class: {action id: average precision, None for a class without ground truth}.
        counts: {action id: numbers of boxes and detections}.
        dropped: {reason: number of ignored rows}; only reasons that occurred.
    """

    mAP: float
    per_class: dict[int, float | None]
    counts: dict[int, ClassCounts]
    dropped: dict[str, int]


def evaluate_rows(
    ground_truth: Boxes,
    detections: ScoredBoxes,
    classes: Iterable[int],
    protocol: str = "activitynet_2018",
    excluded: np.ndarray | None = None,
    iou_threshold: float = 0.5,
) -> AVAResult:
    """Average precision per class, from rows with frame numbers.

    Args:
        ground_truth: Annotated rows; rows of other classes only mark their frame as annotated.
        detections: Scored rows; the protocol `evad` matches them in this order.
        classes: Action ids to evaluate.
        protocol: A key of `PROTOCOLS`.
        excluded: (e,) int64 frames to leave out, if the protocol uses exclusions.
        iou_threshold: Smallest IoU of a match, in (0, 1].

    Raises:
        ValueError: If the protocol is unknown or the threshold is outside (0, 1].
    """
    rules = get_protocol(protocol)
    if not 0 < iou_threshold <= 1:
        raise ValueError(f"iou_threshold {iou_threshold} is outside (0, 1]")
    ids = np.unique(np.fromiter(classes, dtype=np.int64))
    dropped: dict[str, int] = {}

    def keep(rows: AnyRows, mask: np.ndarray, reason: str) -> AnyRows:
        if count := int(len(mask) - np.count_nonzero(mask)):
            dropped[reason] = count
        return rows.select(mask) if count else rows

    if excluded is not None and rules.uses_exclusions:
        ground_truth = keep(ground_truth, ~np.isin(ground_truth.frame, excluded), "ground truth in excluded frames")
        detections = keep(detections, ~np.isin(detections.frame, excluded), "detections in excluded frames")
    annotated_frames = ground_truth.frame
    ground_truth = keep(ground_truth, np.isin(ground_truth.action, ids), "ground truth of other classes")
    detections = keep(detections, np.isin(detections.action, ids), "detections of other classes")
    if rules.rows_per_frame is not None:
        reason = f"detections beyond the best {rules.rows_per_frame} rows of a frame"
        detections = keep(detections, best_rows(detections, rules.rows_per_frame), reason)
    if not rules.unannotated_frames:
        named = np.isin(detections.frame, annotated_frames)
        detections = keep(detections, named, "detections in frames without ground truth")
    solid = np.all(detections.boxes[:, :2] < detections.boxes[:, 2:], axis=1)
    detections = keep(detections, solid, "detections with a box of no area")
    return _score(ground_truth, detections, ids, rules, iou_threshold, dropped)


def _score(
    ground_truth: Boxes,
    detections: ScoredBoxes,
    ids: np.ndarray,
    rules: Protocol,
    iou_threshold: float,
    dropped: dict[str, int],
) -> AVAResult:
    by_score = np.argsort(-detections.score, kind="stable")
    precedence = by_score if rules.best_first else np.arange(len(detections))
    truth_class = np.searchsorted(ids, ground_truth.action)
    class_index = np.searchsorted(ids, detections.action)
    true_positive = np.zeros(len(detections), dtype=bool)
    true_positive[precedence] = match(
        ground_truth.boxes,
        ground_truth.frame * len(ids) + truth_class,
        detections.boxes[precedence],
        (detections.frame * len(ids) + class_index)[precedence],
        iou_threshold,
    )
    ranking = by_score[np.argsort(class_index[by_score], kind="stable")]
    ends = np.cumsum(np.bincount(class_index, minlength=len(ids)))
    num_ground_truth = np.bincount(truth_class, minlength=len(ids))
    per_class: dict[int, float | None] = {}
    counts: dict[int, ClassCounts] = {}
    for action, ranked, truths in zip(
        ids.tolist(), np.split(true_positive[ranking], ends[:-1]), num_ground_truth.tolist()
    ):
        per_class[action] = average_precision(ranked, truths) if truths else None
        counts[action] = ClassCounts(truths, len(ranked), int(ranked.sum()))
    defined = [ap for ap in per_class.values() if ap is not None]
    return AVAResult(float(np.mean(defined)) if defined else math.nan, per_class, counts, dropped)


def number_frames(*tables: pd.DataFrame) -> list[np.ndarray]:
    """Number the frames of several tables; the same video and timestamp have the same number in all tables.

    Args:
        tables: Tables with the columns `video` and `timestamp` (numbers; compared to the microsecond).

    Returns:
        (n,) int64 frame numbers of each table.
    """
    names = pd.concat([table["video"].astype("category").cat.categories.to_series() for table in tables])
    video_numbers = {name: number for number, name in enumerate(names.unique())}
    microseconds = [np.round(table["timestamp"].to_numpy(np.float64) * 1e6).astype(np.int64) for table in tables]
    instants, distinct = pd.factorize(np.concatenate(microseconds))
    numbers = []
    for table, instant in zip(tables, np.split(instants, np.cumsum([len(m) for m in microseconds])[:-1])):
        video = table["video"].astype("category").cat
        lookup = np.array([video_numbers[name] for name in video.categories], dtype=np.int64)
        numbers.append(lookup[video.codes.to_numpy()] * len(distinct) + instant)
    return numbers


def evaluate(
    ground_truth: pd.DataFrame,
    detections: pd.DataFrame,
    classes: Iterable[int],
    protocol: str = "activitynet_2018",
    excluded: pd.DataFrame | None = None,
    iou_threshold: float = 0.5,
) -> AVAResult:
    """Average precision per class, from tables read by `evad.metrics.ava_csv`.

    Args:
        ground_truth: Columns video, timestamp, x1, y1, x2, y2, action_id.
        detections: The same columns and score; the protocol `evad` matches rows in this order.
        classes: Action ids to evaluate; rows of other classes are dropped.
        protocol: A key of `PROTOCOLS`.
        excluded: Columns video, timestamp of frames to leave out, if the protocol uses exclusions.
        iou_threshold: Smallest IoU of a match, in (0, 1].
    """
    tables = [ground_truth, detections] if excluded is None else [ground_truth, detections, excluded]
    truth_frame, frame, *excluded_frames = number_frames(*tables)
    return evaluate_rows(
        Boxes(truth_frame, ground_truth[BOX].to_numpy(np.float64), ground_truth["action_id"].to_numpy(np.int64)),
        ScoredBoxes(
            frame,
            detections[BOX].to_numpy(np.float64),
            detections["action_id"].to_numpy(np.int64),
            detections["score"].to_numpy(np.float64),
        ),
        classes,
        protocol,
        excluded_frames[0] if excluded_frames else None,
        iou_threshold,
    )


def evaluate_files(
    ground_truth: str,
    detections: str,
    label_map: str,
    exclude: str | None = None,
    protocol: str = "activitynet_2018",
    iou_threshold: float = 0.5,
) -> AVAResult:
    """Average precision per class of the label map; arguments as for `python -m evad.metrics.ava`."""
    fractional = get_protocol(protocol).fractional_timestamps
    return evaluate(
        ava_csv.read_ground_truth(ground_truth, fractional),
        ava_csv.read_detections(detections, fractional),
        read_label_map(label_map),
        protocol,
        ava_csv.read_excluded(exclude, fractional) if exclude else None,
        iou_threshold,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the mAP and AP per class of a detections file as one JSON object; warnings go to standard error."""
    parser = argparse.ArgumentParser(prog="python -m evad.metrics.ava", description="AVA frame-mAP at IoU 0.5.")
    parser.add_argument("--ground-truth", required=True, metavar="F", help="csv or csv.gz of annotated boxes")
    parser.add_argument("--detections", required=True, metavar="F", help="csv or csv.gz of scored boxes")
    parser.add_argument("--label-map", required=True, metavar="F", help="pbtxt or text file of the evaluated classes")
    parser.add_argument("--exclude", metavar="F", help="csv or csv.gz of frames to leave out")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="activitynet_2018", help="default: %(default)s")
    options = parser.parse_args(arguments)
    if options.exclude and not PROTOCOLS[options.protocol].uses_exclusions:
        print(f"warning: protocol {options.protocol} has no exclusions: {options.exclude} is ignored", file=sys.stderr)
    try:
        result = evaluate_files(**vars(options))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    for reason, count in result.dropped.items():
        print(f"note: {count} rows dropped: {reason}", file=sys.stderr)
    if not sum(counts.detections for counts in result.counts.values()):
        print("warning: no detection of an evaluated class: check label map and detections", file=sys.stderr)
    if math.isnan(result.mAP):
        print("warning: no ground truth of an evaluated class; mAP is undefined", file=sys.stderr)
    mean = None if math.isnan(result.mAP) else result.mAP
    print(json.dumps({"mAP": mean, "per_class": {str(action): ap for action, ap in result.per_class.items()}}))


if __name__ == "__main__":
    main()
