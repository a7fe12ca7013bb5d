"""Region features: RoIAlign over a pyramid (localization) and over all time slices (classification).

Boxes are xyxy in pixels throughout.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import roi_align

_FAR = 1e6  # pixels: further out than any image, and far from what overflows float32


def batched_rois(boxes: Tensor) -> Tensor:
    """Boxes (B, Q, 4) -> RoIAlign rows (B * Q, 5) whose first column is the clip index.

    RoIAlign reads outside its input where a coordinate is NaN or infinite, which ends the process. Such coordinates
    (of a model that diverged) are made finite here; the matcher reports them as an error.
    """
    batch, queries, _ = boxes.shape
    boxes = boxes.nan_to_num(0.0).clamp(-_FAR, _FAR)
    index = torch.arange(batch, dtype=boxes.dtype, device=boxes.device).repeat_interleave(queries)
    return torch.cat([index[:, None], boxes.flatten(0, 1)], dim=1)


def assign_levels(boxes: Tensor, num_levels: int, canonical_size: float, canonical_level: int) -> Tensor:
    """Pyramid level of each box: floor(k0 + log2(sqrt(area) / s0 + 1e-8)), clamped (FPN, Eq. 1).

    Args:
        boxes: (R, 4) xyxy pixels.
        num_levels: Levels of the pyramid, 0 = finest.
        canonical_size: s0, side in pixels of a box that belongs on level k0.
        canonical_level: k0.

    Returns:
        (R,) int64 in [0, num_levels).
    """
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    level = torch.floor(canonical_level + torch.log2(area.clamp(min=0).sqrt() / canonical_size + 1e-8))
    return level.clamp(0, num_levels - 1).long()


def pyramid_roi_align(
    levels: list[Tensor], boxes: Tensor, strides: list[float], output_size: int, canonical_size: float
) -> Tensor:
    """RoI features of every query, each from the pyramid level that fits its box.

    Args:
        levels: Maps (B, C, h_l, w_l), fine to coarse.
        boxes: (B, Q, 4) xyxy pixels.
        strides: Pixels per cell of each level.
        output_size: Bins S along each side.
        canonical_size: Side in pixels of a box that belongs on the second-coarsest level.

    Returns:
        (B * Q, C, S, S), in the order of `boxes`.

    Raises:
        ValueError: if there is not one stride per level.
    """
    if len(strides) != len(levels):
        raise ValueError(f"{len(strides)} strides {strides} for {len(levels)} pyramid levels: give one per level")
    rois = batched_rois(boxes)
    level = assign_levels(rois[:, 1:], len(levels), canonical_size, canonical_level=len(levels) - 2)
    rows = [torch.nonzero(level == number).squeeze(1) for number in range(len(levels))]
    # A level without boxes is aligned too: its parameters then get zero gradients instead of none, as DDP needs.
    features = [
        align(feature, rois[row], output_size, 1 / stride) for feature, row, stride in zip(levels, rows, strides)
    ]
    # The inverse of torch.cat(rows), but of known length, without which torch.export of 2.9 fails.
    return torch.cat(features)[level.argsort(stable=True).argsort()]


def align(feature: Tensor, rois: Tensor, output_size: int, scale: float) -> Tensor:
    """RoIAlign with half-pixel alignment and 2 x 2 samples per bin.

    Args:
        feature: (B, C, h, w).
        rois: (R, 5) clip index and xyxy pixels. Under autocast they stay float32 beside bfloat16 features: rounded to
            bfloat16, a coordinate beyond 256 pixels would be off by up to 1 pixel.
        output_size: Bins S along each side.
        scale: Cells per pixel.

    Returns:
        (R, C, S, S) in the wider of the two types.
    """
    dtype = torch.promote_types(feature.dtype, rois.dtype)
    return roi_align(
        feature.to(dtype), rois.to(dtype), output_size, spatial_scale=scale, sampling_ratio=2, aligned=True
    )


def align_by_product(volume: Tensor, boxes: Tensor, output_size: int, scale: float) -> Tensor:
    """RoIAlign of few boxes on a small map with many channels, as one matrix product.

    Equals `align`: a bin is a weighted mean of cells, and its weights are a product of row and column weights. For the
    3072 channels of the restored volume (T' slices times D) a product over all cells is several times faster than
    gathering 4 cells per sample, in the backward pass too.

    Args:
        volume: (B, H', W', C).
        boxes: (B, Q, 4).
        output_size: Bins S along each side.
        scale: Cells per pixel.

    Returns:
        (B, Q, S * S, C), bins row by row.
    """
    left, top, right, bottom = (boxes * scale - 0.5).unbind(-1)
    rows = bin_weights(top, bottom, output_size, volume.shape[1])
    columns = bin_weights(left, right, output_size, volume.shape[2])
    weights = torch.einsum("bqih,bqjw->bqijhw", rows, columns)  # (B, Q, S, S, H', W')
    pooled = weights.flatten(4).flatten(1, 3).to(volume.dtype) @ volume.flatten(1, 2)  # (B, Q * S * S, C)
    return pooled.unflatten(1, (boxes.shape[1], output_size**2))


def bin_weights(start: Tensor, end: Tensor, bins: int, cells: int) -> Tensor:
    """How much each cell of one axis counts in each bin: linear interpolation at two samples per bin, averaged.

    A sample more than one cell outside the axis counts as 0; nearer ones take the border cell, as in RoIAlign.

    Args:
        start: (B, Q) first coordinate in cells, 0 = centre of the first cell.
        end: (B, Q) last coordinate.
        bins: S.
        cells: Length of the axis.

    Returns:
        (B, Q, S, cells).
    """
    fraction = (torch.arange(2 * bins, dtype=start.dtype, device=start.device) + 0.5) / (2 * bins)
    sample = start.unsqueeze(-1) + (end - start).unsqueeze(-1) * fraction  # (B, Q, 2 * S)
    inside = (sample >= -1) & (sample <= cells)
    cell = torch.arange(cells, dtype=start.dtype, device=start.device)
    weight = (1 - (sample.clamp(0, cells - 1).unsqueeze(-1) - cell).abs()).clamp(min=0) * inside.unsqueeze(-1)
    return weight.unflatten(2, (bins, 2)).mean(dim=3)


def extend_boxes(boxes: Tensor, sizes: Tensor, extension: tuple[float, float]) -> Tensor:
    """Boxes widened to cover an actor's motion over the clip, clipped to the valid image (Sec. 3.3, Fig. 5, Table 1f).

    Args:
        boxes: (B, Q, 4) xyxy pixels.
        sizes: (B, 2) valid height h and width w in pixels.
        extension: (x, y): each side moves out by (box width + 1) * x / 2 and (box height + 1) * y / 2.

    Returns:
        (B, Q, 4) within [0, w - 1] x [0, h - 1], also for the extension 0. A box wholly outside becomes a line or a
        point on the border.
    """
    left, top, right, bottom = boxes.unbind(-1)
    pad_x = (right - left + 1) * (extension[0] / 2)
    pad_y = (bottom - top + 1) * (extension[1] / 2)
    extended = torch.stack([left - pad_x, top - pad_y, right + pad_x, bottom + pad_y], dim=-1)
    limit = (sizes.flip(1) - 1).to(boxes.dtype).repeat(1, 2).unsqueeze(1)  # (B, 1, 4): w-1, h-1, w-1, h-1
    return torch.minimum(extended.clamp(min=0), limit)
