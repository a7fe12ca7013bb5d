"""What only the videos can tell: times beyond their end, boxes beyond their edges, frames that cannot be decoded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from rich.progress import track
from torch.utils.data import DataLoader, Dataset

from evad.data.annotation_table import BOX, row_finding
from evad.data.annotations import Annotations, Clock, VideoInfo
from evad.data.check_annotations import outside_frame
from evad.data.clip_sampling import ClipSampler
from evad.data.findings import MAX_EXAMPLES, Finding
from evad.data.video import VideoError, VideoReader
from evad.structures import Keyframe

OpenReader = Callable[[str], VideoReader]

READ_ERRORS = (VideoError, OSError, ValueError, IndexError)

AVA_FRAMES, AVA_FPS = 27_030, 30
"""Frames of AVA's 15-minute cuts, extracted at 30 per second."""

_CHUNK = 64  # frames read at once
_COMPARED = 8  # keyframes per video whose boxes are compared with the picture
_MANY = 50  # videos that deserve a progress bar


def probe(open_reader: OpenReader, videos: Sequence[str]) -> tuple[dict[str, VideoInfo], list[Finding]]:
    """Length, rate and size of each video, and a finding about those that cannot be opened."""

    def look(video: str) -> VideoInfo | str:
        try:
            return _info(open_reader(video))
        except READ_ERRORS as error:
            return f"video {video}: {error}"

    with ThreadPoolExecutor() as pool:
        answers = list(track(pool.map(look, videos), "Opening videos", len(videos), disable=len(videos) < _MANY))
    infos = {video: answer for video, answer in zip(videos, answers) if isinstance(answer, VideoInfo)}
    return infos, undecodable([answer for answer in answers if isinstance(answer, str)])


def undecodable(failures: Sequence[str]) -> list[Finding]:
    """A finding about videos that cannot be read, each with its reason."""
    if not failures:
        return []
    message, remedy = f"{len(failures)} videos cannot be read", "repair them, or remove their lines"
    return [Finding("video-undecodable", "error", message, remedy, len(failures), tuple(failures[:MAX_EXAMPLES]))]


def missing_videos(split: str, missing: Sequence[str], where: object) -> list[Finding]:
    """A finding about videos that are annotated but not there."""
    if not missing:
        return []
    message = f"{len(missing)} annotated videos of {split} are not in {where}"
    remedy = "add them, correct their names, or remove their lines"
    return [Finding("video-missing", "error", message, remedy, len(missing), tuple(missing[:MAX_EXAMPLES]))]


def _info(reader: VideoReader) -> VideoInfo:
    return VideoInfo(reader.num_frames, reader.fps, reader.height, reader.width, reader.times)


def video_findings(annotations: Annotations, infos: Mapping[str, VideoInfo]) -> list[Finding]:
    """Annotated times and boxes against the length and size of the videos that could be opened."""
    rows = annotations.rows[annotations.rows["valid"] & annotations.rows["video"].isin(set(infos))]
    if rows.empty:
        return []
    found = _varying_rates(infos) + _times(rows, annotations.clock, infos)
    if annotations.boxes == "pixels":
        sizes = np.array([(info.width, info.height) for info in rows["video"].map(infos)], dtype=np.float64)
        people = ~rows["nobody"].to_numpy()
        found += _pixel_boxes(rows[people], sizes[people], annotations)
    return found


def _varying_rates(infos: Mapping[str, VideoInfo]) -> list[Finding]:
    varying = [f"video {video}: {info.fps:.3g} on average" for video, info in infos.items() if info.times is not None]
    if not varying:
        return []
    message = f"the frame rate of {len(varying)} videos varies; their seconds are those of the frames' timestamps"
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
    if clock.unit == "seconds" and _whole(time) and (time - clock.first <= num_frames).all():
        kind, message = "frames-as-seconds", f"{message}: the times look like frame numbers, not seconds"
        remedy = "name the column `frame` instead of `time`"
    elif first > clock.first and (replace(clock, first=first).frames(rows, infos) <= num_frames).all():
        kind, message = "time-origin", f"{message}: times begin at {time.min():g}, the videos at {clock.first:g}"
        remedy = "set data.first_time (AVA: data.video_start_second) to what the clock says at a video's first frame"
    return row_finding(rows, beyond, kind, "error", message, remedy)


