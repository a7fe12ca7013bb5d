"""Survival, area shares and actor attention of the tiny detector, against what its forward pass does."""

import numpy as np
import pytest
import torch

from evad.analysis.tokens import (
    actor_attention,
    actors_of_interest,
    gt_area_share,
    gt_area_shares,
    slice_images,
    survival_of,
    token_survival,
    union_coverage,
)


def outputs(model, batch):
    with torch.no_grad():
        return model.eval()(batch.clips, batch.sizes)


def test_survival_is_what_the_detector_kept(tiny_model, tiny_batch):
    model, batch = tiny_model(), tiny_batch()
    survival = token_survival(model, batch.clips)
    assert survival.shape == (2, 3, 4, 4, 6)
    assert survival[:, :, 2].all()  # the keyframe
    output = outputs(model, batch)
    for clip in range(2):
        for stage, kept in enumerate(output.kept):
            assert torch.equal(survival[clip, stage].flatten().nonzero().squeeze(1), kept[clip].sort().values)
        assert torch.equal(survival[clip, -1].flatten().nonzero().squeeze(1), output.positions[clip].sort().values)
    assert not (survival[:, 1:] & ~survival[:, :-1]).any()  # what is dropped stays dropped


def test_survival_under_unified_pruning(tiny_model, tiny_batch):
    model, batch = tiny_model("model.keyframe=unified"), tiny_batch()
    survival = token_survival(model, batch.clips)
    for clip in range(2):
        assert torch.equal(
            survival[clip, -1].flatten().nonzero().squeeze(1), outputs(model, batch).positions[clip].sort().values
        )
    assert not survival[:, -1, 2].all()  # some of the keyframe left


def test_survival_leaves_the_modes_of_all_modules_alone(tiny_model, tiny_batch):
    model = tiny_model().train()
    model.pyramid.eval()
    before = [module.training for module in model.modules()]
    token_survival(model, tiny_batch().clips)
    assert [module.training for module in model.modules()] == before


def test_a_model_that_does_not_prune_has_no_stages(tiny_model, tiny_batch):
    assert token_survival(tiny_model("model.keep_rate=1.0"), tiny_batch().clips).shape == (2, 0, 4, 4, 6)


def test_coverage_of_a_union_is_exact():
    boxes = np.array([[2, 1, 6, 4], [4, 2, 9, 3], [0, 4, 0, 8], [-5, 6, 1, 99]])
    # 4 x 4-pixel tokens, 2 rows, 3 columns. Row 0: 2 x 3 of the first box | 2 x 3, and 2 x 1 of the second | 1 x 1.
    # Row 1: a box without width | the last box, clipped to 1 x 2.
    expected = np.array([[6, 6 + 2, 1], [2, 0, 0]]) / 16
    assert union_coverage(boxes, (2, 3), 4) == pytest.approx(expected, abs=0)
    assert not union_coverage(np.zeros((0, 4)), (2, 3), 4).any()


def test_coverage_equals_counted_pixels():
    rng = np.random.default_rng(0)
    corner = rng.integers(0, 40, (5, 2))
    boxes = np.hstack([corner, corner + rng.integers(0, 20, (5, 2))])
    pixels = np.zeros((64, 96), dtype=bool)
    for x1, y1, x2, y2 in boxes:
        pixels[y1:y2, x1:x2] = True
    counted = pixels.reshape(8, 8, 12, 8).mean(axis=(1, 3))
    assert union_coverage(boxes, (8, 12), 8) == pytest.approx(counted, abs=1e-15)


def test_area_share_by_hand():
    # 3 slices of 1 x 2 tokens of 4 pixels; the image is 4 x 6, so the second token is half padding. Slice 1 is the
    # keyframe. The box covers the left token's right half and a quarter of the right token.
    survival = torch.tensor([[[[1, 1]], [[1, 1]], [[0, 1]]], [[[1, 0]], [[1, 1]], [[0, 0]]]]).bool()
    table = gt_area_share(survival, torch.tensor([[2.0, 0.0, 5.0, 4.0]]), (4, 6), patch=4)
    assert table["stage"].tolist() == [1, 2]
    assert table["gt_area"].tolist() == [12 / 24] * 2
    assert table["preserved"].tolist() == [(2 * 0.5 + 3 * 0.25) / 5, (2 * 0.5 + 0.25) / 3]
    assert table["context"].tolist() == [(0.5 + 2 * 0.25) / 3, 0.5]


def test_all_tokens_have_the_share_of_the_area():
    table = gt_area_share(torch.ones(1, 3, 2, 3).bool(), torch.tensor([[1.0, 2.0, 9.5, 7.0]]), (8, 12), patch=4)
    assert table.loc[0, ["gt_area", "preserved", "context"]].tolist() == pytest.approx([8.5 * 5 / 96] * 3, abs=1e-15)


