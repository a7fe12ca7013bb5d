"""Pruning by one learnable token."""

import pytest
import torch

from evad.models.reducers.cls_token import ClassToken, ClassTokenPruning
from evad.models.tokens import Tokens

HEADS, DIM, N1, N = 3, 5, 6, 24


def tokens_of():
    x = torch.randn(2, N, 4, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return Tokens.from_grid(x, (4, 2, 3))


def test_class_token_joins_the_sequence_last_and_has_one_weight_per_channel():
    token = ClassToken(4).double()
    assert [(name, p.shape) for name, p in token.named_parameters()] == [("token", (4,))]
    assert token.token.std() > 0
    tokens = tokens_of()
    entered = token(tokens, torch.empty(0))
    assert torch.equal(entered.on_grid().x, tokens.x)
    assert torch.equal(entered.x, torch.cat([tokens.x, token.token.expand(2, 1, 4)], dim=1))


@pytest.mark.parametrize("gradients", [True, False], ids=["training", "inference"])
def test_row_of_the_class_token_alone_decides(gradients):
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 2, HEADS, N + 1, DIM, generator=generator, dtype=torch.float64)
    tokens = ClassToken(4).double()(tokens_of(), torch.empty(0))
    pruning = ClassTokenPruning(0.5)
    with torch.set_grad_enabled(gradients):
        attended, importance = pruning.attend(query, key, value, tokens)
        kept = pruning(tokens, importance)
    matrix = (query @ key.transpose(2, 3) / DIM**0.5).softmax(-1)  # (B, heads, N + 1, N + 1)
    torch.testing.assert_close(attended, matrix @ value, rtol=0, atol=1e-14)
    row = matrix[:, :, -1].mean(dim=1)
    torch.testing.assert_close(importance, row, rtol=0, atol=1e-15)
    for clip in range(2):
        best = sorted(range(N1, N), key=lambda i: -row[clip, i].item())[: 12 - N1]
        expected = [*range(N1), *best]
        assert torch.equal(kept.position[clip], tokens.position[clip, expected])
    assert torch.equal(kept.extra, tokens.extra)


def test_other_queries_have_no_say():
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 2, HEADS, N + 1, DIM, generator=generator, dtype=torch.float64)
    tokens = ClassToken(4).double()(tokens_of(), torch.empty(0))
    _, before = ClassTokenPruning(0.5).attend(query, key, key, tokens)
    query[:, :, :-1] *= -3
    _, after = ClassTokenPruning(0.5).attend(query, key, key, tokens)
    assert torch.equal(before, after)


def test_pruning_without_a_class_token_is_an_error():
    query = torch.zeros(2, HEADS, N, DIM)
    with pytest.raises(ValueError, match=r"no class token to prune by: choose model/pruning=cls_token"):
        ClassTokenPruning(0.5).attend(query, query, query, tokens_of())
