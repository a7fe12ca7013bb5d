"""Vanilla video ViT with token pruning inside some of its blocks (Sec. 3.1-3.2, Table 6)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from timm.layers import Mlp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from evad.models.attention import Attention, DropPath, xavier_init
from evad.models.positions import GridPositions
from evad.models.pruning import KeyframePruning, TokenPruning
from evad.models.reducers.dropped import DropRules
from evad.models.tokens import Grid, Tokens

ContextOrder = Literal["position", "score"]


class PatchEmbed(nn.Module):
    """Cubes of 2 x P x P pixels -> tokens.

    Args:
        dim: Channels C of a token.
        tubelet: Frames per cube.
        patch: Pixels P along each side of a cube.
    """

    def __init__(self, dim: int, tubelet: int = 2, patch: int = 16) -> None:
        super().__init__()
        self.tubelet, self.patch = tubelet, patch
        self.proj = nn.Conv3d(3, dim, kernel_size=(tubelet, patch, patch), stride=(tubelet, patch, patch))

    def grid(self, frames: int, height: int, width: int) -> Grid:
        """(T', H', W') of a clip.

        Raises:
            ValueError: if the clip cannot be divided into whole cubes.
        """
        if min(frames, height, width) == 0 or frames % self.tubelet or height % self.patch or width % self.patch:
            raise ValueError(
                f"clip of {frames} frames, {height} x {width} pixels is not a whole number of "
                f"{self.tubelet} x {self.patch} x {self.patch} cubes: choose data.sampler.num_frames as a multiple of "
                f"{self.tubelet} and pad the image to multiples of {self.patch}"
            )
        return frames // self.tubelet, height // self.patch, width // self.patch

    def forward(self, clips: Tensor) -> tuple[Tensor, Grid]:
        """(B, 3, T, H, W) -> ((B, T' * H' * W', C), (T', H', W'))."""
        grid = self.grid(*clips.shape[2:])
        return self.proj(clips).flatten(2).transpose(1, 2), grid  # (B, C, T', H', W') -> (B, N, C)


class EncoderBlock(nn.Module):
    """Attention, optional pruning, feed-forward: pruning sits between the two residuals (Fig. 3).

    Args:
        dim: Channels C.
        num_heads: Attention heads.
        drop_path: Probability that a clip skips a residual branch in training.
        pruning: Token pruning of this block, or None.
    """

    def __init__(self, dim: int, num_heads: int, drop_path: float = 0.0, pruning: TokenPruning | None = None) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, 4 * dim)  # exact (erf) GELU
        self.drop_path = DropPath(drop_path)
        self.pruning: TokenPruning | None = pruning

    def forward(self, tokens: Tokens) -> Tokens:
        attended, importance = self.attend(tokens)
        tokens = tokens.with_features(tokens.x + self.drop_path(attended))
        if self.pruning is not None:
            tokens = self.pruning(tokens, importance)
        return tokens.with_features(tokens.x + self.drop_path(self.mlp(self.norm2(tokens.x))))

    def attend(self, tokens: Tokens) -> tuple[Tensor, Tensor | None]:
        """Attention output (B, N, C), and the importance by which this block prunes."""
        query, key, value = self.attn.project(self.norm1(tokens.x))
        if self.pruning is None:
            return self.attn.merge(tokens.attend(query, key, value)), None
        attended, importance = self.pruning.attend(query, key, value, tokens)
        return self.attn.merge(attended), importance


@dataclass
class EncoderOutput:
    """What the encoder hands to the two branches.

    Attributes:
        tokens: Surviving tokens after the final norm; with `decoder_input: all` the dropped tokens follow them.
        keyframe_maps: Keyframe feature maps, each (B, C, H', W'), before the final norm.
        kept: For each pruning stage, (B, n) grid positions of the surviving tokens. Dropping before the first block
            counts as a stage. A merged token has the position of the token it was merged into.
    """

    tokens: Tokens
    keyframe_maps: list[Tensor]
    kept: list[Tensor]


class VideoTransformer(nn.Module):
    """ViT over space-time tokens with keyframe-centric pruning.

    Args:
        dim: Channels C (768 ViT-B, 1024 ViT-L).
        depth: Blocks.
        num_heads: Attention heads.
        patch_embed: Clips -> features of cubes and their grid.
        positions: Position codes of the grid.
        map_blocks: 1-based blocks after which the keyframe map is taken for localization (3, 6, 9, 12).
        prune_blocks: 1-based blocks that prune (4, 7, 10).
        keep_rate: rho of every pruning block, or one value per block of the encoder; 1 = no pruning.
        pruning: Called with a block's keep rate to make its pruning; None if no block prunes.
        entry: Module that reduces the tokens before the first block, (tokens, clips) -> tokens, or None.
        drop_rules: Whether keyframe tokens may be dropped, and whether dropped tokens reach the classification branch.
        context_order: `position`: surviving tokens are restored to their own positions. `score`: tokens sorted by their
            last importance are assigned to the kept positions in ascending order, as in the released code.
        drop_path: Drop-path probability of the last block; it grows linearly from 0.
        activation_checkpointing: Recompute each block in the backward pass instead of storing it.

    Raises:
        ValueError: if a map or pruning block does not exist, a keep rate is outside (0, 1], a list of keep rates does
            not have `depth` values, or `context_order` is unknown or needs scores that `pruning` does not compute.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        num_heads: int,
        patch_embed: PatchEmbed,
        positions: GridPositions,
        map_blocks: Sequence[int],
        prune_blocks: Sequence[int],
        keep_rate: float | Sequence[float],
        pruning: Callable[..., TokenPruning] | None = KeyframePruning,
        entry: nn.Module | None = None,
        drop_rules: DropRules | None = None,
        context_order: ContextOrder = "position",
        drop_path: float = 0.0,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.map_blocks = tuple(map_blocks)
        if not all(1 <= block <= depth for block in self.map_blocks):
            raise ValueError(f"map_blocks {self.map_blocks} do not lie within the {depth} blocks of the encoder")
        self.drop_rules = drop_rules or DropRules()
        self.activation_checkpointing = activation_checkpointing
        self.patch_embed, self.positions = patch_embed, positions
        self.entry: nn.Module | None = entry
        self.blocks = nn.ModuleList(
            EncoderBlock(
                dim,
                num_heads,
                drop_path=drop_path * i / max(depth - 1, 1),
                pruning=pruning(keep_rate=rate) if pruning and rate < 1 else None,
            )
            for i, rate in enumerate(rate_per_block(keep_rate, depth, prune_blocks))
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        xavier_init(self)
        self.set_context_order(context_order)

    def set_context_order(self, order: ContextOrder) -> None:
        """Choose where surviving tokens are written back, see `context_order`.

        Raises:
            ValueError: if the order is unknown, or it is `score` and the pruning computes no scores.
        """
        if order not in get_args(ContextOrder):
            raise ValueError(f"context_order {order!r} is neither 'position' nor 'score'")
        unranked = [stage for stage in self.modules() if isinstance(stage, TokenPruning) and not stage.ranks]
        if order == "score" and unranked:
            raise ValueError(
                f"context_order 'score': the tokens of {type(unranked[0]).__name__} have no score to order them by; "
                "use model.context_order=position or another model/pruning"
            )
        self.context_order = order

    def forward(self, clips: Tensor) -> EncoderOutput:
        """Encode normalised clips (B, 3, T, H, W).

        Raises:
            ValueError: if the clips cannot be divided into whole cubes, do not have the position codes' number
                of slices, or have too few tokens for the keep rate.
        """
        x, grid = self.patch_embed(clips)
        tokens = self.drop_rules.first(x + self.positions(grid), grid)
        maps: list[Tensor] = []
        kept: list[Tensor] = []
        if self.entry is not None:
            tokens = self.entry(tokens, clips)
            if tokens.position.shape[1] < x.shape[1]:
                kept.append(tokens.position)
        recompute = self.activation_checkpointing and self.training
        for number, block in enumerate(self.blocks, start=1):
            tokens = checkpoint(block, tokens, use_reentrant=False) if recompute else block(tokens)
            if block.pruning is not None:
                tokens = tokens if self.context_order == "score" else tokens.in_grid_order()
                kept.append(tokens.position)
            if number in self.map_blocks:
                maps.append(tokens.keyframe_map())
        if self.context_order == "score":
            tokens = written_in_grid_order(tokens)
        tokens = self.drop_rules.last(tokens)
        return EncoderOutput(tokens.with_features(self.norm(tokens.x)), maps, kept)


def written_in_grid_order(tokens: Tokens) -> Tokens:
    """The same features, with the positions of the unprotected tokens sorted in ascending order.

    The released code has this effect because it writes score-ordered tokens back through a boolean mask: the j-th
    token is written to the j-th kept position.
    """
    first = tokens.num_protected
    ascending = tokens.position[:, first:].sort(dim=1).values
    return replace(tokens, position=torch.cat([tokens.position[:, :first], ascending], dim=1))


def rate_per_block(keep_rate: float | Sequence[float], depth: int, prune_blocks: Sequence[int]) -> list[float]:
    """Keep rate of each of `depth` blocks: 1 except in the 1-based `prune_blocks`.

    If `keep_rate` lists one rate per block, the list is returned and `prune_blocks` is not used.

    Raises:
        ValueError: if a rate lies outside (0, 1], a block does not exist, or a list does not have `depth` rates.
    """
    if isinstance(keep_rate, (int, float)):
        if not all(1 <= block <= depth for block in prune_blocks):
            raise ValueError(f"prune_blocks {list(prune_blocks)} do not lie within the {depth} blocks of the encoder")
        rates = [float(keep_rate) if block in prune_blocks else 1.0 for block in range(1, depth + 1)]
    else:
        rates = [float(rate) for rate in keep_rate]
    if len(rates) != depth:
        raise ValueError(f"keep_rate lists {len(rates)} values, but the encoder has {depth} blocks")
    if not all(0 < rate <= 1 for rate in rates):
        raise ValueError(f"keep_rate {keep_rate} is outside (0, 1]")
    return rates
