"""Training and validation of the detector as a LightningModule."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import Metric

from evad.data.check.quick import explain_zero_map
from evad.models.compilation import compile_layers
from evad.models.criterion import ActionCriterion, Losses, Match, SetCriterion
from evad.models.evad import EVAD
from evad.models.postprocess import PostProcess
from evad.structures import Batch, Detections, EVADOutput, Target
from evad.training.optim import parameter_groups

log = logging.getLogger(__name__)


@dataclass
class LossWeights:
    """Weight of each unweighted term of `Losses` (App. B)."""

    person: float = 2.0
    l1: float = 5.0
    giou: float = 2.0
    action: float = 12.0


@dataclass
class Recipe:
    """How the detector is optimized.

    Attributes:
        optimizer: Parameter groups -> optimizer; each group has its lr and weight decay.
        schedule: Fractional epoch -> factor on every lr.
        base_lr: Learning rate at a global batch of `base_batch` clips; scaled linearly to the actual one.
        base_batch: Clips per optimizer step that `base_lr` is meant for.
        weight_decay: Weight decay of matrices; biases, norms and the mask token have none.
        head_lr_scale: Factor on the lr of localization heads and classification branch.
        loss_weights: Weight of each loss term.
        average_terms: Divide the weighted sum by the number of terms, as the released training does (24 for ViT-B).
        teacher_epochs: For so many epochs, actors matched to a ground-truth box read their features from that box.
    """

    optimizer: Callable[..., torch.optim.Optimizer]
    schedule: Callable[[float], float]
    base_lr: float
    base_batch: int
    weight_decay: float
    head_lr_scale: float
    loss_weights: LossWeights
    average_terms: bool = True
    teacher_epochs: float = 0.0


class EVADModule(L.LightningModule):
    """The detector with its criterion, recipe and metric.

    Args:
        model: The detector.
        criterion: Unweighted losses.
        recipe: How it is optimized.
        postprocess: Outputs -> detections.
        protocol: Evaluation protocol; None for the data set's default.
        compile: Compile the detector's layers with `torch.compile`.
    """

    def __init__(
        self,
        model: EVAD,
        criterion: SetCriterion | ActionCriterion,
        recipe: Recipe,
        postprocess: PostProcess,
        protocol: str | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.criterion = criterion
        self.recipe = recipe
        self.postprocess = postprocess
        self.protocol = protocol
        self.metric: Metric | None = None
        self.scores: dict[str, float] = {}
        if compile:
            compile_layers(self.model)

    def setup(self, stage: str) -> None:
        """Take the validation metric (ground truth, classes) from the data module."""
        datamodule = self.trainer.datamodule  # type: ignore[attr-defined]
        if stage in ("fit", "validate"):
            options = {} if self.protocol is None else {"protocol": self.protocol}
            self.metric = datamodule.build_metric(**options)

    def training_step(self, batch: Batch, _: int) -> Tensor:
        output = self.run_with_teacher(batch) if self.uses_teacher() else self.run(batch)
        losses = self.criterion(output, batch.targets, batch.sizes)
        terms = self.weigh(losses)
        loss = terms.sum() / len(terms) if self.recipe.average_terms else terms.sum()
        self.log_losses(loss, losses, len(batch))
        return loss

    def run(self, batch: Batch) -> EVADOutput:
        return self.model(batch.clips, batch.sizes, batch.proposals)

    def uses_teacher(self) -> bool:
        """Whether actors read ground-truth boxes at this point of training."""
        return self.epoch_now() < self.recipe.teacher_epochs

    def epoch_now(self) -> float:
        """Fractional epoch of the next optimizer step."""
        return self.global_step / self.steps_per_epoch()

    def run_with_teacher(self, batch: Batch) -> EVADOutput:
        """Forward pass in which matched actors read the features of their ground-truth boxes."""
        encoded = self.model.encoder(batch.clips)
        located = self.model.localize(encoded, batch.sizes, batch.proposals)
        matches = self.criterion.matcher(located.person_logits[-1], located.boxes[-1], batch.targets, batch.sizes)
        actor_boxes = with_true_boxes(located.boxes[-1].detach(), batch.targets, matches)
        return self.model.classify(encoded, located, actor_boxes, batch.sizes)

    def weigh(self, losses: Losses) -> Tensor:
        """The weighted terms of all stages and blocks as one vector."""
        weights = asdict(self.recipe.loss_weights)
        return torch.cat([weight * getattr(losses, name) for name, weight in weights.items()])

    def log_losses(self, loss: Tensor, losses: Losses, batch_size: int) -> None:
        """Log the total and the unweighted terms; `_last` is the last stage or block, which makes the prediction."""
        values = {"train/loss": loss.detach()}
        for name in asdict(self.recipe.loss_weights):
            term = getattr(losses, name).detach()
            if len(term):  # external boxes have no localization terms
                values[f"train/{name}"] = term.mean()
                values[f"train/{name}_last"] = term[-1]
        self.log_dict(values, batch_size=batch_size)
        self.log("loss", loss.detach(), prog_bar=True, logger=False, batch_size=batch_size)

    def validation_step(self, batch: Batch, _: int) -> None:
        """Add the detections of a batch to the metric."""
        assert self.metric is not None
        self.metric.update(batch.keyframes, self.detect(batch))

    def detect(self, batch: Batch) -> list[Detections]:
        """Postprocessed detections, one per clip."""
        return self.postprocess(self.run(batch), batch.sizes, batch.original_sizes)

    def on_validation_epoch_end(self) -> None:
        """Log mAP, person AP and AP per class; if mAP is 0, explain it (on the first process only)."""
        assert self.metric is not None
        scores = self.metric.compute()
        values = {f"val/{name}": value.to(self.device) for name, value in scores.items()}
        if values["val/mAP"] == 0 and self.trainer.is_global_zero:
            steps = self.global_step if self.trainer.state.fn == TrainerFn.FITTING else None
            found = getattr(self.trainer.datamodule, "findings", [])  # type: ignore[attr-defined]
            log.warning("%s", explain_zero_map(found, *self.metric.counts, steps=steps))  # type: ignore[misc]
        several = self.trainer.world_size > 1  # values are equal on all devices, but without this Lightning warns
        self.log_dict(values, sync_dist=several)
        self.log("mAP", values["val/mAP"], prog_bar=True, logger=False, sync_dist=several)
        self.scores = {name: float(value) for name, value in scores.items()}

    def on_validation_epoch_start(self) -> None:
        assert self.metric is not None
        self.metric.reset()

    def configure_optimizers(self) -> Any:
        """Optimizer with the lr scaled to the global batch, and a schedule that is updated every step."""
        recipe = self.recipe
        batch = self.global_batch()
        lr = recipe.base_lr * batch / recipe.base_batch
        log.info("lr %.4g = base lr %.4g * global batch %d / %d", lr, recipe.base_lr, batch, recipe.base_batch)
        groups = parameter_groups(self.model, lr, recipe.weight_decay, recipe.head_lr_scale)
        optimizer = recipe.optimizer(groups)
        per_epoch = self.steps_per_epoch()
        scheduler = LambdaLR(optimizer, lambda step: recipe.schedule(step / per_epoch))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "lr"}}

    def global_batch(self) -> int:
        """Clips per optimizer step over all devices and accumulated batches."""
        batch_size = self.trainer.datamodule.batch_size  # type: ignore[attr-defined]
        return batch_size * self.trainer.world_size * self.trainer.accumulate_grad_batches

    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch; does not depend on max_epochs or max_steps."""
        if self.trainer.train_dataloader is None:
            self.trainer.fit_loop.setup_data()
        return math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)


def with_true_boxes(boxes: Tensor, targets: list[Target], matches: list[Match]) -> Tensor:
    """Predicted boxes; matched queries get their annotated box instead.

    Args:
        boxes: (B, Q, 4) xyxy pixels of the resized, unpadded clip.
        targets: B targets in the same pixels.
        matches: Per clip, query indices and box indices.
    """
    boxes = boxes.clone()
    for clip, (queries, index) in enumerate(matches):
        boxes[clip, queries] = targets[clip].boxes[index].to(boxes.dtype)
    return boxes
