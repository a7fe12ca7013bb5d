"""Vanilla video ViT with token pruning inside some of its blocks (Sec. 3.1-3.2, Table 6)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from timm.layers import Mlp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from evad.models.attention import Attention, DropPath, attention, xavier_init
from evad.models.positions import GridPositions
from evad.models.pruning import ContextOrder, KeyframePruning, TokenPruning
from evad.models.tokens import KeyframeRule, Tokens


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

    def forward(self, clips: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
        """(B, 3, T, H, W) -> ((B, T' * H' * W', C), (T', H', W')).

        Raises:
            ValueError: if a clip is not a whole number of cubes.
        """
        frames, height, width = clips.shape[2:]
        if min(frames, height, width) == 0 or frames % self.tubelet or height % self.patch or width % self.patch:
            raise ValueError(
                f"clip of {frames} frames, {height} x {width} pixels is not a whole number of "
                f"{self.tubelet} x {self.patch} x {self.patch} cubes: choose data.sampler.num_frames as a multiple of "
                f"{self.tubelet} and pad the image to multiples of {self.patch}"
            )
        grid = (frames // self.tubelet, height // self.patch, width // self.patch)
        return self.proj(clips).flatten(2).transpose(1, 2), grid  # (B, C, T', H', W') -> (B, N, C)


class EncoderBlock(nn.Module):
    """Attention, optional pruning, feed-forward: pruning sits between the two residuals (Fig. 3).

    Args:
        dim: Channels C.
        num_heads: Attention heads.
        mlp_ratio: Width of the feed-forward layer relative to C.
        drop_path: Probability of skipping a residual branch of a clip in training.
        pruning: Token pruning of this block, or None.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        pruning: TokenPruning | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))  # exact (erf) GELU
        self.drop_path = DropPath(drop_path)
        self.pruning: TokenPruning | None = pruning

    def forward(self, tokens: Tokens) -> Tokens:
        x = tokens.sequence()
        query, key, value = self.attn.project(self.norm1(x))
        if self.pruning is None:
            attended, importance = attention(query, key, value, tokens.attention_bias()), None
        else:
            attended, importance = self.pruning.attend(query, key, value, tokens)
        tokens = tokens.with_sequence(x + self.drop_path(self.attn.merge(attended)))
        if self.pruning is not None:
            tokens = self.pruning(tokens, importance)
        x = tokens.sequence()
        return tokens.with_sequence(x + self.drop_path(self.mlp(self.norm2(x))))


@dataclass
class EncoderOutput:
    """What the encoder hands to the two branches.

    Attributes:
        tokens: Surviving tokens (`decoder_input: all`: then the dropped ones) after the final norm.
        keyframe_maps: Keyframe feature maps, each (B, C, H', W'), before the final norm.
        kept: Per pruning stage, (B, n) grid positions of the context tokens that survived it, under unified pruning of
            all that did. Dropping before the first block is a stage. A merged token has the position it stands at.
    """

    tokens: Tokens
    keyframe_maps: list[Tensor]
    kept: list[Tensor] = field(default_factory=list)


