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


def image_scale(sizes: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, 2) height and width -> (B, 1, 4): W, H, W, H."""
    return sizes.flip(1).to(dtype).repeat(1, 2).unsqueeze(1)


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
        return self.match_stages(person_logits.unsqueeze(0), boxes.unsqueeze(0), targets, sizes)[0]

    @torch.no_grad()
    def match_stages(
        self, person_logits: Tensor, boxes: Tensor, targets: list[Target], sizes: Tensor
    ) -> list[list[Match]]:
        """Match every localization stage: (S, B, Q, 2) logits and (S, B, Q, 4) boxes, else as for one stage.

        All costs are copied from the device at once and all matches back at once: each copy from the device waits for
        everything computed so far.
        """
        costs = self.costs(person_logits, boxes, targets, sizes).cpu().numpy()
        counts = [len(target.boxes) for target in targets]
        pairs = [solve(cost[:, :count]) for stage in costs for cost, count in zip(stage, counts)]
        joined = torch.from_numpy(np.concatenate(pairs, axis=1)).to(boxes.device, non_blocking=True)
        matches = [(queries, index) for queries, index in joined.split([pair.shape[1] for pair in pairs], dim=1)]
        return [matches[start : start + len(targets)] for start in range(0, len(matches), len(targets))]

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
    """Losses of a batch; weights and sums are the trainer's business.

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
        all_logits, stages = at_least_float32(output.person_logits), []
        all_matches = self.matcher.match_stages(all_logits, output.boxes, targets, sizes)
        for logits, boxes, matches in zip(all_logits, output.boxes, all_matches):
            stages.append((self.person_loss(logits, matches), *self.box_losses(boxes, targets, matches, sizes)))
        person, l1, giou = (torch.stack(terms) for terms in zip(*stages))
        # `matches` are those of the last stage: its boxes are the ones whose actions were classified.
        action = action_loss(at_least_float32(output.action_logits), targets, matches)
        return Losses(person, l1 / num_boxes, giou / num_boxes, action)

    def person_loss(self, logits: Tensor, matches: list[Match]) -> Tensor:
        """Weighted mean cross-entropy over all queries (B, Q, 2): matched = person (0), others = background (1)."""
        classes = torch.ones(logits.shape[:2], dtype=torch.int64, device=logits.device)
        for clip, (queries, _) in enumerate(matches):
            classes[clip, queries] = 0
        weight = logits.new_tensor([1.0, self.background_weight])
        total = F.cross_entropy(logits.flatten(0, 1), classes.flatten(), weight=weight, reduction="sum")
        return total / mean_over_ranks(weight[classes].sum())

    @staticmethod
    def box_losses(boxes: Tensor, targets: list[Target], matches: list[Match], sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Sums of L1 and 1 - GIoU over matched boxes (B, Q, 4)."""
        scale = image_scale(sizes, boxes.dtype)
        predicted = torch.cat([boxes[clip, queries] for clip, (queries, _) in enumerate(matches)])
        truth = torch.cat([target.boxes[index] for target, (_, index) in zip(targets, matches)]).to(boxes.dtype)
        scales = torch.cat([scale[clip].expand(len(queries), -1) for clip, (queries, _) in enumerate(matches)])
        l1 = (predicted / scales - truth / scales).abs().sum()
        return l1, generalized_box_iou_loss(predicted, truth, reduction="sum", eps=0.0)


class OverlapMatcher:
    """Gives every box the annotated box it overlaps most, several to one if need be (two-stage training).

    Args:
        iou: Smallest overlap; a box with less belongs to nobody.
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
        action = action_loss(at_least_float32(output.action_logits), targets, matches)
        none = action.new_zeros(0)
        return Losses(none, none, none, action)


def action_loss(logits: Tensor, targets: list[Target], matches: list[Match]) -> Tensor:
    """Mean binary cross-entropy over matched actors and classes, per decoder block: (D', B, Q, K) -> (D',).

    Without any box the loss is 0, but still connected to the graph.
    """
    matched = torch.cat([logits[:, clip, queries] for clip, (queries, _) in enumerate(matches)], dim=1)
    labels = torch.cat([target.labels[index] for target, (_, index) in zip(targets, matches)]).to(logits.dtype)
    terms = F.binary_cross_entropy_with_logits(matched, labels.expand_as(matched), reduction="none")
    count = mean_over_ranks(logits.new_full((), matched[0].numel()))
    return terms.sum(dim=(1, 2)) / torch.where(count > 0, count, 1.0)
