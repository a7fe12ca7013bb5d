"""Each choice of `model/pruning`: which tokens survive, what it costs, and that nothing else changes."""

import pytest
import torch
from omegaconf import OmegaConf

from evad.config import build_model, effective_keep_rate, load_config, pruning_name
from evad.metrics.efficiency import paper_macs
from evad.models.sampling import RandomSampling, check_rate, num_sampled
from evad.models.tokens import Tokens

FRAME, TOTAL = 24, 96  # of `tiny_batch`: 4 x 4 x 6 tokens, the third slice is the keyframe
KEYFRAME = list(range(48, 72))


def choose(pruning, *options):
    return [f"model/pruning={pruning}", *options]


def on_meta(*overrides):
    with torch.device("meta"):
        return build_model(load_config(["experiment=ava_vitb", *overrides]))


def gmacs(*overrides):
    return sum(paper_macs(on_meta(*overrides), 16, 224, 224).values()) / 1e9


@pytest.mark.parametrize(
    ("pruning", "printed"),
    [("random", 158.9), ("mean_attention", 134.4), ("none", 224.1)],
)
def test_cost_is_that_of_the_papers_table(pruning, printed):
    assert gmacs(f"model/pruning={pruning}") == pytest.approx(printed, rel=0.01)


@pytest.mark.parametrize("model", ["vitb", "vitl", "mini"])
def test_every_model_prunes_by_mean_attention_unless_told_otherwise(model):
    keys = [f"model={model}", "model.keep_rate=0.8", "model.w_kf=4", "model.context_order=score"]
    default = load_config(keys)
    assert default == load_config([*keys, "model/pruning=mean_attention"])
    with torch.device("meta"):
        pruned = [block.pruning for block in build_model(default).encoder.blocks if block.pruning]
    stages = 2 if model == "mini" else 3
    assert [(p.keep_rate, p.w_kf, p.context_order) for p in pruned] == [(0.8, 4, "score")] * stages


@pytest.mark.parametrize("model", ["vitb", "vitl", "mini"])
def test_without_pruning_the_keep_rate_is_one_whatever_the_key_says(model):
    cfg = load_config([f"model={model}", "model/pruning=none", "model.keep_rate=0.6"])
    assert effective_keep_rate(cfg) == 1
    assert pruning_name(cfg) == "none"


def test_without_pruning_everything_is_as_at_keep_rate_one(tiny_model, tiny_batch):
    batch = tiny_batch()
    none, one = tiny_model(*choose("none", "model.keep_rate=0.6")), tiny_model("model.keep_rate=1")
    ours, theirs = none(batch.clips, batch.sizes), one(batch.clips, batch.sizes)
    assert ours.kept == theirs.kept == []
    assert torch.equal(ours.tokens, theirs.tokens)
    assert torch.equal(ours.action_logits, theirs.action_logits)
    assert paper_macs(none, 8, 32, 48) == paper_macs(one, 8, 32, 48)


def test_run_from_before_the_group_existed_still_builds():
    old = load_config(["experiment=mini", "model.w_kf=4", "model.keep_rate=0.8"])
    OmegaConf.set_struct(old, False)
    del old.model.net.encoder.pruning
    old.model.net.encoder.w_kf = "${model.w_kf}"
    pruned = [block.pruning for block in build_model(old).encoder.blocks if block.pruning]
    assert [(p.keep_rate, p.w_kf) for p in pruned] == [(0.8, 4)] * 2


# Random sampling


@pytest.mark.parametrize(
    ("keep_rate", "tokens", "keyframe", "kept"),
    [(0.7, 1568, 196, 961), (0.5, 24, 6, 9), (0.51, 24, 6, 10), (1, 24, 6, 18), (0.01, 24, 6, 1), (0.5, 6, 6, 0)],
)
def test_share_of_context_tokens_is_rounded_up(keep_rate, tokens, keyframe, kept):
    assert num_sampled(keep_rate, tokens, keyframe) == kept


def numbered(batch=2, grid=(4, 2, 3)):
    x = torch.arange(grid[0] * grid[1] * grid[2], dtype=torch.float64).view(1, -1, 1)
    return Tokens.from_grid((1000 * torch.arange(batch).view(-1, 1, 1) + x), grid)


def test_sample_is_the_keyframe_and_distinct_context_tokens_in_space_time_order():
    tokens = numbered()
    for _ in range(20):
        sample = RandomSampling(0.5)(tokens, torch.empty(0))
        assert sample.position.shape == (2, 6 + 9)
        assert torch.equal(sample.position[:, :6], tokens.position[:, :6])
        assert (sample.position[:, 6:].diff(dim=1) > 0).all()
        assert torch.equal(sample.x[..., 0], sample.position + torch.tensor([[0], [1000]]))


def test_sample_in_training_differs_by_clip_and_step_and_repeats_under_the_seed():
    tokens, sampling = numbered(), RandomSampling(0.5)
    torch.manual_seed(3)
    first, second = sampling(tokens, torch.empty(0)).position, sampling(tokens, torch.empty(0)).position
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(sampling(tokens, torch.empty(0)).position, first)


def test_sample_in_evaluation_is_fixed_and_leaves_the_global_generator_alone():
    sampling = RandomSampling(0.5).eval()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    together = sampling(numbered(), torch.empty(0)).position
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(sampling(numbered(1), torch.empty(0)).position[0], together[0])
    assert torch.equal(together[0], together[1])
    assert not torch.equal(RandomSampling(0.5, seed=1).eval()(numbered(), torch.empty(0)).position, together)


def test_every_context_token_is_sampled_equally_often():
    torch.manual_seed(0)
    sampled = RandomSampling(0.5)(numbered(batch=4000), torch.empty(0)).position[:, 6:]
    counts = torch.bincount(sampled.flatten(), minlength=24).double()
    assert counts[12:18].sum() == 0
    # 2000 expected, standard deviation sqrt(4000 / 4) = 32: five of them.
    assert (counts[[*range(12), *range(18, 24)]] - 2000).abs().max() < 160


@pytest.mark.parametrize(
    ("rate", "message"), [(0, r"0 is outside \(0, 1\]"), (1.5, "1.5 is outside"), ([1, 0.5], "lists rates of blocks")]
)
def test_rate_that_is_no_single_share_is_an_error(rate, message):
    with pytest.raises(ValueError, match=f"keep_rate .*{message}"):
        check_rate(rate)


def test_random_sample_is_the_only_stage(tiny_model, tiny_batch):
    batch = tiny_batch()
    output = tiny_model(*choose("random", "model.keep_rate=0.5"))(batch.clips, batch.sizes)
    assert [kept.shape for kept in output.kept] == [(2, 36)]
    assert torch.equal(output.positions[:, FRAME:], output.kept[0])
    assert output.positions[:, :FRAME].tolist() == [KEYFRAME] * 2
