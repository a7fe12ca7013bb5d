"""Validation that also scores the actions of the annotated boxes."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import torch
from torch import Tensor

from evad.metrics.decomposition import IOU_THRESHOLD, Decomposition, _summary, with_true_classes
from evad.metrics.keyframes import PERSON, KeyframeMetric
from evad.models.criterion import HungarianMatcher, Match
from evad.models.heads.external import ExternalBoxes
from evad.structures import Batch, Detections, Proposals
from evad.training.module import EVADModule, with_true_boxes


class DecomposingModule(EVADModule):
    """Validates a detector and finds what limits it: call `Trainer.validate`, then `decomposition()`."""

    metric: KeyframeMetric
    true_box_metric: KeyframeMetric

    @classmethod
    def of(cls, module: EVADModule) -> DecomposingModule:
        """A copy of `module` with the same detector and settings."""
        return cls(module.model, module.criterion, module.recipe, module.postprocess, module.protocol)

    def setup(self, stage: str) -> None:
        """Make two validation metrics: one for detections, one for the annotated boxes."""
        super().setup(stage)
        self.true_box_metric = deepcopy(self.metric)

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self.true_box_metric.reset()

    def validation_step(self, batch: Batch, _: int) -> None:
        """Update one metric with the detections, the other with the annotated boxes and their predicted actions."""
        encoded = self.model.encoder(batch.clips)
        located = self.model.localize(encoded, batch.sizes, batch.proposals)
        output = self.model.classify(encoded, located, located.boxes[-1], batch.sizes)
        self.metric.update(batch.keyframes, self.postprocess(output, batch.sizes, batch.original_sizes))
        if isinstance(self.model.localization, ExternalBoxes):  # it localizes nothing: give it the annotated boxes
            truth = [Proposals(target.boxes, torch.ones_like(target.boxes[:, 0])) for target in batch.targets]
            located = self.model.localize(encoded, batch.sizes, truth)
        boxes = located.boxes[-1]
        matches = HungarianMatcher()(located.person_logits[-1], boxes, batch.targets, batch.sizes)
        true_boxes = with_true_boxes(boxes, batch.targets, matches)
        given = self.model.classify(encoded, located, true_boxes, batch.sizes)
        scores = given.action_logits[-1].float().sigmoid()
        self.true_box_metric.update(batch.keyframes, true_detections(self.true_box_metric, batch, matches, scores))

    def decomposition(self) -> Decomposition:
        """Result of the last validation. With several processes, all of them must call this."""
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


def true_detections(
    metric: KeyframeMetric, batch: Batch, matches: list[Match], action_scores: Tensor
) -> list[Detections]:
    """The annotated persons of a batch as if they had been detected.

    Args:
        metric: Has the original boxes; those in the targets were resized and clipped.
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
