"""Region features: RoIAlign over a pyramid (localization) and over all time slices (classification).

Boxes are xyxy in pixels throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_FAR = 1e6  # pixels: further out than any image, and far from what overflows float32


def image_scale(sizes: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, 2) height and width -> (B, 1, 4) width, height, width, height: the factors or limits of xyxy boxes."""
    return sizes.flip(1).to(dtype).repeat(1, 2).unsqueeze(1)


@dataclass(frozen=True)
class PyramidTable:
    """All cells of a pyramid in one table, from which one gather reads boxes of every level.

    Build it once per forward pass: all localization stages read the same table.

    Attributes:
        cells: (B * P, C), clip by clip; the P cells of a clip are its levels, fine to coarse, each row by row.
        geometry: (L, 4) per level: cells per pixel, width, height, index of its first cell within a clip.
        cells_per_clip: P.
    """

    cells: Tensor
    geometry: Tensor
    cells_per_clip: int

    @classmethod
    def of(cls, levels: Sequence[Tensor], strides: Sequence[float]) -> PyramidTable:
        """Lay out maps (B, C, h_l, w_l), fine to coarse, with `strides` pixels per cell.

        Raises:
            ValueError: if there is not one stride per level.
        """
        if len(strides) != len(levels):
            raise ValueError(f"{len(strides)} strides {strides} for {len(levels)} pyramid levels: give one per level")
        cells = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)  # (B, P, C)
        # Filled in place rather than copied from a list: a copy from the host would wait for the device.
        dtype = torch.promote_types(cells.dtype, torch.float32)
        geometry, first = [], 0
        for level, stride in zip(levels, strides):
            height, width = level.shape[2:]
            geometry += [cells.new_full((1,), value, dtype=dtype) for value in (1 / stride, width, height, first)]
            first += height * width
        return cls(cells.flatten(0, 1), torch.cat(geometry).view(-1, 4), first)


def assign_levels(boxes: Tensor, num_levels: int, canonical_size: float, canonical_level: int) -> Tensor:
    """Pyramid level of each box: floor(k0 + log2(sqrt(area) / s0 + 1e-8)), clamped (FPN, Eq. 1).

    Args:
        boxes: (..., 4) xyxy pixels.
        num_levels: Levels of the pyramid, 0 = finest.
        canonical_size: s0, side in pixels of a box that belongs on level k0.
        canonical_level: k0.

    Returns:
        (...) int64 in [0, num_levels).
    """
    area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    level = torch.floor(canonical_level + torch.log2(area.clamp(min=0).sqrt() / canonical_size + 1e-8))
    return level.clamp(0, num_levels - 1).long()


def pyramid_roi_align(table: PyramidTable, boxes: Tensor, output_size: int, canonical_size: float) -> Tensor:
    """RoI features of every query, each from the pyramid level that fits its box, as torchvision's RoIAlign reads them.

    A bin is the mean of 2 x 2 samples, each interpolated between 4 cells: 16 cells of the table, weighted. So all boxes
    are read in one step of a fixed shape, whatever their levels, and every level gets a gradient, if only zeros, as
    DistributedDataParallel needs. Boxes get none: torchvision gives them none either.

    Args:
        table: The pyramid.
        boxes: (B, Q, 4) xyxy pixels. They stay float32 beside a bfloat16 table: rounded to bfloat16, a coordinate
            beyond 256 pixels would be off by up to 1 pixel. NaN counts as 0 and the rest is clamped to a million
            pixels: the boxes of a diverged model must not read outside the table. The matcher reports them as an error.
        output_size: Bins S along each side.
        canonical_size: Side in pixels of a box that belongs on the second-coarsest level.

    Returns:
        (B * Q, C, S, S) of the table's type in the order of `boxes`; in memory the channels come last.
    """
    index, weight = pyramid_taps(table, boxes, output_size, canonical_size)
    weight = weight.to(table.cells.dtype)
    if torch.onnx.is_in_onnx_export():  # where an embedding bag would become a loop over bins
        pooled = (table.cells[index] * weight.unsqueeze(2)).sum(1)
    else:
        pooled = F.embedding_bag(index, table.cells, per_sample_weights=weight, mode="sum")
    return pooled.view(-1, output_size, output_size, pooled.shape[1]).permute(0, 3, 1, 2)


@torch.no_grad()
def pyramid_taps(table: PyramidTable, boxes: Tensor, output_size: int, canonical_size: float) -> tuple[Tensor, Tensor]:
    """The 16 cells that each bin of each box reads, and how much each counts; arguments of `pyramid_roi_align`.

    Returns:
        Rows of the table (B * Q * S * S, 16) int64, and weights of the same shape.
    """
    boxes = boxes.nan_to_num(0.0).clamp(-_FAR, _FAR)
    num_levels = len(table.geometry)
    level = assign_levels(boxes, num_levels, canonical_size, canonical_level=num_levels - 2)
    geometry = table.geometry[level]  # (B, Q, 4)
    scale, cells = geometry[..., :1], geometry[..., 1:3]
    sample = bin_samples(boxes[..., :2] * scale - 0.5, boxes[..., 2:] * scale - 0.5, output_size)  # (B, Q, xy, 2 S)
    inside = (sample >= -1) & (sample <= cells.unsqueeze(-1))
    last = cells.unsqueeze(-1) - 1
    sample = torch.minimum(sample.clamp(min=0), last)
    low = sample.floor()
    high, fraction = torch.minimum(low + 1, last), sample - low
    weight = torch.stack([1 - fraction, fraction], dim=-1) * (0.5 * inside).unsqueeze(-1)
    # Per bin and axis, 2 samples with 2 cells each: (B, Q, xy, 2 S, 2) -> twice (B, Q, S, 4).
    column, row = torch.stack([low, high], dim=-1).view(*boxes.shape[:2], 2, output_size, 4).unbind(2)
    column_weight, row_weight = weight.view(*boxes.shape[:2], 2, output_size, 4).unbind(2)
    row = geometry[..., 3, None, None] + row * geometry[..., 1, None, None]
    clip = torch.arange(len(boxes), device=boxes.device).view(-1, 1, 1, 1)
    row = row.long() + clip * table.cells_per_clip
    index = row[..., :, None, :, None] + column.long()[..., None, :, None, :]
    weight = row_weight[..., :, None, :, None] * column_weight[..., None, :, None, :]
    return index.view(-1, 16), weight.view(-1, 16)


def bin_samples(start: Tensor, end: Tensor, bins: int) -> Tensor:
    """Two sampling points per bin along an axis from `start` to `end` (...) -> (..., 2 * bins).

    In torchvision's order of arithmetic: a sample just outside the map counts as 0, so that rounding matters there.
    """
    point = torch.arange(2 * bins, dtype=start.dtype, device=start.device)
    size = ((end - start) / bins).unsqueeze(-1)
    return start.unsqueeze(-1) + (point / 2).floor() * size + (point % 2 + 0.5) * size / 2


def align_by_product(volume: Tensor, boxes: Tensor, output_size: int, scale: float) -> Tensor:
    """RoIAlign of few boxes on a small map with many channels, as one matrix product.

    Equals torchvision's: a bin is a weighted mean of cells, and its weights are a product of row and column weights.
    For the 3072 channels of the restored volume (T' slices times D) a product over all cells is several times faster
    than gathering 4 cells per sample, in the backward pass too.

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
    sample = bin_samples(start, end, bins)  # (B, Q, 2 * S)
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
    return torch.minimum(extended.clamp(min=0), image_scale(sizes - 1, boxes.dtype))
