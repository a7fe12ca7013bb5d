"""Region features: level rule, RoIAlign, box extension."""

import pytest
import torch
from torchvision.ops import roi_align

from evad.models.roi import align, align_by_product, assign_levels, batched_rois, extend_boxes, pyramid_roi_align

STRIDES = [4, 8, 16, 32]


def box(width, height=None):
    return [3.0, 5.0, 3.0 + width, 5.0 + (height or width)]


@pytest.mark.parametrize(
    ("width", "height", "level"),
    [
        (20, 20, 0),  # clamped from below
        (56, 56, 0),
        (111.9, 111.9, 0),
        (112, 112, 1),
        (223.9, 223.9, 1),
        (224, 224, 2),
        (112, 448, 2),  # the area counts, not the sides
        (447.9, 447.9, 2),
        (448, 448, 3),
        (5000, 5000, 3),  # clamped from above
    ],
)
def test_level_by_area(width, height, level):
    boxes = torch.tensor([box(width, height)], dtype=torch.float64)
    assert assign_levels(boxes, 4, canonical_size=224, canonical_level=2).tolist() == [level]


def test_level_rule_rounds_up_what_misses_a_boundary_by_less_than_its_epsilon():
    sides = 224 * (1 - torch.tensor([5e-9, 2e-8], dtype=torch.float64))
    zero = torch.zeros_like(sides)
    boxes = torch.stack([zero, zero, sides, sides], dim=1)
    assert assign_levels(boxes, 4, canonical_size=224, canonical_level=2).tolist() == [2, 1]


def test_box_without_area_is_on_the_finest_level():
    boxes = torch.tensor([[5.0, 5, 5, 5], [9, 9, 3, 12]])  # a point, an inverted box
    assert assign_levels(boxes, 4, canonical_size=224, canonical_level=2).tolist() == [0, 0]


def test_canonical_size_shifts_the_boundaries():
    boxes = torch.tensor([box(side) for side in (15, 16, 31, 32, 63, 64, 65)])
    assert assign_levels(boxes, 4, canonical_size=32, canonical_level=2).tolist() == [0, 1, 1, 2, 2, 3, 3]


def test_rois_name_their_clip():
    boxes = torch.arange(16.0).view(2, 2, 4)
    assert batched_rois(boxes).tolist() == [[0, 0, 1, 2, 3], [0, 4, 5, 6, 7], [1, 8, 9, 10, 11], [1, 12, 13, 14, 15]]


def test_align_reads_half_pixel_centres():
    feature = torch.arange(6.0).expand(1, 1, 5, 6)  # value = column
    # x from 8 to 24 pixels at stride 8 is column 0.5 to 2.5: two bins of one cell around columns 1 and 2.
    assert align(feature, torch.tensor([[0, 8.0, 8, 24, 24]]), 2, 1 / 8).tolist() == [[[[1, 2], [1, 2]]]]


def test_align_samples_each_bin_twice_along_a_side():
    feature = torch.tensor([0.0, 1, 4, 9]).expand(1, 1, 4, 4)
    # One bin over columns 0.5 to 2.5: samples at 1.0 and 2.0, the mean of 1 and 4.
    assert align(feature, torch.tensor([[0, 1.0, 1, 3, 3]]), 1, 1.0).item() == 2.5


