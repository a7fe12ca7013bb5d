"""Region features: level rule, RoIAlign, box extension."""

import pytest
import torch
from torchvision.ops import roi_align

from evad.models.roi import PyramidTable, align_by_product, assign_levels, extend_boxes, pyramid_roi_align

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


def align(feature, boxes, bins, stride):
    """RoI features of boxes (B, Q, 4) on a pyramid of one level."""
    return pyramid_roi_align(PyramidTable.of([feature], [stride]), boxes, bins, canonical_size=224)


def reference(feature, boxes, bins, stride):
    """The same by torchvision."""
    return roi_align(feature, list(boxes), bins, spatial_scale=1 / stride, sampling_ratio=2, aligned=True)


def test_align_reads_half_pixel_centres():
    feature = torch.arange(6.0).expand(1, 1, 5, 6)  # value = column
    # x from 8 to 24 pixels at stride 8 is column 0.5 to 2.5: two bins of one cell around columns 1 and 2.
    assert align(feature, torch.tensor([[[8.0, 8, 24, 24]]]), 2, 8).tolist() == [[[[1, 2], [1, 2]]]]


def test_align_samples_each_bin_twice_along_a_side():
    feature = torch.tensor([0.0, 1, 4, 9]).expand(1, 1, 4, 4)
    # One bin over columns 0.5 to 2.5: samples at 1.0 and 2.0, the mean of 1 and 4.
    assert align(feature, torch.tensor([[[1.0, 1, 3, 3]]]), 1, 1).item() == 2.5


def test_align_reads_each_clip_for_its_own_boxes():
    feature = torch.tensor([3.0, 7]).view(2, 1, 1, 1).expand(2, 1, 5, 6)
    boxes = torch.tensor([[8.0, 8, 24, 24], [9, 9, 20, 20]]).expand(2, 2, 4)
    assert align(feature, boxes, 1, 8).flatten().tolist() == [3, 3, 7, 7]


def test_mixed_precision_does_not_round_boxes():
    feature = torch.randn(1, 2, 40, 40, generator=torch.Generator().manual_seed(0)).bfloat16()
    boxes = torch.tensor([[[100.3, 20.7, 301.9, 250.2]]])
    exact = align(feature.float(), boxes, 7, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(align(feature.float(), boxes, 7, 8), exact)
        rounded = align(feature, boxes, 7, 8)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, rtol=0, atol=0.01)  # weights and result have 8 bits
    assert (align(feature.float(), boxes.bfloat16().float(), 7, 8) - exact).abs().max() > 0.02


# Inside, over an edge, partly and wholly outside, without area, inverted, and with a sample exactly one cell outside,
# the last place that counts; the map has 5 x 7 cells of 8 pixels.
ANY_BOXES = torch.tensor(
    [
        [[3.0, 5, 30, 33], [-3, -2, 20, 9], [40, 20, 70, 60], [0, 0, 55, 39], [-90, 4, -20, 30], [-8, -8, 8, 8]],
        [
            [17.3, 8.9, 17.3, 20],
            [30, 30, 10, 12],
            [-100, -100, 200, 200],
            [55, 39, 55, 39],
            [100, 2, 130, 20],
            [-8, 3, 8, 9],
        ],
    ],
    dtype=torch.float64,
)


