"""The head of WOO: actions from a spatial and a temporal embedding of each actor (Watch Only Once, ICCV 2021)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evad.models.actors import ActorReader, ActorRoI, Fill
from evad.models.attention import xavier_init
from evad.models.classification import action_head
from evad.models.localization import DynamicConv
from evad.models.tokens import Tokens


class Interaction(nn.Module):
    """One embedding per actor filters the bins of the actor's RoI and then passes a feed-forward layer.

    Args:
        dim: Channels D of embeddings and bins.
        dim_dynamic: Channels between the two generated products, see `DynamicConv`.
        num_bins: Bins M of an RoI.
        hidden_dim: Width of the feed-forward layer.
    """

    def __init__(self, dim: int, dim_dynamic: int, num_bins: int, hidden_dim: int) -> None:
        super().__init__()
        self.filter = DynamicConv(dim, dim_dynamic, num_bins)
        self.norm1 = nn.LayerNorm(dim)
        self.ffn = nn.Sequential(nn.Linear(dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, dim))
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, embedding: Tensor, bins: Tensor) -> Tensor:
        """Embeddings (B, Q, D) and their bins (B * Q, M, D) -> embeddings (B, Q, D)."""
        filtered = self.filter(embedding.flatten(0, 1), bins).view_as(embedding)
        embedding = self.norm1(embedding + filtered)
        return self.norm2(embedding + self.ffn(embedding))


class InteractionStage(nn.Module):
    """Embeddings of all actors attend to each other, then filter the spatial or temporal features of their actors.

    Args:
        dim: Channels D.
        num_heads: Attention heads.
        dim_dynamic: See `Interaction`.
        num_slices: T'.
        num_cells: Bins S * S of an RoI in one slice.
        hidden_dim: Width of feed-forward layers and action head.
        num_classes: K.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        dim_dynamic: int,
        num_slices: int,
        num_cells: int,
        hidden_dim: int,
        num_classes: int,
    ) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(dim, num_heads, batch_first=True)
        self.norm = nn.LayerNorm(dim)
        self.spatial = Interaction(dim, dim_dynamic, num_cells, hidden_dim)
        self.temporal = Interaction(dim, dim_dynamic, num_slices, hidden_dim)
        self.action_logits = action_head(2 * dim, hidden_dim, num_classes)

    def forward(
        self, spatial: Tensor, temporal: Tensor, cells: Tensor, slices: Tensor, valid: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Refine both embeddings.

        Args:
            spatial, temporal: (B, Q, D).
            cells: (B * Q, S * S, D) RoI features averaged over time.
            slices: (B * Q, T', D) RoI features averaged over space.
            valid: (B, Q) bool mask of actors that may be attended to, at least one per clip; None masks no actor.

        Returns:
            Both embeddings (B, Q, D).
        """
        both = torch.cat([spatial, temporal], dim=1)  # (B, 2 * Q, D)
        ignored = None if valid is None else ~valid.repeat(1, 2)
        attended = self.self_attn(both, both, both, key_padding_mask=ignored, need_weights=False)[0]
        both = self.norm(both + attended)
        spatial, temporal = both.chunk(2, dim=1)
        return self.spatial(spatial, cells), self.temporal(temporal, slices)


class InteractionClassification(ActorReader):
    """Surviving tokens and located actors -> action logits, by the head of WOO.

    An actor's T' x S x S RoI feature is averaged over time for its spatial embedding and over space for its temporal
    embedding. In each stage the embeddings of all actors attend to each other, then each embedding filters its average
    of the RoI with two generated 1x1 convolutions (as in the localization). An action head reads the concatenated
    embeddings of an actor. All stages are supervised; the last one gives the prediction.

    The papers do not describe the head completely: the WOO paper names spatial and temporal embeddings, their
    interaction with RoI features and their fusion; the EVAD paper gives the cost of the whole detector, 314 M
    parameters (Table 1a) and 378 GFLOPs at short side 288 (Table 4). The rest is our choice: 6 stages of width 256 as
    in the localization, one attention for both kinds of embeddings, fusion by concatenation, action heads as in the
    decoder. The head has 145.2 M parameters, the whole detector 313.9 M parameters and 377.7 GFLOPs.

    Args:
        in_dim: Channels C of the encoder.
        dim: Channels D of embeddings and RoI features.
        depth: Stages.
        num_heads: Heads of the attention between embeddings.
        num_queries: Largest number Q of actors; each has two learned embeddings.
        num_slices: T'.
        num_classes: K.
        roi, fill: See `ActorReader`.
        dim_dynamic: Channels between the two generated products.
        hidden_dim: Width of feed-forward layers and action heads.

    Raises:
        ValueError: if there is no stage.
    """

    def __init__(
        self,
        in_dim: int,
        dim: int,
        depth: int,
        num_heads: int,
        num_queries: int,
        num_slices: int,
        num_classes: int,
        roi: ActorRoI,
        dim_dynamic: int = 64,
        hidden_dim: int = 2048,
        fill: Fill = "mask_token",
    ) -> None:
        super().__init__(in_dim, dim, roi, fill)
        if depth < 1:
            raise ValueError(f"woo_depth {depth} leaves no stage to classify with: use at least 1")
        self.spatial_embedding = nn.Parameter(torch.empty(num_queries, dim))
        self.temporal_embedding = nn.Parameter(torch.empty(num_queries, dim))
        self.stages = nn.ModuleList(
            InteractionStage(dim, num_heads, dim_dynamic, num_slices, roi.size**2, hidden_dim, num_classes)
            for _ in range(depth)
        )
        xavier_init(self)
        nn.init.xavier_uniform_(self.spatial_embedding)
        nn.init.xavier_uniform_(self.temporal_embedding)

    def forward(
        self, tokens: Tokens, boxes: Tensor, sizes: Tensor, valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `ActorReader.forward`; the actor features returned are the mean of the RoI.

        Raises:
            ValueError: if there are more actors than embeddings.
        """
        batch, actors, _ = boxes.shape
        if actors > len(self.spatial_embedding):
            raise ValueError(
                f"{actors} actors in a clip, but the WOO head has embeddings for {len(self.spatial_embedding)}: raise "
                "model.woo_queries, or data.proposals.threshold for fewer proposals"
            )
        bins = self.roi(self.restore(tokens), tokens.grid, boxes, sizes)
        bins = bins.flatten(0, 1).unflatten(2, (tokens.grid[0], -1))  # (B, Q, S * S, T' * D) -> (B * Q, S * S, T', D)
        cells, slices = bins.mean(dim=2), bins.mean(dim=1)
        spatial = self.spatial_embedding[:actors].expand(batch, -1, -1)
        temporal = self.temporal_embedding[:actors].expand(batch, -1, -1)
        if valid is not None:  # attention needs at least one key, even in a clip without actors
            valid = F.pad(valid[:, 1:], (1, 0), value=True)
        logits = []
        for number, stage in enumerate(self.stages):
            spatial, temporal = stage(spatial, temporal, cells, slices, valid)
            if self.training or number == len(self.stages) - 1:
                logits.append(stage.action_logits(torch.cat([spatial, temporal], dim=2)))  # type: ignore[operator]
        return slices.mean(dim=1).unflatten(0, (batch, actors)), torch.stack(logits)