class VideoTransformer(nn.Module):
    """ViT over space-time tokens with keyframe-centric pruning.

    Args:
        dim: Channels C (768 ViT-B, 1024 ViT-L).
        depth: Blocks.
        num_heads: Attention heads.
        map_blocks: 1-based blocks after which the keyframe map is taken for localization (3, 6, 9, 12).
        prune_blocks: 1-based blocks that prune (4, 7, 10).
        keep_rate: rho of every pruning block, or one value per block of the encoder; 1 = no pruning.
        pruning: Makes the pruning of a block from its keep rate and `context_order`.
        entry: What happens to the tokens before the first block: (tokens, clips) -> tokens; None: nothing.
        context_order: Where surviving tokens are written back, see `TokenPruning`.
        keyframe: `keep`: every keyframe token stays. `unified`: pruning treats them as all others, and ceil(rho * N)
            tokens survive (Table 1c). Where one has left, the localization maps show the last value it had; the
            restored volume has the fill of any dropped position.
        decoder_input: `preserved`: the survivors go on to the classification branch. `all`: also every dropped token,
            as it left its stage, after the final norm like the others (Table 1d).
        num_frames: T, frames per clip.
        tubelet: Frames per cube.
        patch: Pixels along a cube's side.
        base_grid: Rows and columns of the position table (pretraining resolution / patch).
        mlp_ratio: Width of the feed-forward layers relative to C.
        drop_path: Drop-path probability of the last block; it grows linearly from 0.
        activation_checkpointing: Recompute each block in the backward pass instead of storing it.

    Raises:
        ValueError: if a map or pruning block does not exist, a keep rate is outside (0, 1], a list of keep rates has
            another length than `depth`, or `keyframe` or `decoder_input` is another word.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        num_heads: int,
        map_blocks: Sequence[int],
        prune_blocks: Sequence[int],
        keep_rate: float | Sequence[float],
        pruning: Callable[..., TokenPruning] = KeyframePruning,
        entry: nn.Module | None = None,
        context_order: ContextOrder = "position",
        keyframe: KeyframeRule = "keep",
        decoder_input: Literal["preserved", "all"] = "preserved",
        num_frames: int = 16,
        tubelet: int = 2,
        patch: int = 16,
        base_grid: tuple[int, int] = (14, 14),
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        rates = rate_per_block(keep_rate, depth, prune_blocks)
        self.dim = dim
        self.map_blocks = tuple(map_blocks)
        if not all(1 <= block <= depth for block in self.map_blocks):
            raise ValueError(f"map_blocks {self.map_blocks} do not lie within the {depth} blocks of the encoder")
        if keyframe not in ("keep", "unified"):
            raise ValueError(f"keyframe {keyframe!r} is neither 'keep' nor 'unified'")
        if decoder_input not in ("preserved", "all"):
            raise ValueError(f"decoder_input {decoder_input!r} is neither 'preserved' nor 'all'")
        self.context_order, self.keyframe, self.decoder_input = context_order, keyframe, decoder_input
        self.activation_checkpointing = activation_checkpointing
        self.patch_embed = PatchEmbed(dim, tubelet, patch)
        self.positions = GridPositions(dim, num_frames // tubelet, (base_grid[0], base_grid[1]))
        self.entry: nn.Module | None = entry
        self.blocks = nn.ModuleList(
            EncoderBlock(
                dim,
                num_heads,
                mlp_ratio,
                drop_path=drop_path * i / max(depth - 1, 1),
                pruning=pruning(keep_rate=rate, context_order=context_order) if rate < 1 else None,
            )
            for i, rate in enumerate(rates)
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        xavier_init(self)

    def forward(self, clips: Tensor) -> EncoderOutput:
        """Encode normalised clips (B, 3, T, H, W).

        Raises:
            ValueError: if a clip is not a whole number of cubes, has another length than `num_frames`, or has too few
                tokens for the keep rate.
        """
        x, grid = self.patch_embed(clips)
        remember = self.keyframe == "unified" or self.decoder_input == "all"
        tokens = Tokens.from_grid(x + self.positions(grid), grid, self.keyframe, remember)
        maps: list[Tensor] = []
        kept: list[Tensor] = []
        if self.entry is not None:
            tokens = self.entry(tokens, clips)
            if tokens.position.shape[1] < x.shape[1]:
                kept.append(tokens.position[:, tokens.num_protected :])
        for number, block in enumerate(self.blocks, start=1):
            tokens = self._run(block, tokens)
            if block.pruning is not None:
                kept.append(tokens.position[:, tokens.num_protected :])
            if number in self.map_blocks:
                maps.append(tokens.keyframe_map())
        return EncoderOutput(self._output(tokens), maps, kept)

    def _output(self, tokens: Tokens) -> Tokens:
        """What the classification branch gets: normed tokens of the grid, without extra ones."""
        if self.context_order == "score":
            tokens = tokens.in_grid_order()
        if self.decoder_input == "all":
            tokens = tokens.with_dropped()
        return Tokens(self.norm(tokens.x), tokens.position, tokens.grid, tokens.keyframe)

    def _run(self, block: nn.Module, tokens: Tokens) -> Tokens:
        if self.activation_checkpointing and self.training:
            return checkpoint(block, tokens, use_reentrant=False)
        return block(tokens)


def rate_per_block(keep_rate: float | Sequence[float], depth: int, prune_blocks: Sequence[int]) -> list[float]:
    """Keep rate of each of `depth` blocks: 1 everywhere but in the 1-based `prune_blocks`.

    A list of rates, one per block, stands for itself; `prune_blocks` has no say then.

    Raises:
        ValueError: if a rate lies outside (0, 1], a block does not exist, or a list has another length than `depth`.
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
