"""Videos of varying frame rate: seconds are those of the frames, in files, clips, keyframes, checks, predictions."""

import csv
import logging
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest

from evad.data.annotations.keyframes import Clock
from evad.data.clips.custom import CustomDataModule
from evad.data.clips.sampling import ClipSampler
from evad.data.video.clock import frame_at, measured_rate, second_at, shown_at
from evad.data.video.readers import DecordReader, PyAVReader, open_video
from evad.drawing.video import write_video
from evad.predict import keyframe_indices
from evad.structures import Keyframe

# Two seconds at 30 per second, two at 10, one at 30.
TIMES = np.concatenate([np.arange(60) / 30, 2 + np.arange(20) / 10, 4 + np.arange(30) / 30])
VARYING = SimpleNamespace(num_frames=110, fps=109 / TIMES[-1], times=TIMES)
CLOCK = Fraction(1, 90_000)


def write_varying(path, times=TIMES):
    """A file whose frame k is a picture of brightness 2 k."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264rgb", rate=30, options={"qp": "0", "x264-params": "bframes=3:keyint=12"})
        stream.height, stream.width, stream.pix_fmt = 32, 64, "rgb24"
        stream.time_base = stream.codec_context.time_base = CLOCK
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((32, 64, 3), 2 * number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = round(time / CLOCK), CLOCK
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("reader", [DecordReader, PyAVReader])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("start", [0.0, 1.5])
def test_files_tell_when_their_frames_are_shown(tmp_path, reader, suffix, start):
    video = reader(write_varying(tmp_path / f"v.{suffix}", TIMES + start))
    np.testing.assert_allclose(video.times, TIMES, atol=1e-3)  # Matroska counts milliseconds
    assert video.num_frames == 110
    assert video.fps == pytest.approx(109 / TIMES[-1], rel=1e-3)
    at = [round(float(frame_at(video, second))) for second in (0, 1, 2.5, 4, 4.5)]
    assert (video.read(at)[:, 0, 0, 0] // 2).tolist() == [0, 30, 65, 80, 95]


@pytest.mark.parametrize("reader", [DecordReader, PyAVReader])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_constant_rate_that_is_not_the_stated_one_is_measured(tmp_path, reader, suffix):
    video = reader(write_varying(tmp_path / f"v.{suffix}", np.arange(40) / 12))  # the encoder was told 30
    assert video.times is None
    assert video.fps == pytest.approx(12, rel=1e-3)


def test_rate_of_rounded_times_and_of_single_frames():
    milliseconds = np.round(np.arange(3000) * 1000 / 30) / 1000
    assert measured_rate(milliseconds + 7, 30.0) == (30.0, None)
    assert measured_rate(np.array([4.0]), 25.0) == (25.0, None)
    assert measured_rate(np.arange(10) / 5, 30.0) == (5.0, None)
    dropped = np.delete(np.arange(300) / 30, 100)  # one lost frame: what follows is a frame later than counted
    fps, times = measured_rate(dropped, 30.0)
    assert fps == pytest.approx(298 / dropped[-1])
    np.testing.assert_array_equal(times, dropped)


def test_frames_and_seconds_are_inverse_also_beyond_the_ends():
    frames = np.array([-3.0, -0.5, 0, 0.25, 59.5, 60, 79.9, 100, 109, 109.5, 120])
    for video in (VARYING, SimpleNamespace(fps=25.0, times=None)):
        np.testing.assert_allclose(frame_at(video, second_at(video, frames)), frames, atol=1e-9)
    assert frame_at(VARYING, 3.05) == pytest.approx(70.5)
    assert second_at(VARYING, 60.0) == 2
    assert frame_at(VARYING, -1.0) == pytest.approx(-VARYING.fps)


def keyframe(position):
    nothing = np.zeros((0, 4))
    return Keyframe("film", "0", position, nothing, nothing, np.zeros(0, np.int64))


def test_clips_hold_the_frames_of_their_seconds():
    sampler = ClipSampler(num_frames=5, frame_stride=6, annotated_fps=30)  # a fifth of a second apart
    assert sampler(keyframe(30), VARYING).tolist() == [18, 24, 30, 36, 42]  # around second 1, at 30 per second
    assert sampler(keyframe(90), VARYING).tolist() == [66, 68, 70, 72, 74]  # around second 3, at 10 per second
    assert sampler(keyframe(60), VARYING).tolist() == [48, 54, 60, 62, 64]  # across the change
    assert sampler(keyframe(149), VARYING).tolist() == [97, 103, 109, 109, 109]
    with pytest.raises(ValueError, match=r"keyframe 0 is frame .* \(6 s\), but the video has 110 frames"):
        sampler(keyframe(180), VARYING)


def test_a_frame_stays_until_the_next_one():
    times = np.concatenate([np.arange(60) / 30, 2 + 3 * np.arange(5)])  # then a picture every three seconds
    slides = SimpleNamespace(num_frames=65, fps=64 / times[-1], times=times)
    seconds = np.array([-1, 0.99, 1.99, 2, 4.9, 4.99, 5, 12.6, 13.9, 14.0, 15.5])
    assert shown_at(slides, seconds).tolist() == [-1, 30, 60, 60, 60, 61, 61, 63, 63, 64, 64]
    sampler = ClipSampler(num_frames=3, frame_stride=30, annotated_fps=30)
    assert sampler(keyframe(12.6 * 30), slides).tolist() == [63, 63, 63]
    assert sampler(keyframe(4.9 * 30), slides).tolist() == [60, 60, 61]


def test_even_times_give_the_clips_of_a_constant_rate():
    even = SimpleNamespace(num_frames=250, fps=25.0, times=np.arange(250) / 25)
    constant = SimpleNamespace(num_frames=250, fps=25.0, times=None)
    sampler = ClipSampler(16, 4, 30)
    for position in np.arange(1, 299, 7) + 0.1:  # no instant is equally near to two frames
        assert sampler(keyframe(position), even).tolist() == sampler(keyframe(position), constant).tolist()


@pytest.mark.parametrize("unit", ["seconds", "frames"])
@pytest.mark.parametrize("ticks", [None, 30.0])
def test_annotated_times_reach_the_frame_they_mean(unit, ticks):
    """By way of the keyframe's position and the sampler."""
    clock = Clock(unit, 1.0, ticks)
    sampler = ClipSampler(num_frames=1, frame_stride=1, annotated_fps=ticks)
    for frame in (0, 13, 60, 71, 109):
        time = 1 + (frame if unit == "frames" else TIMES[frame])
        assert clock.frame(time, VARYING) == pytest.approx(frame)
        assert sampler(keyframe(float(clock.position(time, VARYING))), VARYING).tolist() == [frame]


