"""The baseline head of Table 1a: actions from an actor's RoI feature by one linear layer."""

from __future__ import annotations

from torch import Tensor, nn

from evad.models.actors import ActorReader, Fill
from evad.models.attention import xavier_init
from evad.models.tokens import Tokens


class LinearClassification(ActorReader):
    """Surviving tokens and located actors -> action logits, without refinement by context.

    RoI features come from the encoder's own channels. The paper's 169 M parameters leave room for nothing else: the
    detector without decoder (16.371 M) and projection (0.295 M) has 168.694 M, and this layer 0.062 M. Position codes
    are not added to the volume: they serve attention, and here they would only shift features by where an actor stands.

    Args:
        in_dim: Channels C of the encoder.
        num_classes: K.
        stride: Pixels per token along each side.
        roi_extension: (x, y) by which boxes are widened before RoIAlign.
        roi_size: Bins along each side of an RoI.
        fill: What stands at dropped positions: a learnable `mask_token` of C channels (as with the decoder) or `zeros`
            (paper).
    """

    def __init__(
        self,
        in_dim: int,
        num_classes: int,
        stride: int = 16,
        roi_extension: tuple[float, float] = (0.4, 0.2),
        roi_size: int = 7,
        fill: Fill = "mask_token",
    ) -> None:
        super().__init__(stride, roi_extension, roi_size)
        self.add_mask_token(in_dim, fill)
        self.action_logits = nn.Linear(in_dim, num_classes)
        xavier_init(self)

    def forward(
        self, tokens: Tokens, boxes: Tensor, sizes: Tensor, occupied: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Classify the actor in each box (B, Q, 4); arguments as for `ClassificationBranch.forward`.

        Actors do not see each other here, so that it does not matter who is `occupied`.

        Returns:
            Actor features (B, Q, C), action logits (1, B, Q, K).
        """
        actors = self.actor_features(tokens.restore(self.mask_token), tokens.grid, boxes, sizes)
        return actors, self.action_logits(actors).unsqueeze(0)
