"""Each choice of `model/pruning`, `model.keyframe` and `model.decoder_input`: what it changes, and nothing else."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from evad.benchmark import count
from evad.config import conf_dir, load_config
from evad.metrics.cost import executed_macs, paper_macs, token_counts
from evad.models.criterion import SetCriterion
from evad.runs.build import build_model, effective_keep_rate, pruning_name

KEYFRAME = list(range(48, 72))  # of 4 x 4 x 6 tokens, the third slice
PRUNE_BLOCKS = (1, 3, 4)  # of the tiny detector, from 0; its keep_rate is 0.8
STAGES = [77, 62, 50]  # tokens left of 96: ceil(0.8 * 96), ...
UNIFIED, ALL = "model.keyframe=unified", "model.decoder_input=all"

# Overrides -> tokens given to the classification branch, tokens left per stage.
CHOICES = {
    "mean_attention": (["model/pruning=mean_attention"], 50, STAGES),
    "none": (["model/pruning=none"], 96, []),
    "random": (["model/pruning=random"], 82, [82]),
    "cls_token": (["model/pruning=cls_token"], 50, STAGES),
    "evit_fusion": (["model/pruning=evit_fusion"], 50, STAGES),
    "tome_merging": (["model/pruning=tome_merging"], 50, STAGES),
    "pixel_difference": (["model/pruning=pixel_difference"], 82, [82]),
    "unified": ([UNIFIED], 50, STAGES),
    "all": ([ALL], 96, STAGES),
    "unified, all": ([UNIFIED, ALL], 96, STAGES),
    "random, all": (["model/pruning=random", ALL], 96, [82]),
    "cls_token, unified, all": (["model/pruning=cls_token", UNIFIED, ALL], 96, STAGES),
    "evit_fusion, unified": (["model/pruning=evit_fusion", UNIFIED, "model.w_kf=4"], 50, STAGES),
    "tome_merging, unified": (["model/pruning=tome_merging", UNIFIED], 50, STAGES),
}


@pytest.fixture(params=CHOICES)
def choice(request):
    return CHOICES[request.param]


@pytest.fixture
def overrides(choice):
    return choice[0]


def total_loss(model, batch):
    losses = SetCriterion()(model(batch.clips, batch.sizes), batch.targets, batch.sizes)
    return torch.cat([losses.person, losses.l1, losses.giou, losses.action]).mean()


def run(model, batch):
    return model(batch.clips, batch.sizes)


def assert_same(first, second, atol=0.0):
    for name in ("person_logits", "boxes", "roi_features", "tokens"):
        torch.testing.assert_close(getattr(first, name), getattr(second, name), rtol=0, atol=atol, msg=name)
    torch.testing.assert_close(first.action_logits[-1], second.action_logits[-1], rtol=0, atol=atol)
    assert torch.equal(first.positions, second.positions)
    assert all(torch.equal(a, b) for a, b in zip(first.kept, second.kept, strict=True))


def on_meta(*overrides):
    with torch.device("meta"):
        return build_model(load_config(["experiment=ava_vitb", *overrides]))


# What it costs


@pytest.mark.parametrize(
    ("override", "printed"),
    [
        ("model/pruning=random", 158.9),  # Table 1b
        ("model/pruning=cls_token", 134.2),  # Table 1b
        ("model/pruning=mean_attention", 134.4),  # Table 1b
        (ALL, 156.1),  # Table 1d
        ("model/pruning=none", 223.8),  # Table 2b, keep rate 1
    ],
)
def test_cost_is_that_of_the_papers_table(override, printed):
    assert sum(paper_macs(on_meta(override), 16, 224, 224).values()) / 1e9 == pytest.approx(printed, rel=0.01)


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
def test_executed_count_is_what_torch_counts(tiny_model, tiny_batch, overrides, training):
    model, batch = tiny_model(*overrides).train(training), tiny_batch((1,))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run(model, batch)
    counted = {name: sum(counts.values()) / 2 for name, counts in counter.get_flop_counts().items()}
    executed = executed_macs(model, 8, 32, 48, training=training)
    assert executed["patch_embed"] + executed["encoder"] == counted["EVAD.encoder"]
    classification = counted["EVAD.classification.project"] + counted["EVAD.classification.decoder"]
    assert executed["classification"] == classification
    assert executed["pyramid"] == counted["EVAD.pyramid"]
    assert executed["localization"] == counted["EVAD.localization"]


def test_listed_tokens_are_those_that_come_out(tiny_model, tiny_batch, choice):
    options, tokens, kept = choice
    model = tiny_model(*options)
    output = run(model, tiny_batch())
    assert output.tokens.shape == (2, tokens, 24)
    assert [positions.shape for positions in output.kept] == [(2, n) for n in kept]
    assert token_counts(model, 8, 32, 48) == [96, *kept]
    assert [output.person_logits.shape, output.roi_features.shape] == [(2, 2, 7, 2), (2, 7, 16)]


def test_benchmark_counts_every_choice(tiny_config, choice):
    options, _, kept = choice
    row = count(tiny_config(*options, command="benchmark"), 48, "training")
    assert row["gmacs"] > 0
    assert len(row["tokens"]) == 1 + len(kept)
    assert row["keep_rate"] == (1 if "model/pruning=none" in options else 0.8)


# Which parts and parameters it has


@pytest.mark.parametrize("model", ["vitb", "vitl", "mini"])
def test_every_model_prunes_by_mean_attention_unless_told_otherwise(model):
    keys = [f"model={model}", "model.keep_rate=0.8", "model.w_kf=4", "model.context_order=score"]
    default = load_config(keys)
    assert default == load_config([*keys, "model/pruning=mean_attention"])
    with torch.device("meta"):
        pruned = [block.pruning for block in build_model(default).encoder.blocks if block.pruning]
    stages = 2 if model == "mini" else 3
    assert [(p.keep_rate, p.score.w_kf) for p in pruned] == [(0.8, 4)] * stages


@pytest.mark.parametrize("model", ["vitb", "vitl", "mini"])
def test_without_pruning_the_keep_rate_is_one_whatever_the_key_says(model):
    cfg = load_config([f"model={model}", "model/pruning=none", "model.keep_rate=0.6"])
    assert effective_keep_rate(cfg) == 1
    assert pruning_name(cfg) == "none"


def test_every_file_of_the_group_is_tested_here():
    files = {path.stem for path in (conf_dir() / "model" / "pruning").glob("*.yaml")}
    assert files == {
        options[0].partition("=")[2] for options, *_ in CHOICES.values() if options[0].startswith("model/")
    }


@pytest.mark.parametrize(
    ("pruning", "name"),
    [
        ("random", "RandomSampling"),
        ("pixel_difference", "PixelDifferenceSampling"),
        ("cls_token", "ClassTokenPruning"),
        ("evit_fusion", "FusingPruning"),
        ("tome_merging", "MergingPruning"),
    ],
)
def test_tables_of_runs_name_the_class_and_its_rate(pruning, name):
    cfg = load_config([f"model/pruning={pruning}", "model.keep_rate=0.6"])
    assert (pruning_name(cfg), effective_keep_rate(cfg)) == (name, 0.6)


def modules_of(model):
    """Class and plain settings of every module."""
    plain = (int, float, str, bool, tuple, list, type(None))
    return {
        name: (type(module), {key: value for key, value in vars(module).items() if isinstance(value, plain)})
        for name, module in model.named_modules()
    }


def test_only_its_own_modules_differ(tiny_model, overrides):
    before, after = modules_of(tiny_model()), modules_of(tiny_model(*overrides))
    differing = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    pruning = tuple(f"encoder.blocks.{n}.pruning" for n in PRUNE_BLOCKS)
    # A block without pruning says so.
    allowed = {"encoder", "encoder.entry", *(f"encoder.blocks.{n}" for n in PRUNE_BLOCKS)}
    assert {name for name in differing if not name.startswith(pruning)} <= allowed


def test_class_token_is_the_only_parameter_any_choice_adds(tiny_model, overrides):
    before, after = (dict(tiny_model(*options).named_parameters()) for options in ([], overrides))
    added = {name: after[name].shape for name in after.keys() - before.keys()}
    assert added == ({"encoder.entry.token": (24,)} if "model/pruning=cls_token" in overrides else {})
    assert before.keys() <= after.keys()
    assert tiny_model(*overrides).state_dict().keys() == after.keys()


def test_class_token_of_vit_b_has_768_numbers():
    sizes = [sum(p.numel() for p in on_meta(*options).parameters()) for options in ([], ["model/pruning=cls_token"])]
    assert sizes[1] - sizes[0] == 768


# What it computes


def test_every_parameter_has_a_gradient(tiny_model, tiny_batch, overrides):
    model = tiny_model(*overrides)
    total_loss(model, tiny_batch()).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    silent = [name for name, parameter in model.named_parameters() if parameter.grad.abs().sum() == 0]
    # Where every position is filled nothing reads the mask token.
    complete = ALL in overrides or "model/pruning=none" in overrides
    assert silent == (["classification.mask_token"] if complete else [])


def test_recomputed_activations_give_the_same_gradients(tiny_model, tiny_batch, overrides):
    batch, gradients = tiny_batch(), []
    for setting in (False, True):
        model = tiny_model(*overrides)
        model.encoder.activation_checkpointing = setting
        torch.manual_seed(3)
        total_loss(model, batch).backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=0, atol=1e-13, msg=name)


def test_batched_clips_equal_single_ones(tiny_model, tiny_batch, overrides):
    model, batch = tiny_model(*overrides).eval(), tiny_batch()
    together = run(model, batch)
    for clip in range(2):
        part = slice(clip, clip + 1)
        single = model(batch.clips[part], batch.sizes[part])
        for name, axis in [("person_logits", 1), ("boxes", 1), ("action_logits", 1), ("tokens", 0), ("positions", 0)]:
            ours = getattr(together, name).narrow(axis, clip, 1)
            torch.testing.assert_close(ours, getattr(single, name), rtol=0, atol=1e-10, msg=name)


def test_inference_mode_equals_evaluation(tiny_model, tiny_batch, overrides):
    """Inference may take other ways to the same numbers."""
    model, batch = tiny_model(*overrides).eval(), tiny_batch()
    expected = run(model, batch)
    with torch.inference_mode():
        assert_same(run(model, batch), expected, 1e-11)


def test_mixed_precision_trains(tiny_model, tiny_batch, overrides):
    model, batch = tiny_model(*overrides, dtype=torch.float32), tiny_batch(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = total_loss(model, batch)
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_positions_are_unique_and_survivors_are_nested(tiny_model, tiny_batch, choice):
    options, tokens, _ = choice
    output = run(tiny_model(*options), tiny_batch())
    for clip in range(2):
        assert len(set(output.positions[clip].tolist())) == tokens
        before = set(range(96))
        for kept in output.kept:
            assert set(kept[clip].tolist()) < before
            before = set(kept[clip].tolist())
            assert UNIFIED in options or kept[clip, :24].tolist() == KEYFRAME
    if output.kept and ALL not in options:
        assert torch.equal(output.positions, output.kept[-1])


@pytest.mark.parametrize("pruning", ["none", "random", "evit_fusion", "tome_merging", "pixel_difference"])
def test_at_keep_rate_one_all_are_the_same(tiny_model, tiny_batch, pruning):
    batch = tiny_batch()
    expected = run(tiny_model("model.keep_rate=1"), batch)
    for options in ([], [UNIFIED], [ALL]):
        if pruning == "pixel_difference" and options == [UNIFIED]:
            continue
        assert_same(run(tiny_model("model.keep_rate=1", f"model/pruning={pruning}", *options), batch), expected)


def test_without_pruning_everything_is_as_at_keep_rate_one(tiny_model, tiny_batch):
    batch = tiny_batch()
    none, one = tiny_model("model/pruning=none", "model.keep_rate=0.6"), tiny_model("model.keep_rate=1")
    assert_same(run(none, batch), run(one, batch))
    assert paper_macs(none, 8, 32, 48) == paper_macs(one, 8, 32, 48)


@pytest.mark.parametrize(
    ("options", "matters"),
    [
        (["model/pruning=mean_attention"], True),
        (["model/pruning=evit_fusion"], True),
        ([UNIFIED], True),
        (["model/pruning=cls_token"], False),
        (["model/pruning=tome_merging"], False),
        (["model/pruning=random"], False),
        (["model/pruning=pixel_difference"], False),
    ],
)
def test_keyframe_weight_matters_to_the_importance_of_equation_1_only(tiny_model, tiny_batch, options, matters):
    batch = tiny_batch()
    kept = [run(tiny_model(*options, f"model.w_kf={w}").eval(), batch).kept for w in (1, 8)]
    assert all(torch.equal(a, b) for a, b in zip(*kept, strict=True)) != matters


def test_choices_choose_differently(tiny_model, tiny_batch):
    batch = tiny_batch()
    first_stage = {
        name: run(tiny_model(f"model/pruning={name}").eval(), batch).kept[0]
        for name in ("mean_attention", "cls_token", "tome_merging", "random", "pixel_difference")
    }
    sets = {name: tuple(kept[0].tolist()) for name, kept in first_stage.items()}
    assert len(set(sets.values())) == len(sets)


@pytest.mark.parametrize("pruning", ["cls_token", "evit_fusion", "random", "pixel_difference"])
def test_score_order_moves_tokens_but_keeps_the_same(tiny_model, tiny_batch, pruning):
    batch = tiny_batch()
    ours, theirs = (
        run(tiny_model(f"model/pruning={pruning}", f"model.context_order={order}").eval(), batch)
        for order in ("position", "score")
    )
    assert torch.equal(ours.positions, theirs.positions)
    same = torch.allclose(ours.action_logits, theirs.action_logits, rtol=0, atol=1e-9)
    assert same == (pruning in ("random", "pixel_difference"))  # nothing was scored


def test_merging_has_no_score_order(tiny_model):
    with pytest.raises(ValueError, match="tokens of MergingPruning have no score"):
        tiny_model("model/pruning=tome_merging", "model.context_order=score")


@pytest.mark.parametrize("key", ["keyframe", "decoder_input"])
def test_misspelt_choice_is_an_error_naming_it(tiny_model, key):
    with pytest.raises(ValueError, match=f"{key} 'some' is neither"):
        tiny_model(f"model.{key}=some")


# Table 1c, unified pruning, and Table 1d, all tokens to the decoder


class Recorder:
    """Tokens before each pruning stage."""

    def __init__(self, encoder):
        self.tokens = []
        for block in encoder.blocks:
            if block.pruning is not None:
                block.pruning.register_forward_pre_hook(lambda _, args: self.tokens.append(args[0]))


def last_values(stages, survivors):
    """Position -> feature that each dropped token of the first clip had when it left.

    Args:
        stages: Tokens before each stage.
        survivors: Positions of the first clip left after each of them.
    """
    values = {}
    for before, kept in zip(stages, survivors, strict=True):
        left = set(before.position[0].tolist()) - set(kept)
        values |= {p: before.x[0, before.position[0] == p][0] for p in left}
    return values


def test_unified_pruning_drops_keyframe_tokens_and_needs_no_room_for_them(tiny_model, tiny_batch):
    output = run(tiny_model(UNIFIED, "model.keep_rate=0.2"), tiny_batch())
    assert [kept.shape[1] for kept in output.kept] == [20, 4, 1]
    left = [len(set(KEYFRAME) & set(kept.tolist())) for kept in output.kept[0]]
    assert max(left) < 24


def test_localization_sees_the_last_value_of_a_dropped_keyframe_token(tiny_model, tiny_batch):
    """The tiny encoder prunes in blocks 2, 4 and 5 and takes maps after blocks 1, 3, 4 and 6."""
    model, batch = tiny_model(UNIFIED, "model.keep_rate=0.4"), tiny_batch()
    recorder = Recorder(model.encoder)
    encoded = model.encoder(batch.clips)
    survivors = [kept[0].tolist() for kept in encoded.kept]
    for number in (1, 2, 3):  # a map comes after as many stages
        values = last_values(recorder.tokens[:number], survivors[:number])
        dropped = [p for p in values if p in KEYFRAME]
        assert dropped
        for p in dropped:
            row, column = divmod(p - 48, 6)
            assert torch.equal(encoded.keyframe_maps[number][0, :, row, column], values[p])
    complete = model.encoder.norm(encoded.keyframe_maps[3][0].flatten(1).T)  # (C, H', W') -> (N1, C)
    for p, x in zip(encoded.tokens.position[0].tolist(), encoded.tokens.x[0]):
        if p in KEYFRAME:
            torch.testing.assert_close(complete[p - 48], x, rtol=0, atol=1e-14)


def test_unified_importance_is_equation_1_with_the_keyframes_own_rows(tiny_model, tiny_batch):
    """At the second stage every clip has its own number of keyframe tokens."""
    model, batch = tiny_model(UNIFIED, "model.w_kf=3", "model.keep_rate=0.5"), tiny_batch()
    recorder, block = Recorder(model.encoder), model.encoder.blocks[3]
    inputs = []
    block.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    output = run(model, batch)
    tokens = inputs[0]
    query, key, _ = block.attn.project(block.norm1(tokens.x))
    matrix = (query @ key.transpose(2, 3) / query.shape[3] ** 0.5).softmax(-1).mean(1)  # (B, N, N)
    in_keyframe = (tokens.position >= 48) & (tokens.position < 72)
    assert in_keyframe[0].sum() != in_keyframe[1].sum()
    importance = (matrix * (1 + 2 * in_keyframe).unsqueeze(2)).mean(1)
    best = importance.topk(24, dim=1).indices.sort(1).values
    assert torch.equal(tokens.position.gather(1, best), output.kept[1])
    assert len(recorder.tokens) == 3


def test_all_tokens_are_the_survivors_and_the_dropped_ones_as_they_left(tiny_model, tiny_batch):
    model, batch = tiny_model(ALL), tiny_batch()
    recorder = Recorder(model.encoder)
    output, preserved = run(model, batch), run(tiny_model(), batch)
    assert torch.equal(output.tokens[:, :50], preserved.tokens)
    assert torch.equal(output.boxes, preserved.boxes)
    assert output.positions.sort(1).values.tolist() == [list(range(96))] * 2
    values = last_values(recorder.tokens, [kept[0].tolist() for kept in output.kept])
    assert len(values) == 46
    for p, x in zip(output.positions[0, 50:].tolist(), output.tokens[0, 50:]):
        torch.testing.assert_close(x, model.encoder.norm(values[p]), rtol=0, atol=1e-14)


def test_restored_volume_has_no_gap_where_all_tokens_are_given(tiny_model, tiny_batch):
    batch, logits = tiny_batch(), {}
    for options in ([ALL], []):
        for fill in ("mask_token", "zeros"):
            logits[fill] = run(tiny_model(*options, f"model.fill={fill}"), batch).action_logits
        assert torch.equal(logits["mask_token"], logits["zeros"]) == (options == [ALL])
