"""Frame-mAP and video-mAP of UCF101-24, JHMDB and similar data sets: quality of detections in frames and over time.

    python -m evad.metrics.tubes --ground-truth X.pkl --detections frame_detections.csv [--tubes tubes.json] [--split N]

prints one JSON object. For each split it has the frame AP at IoU 0.5 of the unchanged detections (`frame_ap_raw`),
after MOC's suppression (`frame_ap_soft_nms`) and after ACT's suppression (`frame_ap_hard_nms`), and the video AP of
linked tubes (`video_ap_linked`) and given tubes (`video_ap_given`). For several splits it adds their means
(`mean_over_splits`).
Definitions: `evad.metrics.tube_ap`.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from evad.files.csv_rows import BOX, Layout, read_rows
from evad.files.tube_packages import TubeAnnotations
from evad.files.tubes import read_tubes
from evad.metrics.frame_boxes import ScoredFrameBoxes, ScoredTubes, Tubes
from evad.metrics.linking import hard_suppressed, link, link_candidates, soft_suppressed
from evad.metrics.tube_ap import ClassResult, frame_ap, video_ap

DETECTIONS = Layout(
    {"video": str, "frame": int, "label": int, "score": float, **dict.fromkeys(BOX, float)}, header=True
)
"""Columns of a detections file: frames from 1, labels from 0, boxes in pixels, corner pixels included."""

SINGLE_THRESHOLDS = (0.2, 0.5, 0.75)
AVERAGED_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
AVERAGED = "0.5:0.95"


def read_detections(path: str | Path, annotations: TubeAnnotations) -> pd.DataFrame:
    """Read detected boxes of the videos of a data set.

    Args:
        path: .csv or .csv.gz with the header video,frame,label,score,x1,y1,x2,y2.
        annotations: The data set; rows of other videos are left out, with a warning.

    Returns:
        Table with the columns of `DETECTIONS`.

    Raises:
        ValueError: If a row is malformed, or the data set does not have its label or frame.
    """
    rows = read_rows(path, DETECTIONS)
    known = rows["video"].isin(list(annotations.nframes))
    if not known.all():
        first = rows["video"][~known].iloc[0]
        warnings.warn(
            f"{path}: {int((~known).sum())} rows of videos without annotation are left out (first: {first})",
            stacklevel=2,
        )
        rows = rows[known]
    lengths = rows["video"].map(annotations.nframes).astype(np.int64)
    outside = rows[(rows["frame"] < 1) | (rows["frame"] > lengths)]
    if len(outside):
        video, frame = outside.iloc[0][["video", "frame"]]
        raise ValueError(f"{path}: frame {frame} of video {video}, which has frames 1 to {annotations.nframes[video]}")
    unknown = rows[(rows["label"] < 0) | (rows["label"] >= len(annotations.labels))]
    if len(unknown):
        video, label = unknown.iloc[0][["video", "label"]]
        raise ValueError(f"{path}: label {label} in video {video}; labels are 0 to {len(annotations.labels) - 1}")
    return rows


def read_scored_tubes(path: str | Path, annotations: TubeAnnotations) -> ScoredTubes:
    """Read detected tubes of the videos of a data set; a video's number is its place in `annotations.nframes`.

    Args:
        path: JSON, {video: [{"label": class number, "score": number, "boxes": rows of frame, x1, y1, x2, y2}]}.
        annotations: The data set; tubes of other videos are left out, with a warning.

    Raises:
        ValueError: If the JSON has another form, a label is unknown, or a tube's frames are not consecutive.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is truncated or not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected {{video: list of tubes}}")
    numbers = video_numbers(annotations)
    tubes = [(video, tube) for video, group in content.items() for tube in group]
    known = [(video, tube) for video, tube in tubes if video in numbers]
    if len(known) < len(tubes):
        first = next(video for video in content if video not in numbers)
        count = len(tubes) - len(known)
        warnings.warn(f"{path}: {count} tubes of videos without annotation are left out (first: {first})", stacklevel=2)
    boxes = [_checked_boxes(f"{path}, video {video}", tube, len(annotations.labels)) for video, tube in known]
    return ScoredTubes(
        video=np.array([numbers[video] for video, _ in known], dtype=np.int64),
        label=np.array([tube["label"] for _, tube in known], dtype=np.int64),
        first_frame=np.array([rows[0, 0] for rows in boxes], dtype=np.int64),
        length=np.array([len(rows) for rows in boxes], dtype=np.int64),
        boxes=np.concatenate([np.zeros((0, 4)), *(rows[:, 1:] for rows in boxes)]),
        score=np.array([tube["score"] for _, tube in known], dtype=np.float64),
    )


