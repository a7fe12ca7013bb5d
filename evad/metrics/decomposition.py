"""What limits an action detector: localization or classification.

Besides the mAP of the detections, we measure two mAPs with one half of the task solved perfectly, and person recall:

- *True boxes*: every annotated person is detected exactly once, in the annotated box; the model scores the actions.
  The decoder gets boxes as in training: each annotated box replaces the box of the query that Hungarian matching
  assigns to it; the other queries keep their boxes. With an external detector, the annotated boxes replace all its
  boxes. Scores are sigmoid(action logit), not multiplied by a person score. The gap to the mAP is what better
  localization could add. If there are more persons than queries, persons without a query count as missed.
- *True classes*: detected boxes with their scores, except that a score is set to 0 if no annotated person with an IoU
  of 0.5 or more performs the class. Every such detection is a false positive in all protocols, so this mAP is never
  below the mAP; only missed persons and duplicates keep it below 1. The gap is what better classification could add.
  This version has no video-mAP: scores removed in single frames would interrupt tubes, so it would not be an upper
  bound.
- *Person recall*: share of annotated persons whom a detected box overlaps with an IoU of 0.5 or more; each box counts
  for one person. Detected boxes have passed the person threshold of `PostProcess`.

All of this is measured in one pass over the validation set: the encoder runs once per clip.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from evad.metrics.frame_ap import box_iou, within
from evad.metrics.keyframes import GatheredDetections, KeyframeMetric

IOU_THRESHOLD = 0.5
"""Smallest IoU at which a detected box matches a person."""


@dataclass(frozen=True)
class Decomposition:
    """Upper bounds of the mAP with better boxes or better classes; see the module.

    Attributes:
        detected: Scores of the unchanged detector: `mAP`, and `video_mAP@...` for tubes; fractions of 1.
        true_boxes: The same scores with the annotated boxes.
        true_classes: `mAP` with only the annotated classes.
        person_recall: Share of annotated persons that are found.
        person_precision: Share of detected boxes that match an annotated person; 0 if there are no boxes.
        persons: Number of annotated persons.
        person_threshold: Smallest person score of a detected box.
    """

    detected: dict[str, float]
    true_boxes: dict[str, float]
    true_classes: dict[str, float]
    person_recall: float
    person_precision: float
    persons: int
    person_threshold: float

    def as_json(self) -> dict[str, Any]:
        """Content of `decomposition` in metrics.json; undefined scores are null."""
        content = asdict(self)
        for version in ("detected", "true_boxes", "true_classes"):
            content[version] = {name: score if score == score else None for name, score in content[version].items()}
        return content

    def table(self) -> str:
        """A table of all scores as text; its last line names the half of the task that limits more."""
        names = list(self.detected)
        rows = {
            "": [name.replace("video_mAP", "video-mAP") for name in names],
            "detected": [f"{self.detected[name]:.4f}" for name in names],
            "with true boxes": [f"{self.true_boxes[name]:.4f}" for name in names],
            "with true classes": [
                f"{self.true_classes[name]:.4f}" if name in self.true_classes else "-" for name in names
            ],
        }
        lines = [f"{title:<17}" + "".join(f"{cell:>20}" for cell in cells) for title, cells in rows.items()]
        lines.append(
            f"persons: recall {self.person_recall:.4f}, precision {self.person_precision:.4f} at IoU {IOU_THRESHOLD} "
            f"and person score >= {self.person_threshold:g} ({self.persons} annotated)"
        )
        boxes, classes = (side["mAP"] - self.detected["mAP"] for side in (self.true_boxes, self.true_classes))
        limit = "localization" if boxes > classes else "classification"
        lines.append(f"{limit} limits more: true boxes add {boxes:+.4f} mAP, true classes {classes:+.4f}")
        return "\n".join(lines)


def with_true_classes(metric: KeyframeMetric, gathered: GatheredDetections) -> GatheredDetections:
    """Detections with score 0 for every class that no annotated person at the box performs."""
    start, end = (np.searchsorted(metric.truth_keyframe, gathered.keyframe, side) for side in ("left", "right"))
    count = end - start
    detection = np.repeat(np.arange(len(count)), count)
    person = np.repeat(start, count) + within(count)
    near = box_iou(gathered.fractions[detection], metric.truth_boxes[person]) >= IOU_THRESHOLD
    true = np.zeros(gathered.action_scores.shape, dtype=bool)
    np.logical_or.at(true, detection[near], metric.truth_labels[person[near]])
    return replace(gathered, action_scores=np.where(true, gathered.action_scores, 0.0))


def _summary(scores: Mapping[str, Tensor | float]) -> dict[str, float]:
    """The mAPs among a metric's scores."""
    return {name: float(score) for name, score in scores.items() if name == "mAP" or name.startswith("video_mAP")}
