"""Model outputs -> detections in the pixels of the original video."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from evad.models.roi import image_scale
from evad.structures import Detections, EVADOutput


class PostProcess:
    """Chooses the queries that count as actors and scores their actions.

    The released rule is `score="action"`, `person_threshold=0.7`, `keep_all_if_none=True`: a class score is
    sigmoid(action logit), not multiplied by the person score.

    Args:
        score: Score by which detections are ranked: the `action` score alone or `person_times_action`.
        person_threshold: Queries with a lower person score are dropped.
        keep_all_if_none: If no query of a clip reaches the threshold, keep them all.
    """

    def __init__(
        self,
        score: Literal["action", "person_times_action"] = "action",
        person_threshold: float = 0.7,
        keep_all_if_none: bool = True,
    ) -> None:
        if score not in ("action", "person_times_action"):
            raise ValueError(f"postprocess.score {score!r} is neither 'action' nor 'person_times_action'")
        self.score = score
        self.person_threshold = person_threshold
        self.keep_all_if_none = keep_all_if_none

    def scores(self, output: EVADOutput) -> tuple[Tensor, Tensor]:
        """Person scores (B, Q) and action scores (B, Q, K) of all queries, both in [0, 1]."""
        persons = output.person_logits[-1].float().softmax(-1)[..., 0]
        actions = output.action_logits[-1].float().sigmoid()
        return persons, actions * persons.unsqueeze(-1) if self.score == "person_times_action" else actions

    @torch.no_grad()
    def __call__(self, output: EVADOutput, sizes: Tensor, original_sizes: Tensor) -> list[Detections]:
        """Detections of each clip.

        Args:
            output: Output of `EVAD.forward`; the last stage and block are used.
            sizes: (B, 2) valid height and width of the resized clips.
            original_sizes: (B, 2) height and width of the videos.

        Returns:
            Detections of the valid queries of each clip; boxes are clipped to the image; boxes outside are dropped.
        """
        persons, actions = self.scores(output)
        boxes = output.boxes[-1].float() * image_scale(original_sizes / sizes, torch.float32)
        boxes = torch.minimum(boxes.clamp(min=0), image_scale(original_sizes, boxes.dtype))
        keep = persons >= self.person_threshold
        if self.keep_all_if_none:
            keep |= ~keep.any(dim=1, keepdim=True)
        if output.valid is not None:
            keep &= output.valid
        keep &= (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])
        return [
            Detections(boxes[i, row], persons[i, row], actions[i, row], original_sizes[i]) for i, row in enumerate(keep)
        ]
