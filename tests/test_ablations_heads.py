"""Classification heads of Table 1a: each choice changes the head and nothing else."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from evad.config import load_config
from evad.metrics.cost import executed_macs, paper_macs
from evad.models.criterion import SetCriterion
from evad.models.heads.woo import InteractionClassification
from evad.models.tokens import Tokens
from evad.runs.build import build_model
from evad.train import flat_parameters
from evad.training.optim import parameter_groups

HEADS = ["linear", "woo"]
WIDTHS = {"decoder": 16, "linear": 24, "woo": 12}
BLOCKS = {"decoder": 3, "linear": 1, "woo": 2}


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
        detector.encoder.norm.normalized_shape if name == "linear" else (detector.classification.project.out_features,)
    )


@pytest.mark.parametrize(
    ("name", "printed", "count"),
    [("decoder", 185, 185_359_636), ("linear", 169, 168_755_460), ("woo", 314, 313_932_436)],
)
def test_parameters_of_table_1a(name, printed, count):
    assert sum(parameter.numel() for parameter in on_meta(head(name)).parameters()) == count
    assert round(count / 1e6) == printed


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
        output = model(batch.clips[:1], batch.sizes[:1])
    whole = counter.get_flop_counts()["EVAD.classification"]
    branch = model.classification
    volume = torch.zeros(1, 96, len(branch.mask_token), dtype=torch.float64)
    with FlopCounterMode(display=False) as counter:
        branch.roi(volume, (4, 4, 6), output.boxes[-1], batch.sizes[:1])
    roi_align = counter.get_flop_counts()["Global"]  # which neither count includes
    counted = (sum(whole.values()) - sum(roi_align.values())) / 2
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
    assert model.classification.roi.extension == (0, 0)
    assert {block.pruning.keep_rate for block in model.encoder.blocks if block.pruning} <= {1.0}


def woo_branch(tiny_model):
    return tiny_model(head("woo"), "model.keep_rate=1").classification


def woo_input():
    x = torch.randn(2, 96, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    corner, extent = torch.rand(2, 2, 7, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    boxes = torch.cat([15 * corner, 15 * corner + 4 + 10 * extent], dim=2)
    return x, boxes, torch.tensor([[32, 48], [27, 41]])


def test_woo_embeddings_of_space_and_time_read_their_half_of_the_roi(tiny_model):
    """Reordered slices change what the temporal embedding reads, not the mean that the spatial one reads."""
    branch, (x, boxes, sizes) = woo_branch(tiny_model), woo_input()
    seen = {}
    for name, part in (("spatial", branch.stages[0].spatial), ("temporal", branch.stages[0].temporal)):
        part.register_forward_pre_hook(lambda _, inputs, name=name: seen.setdefault(name, []).append(inputs[1]))
    volume = x.unflatten(1, (4, 24))
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        branch(Tokens.from_grid(volume[:, order].flatten(1, 2), (4, 4, 6)), boxes, sizes)
    assert [value.shape for value in seen["spatial"]] == [(14, 16, 12)] * 2
    torch.testing.assert_close(*seen["spatial"], rtol=0, atol=1e-12)
    torch.testing.assert_close(seen["temporal"][0][:, [3, 1, 0, 2]], seen["temporal"][1], rtol=0, atol=1e-12)


def test_woo_interaction_is_two_generated_products(tiny_model):
    part = woo_branch(tiny_model).stages[0].temporal
    embedding, bins = torch.randn(1, 1, 12, dtype=torch.float64), torch.randn(1, 4, 12, dtype=torch.float64)
    generated = part.filter.generate(embedding[0, 0])
    first, second = generated[:48].view(12, 4), generated[48:].view(4, 12)
    x = part.filter.norm2(part.filter.norm1(bins[0] @ first).relu() @ second).relu()
    x = part.norm1(embedding[0, 0] + part.filter.norm3(part.filter.out(x.flatten())).relu())
    expected = part.norm2(x + part.ffn(x))
    torch.testing.assert_close(part(embedding, bins)[0, 0], expected, rtol=0, atol=1e-12)


def test_woo_actors_see_each_other(tiny_model):
    branch, (x, boxes, sizes) = woo_branch(tiny_model), woo_input()
    tokens = Tokens.from_grid(x, (4, 4, 6))
    before = branch(tokens, boxes, sizes)[1]
    boxes[:, 0] = torch.tensor([1.0, 1, 30, 25])
    after = branch(tokens, boxes, sizes)[1]
    assert (after[-1, :, 1:] - before[-1, :, 1:]).abs().max() > 1e-6


def test_fewer_actors_take_the_first_embeddings(tiny_model):
    branch, (x, boxes, sizes) = woo_branch(tiny_model), woo_input()
    assert branch(Tokens.from_grid(x, (4, 4, 6)), boxes[:, :3], sizes)[1].shape == (2, 2, 3, 5)


def test_more_actors_than_embeddings_are_an_error(tiny_model):
    branch, (x, boxes, sizes) = woo_branch(tiny_model), woo_input()
    with pytest.raises(ValueError, match=r"8 actors in a clip, .* embeddings for 7: raise model.woo_queries"):
        branch(Tokens.from_grid(x, (4, 4, 6)), torch.cat([boxes, boxes[:, :1]], dim=1), sizes)


def test_woo_without_stages_is_an_error(tiny_model):
    with pytest.raises(ValueError, match="woo_depth 0 leaves no stage to classify with"):
        tiny_model(head("woo"), "model.woo_depth=0")


@pytest.mark.parametrize(
    "override", ["woo_depth=1", "woo_dim=16", "woo_heads=3", "woo_dim_dynamic=5", "woo_hidden_dim=24", "num_queries=5"]
)
def test_sizes_of_the_woo_head_change_it_alone(tiny_model, override):
    before, after = tiny_model(head("woo")), tiny_model(head("woo"), f"model.{override}")
    own = {"num_queries=5": ("classification.spatial", "classification.temporal", "localization.proposal")}
    prefixes = own.get(override, ("classification.",))
    if override == "woo_heads=3":
        assert [stage.self_attn.num_heads for stage in after.classification.stages] == [3, 3]
        return
    shapes = [{key: value.shape for key, value in model.named_parameters()} for model in (before, after)]
    changed = {key for key in shapes[0].keys() | shapes[1].keys() if shapes[0].get(key) != shapes[1].get(key)}
    assert changed
    assert all(key.startswith(prefixes) for key in changed)


def test_woo_experiment_is_unpruned_and_unextended():
    model = on_meta("experiment=ava_woo_vitb")
    assert isinstance(model.classification, InteractionClassification)
    assert model.classification.roi.extension == (0, 0)
    # 314 M parameters in Table 1a, 378 GFLOPs in Table 4
    assert sum(parameter.numel() for parameter in model.parameters()) == 313_932_436
    assert round(sum(paper_macs(model, 16, 288, 288).values()) / 1e9) == 378
