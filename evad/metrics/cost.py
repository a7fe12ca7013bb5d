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
from evad.models.fpn import KeyframePyramid
from evad.models.heads.external import ExternalBoxes
from evad.models.heads.linear import LinearClassification
from evad.models.heads.woo import InteractionClassification
from evad.models.localization import LocalizationBranch


def weights_of(*modules: nn.Module) -> int:
    """Entries of all weight matrices: the MACs these layers spend on one token."""
    return sum(p.numel() for module in modules for p in module.parameters() if p.ndim > 1)


EXTERNAL_ACTORS = 5
"""Boxes per clip that costs are counted for where an external detector gives them; its own cost is not counted."""


def paper_macs(model: EVAD, num_frames: int, height: int, width: int) -> dict[str, int]:
    """MACs of one clip, part by part, counting everything the paper's detector computes.

    Work that we save without changing outputs (pyramid laterals before enlargement, inner action heads and context
    tokens of the last decoder block at inference) is counted; `executed_macs` leaves it out. Scores read off the
    attention are free; the matching of merged tokens is not.

    Args:
        model: The detector.
        num_frames: T.
        height: Padded height in pixels.
        width: Padded width in pixels.
    """
    encoder = model.encoder
    grid = grid_of(encoder, num_frames, height, width)
    queries = num_actors(model.localization)
    return {
        "patch_embed": grid[0] * grid[1] * grid[2] * weights_of(encoder.patch_embed),
        "encoder": encoder_macs(encoder, grid),
        "pyramid": pyramid_macs(model.pyramid, grid[1:]),
        "localization": localization_macs(model.localization),
        "classification": classification_macs(model.classification, context_tokens(encoder, grid), queries),
    }


def num_actors(localization: LocalizationBranch | ExternalBoxes) -> int:
    """Q."""
    return EXTERNAL_ACTORS if isinstance(localization, ExternalBoxes) else localization.proposal_boxes.shape[0]


def grid_of(encoder: VideoTransformer, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
    """(T', H', W') of a clip."""
    patch = encoder.patch_embed.patch
    return num_frames // encoder.patch_embed.tubelet, height // patch, width // patch


def num_protected(encoder: VideoTransformer, grid: tuple[int, int, int]) -> int:
    """Tokens that may not leave: the keyframe's, or none under unified pruning."""
    return 0 if encoder.keyframe == "unified" else grid[1] * grid[2]


def token_counts(encoder: VideoTransformer, grid: tuple[int, int, int]) -> list[int]:
    """Grid tokens entering each block, and behind the last one."""
    protected = num_protected(encoder, grid)
    total = grid[0] * grid[1] * grid[2]
    entry: Any = encoder.entry
    counts = [total if entry is None else entry.num_tokens(total, protected)]
    block: Any
    for block in encoder.blocks:
        n = counts[-1]
        counts.append(n if block.pruning is None else block.pruning.num_tokens(n, protected))
    return counts


def extra_counts(encoder: VideoTransformer, tokens: list[int]) -> list[int]:
    """Tokens without a grid cell (class token, fused tokens) entering each block, and behind the last one."""
    entry: Any = encoder.entry
    counts = [0 if entry is None else entry.num_extra]
    block: Any
    for block, entering, leaving in zip(encoder.blocks, tokens, tokens[1:]):
        counts.append(counts[-1] + (block.pruning.num_extra if leaving < entering else 0))
    return counts


def context_tokens(encoder: VideoTransformer, grid: tuple[int, int, int]) -> int:
    """Tokens handed to the classification branch: the survivors, or all."""
    return grid[0] * grid[1] * grid[2] if encoder.decoder_input == "all" else token_counts(encoder, grid)[-1]


def encoder_macs(encoder: VideoTransformer, grid: tuple[int, int, int]) -> int:
    """Attention over the tokens that enter a block, feed-forward over those that survive it, matching between."""
    total, protected = 0, num_protected(encoder, grid)
    tokens = token_counts(encoder, grid)
    lengths = [n + extra for n, extra in zip(tokens, extra_counts(encoder, tokens))]
    block: Any
    for number, block in enumerate(encoder.blocks):
        entering, leaving = lengths[number], lengths[number + 1]
        total += entering * weights_of(block.attn) + 2 * entering**2 * encoder.dim
        total += leaving * weights_of(block.mlp)
        if block.pruning is not None:
            total += block.pruning.matching_macs(tokens[number], protected, encoder.dim // block.attn.num_heads)
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
    compute the attention they score by a second time (the fused attention keeps none): all rows, or that of the class
    token. CPU inference need not compute all rows twice, which the count does not tell apart.
    """
    counted = paper_macs(model, num_frames, height, width)
    encoder = model.encoder
    grid = grid_of(encoder, num_frames, height, width)
    context, queries = context_tokens(encoder, grid), num_actors(model.localization)
    counted["encoder"] += score_macs(encoder, token_counts(encoder, grid))
    counted["pyramid"] -= lateral_savings(model.pyramid, grid[1:])
    counted["classification"] -= classification_savings(model.classification, context, queries, training)
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
    total = 0
    block: Any
    for block, entering, extra in zip(encoder.blocks, tokens, extra_counts(encoder, tokens)):
        if block.pruning is not None:
            total += block.pruning.scoring_macs(entering + extra, encoder.dim)
    return total


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
