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

# A layer is compiled with and without pruning, gradients, dynamic lengths and a batch of one: more often than torch's
# limit of 8 allows.
RECOMPILE_LIMIT = 64


def compile_layers(model: nn.Module, **options: Any) -> None:
    """Compile the repeated layers of a detector in place, each at its first call.

    Layers of one kind share their compiled code, so that compilation takes no longer for more layers. Parameters keep
    their names. RoIAlign and the attention scores of pruning are not compiled. Raises torch's limit on recompilations
    for the whole process.

    Args:
        model: The detector or a part of it.
        **options: Arguments of `torch.compile`, such as `backend`.
    """
    # Set here because torch.compile takes a recompile_limit argument only since torch 2.12.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)
    for layer in model.modules():
        if isinstance(layer, LAYERS):
            layer.compile(**options)
