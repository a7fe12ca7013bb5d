"""Classification branch: restored volume, actor features, context refinement decoder."""

import pytest
import torch

from evad.models.actors import ActorRoI
from evad.models.attention import Attention, attention
from evad.models.classification import ClassificationBranch, ContextRefinementDecoder, DecoderBlock
from evad.models.positions import GridPositions
from evad.models.tokens import Tokens

GRID = (4, 4, 6)
SIZES = torch.tensor([[32, 48], [27, 41]])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def some_tokens(seed=0, kept=30):
    x = torch.randn(2, 96, 24, generator=generator(seed), dtype=torch.float64)
    index = torch.stack([torch.randperm(72, generator=generator(seed + i))[:kept] for i in range(2)])
    return Tokens.from_grid(x, GRID).select_context(index)


def some_boxes(seed=0):
    corner, extent = torch.rand(2, 2, 7, 2, generator=generator(seed), dtype=torch.float64)
    return torch.cat([20 * corner, 20 * corner + 4 + 20 * extent], dim=2)


def run(branch, tokens=None, boxes=None):
    return branch(tokens or some_tokens(), some_boxes() if boxes is None else boxes, SIZES)


def attend(layer, x):
    return layer.merge(attention(*layer.project(x)))


def test_attention_of_the_last_tokens_equals_that_of_all(tiny_model):
    layer = tiny_model().encoder.blocks[0].attn
    x = torch.randn(2, 11, 24, generator=generator(), dtype=torch.float64)
    last = layer.merge(attention(*layer.project_last(x, 3)))
    torch.testing.assert_close(last, attend(layer, x)[:, -3:], rtol=0, atol=1e-12)


def test_mixed_precision_inference_attends_like_training(tiny_model):
    """The two take different ways through the attention, on a CPU."""
    layer = tiny_model(dtype=torch.float32).encoder.blocks[0].attn
    x = torch.randn(2, 11, 24, generator=generator())
    exact = attend(layer, x)
    with torch.autocast("cpu", torch.bfloat16):
        trained = attend(layer, x)
        with torch.no_grad():
            inferred = attend(layer, x)
    assert trained.dtype == inferred.dtype == torch.bfloat16
    torch.testing.assert_close(inferred.float(), exact, rtol=0, atol=0.03 * exact.abs().max().item())
    torch.testing.assert_close(trained.float(), exact, rtol=0, atol=0.03 * exact.abs().max().item())


def test_attention_equals_the_explicit_formula(tiny_model):
    layer = tiny_model().encoder.blocks[0].attn
    x = torch.randn(2, 11, 24, generator=generator(), dtype=torch.float64)
    packed = x @ layer.qkv.weight.T
    query, key, value = packed.split(24, dim=2)
    query, value = query + layer.q_bias, value + layer.v_bias  # none on keys
    heads = []
    for head in range(3):
        d = slice(8 * head, 8 * head + 8)
        weights = (query[..., d] @ key[..., d].transpose(1, 2) / 8**0.5).softmax(-1)
        heads.append(weights @ value[..., d])
    expected = layer.proj(torch.cat(heads, dim=2))
    torch.testing.assert_close(attend(layer, x), expected, rtol=0, atol=1e-12)


def test_width_that_heads_do_not_divide_is_an_error():
    with pytest.raises(ValueError, match="width 10 is not divisible by 3 attention heads"):
        Attention(10, 3)


def test_block_for_the_actors_alone_equals_the_complete_block():
    torch.manual_seed(0)
    block = DecoderBlock(8, 2).double()
    x = torch.randn(2, 13, 8, generator=generator(), dtype=torch.float64)
    torch.testing.assert_close(block(x, num_queries=4), block(x)[:, -4:], rtol=0, atol=1e-12)