def test_area_shares_of_a_set_are_those_of_its_clips(tiny_model, tiny_batch):
    model, batch = tiny_model(), tiny_batch(boxes=(2, 0, 1))
    table = gt_area_shares(model, [batch, tiny_batch()])
    assert table["keyframe"].tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [0] * 3 + [1] * 3
    survival = token_survival(model, batch.clips)
    alone = gt_area_share(survival[2], batch.targets[2].boxes, tuple(batch.sizes[2].tolist()), 8)
    assert table.iloc[6:9, 1:].to_numpy() == pytest.approx(alone.to_numpy(), abs=0)
    assert table.loc[3:5, ["gt_area", "preserved", "context"]].isna().all(axis=None)  # nobody in the second clip
    assert gt_area_shares(model, []).empty


@pytest.mark.parametrize("block", [0, 1, 2])
def test_attention_equals_the_naive_computation(tiny_model, tiny_batch, block):
    model, batch = tiny_model(), tiny_batch()
    found = actor_attention(model, batch, block)
    inputs = []
    layer = model.classification.decoder.blocks[block]
    handle = layer.register_forward_hook(lambda _, args, __: inputs.append(args[0]))
    output = outputs(model, batch)
    handle.remove()
    normed = layer.norm1(inputs[0])
    heads, dim = 2, 8
    weight, count = layer.attn.qkv.weight, normed.shape[1]
    query = (normed @ weight[:16].T + layer.attn.q_bias).view(2, count, heads, dim)
    key = (normed @ weight[16:32].T).view(2, count, heads, dim)
    naive = torch.zeros(2, count, count, dtype=torch.float64)  # head by head, exponentials over their sum
    for head in range(heads):
        logits = query[:, :, head] @ key[:, :, head].transpose(1, 2) / dim**0.5
        naive += logits.exp() / logits.exp().sum(-1, keepdim=True) / heads
    torch.testing.assert_close(found.weights, naive[:, -7:].detach(), rtol=0, atol=1e-13)
    torch.testing.assert_close(found.weights.sum(-1), torch.ones(2, 7, dtype=torch.float64), rtol=0, atol=1e-13)
    assert torch.equal(found.output.action_logits, output.action_logits)


def test_attention_leaves_no_hook_and_negative_blocks_count_from_the_end(tiny_model, tiny_batch):
    model, batch = tiny_model(), tiny_batch()
    assert torch.equal(actor_attention(model, batch).weights, actor_attention(model, batch, 2).weights)
    assert not any(module._forward_pre_hooks for module in model.modules())
    with pytest.raises(ValueError, match="decoder block 3 does not exist, the decoder has 3"):
        actor_attention(model, batch, 3)


def test_attention_without_a_decoder_says_so(tiny_model, tiny_batch):
    model = tiny_model()
    del model.classification.decoder
    with pytest.raises(ValueError, match="ClassificationBranch has no context refinement decoder"):
        actor_attention(model, tiny_batch())


def test_attention_returns_to_the_places_of_its_tokens(tiny_model, tiny_batch):
    model, batch = tiny_model(), tiny_batch()
    found = actor_attention(model, batch)
    volume = found.on_grid()
    assert volume.shape == (2, 7, 4, 4, 6)
    assert torch.equal(~volume[:, 0].isnan(), token_survival(model, batch.clips)[:, -1])
    tokens = found.positions.shape[1]
    for clip in range(2):
        placed = volume[clip].flatten(1)[:, found.positions[clip]]
        assert torch.equal(placed, found.weights[clip, :, :tokens])


def test_actors_of_interest_are_the_best_overlapping_queries(tiny_model, tiny_batch):
    batch = tiny_batch(boxes=(2, 0))
    output = outputs(tiny_model(), batch)
    batch.targets[0].boxes = output.boxes[-1][0, [5, 1]]
    output.person_logits[-1][1] = 0
    output.person_logits[-1][1, 4, 0] = 1
    assert [queries.tolist() for queries in actors_of_interest(output, batch)] == [[5, 1], [4]]


def test_slice_images_undo_the_normalisation_and_the_padding():
    frames = torch.rand(3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    pictures = slice_images((frames - 0.45) / 0.225, tubelet=2, size=(4, 5))
    assert pictures == pytest.approx(frames[:, [0, 2], :4, :5].permute(1, 2, 3, 0).numpy(), abs=1e-6)


def test_survival_of_given_positions():
    survival = survival_of([torch.tensor([[2, 3, 0, 5]]), torch.tensor([[2, 3, 5]])], (3, 1, 2), 1)
    assert survival.flatten(2).int().tolist() == [[[1, 0, 1, 1, 0, 1], [0, 0, 1, 1, 0, 1]]]
