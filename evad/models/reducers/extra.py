"""Tokens without a grid cell, such as a class token."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from evad.models.reducers.dropped import RememberingTokens, as_kind
from evad.models.tokens import Tokens

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class ExtendedTokens(RememberingTokens):
    """N tokens of the grid, followed by E extra tokens without a cell: `x` is (B, N + E, C), `position` (B, N).

    Extra tokens take part in attention and are never dropped, but are not part of the restored volume or decoder input.
    """

    def select(self, index: Tensor) -> Self:
        """The grid's tokens at `index` (B, n), followed by the extra tokens."""
        chosen = super().select(index)
        return replace(chosen, x=torch.cat([chosen.x, self.extra], dim=1))

    @property
    def extra(self) -> Tensor:
        """(B, E, C)."""
        return self.x[:, self.position.shape[1] :]


def with_extra(tokens: Tokens, extra: Tensor) -> ExtendedTokens:
    """Append tokens without a grid cell (B, e, C)."""
    return as_kind(ExtendedTokens, tokens, x=torch.cat([tokens.x, extra], dim=1))
