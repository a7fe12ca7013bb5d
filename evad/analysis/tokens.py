"""Measure what happens to a clip's tokens: which survive, how many lie on actors, what actors attend to.

Every function puts the detector into evaluation mode and restores its mode afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torchvision.ops import box_iou

from evad.metrics.cost import in_mode
from evad.models.evad import EVAD
from evad.models.tokens import Grid
from evad.structures import Batch, EVADOutput


def token_survival(model: EVAD, clips: Tensor) -> Tensor:
    """Which tokens survive each pruning stage (Figs 1, 4, 11).

    Args:
        model: The detector.
        clips: (B, 3, T, H, W) normalised clips.

    Returns:
        (B, S, T', H', W') bool on the CPU, True = preserved. S is 0 for a model that does not prune.
    """
    with in_mode(model, training=False):
        encoded = model.encoder(clips)
    return survival_of(encoded.kept, encoded.tokens.grid, len(clips))


def survival_of(kept: list[Tensor], grid: Grid, batch: int) -> Tensor:
    """Compute `token_survival` from the positions (B, n) of the surviving tokens, one tensor per stage."""
    survival = torch.zeros(batch, len(kept), int(np.prod(grid)), dtype=torch.bool)
    for stage, positions in enumerate(kept):
        survival[:, stage].scatter_(1, positions.cpu(), True)
    return survival.unflatten(2, grid)


def union_coverage(boxes: np.ndarray, grid: tuple[int, int], patch: int) -> np.ndarray:
    """Share of each token's area that is covered by the union of some boxes, computed exactly.

    Args:
        boxes: (n, 4) xyxy in pixels.
        grid: (H', W').
        patch: Pixels along each side of a token.

    Returns:
        (H', W') float64 in [0, 1].
    """
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    # Cut the grid along every edge of a box: then each piece lies in one token, and wholly inside or outside each box.
    xs, ys = (np.arange(count + 1.0) * patch for count in reversed(grid))
    xs = np.unique(np.concatenate([xs, boxes[:, 0::2].ravel().clip(0, xs[-1])]))
    ys = np.unique(np.concatenate([ys, boxes[:, 1::2].ravel().clip(0, ys[-1])]))
    left, top, right, bottom = boxes.T[:, :, None]
    inside_x = (left <= xs[:-1]) & (xs[1:] <= right)  # (n, pieces along x)
    inside_y = (top <= ys[:-1]) & (ys[1:] <= bottom)
    covered = (inside_y[:, :, None] & inside_x[:, None, :]).any(axis=0)
    area = covered * np.diff(ys)[:, None] * np.diff(xs)
    rows, columns = ((edges[:-1] // patch).astype(int) for edges in (ys, xs))
    coverage = np.zeros(grid)
    np.add.at(coverage, (rows[:, None], columns[None, :]), area)
    return coverage / patch**2


def gt_area_share(survival: Tensor, boxes: Tensor, size: tuple[int, int], patch: int) -> pd.DataFrame:
    """Share of one clip's preserved tokens that lies inside the union of its ground-truth boxes (Fig. 8).

    The keyframe's boxes are used for all slices, as in the paper. A token on an edge counts by the share of its area
    that is inside, so random tokens would give the boxes' share of the image.

    Args:
        survival: (S, T', H', W') bool, True = preserved.
        boxes: (n, 4) xyxy in pixels of the unpadded clip.
        size: Height and width of the unpadded clip in pixels.
        patch: Pixels along each side of a token.

    Returns:
        One row per stage: `stage` (from 1), `gt_area` (the boxes' share of the image), `preserved` (share of the
        preserved tokens inside the boxes), `context` (the same without the tokens of the keyframe).
    """
    slices, height, width = survival.shape[1:]
    coverage = union_coverage(boxes.cpu().numpy(), (height, width), patch)
    others = [t for t in range(slices) if t != slices // 2]
    rows = []
    for stage, alive in enumerate(survival.cpu().numpy(), start=1):
        shares = [
            (kept * coverage).sum() / kept.sum() if kept.any() else float("nan") for kept in (alive, alive[others])
        ]
        rows.append((stage, coverage.sum() * patch**2 / (size[0] * size[1]), *shares))
    return pd.DataFrame(rows, columns=["stage", "gt_area", "preserved", "context"])


def gt_area_shares(model: EVAD, batches: Iterable[Batch]) -> pd.DataFrame:
    """`gt_area_share` of every clip of a validation set; Fig. 8 shows means over clips.

    Returns:
        One row per clip and stage, with a first column `keyframe` (index in the data set); NaN for clips without a box.
    """
    patch = model.encoder.patch_embed.patch
    device = next(model.parameters()).device
    tables = [pd.DataFrame(columns=["keyframe", "stage", "gt_area", "preserved", "context"])]
    for batch in batches:
        survival = token_survival(model, batch.clips.to(device))
        for clip, target in enumerate(batch.targets):
            height, width = batch.sizes[clip].tolist()
            table = gt_area_share(survival[clip], target.boxes, (height, width), patch)
            if not len(target.boxes):
                table[["gt_area", "preserved", "context"]] = float("nan")
            table.insert(0, "keyframe", int(batch.keyframes[clip]))
            tables.append(table)
    return pd.concat(tables[1:] or tables, ignore_index=True)


@dataclass
class ActorAttention:
    """Attention of the actors in one decoder block, averaged over heads.

    Attributes:
        weights: (B, Q, M + Q), attention of each actor to the M tokens, then to the actors; sums to 1.
        positions: (B, M) grid position of each token.
        grid: (T', H', W').
        output: Output of the detector for the batch.
    """

    weights: Tensor
    positions: Tensor
    grid: Grid
    output: EVADOutput

    def on_grid(self) -> Tensor:
        """Attention to the tokens as a grid (B, Q, T', H', W'); NaN for dropped tokens."""
        batch, queries, _ = self.weights.shape
        tokens = self.positions.shape[1]
        volume = self.weights.new_full((batch, queries, int(np.prod(self.grid))), float("nan"))
        index = self.positions.unsqueeze(1).expand(-1, queries, -1)
        return volume.scatter(2, index, self.weights[..., :tokens]).unflatten(2, self.grid)


def actor_attention(model: EVAD, batch: Batch, block: int = -1) -> ActorAttention:
    """Attention of every actor in a block of the context refinement decoder (Fig. 12).

    The fused attention of the forward pass does not return its probabilities, so a hook catches the block's input and
    they are computed again from that.

    Args:
        model: The detector.
        batch: Clips, on the model's device.
        block: Index of the decoder block; negative ones count from the end.

    Raises:
        ValueError: if the model has no context refinement decoder, or the block does not exist.
    """
    layer = decoder_block(model, block)
    caught: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    try:
        with in_mode(model, training=False):
            output = model(batch.clips, batch.sizes, batch.proposals)
            queries = output.roi_features.shape[1]
            query, key, _ = layer.attn.project_last(layer.norm1(caught[0]), queries)
            logits = query @ key.transpose(2, 3) * query.shape[3] ** -0.5
            weights = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1).mean(1)
    finally:
        handle.remove()
    return ActorAttention(weights, output.positions, model.encoder.patch_embed.grid(*batch.clips.shape[2:]), output)


def decoder_block(model: EVAD, block: int) -> Any:
    blocks: Any = getattr(getattr(model.classification, "decoder", None), "blocks", None)
    if blocks is None:
        raise ValueError(
            f"{type(model.classification).__name__} has no context refinement decoder, so actors attend to no tokens; "
            "use a run with model/classifier=decoder"
        )
    if not -len(blocks) <= block < len(blocks):
        raise ValueError(f"decoder block {block} does not exist, the decoder has {len(blocks)}")
    return blocks[block]


def actors_of_interest(output: EVADOutput, batch: Batch) -> list[Tensor]:
    """The queries that overlap each clip's true boxes best; if there is no true box, the most confident query."""
    chosen = []
    for boxes, logits, target in zip(output.boxes[-1], output.person_logits[-1], batch.targets):
        if len(target.boxes):
            chosen.append(box_iou(target.boxes.to(boxes), boxes).argmax(dim=1))
        else:
            chosen.append((logits[:, 0] - logits[:, 1]).argmax().unsqueeze(0))
    return chosen


def slice_images(
    clip: Tensor, tubelet: int, size: tuple[int, int], mean: float = 0.45, std: float = 0.225
) -> np.ndarray:
    """First frame of each time slice as a picture; for the middle slice, that frame is the keyframe.

    Args:
        clip: (3, T, H, W) normalised.
        tubelet: Frames per slice.
        size: Height and width of the unpadded clip in pixels.
        mean: Mean that the clip's transform subtracted.
        std: Standard deviation that it divided by.

    Returns:
        (T', h, w, 3) float in [0, 1].
    """
    frames = clip[:, ::tubelet, : size[0], : size[1]].cpu().float() * std + mean
    return frames.permute(1, 2, 3, 0).clamp(0, 1).numpy()  # (3, T', h, w) -> (T', h, w, 3)