def test_training_answers_after_every_block_and_evaluation_after_the_last(tiny_model):
    branch = tiny_model().classification
    _, every = run(branch.train())
    _, last = run(branch.eval())
    assert every.shape == (3, 2, 7, 5)
    assert last.shape == (1, 2, 7, 5)
    torch.testing.assert_close(every[-1], last[0], rtol=0, atol=1e-12)


def test_every_block_classifies_with_a_head_of_its_own(tiny_model):
    branch = tiny_model().classification
    _, before = run(branch)
    with torch.no_grad():
        branch.decoder.heads[1][3].bias += 1
    _, after = run(branch)
    torch.testing.assert_close(after - before, torch.tensor([0.0, 1, 0]).double().view(3, 1, 1, 1).expand_as(after))


def test_mask_token_is_a_weight_and_zeros_are_none(tiny_model):
    learnable, zeros = tiny_model().classification, tiny_model("model.fill=zeros").classification
    assert "mask_token" in dict(learnable.named_parameters())
    assert "mask_token" in learnable.state_dict()
    assert "mask_token" not in dict(zeros.named_parameters())
    assert "mask_token" not in zeros.state_dict()
    assert zeros.state_dict().keys() == learnable.state_dict().keys() - {"mask_token"}


def test_zeros_equal_a_mask_token_of_zero(tiny_model):
    learnable, zeros = tiny_model().classification, tiny_model("model.fill=zeros").classification
    zeros.load_state_dict(learnable.state_dict(), strict=False)
    filled = run(learnable)
    with torch.no_grad():
        learnable.mask_token.zero_()
    for ours, theirs, other in zip(run(zeros), run(learnable), filled):
        assert torch.equal(ours, theirs)
        assert (ours - other).abs().max() > 1e-4


def test_mask_token_changes_regions_with_dropped_tokens_only(tiny_model):
    branch = tiny_model().classification
    complete = Tokens.from_grid(torch.randn(2, 96, 24, generator=generator(), dtype=torch.float64), GRID)
    before = run(branch, complete)
    with torch.no_grad():
        branch.mask_token += 1
    for ours, theirs in zip(run(branch, complete), before):
        assert torch.equal(ours, theirs)


class Recorder(torch.nn.Module):
    """A decoder that returns what it was given."""

    def forward(self, context, actors, valid):
        self.context, self.actors = context, actors
        return actors[None]


def recording_branch(extension=(0.4, 0.2), fill="mask_token"):
    torch.manual_seed(0)
    roi, positions = ActorRoI(stride=8, extension=extension), GridPositions(6, num_slices=4, base_grid=(4, 6))
    return ClassificationBranch(24, 6, roi, positions, Recorder(), fill).double()


def test_decoder_reads_projected_tokens_with_the_codes_of_their_cells():
    branch, tokens = recording_branch(), some_tokens()
    run(branch, tokens)
    codes = branch.positions(GRID)
    expected = tokens.x @ branch.project.weight.T + codes[tokens.position]
    torch.testing.assert_close(branch.decoder.context, expected, rtol=0, atol=1e-12)


def test_dropped_cells_get_position_codes_too():
    """An actor in a region without any token reads mask token plus codes."""
    branch = recording_branch(extension=(0, 0))
    keyframe_only = Tokens.from_grid(torch.zeros(2, 96, 24).double(), GRID).select_context(torch.empty(2, 0).long())
    features, _ = run(branch, keyframe_only)
    volume = branch.positions(GRID).expand(2, -1, -1) + branch.mask_token
    volume = volume.clone()
    volume[:, 48:72] -= branch.mask_token  # the keyframe's tokens are zero
    expected = branch.actor_features(volume, GRID, some_boxes(), SIZES)
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-12)


