"""Action classification of located actors: restored volume, RoI features, context refinement decoder (Sec. 3.3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from torch import Tensor, nn

from evad.models.actors import ActorReader, Fill
from evad.models.attention import Attention, DropPath, attention, xavier_init
from evad.models.positions import GridPositions
from evad.models.tokens import Tokens


class DecoderBlock(nn.Module):
    """Pre-norm self-attention over context tokens and actors, then a feed-forward layer.

    Args:
        dim: Channels D.
        num_heads: Attention heads.
        mlp_ratio: Width of the feed-forward layer relative to D.
        drop_path: Probability of skipping a residual branch of a clip in training.
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float = 4.0, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, num_queries: int | None = None, mask: Tensor | None = None) -> Tensor:
        """Refine the last `num_queries` of N tokens (all by default): (B, N, D) -> (B, num_queries, D).

        `mask` (B, N) is True at tokens that may be attended to; None: all of them.
        """
        normed = self.norm1(x)
        if num_queries is None:
            projected = self.attn.project(normed)
        else:
            projected, x = self.attn.project_last(normed, num_queries), x[:, -num_queries:]
        x = x + self.drop_path(self.attn.merge(attention(*projected, mask)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def action_head(dim: int, hidden_dim: int, num_classes: int) -> nn.Sequential:
    """Linear (no bias), LayerNorm, ReLU, Linear: (..., D) -> (..., K)."""
    return nn.Sequential(
        nn.Linear(dim, hidden_dim, bias=False), nn.LayerNorm(hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, num_classes)
    )


class ContextRefinementDecoder(nn.Module):
    """Actors and surviving context tokens attend to each other; every block classifies the actors.

    Args:
        dim: Channels D (384 ViT-B, 512 ViT-L).
        depth: Blocks.
        num_heads: Attention heads.
        num_classes: K.
        hidden_dim: Hidden width of each block's action head.
        mlp_ratio: Width of the feed-forward layers relative to D.
        drop_path: Drop-path probability of the last block; it grows linearly from 0.

    Raises:
        ValueError: if there is no block.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        num_heads: int,
        num_classes: int,
        hidden_dim: int = 2048,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"decoder_depth {depth} leaves no block to classify with: use at least 1")
        self.blocks = nn.ModuleList(
            DecoderBlock(dim, num_heads, mlp_ratio, drop_path * i / max(depth - 1, 1)) for i in range(depth)
        )
        self.heads = nn.ModuleList(action_head(dim, hidden_dim, num_classes) for _ in range(depth))

    def forward(self, context: Tensor, actors: Tensor, occupied: Tensor | None = None) -> Tensor:
        """Classify actors (B, Q, D) in their context (B, M, D); nobody attends to those not `occupied` (B, Q).

        The last block computes actors only: its context tokens would be read by nobody.

        Returns:
            (D', B, Q, K) logits: of every block in training (all are supervised), of the last block otherwise.
        """
        num_actors = actors.shape[1]
        x = torch.cat([context, actors], dim=1)
        mask = None if occupied is None else F.pad(occupied, (context.shape[1], 0), value=True)
        logits = []
        last = len(self.blocks) - 1
        for number, (block, head) in enumerate(zip(self.blocks, self.heads)):
            x = block(x, num_queries=num_actors if number == last else None, mask=mask)
            if self.training or number == last:
                logits.append(head(x[:, -num_actors:]))
        return torch.stack(logits)


class ClassificationBranch(ActorReader):
    """Surviving tokens and located actors -> action logits.

    Args:
        in_dim: Channels C of the encoder.
        dim: Channels D of the restored volume and decoder.
        num_slices: T'.
        base_grid: Rows and columns of the position table.
        decoder: Maps context (B, M, D), actors (B, Q, D) and who of them is `occupied` to logits (D', B, Q, K).
        stride: Pixels per token along each side.
        roi_extension: (x, y) by which boxes are widened before RoIAlign.
        roi_size: Bins along each side of an RoI.
        fill: What stands at dropped positions: a learnable `mask_token` (released code) or `zeros` (paper). Either gets
            position codes.

    Raises:
        ValueError: if `fill` is another word, or `roi_extension` is not two numbers >= 0.
    """

    def __init__(
        self,
        in_dim: int,
        dim: int,
        num_slices: int,
        base_grid: tuple[int, int],
        decoder: nn.Module,
        stride: int = 16,
        roi_extension: tuple[float, float] = (0.4, 0.2),
        roi_size: int = 7,
        fill: Fill = "mask_token",
    ) -> None:
        super().__init__(stride, roi_extension, roi_size)
        self.project = nn.Linear(in_dim, dim, bias=False)
        self.positions = GridPositions(dim, num_slices, (base_grid[0], base_grid[1]))
        self.add_mask_token(dim, fill)
        self.decoder = decoder
        xavier_init(self)

    def forward(
        self, tokens: Tokens, boxes: Tensor, sizes: Tensor, occupied: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Classify the actor in each box.

        Args:
            tokens: Surviving tokens after the encoder's final norm.
            boxes: (B, Q, 4) xyxy pixels of the unpadded clip.
            sizes: (B, 2) valid height and width in pixels.
            occupied: (B, Q) bool, False where a list of actors is only filled up; None: all are actors.

        Returns:
            Actor features before refinement (B, Q, D), action logits (D', B, Q, K).
        """
        tokens = tokens.with_features(self.project(tokens.x))
        volume = tokens.restore(self.mask_token) + self.positions(tokens.grid)  # (B, T' * H' * W', D)
        context = volume.gather(1, tokens.position.unsqueeze(2).expand_as(tokens.x))
        actors = self.actor_features(volume, tokens.grid, boxes, sizes)
        return actors, self.decoder(context, actors, occupied)
