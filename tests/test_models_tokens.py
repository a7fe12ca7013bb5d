"""Tokens: dropping, reordering and restoring."""

from dataclasses import fields

import pytest
import torch

from evad.models.encoder import written_in_grid_order
from evad.models.reducers.dropped import DropRules, RememberingTokens
from evad.models.reducers.extra import with_extra
from evad.models.tokens import Tokens, complement

GRID = (4, 2, 3)  # T', H', W'
FRAME = 6


def numbered(batch=2, channels=2, grid=GRID):
    """Features that name their own clip and cell: (b, cell, channel) -> 1000 b + cell + channel / 10."""
    cells = grid[0] * grid[1] * grid[2]
    clip = 1000 * torch.arange(batch).view(-1, 1, 1)
    return (clip + torch.arange(cells).view(1, -1, 1) + torch.arange(channels) / 10).double()


@pytest.mark.parametrize(("slices", "keyframe"), [(1, 0), (2, 1), (3, 1), (4, 2), (8, 4)])
def test_keyframe_is_the_middle_slice_and_comes_first(slices, keyframe):
    tokens = Tokens.from_grid(numbered(grid=(slices, 2, 3)), (slices, 2, 3))
    first = keyframe * FRAME
    others = [cell for cell in range(slices * FRAME) if not first <= cell < first + FRAME]
    assert tokens.position.tolist() == [[*range(first, first + FRAME), *others]] * 2
    assert tokens.num_keyframe == FRAME


def test_tokens_of_a_grid_carry_their_own_features():
    x = numbered()
    tokens = Tokens.from_grid(x, GRID)
    for clip in range(2):
        assert torch.equal(tokens.x[clip], x[clip, tokens.position[clip]])


def test_keyframe_map_has_rows_and_columns_of_the_middle_slice():
    x = numbered()
    keyframe_map = Tokens.from_grid(x, GRID).keyframe_map()
    expected = x.unflatten(1, GRID)[:, 2].permute(0, 3, 1, 2)  # (B, H', W', C) -> (B, C, H', W')
    assert torch.equal(keyframe_map, expected)


def test_restore_of_a_complete_grid_is_the_grid():
    x = numbered()
    assert torch.equal(Tokens.from_grid(x, GRID).restore(torch.full((2,), -1.0)), x)


@pytest.mark.parametrize("kept", [0, 1, 10, 24])
def test_restore_puts_every_selected_token_in_its_place_and_fills_the_rest(kept):
    x = numbered()
    generator = torch.Generator().manual_seed(kept)
    index = torch.stack([torch.randperm(24, generator=generator)[:kept] for _ in range(2)])  # another subset per clip
    chosen = Tokens.from_grid(x, GRID).select(index)
    restored = chosen.restore(torch.tensor([-1.0, -2.0]))
    expected = torch.tensor([-1.0, -2.0]).double().expand(2, 24, 2).clone()
    for clip in range(2):
        cells = chosen.position[clip]
        expected[clip, cells] = x[clip, cells]
    assert torch.equal(restored, expected)


def test_restore_sends_gradients_to_kept_tokens_and_fill():
    x = numbered().requires_grad_()
    fill = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    tokens = Tokens.from_grid(x, GRID).select(torch.arange(10).expand(2, -1))
    tokens.restore(fill).sum().backward()
    assert fill.grad.tolist() == [2 * 14] * 2  # 14 dropped cells in each of two clips
    assert x.grad.sum() == 2 * 10 * 2


def test_select_context_keeps_the_whole_keyframe():
    tokens = Tokens.from_grid(numbered(), GRID).select_context(torch.tensor([[17, 0], [3, 4]]))
    keyframe = list(range(12, 18))
    assert tokens.position.tolist() == [[*keyframe, 23, 0], [*keyframe, 3, 4]]
    assert torch.equal(tokens.x[1, :, 0], 1000 + tokens.position[1].double())


def test_selections_compose():
    x = numbered()
    first = Tokens.from_grid(x, GRID).select_context(torch.tensor([[5, 1, 9, 13]] * 2))
    second = first.select_context(torch.tensor([[3, 0]] * 2))
    assert second.position[0, FRAME:].tolist() == [19, 5]
    assert torch.equal(second.x[:, FRAME:], x[:, [19, 5]])


def test_released_order_assigns_context_positions_ascending_and_leaves_features():
    tokens = Tokens.from_grid(numbered(), GRID).select_context(torch.tensor([[17, 0, 5], [3, 4, 1]]))
    reassigned = written_in_grid_order(tokens)
    keyframe = list(range(12, 18))
    assert reassigned.position.tolist() == [[*keyframe, 0, 5, 23], [*keyframe, 1, 3, 4]]
    assert torch.equal(reassigned.x, tokens.x)


def test_grid_order_puts_tokens_and_features_in_order_behind_the_keyframe():
    tokens = Tokens.from_grid(numbered(), GRID).select_context(torch.tensor([[17, 0, 5], [3, 4, 1]]))
    ordered = tokens.in_grid_order()
    keyframe = list(range(12, 18))
    assert ordered.position.tolist() == [[*keyframe, 0, 5, 23], [*keyframe, 1, 3, 4]]
    assert torch.equal(ordered.x, numbered()[torch.arange(2)[:, None], ordered.position])
    shuffled = Tokens.from_grid(numbered(), GRID).select(torch.tensor([[7, 3, 0], [2, 1, 23]]))
    assert shuffled.in_grid_order().position.tolist() == [[12, 15, 1], [13, 14, 23]]


