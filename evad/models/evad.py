"""The detector of Fig. 2: encoder with keyframe-centric pruning, localization branch, classification branch."""

from __future__ import annotations

from torch import Tensor, nn

from evad.models.actors import ActorReader
from evad.models.encoder import EncoderOutput, VideoTransformer
from evad.models.fpn import KeyframePyramid
from evad.models.heads.external import ExternalBoxes
from evad.models.localization import LocalizationBranch, Localized
from evad.structures import EVADOutput, Proposals


class EVAD(nn.Module):
    """Efficient video action detector.

    Args:
        encoder: Clips -> `EncoderOutput`: surviving tokens and keyframe maps.
        pyramid: Keyframe maps -> pyramid levels.
        localization: Levels, sizes and proposals -> `Localized`: person logits, boxes and mask of valid actors.
        classification: Tokens, boxes, sizes and valid boxes -> actor features and action logits.
    """

    def __init__(
        self,
        encoder: VideoTransformer,
        pyramid: KeyframePyramid | nn.Identity,
        localization: LocalizationBranch | ExternalBoxes,
        classification: ActorReader,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.pyramid = pyramid
        self.localization = localization
        self.classification = classification

    def forward(self, clips: Tensor, sizes: Tensor, proposals: list[Proposals] | None = None) -> EVADOutput:
        """Detect the actors of each clip's keyframe and score their actions.

        Args:
            clips: (B, 3, T, H, W) normalised clips, padded with 0 on the right and at the bottom.
            sizes: (B, 2) int64, valid height and width of each clip in pixels.
            proposals: Boxes of an external detector for each clip; only `ExternalBoxes` reads them.

        Returns:
            All outputs; training has action logits of every decoder block, evaluation of the last block only.
        """
        encoded = self.encoder(clips)
        located = self.localize(encoded, sizes, proposals)
        return self.classify(encoded, located, located.boxes[-1], sizes)

    def localize(self, encoded: EncoderOutput, sizes: Tensor, proposals: list[Proposals] | None = None) -> Localized:
        return self.localization(self.pyramid(encoded.keyframe_maps), sizes, proposals)

    def classify(self, encoded: EncoderOutput, located: Localized, actor_boxes: Tensor, sizes: Tensor) -> EVADOutput:
        """Classify the actors in `actor_boxes` (B, Q, 4), which are annotated boxes early in training."""
        roi_features, action_logits = self.classification(encoded.tokens, actor_boxes, sizes, located.valid)
        return EVADOutput(
            person_logits=located.person_logits,
            boxes=located.boxes,
            action_logits=action_logits,
            roi_features=roi_features,
            tokens=encoded.tokens.x,
            positions=encoded.tokens.position,
            kept=encoded.kept,
            valid=located.valid,
        )
