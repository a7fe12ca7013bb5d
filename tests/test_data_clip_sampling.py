"""Clip sampling: which frames belong to a keyframe, at any frame rate."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from evad.data.clips.sampling import ClipSampler, clip_indices
from evad.structures import Keyframe

CASES = json.loads((Path(__file__).parent / "fixtures/transforms/cases.json").read_text())["sampling"]


def keyframe(position, timestamp="902"):
    return Keyframe("film", timestamp, position, np.zeros((0, 4)), np.zeros((0, 3), np.float32), np.zeros(0, np.int64))


def video(num_frames, fps):
    return SimpleNamespace(num_frames=num_frames, fps=fps, times=None)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['center']}of{case['video_frames']}")
def test_released_sampling_is_reproduced(case):
    indices = clip_indices(case["center"], case["num_frames"], case["sampling_rate"], case["video_frames"])
    assert indices.dtype == np.int64
    assert indices.tolist() == case["indices"]


@pytest.mark.parametrize("num_frames", [1, 7, 16])
def test_middle_frame_is_the_keyframe(num_frames):
    for center in (0, 5, 49):
        assert clip_indices(center, num_frames, 3, 50)[num_frames // 2] == center


def test_fractions_are_rounded_to_the_nearest_frame_halves_up():
    assert clip_indices(10, 5, 0.5, 100).tolist() == [9, 10, 10, 11, 11]


@pytest.mark.parametrize("fps", [6, 25, 30, 60])
def test_video_of_another_rate_gives_the_same_instants(fps):
    sampler = ClipSampler(num_frames=5, frame_stride=15, annotated_fps=30)
    indices = sampler(keyframe(position=60), video(num_frames=10 * fps, fps=fps))
    instants = np.array([1.0, 1.5, 2.0, 2.5, 3.0])
    np.testing.assert_allclose(indices / fps, instants, atol=0.5 / fps)
    assert indices[2] == 2 * fps


def test_25_fps_clip_has_these_frames():
    indices = ClipSampler(16, 4, 30)(keyframe(60), video(100, 25))
    assert indices.tolist() == [23, 27, 30, 33, 37, 40, 43, 47, 50, 53, 57, 60, 63, 67, 70, 73]


def test_without_a_clock_positions_are_frames_of_the_file():
    sampler = ClipSampler(num_frames=4, frame_stride=2, annotated_fps=None)
    assert sampler(keyframe(10), video(12, 25)).tolist() == [6, 8, 10, 11]


@pytest.mark.parametrize("position", [-1, 50])
def test_keyframe_one_frame_outside_is_clamped(position):
    indices = ClipSampler(2, 1)(keyframe(position), video(50, 30))
    assert indices[1] == np.clip(position, 0, 49)


@pytest.mark.parametrize("position", [-1.5, 50.5])
def test_keyframe_outside_the_video_is_an_error(position):
    with pytest.raises(ValueError, match=rf"video film: keyframe 902 is frame {position}, but the video has 50 frames"):
        ClipSampler(2, 1)(keyframe(position), video(50, 30))


def test_error_names_the_instant_on_the_annotation_clock():
    with pytest.raises(ValueError, match=r"is frame 150 \(6 s\), but the video has 100 frames at 25 per second"):
        ClipSampler(2, 1, annotated_fps=30)(keyframe(180), video(100, 25))


def test_stride_0_repeats_the_keyframe():
    assert ClipSampler(num_frames=3, frame_stride=0)(keyframe(7), video(20, 25)).tolist() == [7, 7, 7]


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"num_frames": 0}, "num_frames is 0, frame_stride 4"),
        ({"frame_stride": -1}, "num_frames is 16, frame_stride -1"),
        ({"annotated_fps": 0}, "annotated_fps is 0; give frames per second"),
    ],
)
def test_impossible_settings_are_an_error(settings, problem):
    with pytest.raises(ValueError, match=problem):
        ClipSampler(**settings)
