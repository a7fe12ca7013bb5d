"""Video tokens with their grid positions, so that the grid can be restored exactly after tokens are dropped."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from evad.models.attention import attention

if TYPE_CHECKING:
    from typing_extensions import Self

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Tokens:
    """Tokens of B clips together with the grid cell each one came from.

    The N1 = H' * W' tokens of the keyframe come first, row by row and complete: pruning never touches them (Sec. 3.2).
    The context tokens (all other frames) follow in any order; `position` gives the cell of each. Reducers that store
    more per token use a subclass, see `evad.models.reducers`.

    Attributes:
        x: (B, N, C) features.
        position: (B, N) int64, index into the flattened T' x H' x W' grid, unique within a clip.
        grid: (T', H', W').
    """

    x: Tensor
    position: Tensor
    grid: Grid

    @classmethod
    def from_grid(cls, x: Tensor, grid: Grid) -> Self:
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
        """N1, the number of tokens of a complete keyframe."""
        return self.grid[1] * self.grid[2]

    @property
    def num_protected(self) -> int:
        """Number of leading tokens that must not be dropped: all tokens of the keyframe."""
        return self.num_keyframe

    def with_features(self, x: Tensor) -> Self:
        """The same tokens with new features (B, N, C)."""
        return replace(self, x=x)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention between the tokens: (B, heads, N, d) queries, keys and values -> (B, heads, N, d)."""
        return attention(query, key, value)

    def in_keyframe(self) -> Tensor:
        """(B, N) bool, True where a token belongs to the keyframe."""
        return self.position // self.num_keyframe == self.grid[0] // 2

    def keyframe_map(self) -> Tensor:
        """Feature map of the keyframe, (B, C, H', W')."""
        return as_map(self.x[:, : self.num_keyframe], self.grid)

    def select(self, index: Tensor) -> Self:
        """The tokens at `index` (B, n), in that order; `restore` is the inverse."""
        return replace(self, x=take(self.x, index), position=self.position.gather(1, index))

    def select_context(self, index: Tensor) -> Self:
        """All protected tokens, followed by the context tokens at `index`.

        Args:
            index: (B, n) int64, places among the unprotected tokens, 0 = the first one after the protected tokens.
        """
        first = self.num_protected
        protected = torch.arange(first, device=index.device).expand(index.shape[0], -1)
        return self.select(torch.cat([protected, index + first], dim=1))

    def in_grid_order(self) -> Self:
        """The same tokens sorted: keyframe, then context, each in time, row, column order."""
        before_all = torch.where(self.in_keyframe(), self.grid[0] * self.num_keyframe, 0)
        return self.select((self.position - before_all).argsort(dim=1))

    def restore(self, fill: Tensor) -> Tensor:
        """Complete grid with every token at its position and `fill` at the dropped positions (Sec. 3.3).

        Args:
            fill: (C,) feature of a dropped position.

        Returns:
            (B, T' * H' * W', C) in time, row, column order.
        """
        batch, _, channels = self.x.shape
        slices, height, width = self.grid
        volume = fill.to(self.x.dtype).expand(batch, slices * height * width, channels)
        return volume.scatter(1, self.position.unsqueeze(2).expand(-1, -1, channels), self.x)


def as_map(frame: Tensor, grid: Grid) -> Tensor:
    """Tokens (B, H' * W', C) of one complete slice -> feature map (B, C, H', W')."""
    return frame.transpose(1, 2).unflatten(2, grid[1:])


def take(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x (B, N, C) at index (B, n) -> (B, n, C)."""
    return x.gather(1, index.unsqueeze(2).expand(-1, -1, x.shape[2]))


def complement(index: Tensor, count: int) -> Tensor:
    """The numbers below `count` that are not in `index` (B, n), ascending: (B, count - n)."""
    absent = torch.ones(index.shape[0], count, dtype=torch.uint8, device=index.device).scatter(1, index, 0)
    return absent.argsort(dim=1, descending=True, stable=True)[:, : count - index.shape[1]]
