"""Transforms: the released preprocessing, exact flips, seeded randomness."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from evad.data.clips.transforms import VideoTransform, clip_boxes, flip_boxes, resize_scale

FIXTURES = Path(__file__).parent / "fixtures/transforms"
CASES = json.loads((FIXTURES / "cases.json").read_text())["pixels"]
GREY_LEVEL = 1 / 255 / 0.225
BOXES = np.array([[0.125, 0.25, 0.5, 0.75], [0.5, 0.0, 0.875, 0.5]])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def random_frames(count=3, height=20, width=32):
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_released_preprocessing_is_reproduced(case):
    expected = np.load(FIXTURES / "expected.npz")
    transform = VideoTransform(case["short_side"], case["max_size"])
    clip, boxes = transform(expected[f"{case['name']}_frames_rgb"], np.array(case["boxes_in"]))
    assert clip.dtype == boxes.dtype == torch.float32
    np.testing.assert_allclose(clip, expected[f"{case['name']}_clip"], rtol=0, atol=1.001 * GREY_LEVEL)
    np.testing.assert_allclose(boxes, expected[f"{case['name']}_boxes"], rtol=1e-6)


def test_frames_are_normalised_channels_first():
    frames = random_frames()
    clip, _ = VideoTransform(short_side=20)(frames, BOXES)
    assert clip.is_contiguous()
    np.testing.assert_allclose(clip, (frames.transpose(3, 0, 1, 2) / 255 - 0.45) / 0.225, atol=1e-6)


def test_mean_and_std_are_settings():
    clip, _ = VideoTransform(20, mean=0.0, std=1.0)(random_frames(), BOXES)
    np.testing.assert_allclose(clip, random_frames().transpose(3, 0, 1, 2) / 255, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "short_side", "max_size", "resized"),
    [
        ((240, 320), 288, 1333, (288, 384)),
        ((320, 240), 288, 1333, (384, 288)),
        ((360, 638), 288, 1333, (288, 510)),  # 510.4 is rounded down
        ((100, 1000), 288, 1333, (133, 1333)),  # the long side is capped
        ((64, 64), 64, 1333, (64, 64)),
    ],
)
def test_resized_size(size, short_side, max_size, resized):
    scale = resize_scale(*size, short_side, max_size)
    assert (int(size[0] * scale), int(size[1] * scale)) == resized
    clip, _ = VideoTransform(short_side, max_size)(np.zeros((1, *size, 3), np.uint8), BOXES)
    assert clip.shape == (3, 1, *resized)


@pytest.mark.parametrize("short_side", [20, 33])
def test_flipped_clip_is_the_clip_of_the_mirrored_video(short_side):
    frames = random_frames()
    edge = np.concatenate((BOXES, [[0, 0, 1, 1]]))
    flipped, flipped_boxes = VideoTransform(short_side, flip=1)(frames, edge)
    mirrored = flip_boxes(torch.from_numpy(edge), 1.0).numpy()
    clip, boxes = VideoTransform(short_side)(frames[:, :, ::-1].copy(), mirrored)
    assert torch.equal(flipped, clip)
    assert torch.equal(flipped_boxes, boxes)


def test_flip_moves_boxes_with_the_pixels():
    frames = np.zeros((1, 8, 16, 3), np.uint8)
    frames[:, 2:5, 3:7] = 255
    clip, boxes = VideoTransform(8, flip=1, mean=0, std=1)(frames, np.array([[3 / 16, 2 / 8, 7 / 16, 5 / 8]]))
    x1, y1, x2, y2 = boxes[0].int().tolist()
    assert (x1, y1, x2, y2) == (9, 2, 13, 5)
    assert clip[:, :, y1:y2, x1:x2].min() == 1
    assert clip.sum() == 3 * (y2 - y1) * (x2 - x1)


def test_flip_is_its_own_inverse():
    boxes = torch.from_numpy(BOXES)
    assert torch.equal(flip_boxes(flip_boxes(boxes, 1.0), 1.0), boxes)
    assert torch.equal(flip_boxes(boxes, 1.0)[0], torch.tensor([0.5, 0.25, 0.875, 0.75], dtype=torch.float64))


def test_flip_has_its_probability():
    generator = seeded()
    transform = VideoTransform(20, flip=0.25)
    plain = VideoTransform(20)(random_frames(), BOXES)[0]
    flips = sum(not torch.equal(transform(random_frames(), BOXES, generator)[0], plain) for _ in range(400))
    assert 75 < flips < 125  # 100 expected, standard deviation 8.7


def test_boxes_are_clipped_to_the_last_pixel_before_and_after_scaling():
    assert clip_boxes(torch.tensor([[-1.0, 3.0, 40.0, 20.0]]), (20, 32)).tolist() == [[0, 3, 31, 19]]
    _, boxes = VideoTransform(40)(random_frames(), np.array([[0.0, 0.0, 1.0, 1.0]]))
    assert boxes.tolist() == [[0, 0, 62, 38]]  # 31 and 19, doubled
    _, boxes = VideoTransform(10)(random_frames(), np.array([[0.0, 0.0, 1.0, 1.0]]))
    assert boxes.tolist() == [[0, 0, 15, 9]]  # 15.5 and 9.5, clipped again


def test_clip_without_boxes_keeps_none():
    _, boxes = VideoTransform(10, flip=1)(random_frames(), np.zeros((0, 4)))
    assert boxes.shape == (0, 4)


def test_short_side_is_drawn_from_the_whole_range():
    generator = seeded()
    transform = VideoTransform((10, 12))
    sides = {transform(random_frames(), BOXES, generator)[0].shape[2] for _ in range(50)}
    assert sides == {10, 11, 12}


def test_color_jitter_scales_brightness_and_contrast_about_the_mean():
    frames = random_frames() // 4 + 96  # far enough from black and white that nothing is cut off
    jitter = 0.2
    brightness, contrast = ((torch.rand(2, generator=seeded(3)) * 2 - 1) * jitter + 1).tolist()
    clip, _ = VideoTransform(20, color_jitter=jitter, mean=0, std=1)(frames, BOXES, seeded(3))
    bright = frames.transpose(3, 0, 1, 2) / 255 * brightness
    np.testing.assert_allclose(clip, (bright - bright.mean()) * contrast + bright.mean(), atol=1e-5)


def test_color_jitter_stays_within_black_and_white():
    generator = seeded()
    transform = VideoTransform(20, color_jitter=0.9, mean=0, std=1)
    clips = torch.stack([transform(random_frames(), BOXES, generator)[0] for _ in range(20)])
    assert clips.min() == 0
    assert clips.max() == 1


def test_randomness_is_the_generators_alone():
    transform = VideoTransform((16, 24), flip=0.5, color_jitter=0.3)
    state = torch.get_rng_state()
    first, first_boxes = transform(random_frames(), BOXES, seeded(5))
    again, again_boxes = transform(random_frames(), BOXES, seeded(5))
    assert torch.equal(first, again)
    assert torch.equal(first_boxes, again_boxes)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("settings", [{"flip": 0.5}, {"color_jitter": 0.1}, {"short_side": (10, 12)}])
def test_random_transform_without_generator_is_an_error(settings):
    with pytest.raises(ValueError, match="needs a generator"):
        VideoTransform(**settings)(random_frames(), BOXES)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"short_side": (320, 256)}, "need 1 <= low <= high <= max"),
        ({"short_side": 0}, "need 1 <= low"),
        ({"short_side": 300, "max_size": 200}, "short_side 300 with max_size 200"),
        ({"flip": 1.5}, "flip is 1.5; it must be a probability"),
        ({"color_jitter": 1.0}, "color_jitter is 1.0; it must be at least 0 and below 1"),
    ],
)
def test_impossible_settings_are_an_error(settings, problem):
    with pytest.raises(ValueError, match=problem):
        VideoTransform(**settings)


def test_pixels_stay_on_their_device():
    clip = VideoTransform(short_side=24).to_clip(torch.zeros(4, 3, 32, 48, dtype=torch.uint8, device="meta"), (24, 36))
    assert (clip.device.type, clip.shape) == ("meta", (3, 4, 24, 36))
