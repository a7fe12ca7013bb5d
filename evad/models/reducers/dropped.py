"""Tokens that store dropped tokens, to prune the keyframe too (Table 1c) or to decode all tokens (Table 1d)."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor

from evad.models.tokens import Grid, Tokens, as_map, complement

if TYPE_CHECKING:
    from typing_extensions import Self

_T = TypeVar("_T", bound=Tokens)


@dataclass(frozen=True)
class RememberingTokens(Tokens):
    """Tokens that can store the dropped tokens; base class of the tokens that reducers use.

    Attributes:
        dropped: The dropped tokens with the features they had when they were dropped; None if they are not stored.
        unified: Keyframe tokens may be dropped like context tokens (Table 1c); requires `dropped`.
    """

    dropped: Tokens | None = None
    unified: bool = False

    @property
    def num_protected(self) -> int:
        return 0 if self.unified else self.num_keyframe

    def select(self, index: Tensor) -> Self:
        """The tokens at `index` (B, n); the others are added to `dropped`."""
        chosen = super().select(index)
        if self.dropped is None:
            return chosen
        others = Tokens.select(self.on_grid(), complement(index, self.position.shape[1]))
        return replace(chosen, dropped=joined(self.dropped, others))

    def on_grid(self) -> Tokens:
        """The tokens that have a grid cell, as plain `Tokens`."""
        return Tokens(self.x[:, : self.position.shape[1]], self.position, self.grid)

    def with_dropped(self) -> Tokens:
        """The tokens, followed by the dropped tokens.

        Raises:
            ValueError: if the dropped tokens are not stored.
        """
        if self.dropped is None:
            raise ValueError("dropped tokens are not stored: make the tokens with DropRules(decoder_input='all')")
        return joined(self.on_grid(), self.dropped)

    def keyframe_map(self) -> Tensor:
        """Feature map of the keyframe, (B, C, H', W'); dropped tokens have their last features."""
        if not self.unified:
            return super().keyframe_map()
        complete = self.with_dropped()
        volume = complete.restore(complete.x.new_zeros(complete.x.shape[2]))
        return as_map(volume.narrow(1, self.grid[0] // 2 * self.num_keyframe, self.num_keyframe), self.grid)


class DropRules:
    """Which tokens may be dropped, and whether dropped tokens are decoded (Table 1c, 1d).

    Args:
        keyframe: `keep`: every keyframe token stays. `unified`: they are pruned like context tokens, and ceil(rho * N)
            tokens survive. Localization then reads the last features of dropped keyframe tokens, and the restored
            volume has the fill at their positions.
        decoder_input: `preserved`: the classification branch gets the surviving tokens. `all`: it also gets the dropped
            tokens, with the features they had when they were dropped.

    Raises:
        ValueError: if an argument has another value.
    """

    def __init__(
        self, keyframe: Literal["keep", "unified"] = "keep", decoder_input: Literal["preserved", "all"] = "preserved"
    ) -> None:
        if keyframe not in ("keep", "unified"):
            raise ValueError(f"keyframe {keyframe!r} is neither 'keep' nor 'unified'")
        if decoder_input not in ("preserved", "all"):
            raise ValueError(f"decoder_input {decoder_input!r} is neither 'preserved' nor 'all'")
        self.keyframe, self.decoder_input = keyframe, decoder_input

    def first(self, x: Tensor, grid: Grid) -> Tokens:
        """Features (B, T' * H' * W', C) of a complete grid -> tokens that follow these rules."""
        if (self.keyframe, self.decoder_input) == ("keep", "preserved"):
            return Tokens.from_grid(x, grid)
        tokens = RememberingTokens.from_grid(x, grid)
        nothing = Tokens(x[:, :0], tokens.position[:, :0], grid)
        return replace(tokens, dropped=nothing, unified=self.keyframe == "unified")

    def last(self, tokens: Tokens) -> Tokens:
        """Remove tokens without a grid cell and, for `decoder_input='all'`, append the dropped tokens."""
        if not isinstance(tokens, RememberingTokens):
            return tokens
        return tokens.with_dropped() if self.decoder_input == "all" else tokens.on_grid()


def as_kind(kind: type[_T], tokens: Tokens, **changes: Any) -> _T:
    """The same tokens and attributes in another subclass of `Tokens`, with `changes` applied."""
    return kind(**{**{field.name: getattr(tokens, field.name) for field in fields(tokens)}, **changes})


def joined(first: Tokens, second: Tokens) -> Tokens:
    """The tokens of `first`, then of `second`, as plain `Tokens`."""
    x = torch.cat([first.x, second.x], dim=1)
    return Tokens(x, torch.cat([first.position, second.position], dim=1), first.grid)