def _checked_boxes(where: str, tube: Any, num_classes: int) -> np.ndarray:
    """Boxes (frames, 5) float64 of a tube in JSON: frame, x1, y1, x2, y2."""
    if not isinstance(tube, dict) or not {"label", "score", "boxes"} <= tube.keys():
        raise ValueError(f"{where}: expected tubes with label, score and boxes")
    if tube["label"] not in range(num_classes):
        raise ValueError(f"{where}: label {tube['label']!r}; labels are 0 to {num_classes - 1}")
    try:
        rows = np.asarray(tube["boxes"], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: a tube's boxes must be rows of frame, x1, y1, x2, y2: {error}") from None
    if rows.ndim != 2 or rows.shape[1] != 5 or not np.isfinite(rows).all() or not np.isfinite(tube["score"]):
        raise ValueError(
            f"{where}: a tube has boxes of shape {rows.shape}, expected finite rows of frame, x1, y1, x2, y2"
        )
    if (np.diff(rows[:, 0]) != 1).any():
        raise ValueError(f"{where}: a tube's frame numbers are not consecutive: split it into several tubes")
    return rows


def video_numbers(annotations: TubeAnnotations) -> dict[str, int]:
    """The number of each video in arrays: its place in `annotations.nframes`."""
    return {video: number for number, video in enumerate(annotations.nframes)}


def ground_truth(annotations: TubeAnnotations, videos: Sequence[str]) -> Tubes:
    """Annotated tubes of the given videos."""
    numbers = video_numbers(annotations)
    tubes = [(numbers[video], tube) for video in videos for tube in annotations.tubes[video]]
    return Tubes(
        video=np.array([number for number, _ in tubes], dtype=np.int64),
        label=np.array([tube.label for _, tube in tubes], dtype=np.int64),
        first_frame=np.array([tube.first_frame for _, tube in tubes], dtype=np.int64),
        length=np.array([len(tube.boxes) for _, tube in tubes], dtype=np.int64),
        boxes=np.concatenate([np.zeros((0, 4)), *(tube.boxes for _, tube in tubes)]),
    )


def evaluate_split(
    annotations: TubeAnnotations, split: int, detections: pd.DataFrame, given: ScoredTubes | None = None
) -> dict[str, Any]:
    """Frame and video AP on the test videos of a split.

    Args:
        annotations: The data set.
        split: Number of the split, from 1.
        detections: Columns of `DETECTIONS`.
        given: Detected tubes to evaluate in addition to the linked ones.

    Returns:
        The split's scores, as the command prints them.
    """
    videos = annotations.videos(split, "test")
    tubes = ground_truth(annotations, videos)
    found = scored_boxes(annotations, detections[detections["video"].isin(videos)])
    boxes = tubes.as_boxes()
    num_classes = len(annotations.labels)
    scores: dict[str, Any] = {
        name: _named(annotations.labels, frame_ap(boxes, version, num_classes))
        for name, version in (
            ("frame_ap_raw", found),
            ("frame_ap_soft_nms", soft_suppressed(found)),
            ("frame_ap_hard_nms", hard_suppressed(found)),
        )
    }
    linked, _ = link(link_candidates(found))
    scores["video_ap_linked"] = _named_video_scores(annotations.labels, tubes, linked)
    if given is not None:
        numbers = video_numbers(annotations)
        in_split = given.select(np.isin(given.video, [numbers[video] for video in videos]))
        scores["video_ap_given"] = _named_video_scores(annotations.labels, tubes, in_split)
    return scores


def scored_boxes(annotations: TubeAnnotations, rows: pd.DataFrame) -> ScoredFrameBoxes:
    """Convert rows of a detections file."""
    return ScoredFrameBoxes(
        video=rows["video"].map(video_numbers(annotations)).to_numpy(np.int64),
        frame=rows["frame"].to_numpy(np.int64),
        label=rows["label"].to_numpy(np.int64),
        boxes=rows[BOX].to_numpy(np.float64),
        score=rows["score"].to_numpy(np.float64),
    )


def _video_results(truth: Tubes, found: ScoredTubes, num_classes: int) -> tuple[dict[float, ClassResult], list[float]]:
    thresholds = tuple(dict.fromkeys((*SINGLE_THRESHOLDS, *AVERAGED_THRESHOLDS)))
    results = dict(zip(thresholds, video_ap(truth, found, num_classes, thresholds), strict=True))
    single = {threshold: results[threshold] for threshold in SINGLE_THRESHOLDS}
    return single, [results[threshold].mAP for threshold in AVERAGED_THRESHOLDS]


def video_scores(truth: Tubes, found: ScoredTubes, num_classes: int) -> dict[str, float]:
    """Video-mAP by threshold: 0.2, 0.5, 0.75, and averaged over 0.50, 0.55 ... 0.95 as `0.5:0.95`."""
    single, averaged = _video_results(truth, found, num_classes)
    return {str(threshold): result.mAP for threshold, result in single.items()} | {AVERAGED: float(np.mean(averaged))}


def _named_video_scores(labels: Sequence[str], truth: Tubes, found: ScoredTubes) -> dict[str, Any]:
    single, averaged = _video_results(truth, found, len(labels))
    scores: dict[str, Any] = {str(threshold): _named(labels, result) for threshold, result in single.items()}
    return scores | {AVERAGED: {"mAP": float(np.mean(averaged)), "per_threshold": averaged}}


def _named(labels: Sequence[str], result: ClassResult) -> dict[str, Any]:
    return {
        "mAP": result.mAP,
        "per_class": dict(zip(labels, result.average_precision.tolist(), strict=True)),
        "detections": dict(zip(labels, result.detections.tolist(), strict=True)),
        "recall": dict(zip(labels, result.recall.tolist(), strict=True)),
    }


def mean_over_splits(splits: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    means: dict[str, Any] = {}
    for name, scores in splits[0].items():
        if "mAP" in scores:
            means[name] = float(np.mean([split[name]["mAP"] for split in splits]))
        else:
            means[name] = {key: float(np.mean([split[name][key]["mAP"] for split in splits])) for key in scores}
    return means


def evaluate_files(
    ground_truth: str,
    detections: str,
    tubes: str | None = None,
    split: int | None = None,
    test_list: str | None = None,
) -> dict[str, Any]:
    """Scores as printed by `python -m evad.metrics.tubes`, from its files; `split` None evaluates all splits."""
    annotations = read_tubes(ground_truth, test_list)
    rows = read_detections(detections, annotations)
    given = read_scored_tubes(tubes, annotations) if tubes else None
    chosen = range(1, annotations.num_splits + 1) if split is None else [split]
    scores = {f"split{number}": evaluate_split(annotations, number, rows, given) for number in chosen}
    means = {"mean_over_splits": mean_over_splits(list(scores.values()))} if len(scores) > 1 else {}
    return {"splits": scores, **means}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print frame and video AP of a detections file as one JSON object; warnings go to standard error."""
    parser = argparse.ArgumentParser(prog="python -m evad.metrics.tubes", description="Frame-mAP and video-mAP.")
    parser.add_argument(
        "--ground-truth", required=True, metavar="F", help="tube annotations: pickle, .json or .parquet"
    )
    parser.add_argument("--detections", required=True, metavar="F", help="csv: video,frame,label,score,x1,y1,x2,y2")
    parser.add_argument("--tubes", metavar="F", help="JSON of detected tubes to evaluate too")
    parser.add_argument("--split", type=int, metavar="N", help="split to evaluate, from 1 (default: all)")
    parser.add_argument("--test-list", metavar="F", help="names of the test videos (pyannot.pkl only)")
    options = parser.parse_args(arguments)
    try:
        with warnings.catch_warnings(record=True) as remarks:
            warnings.simplefilter("always", UserWarning)
            scores = evaluate_files(**vars(options))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    for remark in remarks:
        print(f"warning: {remark.message}", file=sys.stderr)
    print(json.dumps(scores))


if __name__ == "__main__":
    main()
