"""The whole detector: shapes, gradients, drop path, precision, batches."""

import copy

import pytest
import torch

from evad.models.criterion import SetCriterion
from evad.runs.build import build_model


def total_loss(model, batch, sizes=None):
    losses = SetCriterion()(model(batch.clips, batch.sizes), batch.targets, batch.sizes)
    return torch.cat([losses.person, losses.l1, losses.giou, losses.action]).mean()


def outputs(output):
    """Everything that is computed, without the counts that depend on the mode."""
    return [output.person_logits, output.boxes, output.action_logits[-1:], output.roi_features, output.tokens]


def assert_same(first, second, atol):
    for ours, theirs in zip(outputs(first), outputs(second)):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)
    assert torch.equal(first.positions, second.positions)


def test_shapes_of_everything_it_returns(tiny_model, tiny_batch):
    batch = tiny_batch()
    model = tiny_model()
    output = model(batch.clips, batch.sizes)
    # 96 tokens, 24 of the keyframe; keep_rate 0.8: 77, 62, 50
    assert output.person_logits.shape == (2, 2, 7, 2)
    assert output.boxes.shape == (2, 2, 7, 4)
    assert output.action_logits.shape == (3, 2, 7, 5)
    assert output.roi_features.shape == (2, 7, 16)
    assert output.tokens.shape == (2, 50, 24)
    assert output.positions.shape == (2, 50)
    assert [kept.shape for kept in output.kept] == [(2, 77), (2, 62), (2, 50)]
    assert output.valid is None
    assert model.eval()(batch.clips, batch.sizes).action_logits.shape == (1, 2, 7, 5)


def test_keyframe_is_complete_and_survivors_are_nested(tiny_model, tiny_batch):
    batch = tiny_batch()
    output = tiny_model()(batch.clips, batch.sizes)
    assert torch.equal(output.positions, output.kept[-1])
    for clip in range(2):
        before = set(range(96))
        for kept in output.kept:
            assert kept[clip, :24].tolist() == list(range(48, 72))  # the third of four slices
            assert set(kept[clip].tolist()) < before
            before = set(kept[clip].tolist())


def test_evaluation_equals_training_without_drop_path(tiny_model, tiny_batch):
    """Inference may take other ways to the same numbers."""
    model, batch = tiny_model(), tiny_batch()
    trained = model(batch.clips, batch.sizes)
    assert_same(model.eval()(batch.clips, batch.sizes), trained, 1e-12)
    with torch.inference_mode():
        assert_same(model(batch.clips, batch.sizes), trained, 1e-12)


@pytest.mark.parametrize("boxes", [(2, 1), (0, 2), (0, 0)], ids=["two clips", "one empty clip", "no box at all"])
@pytest.mark.parametrize("options", [[], ["model.keep_rate=1"], ["model.context_order=score", "model.fill=zeros"]])
def test_every_parameter_has_a_gradient(tiny_model, tiny_batch, boxes, options):
    """None would stop distributed training, which waits for every parameter."""
    model, batch = tiny_model(*options), tiny_batch(boxes)
    loss = total_loss(model, batch)
    loss.backward()
    assert loss.isfinite()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    if sum(boxes):
        silent = [name for name, parameter in model.named_parameters() if parameter.grad.abs().sum() == 0]
        # Nothing is dropped at keep rate 1, so that nothing reads the mask token.
        assert silent == (["classification.mask_token"] if options == ["model.keep_rate=1"] else [])


def test_batched_clips_equal_single_ones(tiny_model, tiny_batch):
    """For one padded size: there is no attention mask, so padding to another size changes the output."""
    model, batch = tiny_model(), tiny_batch()
    together = model(batch.clips, batch.sizes)
    for clip in range(2):
        part = slice(clip, clip + 1)
        single = model(batch.clips[part], batch.sizes[part])
        for name, axis in [("person_logits", 1), ("boxes", 1), ("action_logits", 1), ("tokens", 0), ("positions", 0)]:
            ours = getattr(together, name).narrow(axis, clip, 1)
            torch.testing.assert_close(ours, getattr(single, name), rtol=0, atol=1e-10)


def test_valid_size_scales_and_clips_boxes_but_hides_no_pixel(tiny_model, tiny_batch):
    model, batch = tiny_model(), tiny_batch()
    full = model(batch.clips, torch.tensor([[32, 48]] * 2))
    valid = model(batch.clips, batch.sizes)
    assert torch.equal(full.tokens, valid.tokens)
    assert torch.equal(full.boxes[:, 0], valid.boxes[:, 0])
    assert not torch.equal(full.boxes[:, 1], valid.boxes[:, 1])


def test_equal_input_gives_equal_output(tiny_model, tiny_batch):
    model, batch = tiny_model(dtype=torch.float32), tiny_batch(dtype=torch.float32)
    assert_same(model(batch.clips, batch.sizes), model(batch.clips, batch.sizes), 0)


