"""Token pruning: scores of Eq. 1, how many tokens survive, and which."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from evad.models.encoder import rate_per_block
from evad.models.pruning import KeyframePruning, attentiveness, num_kept
from evad.models.tokens import Tokens

HEADS, DIM, N1, N = 3, 5, 6, 24


def queries_and_keys(dtype=torch.float64, n=N, seed=0):
    generator = torch.Generator().manual_seed(seed)
    query, key = torch.randn(2, 2, HEADS, n, DIM, generator=generator, dtype=torch.float64)
    return query.to(dtype), key.to(dtype)


def tokens_of(n_slices=4):
    x = torch.randn(2, n_slices * N1, 4, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return Tokens.from_grid(x, (n_slices, 2, 3))


def survivors(pruning, tokens, query, key):
    """What a block with this attention does to its tokens, in grid order."""
    return ranked_survivors(pruning, tokens, query, key).in_grid_order()


def ranked_survivors(pruning, tokens, query, key):
    """The same, best first."""
    _, importance = pruning.attend(query, key, key, tokens)
    return pruning(tokens, importance)


def keyframe_weight(w_kf, n=N):
    return torch.tensor([w_kf] * N1 + [1.0] * (n - N1), dtype=torch.float64).expand(2, -1)


def explicit_attentiveness(query, key, w_kf):
    """Eq. 1 with the whole N x N attention of every head."""
    attention = (query @ key.transpose(2, 3) / DIM**0.5).softmax(-1)  # (B, heads, N, N)
    enhanced = attention.mean(dim=1)  # over heads
    enhanced[:, :N1] *= w_kf  # rows of keyframe queries
    return enhanced.mean(dim=1)


@pytest.mark.parametrize("w_kf", [1, 4, 0.5])
@pytest.mark.parametrize("chunk", [1, 7, 24, 256])
def test_importance_is_that_of_equation_1(w_kf, chunk):
    query, key = queries_and_keys()
    scores = attentiveness(query, key, keyframe_weight(w_kf), chunk)
    torch.testing.assert_close(scores, explicit_attentiveness(query, key, w_kf), rtol=0, atol=1e-15)


def test_importances_of_one_clip_sum_to_one():
    query, key = queries_and_keys()
    torch.testing.assert_close(attentiveness(query, key).sum(1), torch.ones(2, dtype=torch.float64))


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor any operation returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_iter(out) if isinstance(leaf, torch.Tensor)]
        self.numel = max([self.numel, *sizes])
        return out


@pytest.mark.parametrize(("options", "chunk"), [({"chunk": 16}, 16), ({}, 256)], ids=["given", "default"])
@pytest.mark.parametrize(("device", "maps"), [("cpu", 1), ("cuda", 2 * HEADS)])
def test_memory_of_scores_grows_with_chunk_not_with_tokens(options, chunk, device, maps):
    """A CPU holds a chunk of one head's attention map, other devices one of every head's."""
    if device == "cuda" and not torch.cuda.is_available() and torch.__version__ < (2, 10):
        pytest.skip("fake CUDA tensors of torch 2.9 need a driver")
    with FakeTensorMode():  # shapes only: needs no such device
        query, key = torch.empty(2, 2, HEADS, 600, DIM, device=device)
        with LargestTensor() as largest:
            attentiveness(query, key, **options)
    assert largest.numel == max(maps * chunk * 600, 2 * HEADS * 600 * DIM)


@pytest.mark.parametrize("gradients", [True, False], ids=["training", "inference"])
def test_block_holds_no_attention_matrix_of_all_heads(gradients):
    query, key = queries_and_keys(n=600)
    with torch.set_grad_enabled(gradients), LargestTensor() as largest:
        KeyframePruning(0.5).attend(query, key, key, tokens_of(100))
    assert largest.numel < HEADS * 600 * 600


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("w_kf", [1, 4])
def test_inference_scores_and_attends_like_training(dtype, w_kf):
    query, key = queries_and_keys(dtype)
    value = queries_and_keys(dtype, seed=1)[0]
    pruning = KeyframePruning(0.5, w_kf)
    trained, scores = pruning.attend(query, key, value, tokens_of())
    with torch.no_grad():
        inferred, inferred_scores = pruning.attend(query, key, value, tokens_of())
    tolerance = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 0.02}[dtype]
    torch.testing.assert_close(inferred, trained, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(inferred_scores, scores, rtol=0, atol=1e-14)
    torch.testing.assert_close(trained.double(), explicit_attention(query, key, value), rtol=0, atol=tolerance)


def explicit_attention(query, key, value):
    return (query.double() @ key.double().transpose(2, 3) / DIM**0.5).softmax(-1) @ value.double()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_scores_are_at_least_float32(dtype):
    assert attentiveness(*queries_and_keys(dtype)).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_autocast_does_not_round_the_scores(dtype):
    query, key = queries_and_keys(dtype)
    expected = attentiveness(query, key, keyframe_weight(4.0), 7)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attentiveness(query, key, keyframe_weight(4.0), 7), expected)


@pytest.mark.parametrize(
    ("keep_rate", "tokens", "keyframe", "kept"),
    [
        (0.7, 1568, 196, 1098 - 196),  # ViT at 224: ceil(1097.6)
        (0.7, 1098, 196, 769 - 196),
        (0.7, 769, 196, 539 - 196),  # 34 % of 1568 after three stages
        (1.0, 24, 6, 18),
        (0.25, 24, 6, 0),  # just the keyframe
        (0.26, 24, 6, 1),
    ],
)
def test_kept_tokens_are_rounded_up(keep_rate, tokens, keyframe, kept):
    assert num_kept(keep_rate, tokens, keyframe) == kept


def test_keyframe_that_does_not_fit_is_an_error_naming_both_numbers():
    with pytest.raises(ValueError, match=r"keep_rate 0.2 keeps 5 of 24 tokens, but the keyframe alone has 6: raise"):
        num_kept(0.2, 24, 6)


def test_too_low_keep_rate_is_an_error_of_the_detector(tiny_model, tiny_batch):
    batch = tiny_batch()
    with pytest.raises(ValueError, match=r"keep_rate 0.5 keeps 12 of 24 tokens, but the keyframe alone has 24"):
        tiny_model("model.keep_rate=0.5")(batch.clips, batch.sizes)


def test_keyframe_survives_and_best_context_follows_in_space_time_order():
    tokens, (query, key) = tokens_of(), queries_and_keys()
    kept = survivors(KeyframePruning(0.5, w_kf=4), tokens, query, key)
    scores = explicit_attentiveness(query, key, 4)
    for clip in range(2):
        best = sorted(range(N1, N), key=lambda i: -scores[clip, i].item())[: 12 - N1]
        expected = [*range(N1), *sorted(best)]
        assert torch.equal(kept.x[clip], tokens.x[clip, expected])
        assert torch.equal(kept.position[clip], tokens.position[clip, expected])


def test_keyframe_survives_even_where_nothing_attends_to_it():
    tokens, (query, key) = tokens_of(), queries_and_keys()
    query, key = query.abs(), key.abs()
    key[:, :, :N1] *= -10
    kept = survivors(KeyframePruning(0.5), tokens, query, key)
    assert torch.equal(kept.position[:, :N1], tokens.position[:, :N1])


def test_survivors_come_best_first_behind_the_keyframe():
    tokens, (query, key) = tokens_of(), queries_and_keys()
    ranked = ranked_survivors(KeyframePruning(0.6), tokens, query, key)
    assert torch.equal(ranked.position[:, :N1], tokens.position[:, :N1])
    scores = torch.zeros(2, N, dtype=torch.float64)
    scores.scatter_(1, tokens.position, explicit_attentiveness(query, key, 1))
    falling = scores.gather(1, ranked.position)[:, N1:]
    assert (falling.diff(dim=1) <= 0).all()
    assert (ranked.position[:, N1:].diff(dim=1) < 0).any()


def test_encoder_alone_puts_survivors_in_order(tiny_model, tiny_batch):
    """Both orders keep the same tokens; only the score order hands them on best first."""
    by_position, by_score = (
        tiny_model(f"model.context_order={order}").encoder(tiny_batch().clips) for order in ("position", "score")
    )
    for ordered, ranked in zip(by_position.kept, by_score.kept, strict=True):
        assert (ordered[:, 24:].diff(dim=1) > 0).all()
        assert torch.equal(ordered, torch.cat([ranked[:, :24], ranked[:, 24:].sort(dim=1).values], dim=1))
        assert not torch.equal(ordered, ranked)


def test_keyframe_weight_changes_which_tokens_survive():
    tokens, (query, key) = tokens_of(), queries_and_keys()
    one, eight = (survivors(KeyframePruning(0.5, w_kf), tokens, query, key).position for w_kf in (1, 8))
    assert not torch.equal(one, eight)


def test_no_gradient_flows_through_the_choice():
    tokens, (query, key) = tokens_of(), queries_and_keys()
    tokens = tokens.with_features(tokens.x.requires_grad_())
    query.requires_grad_()
    key.requires_grad_()
    kept = survivors(KeyframePruning(0.5), tokens, query, key)
    kept.x.sum().backward()
    assert query.grad is None
    assert key.grad is None
    assert not attentiveness(query, key).requires_grad
    assert tokens.x.grad.sum() == 2 * 12 * 4


def test_pruning_adds_no_weight(tiny_model):
    pruned, complete = tiny_model("model.keep_rate=0.8"), tiny_model("model.keep_rate=1")
    assert not KeyframePruning(0.5).state_dict()
    assert pruned.state_dict().keys() == complete.state_dict().keys()


@pytest.mark.parametrize("keep_rate", [0, 1.2, -0.5])
def test_keep_rate_outside_its_range_is_an_error(keep_rate):
    with pytest.raises(ValueError, match=rf"keep_rate {keep_rate} is outside \(0, 1\]"):
        KeyframePruning(keep_rate)


def test_unknown_order_is_an_error(tiny_model):
    with pytest.raises(ValueError, match="context_order 'random' is neither 'position' nor 'score'"):
        tiny_model().encoder.set_context_order("random")


@pytest.mark.parametrize("w_kf", [1, 4])
def test_sums_of_half_precision_attention_are_those_of_its_inputs(w_kf):
    """Nothing on the way is rounded to bfloat16: neither logits nor probabilities."""
    query, key = (torch.randn(2, 2, 3, 600, 64, generator=torch.Generator().manual_seed(0))).bfloat16()
    exact = attentiveness(query.double(), key.double(), keyframe_weight(w_kf, 600))
    for gradients in (True, False):  # two ways to the same scores
        with torch.set_grad_enabled(gradients):
            _, importance = KeyframePruning(0.5, w_kf).attend(query, key, key, tokens_of(100))
        assert ((importance - exact) / exact).abs().max() < 1e-5


def test_one_rate_holds_at_the_pruning_blocks():
    assert rate_per_block(0.7, 5, [2, 4]) == [1, 0.7, 1, 0.7, 1]
    assert rate_per_block(1, 2, []) == [1, 1]


def test_listed_rates_hold_at_their_blocks(tiny_model, tiny_batch):
    model, batch = tiny_model("model.keep_rate=[1,0.9,1,1,0.5,1]"), tiny_batch()
    output = model(batch.clips, batch.sizes)
    assert [block.pruning is None for block in model.encoder.blocks] == [True, False, True, True, False, True]
    # 96 tokens, 24 of the keyframe: ceil(86.4) = 87, ceil(43.5) = 44
    assert [kept.shape for kept in output.kept] == [(2, 87), (2, 44)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.7, 4, [5]), r"prune_blocks \[5\] do not lie within the 4 blocks"),
        ((0.7, 4, [0]), r"prune_blocks \[0\] do not lie within the 4 blocks"),
        (([1, 0.5], 4, []), "keep_rate lists 2 values, but the encoder has 4 blocks"),
        (([1, 1.5], 2, []), r"keep_rate \[1, 1.5\] is outside \(0, 1\]"),
        ((0.0, 4, [2]), r"keep_rate 0.0 is outside \(0, 1\]"),
    ],
)
def test_rates_that_fit_no_encoder_are_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        rate_per_block(*arguments)
