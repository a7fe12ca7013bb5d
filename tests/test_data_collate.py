"""Collate: clips of different sizes in one padded batch."""

import pytest
import torch

from evad.data.clips.collate import PaddingCollate
from evad.structures import Clip, Target


def clip(index, height, width, people):
    return Clip(
        frames=torch.randn(3, 2, height, width, generator=torch.Generator().manual_seed(index)),
        target=Target(boxes=torch.full((people, 4), float(index)), labels=torch.ones(people, 5)),
        keyframe=torch.tensor(index),
        original_size=torch.tensor([10 * height, 10 * width]),
    )


def test_clips_are_padded_right_and_bottom_with_zero():
    clips = [clip(7, 20, 40, people=2), clip(3, 33, 24, people=0)]
    batch = PaddingCollate(multiple=32)(clips)
    assert batch.clips.shape == (2, 3, 2, 64, 64)
    assert batch.sizes.tolist() == [[20, 40], [33, 24]]
    for padded, one in zip(batch.clips, clips):
        height, width = one.frames.shape[2:]
        assert torch.equal(padded[..., :height, :width], one.frames)
        assert padded[..., height:, :].abs().sum() == padded[..., width:].abs().sum() == 0
    assert batch.keyframes.tolist() == [7, 3]
    assert batch.original_sizes.tolist() == [[200, 400], [330, 240]]
    assert batch.sizes.dtype == batch.keyframes.dtype == batch.original_sizes.dtype == torch.int64
    assert [len(target.boxes) for target in batch.targets] == [2, 0]
    assert batch.targets[0].labels.shape == (2, 5)


@pytest.mark.parametrize(("multiple", "padded"), [(1, (20, 40)), (16, (32, 48)), (20, (20, 40))])
def test_multiple_decides_the_padded_size(multiple, padded):
    assert PaddingCollate(multiple)([clip(0, 20, 40, 1)]).clips.shape[3:] == padded


def test_size_that_fits_is_not_padded():
    one = clip(0, 64, 32, 1)
    assert torch.equal(PaddingCollate(32)([one]).clips[0], one.frames)
