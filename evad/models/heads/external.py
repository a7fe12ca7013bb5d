"""Actors from boxes of an external detector, in place of the localization branch (Sec. 4.2, the two-stage row)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from evad.structures import Proposals

NOWHERE = (-2.0, -2.0, -1.0, -1.0)
"""Box that fills up clips with fewer actors: it lies outside every image, so that `PostProcess` leaves it out."""


class ExternalBoxes(nn.Module):
    """Passes detected boxes on as the output of a localization branch with one stage and no parameter."""

    def forward(
        self, levels: list[Tensor], sizes: Tensor, proposals: list[Proposals] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Boxes of all clips, filled up to the largest number Q of any clip, at least one.

        Args:
            levels: Keyframe maps, which nobody reads.
            sizes: (B, 2) valid height and width in pixels.
            proposals: Boxes and scores of each clip, any number.

        Returns:
            Person logits (1, B, Q, 2) whose softmax is the detector's score, 0 where the list is filled up, and boxes
            (1, B, Q, 4) in xyxy pixels of the unpadded clip, in the order given.

        Raises:
            ValueError: if there are no proposals.
        """
        if proposals is None:
            raise ValueError(
                "model/localization=external classifies the boxes of another detector, and none are given: training "
                "and evaluation take them from data.proposals.train and data.proposals.val; evad.predict has no such "
                "file and needs a detector trained with model/localization=queries"
            )
        num_actors = max(1, *(len(clip.scores) for clip in proposals))
        like = proposals[0].boxes
        boxes = like.new_tensor(NOWHERE).repeat(len(proposals), num_actors, 1)
        scores = like.new_zeros(len(proposals), num_actors)
        for row, clip in enumerate(proposals):
            boxes[row, : len(clip.boxes)] = clip.boxes
            scores[row, : len(clip.scores)] = clip.scores
        logits = torch.stack([scores.log(), (-scores).log1p()], dim=2)  # softmax: (score, 1 - score)
        return logits.unsqueeze(0), boxes.unsqueeze(0)

    def occupied(self, boxes: Tensor) -> Tensor:
        """(B, Q) bool, which boxes (B, Q, 4) are actors rather than filling; the first one of a clip always counts.

        Attention over nothing would be undefined.
        """
        occupied = (boxes != boxes.new_tensor(NOWHERE)).any(dim=2)
        occupied[:, 0] = True
        return occupied
