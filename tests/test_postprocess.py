"""Postprocessing: which queries are actors, how they are scored, where they lie in the original video."""

import math

import pytest
import torch

from evad.models.postprocess import PostProcess
from evad.structures import EVADOutput

SIZES = torch.tensor([[100, 200]])  # height, width of the resized clip
ORIGINAL = torch.tensor([[50, 400]])  # half as high, twice as wide


def logit(p):
    return math.log(p / (1 - p))


def output_of(persons, boxes, actions):
    """Output whose last stage and block give these probabilities; earlier ones must not count."""
    person_logits = torch.tensor([[logit(p), 0.0] for p in persons])
    action_logits = torch.tensor([[logit(p) for p in row] for row in actions])
    boxes, none = torch.tensor(boxes), torch.empty(0)
    return EVADOutput(
        person_logits=torch.stack([-person_logits, person_logits])[:, None],
        boxes=torch.stack([boxes + 1, boxes])[:, None],
        action_logits=torch.stack([-action_logits, action_logits])[:, None],
        roi_features=none,
        tokens=none,
        positions=none,
        kept=[],
    )


BOXES = [[10.0, 20, 30, 40], [50, 10, 90, 60], [0, 0, 20, 20]]
ACTIONS = [[0.9, 0.1], [0.6, 0.5], [0.2, 0.3]]


def test_released_rule_keeps_persons_and_scores_actions_alone():
    (found,) = PostProcess()(output_of([0.8, 0.69, 0.71], BOXES, ACTIONS), SIZES, ORIGINAL)
    torch.testing.assert_close(found.person_scores, torch.tensor([0.8, 0.71]))
    torch.testing.assert_close(found.action_scores, torch.tensor([[0.9, 0.1], [0.2, 0.3]]))


def test_score_equal_to_the_threshold_is_a_person():
    (found,) = PostProcess(person_threshold=0.5)(output_of([0.5, 0.4, 0.4], BOXES, ACTIONS), SIZES, ORIGINAL)
    assert found.person_scores.tolist() == [0.5]


def test_released_rule_keeps_every_query_where_none_is_a_person():
    (found,) = PostProcess()(output_of([0.6, 0.1, 0.2], BOXES, ACTIONS), SIZES, ORIGINAL)
    torch.testing.assert_close(found.person_scores, torch.tensor([0.6, 0.1, 0.2]))


def test_without_that_rule_nobody_is_found():
    postprocess = PostProcess(keep_all_if_none=False)
    (found,) = postprocess(output_of([0.6, 0.1, 0.2], BOXES, ACTIONS), SIZES, ORIGINAL)
    assert (found.boxes.shape, found.person_scores.shape, found.action_scores.shape) == ((0, 4), (0,), (0, 2))
    assert found.size.tolist() == [50, 400]


def test_person_times_action():
    postprocess = PostProcess(score="person_times_action", person_threshold=0.0)
    (found,) = postprocess(output_of([0.8, 0.5, 0.1], BOXES, ACTIONS), SIZES, ORIGINAL)
    torch.testing.assert_close(found.person_scores, torch.tensor([0.8, 0.5, 0.1]))
    torch.testing.assert_close(found.action_scores, torch.tensor([[0.72, 0.08], [0.3, 0.25], [0.02, 0.03]]))


def test_boxes_are_scaled_to_original_pixels_and_clipped():
    boxes = [[10.0, 20, 30, 40], [-5, -8, 90, 60], [150, 50, 260, 170]]
    (found,) = PostProcess()(output_of([0.9, 0.9, 0.9], boxes, ACTIONS), SIZES, ORIGINAL)
    assert found.boxes.tolist() == [[20, 10, 60, 20], [0, 0, 180, 30], [300, 25, 400, 50]]


def test_boxes_wholly_outside_the_image_or_without_area_are_left_out():
    boxes = [[210.0, 20, 230, 40], [10, 20, 30, 40], [10, -30, 30, 0]]
    (found,) = PostProcess()(output_of([0.9, 0.8, 0.95], boxes, ACTIONS), SIZES, ORIGINAL)
    torch.testing.assert_close(found.person_scores, torch.tensor([0.8]))
    (none,) = PostProcess()(output_of([0.9], [[5.0, 5, 5, 9]], [[0.5]]), SIZES, ORIGINAL)
    assert len(none.boxes) == 0


@pytest.mark.parametrize("rule", [PostProcess(), PostProcess(person_threshold=0.0, keep_all_if_none=False)])
def test_only_valid_queries_are_detections(rule):
    output = output_of([0.8, 0.9, 0.75], BOXES, ACTIONS)
    output.valid = torch.tensor([[True, False, True]])
    (found,) = rule(output, SIZES, ORIGINAL)
    torch.testing.assert_close(found.person_scores, torch.tensor([0.8, 0.75]))
    output.valid = torch.zeros(1, 3, dtype=torch.bool)
    (none,) = rule(output, SIZES, ORIGINAL)
    assert len(none.boxes) == 0


def test_every_clip_has_its_own_scale_and_fallback():
    one = output_of([0.9, 0.2, 0.3], BOXES, ACTIONS)
    two = output_of([0.1, 0.2, 0.3], BOXES, ACTIONS)
    both = EVADOutput(
        person_logits=torch.cat([one.person_logits, two.person_logits], dim=1),
        boxes=torch.cat([one.boxes, two.boxes], dim=1),
        action_logits=torch.cat([one.action_logits, two.action_logits], dim=1),
        roi_features=one.roi_features,
        tokens=one.tokens,
        positions=one.positions,
        kept=[],
    )
    found = PostProcess()(both, torch.tensor([[100, 200], [100, 100]]), torch.tensor([[50, 400], [300, 200]]))
    assert [len(detections.boxes) for detections in found] == [1, 3]
    assert found[0].boxes[0].tolist() == [20, 10, 60, 20]
    assert found[1].boxes[0].tolist() == [20, 60, 60, 120]
    assert [detections.size.tolist() for detections in found] == [[50, 400], [300, 200]]


def test_half_precision_outputs_become_float32_scores():
    exact = output_of([0.8, 0.9, 0.75], BOXES, ACTIONS)
    half = exact.to(torch.bfloat16)
    (found,) = PostProcess()(half, SIZES, ORIGINAL)
    assert found.boxes.dtype == found.person_scores.dtype == found.action_scores.dtype == torch.float32


def test_unknown_score_is_an_error():
    with pytest.raises(ValueError, match=r"postprocess.score 'person' is neither 'action' nor 'person_times_action'"):
        PostProcess(score="person")
