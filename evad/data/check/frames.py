"""Checks that need decoded frames: videos that cannot be decoded, boxes with x and y swapped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich.progress import track
from torch.utils.data import DataLoader, Dataset

from evad.data.annotations.findings import Finding
from evad.data.annotations.keyframes import Clock, VideoInfo
from evad.data.annotations.videos import READ_ERRORS, OpenReader, video_info
from evad.data.clips.sampling import ClipSampler
from evad.data.video.errors import VideoReader
from evad.metrics.frame_ap import box_iou
from evad.structures import Keyframe

_CHUNK = 64  # frames read at once
_COMPARED = 8  # keyframes per video whose boxes are compared with the picture


@dataclass(frozen=True)
class VideoJob:
    """A video to read.

    Attributes:
        times: (n,) float64, distinct annotated times.
        boxes: For each time, the (m, 4) annotated boxes.
    """

    split: str
    video: str
    times: np.ndarray
    boxes: list[np.ndarray]


@dataclass(frozen=True)
class VideoReport:
    """Result of a `VideoJob`.

    Attributes:
        info: Length, rate and size; None if the video could not be opened.
        failure: Why the video could not be read; empty if it was read.
        contrasts: (m, 2), see `picture_contrasts`.
    """

    job: VideoJob
    info: VideoInfo | None
    failure: str
    contrasts: np.ndarray


@dataclass
class VideoCheck(Dataset[VideoReport]):
    """Reads every frame that occurs in a clip of a video in order, then some clips again to compare boxes with them.

    Attributes:
        open_readers: Opens the videos of each split.
        pixels: Whether boxes are in pixels (else fractions).
    """

    jobs: Sequence[VideoJob]
    open_readers: Mapping[str, OpenReader]
    sampler: ClipSampler
    clock: Clock
    pixels: bool

    def __len__(self) -> int:
        return len(self.jobs)

    def __getitem__(self, index: int) -> VideoReport:
        job, info, contrasts = self.jobs[index], None, np.zeros((0, 2))
        try:
            reader = self.open_readers[job.split](job.video)
            info = video_info(reader)
            clips = {place: clip for place, time in enumerate(job.times) if len(clip := self.clip(time, job, reader))}
            wanted = np.unique(np.concatenate([np.zeros(0, np.int64), *clips.values()]))
            for start in range(0, len(wanted), _CHUNK):
                reader.read(wanted[start : start + _CHUNK])
            contrasts = self._contrasts(job, info, reader, clips)
        except READ_ERRORS as error:
            return VideoReport(job, info, f"video {job.video}: {error}", contrasts)
        return VideoReport(job, info, "", contrasts)

    def clip(self, time: float, job: VideoJob, reader: VideoReader) -> np.ndarray:
        """Frames of the clip at an annotated time; empty if outside the video, which `video_findings` reports."""
        if not -1 <= self.clock.frame(time, reader) <= reader.num_frames:
            return np.zeros(0, np.int64)
        position = float(self.clock.position(time, reader))
        empty = np.zeros((0, 4))
        return self.sampler(Keyframe(job.video, f"{time:g}", position, empty, empty, np.zeros(0, np.int64)), reader)

    def _contrasts(
        self, job: VideoJob, info: VideoInfo, reader: VideoReader, clips: Mapping[int, np.ndarray]
    ) -> np.ndarray:
        places = list(clips)
        chosen = np.unique(np.linspace(0, len(places) - 1, min(_COMPARED, len(places))).round().astype(int))
        scale = np.array([info.width, info.height] * 2) if self.pixels else np.ones(4)
        parts = [picture_contrasts(reader.read(clips[places[i]]), job.boxes[places[i]] / scale) for i in chosen]
        return np.concatenate([np.zeros((0, 2)), *parts])


def picture_contrasts(frames: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Compare edges and motion inside the boxes with those inside the same boxes with x and y swapped.

    Actors have edges and move, so the correct boxes should hold more of both. Malformed boxes and boxes that hardly
    change when swapped (IoU above 0.5) are left out.

    Args:
        frames: (T, H, W, 3) uint8, the clip around the keyframe.
        boxes: (n, 4) xyxy as fractions.

    Returns:
        (m, 2), logarithms of two ratios, original to swapped box: mean edge strength, and mean motion.
    """
    grey = frames.mean(axis=3, dtype=np.float32)
    motion = np.abs(np.diff(grey, axis=0)).mean(axis=0) if len(grey) > 1 else np.zeros(grey.shape[1:], np.float32)
    down, right = np.gradient(grey[len(grey) // 2])
    edges = np.abs(down) + np.abs(right)
    inside = ((boxes >= -0.1) & (boxes <= 1.1)).all(axis=1) & (boxes[:, :2] < boxes[:, 2:]).all(axis=1)
    inside &= box_iou(boxes, boxes[:, [1, 0, 3, 2]]) <= 0.5
    ratios = [
        [
            np.log((_mean_inside(picture, box) + 0.5) / (_mean_inside(picture, box[[1, 0, 3, 2]]) + 0.5))
            for picture in (edges, motion)
        ]
        for box in boxes[inside]
    ]
    return np.array(ratios).reshape(-1, 2)


def _mean_inside(picture: np.ndarray, box: np.ndarray) -> float:
    height, width = picture.shape
    x1, x2 = np.clip(box[[0, 2]] * width, 0, width)
    y1, y2 = np.clip(box[[1, 3]] * height, 0, height)
    left, top = min(int(x1), width - 1), min(int(y1), height - 1)
    return float(picture[top : max(round(y2), top + 1), left : max(round(x2), left + 1)].mean())


def swapped_finding(reports: Sequence[VideoReport]) -> list[Finding]:
    """Find boxes that fit the pictures better with x and y swapped; each video has one vote."""
    votes = np.array([report.contrasts.mean(axis=0) for report in reports if len(report.contrasts)]).reshape(-1, 2)
    if len(votes) < 3:
        return []
    total = votes.sum(axis=1)
    against = (total < 0).mean()
    spread = max(total.std(ddof=1) / np.sqrt(len(total)), 1e-9)
    if against < 0.7 or total.mean() / spread > -2:
        return []
    # Certain only if edges and motion agree: with a static camera, the background may have the stronger edges.
    certain = against >= 0.8 and (votes.mean(axis=0) < -0.1).all() and total.mean() / spread < -3
    message = (
        f"x and y of the boxes look swapped: in {against:.0%} of {len(votes)} videos the swapped boxes hold more edges "
        "and motion"
    )
    remedy = "look at examples.png; the columns must be x1, y1, x2, y2"
    return [Finding("boxes-swapped", "error" if certain else "warning", message, remedy)]


def read_videos(check: VideoCheck, workers: int) -> list[VideoReport]:
    """All reports, read by `workers` processes, with a progress bar."""
    loader = DataLoader(check, batch_size=None, num_workers=workers)
    return list(track(loader, "Reading videos", len(check)))
