"""Set prediction and action losses (App. B): Hungarian matching, then unweighted terms per stage."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import box_iou, generalized_box_iou, generalized_box_iou_loss

from evad.models.roi import image_scale
from evad.structures import EVADOutput, Target

Match = tuple[Tensor, Tensor]  # query indices and box indices of one clip, both (m,) int64


@dataclass
class Losses:
    """Unweighted loss terms.

    Attributes:
        person: (S,) cross-entropy of person against background, per localization stage.
        l1: (S,) L1 distance of matched boxes as fractions of the image, per stage.
        giou: (S,) 1 - GIoU of matched boxes, per stage.
        action: (D',) binary cross-entropy of matched actors, per decoder block.
    """

    person: Tensor
    l1: Tensor
    giou: Tensor
    action: Tensor


def at_least_float32(value: Tensor) -> Tensor:
    """Logits of a half-precision forward pass in float32: their losses and normalisers are sums over many queries."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


class HungarianMatcher:
    """One-to-one assignment of ground-truth boxes to queries at minimal cost (App. B).

    Cost = person * (-p_person) + l1 * L1(boxes / image size) + giou * (-GIoU in pixels).

    Args:
        person: Weight of the person probability.
        l1: Weight of the L1 distance.
        giou: Weight of the generalized IoU.
    """

    def __init__(self, person: float = 2.0, l1: float = 5.0, giou: float = 2.0) -> None:
        self.person, self.l1, self.giou = person, l1, giou

    def __call__(self, person_logits: Tensor, boxes: Tensor, targets: list[Target], sizes: Tensor) -> list[Match]:
        """Match the queries of one localization stage.

        Args:
            person_logits: (B, Q, 2).
            boxes: (B, Q, 4) xyxy pixels.
            targets: B targets.
            sizes: (B, 2) valid height and width in pixels.

        Returns:
            Per clip, (query indices, box indices), ascending in query index; min(Q, n) pairs.

        Raises:
            ValueError: if a cost is not finite (the model diverged).
        """
        num_queries, first, matches = boxes.shape[1], 0, []
        (flat,) = self.match_stages(person_logits.unsqueeze(0), boxes.unsqueeze(0), targets, sizes)
        for clip, part in enumerate(flat.split([min(num_queries, len(target.boxes)) for target in targets], dim=1)):
            matches.append((part[0] - clip * num_queries, part[1] - first))
            first += len(targets[clip].boxes)
        return matches

    @torch.no_grad()
    def match_stages(self, person_logits: Tensor, boxes: Tensor, targets: list[Target], sizes: Tensor) -> Tensor:
        """Match all localization stages: (S, B, Q, 2) logits and (S, B, Q, 4) boxes, otherwise as for one stage.

        All costs are copied from the device at once and all matches back at once: each copy from the device waits for
        everything computed so far.

        Returns:
            (S, 2, M) int64: per stage M pairs of a query, counted through all clips, and a box, counted likewise.
        """
        costs = self.costs(person_logits, boxes, targets, sizes).cpu().numpy()
        counts = [len(target.boxes) for target in targets]
        first = np.stack([np.arange(len(counts)) * costs.shape[2], np.cumsum(counts) - counts], axis=1)[:, :, None]
        pairs = [
            np.concatenate([solve(cost[:, :n]) + start for cost, n, start in zip(stage, counts, first)], axis=1)
            for stage in costs
        ]
        return torch.from_numpy(np.stack(pairs)).to(boxes.device, non_blocking=True)

    def costs(self, person_logits: Tensor, boxes: Tensor, targets: list[Target], sizes: Tensor) -> Tensor:
        """Costs (S, B, Q, G) for G boxes per clip, the largest number in the batch; the rest of a clip is padding."""
        probability = person_logits.to(boxes.dtype).softmax(-1)[..., :1]
        scale = image_scale(sizes, boxes.dtype)
        truth = pad_sequence([target.boxes.to(boxes.dtype) for target in targets], batch_first=True)  # (B, G, 4)
        distance = torch.cdist(boxes / scale, truth / scale, p=1)
        return self.l1 * distance - self.person * probability - self.giou * generalized_box_iou(boxes, truth)


def solve(cost: np.ndarray) -> np.ndarray:
    """Minimal-cost assignment of a (Q, n) matrix: (2, m) int64, rows and columns."""
    if not np.isfinite(cost).all():
        raise ValueError(
            "matching cost is not finite: the predicted boxes or logits are NaN or infinite (lower the learning rate, "
            "clip gradients or train in float32)"
        )
    return np.stack(linear_sum_assignment(cost))


def mean_over_ranks(value: Tensor) -> Tensor:
    """`value` averaged over the processes of a distributed run; itself otherwise.

    Dividing each rank's sum by the rank average of its normaliser makes the averaged gradient equal to that of one
    process with the joint batch.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return value
    value = value.clone()
    dist.all_reduce(value)
    return value / dist.get_world_size()


class SetCriterion(nn.Module):
    """Losses of a batch, unweighted: the trainer weighs and sums them.

    Args:
        matcher: Assigns boxes to queries.
        background_weight: Class weight of background in the person cross-entropy.
    """

    def __init__(self, matcher: HungarianMatcher | None = None, background_weight: float = 0.1) -> None:
        super().__init__()
        self.matcher = matcher or HungarianMatcher()
        self.background_weight = background_weight

    def forward(self, output: EVADOutput, targets: list[Target], sizes: Tensor) -> Losses:
        """Unweighted losses of every stage and block.

        Args:
            output: Of `EVAD.forward` in training mode.
            targets: B targets; clips without boxes are allowed.
            sizes: (B, 2) valid height and width in pixels.

        Raises:
            ValueError: if a matching cost is not finite (the model diverged).
        """
        num_boxes = output.boxes.new_full((), sum(len(target.boxes) for target in targets))
        num_boxes = mean_over_ranks(num_boxes).clamp(min=1)
        logits = at_least_float32(output.person_logits)
        queries, index = self.matcher.match_stages(logits, output.boxes, targets, sizes).unbind(1)
        l1, giou = self.box_losses(output.boxes, targets, queries, index, sizes)
        labels = torch.cat([target.labels for target in targets])[index[-1]]  # the last stage's boxes were classified
        action = action_loss(at_least_float32(output.action_logits), queries[-1], labels)
        return Losses(self.person_loss(logits, queries), l1 / num_boxes, giou / num_boxes, action)

    def person_loss(self, logits: Tensor, queries: Tensor) -> Tensor:
        """Weighted mean cross-entropy over all queries (S, B, Q, 2): matched = person (0), others = background (1)."""
        logits = logits.flatten(1, 2)
        classes = torch.ones(logits.shape[:2], dtype=torch.int64, device=logits.device).scatter(1, queries, 0)
        weight = logits.new_ones(2)
        weight[1] = self.background_weight
        stages = zip(logits, classes)
        total = torch.stack([F.cross_entropy(*stage, weight=weight, reduction="sum") for stage in stages])
        return total / mean_over_ranks(weight[classes].sum(1))

    @staticmethod
    def box_losses(
        boxes: Tensor, targets: list[Target], queries: Tensor, index: Tensor, sizes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Sums over the matched boxes of L1 and 1 - GIoU, per stage: (S, B, Q, 4) -> twice (S,)."""
        predicted = boxes.flatten(1, 2).gather(1, queries.unsqueeze(2).expand(-1, -1, 4))  # (S, M, 4)
        truth = torch.cat([target.boxes for target in targets]).to(boxes.dtype)[index]
        scale = image_scale(sizes, boxes.dtype).squeeze(1)[queries // boxes.shape[2]]
        l1 = (predicted / scale - truth / scale).abs().flatten(1).sum(1)
        return l1, generalized_box_iou_loss(predicted, truth, eps=0.0).sum(1)


class OverlapMatcher:
    """Gives every box the annotated box it overlaps most, several to one if need be (two-stage training).

    Args:
        iou: Smallest overlap; a box with less is not matched.
    """

    def __init__(self, iou: float = 0.5) -> None:
        self.iou = iou

    @torch.no_grad()
    def __call__(self, person_logits: Tensor, boxes: Tensor, targets: list[Target], sizes: Tensor) -> list[Match]:
        """Match the actors (B, Q, 4); arguments and result as for `HungarianMatcher`."""
        matches = []
        for actors, target in zip(boxes, targets):
            truth = target.boxes.to(actors.dtype)
            overlap = box_iou(actors, torch.cat([truth, actors.new_zeros(1, 4)]))  # never without a column
            best, index = overlap.nan_to_num(0.0).max(dim=1)
            queries = torch.nonzero((best >= self.iou) & (index < len(truth))).squeeze(1)
            matches.append((queries, index[queries]))
        return matches


class ActionCriterion(nn.Module):
    """The action loss alone, for boxes of an external detector: nothing there learns to localize.

    Args:
        matcher: Assigns annotated boxes to actors.
    """

    def __init__(self, matcher: OverlapMatcher | None = None) -> None:
        super().__init__()
        self.matcher = matcher or OverlapMatcher()

    def forward(self, output: EVADOutput, targets: list[Target], sizes: Tensor) -> Losses:
        """Action terms of every decoder block, as of `SetCriterion`; the other terms are empty."""
        matches = self.matcher(output.person_logits[-1], output.boxes[-1], targets, sizes)
        clips = range(len(targets))
        queries = torch.cat([matches[clip][0] + clip * output.boxes.shape[2] for clip in clips])
        labels = torch.cat([targets[clip].labels[matches[clip][1]] for clip in clips])
        action = action_loss(at_least_float32(output.action_logits), queries, labels)
        none = action.new_zeros(0)
        return Losses(none, none, none, action)


def action_loss(logits: Tensor, queries: Tensor, labels: Tensor) -> Tensor:
    """Mean binary cross-entropy over matched actors and classes, per decoder block: (D', B, Q, K) -> (D',).

    If there is no box, the loss is 0, but still connected to the graph.

    Args:
        logits: Of all queries.
        queries: (M,) matched queries, counted through all clips.
        labels: (M, K) of the boxes they are matched to.
    """
    matched = logits.flatten(1, 2).index_select(1, queries)  # (D', M, K)
    terms = F.binary_cross_entropy_with_logits(matched, labels.to(logits.dtype).expand_as(matched), reduction="none")
    count = mean_over_ranks(logits.new_full((), labels.numel()))
    return terms.sum(dim=(1, 2)) / torch.where(count > 0, count, 1.0)
