"""Checks annotated times and boxes against the length and size of their videos."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from rich.progress import track

from evad.data.annotations.findings import MAX_EXAMPLES, Finding, listed
from evad.data.annotations.keyframes import Annotations, Clock, VideoInfo
from evad.data.annotations.soundness import outside_frame
from evad.data.annotations.table import row_finding
from evad.data.video.errors import VideoError, VideoReader
from evad.data.video.sources import ReaderSource
from evad.files.csv_rows import BOX

OpenReader = Callable[[str], VideoReader]

READ_ERRORS = (VideoError, OSError, ValueError, IndexError)

AVA_FRAMES, AVA_FPS = 27_030, 30
"""Frames of AVA's 15-minute cuts, extracted at 30 per second."""

_MANY = 50  # smallest number of videos with a progress bar


def probe(open_reader: OpenReader, videos: Sequence[str]) -> tuple[dict[str, VideoInfo], list[Finding]]:
    """Open each video for its length, rate and size; a finding lists the videos that cannot be opened."""

    def look(video: str) -> VideoInfo | str:
        try:
            return video_info(open_reader(video))
        except READ_ERRORS as error:
            return f"video {video}: {error}"

    # Not in threads: those that scan files with PyAV mostly wait for each other.
    answers = [look(video) for video in track(videos, "Opening videos", disable=len(videos) < _MANY)]
    infos = {video: answer for video, answer in zip(videos, answers) if isinstance(answer, VideoInfo)}
    return infos, undecodable([answer for answer in answers if isinstance(answer, str)])


def undecodable(failures: Sequence[str]) -> list[Finding]:
    if not failures:
        return []
    message, remedy = f"{len(failures)} videos cannot be read", "repair them, or remove their lines"
    return [Finding("video-undecodable", "error", message, remedy, len(failures), tuple(failures[:MAX_EXAMPLES]))]


def missing_videos(split: str, videos: Sequence[str], source: ReaderSource) -> list[Finding]:
    """A finding about annotated videos of a split that `source` does not have."""
    missing = source.missing(videos)
    if not missing:
        return []
    where = source.where(missing[0])
    message = f"{len(missing)} of {len(videos)} {split} videos ({listed(missing)}) are not in {where}"
    remedy = "add them, correct their names, or remove their lines from the annotations"
    return [Finding("video-missing", "error", message, remedy, len(missing))]


def video_info(reader: VideoReader) -> VideoInfo:
    return VideoInfo(reader.num_frames, reader.fps, reader.height, reader.width, reader.times)


def video_findings(annotations: Annotations, infos: Mapping[str, VideoInfo]) -> list[Finding]:
    """Check annotated times and boxes against the videos in `infos`."""
    rows = annotations.rows[annotations.rows["valid"] & annotations.rows["video"].isin(set(infos))]
    if rows.empty:
        return []
    found = _varying_rates(infos) + _times(rows, annotations.clock, infos)
    if annotations.boxes == "pixels":
        sizes = np.array([(info.width, info.height) for info in rows["video"].map(infos)], dtype=np.float64)
        people = ~rows["empty"].to_numpy()
        found += _pixel_boxes(rows[people], sizes[people], annotations)
    return found


def _varying_rates(infos: Mapping[str, VideoInfo]) -> list[Finding]:
    varying = [f"video {video}: {info.fps:.3g} on average" for video, info in infos.items() if info.times is not None]
    if not varying:
        return []
    message = f"the frame rate of {len(varying)} videos varies; times in seconds follow the timestamps of the frames"
    return [Finding("variable-frame-rate", "info", message, "", len(varying), tuple(varying[:MAX_EXAMPLES]))]


