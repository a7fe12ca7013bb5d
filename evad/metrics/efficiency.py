"""Cost of the detector: multiply-accumulates by part, as the paper counts them and as they are executed.

The paper's "GFLOPs" are multiply-accumulates (MACs): one per product of a matrix multiplication or convolution, with
attention counted as its two matrix products. Norms, activations, softmax and RoIAlign are not counted.
"""

from __future__ import annotations

from functools import singledispatch
from typing import Any

from torch import nn

from evad.models.classification import ClassificationBranch
from evad.models.encoder import VideoTransformer
from evad.models.evad import EVAD
from evad.models.external import ExternalBoxes
from evad.models.fpn import KeyframePyramid
from evad.models.linear_head import LinearClassification
from evad.models.localization import LocalizationBranch
from evad.models.pruning import num_kept
from evad.models.woo_head import InteractionClassification


def weights_of(*modules: nn.Module) -> int:
    """Entries of all weight matrices: the MACs these layers spend on one token."""
    return sum(p.numel() for module in modules for p in module.parameters() if p.ndim > 1)


EXTERNAL_ACTORS = 5
"""Boxes per clip that costs are counted for where an external detector gives them; its own cost is not counted."""


def paper_macs(model: EVAD, num_frames: int, height: int, width: int) -> dict[str, int]:
    """MACs of one clip, part by part, counting everything the paper's detector computes.

    Work that we save without changing outputs (pyramid laterals before enlargement, inner action heads and context
    tokens of the last decoder block at inference) is counted; `executed_macs` leaves it out.

    Args:
        model: The detector.
        num_frames: T.
        height: Padded height in pixels.
        width: Padded width in pixels.
    """
    encoder = model.encoder
    patch = encoder.patch_embed.patch
    grid = (num_frames // encoder.patch_embed.tubelet, height // patch, width // patch)
    tokens = token_counts(encoder, grid)
    queries = num_actors(model.localization)
    return {
        "patch_embed": grid[0] * grid[1] * grid[2] * weights_of(encoder.patch_embed),
        "encoder": encoder_macs(encoder, tokens),
        "pyramid": pyramid_macs(model.pyramid, grid[1:]),
        "localization": localization_macs(model.localization),
        "classification": classification_macs(model.classification, tokens[-1], queries),
    }


def num_actors(localization: LocalizationBranch | ExternalBoxes) -> int:
    """Q."""
    return EXTERNAL_ACTORS if isinstance(localization, ExternalBoxes) else localization.proposal_boxes.shape[0]


def token_counts(encoder: VideoTransformer, grid: tuple[int, int, int]) -> list[int]:
    """Tokens entering each block, and behind the last one."""
    frame = grid[1] * grid[2]
    counts = [grid[0] * frame]
    block: Any
    for block in encoder.blocks:
        n = counts[-1]
        counts.append(n if block.pruning is None else frame + num_kept(block.pruning.keep_rate, n, frame))
    return counts


def encoder_macs(encoder: VideoTransformer, tokens: list[int]) -> int:
    """Attention over the tokens that enter a block, feed-forward over those that survive it."""
    total = 0
    block: Any
    for block, entering, leaving in zip(encoder.blocks, tokens, tokens[1:]):
        total += entering * weights_of(block.attn) + 2 * entering**2 * encoder.dim
        total += leaving * weights_of(block.mlp)
    return total


def pyramid_macs(pyramid: KeyframePyramid | nn.Identity, frame: tuple[int, int]) -> int:
    """Lateral and output convolutions at the resolution of each level."""
    if isinstance(pyramid, nn.Identity):
        return 0
    total = 0
    for scale, lateral, output in zip(pyramid.SCALES, pyramid.lateral, pyramid.output):
        cells = int(frame[0] * scale) * int(frame[1] * scale)
        total += cells * weights_of(lateral, output)
    return total


def localization_macs(branch: LocalizationBranch | ExternalBoxes) -> int:
    """Every dynamic head for Q queries; RoIAlign is not counted."""
    if isinstance(branch, ExternalBoxes):
        return 0
    queries, dim = branch.proposal_features.shape
    total = 0
    head: Any
    for head in branch.heads:
        generated = 2 * dim * head.interaction.dim_dynamic * branch.roi_size**2
        total += queries * (weights_of(head) + generated) + 2 * queries**2 * dim
    return total


@singledispatch
def classification_macs(branch: nn.Module, tokens: int, queries: int) -> int:
    """A classification head over M surviving tokens and Q actors; RoIAlign is not counted."""
    raise TypeError(f"nobody has said how many MACs {type(branch).__name__} takes: register it here")


@classification_macs.register
def _(branch: ClassificationBranch, tokens: int, queries: int) -> int:
    """Projection of M tokens, then all decoder blocks over M + Q tokens with their action heads."""
    total = tokens * weights_of(branch.project)
    both, dim = tokens + queries, branch.project.out_features
    decoder: Any = branch.decoder
    for block, head in zip(decoder.blocks, decoder.heads):
        total += both * weights_of(block) + 2 * both**2 * dim + queries * weights_of(head)
    return total


@classification_macs.register
def _(branch: LinearClassification, tokens: int, queries: int) -> int:
    return queries * weights_of(branch)


@classification_macs.register
def _(branch: InteractionClassification, tokens: int, queries: int) -> int:
    """Projection of M tokens, then all stages: attention between 2 Q embeddings, the rest for Q actors."""
    total, dim = tokens * weights_of(branch.project), branch.project.out_features
    stage: Any
    for stage in branch.stages:
        total += 2 * queries * weights_of(stage.self_attn) + 2 * (2 * queries) ** 2 * dim
        for part in (stage.spatial, stage.temporal):
            bins = part.filter.out.in_features // dim
            total += queries * (weights_of(part) + 2 * dim * part.filter.dim_dynamic * bins)
        total += queries * weights_of(stage.action_logits)
    return total


def executed_macs(model: EVAD, num_frames: int, height: int, width: int, training: bool = False) -> dict[str, int]:
    """MACs of one clip that are really computed, part by part; arguments and parts as for `paper_macs`.

    Differs from the paper's count by three savings and one addition: pyramid laterals run before enlargement; the last
    decoder block computes actors only; at inference the inner decoder blocks have no action head; pruning blocks
    compute their attention scores a second time to sum them (the fused attention keeps none), except in CPU inference,
    which the count does not tell apart.
    """
    counted = paper_macs(model, num_frames, height, width)
    encoder, patch = model.encoder, model.encoder.patch_embed.patch
    grid = (num_frames // encoder.patch_embed.tubelet, height // patch, width // patch)
    tokens = token_counts(encoder, grid)
    queries = num_actors(model.localization)
    counted["encoder"] += score_macs(encoder, tokens)
    counted["pyramid"] -= lateral_savings(model.pyramid, grid[1:])
    counted["classification"] -= classification_savings(model.classification, tokens[-1], queries, training)
    return counted


def lateral_savings(pyramid: KeyframePyramid | nn.Identity, frame: tuple[int, int]) -> int:
    """Laterals run before the keyframe map is enlarged."""
    if isinstance(pyramid, nn.Identity):
        return 0
    return sum(
        (int(frame[0] * scale) * int(frame[1] * scale) - frame[0] * frame[1]) * weights_of(lateral)
        for scale, lateral in zip(pyramid.SCALES, pyramid.lateral)
        if scale > 1
    )


def score_macs(encoder: VideoTransformer, tokens: list[int]) -> int:
    """Attention logits of pruning blocks, computed again for the importance scores; their sums are no products."""
    blocks: Any = encoder.blocks
    return sum(entering**2 * encoder.dim for block, entering in zip(blocks, tokens) if block.pruning is not None)


@singledispatch
def classification_savings(branch: nn.Module, tokens: int, queries: int, training: bool) -> int:
    """What `classification_macs` counts and the head does not execute."""
    return 0


@classification_savings.register
def _(branch: InteractionClassification, tokens: int, queries: int, training: bool) -> int:
    """Inner action heads at inference."""
    stages: Any = branch.stages
    return 0 if training else queries * sum(weights_of(stage.action_logits) for stage in stages[:-1])


@classification_savings.register
def _(branch: ClassificationBranch, tokens: int, queries: int, training: bool) -> int:
    """Context tokens in the last block (no query, projection, feed-forward), inner action heads at inference."""
    decoder: Any = branch.decoder
    dim, last = branch.project.out_features, decoder.blocks[-1]
    saved = tokens * (weights_of(last) - 2 * dim**2) + 2 * tokens * (tokens + queries) * dim
    if not training:
        saved += queries * sum(weights_of(head) for head in decoder.heads[:-1])
    return saved
