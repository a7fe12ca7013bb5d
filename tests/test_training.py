"""The LightningModule: steps of an epoch, learning rate by global batch, sums of losses, the teacher's boxes."""

from functools import partial

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from evad.models.criterion import SetCriterion
from evad.models.postprocess import PostProcess
from evad.training.module import EVADModule, LossWeights, Recipe
from evad.training.optim import CosineSchedule, StepSchedule

WEIGHTS = LossWeights(person=2, l1=5, giou=2, action=12)


class Clips(L.LightningDataModule):
    """The same batch of two clips, `count` times an epoch."""

    batch_size = 2

    def __init__(self, batch, count):
        super().__init__()
        self.batches = [batch] * count

    def build_metric(self):
        return None

    def train_dataloader(self):
        return DataLoader(self.batches, batch_size=None)


@pytest.fixture
def module(tiny_model):
    """`module(**recipe)`: the tiny detector with a recipe of plain SGD."""

    def build(**recipe):
        settings = {
            "optimizer": partial(torch.optim.SGD, momentum=0.5),
            "schedule": StepSchedule(warmup_epochs=2, warmup_factor=0.5),
            "base_lr": 1e-3,
            "base_batch": 8,
            "weight_decay": 0.25,
            "head_lr_scale": 3,
            "loss_weights": WEIGHTS,
        }
        return EVADModule(tiny_model(), SetCriterion(), Recipe(**settings | recipe), PostProcess())

    return build


def fit(module, batch, count=3, **options):
    """Train on the CPU without anything around it."""
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = L.Trainer(accelerator="cpu", devices=1, limit_val_batches=0, precision="64-true", **quiet, **options)
    trainer.fit(module, Clips(batch, count))
    return trainer


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"max_epochs": 2}, 3),
        ({"max_epochs": 5, "max_steps": 2}, 3),
        ({"max_epochs": -1, "max_steps": 4}, 3),
        ({"max_epochs": 1, "accumulate_grad_batches": 2}, 2),
        ({"max_epochs": 2, "limit_train_batches": 1}, 1),
    ],
)
def test_an_epoch_has_its_steps_however_long_the_training(module, tiny_batch, options, steps):
    trained = module()
    fit(trained, tiny_batch(), **options)
    assert trained.steps_per_epoch() == steps


def test_endless_training_has_no_cosine_schedule():
    with pytest.raises(ValueError, match=r"-1 epochs has no end: set recipe\.schedule\.max_epochs"):
        CosineSchedule(max_epochs=-1)


def test_learning_rate_follows_the_global_batch_and_the_schedule_by_step(module, tiny_batch):
    """2 clips x 2 accumulated batches are half of the 8 that the base lr is for; 1 step an epoch, 2 of warm-up."""
    trained = module()
    trainer = fit(trained, tiny_batch(), count=2, max_epochs=1, accumulate_grad_batches=2)
    (optimizer,) = trainer.optimizers
    assert isinstance(optimizer, torch.optim.SGD)
    found = {
        group["name"]: (group["initial_lr"], group["lr"], group["weight_decay"]) for group in optimizer.param_groups
    }
    assert found == {
        "encoder": pytest.approx((5e-4, 3.75e-4, 0.25)),
        "encoder_no_decay": pytest.approx((5e-4, 3.75e-4, 0)),
        "head": pytest.approx((1.5e-3, 1.125e-3, 0.25)),
        "head_no_decay": pytest.approx((1.5e-3, 1.125e-3, 0)),
    }


@pytest.mark.parametrize(("average", "divisor"), [(True, 2 * 3 + 3), (False, 1)])
def test_weighted_terms_are_summed_and_averaged_if_wanted(module, tiny_batch, average, divisor, monkeypatch):
    """2 localization stages with 3 terms each, 3 decoder blocks."""
    trained, batch = module(average_terms=average), tiny_batch()
    monkeypatch.setattr(trained, "uses_teacher", lambda: False)
    monkeypatch.setattr(trained, "log_losses", lambda *_: None)
    losses = trained.criterion(trained.run(batch), batch.targets, batch.sizes)
    total = 2 * losses.person.sum() + 5 * losses.l1.sum() + 2 * losses.giou.sum() + 12 * losses.action.sum()
    assert trained.training_step(batch, 0).item() == pytest.approx(total.item() / divisor, rel=1e-12)


def test_the_teacher_leaves_after_its_epochs(module, tiny_batch):
    used = []
    trained = module(teacher_epochs=1.5)

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer, module, *_):
            used.append(module.uses_teacher())

    fit(trained, tiny_batch(), count=2, max_epochs=3, callbacks=[Watch()])
    assert used == [True, True, True, False, False, False]


def test_matched_actors_read_the_boxes_of_the_teacher(module, tiny_batch):
    trained, batch = module(), tiny_batch()
    taught, plain = trained.run_with_teacher(batch), trained.run(batch)
    matches = trained.criterion.matcher(plain.person_logits[-1], plain.boxes[-1], batch.targets, batch.sizes)
    changed = (taught.roi_features != plain.roi_features).any(dim=2)
    for clip, (queries, _) in enumerate(matches):
        assert changed[clip].nonzero().squeeze(1).tolist() == queries.tolist()
    assert torch.equal(taught.boxes, plain.boxes)
