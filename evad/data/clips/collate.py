"""Pads clips of different sizes to one batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from evad.structures import Batch, Clip


class PaddingCollate:
    """Stacks clips, padding them with 0 (the mean colour) on the right and at the bottom.

    The model does not mask the padding. If the clips of a batch have different sizes, its outputs therefore depend
    slightly on the other clips, and mAP depends on the batch size. Batch size 1 or videos of one size avoid this.

    Args:
        multiple: Height and width of the batch are multiples of this (32 for 16-pixel patches and a stride-32 level).
    """

    def __init__(self, multiple: int = 32) -> None:
        self.multiple = multiple

    def __call__(self, clips: list[Clip]) -> Batch:
        sizes = torch.tensor([clip.frames.shape[2:] for clip in clips])
        height, width = (-(-int(side) // self.multiple) * self.multiple for side in sizes.max(dim=0).values)
        frames = [F.pad(c.frames, (0, width - c.frames.shape[3], 0, height - c.frames.shape[2])) for c in clips]
        proposals = [clip.proposals for clip in clips if clip.proposals is not None]
        return Batch(
            clips=torch.stack(frames),
            sizes=sizes,
            targets=[clip.target for clip in clips],
            keyframes=torch.stack([clip.keyframe for clip in clips]),
            original_sizes=torch.stack([clip.original_size for clip in clips]),
            proposals=proposals or None,  # either all clips of a data set have proposals, or none has
        )
