"""Query-based actor localization on the keyframe (Sec. 3.3, App. B): dynamic instance interactive heads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from evad.models.attention import xavier_init
from evad.models.roi import PyramidTable, image_scale, pyramid_roi_align
from evad.structures import Proposals


@dataclass(frozen=True)
class Localized:
    """Persons in the keyframes of B clips, as a localization branch returns them.

    Attributes:
        person_logits: (S, B, Q, 2), one per stage; 0 = person, 1 = background.
        boxes: (S, B, Q, 4) xyxy pixels of the unpadded clip, not clipped. The last stage is the prediction.
        valid: (B, Q) bool mask of queries, False where a clip's list of actors is only padded; None: all are valid.
    """

    person_logits: Tensor
    boxes: Tensor
    valid: Tensor | None = None


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Centre and size -> corners, last dimension 4."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def apply_deltas(
    boxes: Tensor, deltas: Tensor, weights: tuple[float, float, float, float] = (2.0, 2.0, 1.0, 1.0)
) -> Tensor:
    """Boxes moved by predicted offsets.

    Centre moves by (dx, dy) box sizes, size grows by exp(dw, dh); dw and dh are at most log(100000 / 16).

    Args:
        boxes: (..., 4) xyxy pixels.
        deltas: (..., 4) raw predictions of dx, dy, dw, dh.
        weights: What each of the four is divided by.

    Returns:
        (..., 4) xyxy pixels of the type of `boxes`, not clipped to the image.
    """
    dx, dy, dw, dh = (deltas.to(boxes.dtype) / boxes.new_tensor(weights)).unbind(-1)
    limit = math.log(100000.0 / 16)
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    centre_x = boxes[..., 0] + 0.5 * width + dx * width
    centre_y = boxes[..., 1] + 0.5 * height + dy * height
    half_width = 0.5 * width * dw.clamp(max=limit).exp()
    half_height = 0.5 * height * dh.clamp(max=limit).exp()
    return torch.stack(
        [centre_x - half_width, centre_y - half_height, centre_x + half_width, centre_y + half_height], dim=-1
    )


class DynamicConv(nn.Module):
    """Filters each query's RoI feature with two 1x1 convolutions generated from the query (Sparse R-CNN).

    Args:
        dim: Channels C of queries and RoI features.
        dim_dynamic: Channels between the two generated products.
        num_bins: Bins M of an RoI.
    """

    def __init__(self, dim: int, dim_dynamic: int, num_bins: int) -> None:
        super().__init__()
        self.dim, self.dim_dynamic = dim, dim_dynamic
        self.generate = nn.Linear(dim, 2 * dim * dim_dynamic)
        self.norm1 = nn.LayerNorm(dim_dynamic)
        self.norm2 = nn.LayerNorm(dim)
        self.out = nn.Linear(dim * num_bins, dim)
        self.norm3 = nn.LayerNorm(dim)

    def forward(self, queries: Tensor, rois: Tensor) -> Tensor:
        """(R, C) queries, (R, M, C) RoI features -> (R, C)."""
        generated = self.generate(queries)
        first, second = generated.split(self.dim * self.dim_dynamic, dim=1)
        x = torch.bmm(rois.to(generated.dtype), first.unflatten(1, (self.dim, self.dim_dynamic)))
        x = self.norm1(x).relu()
        x = torch.bmm(x.to(generated.dtype), second.unflatten(1, (self.dim_dynamic, self.dim)))
        x = self.norm2(x).relu()
        return self.norm3(self.out(x.flatten(1))).relu()


def tower(dim: int, depth: int) -> nn.Sequential:
    """`depth` times Linear (no bias), LayerNorm, ReLU."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(dim, dim, bias=False), nn.LayerNorm(dim), nn.ReLU()]
    return nn.Sequential(*layers)


