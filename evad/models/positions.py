"""Fixed sine-cosine position codes of a space-time grid."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def sine_cosine_table(num_positions: int, dim: int) -> Tensor:
    """Code of position p: sin (even channel j) or cos (odd j) of p / 10000^(2 * floor(j / 2) / dim).

    Returns:
        (num_positions, dim) float32, computed in float64.
    """
    position = torch.arange(num_positions, dtype=torch.float64).unsqueeze(1)
    channel = torch.arange(dim, dtype=torch.float64)
    angle = position / 10000 ** (2 * (channel // 2) / dim)
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos()).float()


class GridPositions(nn.Module):
    """Position codes for the tokens of a clip of any size.

    The table is defined on a base grid (14 x 14 positions per slice for 224-pixel pretraining, REFERENCE VideoMAE)
    and resized bicubically, slice by slice, for other image sizes. The last resized table is kept, because a
    validation set or a video has one size.

    Args:
        dim: Channels C of the codes.
        num_slices: T', temporal positions.
        base_grid: (rows, columns) of the table.
    """

    table: Tensor

    def __init__(self, dim: int, num_slices: int, base_grid: tuple[int, int]) -> None:
        super().__init__()
        self.base_grid = (num_slices, *base_grid)
        self.register_buffer(
            "table", sine_cosine_table(num_slices * base_grid[0] * base_grid[1], dim), persistent=False
        )
        self._resized: tuple[tuple, Tensor] | None = None

    def forward(self, grid: tuple[int, int, int]) -> Tensor:
        """Codes of every cell of `grid` = (T', H', W').

        Returns:
            (T' * H' * W', C) in time, row, column order.

        Raises:
            ValueError: if the clip has another number of slices than the table.
        """
        if grid[0] != self.base_grid[0]:
            raise ValueError(
                f"the clip has {grid[0]} temporal tokens, the position table {self.base_grid[0]}: "
                "model.num_frames and data.num_frames must agree"
            )
        if tuple(grid) == self.base_grid:
            return self.table
        key = (tuple(grid), self.table.dtype, self.table.device, self.table._version, self.table.data_ptr())
        if self._resized is None or self._resized[0] != key:
            self._resized = (key, self._resize(grid))
        return self._resized[1]

    @torch.no_grad()
    def _resize(self, grid: tuple[int, int, int]) -> Tensor:
        slices = self.table.view(*self.base_grid, -1).permute(0, 3, 1, 2)  # (T', h, w, C) -> (T', C, h, w)
        slices = F.interpolate(slices, size=grid[1:], mode="bicubic", align_corners=False)
        return slices.permute(0, 2, 3, 1).flatten(0, 2)  # (T', C, H', W') -> (T' * H' * W', C)
