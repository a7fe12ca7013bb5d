"""Position codes: values, resizing, cache."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from evad.models.positions import GridPositions, sine_cosine_table


def test_table_values_by_hand():
    table = sine_cosine_table(3, 6)
    for p in range(3):
        scaled = [p, p / 10000 ** (2 / 6), p / 10000 ** (4 / 6)]
        expected = [wave(angle) for angle in scaled for wave in (math.sin, math.cos)]
        assert table[p].tolist() == torch.tensor(expected, dtype=torch.float64).float().tolist()
    assert table.dtype == torch.float32


def test_table_of_an_odd_width_ends_with_a_sine():
    assert (
        sine_cosine_table(2, 3)[1].tolist()
        == torch.tensor([math.sin(1), math.cos(1), math.sin(10000 ** (-2 / 3))]).tolist()
    )


def test_base_grid_reads_the_table_itself():
    positions = GridPositions(8, 2, (3, 4))
    assert torch.equal(positions((2, 3, 4)), sine_cosine_table(24, 8))


def test_other_grid_is_resized_slice_by_slice():
    positions = GridPositions(8, 2, (3, 4)).double()
    codes = positions((2, 5, 7)).view(2, 5, 7, 8)
    table = sine_cosine_table(24, 8).double().view(2, 3, 4, 8)
    for codes_of_slice, table_of_slice in zip(codes, table):
        resized = F.interpolate(table_of_slice.permute(2, 0, 1)[None], size=(5, 7), mode="bicubic", align_corners=False)
        torch.testing.assert_close(codes_of_slice, resized[0].permute(1, 2, 0), rtol=0, atol=1e-14)


def test_resized_table_is_kept_for_the_next_clip():
    positions = GridPositions(8, 2, (3, 4))
    assert positions((2, 5, 7)) is positions((2, 5, 7))
    assert positions((2, 5, 6)).shape == (60, 8)
    assert positions((2, 5, 7)).shape == (70, 8)


def test_resized_table_follows_type_and_device():
    positions = GridPositions(8, 2, (3, 4))
    single = positions((2, 5, 7))
    double = positions.double()((2, 5, 7))
    assert (single.dtype, double.dtype) == (torch.float32, torch.float64)
    assert positions.to("meta")((2, 5, 7)).device.type == "meta"


def test_resized_table_follows_another_table():
    positions = GridPositions(8, 2, (3, 4))
    positions((2, 5, 7))
    positions.replace(torch.zeros(24, 8))
    assert positions((2, 5, 7)).abs().max() == 0
    other = GridPositions(8, 2, (3, 4))
    other((2, 5, 7))
    other.load_state_dict(positions.state_dict())
    assert other((2, 5, 7)).abs().max() == 0


def test_copy_has_a_table_of_its_own():
    positions = GridPositions(8, 2, (3, 4))
    before = positions((2, 5, 7)).clone()
    copied = copy.deepcopy(positions).double()
    assert copied((2, 5, 7)).dtype == torch.float64
    assert torch.equal(positions((2, 5, 7)), before)


def test_inference_mode_leaves_nothing_behind_that_training_cannot_use():
    with torch.inference_mode():
        positions = GridPositions(8, 2, (3, 4)).double()
        positions((2, 5, 7))
    x = torch.ones(70, 8, dtype=torch.float64, requires_grad=True)
    (x + positions((2, 5, 7))).pow(2).sum().backward()
    torch.testing.assert_close(x.grad, 2 * (1 + positions((2, 5, 7)).clone()))


def test_sine_cosine_codes_are_no_weights():
    assert not GridPositions(8, 2, (3, 4)).state_dict()
    assert not list(GridPositions(8, 2, (3, 4)).parameters())


def test_clip_of_another_length_is_an_error():
    with pytest.raises(ValueError, match=r"3 temporal tokens, the position table 2: model.num_frames"):
        GridPositions(8, 2, (3, 4))((3, 3, 4))
