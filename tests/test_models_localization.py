"""Localization branch: box arithmetic, proposals, refinement."""

import math

import pytest
import torch

from evad.models.localization import LocalizationBranch, apply_deltas, cxcywh_to_xyxy

BOX = torch.tensor([10.0, 20, 30, 60], dtype=torch.float64)  # centre (20, 40), size (20, 40)


@pytest.mark.parametrize(
    ("deltas", "expected"),
    [
        ([0, 0, 0, 0], [10, 20, 30, 60]),
        ([0.2, -0.1, math.log(2), math.log(0.5)], [2, 28, 42, 48]),  # centre (22, 38), size (40, 20)
        ([0, 0, 100, -100], [20 - 10 * 6250, 40, 20 + 10 * 6250, 40]),  # 100000 / 16 = 6250 at most; no lower limit
        ([40, 0, 0, 0], [410, 20, 430, 60]),  # not clipped to any image
    ],
)
def test_deltas_by_hand(deltas, expected):
    moved = apply_deltas(BOX, torch.tensor(deltas, dtype=torch.float64))
    torch.testing.assert_close(moved, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-10)


def test_delta_weights_divide_the_predictions():
    deltas = torch.tensor([0.5, 0.25, math.log(4), 0], dtype=torch.float64)
    moved = apply_deltas(BOX, deltas, weights=(1, 1, 2, 1))
    torch.testing.assert_close(moved, torch.tensor([10.0, 30, 50, 70], dtype=torch.float64))


def test_boxes_keep_their_precision_beside_half_precision_deltas():
    moved = apply_deltas(BOX.float(), torch.tensor([0.0, 0, 0, 0]).bfloat16())
    assert moved.dtype == torch.float32


def test_centre_and_size_become_corners():
    assert cxcywh_to_xyxy(torch.tensor([[0.5, 0.25, 1.0, 0.5]])).tolist() == [[0, 0, 1, 0.5]]


def branch(num_stages=2, **options):
    torch.manual_seed(0)
    sizes = {"dim": 8, "roi_size": 3, "num_heads": 2, "dim_dynamic": 4, "dim_feedforward": 12, "canonical_size": 32}
    model = LocalizationBranch(num_queries=3, num_stages=num_stages, **sizes, **options)
    return model.double()


def levels():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 8, 64 // s, 96 // s, generator=generator, dtype=torch.float64) for s in (4, 8, 16, 32)]


SIZES = torch.tensor([[64, 96], [50, 70]])


def silence(model):
    for head in model.heads:
        torch.nn.init.zeros_(head.box_deltas.weight)


def test_queries_start_as_the_whole_valid_image():
    model = branch()
    silence(model)
    boxes = model(levels(), SIZES).boxes
    assert boxes.tolist() == [[[[0, 0, 96, 64]] * 3, [[0, 0, 70, 50]] * 3]] * 2


def test_given_boxes_are_scaled_by_the_valid_size():
    model = branch(initial_boxes=[[0.5, 0.5, 0.5, 0.5], [0.25, 0.75, 0.5, 0.5], [1, 0, 0, 0]])
    silence(model)
    boxes = model(levels(), SIZES).boxes
    assert boxes[-1, 0].tolist() == [[24, 16, 72, 48], [0, 32, 48, 64], [96, 0, 96, 0]]
    assert boxes[-1, 1].tolist() == [[17.5, 12.5, 52.5, 37.5], [0, 25, 35, 50], [70, 0, 70, 0]]


def test_every_stage_answers():
    located = branch(num_stages=3)(levels(), SIZES)
    assert located.person_logits.shape == (3, 2, 3, 2)
    assert located.boxes.shape == (3, 2, 3, 4)
    assert located.valid is None  # all of them


def test_boxes_are_detached_between_stages_while_features_are_not():
    model = branch()
    boxes = model(levels(), SIZES).boxes
    first, second = model.heads
    later = boxes[1].sum()
    parameters = [first.box_deltas.weight, model.proposal_boxes, first.ffn[0].weight, second.box_deltas.weight]
    gradients = torch.autograd.grad(later, parameters, retain_graph=True, allow_unused=True)
    assert [gradient is not None and gradient.abs().sum() > 0 for gradient in gradients] == [False, False, True, True]
    own = torch.autograd.grad(boxes[0].sum(), parameters[:2])
    assert all(gradient.abs().sum() > 0 for gradient in own)


def test_clips_do_not_see_each_other():
    model = branch()
    located = model(levels(), SIZES)
    for clip in range(2):
        part = slice(clip, clip + 1)
        single = model([level[part] for level in levels()], SIZES[part])
        torch.testing.assert_close(located.person_logits[:, part], single.person_logits, rtol=0, atol=1e-12)
        torch.testing.assert_close(located.boxes[:, part], single.boxes, rtol=0, atol=1e-10)


def test_delta_gain_scales_the_initial_delta_weights_only():
    plain, small = branch().state_dict(), branch(delta_gain=0.05).state_dict()
    for name, value in plain.items():
        gain = 0.05 if name.endswith("box_deltas.weight") else 1
        torch.testing.assert_close(small[name], gain * value)


def test_towers_have_the_given_depth():
    head = branch(cls_depth=2, reg_depth=4).heads[0]
    assert [sum(isinstance(m, torch.nn.Linear) for m in tower) for tower in (head.cls_tower, head.reg_tower)] == [2, 4]


@pytest.mark.parametrize(
    "initial_boxes",
    [
        [[0.5, 0.5, 1, 1]] * 2,  # two rows for three queries
        [[0.5, 0.5, 1]] * 3,
        [[0.5, 0.5, 1, 1.5]] * 3,
        [[-0.1, 0.5, 1, 1]] * 3,
        [],
    ],
)
def test_initial_boxes_that_are_not_one_per_query_within_the_image_are_an_error(initial_boxes):
    with pytest.raises(ValueError, match=r"initial_boxes of shape .* must be 3 rows of cx, cy, w, h within \[0, 1\]"):
        branch(initial_boxes=initial_boxes)
