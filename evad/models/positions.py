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


@torch.no_grad()
def resize_table(table: Tensor, grid: tuple[int, int, int], size: tuple[int, int]) -> Tensor:
    """Bicubic resize of each temporal slice separately.

    Args:
        table: (T' * h * w, C) codes of `grid` = (T', h, w) in time, row, column order.
        grid: Cells of the table.
        size: (H', W') wanted.

    Returns:
        (T' * H' * W', C).
    """
    slices = table.view(*grid, -1).permute(0, 3, 1, 2)  # (T', h, w, C) -> (T', C, h, w)
    slices = F.interpolate(slices, size=size, mode="bicubic", align_corners=False)
    return slices.permute(0, 2, 3, 1).flatten(0, 2)  # (T', C, H', W') -> (T' * H' * W', C)


class GridPositions(nn.Module):
    """Position codes for the tokens of a clip of any size.

    The table is defined on a base grid (14 x 14 positions per slice for VideoMAE, pretrained at 224 pixels) and
    resized for other image sizes. The last resized table is cached, because the clips of a video have one size.
    The sine-cosine table is a constant and not saved. A table from pretrained weights is saved with the model's
    weights and loaded with them.

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
        self._resized: tuple[Tensor, tuple[int, int, int], Tensor] | None = None  # (source table, grid, result)
        self.register_load_state_dict_pre_hook(_expect_stored_table)

    def replace(self, table: Tensor) -> None:
        """Replace the sine-cosine codes; from now on the codes are saved with the weights.

        Args:
            table: (T' * h * w, C) codes of the base grid.

        Raises:
            ValueError: if the shapes differ.
        """
        if table.shape != self.table.shape:
            raise ValueError(f"position table {tuple(table.shape)} instead of {tuple(self.table.shape)}")
        self.register_buffer("table", table.detach().to(self.table, copy=True), persistent=True)
        self._resized = None

    def forward(self, grid: tuple[int, int, int]) -> Tensor:
        """Codes of every cell of `grid` = (T', H', W').

        Returns:
            (T' * H' * W', C) in time, row, column order.

        Raises:
            ValueError: if the clip and the table differ in their number of slices.
        """
        if grid[0] != self.base_grid[0]:
            raise ValueError(
                f"the clip has {grid[0]} temporal tokens, the position table {self.base_grid[0]}: "
                "model.num_frames and data.sampler.num_frames must agree"
            )
        if tuple(grid) == self.base_grid:
            return self.table
        if torch.compiler.is_exporting():  # an exported program has no cache
            return resize_table(self.table, self.base_grid, grid[1:])
        if self._resized is None or self._resized[0] is not self.table or self._resized[1] != grid:
            self._resized = (self.table, grid, resize_table(self.table, self.base_grid, grid[1:]))
        return self._resized[2]


def _expect_stored_table(positions: GridPositions, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Register the table as a saved buffer if the state dict to load contains one."""
    if f"{prefix}table" in state:
        positions.register_buffer("table", positions.table, persistent=True)
        positions._resized = None
