"""Action classification of located actors: restored volume, RoI features, context refinement decoder (Sec. 3.3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from torch import Tensor, nn

from evad.models.actors import ActorReader, ActorRoI, Fill
from evad.models.attention import Attention, DropPath, attention, xavier_init
from evad.models.positions import GridPositions
from evad.models.tokens import Tokens, take


class DecoderBlock(nn.Module):
    """Pre-norm self-attention over context tokens and actors, then a feed-forward layer.

    Args:
        dim: Channels D.
        num_heads: Attention heads.
        drop_path: Probability that a clip skips a residual branch in training.
    """

    def __init__(self, dim: int, num_heads: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, 4 * dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, num_queries: int | None = None, mask: Tensor | None = None) -> Tensor:
        """Refine the last `num_queries` of N tokens (all by default): (B, N, D) -> (B, num_queries, D).

        `mask` (B, N) is True at tokens that may be attended to; None masks no token.
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
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"decoder_depth {depth} leaves no block to classify with: use at least 1")
        self.blocks = nn.ModuleList(
            DecoderBlock(dim, num_heads, drop_path * i / max(depth - 1, 1)) for i in range(depth)
        )
        self.heads = nn.ModuleList(action_head(dim, hidden_dim, num_classes) for _ in range(depth))

    def forward(self, context: Tensor, actors: Tensor, valid: Tensor | None = None) -> Tensor:
        """Classify actors (B, Q, D) in their context (B, M, D); only `valid` actors (B, Q) are attended to.

        The last block computes actors only: nothing reads its context tokens.

        Returns:
            (D', B, Q, K) logits: of every block in training (all are supervised), of the last block otherwise.
        """
        num_actors = actors.shape[1]
        x = torch.cat([context, actors], dim=1)
        mask = None if valid is None else F.pad(valid, (context.shape[1], 0), value=True)
        logits = []
        last = len(self.blocks) - 1
        for number, (block, head) in enumerate(zip(self.blocks, self.heads)):
            x = block(x, num_queries=num_actors if number == last else None, mask=mask)
            if self.training or number == last:
                logits.append(head(x[:, -num_actors:]))
        return torch.stack(logits)


class ClassificationBranch(ActorReader):
    """Surviving tokens and located actors -> action logits, refined by context.

    Args:
        in_dim: Channels C of the encoder.
        dim: Channels D of the restored volume and decoder.
        roi, fill: See `ActorReader`.
        positions: Position codes of D channels, added to every cell of the volume.
        decoder: (context (B, M, D), actors (B, Q, D), valid actors) -> logits (D', B, Q, K).
    """

    def __init__(
        self,
        in_dim: int,
        dim: int,
        roi: ActorRoI,
        positions: GridPositions,
        decoder: nn.Module,
        fill: Fill = "mask_token",
    ) -> None:
        super().__init__(in_dim, dim, roi, fill)
        self.positions = positions
        self.decoder = decoder
        xavier_init(self)

    def forward(
        self, tokens: Tokens, boxes: Tensor, sizes: Tensor, valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        volume = self.restore(tokens) + self.positions(tokens.grid)
        actors = self.actor_features(volume, tokens.grid, boxes, sizes)
        return actors, self.decoder(take(volume, tokens.position), actors, valid)