@pytest.mark.parametrize("bins", [1, 4, 7])
def test_product_equals_roi_align_and_so_does_its_gradient(bins):
    generator = torch.Generator().manual_seed(0)
    volume = torch.randn(2, 5, 7, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    ours = align_by_product(volume, ANY_BOXES, bins, 1 / 8)
    theirs = reference(volume.permute(0, 3, 1, 2), ANY_BOXES, bins, 8)  # (B * Q, C, S, S)
    theirs = theirs.flatten(2).transpose(1, 2).unflatten(0, (2, 6))  # (B, Q, S * S, C)
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


def region(levels, boxes, bins=4):
    return pyramid_roi_align(PyramidTable.of(levels, STRIDES), boxes, bins, canonical_size=224)


def by_torchvision(levels, boxes, bins=4):
    """Box by box, each with torchvision's RoIAlign on its level."""
    features = []
    for clip, clip_boxes in enumerate(boxes):
        for row, level in zip(clip_boxes, assign_levels(clip_boxes, 4, 224, 2).tolist()):
            features.append(reference(levels[level][clip : clip + 1], row.view(1, 1, 4), bins, STRIDES[level]))
    return torch.cat(features)


def test_every_query_is_read_from_its_level_in_the_order_of_the_boxes():
    assert assign_levels(BOXES, 4, 224, 2).tolist() == [[3, 0, 2, 1, 0], [0, 2, 0, 1, 1]]
    levels = pyramid_levels()
    torch.testing.assert_close(region(levels, BOXES), by_torchvision(levels, BOXES), rtol=0, atol=1e-12)


def any_boxes(dtype):
    """Of every level, and inside, over an edge, outside, inverted, tiny, huge; one with a sample exactly on cell -1."""
    generator = torch.Generator().manual_seed(0)
    centre, half = torch.rand(2, 2, 40, 2, generator=generator, dtype=torch.float64) * 600
    special = [[-4.0, -4, 4, 4], [-90, -70, -20, -30], [800, 530, 900, 600], [300, 200, 90, 120], [5, 5, 5, 5]]
    special += [[100, 90, 100.01, 90.01], [-1e5, -1e5, 1e5, 1e5], [700, -50, 9000, 80]]
    boxes = torch.cat([centre - half**2 / 600, centre + half**2 / 600], dim=2)
    boxes = torch.cat([boxes, torch.tensor(special, dtype=torch.float64).expand(2, -1, -1)], dim=1)
    return boxes.to(dtype)


@pytest.mark.parametrize("onnx", [False, True], ids=["bag", "gather"])
@pytest.mark.parametrize("bins", [1, 4, 7])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_features_and_gradients_equal_torchvisions(dtype, tolerance, bins, onnx, monkeypatch):
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: onnx)
    levels = [level.requires_grad_() for level in pyramid_levels(dtype=dtype)]
    boxes = any_boxes(dtype)
    assert assign_levels(boxes, 4, 224, 2).unique().tolist() == [0, 1, 2, 3]
    ours, theirs = region(levels, boxes, bins), by_torchvision(levels, boxes, bins)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)
    direction = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
    gradients = [torch.autograd.grad((value * direction).sum(), levels) for value in (ours, theirs)]
    for one, other in zip(*gradients):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def test_strides_that_are_no_powers_of_two():
    levels, strides, boxes = pyramid_levels()[:2], [14, 28.5], any_boxes(torch.float64)
    ours = pyramid_roi_align(PyramidTable.of(levels, strides), boxes, 3, canonical_size=100)
    chosen = assign_levels(boxes, 2, 100, 0).flatten()
    theirs = torch.stack([reference(level, boxes, 3, stride) for level, stride in zip(levels, strides)])
    torch.testing.assert_close(ours, theirs[chosen, torch.arange(len(chosen))], rtol=0, atol=1e-12)


def test_batched_regions_equal_single_ones():
    levels = pyramid_levels()
    together = region(levels, BOXES)
    for clip in range(2):
        single = region([level[clip : clip + 1] for level in levels], BOXES[clip : clip + 1])
        assert torch.equal(together[5 * clip : 5 * clip + 5], single)


def test_level_without_boxes_gets_zero_gradients_not_none():
    levels = [level.requires_grad_() for level in pyramid_levels()]
    region(levels, BOXES[:, 1:2]).sum().backward()
    assert [level.grad.abs().sum().item() > 0 for level in levels] == [True, False, True, False]


def test_no_box_has_no_features_and_zero_gradients():
    levels = [level.requires_grad_() for level in pyramid_levels()]
    features = region(levels, BOXES[:, :0])
    assert features.shape == (0, 3, 4, 4)
    features.sum().backward()
    assert [level.grad.abs().sum().item() for level in levels] == [0, 0, 0, 0]


def test_boxes_get_no_gradient():
    levels = [level.requires_grad_() for level in pyramid_levels()]
    boxes = BOXES.clone().requires_grad_()
    region(levels, boxes).sum().backward()
    assert boxes.grad is None


def test_diverged_boxes_do_not_read_outside_the_maps():
    nan, inf = float("nan"), float("inf")
    boxes = torch.tensor(
        [[[nan] * 4, [-inf, 0, inf, 50], [0, 0, 10, nan], [inf] * 4, [1e30, -1e30, 2e30, 1e30]]]
    ).expand(2, -1, -1)
    levels = pyramid_levels(dtype=torch.float32)
    features = region(levels, boxes)
    assert features.shape == (10, 3, 4, 4)
    finite = boxes.nan_to_num(0.0).clamp(-1e6, 1e6)
    torch.testing.assert_close(features, by_torchvision(levels, finite), rtol=0, atol=1e-5)


def test_other_number_of_strides_is_an_error():
    with pytest.raises(ValueError, match=r"3 strides .* for 4 pyramid levels"):
        PyramidTable.of(pyramid_levels(), STRIDES[:3])


class Regions(torch.nn.Module):
    def forward(self, levels, boxes):
        return region(levels, boxes)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_in_one_graph_with_the_same_features_and_gradients(backend):
    torch._dynamo.reset()
    levels = [level.requires_grad_() for level in pyramid_levels()]
    compiled = torch.compile(Regions(), fullgraph=True, backend=backend)
    ours, theirs = compiled(levels, BOXES), region(levels, BOXES)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad(value.square().sum(), levels) for value in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-10)


@pytest.mark.parametrize("decompose", [False, True])
def test_exported_program_gives_the_same_features(decompose):
    levels = pyramid_levels()
    program = torch.export.export(Regions(), (levels, BOXES))
    if decompose:
        program = program.run_decompositions()
    other = BOXES.flip(1) * 0.9
    torch.testing.assert_close(program.module()(levels, other), region(levels, other), rtol=0, atol=1e-12)


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
