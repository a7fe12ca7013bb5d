"""Merging of tokens with similar keys."""

import pytest
import torch

from evad.config import load_config
from evad.models.reducers.dropped import DropRules, as_kind
from evad.models.reducers.merging import MergedTokens, MergingPruning, join, merge_most_similar, rounds
from evad.models.tokens import Tokens
from evad.runs.build import build_model

N1, N = 6, 24


def tokens_of(keyframe="keep"):
    x = torch.randn(2, N, 4, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return DropRules(keyframe).first(x, (4, 2, 3))


def distinct_keys(seed=0):
    return torch.randn(2, N, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_joined_rows_by_hand():
    x = torch.tensor([[[1.0], [10], [100], [1000]]], dtype=torch.float64)
    size = torch.tensor([[1.0, 2, 1, 1]], dtype=torch.float64)
    joined = join(x, size, torch.tensor([[0, 2]]), torch.tensor([[1, 1]]))
    assert joined.tolist() == [[[1], [(1 + 2 * 10 + 100) / 4], [100], [1000]]]


@pytest.mark.parametrize(
    ("tokens", "kept", "expected"),
    [(18, 12, [6]), (18, 9, [9]), (18, 4, [9, 4, 1]), (5, 1, [2, 1, 1]), (18, 18, []), (18, 0, []), (1, 1, [])],
)
def test_rounds_merge_at_most_half(tokens, kept, expected):
    assert rounds(tokens, kept) == expected
    assert kept == 0 or tokens - sum(rounds(tokens, kept)) == kept


def test_most_similar_pair_merges_at_the_place_of_the_second():
    """Keys that point along different axes but for one pair: context tokens 4 and 9, at even and odd places."""
    tokens = tokens_of()
    keys = torch.eye(N, dtype=torch.float64).expand(2, -1, -1).clone()
    keys[:, N1 + 4] = 3 * keys[:, N1 + 9]  # length is no matter
    merged = MergingPruning(23 / 24)(tokens, keys)
    left = [i for i in range(N) if i != N1 + 4]
    assert torch.equal(merged.position, tokens.position[:, left])
    expected = tokens.x.clone()
    expected[:, N1 + 9] = (tokens.x[:, N1 + 4] + tokens.x[:, N1 + 9]) / 2
    torch.testing.assert_close(merged.x, expected[:, left], rtol=0, atol=1e-15)
    assert merged.size.tolist() == [[1.0] * 14 + [2.0] + [1.0] * 8] * 2
    untouched = [i for i in range(N - 1) if i != 14]
    assert torch.equal(merged.x[:, untouched], expected[:, left][:, untouched])


def test_sizes_weigh_the_means_of_later_stages():
    tokens, keys = tokens_of(), torch.eye(N, dtype=torch.float64).expand(2, -1, -1).clone()
    keys[:, N1 + 4] = keys[:, N1 + 9]
    first = MergingPruning(23 / 24)(tokens, keys)
    # Of the 17 left, the merged one is at place 8 and joins place 1.
    later = torch.eye(N - 1, dtype=torch.float64).expand(2, -1, -1).clone()
    later[:, N1 + 8] = later[:, N1 + 1]
    second = MergingPruning(22 / 23)(first, later)
    mean = (tokens.x[:, N1 + 1] + tokens.x[:, N1 + 4] + tokens.x[:, N1 + 9]) / 3
    torch.testing.assert_close(second.x[:, N1 + 1], mean, rtol=0, atol=1e-15)
    assert second.size[:, N1 + 1].tolist() == [3, 3]


@pytest.mark.parametrize("keep_rate", [0.9, 0.6, 0.5, 0.4, 0.3])
def test_count_falls_as_the_keep_rate_says_and_the_total_is_conserved(keep_rate):
    tokens = tokens_of()
    merged = MergingPruning(keep_rate)(tokens, distinct_keys())
    assert merged.position.shape == (2, -(-keep_rate * N // 1))
    assert torch.equal(merged.x[:, :N1], tokens.x[:, :N1])
    assert (merged.size[:, :N1] == 1).all()
    assert (merged.position[:, N1:].diff(dim=1) > 0).all()
    assert merged.size.sum(1).tolist() == [N, N]
    total = (merged.x * merged.size.unsqueeze(2)).sum(1)
    torch.testing.assert_close(total, tokens.x.sum(1), rtol=0, atol=1e-13)


def test_nothing_to_merge_into_drops_all():
    merged = MergingPruning(0.25)(tokens_of(), distinct_keys())
    assert torch.equal(merged.position, tokens_of().position[:, :N1])


def test_keyframe_tokens_merge_under_unified_pruning_only():
    keys = torch.eye(N, dtype=torch.float64).expand(2, -1, -1).clone()
    keys[:, 2] = keys[:, 3]
    unified = MergingPruning(23 / 24)(tokens_of("unified"), keys)
    assert tokens_of().position[0, 2] not in unified.position
    assert torch.equal(unified.dropped.x[:, 0], tokens_of().x[:, 2])  # as it left
    kept = MergingPruning(23 / 24)(tokens_of(), keys)
    assert torch.equal(kept.x[:, :N1], tokens_of().x[:, :N1])


def test_merged_token_is_attended_to_as_its_cells_would_be():
    """Two equal tokens, or one of size two, give the others the same attention."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, N, 5, generator=generator, dtype=torch.float64)
    key[:, :, 7], value[:, :, 7] = key[:, :, 6], value[:, :, 6]
    apart = MergingPruning(0.5).attend(query, key, value, Tokens.from_grid(torch.zeros(1, N, 4), (4, 2, 3)))[0]
    left = [i for i in range(N) if i != 6]
    merged = Tokens.from_grid(torch.zeros(1, N, 4), (4, 2, 3))
    size = torch.ones(1, N, dtype=torch.float64)
    size[:, 7] = 2
    merged = as_kind(MergedTokens, merged, size=size).select(torch.tensor([left]))
    query, key, value = (part[:, :, left] for part in (query, key, value))
    together = MergingPruning(0.5).attend(query, key, value, merged)[0]
    torch.testing.assert_close(together, apart[:, :, left], rtol=0, atol=1e-14)


def test_no_gradient_flows_through_the_matching():
    tokens = tokens_of()
    tokens = tokens.with_features(tokens.x.requires_grad_())
    query = torch.randn(2, 3, N, 5, dtype=torch.float64, requires_grad=True)
    _, keys = MergingPruning(0.5).attend(query, query, query, tokens)
    assert not keys.requires_grad
    merged = MergingPruning(0.5)(tokens, keys)
    (merged.x * merged.size.unsqueeze(2)).sum().backward()
    torch.testing.assert_close(tokens.x.grad, torch.ones_like(tokens.x), rtol=0, atol=1e-14)


def test_one_round_returns_keys_merged_like_the_tokens():
    tokens = tokens_of()
    tokens = as_kind(MergedTokens, tokens, size=torch.ones(2, N, dtype=torch.float64))
    merged, keys = merge_most_similar(tokens, tokens.x[:, N1:], 5)
    torch.testing.assert_close(keys, merged.x[:, N1:], rtol=0, atol=1e-15)


def test_score_order_of_loaded_weights_is_refused():
    """Else the run's own configuration could not be built again."""
    model = build_model(load_config(["experiment=mini", "model/pruning=tome_merging"]))
    with pytest.raises(ValueError, match="context_order 'score': the tokens of MergingPruning have no score"):
        model.encoder.set_context_order("score")
    assert model.encoder.context_order == "position"
