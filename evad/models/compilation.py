"""torch.compile of the detector, layer by layer."""

from __future__ import annotations

from typing import Any

import torch
import torch._dynamo
from torch import nn

from evad.models.classification import DecoderBlock
from evad.models.encoder import EncoderBlock
from evad.models.heads.woo import InteractionStage
from evad.models.localization import DynamicHead

LAYERS = (EncoderBlock, DecoderBlock, DynamicHead, InteractionStage)


# Versions with and without pruning, gradients, dynamic lengths, a batch of one: more than torch's limit of 8.
RECOMPILE_LIMIT = 64


def compile_layers(model: nn.Module, **options: Any) -> None:
    """Compile the repeated layers of a detector in place, each at its first call.

    Layers of one kind share their programs, so that all of them are compiled in the time of a few; parameters keep
    their names. What lies between the layers runs as before: RoIAlign, and the rows of attention that pruning sums up,
    whose loop would be unrolled. Raises torch's limit on recompilations, for the whole process.

    Args:
        model: The detector or a part of it.
        **options: Of `torch.compile`, such as `backend`.
    """
    # Not torch.compile's argument of this name, which torch has only since 2.12.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)
    for layer in model.modules():
        if isinstance(layer, LAYERS):
            layer.compile(**options)