def test_own_videos_of_varying_rate(tmp_path, caplog):
    for video in ("a", "b"):
        write_varying(tmp_path / "videos" / f"{video}.mp4")
    with (tmp_path / "annotations.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["video", "time", "x1", "y1", "x2", "y2", "label"])
        writer.writerows([video, time, 4, 4, 20, 28, "walk"] for video in ("a", "b") for time in (1, 3, 5))
    sampler = ClipSampler(num_frames=3, frame_stride=6, annotated_fps=30)
    data = CustomDataModule(tmp_path, sampler, "pixels", num_workers=0, val_fraction=0.5)
    with caplog.at_level(logging.INFO):
        data.setup("fit")
    assert "the frame rate of 2 videos varies; times in seconds follow the timestamps of the frames" in caplog.text
    reader = open_video(tmp_path / "videos" / "a.mp4")
    clips = [sampler(keyframe, reader).tolist() for keyframe in data.train_dataset.keyframes]
    assert clips == [[24, 30, 36], [68, 70, 72], [104, 109, 109]]


def test_predictions_are_evenly_spaced_in_time_and_written_at_their_seconds(tmp_path):
    assert keyframe_indices(VARYING, 2) == [0, 15, 30, 45, 60, 65, 70, 75, 80, 95]
    with pytest.raises(ValueError, match="keyframes_per_second is 0; it must be above 0"):
        keyframe_indices(VARYING, 0)
    path = tmp_path / "out.mp4"
    pictures = [np.full((32, 64, 3), 2 * number, np.uint8) for number in range(110)]
    assert write_video(path, pictures, VARYING.fps, TIMES) == 110
    np.testing.assert_allclose(PyAVReader(path).times, TIMES, atol=1e-4)