def test_mixed_precision_does_not_round_boxes():
    feature = torch.randn(1, 2, 40, 40, generator=torch.Generator().manual_seed(0)).bfloat16()
    rois = torch.tensor([[0, 100.3, 20.7, 301.9, 250.2]])
    exact = align(feature.float(), rois, 7, 1 / 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(align(feature, rois, 7, 1 / 8), exact)
    assert not torch.equal(align(feature.float(), rois.bfloat16().float(), 7, 1 / 8), exact)


# Inside, over an edge, partly and wholly outside, without area, inverted; the map has 5 x 7 cells of 8 pixels.
ANY_BOXES = torch.tensor(
    [
        [[3.0, 5, 30, 33], [-3, -2, 20, 9], [40, 20, 70, 60], [0, 0, 55, 39], [-90, 4, -20, 30]],
        [[17.3, 8.9, 17.3, 20], [30, 30, 10, 12], [-100, -100, 200, 200], [55, 39, 55, 39], [100, 2, 130, 20]],
    ],
    dtype=torch.float64,
)


@pytest.mark.parametrize("bins", [1, 4, 7])
def test_product_equals_roi_align_and_so_does_its_gradient(bins):
    generator = torch.Generator().manual_seed(0)
    volume = torch.randn(2, 5, 7, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    ours = align_by_product(volume, ANY_BOXES, bins, 1 / 8)
    theirs = align(volume.permute(0, 3, 1, 2), batched_rois(ANY_BOXES), bins, 1 / 8)  # (B * Q, C, S, S)
    theirs = theirs.flatten(2).transpose(1, 2).unflatten(0, (2, 5))  # (B, Q, S * S, C)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    direction = torch.randn(ours.shape, generator=generator, dtype=torch.float64)
    gradients = [torch.autograd.grad((value * direction).sum(), volume)[0] for value in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


def pyramid_levels(batch=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, 3, 512 // s, 768 // s, generator=generator, dtype=dtype) for s in STRIDES]


BOXES = torch.tensor(
    [
        [box(500), box(20), box(230), box(120), [-60.0, -50, 40, 30]],
        [box(30), box(300), box(25), [700.0, 480, 900, 700], box(130, 100)],
    ],
    dtype=torch.float64,
)


def test_every_query_is_read_from_its_level_in_the_order_of_the_boxes():
    levels = pyramid_levels()
    features = pyramid_roi_align(levels, BOXES, STRIDES, 4, canonical_size=224)
    rois = batched_rois(BOXES)
    chosen = assign_levels(rois[:, 1:], 4, 224, 2).tolist()
    assert chosen == [3, 0, 2, 1, 0, 0, 2, 0, 1, 1]
    for row, level, feature in zip(rois, chosen, features):
        expected = roi_align(
            levels[level], row[None], 4, spatial_scale=1 / STRIDES[level], sampling_ratio=2, aligned=True
        )
        assert torch.equal(feature, expected[0])


def test_batched_regions_equal_single_ones():
    levels = pyramid_levels()
    together = pyramid_roi_align(levels, BOXES, STRIDES, 4, canonical_size=224)
    for clip in range(2):
        single = pyramid_roi_align(
            [level[clip : clip + 1] for level in levels], BOXES[clip : clip + 1], STRIDES, 4, canonical_size=224
        )
        assert torch.equal(together[5 * clip : 5 * clip + 5], single)


def test_level_without_boxes_gets_zero_gradients_not_none():
    levels = [level.requires_grad_() for level in pyramid_levels()]
    pyramid_roi_align(levels, BOXES[:, 1:2], STRIDES, 4, canonical_size=224).sum().backward()
    assert [level.grad.abs().sum().item() > 0 for level in levels] == [True, False, True, False]


def test_diverged_boxes_do_not_read_outside_the_maps():
    """RoIAlign itself ends the process on NaN and infinity."""
    nan, inf = float("nan"), float("inf")
    boxes = torch.tensor([[[nan] * 4, [-inf, 0, inf, 50], [0, 0, 10, nan], [inf] * 4]]).expand(2, -1, -1)
    levels = pyramid_levels(dtype=torch.float32)
    features = pyramid_roi_align(levels, boxes, STRIDES, 4, canonical_size=224)
    assert features.shape == (8, 3, 4, 4)
    assert features.isfinite().all()


def test_other_number_of_strides_is_an_error():
    with pytest.raises(ValueError, match=r"3 strides .* for 4 pyramid levels"):
        pyramid_roi_align(pyramid_levels(), BOXES, STRIDES[:3], 4, canonical_size=224)


@pytest.mark.parametrize(
    ("before", "extension", "after"),
    [
        ([10, 20, 29, 39], (0.4, 0.2), [6, 18, 33, 39]),  # 20 * 0.2 = 4, 20 * 0.1 = 2; the bottom at 40 - 1
        ([10, 20, 29, 29], (0.2, 0.1), [8, 19.5, 31, 29.5]),
        ([10, 20, 29, 29], (0, 0), [10, 20, 29, 29]),
        ([-5, 3, 70, 50], (0, 0), [0, 3, 59, 39]),  # clipped without an extension, too
        ([100, 100, 110, 110], (0.4, 0.2), [59, 39, 59, 39]),  # wholly outside: a point in the corner
        ([-30, -30, -20, -20], (0.4, 0.2), [0, 0, 0, 0]),
        ([-30, 10, -20, 19], (0, 0), [0, 10, 0, 19]),
    ],
)
def test_extended_boxes_by_hand(before, extension, after):
    boxes = torch.tensor([[before]], dtype=torch.float64)
    extended = extend_boxes(boxes, torch.tensor([[40, 60]]), extension)
    torch.testing.assert_close(extended, torch.tensor([[after]], dtype=torch.float64), rtol=0, atol=1e-12)


def test_extended_boxes_are_clipped_to_each_clip_by_itself():
    boxes = torch.tensor([[[0.0, 0, 100, 100]], [[0.0, 0, 100, 100]]])
    extended = extend_boxes(boxes, torch.tensor([[40, 60], [90, 30]]), (0.4, 0.2))
    assert extended.tolist() == [[[0, 0, 59, 39]], [[0, 0, 29, 89]]]