def _time_origin(
    rows: pd.DataFrame, clock: Clock, frame: np.ndarray, num_frames: np.ndarray, fps: np.ndarray
) -> list[Finding]:
    """Clocks that seem to count from 1, and seconds given as frames."""
    time = rows["time"].to_numpy()
    if clock.first == 0 and time.min() >= 1 and (frame > num_frames - 0.5).any():
        message = f"a time is the very end of its video and none is below 1: {clock.unit} may count from 1"
        at_end = frame > num_frames - 0.5
        return row_finding(rows, at_end, "time-from-1", "warning", message, "set data.first_time=1 if they do")
    distinct = rows.drop_duplicates(["video", "time"])
    if clock.unit == "frames" and len(distinct) >= 3 and (frame <= num_frames / fps).all() and (fps > 2).all():
        message = "every frame number is below its video's length in seconds: they may be seconds"
        return [Finding("seconds-as-frames", "warning", message, "name the column `time` if they are")]
    return []


def _whole(values: np.ndarray) -> bool:
    return bool((values == np.round(values)).all())


def _pixel_boxes(people: pd.DataFrame, sizes: np.ndarray, annotations: Annotations) -> list[Finding]:
    """Boxes in pixels against the size of their videos, in (n, 2) width and height."""
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
        message = f"the box reaches {reach}, like {beyond.mean():.0%} of all: they look drawn at another size"
        return row_finding(people, beyond, "box-scale", "error", message, "scale the boxes to the size of the videos")
    return outside_frame(people, box / np.tile(sizes, 2), annotations)


@dataclass(frozen=True)
class VideoJob:
    """A video to read through.

    Attributes:
        split: train or val.
        video: Its name.
        times: (n,) float64, distinct annotated times.
        boxes: Per time, (m, 4) boxes as annotated.
    """

    split: str
    video: str
    times: np.ndarray
    boxes: list[np.ndarray]


@dataclass(frozen=True)
class VideoReport:
    """What came of a `VideoJob`.

    Attributes:
        job: The job.
        info: None if the video could not be opened.
        failure: Why it could not be read; empty if it could.
        contrasts: (m, 2) see `picture_contrasts`.
    """

    job: VideoJob
    info: VideoInfo | None
    failure: str
    contrasts: np.ndarray


class VideoCheck(Dataset[VideoReport]):
    """Reads every frame that a clip of the video shows, once and in order.

    Args:
        jobs: The videos.
        open_readers: What opens the videos of each split.
        sampler: Chooses the frames of a clip.
        clock: How annotated times count.
        pixels: Whether boxes are in pixels (else fractions).
    """

    def __init__(
        self,
        jobs: Sequence[VideoJob],
        open_readers: Mapping[str, OpenReader],
        sampler: ClipSampler,
        clock: Clock,
        pixels: bool,
    ) -> None:
        self.jobs = jobs
        self.open_readers = open_readers
        self.sampler = sampler
        self.clock = clock
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.jobs)

    def __getitem__(self, index: int) -> VideoReport:
        job, info, contrasts = self.jobs[index], None, np.zeros((0, 2))
        try:
            reader = self.open_readers[job.split](job.video)
            info = _info(reader)
            clips = {place: clip for place, time in enumerate(job.times) if len(clip := self.clip(time, job, reader))}
            wanted = np.unique(np.concatenate([np.zeros(0, np.int64), *clips.values()]))
            for start in range(0, len(wanted), _CHUNK):
                reader.read(wanted[start : start + _CHUNK])
            contrasts = self._contrasts(job, info, reader, clips)
        except READ_ERRORS as error:
            return VideoReport(job, info, f"video {job.video}: {error}", contrasts)
        return VideoReport(job, info, "", contrasts)

    def clip(self, time: float, job: VideoJob, reader: VideoReader) -> np.ndarray:
        """Frames of the clip at an annotated time; none if the time is outside the video, which is another finding."""
        if not -1 <= self.clock.frame(time, reader) <= reader.num_frames:
            return np.zeros(0, np.int64)
        position = float(self.clock.position(time, reader))
        nobody = np.zeros((0, 4))
        return self.sampler(Keyframe(job.video, f"{time:g}", position, nobody, nobody, np.zeros(0, np.int64)), reader)

    def _contrasts(
        self, job: VideoJob, info: VideoInfo, reader: VideoReader, clips: Mapping[int, np.ndarray]
    ) -> np.ndarray:
        places = list(clips)
        chosen = (
            [places[i] for i in np.unique(np.linspace(0, len(places) - 1, _COMPARED).round().astype(int))]
            if places
            else []
        )
        scale = np.array([info.width, info.height] * 2) if self.pixels else np.ones(4)
        parts = [picture_contrasts(reader.read(clips[place]), job.boxes[place] / scale) for place in chosen]
        return np.concatenate([np.zeros((0, 2)), *parts])