def test_drop_path_is_active_in_training_only(tiny_model, tiny_batch):
    rates = ["model.net.encoder.drop_path=0.5", "model.net.classification.decoder.drop_path=0.5"]
    model, without, batch = tiny_model(*rates), tiny_model(), tiny_batch()
    torch.manual_seed(0)
    first, second = model(batch.clips, batch.sizes), model(batch.clips, batch.sizes)
    assert not torch.equal(first.tokens, second.tokens)
    assert not torch.equal(first.action_logits, second.action_logits)
    assert_same(model.eval()(batch.clips, batch.sizes), without.eval()(batch.clips, batch.sizes), 0)


def test_encoder_drop_path_grows_linearly(tiny_model):
    blocks = tiny_model("model.net.encoder.drop_path=0.5").encoder.blocks
    assert [block.drop_path.drop_prob for block in blocks] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])


def test_recomputed_activations_give_the_same_gradients(tiny_model, tiny_batch):
    batch, gradients = tiny_batch(), []
    for setting in ("false", "true"):
        model = tiny_model(f"model.activation_checkpointing={setting}")
        total_loss(model, batch).backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=0, atol=1e-14, msg=name)


def test_recomputation_repeats_the_drop_path_of_the_forward_pass(tiny_model, tiny_batch):
    batch, gradients = tiny_batch(), []
    for setting in ("false", "true"):
        model = tiny_model(f"model.activation_checkpointing={setting}", "model.net.encoder.drop_path=0.5")
        torch.manual_seed(3)
        total_loss(model, batch).backward()
        gradients.append(model.encoder.patch_embed.proj.weight.grad)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-14)


def test_mixed_precision_trains(tiny_model, tiny_batch):
    model, batch = tiny_model(dtype=torch.float32), tiny_batch(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(batch.clips, batch.sizes)
        losses = SetCriterion()(output, batch.targets, batch.sizes)
        loss = torch.cat([losses.person, losses.l1, losses.giou, losses.action]).mean()
    loss.backward()
    assert output.person_logits.dtype == torch.bfloat16
    assert output.boxes.dtype == loss.dtype == torch.float32
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    exact = total_loss(model, batch)
    assert abs(loss - exact) < 0.02 * exact


def test_diverged_weights_are_named_as_the_cause(tiny_model, tiny_batch):
    model, batch = tiny_model(dtype=torch.float32), tiny_batch(dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"matching cost is not finite: .* NaN or infinite"):
        total_loss(model, batch)


def test_training_goes_on_after_validation_in_inference_mode(tiny_model, tiny_batch):
    model, batch = tiny_model(), tiny_batch()
    with torch.inference_mode():
        model.eval()(batch.clips, batch.sizes)
    total_loss(model.train(), batch).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_copy_computes_the_same(tiny_model, tiny_batch):
    model, batch = tiny_model(), tiny_batch()
    output = model(batch.clips, batch.sizes)
    assert_same(copy.deepcopy(model)(batch.clips, batch.sizes), output, 0)


def test_state_dict_holds_weights_only(tiny_model):
    model = tiny_model()
    assert model.state_dict().keys() == dict(model.named_parameters()).keys()


def test_new_layers_start_with_zero_biases_and_xavier_weights(tiny_config):
    torch.manual_seed(0)
    model = build_model(tiny_config())
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert parameter.abs().max() == 0, name
        elif parameter.ndim > 1 and not name.endswith("proposal_boxes"):
            rows = parameter.flatten(1)
            bound = (6 / sum(rows.shape)) ** 0.5
            assert 0.8 * bound < parameter.abs().max() <= bound, name
    assert model.localization.proposal_boxes.tolist() == [[0.5, 0.5, 1, 1]] * 7


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 7, 32, 48), "clip of 7 frames, 32 x 48 pixels is not a whole number of 2 x 8 x 8 cubes"),
        ((1, 3, 8, 30, 48), "clip of 8 frames, 30 x 48 pixels"),
        ((1, 3, 8, 4, 48), "clip of 8 frames, 4 x 48 pixels"),
        ((1, 3, 0, 32, 48), "clip of 0 frames"),
        ((1, 3, 16, 32, 48), "8 temporal tokens, the position table 4: model.num_frames"),
        ((1, 3, 8, 8, 48), r"keyframe map of \(1, 6\) tokens cannot be halved"),
    ],
)
def test_clip_that_does_not_fit_is_an_error(tiny_model, shape, message):
    with pytest.raises(ValueError, match=message):
        tiny_model()(torch.zeros(shape, dtype=torch.float64), torch.tensor([shape[3:]]))


@pytest.mark.parametrize("blocks", ["[0,1,2,3]", "[1,2,3,7]"])
def test_map_block_that_does_not_exist_is_an_error(tiny_model, blocks):
    with pytest.raises(ValueError, match="do not lie within the 6 blocks of the encoder"):
        tiny_model(f"model.net.encoder.map_blocks={blocks}")
