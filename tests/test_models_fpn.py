"""Feature pyramid over the keyframe maps."""

import pytest
import torch
import torch.nn.functional as F

from evad.models.fpn import KeyframePyramid


def keyframe_maps(height=4, width=6, count=4):
    generator = torch.Generator().manual_seed(0)
    return list(torch.randn(count, 2, 5, height, width, generator=generator, dtype=torch.float64))


def pyramid():
    torch.manual_seed(0)
    return KeyframePyramid(in_channels=5, channels=3).double()


def test_levels_have_4_2_1_and_half_times_the_size_of_the_maps():
    shapes = [tuple(level.shape) for level in pyramid()(keyframe_maps())]
    assert shapes == [(2, 3, 16, 24), (2, 3, 8, 12), (2, 3, 4, 6), (2, 3, 2, 3)]


def test_lateral_before_enlargement_equals_lateral_after_it():
    model, maps = pyramid(), keyframe_maps()
    for layer in model.modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.normal_(layer.bias)
    laterals = []
    for lateral, feature, (height, width) in zip(model.lateral, maps, [(16, 24), (8, 12), (4, 6), (2, 3)]):
        laterals.append(lateral(F.interpolate(feature, size=(height, width), mode="nearest")))
    merged = laterals[3]
    expected = [model.output[3](merged)]
    for level in (2, 1, 0):
        merged = laterals[level] + merged.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        expected.insert(0, model.output[level](merged))
    for ours, theirs in zip(model(maps), expected):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)


def test_shallow_map_reaches_the_finest_level_only_and_deep_map_all():
    model, maps = pyramid(), keyframe_maps()
    for feature in maps:
        feature.requires_grad_()
    for level, readers in zip(model(maps), [[0, 1, 2, 3], [1, 2, 3], [2, 3], [3]]):
        gradients = torch.autograd.grad(level.sum(), maps, retain_graph=True, allow_unused=True)
        assert [i for i, gradient in enumerate(gradients) if gradient is not None] == readers


def test_odd_map_is_halved_downwards():
    shapes = [tuple(level.shape[2:]) for level in pyramid()(keyframe_maps(3, 5))]
    assert shapes == [(12, 20), (6, 10), (3, 5), (1, 2)]


def test_other_number_of_maps_is_an_error():
    with pytest.raises(ValueError, match="4 levels but got 3 keyframe maps: list four blocks in map_blocks"):
        pyramid()(keyframe_maps(count=3))


def test_map_that_cannot_be_halved_is_an_error():
    with pytest.raises(ValueError, match=r"keyframe map of \(1, 6\) tokens cannot be halved"):
        pyramid()(keyframe_maps(height=1))
