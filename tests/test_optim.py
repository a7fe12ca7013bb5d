"""Parameter groups and learning-rate schedules, against recorded values of the released recipe and by hand."""

import json
import math
from pathlib import Path

import pytest
import torch

from evad.config import load_config
from evad.models.weights.importers import released_evad_name
from evad.runs.build import build_model, build_part
from evad.training.optim import CosineSchedule, StepSchedule, parameter_groups

RECIPE = Path(__file__).parent / "fixtures" / "recipe"


@pytest.mark.parametrize(
    ("model", "base_lr", "warmup_factor"), [("ViT_B_16x4_KTP", 2.5e-5, 0.1), ("ViT_L_16x4_KTP", 1e-5, 0.25)]
)
def test_step_schedule_gives_the_released_learning_rates(model, base_lr, warmup_factor):
    schedule = StepSchedule(warmup_epochs=2, warmup_factor=warmup_factor, milestones=(5, 8), gamma=0.1)
    recorded = json.loads((RECIPE / "lr_schedule.json").read_text())[model]
    assert len(recorded) == 16
    for epoch, lr in recorded.items():
        assert base_lr * schedule(float(epoch)) == pytest.approx(lr, rel=1e-12)


@pytest.mark.parametrize(("experiment", "recorded"), [("ava_vitb", "ViT_B_16x4_KTP"), ("ava_vitl", "ViT_L_16x4_KTP")])
def test_experiments_use_the_released_learning_rates(experiment, recorded):
    recipe = build_part(load_config([f"experiment={experiment}"]), "recipe")
    for epoch, lr in json.loads((RECIPE / "lr_schedule.json").read_text())[recorded].items():
        assert recipe.base_lr * recipe.schedule(float(epoch)) == pytest.approx(lr, rel=1e-12)


def test_step_schedule_by_hand():
    schedule = StepSchedule(warmup_epochs=4, warmup_factor=0.2, milestones=(6, 7, 9), gamma=0.5)
    epochs = [0, 1, 3, 4, 5.99, 6, 7, 8.99, 9, 100]
    expected = [0.2, 0.4, 0.8, 1, 1, 0.5, 0.25, 0.25, 0.125, 0.125]
    assert [schedule(epoch) for epoch in epochs] == pytest.approx(expected)


def test_step_schedule_without_warmup_starts_in_full():
    assert StepSchedule(warmup_epochs=0)(0) == 1


def test_cosine_schedule_by_hand():
    schedule = CosineSchedule(max_epochs=9, warmup_epochs=1, warmup_factor=0.2, final_factor=0.1)
    epochs = [0, 0.5, 1, 3, 5, 9, 12]
    quarter = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4))
    assert [schedule(epoch) for epoch in epochs] == pytest.approx([0.2, 0.6, 1, quarter, 0.55, 0.1, 0.1])


def test_cosine_schedule_as_long_as_its_warmup_ends_there():
    schedule = CosineSchedule(max_epochs=1, warmup_epochs=1)
    assert [schedule(0.5), schedule(1)] == pytest.approx([0.505, 1])


@pytest.fixture(scope="module")
def vit_b():
    with torch.device("meta"):
        return build_model(load_config(["experiment=ava_vitb"]))


def test_groups_are_those_of_the_released_recipe(vit_b):
    recorded = json.loads((RECIPE / "param_groups_vit_b.json").read_text())
    expected = {
        ours: (setting["lr_scale"], setting["weight_decay"])
        for name, setting in recorded.items()
        if (ours := released_evad_name(name)) is not None
    }
    names = {parameter: name for name, parameter in vit_b.named_parameters()}
    groups = parameter_groups(vit_b, lr=2.5e-5, weight_decay=1e-4, head_lr_scale=8)
    found = {names[p]: (group["lr"] / 2.5e-5, group["weight_decay"]) for group in groups for p in group["params"]}
    assert found == expected
    assert len(found) == len(names)


def test_every_parameter_is_in_one_group(vit_b):
    groups = parameter_groups(vit_b, lr=1.0, weight_decay=0.1, head_lr_scale=3)
    settings = [(group["name"], group["lr"], group["weight_decay"]) for group in groups]
    assert sorted(settings) == [
        ("encoder", 1, 0.1),
        ("encoder_no_decay", 1, 0),
        ("head", 3, 0.1),
        ("head_no_decay", 3, 0),
    ]
    grouped = [parameter for group in groups for parameter in group["params"]]
    assert len(grouped) == len({id(parameter) for parameter in grouped}) == len(list(vit_b.parameters()))
    assert sum(parameter.numel() for parameter in grouped) == 185_359_636


def test_frozen_parameters_and_empty_groups_are_left_out():
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.LayerNorm(3))
    model[0].requires_grad_(False)
    (group,) = parameter_groups(model, lr=1.0, weight_decay=0.1, head_lr_scale=8)
    assert group["name"] == "encoder_no_decay"
    assert [id(parameter) for parameter in group["params"]] == [id(p) for p in model[1].parameters()]


def test_groups_train(tiny_model):
    model = tiny_model()
    optimizer = torch.optim.AdamW(parameter_groups(model, lr=0.1, weight_decay=0.5, head_lr_scale=2))
    model(torch.zeros(1, 3, 8, 32, 48).double(), torch.tensor([[32, 48]])).boxes.sum().backward()
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, StepSchedule(warmup_epochs=2, warmup_factor=0.5))
    assert sorted({group["lr"] for group in optimizer.param_groups}) == [0.05, 0.1]
    optimizer.step()
    scheduler.step()
    assert sorted({group["lr"] for group in optimizer.param_groups}) == pytest.approx([0.075, 0.15])
