"""What limits an action detector: its boxes or its classes.

Besides the mAP of what was detected, two mAPs with one half of the task done right, and how many persons are found:

- *True boxes*: every annotated person is detected once, in the annotated box, and nobody else; the model scores its
  actions. Actors are given to the decoder as in training: each annotated box replaces the one of the query that
  Hungarian matching assigns to it, the other queries stay; where an external detector gives the boxes, they are the
  annotated ones and no others. Scores are sigmoid(action logit), as the person is certain.
  The gap to the mAP is what better localization could add. Where there are more persons than queries, the ones
  without a query count as missed.
- *True classes*: detected boxes with the scores they have, struck out for every class that no annotated person under
  the box performs (IoU of 0.5 or more). What is struck is a false positive under every protocol, so this mAP is never
  below the mAP; only missed persons and duplicates keep it from 1. The gap is what better classification could add.
  There is no such video-mAP: scores struck in single frames would interrupt tubes, which bounds nothing.
- *Person recall*: share of annotated persons that a detected box overlaps with an IoU of 0.5 or more, each box counted
  for one person. Detected boxes are those that pass the person threshold of `PostProcess`.

All of it is measured in the pass over the validation set that gives the mAP: the encoder runs once per clip.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evad.lightning_module import EVADModule
from evad.metrics.frame_ap import box_iou
from evad.metrics.keyframe_metrics import PERSON, GatheredDetections, KeyframeMetric
from evad.models.criterion import HungarianMatcher, Match
from evad.models.external import ExternalBoxes
from evad.structures import Batch, Detections, Proposals, Target

IOU_THRESHOLD = 0.5
"""Smallest IoU at which a box counts as that of a person."""


@dataclass(frozen=True)
class Decomposition:
    """Upper bounds on what better boxes and better classes would give; see the module.

    Attributes:
        detected: Scores of the detector as it is: `mAP`, and `video_mAP@...` for tubes; fractions of 1.
        true_boxes: The same scores with the annotated boxes.
        true_classes: `mAP` with only the annotated classes.
        person_recall: Share of annotated persons that are found.
        person_precision: Share of detected boxes that are an annotated person's; 0 without any.
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
        """Everything in a few aligned lines, ending with the half of the task that limits more."""
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


class DecomposingModule(EVADModule):
    """An `EVADModule` whose validation also scores the actions of the annotated boxes.

    After `Trainer.validate`, `decomposition()` says what limits the detector.
    """

    metric: KeyframeMetric
    true_box_metric: KeyframeMetric

    @classmethod
    def of(cls, module: EVADModule) -> DecomposingModule:
        """The same detector with the same settings."""
        return cls(module.model, module.criterion, module.recipe, module.postprocess, module.protocol)

    def setup(self, stage: str) -> None:
        """Take the validation metric twice: for what is detected and for the annotated boxes."""
        super().setup(stage)
        self.true_box_metric = deepcopy(self.metric)

    def on_validation_epoch_start(self) -> None:
        """Forget the detections of the last pass."""
        super().on_validation_epoch_start()
        self.true_box_metric.reset()

    def validation_step(self, batch: Batch, _: int) -> None:
        """Detections of a batch into one metric, its annotated boxes with the actions given to them into the other."""
        encoded = self.model.encoder(batch.clips)
        person_logits, boxes = self.model.localize(encoded, batch.sizes, batch.proposals)
        output = self.model.classify(encoded, person_logits, boxes, boxes[-1], batch.sizes)
        self.metric.update(batch.keyframes, self.postprocess(output, batch.sizes, batch.original_sizes))
        if isinstance(self.model.localization, ExternalBoxes):  # boxes are given anyway: give the annotated ones
            truth = [Proposals(target.boxes, torch.ones_like(target.boxes[:, 0])) for target in batch.targets]
            person_logits, boxes = self.model.localize(encoded, batch.sizes, truth)
        matches = HungarianMatcher()(person_logits[-1], boxes[-1], batch.targets, batch.sizes)
        true_boxes = with_true_boxes(boxes[-1], batch.targets, matches)
        given = self.model.classify(encoded, person_logits, boxes, true_boxes, batch.sizes)
        scores = given.action_logits[-1].float().sigmoid()
        self.true_box_metric.update(batch.keyframes, true_detections(self.true_box_metric, batch, matches, scores))

    def decomposition(self) -> Decomposition:
        """What the last validation found; collective: with several ranks all must call it."""
        metric = self.metric
        with metric.sync_context():
            gathered = metric.gathered()
        persons = metric.person_result(gathered, "activitynet_2018", IOU_THRESHOLD).counts[PERSON]
        return Decomposition(
            detected=_summary(self.scores),
            true_boxes=_summary(self.true_box_metric.compute()),
            true_classes={"mAP": float(metric.scores(with_true_classes(metric, gathered))["mAP"])},
            person_recall=persons.true_positives / max(persons.ground_truth, 1),
            person_precision=persons.true_positives / max(persons.detections, 1),
            persons=persons.ground_truth,
            person_threshold=self.postprocess.person_threshold,
        )


def with_true_boxes(boxes: Tensor, targets: list[Target], matches: list[Match]) -> Tensor:
    """Predicted boxes, those of matched queries replaced by the annotated box.

    Args:
        boxes: (B, Q, 4) xyxy pixels of the resized, unpadded clip.
        targets: B targets in the same pixels.
        matches: Per clip, query indices and box indices.
    """
    boxes = boxes.clone()
    for clip, (queries, index) in enumerate(matches):
        boxes[clip, queries] = targets[clip].boxes[index].to(boxes.dtype)
    return boxes


def true_detections(
    metric: KeyframeMetric, batch: Batch, matches: list[Match], action_scores: Tensor
) -> list[Detections]:
    """The annotated persons of a batch as if they had been detected.

    Args:
        metric: Knows the boxes as annotated; those of the targets went through resizing and clipping.
        batch: B clips.
        matches: Per clip, query indices and box indices.
        action_scores: (B, Q, K) of all queries.

    Returns:
        B detections with person score 1.
    """
    found = []
    first = np.searchsorted(metric.truth_keyframe, batch.keyframes.cpu().numpy())
    for clip, (queries, index) in enumerate(matches):
        scores = action_scores[clip, queries]
        size = batch.original_sizes[clip]
        fractions = torch.from_numpy(metric.truth_boxes[first[clip] + index.cpu().numpy()])
        boxes = fractions.to(scores) * size.flip(0).repeat(2)
        found.append(Detections(boxes, torch.ones_like(boxes[:, 0]), scores, size))
    return found


def with_true_classes(metric: KeyframeMetric, gathered: GatheredDetections) -> GatheredDetections:
    """Detections whose scores are 0 for every class that no annotated person under the box performs."""
    start, end = (np.searchsorted(metric.truth_keyframe, gathered.keyframe, side) for side in ("left", "right"))
    count = end - start
    detection = np.repeat(np.arange(len(count)), count)
    person = np.arange(count.sum()) + np.repeat(start - (np.cumsum(count) - count), count)
    near = box_iou(gathered.fractions[detection], metric.truth_boxes[person]) >= IOU_THRESHOLD
    true = np.zeros(gathered.action_scores.shape, dtype=bool)
    np.logical_or.at(true, detection[near], metric.truth_labels[person[near]])
    return replace(gathered, action_scores=np.where(true, gathered.action_scores, 0.0))


def _summary(scores: Mapping[str, Tensor | float]) -> dict[str, float]:
    """The mAPs among a metric's scores."""
    return {name: float(score) for name, score in scores.items() if name == "mAP" or name.startswith("video_mAP")}