@pytest.mark.parametrize(
    ("index", "count", "expected"),
    [([[3, 0], [1, 2]], 5, [[1, 2, 4], [0, 3, 4]]), ([[], []], 2, [[0, 1]] * 2), ([[1, 0]], 2, [[]])],
)
def test_complement_is_the_rest_in_ascending_order(index, count, expected):
    assert complement(torch.tensor(index, dtype=torch.int64), count).tolist() == expected


def test_core_tokens_hold_features_positions_and_grid_alone():
    assert [field.name for field in fields(Tokens)] == ["x", "position", "grid"]


KINDS = {
    "plain": lambda tokens: tokens,
    "remembering": lambda tokens: DropRules("keep", "all").first(numbered(), GRID),
}


@pytest.mark.parametrize("kind", KINDS)
def test_extra_tokens_are_in_the_sequence_and_nowhere_else(kind):
    tokens = KINDS[kind](Tokens.from_grid(numbered(), GRID))
    extra = torch.full((2, 1, 2), -7.0, dtype=torch.float64)
    longer = with_extra(with_extra(tokens, extra), 2 * extra)
    assert torch.equal(longer.x, torch.cat([tokens.x, extra, 2 * extra], dim=1))
    assert torch.equal(longer.extra, torch.cat([extra, 2 * extra], dim=1))
    assert torch.equal(longer.position, tokens.position)
    index = torch.tensor([[17, 0], [3, 4]])
    chosen, plain = longer.select_context(index), tokens.select_context(index)
    assert torch.equal(chosen.extra, longer.extra)
    assert torch.equal(chosen.on_grid().restore(extra[0, 0]), plain.restore(extra[0, 0]))
    assert torch.equal(chosen.in_grid_order().extra, longer.extra)
    assert torch.equal(longer.keyframe_map(), tokens.keyframe_map())
    rules = DropRules("keep", "all" if kind == "remembering" else "preserved")
    assert type(rules.last(chosen)) is Tokens
    assert torch.equal(rules.last(chosen).x, rules.last(plain).x)


def test_dropped_tokens_are_held_as_they_were():
    rules = DropRules(decoder_input="all")
    tokens = rules.first(numbered(), GRID)
    first = tokens.select_context(torch.tensor([[*range(1, 18)], [*range(17)]]))
    second = first.with_features(10 * first.x).select_context(torch.tensor([[*range(16)]] * 2))
    assert second.dropped.position.tolist() == [[0, 23], [23, 22]]
    expected = torch.tensor([[0, 230], [1023, 10220]]).double()
    assert torch.equal(second.dropped.x[..., 0], expected)
    complete = rules.last(second)
    assert complete.position.sort(1).values.tolist() == [list(range(24))] * 2
    nothing = torch.full((2,), -1.0)
    assert (complete.restore(nothing) >= 0).all()


def test_dropped_tokens_that_are_not_held_are_an_error():
    tokens = RememberingTokens.from_grid(numbered(), GRID)
    assert tokens.select_context(torch.tensor([[0], [1]])).dropped is None
    with pytest.raises(ValueError, match=r"are not stored: make the tokens with DropRules\(decoder_input='all'\)"):
        tokens.with_dropped()


def test_the_papers_rules_make_plain_tokens():
    tokens = DropRules().first(numbered(), GRID)
    assert type(tokens) is Tokens
    assert DropRules().last(tokens) is tokens


def test_unified_selection_may_drop_keyframe_tokens_whose_last_value_stays_in_the_map():
    tokens = DropRules("unified").first(numbered(), GRID)
    assert (tokens.num_protected, tokens.num_keyframe) == (0, 6)
    left = tokens.select_context(torch.tensor([[1, 2, 3, 4, 5, 9], [0, 2, 4, 6, 8, 10]]))
    later = left.with_features(10 * left.x)
    assert later.in_keyframe().sum(1).tolist() == [5, 3]
    keyframe = later.keyframe_map()[:, 0].flatten(1)  # (B, C, H', W') -> (B, N1)
    assert keyframe.tolist() == [[12, 130, 140, 150, 160, 170], [10120, 1013, 10140, 1015, 10160, 1017]]


def test_shuffled_context_tokens_are_classified_alike(tiny_model, tiny_batch):
    branch, batch = tiny_model().classification, tiny_batch()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 96, 24, generator=generator, dtype=torch.float64)
    boxes = torch.tensor([[[4.0, 3, 20, 30], [10, 2, 45, 20], [-4, 5, 12, 60]]] * 2, dtype=torch.float64)
    tokens = Tokens.from_grid(x, (4, 4, 6)).select_context(torch.arange(0, 60, 2).expand(2, -1))
    shuffled = tokens.select_context(torch.stack([torch.randperm(30, generator=generator) for _ in range(2)]))
    features, logits = branch(tokens, boxes, batch.sizes)
    features_shuffled, logits_shuffled = branch(shuffled, boxes, batch.sizes)
    assert torch.equal(features, features_shuffled)
    torch.testing.assert_close(logits, logits_shuffled, rtol=0, atol=1e-12)
