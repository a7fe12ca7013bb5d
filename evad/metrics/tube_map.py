"""Frame-mAP and video-mAP of UCF101-24, JHMDB and similar data sets as a torchmetrics metric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from evad.files.csv_rows import BOX
from evad.metrics.frame_boxes import ScoredFrameBoxes, Tubes
from evad.metrics.keyframes import PERSON, GatheredDetections, KeyframeMetric
from evad.metrics.linking import link, link_candidates
from evad.metrics.tube_ap import frame_ap
from evad.metrics.tubes import video_scores
from evad.structures import Keyframe

LAST_PIXEL = np.array([0.0, 0.0, 1.0, 1.0])
"""In tubes, x2 and y2 are the last pixel inside a box; elsewhere they are the box's edge, one pixel further."""


class TubeMAP(KeyframeMetric):
    """Frame-mAP and video-mAP of UCF101-24, JHMDB and similar data sets, and the AP of person boxes.

    `compute()` gives `mAP` (frame-mAP at IoU 0.5 without suppression), `person_AP`, `AP/<class id>` of each class
    and `video_mAP@0.2`, `@0.5`, `@0.75`, `@0.5:0.95` of tubes linked from the detections. Means are over all classes;
    a class without ground truth counts as 0, as in the ACT and MOC programs (`evad.metrics.tube_ap`). Like them it
    needs every frame of a video as a keyframe, annotated or not (`every_frame` of
    `evad.data.annotations.tubes.tube_keyframes`): a missing frame cannot have false positives and interrupts tubes.

    Args:
        keyframes: All annotated keyframes of the data set, in the order of their indices; timestamps are frame
            numbers, actors distinguish the tubes of a video.
        class_ids: Class id of each of the K label and score columns.
        min_score: Class scores up to this value are ignored. Most of the K scores of a box are close to 0; ignoring
            them saves time and memory at a small cost in AP.
        kwargs: Arguments of `torchmetrics.Metric`.

    Raises:
        ValueError: If a timestamp is not a frame number.
    """

    def __init__(
        self, keyframes: Sequence[Keyframe], class_ids: Sequence[int], min_score: float = 0.0, **kwargs: Any
    ) -> None:
        super().__init__(keyframes, class_ids, **kwargs)
        for keyframe in keyframes:
            if not keyframe.timestamp.isdecimal():
                raise ValueError(f"video {keyframe.video}: timestamp {keyframe.timestamp!r} is not a frame number")
        self.min_score = min_score
        self.frame_numbers = np.array([int(timestamp) for timestamp in self.timestamps], dtype=np.int64)
        self.video_names, self.video_numbers = np.unique(np.array(self.videos, dtype=object), return_inverse=True)

    def scores(self, gathered: GatheredDetections) -> dict[str, Tensor]:
        num_classes = len(self.class_ids)
        truth, found = self._truth_tubes(gathered), self._found_boxes(gathered)
        frames = frame_ap(truth.as_boxes(), found, num_classes)
        linked, _ = link(link_candidates(found))
        videos = video_scores(truth, linked, num_classes)
        persons = self.person_result(gathered, "activitynet_2018", iou_threshold=0.5)
        scores = {"mAP": frames.mAP, "person_AP": persons.per_class[PERSON]}
        scores |= {f"AP/{name}": ap for name, ap in zip(self.class_ids.tolist(), frames.average_precision.tolist())}
        scores |= {f"video_mAP@{threshold}": mean for threshold, mean in videos.items()}
        return {name: self.as_tensor(score) for name, score in scores.items()}

    def detections_frame(self) -> pd.DataFrame:
        """All evaluated detections, as rows of a detections file for `csv_rows.write_rows(..., header=True)`.

        Collective: all ranks must call it, and each gets the rows of all ranks.

        Returns:
            Table with the columns of `evad.metrics.tubes.DETECTIONS`; labels are class columns, from 0.
        """
        with self.sync_context():
            found = self._found_boxes(self.gathered())
        video = pd.Categorical.from_codes(found.video, categories=pd.Index(self.video_names))
        table = pd.DataFrame({"video": video, "frame": found.frame, "label": found.label, "score": found.score})
        return table.assign(**{name: found.boxes[:, column] for column, name in enumerate(BOX)})

    def _found_boxes(self, gathered: GatheredDetections) -> ScoredFrameBoxes:
        row, label = np.nonzero(gathered.action_scores > self.min_score)
        keyframe = gathered.keyframe[row]
        return ScoredFrameBoxes(
            self.video_numbers[keyframe],
            self.frame_numbers[keyframe],
            label,
            gathered.boxes[row] - LAST_PIXEL,
            gathered.action_scores[row, label],
        )

    def _truth_tubes(self, gathered: GatheredDetections) -> Tubes:
        """Annotated tubes: runs of consecutive evaluated keyframes with the same actor and class."""
        person, label = self.seen_truth(gathered)
        keyframe = self.truth_keyframe[person]
        video, frame, actor = self.video_numbers[keyframe], self.frame_numbers[keyframe], self.truth_actors[person]
        order = np.lexsort((frame, label, actor, video))
        # The last key is constant within a run of consecutive frames.
        keys = np.stack([video[order], actor[order], label[order], frame[order] - np.arange(len(order))])
        first = np.flatnonzero(np.append(True, (keys[:, 1:] != keys[:, :-1]).any(axis=0)))[: len(order)]
        length = np.diff(np.append(first, len(order)))
        pixels = self.truth_boxes[person] * gathered.scale(keyframe) - LAST_PIXEL
        return Tubes(video[order[first]], label[order[first]], frame[order[first]], length, pixels[order])
