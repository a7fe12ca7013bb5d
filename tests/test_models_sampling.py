"""Dropping before the first block: at random, or where pixels change least."""

import pytest
import torch

from evad.models.reducers.dropped import DropRules
from evad.models.reducers.pixel_difference import PixelDifferenceSampling, pixel_differences
from evad.models.reducers.random import RandomSampling, fixed_priority, num_sampled
from evad.models.tokens import Tokens

NO_PIXELS = torch.empty(0)


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
        sample = RandomSampling(0.5)(tokens, NO_PIXELS)
        assert sample.position.shape == (2, 6 + 9)
        assert torch.equal(sample.position[:, :6], tokens.position[:, :6])
        assert (sample.position[:, 6:].diff(dim=1) > 0).all()
        assert torch.equal(sample.x[..., 0], sample.position + torch.tensor([[0], [1000]]))


def test_sample_in_training_differs_by_clip_and_step_and_repeats_under_the_seed():
    tokens, sampling = numbered(), RandomSampling(0.5)
    torch.manual_seed(3)
    first, second = sampling(tokens, NO_PIXELS).position, sampling(tokens, NO_PIXELS).position
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(sampling(tokens, NO_PIXELS).position, first)


def test_sample_in_evaluation_is_fixed_and_leaves_the_global_generator_alone():
    sampling = RandomSampling(0.5).eval()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    together = sampling(numbered(), NO_PIXELS).position
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(sampling(numbered(1), NO_PIXELS).position[0], together[0])
    assert torch.equal(together[0], together[1])
    assert not torch.equal(RandomSampling(0.5, seed=1).eval()(numbered(), NO_PIXELS).position, together)


def test_every_context_token_is_sampled_equally_often():
    torch.manual_seed(0)
    sampled = RandomSampling(0.5)(numbered(batch=4000), NO_PIXELS).position[:, 6:]
    counts = torch.bincount(sampled.flatten(), minlength=24).double()
    assert counts[12:18].sum() == 0
    # 2000 expected, standard deviation sqrt(4000 / 4) = 32: five of them.
    assert (counts[[*range(12), *range(18, 24)]] - 2000).abs().max() < 160


@pytest.mark.parametrize(
    ("rate", "message"), [(0, r"0 is outside \(0, 1\]"), (1.5, "1.5 is outside"), ([1, 0.5], "lists rates of blocks")]
)
def test_rate_that_is_no_single_share_is_an_error(rate, message):
    with pytest.raises(ValueError, match=f"keep_rate .*{message}"):
        RandomSampling(rate)


def clip_of(*slices):
    """One clip of 2 x 2 x 3 cubes of 2 x 4 x 4 pixels from arrays (rows, columns) of cube values, one per slice."""
    cubes = torch.tensor(slices, dtype=torch.float64)  # (T', H', W')
    frames = cubes.repeat_interleave(2, 0).repeat_interleave(4, 1).repeat_interleave(4, 2)
    return frames.expand(1, 3, *frames.shape)


def test_cubes_differ_from_the_slice_nearer_to_the_keyframe():
    """Of four slices the third is the keyframe: 0 looks at 1, 1 at 2, 3 at 2."""
    clip = clip_of([[0, 0, 0], [0, 0, 9]], [[1, 0, 0], [0, 0, 9]], [[1, 2, 0], [0, 0, 9]], [[1, 2, -3], [4, 0, 9]])
    expected = [[1, 0, 0, 0, 0, 0], [0, 2, 0, 0, 0, 0], [0, 0, 3, 4, 0, 0]]
    assert pixel_differences(clip, (4, 2, 3)).unflatten(1, (3, 6)).tolist() == [expected]


def test_difference_is_the_mean_over_the_pixels_and_colours_of_a_cube():
    clip = torch.zeros(1, 3, 4, 8, 12, dtype=torch.float64)
    clip[0, 1, 0, 5, 9] = -96.0  # first slice, second row, third column; a cube has 3 * 2 * 4 * 4 = 96 values
    assert pixel_differences(clip, (2, 2, 3)).tolist() == [[0, 0, 0, 0, 0, 1]]


def test_most_changing_tokens_stay_and_the_first_of_equal_ones():
    clip = clip_of([[0, 0, 0], [0, 0, 9]], [[1, 0, 0], [0, 0, 9]], [[1, 2, 0], [0, 0, 9]], [[1, 2, -3], [4, 0, 9]])
    tokens = numbered(batch=1)
    for rate, kept in [(3 / 18, [7, 20, 21]), (4 / 18, [0, 7, 20, 21]), (6 / 18, [0, 1, 2, 7, 20, 21])]:
        sample = PixelDifferenceSampling(rate)(tokens, clip)
        assert sample.position.tolist() == [[*range(12, 18), *kept]]
        assert torch.equal(sample.x[0, :, 0], sample.position[0].double())


def test_unified_pruning_has_nothing_to_compare_the_keyframe_with():
    tokens = DropRules("unified").first(torch.zeros(1, 24, 1), (4, 2, 3))
    with pytest.raises(ValueError, match=r"use model.keyframe=keep with model/pruning=pixel_difference"):
        PixelDifferenceSampling(0.5)(tokens, torch.zeros(1, 3, 8, 8, 12))


def test_random_sample_may_leave_out_keyframe_tokens_under_unified_pruning():
    torch.manual_seed(0)
    tokens = DropRules("unified").first(torch.zeros(500, 24, 1), (4, 2, 3))
    sample = RandomSampling(0.5)(tokens, NO_PIXELS)
    assert sample.position.shape == (500, 12)
    counts = torch.bincount(sample.position.flatten(), minlength=24)
    assert (counts - 250).abs().max() < 56  # five standard deviations of sqrt(500 / 4)


@pytest.mark.parametrize("seed", [0, 12345])
def test_fixed_priority_is_what_torch_draws_after_seeding(seed):
    expected = torch.rand(1372, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(fixed_priority(1372, seed), expected)
