"""The baseline head of Table 1a: actions from an actor's RoI feature by one linear layer."""

from __future__ import annotations

from torch import Tensor, nn

from evad.models.actors import ActorReader, ActorRoI, Fill
from evad.models.attention import xavier_init
from evad.models.tokens import Tokens


class LinearClassification(ActorReader):
    """Surviving tokens and located actors -> action logits, without refinement by context.

    RoI features keep the encoder's channels. We conclude this from the paper's 169 M parameters: without decoder
    (16.371 M) and projection (0.295 M) the detector has 168.694 M, and this layer adds 0.062 M. Position codes are not
    added to the volume: without attention they would only shift features by an actor's position.

    Args:
        in_dim: Channels C of the encoder.
        num_classes: K.
        roi, fill: See `ActorReader`.
    """

    def __init__(self, in_dim: int, num_classes: int, roi: ActorRoI, fill: Fill = "mask_token") -> None:
        super().__init__(in_dim, None, roi, fill)
        self.action_logits = nn.Linear(in_dim, num_classes)
        xavier_init(self)

    def forward(
        self, tokens: Tokens, boxes: Tensor, sizes: Tensor, valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Actor features (B, Q, C), action logits (1, B, Q, K); actors do not see each other."""
        actors = self.actor_features(self.restore(tokens), tokens.grid, boxes, sizes)
        return actors, self.action_logits(actors).unsqueeze(0)
