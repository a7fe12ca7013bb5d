"""Video tokens that carry their positions, so that dropping some and restoring the grid is exact."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

KeyframeRule = Literal["keep", "unified"]


@dataclass(frozen=True)
class Dropped:
    """Tokens that left, as they were when they left.

    Attributes:
        x: (B, n, C) features.
        position: (B, n) int64, index into the flattened grid.
    """

    x: Tensor
    position: Tensor


@dataclass(frozen=True)
class Tokens:
    """Tokens of B clips together with the grid cell each one came from.

    The N1 = H' * W' tokens of the keyframe come first, row-major and, unless `keyframe` says `unified`, complete:
    pruning never touches them (Sec. 3.2). The context tokens (all other frames) follow in any order; `position` says
    where each belongs.

    Attributes:
        x: (B, N, C) features.
        position: (B, N) int64, index into the flattened T' x H' x W' grid, unique within a clip.
        grid: (T', H', W').
        keyframe: `keep`: keyframe tokens stay. `unified`: they may leave as any other token (Table 1c).
        extra: (B, E, C) tokens that stand for no grid cell, such as a class token; never restored. None: E = 0.
        size: (B, N) how many cells were merged into each token; None: one each.
        dropped: The tokens that left; None: nobody will ask for them.
    """

    x: Tensor
    position: Tensor
    grid: tuple[int, int, int]
    keyframe: KeyframeRule = "keep"
    extra: Tensor | None = None
    size: Tensor | None = None
    dropped: Dropped | None = None

    @classmethod
    def from_grid(
        cls, x: Tensor, grid: tuple[int, int, int], keyframe: KeyframeRule = "keep", remember: bool = False
    ) -> Tokens:
        """Tokens of a complete grid, reordered to put the keyframe first.

        Args:
            x: (B, T' * H' * W', C) features in time, row, column order.
            grid: (T', H', W').
            keyframe: See the class.
            remember: Hold the tokens that will leave in `dropped`.
        """
        slices, frame = grid[0], grid[1] * grid[2]
        cells = torch.arange(slices * frame, device=x.device).view(slices, frame)
        order = torch.cat([cells[slices // 2], cells[: slices // 2].flatten(), cells[slices // 2 + 1 :].flatten()])
        position = order.expand(x.shape[0], -1)
        dropped = Dropped(x[:, :0], position[:, :0]) if remember else None
        return cls(x[:, order], position, grid, keyframe, dropped=dropped)

    @property
    def num_keyframe(self) -> int:
        """N1, the number of keyframe tokens."""
        return self.grid[1] * self.grid[2]

    @property
    def num_protected(self) -> int:
        """How many of the first tokens may not leave: N1, or none under unified pruning."""
        return 0 if self.keyframe == "unified" else self.num_keyframe

    def with_features(self, x: Tensor) -> Tokens:
        """The same positions with new features (B, N, C)."""
        return replace(self, x=x)

    def sequence(self) -> Tensor:
        """What attends to each other: grid tokens, then extra ones, (B, N + E, C)."""
        return self.x if self.extra is None else torch.cat([self.x, self.extra], dim=1)

    def with_sequence(self, x: Tensor) -> Tokens:
        """The same tokens with new features (B, N + E, C), the inverse of `sequence`."""
        if self.extra is None:
            return replace(self, x=x)
        count = self.position.shape[1]
        return replace(self, x=x[:, :count], extra=x[:, count:])

    def with_extra(self, extra: Tensor) -> Tokens:
        """The same tokens and further ones without a grid cell (B, e, C), behind those there are."""
        return replace(self, extra=extra if self.extra is None else torch.cat([self.extra, extra], dim=1))

    def attention_bias(self) -> Tensor | None:
        """(B, N + E) log sizes: a token made of s cells is attended to as s tokens; None where none was merged."""
        if self.size is None:
            return None
        bias = self.size.log()
        return bias if self.extra is None else torch.nn.functional.pad(bias, (0, self.extra.shape[1]))

    def in_keyframe(self) -> Tensor:
        """(B, N) bool, True where a token belongs to the keyframe."""
        return self.position // self.num_keyframe == self.grid[0] // 2

    def keyframe_map(self) -> Tensor:
        """Feature map of the keyframe: (B, C, H', W').

        Where a keyframe token has left, the last value it had stands in its place.
        """
        n1 = self.num_keyframe
        if self.num_protected:
            keyframe = self.x[:, :n1]  # (B, N1, C)
        else:
            complete = self.with_dropped()
            volume = complete.restore(complete.x.new_zeros(complete.x.shape[2]))
            keyframe = volume.narrow(1, self.grid[0] // 2 * n1, n1)
        return keyframe.transpose(1, 2).unflatten(2, self.grid[1:])  # (B, N1, C) -> (B, C, H', W')

    def select_context(self, index: Tensor) -> Tokens:
        """All protected tokens (those of the keyframe) and the chosen others, in the order of `index`.

        Args:
            index: (B, n) int64, indices into the tokens that may leave (0 = first token after the keyframe).
        """
        first = self.num_protected
        protected = torch.arange(first, device=index.device).expand(index.shape[0], -1)
        return self.select(torch.cat([protected, index + first], dim=1))

    def select(self, index: Tensor) -> Tokens:
        """Tokens at `index` (B, n), in that order; `restore` is the inverse."""
        size = None if self.size is None else self.size.gather(1, index)
        dropped = self.dropped
        if dropped is not None:
            gone = complement(index, self.position.shape[1])
            dropped = Dropped(
                torch.cat([dropped.x, take(self.x, gone)], dim=1),
                torch.cat([dropped.position, self.position.gather(1, gone)], dim=1),
            )
        return replace(self, x=take(self.x, index), position=self.position.gather(1, index), size=size, dropped=dropped)

    def with_dropped(self) -> Tokens:
        """Survivors followed by the tokens that left, as they left.

        Raises:
            ValueError: if those were not held, see `from_grid`.
        """
        if self.dropped is None:
            raise ValueError("tokens that left were not held: make the tokens with remember=True")
        x = torch.cat([self.x, self.dropped.x], dim=1)
        return Tokens(x, torch.cat([self.position, self.dropped.position], dim=1), self.grid, self.keyframe)

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
        first = self.num_protected
        context = self.position[:, first:].sort(dim=1).values
        return replace(self, position=torch.cat([self.position[:, :first], context], dim=1))


def take(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x (B, N, C) at index (B, n) -> (B, n, C)."""
    return x.gather(1, index.unsqueeze(2).expand(-1, -1, x.shape[2]))


def complement(index: Tensor, count: int) -> Tensor:
    """The numbers below `count` that are not in `index` (B, n), ascending: (B, count - n)."""
    absent = torch.ones(index.shape[0], count, dtype=torch.uint8, device=index.device).scatter(1, index, 0)
    return absent.argsort(dim=1, descending=True, stable=True)[:, : count - index.shape[1]]