def _times(rows: pd.DataFrame, clock: Clock, infos: Mapping[str, VideoInfo]) -> list[Finding]:
    facts = rows["video"].map(infos)
    num_frames = np.array([info.num_frames for info in facts])
    fps = np.array([info.fps for info in facts])
    time = rows["time"].to_numpy()
    frame = clock.frames(rows, infos)
    beyond = frame > num_frames  # equality is the end of the last frame, which `ClipSampler` allows
    if not beyond.any():
        return _time_origin(rows, clock, frame, num_frames, fps)
    worst = rows["video"].iloc[int((frame - num_frames).argmax())]
    index = int(np.flatnonzero((rows["video"] == worst).to_numpy())[0])
    length = f"{num_frames[index]} frames, {num_frames[index] / fps[index]:g} s"
    message = f"the time is beyond the end of the video ({worst} has {length})"
    remedy, kind = "correct the time, and check whether the file is complete", "time-beyond-end"
    first = np.floor(time.min())
    if clock.unit == "seconds" and (time == np.round(time)).all() and (time - clock.first <= num_frames).all():
        kind, message = "frames-as-seconds", f"{message}: the times look like frame numbers, not seconds"
        remedy = "name the column `frame` instead of `time`"
    elif first > clock.first and (replace(clock, first=first).frames(rows, infos) <= num_frames).all():
        kind, message = "time-origin", f"{message}: times begin at {time.min():g}, the videos at {clock.first:g}"
        remedy = "set data.first_time (AVA: data.video_start_second) to the annotated time of a video's first frame"
    return row_finding(rows, beyond, kind, "error", message, remedy)


def _time_origin(
    rows: pd.DataFrame, clock: Clock, frame: np.ndarray, num_frames: np.ndarray, fps: np.ndarray
) -> list[Finding]:
    """Find clocks that seem to start at 1, and seconds given as frames."""
    time = rows["time"].to_numpy()
    at_end = frame > num_frames - 0.5
    if clock.first == 0 and time.min() >= 1 and at_end.any():
        message = f"a time is the very end of its video, and no time is below 1: {clock.unit} may start at 1"
        return row_finding(rows, at_end, "time-from-1", "warning", message, "if so, set data.first_time=1")
    distinct = rows.drop_duplicates(["video", "time"])
    if clock.unit == "frames" and len(distinct) >= 3 and (frame <= num_frames / fps).all() and (fps > 2).all():
        message = "every frame number is below its video's length in seconds: they may be seconds"
        return [Finding("seconds-as-frames", "warning", message, "if so, name the column `time`")]
    return []


def _pixel_boxes(people: pd.DataFrame, sizes: np.ndarray, annotations: Annotations) -> list[Finding]:
    """Check boxes in pixels against `sizes`, the (n, 2) width and height of their videos."""
    if people.empty:
        return []
    box = people[BOX].to_numpy()
    limits = np.tile(sizes, 2) + 1
    beyond = np.any(box > limits, axis=1)
    fits_swapped = np.all(box[:, [1, 0, 3, 2]] <= limits, axis=1)
    width, height = sizes[int(beyond.argmax())]
    reach = f"beyond the frame ({width:g}x{height:g})"
    if beyond.mean() > 0.05 and fits_swapped.all():
        message = f"the box reaches {reach}, but with x and y swapped every box fits: x and y look swapped"
        return row_finding(people, beyond, "boxes-swapped", "error", message, "write x before y: x1, y1, x2, y2")
    if beyond.mean() > 0.3:
        message = f"the box reaches {reach}, like {beyond.mean():.0%} of all boxes: they look drawn at another size"
        return row_finding(people, beyond, "box-scale", "error", message, "scale the boxes to the size of the videos")
    return outside_frame(people, box / np.tile(sizes, 2), annotations)


def frame_count_findings(infos: Mapping[str, VideoInfo]) -> list[Finding]:
    """Find AVA cuts that are more than a second longer or shorter than 27 030 frames at 30 per second."""
    counts = {video: info.num_frames / info.fps * AVA_FPS for video, info in infos.items()}
    far = [
        f"video {video}: {count:.0f} frames at 30/s"
        for video, count in counts.items()
        if abs(count - AVA_FRAMES) > AVA_FPS
    ]
    if not far:
        return []
    message = f"{len(far)} of {len(infos)} videos do not have the {AVA_FRAMES} frames at {AVA_FPS}/s of AVA's cuts"
    remedy = "cut them from second 900 to 1801 and extract 30 frames per second, so that annotations match the frames"
    return [Finding("frame-count", "warning", message, remedy, len(far), tuple(far[:MAX_EXAMPLES]))]
