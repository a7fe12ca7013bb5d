"""Base of the detection metrics: they collect detections clip by clip, on any number of ranks.

The ground truth comes from the data set's keyframes. Only keyframes that were passed to `update` are evaluated, so a
sanity check or limited run is scored on its own clips. A keyframe passed twice (a distributed sampler pads its last
batch) counts once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from evad.metrics.ava import AVAResult, evaluate_rows
from evad.metrics.frame_ap import Boxes, ScoredBoxes, within
from evad.structures import Detections, Keyframe

PERSON = 0
"""Class id of all rows if persons are evaluated regardless of their actions."""


@dataclass(frozen=True)
class GatheredDetections:
    """Detections of all evaluated keyframes, each keyframe once, sorted by keyframe.

    Attributes:
        keyframes: (S,) int64, evaluated keyframes, ascending.
        sizes: (S, 2) int64, height and width of each keyframe's video.
        keyframe: (n,) int64, keyframe of each detection.
        boxes: (n, 4) float64, xyxy in pixels of the original video.
        person_scores: (n,) float64.
        action_scores: (n, K) float64.
    """

    keyframes: np.ndarray
    sizes: np.ndarray
    keyframe: np.ndarray
    boxes: np.ndarray
    person_scores: np.ndarray
    action_scores: np.ndarray

    @property
    def fractions(self) -> np.ndarray:
        """(n, 4) float64, boxes as fractions of the frame, xyxy."""
        return self.boxes / self.scale(self.keyframe)

    def scale(self, keyframe: np.ndarray) -> np.ndarray:
        """(m, 4) int64, width, height, width, height of the videos of m evaluated keyframes."""
        return self.sizes[np.searchsorted(self.keyframes, keyframe)][:, [1, 0, 1, 0]]


class KeyframeMetric(Metric):
    """Collects detections by keyframe; subclasses compute scores from them.

    Args:
        keyframes: All annotated keyframes of the data set, in the order of their indices.
        class_ids: Action id of each of the K label and score columns.
        kwargs: Arguments of `torchmetrics.Metric`.

    Raises:
        ValueError: If a keyframe's labels do not have K columns.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    STATES = ("seen_keyframes", "seen_counts", "seen_sizes", "boxes", "person_scores", "action_scores")

    seen_keyframes: list[Tensor]
    seen_counts: list[Tensor]
    seen_sizes: list[Tensor]
    counts: tuple[int, int]
    """Numbers of detected boxes and of annotated persons found, set by a `compute()` with mAP 0."""

    def __init__(self, keyframes: Sequence[Keyframe], class_ids: Sequence[int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.class_ids = np.array(class_ids, dtype=np.int64)
        self.videos = [keyframe.video for keyframe in keyframes]
        self.timestamps = [keyframe.timestamp for keyframe in keyframes]
        for keyframe in keyframes:
            if keyframe.labels.shape != (len(keyframe.boxes), len(class_ids)):
                raise ValueError(
                    f"video {keyframe.video}, {keyframe.timestamp}: labels have shape {keyframe.labels.shape} for "
                    f"{len(keyframe.boxes)} boxes and {len(class_ids)} class ids"
                )
        counts = np.array([len(keyframe.boxes) for keyframe in keyframes], dtype=np.int64)
        self.truth_keyframe = np.repeat(np.arange(len(keyframes)), counts)
        self.truth_actors = np.concatenate([np.zeros(0, dtype=np.int64), *(keyframe.actors for keyframe in keyframes)])
        self.truth_boxes = np.concatenate([np.zeros((0, 4)), *(keyframe.boxes for keyframe in keyframes)])
        no_labels = np.zeros((0, len(class_ids)), dtype=bool)
        self.truth_labels = np.concatenate([no_labels, *(keyframe.labels > 0 for keyframe in keyframes)])
        for state in self.STATES:
            self.add_state(state, default=[], dist_reduce_fx="cat")

    def update(self, keyframes: Tensor, detections: list[Detections]) -> None:
        """Add the detections of a batch.

        Args:
            keyframes: (B,) int64, index of each clip's keyframe.
            detections: B detections.

        Raises:
            ValueError: If the numbers of detections and keyframes differ, an index is outside the data set, the number
                of classes is wrong, or a value is not finite.
        """
        if keyframes.shape != (len(detections),):
            raise ValueError(f"{tuple(keyframes.shape)} keyframe indices for {len(detections)} detections")
        for keyframe, found in zip(keyframes.tolist(), detections, strict=True):
            self._check(keyframe, found)
        if not detections:
            return
        device = keyframes.device
        self.seen_keyframes.append(keyframes.detach())
        self.seen_counts.append(torch.tensor([len(found.boxes) for found in detections], device=device))
        self.seen_sizes.append(torch.stack([found.size for found in detections]).to(device))
        for state in ("boxes", "person_scores", "action_scores"):
            values = torch.cat([getattr(found, state) for found in detections]).detach()
            getattr(self, state).append(values.to(torch.promote_types(values.dtype, torch.float32)))

    def _check(self, keyframe: int, found: Detections) -> None:
        if not 0 <= keyframe < len(self.videos):
            raise ValueError(f"keyframe index {keyframe} is outside the data set of {len(self.videos)} keyframes")
        where = f"detections of video {self.videos[keyframe]}, {self.timestamps[keyframe]}"
        n = len(found.boxes)
        shapes = (tuple(found.boxes.shape), tuple(found.person_scores.shape), tuple(found.action_scores.shape))
        if shapes != ((n, 4), (n,), (n, len(self.class_ids))):
            raise ValueError(
                f"{where}: boxes, person scores and action scores have shapes {shapes}; "
                f"expected (n, 4), (n,) and (n, {len(self.class_ids)})"
            )
        if not all(bool(x.isfinite().all()) for x in (found.boxes, found.person_scores, found.action_scores)):
            raise ValueError(f"{where} are not finite: training has diverged; lower the learning rate")

    def compute(self) -> dict[str, Tensor]:
        """Scores of the keyframes passed so far; if the mAP is 0, `counts` is set to help explain it."""
        gathered = self.gathered()
        scores = self.scores(gathered)
        if scores["mAP"] == 0:
            persons = self.person_result(gathered, "activitynet_2018", iou_threshold=0.5).counts[PERSON]
            self.counts = len(gathered.boxes), persons.true_positives
        return scores

    def scores(self, gathered: GatheredDetections) -> dict[str, Tensor]:
        """Scores of detections, the result of `gathered` or a changed copy of it."""
        raise NotImplementedError(f"{type(self).__name__} does not implement scores")

    def gathered(self) -> GatheredDetections:
        """Detections of this process, or of all processes inside `sync_context`; each keyframe once.

        Raises:
            RuntimeError: If `update` was not called.
        """
        if isinstance(self.seen_keyframes, list) and not self.seen_keyframes:
            raise RuntimeError(f"{type(self).__name__} has seen no keyframe: call update() before asking for results")
        keyframes, counts, sizes, boxes, person_scores, action_scores = (
            dim_zero_cat(getattr(self, state)).cpu().numpy() for state in self.STATES
        )
        distinct, first = np.unique(keyframes, return_index=True)
        starts = np.cumsum(counts) - counts
        counts = counts[first]
        rows = np.repeat(starts[first], counts) + within(counts)
        found = (values[rows].astype(np.float64) for values in (boxes, person_scores, action_scores))
        return GatheredDetections(distinct, sizes[first], np.repeat(distinct, counts), *found)

    def person_result(self, gathered: GatheredDetections, protocol: str, iou_threshold: float) -> AVAResult:
        """Average precision of persons: boxes ranked by person score, against the annotated boxes of each keyframe.

        Args:
            gathered: Detections.
            protocol: A key of `evad.metrics.ava.PROTOCOLS`.
            iou_threshold: Smallest IoU of a match.
        """
        seen = np.isin(self.truth_keyframe, gathered.keyframes)
        persons = np.unique(np.column_stack([self.truth_keyframe[seen], self.truth_boxes[seen]]), axis=0)
        truth = Boxes(persons[:, 0].astype(np.int64), persons[:, 1:], np.full(len(persons), PERSON))
        found = ScoredBoxes(
            gathered.keyframe, gathered.fractions, np.full(len(gathered.keyframe), PERSON), gathered.person_scores
        )
        return evaluate_rows(truth, found, [PERSON], protocol, iou_threshold=iou_threshold)

    def seen_truth(self, gathered: GatheredDetections) -> tuple[np.ndarray, np.ndarray]:
        """Ground truth of the evaluated keyframes, one row per person and action.

        Returns:
            Row in `truth_boxes` of each person and column of each class, both (m,) int64.
        """
        seen = np.isin(self.truth_keyframe, gathered.keyframes)
        person, column = np.nonzero(self.truth_labels & seen[:, None])
        return person, column

    def as_tensor(self, value: float | None) -> Tensor:
        """() float32 on the metric's device; None becomes NaN."""
        return torch.tensor(float("nan") if value is None else value, dtype=torch.float32, device=self.device)
