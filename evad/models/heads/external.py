"""Actors from boxes of an external detector, in place of the localization branch (Sec. 4.2, two-stage detector)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from evad.models.localization import Localized
from evad.structures import Proposals


class ExternalBoxes(nn.Module):
    """Returns detected boxes like a localization branch with one stage and no parameters."""

    def forward(self, levels: list[Tensor], sizes: Tensor, proposals: list[Proposals] | None = None) -> Localized:
        """Boxes of all clips in the given order, padded with zeros to Q, the largest number in any clip (at least 1).

        Args:
            levels, sizes: Not used.
            proposals: Boxes and scores of each clip; a clip may have none.

        Returns:
            One stage; the softmax of its person logits is the detector's score.

        Raises:
            ValueError: if there are no proposals.
        """
        if proposals is None:
            raise ValueError(
                "model/localization=external classifies the boxes of another detector, and none are given: training "
                "and evaluation take them from data.proposals.train and data.proposals.val; evad.predict has no such "
                "file and needs a detector trained with model/localization=queries"
            )
        nothing = proposals[0].boxes.new_zeros(1, 4)  # makes Q at least one
        boxes = pad_sequence([*(clip.boxes for clip in proposals), nothing], batch_first=True)[:-1]
        scores = pad_sequence([*(clip.scores for clip in proposals), nothing[:, 0]], batch_first=True)[:-1]
        counts = torch.tensor([len(clip.boxes) for clip in proposals], device=boxes.device)
        valid = torch.arange(boxes.shape[1], device=boxes.device) < counts.unsqueeze(1)
        logits = torch.stack([scores.log(), (-scores).log1p()], dim=2)  # softmax: (score, 1 - score)
        return Localized(logits.unsqueeze(0), boxes.unsqueeze(0), valid)