class DynamicHead(nn.Module):
    """One refinement step: queries attend to each other, then read their boxes, and predict better ones.

    Args:
        dim: Channels C of queries and pyramid.
        num_heads: Heads of the self-attention between queries.
        dim_dynamic: See `DynamicConv`.
        dim_feedforward: Width of the feed-forward layer.
        roi_size: Bins along each side of an RoI.
        cls_depth: Layers of the person / background tower.
        reg_depth: Layers of the box tower.
    """

    def __init__(
        self,
        dim: int = 256,
        num_heads: int = 8,
        dim_dynamic: int = 64,
        dim_feedforward: int = 2048,
        roi_size: int = 7,
        cls_depth: int = 1,
        reg_depth: int = 3,
    ) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(dim, num_heads, batch_first=True)
        self.norm1 = nn.LayerNorm(dim)
        self.interaction = DynamicConv(dim, dim_dynamic, roi_size**2)
        self.norm2 = nn.LayerNorm(dim)
        self.ffn = nn.Sequential(nn.Linear(dim, dim_feedforward), nn.ReLU(), nn.Linear(dim_feedforward, dim))
        self.norm3 = nn.LayerNorm(dim)
        self.cls_tower = tower(dim, cls_depth)
        self.reg_tower = tower(dim, reg_depth)
        self.person_logits = nn.Linear(dim, 2)
        self.box_deltas = nn.Linear(dim, 4)

    def forward(self, queries: Tensor, rois: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Refine queries (B, Q, C) with RoI features (B * Q, C, S, S) of boxes (B, Q, 4).

        Returns:
            Queries (B, Q, C), person logits (B, Q, 2), boxes (B, Q, 4).
        """
        attended = self.self_attn(queries, queries, queries, need_weights=False)[0]
        queries = self.norm1(queries + attended)
        pixels = rois.flatten(2).transpose(1, 2)  # (B * Q, C, S, S) -> (B * Q, S * S, C)
        interacted = self.interaction(queries.flatten(0, 1), pixels).view_as(queries)
        queries = self.norm2(queries + interacted)
        queries = self.norm3(queries + self.ffn(queries))
        logits = self.person_logits(self.cls_tower(queries))
        return queries, logits, apply_deltas(boxes, self.box_deltas(self.reg_tower(queries)))


class LocalizationBranch(nn.Module):
    """Learnable proposals refined by a sequence of dynamic heads.

    Args:
        num_queries: Q.
        num_stages: S, dynamic heads.
        dim: Channels of queries and pyramid.
        strides: Pixels per cell of each pyramid level, fine to coarse.
        roi_size: Bins along each side of an RoI.
        canonical_size: Side in pixels of a box that belongs on the second-coarsest level.
        initial_boxes: Q rows (cx, cy, w, h) in [0, 1]; None starts every query at the whole image, as the paper does.
        delta_gain: Scale of the initial box-delta weights; below 1 the first boxes stay near the proposals.
        **head_options: Arguments of every `DynamicHead`.

    Raises:
        ValueError: if `initial_boxes` are not Q rows of four numbers in [0, 1].
    """

    def __init__(
        self,
        num_queries: int = 100,
        num_stages: int = 6,
        dim: int = 256,
        strides: Sequence[float] = (4, 8, 16, 32),
        roi_size: int = 7,
        canonical_size: float = 224,
        initial_boxes: Sequence[Sequence[float]] | None = None,
        delta_gain: float = 1.0,
        **head_options: int,
    ) -> None:
        super().__init__()
        self.strides, self.roi_size, self.canonical_size = list(strides), roi_size, canonical_size
        self.proposal_boxes = nn.Parameter(proposals(num_queries, initial_boxes))
        self.proposal_features = nn.Parameter(torch.empty(num_queries, dim))
        heads = [DynamicHead(dim=dim, roi_size=roi_size, **head_options) for _ in range(num_stages)]
        self.heads = nn.ModuleList(heads)
        xavier_init(self)
        nn.init.xavier_uniform_(self.proposal_features)
        with torch.no_grad():
            for head in heads:
                head.box_deltas.weight.mul_(delta_gain)

    def forward(self, levels: list[Tensor], sizes: Tensor, proposals: list[Proposals] | None = None) -> Localized:
        """Persons in the keyframe; all queries are valid.

        Args:
            levels: Pyramid maps (B, C, h_l, w_l), fine to coarse.
            sizes: (B, 2) valid height and width in pixels.
            proposals: For `ExternalBoxes`, which can replace this branch; not used here.
        """
        boxes = cxcywh_to_xyxy(self.proposal_boxes) * image_scale(sizes, self.proposal_boxes.dtype)
        queries = self.proposal_features.expand(len(sizes), -1, -1)
        table = PyramidTable.of([level.to(boxes.dtype) for level in levels], self.strides)
        all_logits, all_boxes = [], []
        for head in self.heads:
            rois = pyramid_roi_align(table, boxes, self.roi_size, self.canonical_size)
            queries, logits, boxes = head(queries, rois, boxes)
            all_logits.append(logits)
            all_boxes.append(boxes)
            boxes = boxes.detach()
        return Localized(torch.stack(all_logits), torch.stack(all_boxes))


def proposals(num_queries: int, initial_boxes: Sequence[Sequence[float]] | None) -> Tensor:
    """Starting boxes (Q, 4), cxcywh in [0, 1]; the whole image if none are given.

    Raises:
        ValueError: if they are not Q rows of 4 numbers in [0, 1].
    """
    if initial_boxes is None:
        return torch.tensor([0.5, 0.5, 1.0, 1.0]).repeat(num_queries, 1)
    rows = np.array(initial_boxes, dtype=np.float32)  # checked outside torch: the model may be built on the meta device
    if rows.shape != (num_queries, 4) or rows.min() < 0 or rows.max() > 1:
        raise ValueError(
            f"initial_boxes of shape {rows.shape} must be {num_queries} rows of cx, cy, w, h within [0, 1]"
        )
    return torch.tensor(rows)
