"""Dropped tokens that go on as one."""

import torch

from evad.models.pruning import KeyframePruning
from evad.models.reducers.fusion import FusingPruning, weighted_mean
from evad.models.tokens import Tokens

N1, N = 6, 24


def tokens_of():
    x = torch.randn(2, N, 4, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return Tokens.from_grid(x, (4, 2, 3))


def importance_of(*rows):
    """Keyframe 0, then the given numbers for the 18 context tokens."""
    return torch.tensor([[0.0] * N1 + list(row) for row in rows], dtype=torch.float64)


def test_weighted_mean_by_hand():
    x = torch.tensor([[[1.0, 10], [2, 20], [4, 40]], [[1.0, 0], [0, 1], [0, 0]]])
    weight = torch.tensor([[1.0, 1, 2], [3.0, 1, 0]])
    assert weighted_mean(x, weight).tolist() == [[2.75, 27.5], [0.75, 0.25]]
    assert weighted_mean(x, torch.zeros(2, 3)).tolist() == [[0, 0], [0, 0]]


def test_what_is_dropped_becomes_one_token_weighted_by_importance():
    tokens = tokens_of()
    # 23 of 24 stay at the first rate: only the least important leaves, which is then its own mean.
    importance = importance_of(range(18, 0, -1), [2, *range(3, 10), 1, *range(10, 19)])
    one = FusingPruning(0.95)(tokens, importance)
    assert one.position.shape == (2, 23)
    assert torch.equal(one.extra[:, 0], torch.stack([tokens.x[0, 23], tokens.x[1, N1 + 8]]))
    # 22 stay at the second: the two least important, 1 : 2.
    two = FusingPruning(0.9)(tokens, importance)
    expected = torch.stack(
        [(tokens.x[0, 23] + 2 * tokens.x[0, 22]) / 3, (tokens.x[1, N1 + 8] + 2 * tokens.x[1, N1]) / 3]
    )
    torch.testing.assert_close(two.extra[:, 0], expected, rtol=0, atol=1e-15)


def test_survivors_are_those_of_keyframe_centric_pruning():
    tokens = tokens_of()
    importance = torch.rand(2, N, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    plain, fused = (kind(0.5, 4)(tokens, importance) for kind in (KeyframePruning, FusingPruning))
    assert torch.equal(fused.on_grid().x, plain.x)
    assert torch.equal(fused.position, plain.position)


def test_every_stage_adds_a_token_behind_the_earlier_ones_and_counts_none():
    tokens = tokens_of()
    falling = torch.arange(N, 0, -1, dtype=torch.float64).expand(2, -1)
    first = FusingPruning(0.75)(tokens, falling)
    second = FusingPruning(0.75)(first, falling[:, : 18 + 1])
    assert (first.position.shape[1], second.position.shape[1]) == (18, 14)
    assert torch.equal(second.extra[:, :1], first.extra)
    torch.testing.assert_close(
        second.extra[:, 1], weighted_mean(first.on_grid().x[:, 14:], falling[:, 14:18]), rtol=0, atol=1e-15
    )


def test_nothing_dropped_nothing_fused():
    assert type(FusingPruning(0.99)(tokens_of(), torch.ones(2, N))) is Tokens


def test_gradient_of_the_fused_token_is_the_weight():
    tokens = tokens_of()
    tokens = tokens.with_features(tokens.x.requires_grad_())
    importance = importance_of(range(18, 0, -1), range(18, 0, -1)).requires_grad_()
    FusingPruning(0.9)(tokens, importance.detach()).extra.sum().backward()
    torch.testing.assert_close(tokens.x.grad[:, 22:, 0], torch.tensor([[2 / 3, 1 / 3]] * 2).double())
    assert tokens.x.grad[:, :22].abs().sum() == 0
