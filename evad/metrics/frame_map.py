"""Frame-mAP of AVA and similar data sets as a torchmetrics metric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from evad.files.csv_rows import BOX
from evad.metrics.ava import evaluate_rows, get_protocol
from evad.metrics.ava_csv import DETECTIONS, GROUND_TRUTH, INSTANT
from evad.metrics.frame_ap import Boxes, ScoredBoxes
from evad.metrics.keyframes import PERSON, GatheredDetections, KeyframeMetric
from evad.structures import Keyframe


class AVAFrameMAP(KeyframeMetric):
    """Frame-mAP of AVA and the AP of person boxes.

    `compute()` gives `mAP` (mean over the classes with ground truth), `person_AP` and `AP/<action id>` of each
    evaluated class; a score without ground truth is NaN.

    Args:
        keyframes: All annotated keyframes of the data set, in the order of their indices.
        class_ids: Action id of each of the K label and score columns.
        evaluated: Action ids to evaluate; None for all `class_ids`.
        protocol: A key of `evad.metrics.ava.PROTOCOLS`.
        iou_threshold: Smallest IoU of a match, in (0, 1].
        kwargs: Arguments of `torchmetrics.Metric`.

    Raises:
        ValueError: If the protocol is unknown, or an evaluated id is not in `class_ids`.
    """

    def __init__(
        self,
        keyframes: Sequence[Keyframe],
        class_ids: Sequence[int],
        evaluated: Sequence[int] | None = None,
        protocol: str = "activitynet_2018",
        iou_threshold: float = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(keyframes, class_ids, **kwargs)
        get_protocol(protocol)
        self.evaluated = sorted(set(class_ids if evaluated is None else evaluated))
        if unknown := sorted(set(self.evaluated) - set(class_ids)):
            raise ValueError(
                f"evaluated classes {unknown} are not among the {len(class_ids)} class ids of the data set"
            )
        self.protocol = protocol
        self.iou_threshold = iou_threshold

    def scores(self, gathered: GatheredDetections) -> dict[str, Tensor]:
        columns = np.flatnonzero(np.isin(self.class_ids, self.evaluated))
        result = evaluate_rows(
            self._truth_rows(gathered),
            self._detection_rows(gathered, columns),
            self.evaluated,
            self.protocol,
            iou_threshold=self.iou_threshold,
        )
        persons = self.person_result(gathered, self.protocol, self.iou_threshold)
        scores = {"mAP": self.as_tensor(result.mAP), "person_AP": self.as_tensor(persons.per_class[PERSON])}
        return scores | {f"AP/{action}": self.as_tensor(ap) for action, ap in result.per_class.items()}

    def detections_frame(self) -> pd.DataFrame:
        """All detections as rows of a result file, one per box and class; `csv_rows.write_rows` writes them.

        Collective: all ranks must call it, and each gets the rows of all ranks.

        Returns:
            Table with the columns of `ava_csv.DETECTIONS`; boxes are fractions of the frame.
        """
        with self.sync_context():
            rows = self._detection_rows(self.gathered(), np.arange(len(self.class_ids)))
        return self._named(rows).assign(score=rows.score)[DETECTIONS]

    def ground_truth_frame(self) -> pd.DataFrame:
        """Ground truth of the evaluated keyframes, as rows of an annotation file; collective like `detections_frame`.

        Returns:
            Table with the columns of `ava_csv.GROUND_TRUTH`; persons without an action have no row.
        """
        with self.sync_context():
            rows = self._truth_rows(self.gathered())
        return self._named(rows)[GROUND_TRUTH]

    def _truth_rows(self, gathered: GatheredDetections) -> Boxes:
        person, column = self.seen_truth(gathered)
        return Boxes(self.truth_keyframe[person], self.truth_boxes[person], self.class_ids[column])

    def _detection_rows(self, gathered: GatheredDetections, columns: np.ndarray) -> ScoredBoxes:
        n = len(gathered.boxes)
        return ScoredBoxes(
            np.repeat(gathered.keyframe, len(columns)),
            np.repeat(gathered.fractions, len(columns), axis=0),
            np.tile(self.class_ids[columns], n),
            gathered.action_scores[:, columns].reshape(-1),
        )

    def _named(self, rows: Boxes) -> pd.DataFrame:
        names, codes = np.unique(np.array(self.videos, dtype=object), return_inverse=True)
        table = pd.DataFrame(rows.boxes, columns=BOX)
        table[INSTANT[0]] = pd.Categorical.from_codes(codes[rows.frame], categories=pd.Index(names))
        table[INSTANT[1]] = np.array(self.timestamps, dtype=object)[rows.frame]
        return table.assign(action_id=rows.action)