def test_actor_feature_is_the_spatial_maximum_and_temporal_mean():
    branch = recording_branch(extension=(0, 0))
    volume = torch.zeros(1, *GRID, 1, dtype=torch.float64)
    volume[0, 0] = 1.0
    volume[0, 2] = 3.0
    volume[0, 3, 2:, 3:] = 8.0  # in the lower right quarter of the last slice
    boxes = torch.tensor([[[1.0, 1, 47, 31], [1, 1, 20, 12]]], dtype=torch.float64)
    features = branch.actor_features(volume.flatten(1, 3), GRID, boxes, torch.tensor([[32, 48]]))
    # Not exact: the weights of a bin are added in a matrix product, whose order depends on the processor.
    assert features.flatten().tolist() == pytest.approx([(1 + 0 + 3 + 8) / 4, (1 + 0 + 3 + 0) / 4], rel=1e-15)


def test_extension_widens_the_region_of_an_actor():
    volume = torch.zeros(1, *GRID, 1, dtype=torch.float64)
    volume[..., 4:, :] = 1.0  # everything right of 32 pixels
    boxes = torch.tensor([[[10.0, 10, 27, 20]]], dtype=torch.float64)
    found = []
    for extension in [(0, 0), (0.4, 0.2), (1, 0)]:
        branch = recording_branch(extension=extension)
        found.append(branch.actor_features(volume.flatten(1, 3), GRID, boxes, torch.tensor([[32, 48]])).item())
    # Right edges at 27, 30.6 and 36 pixels. The last bin's two samples average to its centre, 1/14 of the width further
    # left: columns 2.72, 3.11 and 3.69; between the centres of columns 3 and 4 the value is column - 3.
    assert found == pytest.approx([0, (30.6 - 24.2 / 14) / 8 - 3.5, (36 - 35 / 14) / 8 - 3.5], abs=1e-12)


def test_actions_send_no_gradient_into_boxes(tiny_model):
    """As RoIAlign: boxes learn from the localization losses alone."""
    boxes = some_boxes().requires_grad_()
    features, logits = run(tiny_model().classification, boxes=boxes)
    (features.sum() + logits.sum()).backward()
    assert boxes.grad is None


def test_actor_outside_the_image_has_finite_features(tiny_model):
    branch = tiny_model().classification
    boxes = some_boxes() + torch.tensor([500.0, -900, 500, -900]).double()
    features, logits = run(branch, boxes=boxes)
    assert features.isfinite().all()
    assert logits.isfinite().all()


def test_clips_of_a_batch_do_not_see_each_other(tiny_model):
    branch, tokens, boxes = tiny_model().classification, some_tokens(), some_boxes()
    features, logits = branch(tokens, boxes, SIZES)
    for clip in range(2):
        part = slice(clip, clip + 1)
        single = Tokens(tokens.x[part], tokens.position[part], GRID)
        one_features, one_logits = branch(single, boxes[part], SIZES[part])
        torch.testing.assert_close(features[part], one_features, rtol=0, atol=1e-12)
        torch.testing.assert_close(logits[:, part], one_logits, rtol=0, atol=1e-12)


def test_drop_path_grows_linearly_over_the_blocks():
    decoder = ContextRefinementDecoder(8, 3, 2, 5, drop_path=0.4)
    assert [block.drop_path.drop_prob for block in decoder.blocks] == [0, 0.2, 0.4]
    assert ContextRefinementDecoder(8, 1, 2, 5, drop_path=0.4).blocks[0].drop_path.drop_prob == 0


def test_decoder_without_blocks_is_an_error():
    with pytest.raises(ValueError, match="decoder_depth 0 leaves no block to classify with"):
        ContextRefinementDecoder(8, 0, 2, 5)


def test_unknown_fill_is_an_error():
    with pytest.raises(ValueError, match="fill 'ones' is neither 'mask_token' nor 'zeros'"):
        recording_branch(fill="ones")


@pytest.mark.parametrize("extension", [(0.4,), (0.4, -0.1)])
def test_extension_that_is_not_two_shares_is_an_error(extension):
    with pytest.raises(ValueError, match=r"roi_extension .* must be two numbers \(x, y\), neither negative"):
        recording_branch(extension=extension)
