"""Cost of the detector: multiply-accumulates of each part, as executed and as counted in the paper.

The paper's "GFLOPs" are multiply-accumulates (MACs): one per product in a matrix multiplication or convolution;
attention counts as two matrix products. Norms, activations, softmax and RoIAlign are not counted. torch's FLOP counter
counts while each part runs on the meta device, which computes shapes only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from evad.models.classification import ClassificationBranch
from evad.models.encoder import EncoderOutput
from evad.models.evad import EVAD
from evad.models.fpn import KeyframePyramid
from evad.models.heads.external import ExternalBoxes
from evad.models.localization import LocalizationBranch

EXTERNAL_ACTORS = 5
"""Assumed number of boxes per clip if an external detector gives them; its cost is not counted."""


@dataclass
class Count:
    """MACs of one clip by part; `scores` is the encoder's share that only computes importance for pruning."""

    parts: dict[str, int]
    scores: int
    encoded: EncoderOutput


def executed_macs(model: EVAD, num_frames: int, height: int, width: int, training: bool = False) -> dict[str, int]:
    """MACs that the detector executes for one clip, by part.

    Fused attention does not return the attention, so pruning blocks compute it again to score tokens: all rows, or the
    class token's row. CPU inference computes it once only, but the count includes both.

    Args:
        model: The detector.
        num_frames: T.
        height, width: Padded size in pixels.
        training: Count a training forward pass, in which every decoder block classifies.
    """
    return count(model, num_frames, height, width, training).parts


def paper_macs(model: EVAD, num_frames: int, height: int, width: int) -> dict[str, int]:
    """MACs of one clip by part, as the paper counts them; arguments as `executed_macs`.

    Some work does not change outputs, so we skip it, but it is counted here: lateral convolutions at the enlarged size,
    context tokens in the last decoder block, action heads of the other blocks at inference. Importance taken from the
    attention costs nothing; the similarity of tokens to merge is counted.
    """
    counted = count(model, num_frames, height, width, training=True)
    macs = counted.parts
    macs["encoder"] -= counted.scores
    if isinstance(model.pyramid, KeyframePyramid):
        macs["pyramid"] += lateral_savings(model.pyramid, counted.encoded.tokens.grid[1:])
    if isinstance(model.classification, ClassificationBranch):
        tokens = counted.encoded.tokens.x.shape[1]
        macs["classification"] += last_block_savings(model.classification, tokens, num_actors(model.localization))
    return macs


def token_counts(model: EVAD, num_frames: int, height: int, width: int) -> list[int]:
    """Number of tokens of one clip: in the complete grid, then after each pruning stage (Table 6)."""
    encoded = count(model, num_frames, height, width, training=False).encoded
    slices, rows, columns = encoded.tokens.grid
    return [slices * rows * columns, *(positions.shape[1] for positions in encoded.kept)]


def count(model: EVAD, num_frames: int, height: int, width: int, training: bool) -> Count:
    """Count every part on the meta device; arguments as `executed_macs`."""
    with in_mode(model, training), torch.compiler.set_stance("force_eager"), sdpa_kernel(SDPBackend.MATH):
        clips = torch.empty(1, 3, num_frames, height, width, device="meta", dtype=model.encoder.norm.weight.dtype)
        encoder, encoded = run_on_meta(model.encoder, clips)
        pyramid, _ = run_on_meta(model.pyramid, encoded.keyframe_maps)
        boxes = torch.empty(1, num_actors(model.localization), 4, device="meta", dtype=clips.dtype)
        sizes = torch.empty(1, 2, device="meta", dtype=torch.int64)
        classification, _ = run_on_meta(model.classification, encoded.tokens, boxes, sizes)
        parts = {
            "patch_embed": encoder["patch_embed"],
            "encoder": encoder[""] - encoder["patch_embed"],
            "pyramid": pyramid[""],
            "localization": localization_macs(model.localization),
            "classification": classification[""] - classification["roi"],
        }
    return Count(parts, sum(macs for name, macs in encoder.items() if name.endswith("pruning.score")), encoded)


def num_actors(localization: LocalizationBranch | ExternalBoxes) -> int:
    """Number of boxes Q per clip."""
    return EXTERNAL_ACTORS if isinstance(localization, ExternalBoxes) else localization.proposal_boxes.shape[0]


def localization_macs(branch: LocalizationBranch | ExternalBoxes) -> int:
    """MACs of all dynamic heads for Q queries, without the RoIAlign between them."""
    if isinstance(branch, ExternalBoxes):
        return 0
    count, dim = branch.proposal_features.shape
    shapes = (1, count, dim), (count, dim, branch.roi_size, branch.roi_size), (1, count, 4)
    queries, rois, boxes = (torch.empty(shape, device="meta", dtype=branch.proposal_features.dtype) for shape in shapes)
    return sum(run_on_meta(head, queries, rois, boxes)[0][""] for head in branch.heads)


def lateral_savings(pyramid: KeyframePyramid, frame: tuple[int, int]) -> int:
    """MACs saved because lateral convolutions run before keyframe maps are enlarged."""
    return sum(
        (int(frame[0] * scale) * int(frame[1] * scale) - frame[0] * frame[1]) * lateral.weight.numel()  # type: ignore
        for scale, lateral in zip(pyramid.SCALES, pyramid.lateral)
        if scale > 1
    )


def last_block_savings(branch: ClassificationBranch, tokens: int, actors: int) -> int:
    """MACs saved because the last decoder block computes no queries, projection or feed-forward for context tokens."""
    block: Any = branch.decoder.blocks[-1]  # type: ignore[index]
    weights = sum(parameter.numel() for parameter in block.parameters() if parameter.ndim > 1)
    return tokens * (weights - 2 * branch.dim**2) + 2 * tokens * (tokens + actors) * branch.dim


def run_on_meta(module: nn.Module, *inputs: Any) -> tuple[dict[str, int], Any]:
    """MACs by submodule name ("" is the whole module), and the output of the module on the meta device."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    with FlopCounterMode(display=False) as counter:
        output = functional_call(module, {name: tensor.detach().to("meta") for name, tensor in tensors.items()}, inputs)
    macs = {name: sum(counts.values()) // 2 for name, counts in counter.get_flop_counts().items()}
    submodules = {name.removeprefix(f"{type(module).__name__}."): count for name, count in macs.items()}
    return {"": macs.get("Global", 0), **submodules}, output


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Set training or evaluation mode, without gradients; restore the mode of each module afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
