"""Reads boxes of an external person detector for AVA keyframes, from the csv files that two-stage methods publish.

A file has one line per box and no header; the content of the action column is ignored:

    video,second,x1,y1,x2,y2,action,score

Boxes are fractions of width and height. A box that is repeated for another action is read once, with its highest score.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from evad.files.csv_rows import BOX, Layout, line_of, read_rows
from evad.metrics.frame_ap import box_iou
from evad.structures import Keyframe

logger = logging.getLogger(__name__)

_LAYOUT = Layout({"video": str, "second": float, **dict.fromkeys(BOX, float), "action": str, "score": float})
_OVERHANG = 0.01  # allows for rounding; a box that reaches further out is not in fractions


@dataclass(frozen=True)
class ProposalFiles:
    """Files of detected boxes, and the rule by which boxes are chosen.

    Evaluation classifies the detected boxes with a score of at least `threshold`. Training classifies all annotated
    boxes and, like SlowFast, also the detected boxes with an IoU of at least `match_iou` with an annotated box. Such a
    box learns the actions of the annotated box that it overlaps most.

    Attributes:
        train: csv of boxes for training, in `annotations/` unless absolute; None: train on annotated boxes only.
        val: csv of boxes for evaluation; None: keyframes get no proposals, because the model finds actors itself.
        threshold: Boxes with a lower score are left out.
        match_iou: Smallest IoU with an annotated box at which a detected box is trained.
    """

    train: str | None = None
    val: str | None = None
    threshold: float = 0.8
    match_iou: float = 0.9

    def __post_init__(self) -> None:
        if self.train is not None and self.val is None:
            raise ValueError("data.proposals.train is given without data.proposals.val, which evaluation needs")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"data.proposals.threshold is {self.threshold}; it must be within [0, 1], as scores are")
        if not 0.5 <= self.match_iou <= 1:
            raise ValueError(
                f"data.proposals.match_iou is {self.match_iou}; choose 0.5 to 1, because "
                "evaluation does not match boxes with a lower IoU"
            )

    def attach(
        self, split: Literal["train", "val"], keyframes: Sequence[Keyframe], find: Callable[[str], Path]
    ) -> list[Keyframe]:
        """Add proposals to the keyframes of a split; without files they stay unchanged.

        Args:
            keyframes: Keyframes whose timestamps are seconds.
            find: Turns the name of a file into its path.

        Raises:
            ValueError: See `read_proposals`.
        """
        if self.val is None:
            return list(keyframes)
        name = self.train if split == "train" else self.val
        if name is None:
            return [with_annotated(keyframe, _NOTHING, self.match_iou, Counter()) for keyframe in keyframes]
        path = find(name)
        rows = read_proposals(path)
        confident = rows[rows["score"] >= self.threshold]
        left_out = Counter({f"score below {self.threshold:g}": len(rows) - len(confident)})
        found = boxes_by_frame(confident)
        known = {(keyframe.video, float(keyframe.timestamp)) for keyframe in keyframes}
        left_out["frame is not a keyframe"] = sum(len(boxes) for frame, boxes in found.items() if frame not in known)
        attached = []
        for keyframe in keyframes:
            boxes = found.get((keyframe.video, float(keyframe.timestamp)), _NOTHING)
            if split == "train":
                attached.append(with_annotated(keyframe, boxes, self.match_iou, left_out))
            else:
                attached.append(replace(keyframe, proposals=boxes[:, :4], proposal_scores=boxes[:, 4]))
        _report(path, attached, left_out)
        return attached


_NOTHING = np.zeros((0, 5))


def with_annotated(keyframe: Keyframe, detected: np.ndarray, match_iou: float, left_out: Counter[str]) -> Keyframe:
    """Give a training keyframe its annotated boxes, with score 1, and the matching detected boxes as proposals.

    Args:
        detected: (m, 5) boxes as fractions, score.
        match_iou: Smallest IoU with an annotated box at which a detected box is used.
        left_out: Number of unused boxes by reason; updated in place.
    """
    pairs = np.broadcast_arrays(detected[:, None, :4], keyframe.boxes[None])
    matches = box_iou(*pairs).max(axis=1, initial=0.0) >= match_iou
    left_out[f"IoU with every annotated box below {match_iou:g}"] += int((~matches).sum())
    boxes = np.concatenate([keyframe.boxes, detected[matches, :4]])
    scores = np.concatenate([np.ones(len(keyframe.boxes)), detected[matches, 4]])
    return replace(keyframe, proposals=boxes, proposal_scores=scores)


def read_proposals(path: str | Path) -> pd.DataFrame:
    """Read detected boxes as a table of video, second, x1, y1, x2, y2, score, each box once.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line has a wrong number of columns, a value that is not a finite number, a box that is inverted or
            not in fractions, or a score outside [0, 1]; the text names the file and the line.
    """
    path = Path(path)
    rows = read_rows(path, _LAYOUT)
    box, score = rows[BOX].to_numpy(), np.asarray(rows["score"])
    hint = "boxes are x1,y1,x2,y2 as fractions of width and height"
    inside = np.all((box >= -_OVERHANG) & (box <= 1 + _OVERHANG), axis=1)
    _require(inside, path, rows, f"has a box outside [0, 1]; {hint}")
    _require(np.all(box[:, :2] <= box[:, 2:], axis=1), path, rows, f"has an inverted box; {hint}")
    _require(np.logical_and(score >= 0, score <= 1), path, rows, "has a score (8th column) outside [0, 1]")
    rows[BOX] = box.clip(0, 1)
    rows["video"] = rows["video"].astype(str)
    best = rows.groupby(["video", "second", *BOX], sort=False)["score"].max()
    return best.reset_index()


def _require(holds: np.ndarray, path: Path, rows: pd.DataFrame, problem: str) -> None:
    bad = np.flatnonzero(~holds)
    if len(bad):
        first = int(bad[0])
        content = ",".join(str(value) for value in rows.iloc[first])
        raise ValueError(f"{path}, line {line_of(path, first)}: {content} {problem}")


def boxes_by_frame(rows: pd.DataFrame) -> dict[tuple[str, float], np.ndarray]:
    """Group boxes by (video, second); each value is (m, 5) boxes and scores, highest score first."""
    rows = rows.sort_values(["video", "second", "score"], ascending=[True, True, False], kind="stable")
    starts = np.flatnonzero(~rows.duplicated(["video", "second"]).to_numpy())
    frames = zip(rows["video"].iloc[starts], rows["second"].iloc[starts].astype(float))
    values = rows[[*BOX, "score"]].to_numpy(dtype=np.float64)
    return dict(zip(frames, np.split(values, starts[1:])))


def _report(path: Path, keyframes: Sequence[Keyframe], left_out: Counter[str]) -> None:
    counts = [len(keyframe.proposals) for keyframe in keyframes if keyframe.proposals is not None]
    logger.info("%s: %d proposals of %d keyframes, with annotated boxes in training", path, sum(counts), len(counts))
    for reason, count in left_out.items():
        if count:
            logger.info("%s: %d detected boxes are left out: %s", path, count, reason)
    if 0 in counts:
        logger.info("%s: %d keyframes have no box, so no person is found there", path, counts.count(0))
