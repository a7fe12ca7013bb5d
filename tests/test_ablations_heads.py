"""Classification heads of Table 1a: each choice changes the head and nothing else."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from evad.config import build_model, load_config
from evad.metrics.efficiency import executed_macs, paper_macs
from evad.models.criterion import SetCriterion
from evad.optim import parameter_groups
from evad.train import flat_parameters

HEADS = ["linear"]
WIDTHS = {"decoder": 16, "linear": 24}
BLOCKS = {"decoder": 3, "linear": 1}


def head(name):
    return f"model/classifier={name}"


def on_meta(*overrides):
    with torch.device("meta"):
        return build_model(load_config(["experiment=ava_vitb", *overrides]))


def total_loss(model, batch):
    losses = SetCriterion()(model(batch.clips, batch.sizes), batch.targets, batch.sizes)
    return torch.cat([losses.person, losses.l1, losses.giou, losses.action]).mean()


@pytest.mark.parametrize("name", [*HEADS, "decoder"])
def test_head_changes_actor_features_and_logits_alone(tiny_model, tiny_batch, name):
    batch = tiny_batch()
    before = tiny_model()(batch.clips, batch.sizes)
    model = tiny_model(head(name))
    output = model(batch.clips, batch.sizes)
    for same in ("person_logits", "boxes", "tokens", "positions"):
        assert torch.equal(getattr(output, same), getattr(before, same)), same
    assert output.roi_features.shape == (2, 7, WIDTHS[name])
    assert output.action_logits.shape == (BLOCKS[name], 2, 7, 5)
    assert model.eval()(batch.clips, batch.sizes).action_logits.shape == (1, 2, 7, 5)


@pytest.mark.parametrize("name", HEADS)
def test_parameters_outside_the_head_are_those_of_the_decoder(tiny_model, name):
    def outside(model):
        return {key: value.shape for key, value in model.named_parameters() if not key.startswith("classification.")}

    assert outside(tiny_model(head(name))) == outside(tiny_model())


@pytest.mark.parametrize("model", ["vitb", "vitl", "mini"])
@pytest.mark.parametrize("name", HEADS)
def test_head_follows_the_size_of_the_encoder(model, name):
    detector = on_meta(f"model={model}", head(name))
    assert detector.classification.mask_token.shape == (
        (detector.encoder.dim,) if name == "linear" else (detector.classification.project.out_features,)
    )


def test_parameters_of_table_1a():
    """185 M with our decoder, 169 M with the linear layer."""
    counts = {
        name: sum(parameter.numel() for parameter in on_meta(head(name)).parameters()) for name in ("decoder", "linear")
    }
    assert counts == {"decoder": 185_359_636, "linear": 168_755_460}


def test_sizes_of_the_decoder_do_not_depend_on_the_way_it_is_chosen():
    shapes = [
        {key: value.shape for key, value in on_meta("model=vitl", *chosen).named_parameters()}
        for chosen in ([], [head("decoder")])
    ]
    assert shapes[0] == shapes[1]
    decoder = on_meta("model=vitl").classification.decoder
    assert (len(decoder.blocks), decoder.blocks[0].attn.num_heads) == (12, 8)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("boxes", [(2, 1), (0, 2), (0, 0)], ids=["two clips", "one empty clip", "no box at all"])
@pytest.mark.parametrize("options", [[], ["model.keep_rate=1"], ["model.fill=zeros"]], ids=str)
def test_every_parameter_has_a_gradient(tiny_model, tiny_batch, name, boxes, options):
    model = tiny_model(head(name), *options)
    loss = total_loss(model, tiny_batch(boxes))
    loss.backward()
    assert loss.isfinite()
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []
    if sum(boxes):
        silent = [key for key, parameter in model.named_parameters() if parameter.grad.abs().sum() == 0]
        assert silent == (["classification.mask_token"] if options == ["model.keep_rate=1"] else [])


@pytest.mark.parametrize("name", HEADS)
def test_batched_clips_equal_single_ones(tiny_model, tiny_batch, name):
    model, batch = tiny_model(head(name)), tiny_batch()
    together = model(batch.clips, batch.sizes)
    for clip in range(2):
        part = slice(clip, clip + 1)
        single = model(batch.clips[part], batch.sizes[part])
        torch.testing.assert_close(together.action_logits[:, part], single.action_logits, rtol=0, atol=1e-10)
        torch.testing.assert_close(together.roi_features[part], single.roi_features, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", HEADS)
def test_recipe_trains_heads_faster_and_spares_vectors_the_decay(tiny_model, name):
    model = tiny_model(head(name))
    groups = {
        parameter: (group["lr"], group["weight_decay"])
        for group in parameter_groups(model, lr=1.0, weight_decay=0.1, head_lr_scale=8)
        for parameter in group["params"]
    }
    for key, parameter in model.classification.named_parameters():
        assert groups[parameter] == (8.0, 0.1 if parameter.ndim > 1 else 0.0), key


@pytest.mark.parametrize("name", HEADS)
def test_table_of_hyperparameters_names_the_head(tiny_config, name):
    assert (
        flat_parameters(tiny_config(head(name)))["model/classifier"]
        != flat_parameters(tiny_config())["model/classifier"]
    )


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("name", HEADS)
def test_executed_count_is_what_torch_counts(tiny_model, tiny_batch, name, training):
    model, batch = tiny_model(head(name)).train(training), tiny_batch()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(batch.clips[:1], batch.sizes[:1])
    counts = {part: sum(each.values()) / 2 for part, each in counter.get_flop_counts().items()}
    # Children of the head: its own products are RoIAlign, which neither count includes.
    prefix = "EVAD.classification."
    counted = sum(value for part, value in counts.items() if part.startswith(prefix) and part.count(".") == 2)
    assert executed_macs(model, 8, 32, 48, training=training)["classification"] == counted


@pytest.mark.parametrize("name", HEADS)
def test_head_changes_its_own_macs_alone(tiny_model, name):
    before, after = paper_macs(tiny_model(), 8, 32, 48), paper_macs(tiny_model(head(name)), 8, 32, 48)
    assert {part for part in before if before[part] != after[part]} == {"classification"}


def test_linear_head_reads_the_encoders_own_channels(tiny_model, tiny_batch):
    """No projection, no position code: with keep rate 1 the volume is the encoder's output."""
    model, batch = tiny_model(head("linear"), "model.keep_rate=1"), tiny_batch()
    output = model(batch.clips, batch.sizes)
    volume = torch.empty_like(output.tokens).scatter(
        1, output.positions.unsqueeze(2).expand_as(output.tokens), output.tokens
    )
    branch = model.classification
    features = branch.actor_features(volume, (4, 4, 6), output.boxes[-1], batch.sizes)
    torch.testing.assert_close(output.roi_features, features, rtol=0, atol=1e-12)
    expected = features @ branch.action_logits.weight.T + branch.action_logits.bias
    torch.testing.assert_close(output.action_logits[0], expected, rtol=0, atol=1e-12)


def test_linear_baseline_has_no_pruning_and_no_extension():
    model = build_model(load_config(["experiment=ava_vitb_baseline", "model=mini"]))
    assert type(model.classification).__name__ == "LinearClassification"
    assert model.classification.roi_extension == (0, 0)
    assert {block.pruning.keep_rate for block in model.encoder.blocks if block.pruning} <= {1.0}
