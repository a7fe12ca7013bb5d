"""Weights from elsewhere under our names."""

from __future__ import annotations

import re

from torch import Tensor

# Released EVAD checkpoints: first match wins, patterns are anchored at the start of the name.
_RELEASED_EVAD = [
    (r"(patch_embed|blocks|norm)\.", r"encoder.\1."),
    (r"det_head\.mask_token$", "classification.mask_token"),
    (r"det_head\.encoder_to_decoder\.", "classification.project."),
    (r"det_head\.decoder\.blocks\.(\d+)\.act_module\.", r"classification.decoder.heads.\1."),
    (r"det_head\.decoder\.blocks\.(\d+)\.action_logits\.", r"classification.decoder.heads.\1.3."),
    (r"det_head\.decoder\.blocks\.", "classification.decoder.blocks."),
    (r"det_head\.s0_headseries\.(\d+)\.inst_interact\.dynamic_layer\.", r"localization.heads.\1.interaction.generate."),
    (r"det_head\.s0_headseries\.(\d+)\.inst_interact\.out_layer\.", r"localization.heads.\1.interaction.out."),
    (r"det_head\.s0_headseries\.(\d+)\.inst_interact\.", r"localization.heads.\1.interaction."),
    (r"det_head\.s0_headseries\.(\d+)\.linear1\.", r"localization.heads.\1.ffn.0."),
    (r"det_head\.s0_headseries\.(\d+)\.linear2\.", r"localization.heads.\1.ffn.2."),
    (r"det_head\.s0_headseries\.(\d+)\.cls_module\.", r"localization.heads.\1.cls_tower."),
    (r"det_head\.s0_headseries\.(\d+)\.reg_module\.", r"localization.heads.\1.reg_tower."),
    (r"det_head\.s0_headseries\.(\d+)\.class_logits\.", r"localization.heads.\1.person_logits."),
    (r"det_head\.s0_headseries\.(\d+)\.bboxes_delta\.", r"localization.heads.\1.box_deltas."),
    (r"det_head\.s0_headseries\.", "localization.heads."),
    (r"init_proposal_(boxes|features)\.weight$", r"localization.proposal_\1"),
]
# Constants of the released program that are no weights.
_RELEASED_CONSTANTS = ("criterion.empty_weight",)


def released_evad_name(name: str) -> str | None:
    """Our name of a parameter in a released EVAD checkpoint; None for a constant we do not store.

    Raises:
        KeyError: if released EVAD checkpoints have no such parameter.
    """
    if name in _RELEASED_CONSTANTS:
        return None
    pyramid = re.fullmatch(r"fpn_(lateral|output)([2-5])\.(weight|bias)", name)
    if pyramid:  # level l has stride 2^l; ours count from the finest
        return f"pyramid.{pyramid[1]}.{int(pyramid[2]) - 2}.{pyramid[3]}"
    for pattern, replacement in _RELEASED_EVAD:
        if re.match(pattern, name):
            return re.sub("^" + pattern, replacement, name)
    raise KeyError(f"{name!r} is not a parameter of a released EVAD checkpoint")


def rename_released_evad(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A released EVAD state dict under our names and shapes."""
    renamed = {}
    for name, value in state.items():
        ours = released_evad_name(name)
        if ours is not None:
            renamed[ours] = value.flatten() if ours == "classification.mask_token" else value
    return renamed
