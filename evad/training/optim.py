"""Parameter groups and learning-rate schedules of the paper's recipe (App. B)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

# Newly added heads learn faster than the pretrained encoder (released recipe: `det_head.*` at 8 times the lr). Pyramid
# and query embeddings have the lr of the encoder.
HEAD_PREFIXES = ("localization.heads.", "classification.")


def parameter_groups(model: nn.Module, lr: float, weight_decay: float, head_lr_scale: float) -> list[dict[str, Any]]:
    """Four groups: encoder or head, with weight decay (matrices) or without (biases, norms, mask token).

    Args:
        model: The detector.
        lr: Learning rate of the encoder, pyramid and query embeddings.
        weight_decay: Weight decay of parameters with more than one dimension.
        head_lr_scale: Factor on the lr of localization heads and classification branch.

    Returns:
        Groups for a torch optimizer, each with a `name`; empty groups are left out.
    """
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        head, decays = name.startswith(HEAD_PREFIXES), parameter.ndim > 1
        key = f"{'head' if head else 'encoder'}{'' if decays else '_no_decay'}"
        group = groups.setdefault(
            key,
            {
                "name": key,
                "params": [],
                "lr": lr * (head_lr_scale if head else 1.0),
                "weight_decay": weight_decay if decays else 0.0,
            },
        )
        group["params"].append(parameter)
    return list(groups.values())


class StepSchedule:
    """Linear warm-up, then the lr drops by `gamma` at each milestone.

    Args:
        warmup_epochs: Length of the warm-up.
        warmup_factor: Share of the lr at step 0.
        milestones: Epochs at which the lr drops.
        gamma: Factor at each milestone.
    """

    def __init__(
        self,
        warmup_epochs: float = 2,
        warmup_factor: float = 0.1,
        milestones: Sequence[float] = (5, 8),
        gamma: float = 0.1,
    ) -> None:
        self.warmup_epochs, self.warmup_factor = warmup_epochs, warmup_factor
        self.milestones, self.gamma = tuple(milestones), gamma

    def __call__(self, epoch: float) -> float:
        """Factor on the lr at a fractional epoch."""
        if epoch < self.warmup_epochs:
            return self.warmup_factor + (1 - self.warmup_factor) * epoch / self.warmup_epochs
        return self.gamma ** sum(epoch >= milestone for milestone in self.milestones)


class CosineSchedule:
    """Linear warm-up from `warmup_factor`, then half a cosine down to `final_factor`.

    Args:
        max_epochs: Epoch at which the lr reaches `final_factor`.
        warmup_epochs: Length of the warm-up.
        warmup_factor: Share of the lr at step 0.
        final_factor: Share of the lr at the end.

    Raises:
        ValueError: if `max_epochs` is not above 0.
    """

    def __init__(
        self, max_epochs: float, warmup_epochs: float = 1, warmup_factor: float = 0.01, final_factor: float = 0.0
    ) -> None:
        if max_epochs <= 0:
            raise ValueError(
                f"a cosine schedule of {max_epochs} epochs has no end: set recipe.schedule.max_epochs, or choose "
                "recipe/schedule=step"
            )
        self.max_epochs, self.warmup_epochs = max_epochs, warmup_epochs
        self.warmup_factor, self.final_factor = warmup_factor, final_factor

    def __call__(self, epoch: float) -> float:
        """Factor on the lr at a fractional epoch."""
        if epoch < self.warmup_epochs:
            return self.warmup_factor + (1 - self.warmup_factor) * epoch / self.warmup_epochs
        progress = min((epoch - self.warmup_epochs) / max(self.max_epochs - self.warmup_epochs, 1e-9), 1.0)
        return self.final_factor + (1 - self.final_factor) * 0.5 * (1 + math.cos(math.pi * progress))
