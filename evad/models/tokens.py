"""Video tokens that carry their positions, so that dropping some and restoring the grid is exact."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tokens:
    """Tokens of B clips together with the grid cell each one came from.

    The N1 = H' * W' tokens of the keyframe come first, row-major and complete: pruning never touches them
    (Sec. 3.2). The context tokens (all other frames) follow in any order; `position` says where each belongs.

    Attributes:
        x: (B, N, C) features.
        position: (B, N) int64, index into the flattened T' x H' x W' grid, unique within a clip.
        grid: (T', H', W').
    """

    x: Tensor
    position: Tensor
    grid: tuple[int, int, int]

    @classmethod
    def from_grid(cls, x: Tensor, grid: tuple[int, int, int]) -> Tokens:
        """Tokens of a complete grid, reordered to put the keyframe first.

        Args:
            x: (B, T' * H' * W', C) features in time, row, column order.
            grid: (T', H', W').
        """
        slices, frame = grid[0], grid[1] * grid[2]
        cells = torch.arange(slices * frame, device=x.device).view(slices, frame)
        order = torch.cat([cells[slices // 2], cells[: slices // 2].flatten(), cells[slices // 2 + 1 :].flatten()])
        return cls(x[:, order], order.expand(x.shape[0], -1), grid)

    @property
    def num_keyframe(self) -> int:
        """N1, the number of keyframe tokens."""
        return self.grid[1] * self.grid[2]

    def with_features(self, x: Tensor) -> Tokens:
        """The same positions with new features (B, N, C)."""
        return Tokens(x, self.position, self.grid)

    def keyframe_map(self) -> Tensor:
        """Feature map of the keyframe: (B, C, H', W')."""
        keyframe = self.x[:, : self.num_keyframe]  # (B, N1, C)
        return keyframe.transpose(1, 2).unflatten(2, self.grid[1:])  # (B, N1, C) -> (B, C, H', W')

    def select_context(self, index: Tensor) -> Tokens:
        """All keyframe tokens and the chosen context tokens, in the order of `index`.

        Args:
            index: (B, n) int64, indices into the context tokens (0 = first token after the keyframe).
        """
        n1 = self.num_keyframe
        keyframe = torch.arange(n1, device=index.device).expand(index.shape[0], -1)
        return self.select(torch.cat([keyframe, index + n1], dim=1))

    def select(self, index: Tensor) -> Tokens:
        """Tokens at `index` (B, n), in that order; `restore` is the inverse."""
        x = self.x.gather(1, index.unsqueeze(2).expand(-1, -1, self.x.shape[2]))
        return Tokens(x, self.position.gather(1, index), self.grid)

    def restore(self, fill: Tensor) -> Tensor:
        """Complete grid with every token in its own place and `fill` wherever a token was dropped (Sec. 3.3).

        Args:
            fill: (C,) feature of a dropped position.

        Returns:
            (B, T' * H' * W', C) in time, row, column order.
        """
        batch, _, channels = self.x.shape
        slices, height, width = self.grid
        volume = fill.to(self.x.dtype).expand(batch, slices * height * width, channels)
        return volume.scatter(1, self.position.unsqueeze(2).expand(-1, -1, channels), self.x)

    def in_grid_order(self) -> Tokens:
        """The same features in the same order, but context positions reassigned in ascending order.

        This is what the released implementation does when it writes score-ordered tokens back with a boolean mask:
        the j-th token lands on the j-th kept position. Only `context_order: score` uses it.
        """
        n1 = self.num_keyframe
        context = self.position[:, n1:].sort(dim=1).values
        return Tokens(self.x, torch.cat([self.position[:, :n1], context], dim=1), self.grid)