def picture_contrasts(frames: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """How much more there is to see inside the boxes than inside the same boxes with x and y swapped.

    Actors have edges and move. Boxes that swapping hardly changes (IoU above 0.5), and unsound ones, are left out.

    Args:
        frames: (T, H, W, 3) uint8, the clip around the keyframe.
        boxes: (n, 4) xyxy as fractions.

    Returns:
        (m, 2), logarithm of the ratio of mean edge strength and of mean motion.
    """
    grey = frames.mean(axis=3, dtype=np.float32)
    motion = np.abs(np.diff(grey, axis=0)).mean(axis=0) if len(grey) > 1 else np.zeros(grey.shape[1:], np.float32)
    down, right = np.gradient(grey[len(grey) // 2])
    edges = np.abs(down) + np.abs(right)
    inside = ((boxes >= -0.1) & (boxes <= 1.1)).all(axis=1) & (boxes[:, :2] < boxes[:, 2:]).all(axis=1)
    kept = [box for box in boxes[inside] if _iou(box, box[[1, 0, 3, 2]]) <= 0.5]
    ratios = [
        [
            np.log((_mean_inside(picture, box) + 0.5) / (_mean_inside(picture, box[[1, 0, 3, 2]]) + 0.5))
            for picture in (edges, motion)
        ]
        for box in kept
    ]
    return np.array(ratios).reshape(-1, 2)


def _mean_inside(picture: np.ndarray, box: np.ndarray) -> float:
    height, width = picture.shape
    x1, x2 = np.clip(box[[0, 2]] * width, 0, width)
    y1, y2 = np.clip(box[[1, 3]] * height, 0, height)
    left, top = min(int(x1), width - 1), min(int(y1), height - 1)
    return float(picture[top : max(round(y2), top + 1), left : max(round(x2), left + 1)].mean())


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    overlap = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod()
    union = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - overlap
    return float(overlap / union) if union > 0 else 1.0


def swapped_finding(reports: Sequence[VideoReport]) -> list[Finding]:
    """Boxes that fit the pictures better with x and y swapped; each video has one vote."""
    votes = np.array([report.contrasts.mean(axis=0) for report in reports if len(report.contrasts)]).reshape(-1, 2)
    if len(votes) < 3:
        return []
    total = votes.sum(axis=1)
    against = (total < 0).mean()
    spread = max(total.std(ddof=1) / np.sqrt(len(total)), 1e-9)
    if against < 0.7 or total.mean() / spread > -2:
        return []
    # Beyond doubt only if edges and motion agree: of a static camera, edges alone may be those of the background.
    certain = against >= 0.8 and (votes.mean(axis=0) < -0.1).all() and total.mean() / spread < -3
    message = (
        f"x and y of the boxes look swapped: in {against:.0%} of {len(votes)} videos there is more to see (edges, "
        "motion) where the boxes lie after swapping"
    )
    remedy = "look at the picture of examples; columns are x1, y1, x2, y2"
    return [Finding("boxes-swapped", "error" if certain else "warning", message, remedy)]


def frame_count_findings(infos: Mapping[str, VideoInfo]) -> list[Finding]:
    """AVA cuts whose length is more than a second away from 27 030 frames at 30 per second."""
    counts = {video: info.num_frames / info.fps * AVA_FPS for video, info in infos.items()}
    far = [
        f"video {video}: {count:.0f} frames at 30/s"
        for video, count in counts.items()
        if abs(count - AVA_FRAMES) > AVA_FPS
    ]
    if not far:
        return []
    message = (
        f"{len(far)} of {len(infos)} videos are not {AVA_FRAMES} frames long at {AVA_FPS} per second, as AVA's cuts are"
    )
    remedy = (
        "cut them from second 900 to 1801 and extract 30 frames per second, else annotations and pictures drift apart"
    )
    return [Finding("frame-count", "warning", message, remedy, len(far), tuple(far[:MAX_EXAMPLES]))]


def read_videos(check: VideoCheck, workers: int) -> list[VideoReport]:
    """Every report, read by `workers` processes beside a progress bar."""
    loader = DataLoader(check, batch_size=None, num_workers=workers, collate_fn=_same)  # type: ignore[arg-type]
    return list(track(loader, "Reading videos", len(check)))


def _same(report: VideoReport) -> VideoReport:
    return report
