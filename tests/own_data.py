"""A small data set of somebody's own: five videos with a walking and a jumping actor, and a table."""

import csv

import numpy as np
from media import write_video

from evad.data.clips.custom import CustomDataModule
from evad.data.clips.sampling import ClipSampler

HEIGHT, WIDTH, FPS, LENGTH = 48, 80, 12, 36
SAMPLER = ClipSampler(num_frames=8, frame_stride=8, annotated_fps=30)
HEADER = ["video", "time", "x1", "y1", "x2", "y2", "label", "actor"]
VIDEOS = ["a", "b", "c", "d", "e"]
SECONDS = [0.5, 1.0, 2.0]


def corners(number, actor, frame):
    """Pixel box of an actor: one walks along the bottom, one jumps on the right."""
    if actor == 0:
        x, y = 4 + (frame + 3 * number) % 24, 18
    else:
        x, y = 56 + number, 4 + 2 * abs(frame % 12 - 6)
    return x, y, x + 12, y + 28


def make_frames(number):
    """A dim wall, a striped actor that walks (red) and one that jumps (green)."""
    rng = np.random.default_rng(number)
    frames = np.repeat(rng.integers(60, 68, (1, HEIGHT, WIDTH, 3), dtype=np.uint8), LENGTH, axis=0)
    for frame in range(LENGTH):
        for actor in (0, 1):
            x1, y1, x2, y2 = corners(number, actor, frame)
            frames[frame, y1:y2, x1:x2] = (0, 0, 40)
            frames[frame, y1:y2:2, x1:x2, actor] = 230
    return frames


def clean_rows():
    """One row per actor and keyframe, boxes in pixels, times in seconds."""
    return [
        [video, second, *corners(number, actor, round(second * FPS)), ("walk", "jump")[actor], actor]
        for number, video in enumerate(VIDEOS)
        for second in SECONDS
        for actor in (0, 1)
    ]


def write_csv(path, rows, header=HEADER, **style):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n", **style)
        writer.writerows([header] * bool(header) + list(rows))
    return path


def write_videos(folder):
    for number, video in enumerate(VIDEOS):
        write_video(folder / f"{video}.mp4", make_frames(number), FPS)
    return folder


def write_set(root, videos, rows=None, header=HEADER, name="annotations.csv", **style):
    """A data set with links to the videos and a table, by default a clean one; returns its folder."""
    if not (root / "videos").exists():
        (root / "videos").mkdir()
        for path in videos.iterdir():
            (root / "videos" / path.name).symlink_to(path)
    write_csv(root / name, clean_rows() if rows is None else rows, header, **style)
    return root


def module(root, boxes="pixels", **settings):
    return CustomDataModule(root, SAMPLER, boxes, **{"num_workers": 0, **settings})
