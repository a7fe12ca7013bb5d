"""Generates data sets in the layouts of UCF101-24 and JHMDB: frame images and a pickle of tubes.

    python -m evad.data.mini.tubes ROOT --layout ucf24|jhmdb [--num-videos N] [--seed N] [--workers N]

writes into a subfolder of ROOT, see `mini_tubes_folder`:

- ucf24: `rgb-images/<class>/<video>/00001.jpg`, ... and `UCF101v2-GT.pkl`. There is one split; a video has one or two
  tubes, and some tubes cover only a part of it.
- jhmdb: `Frames/<class>/<video>/00001.png`, ... and `JHMDB-GT.pkl`. There are three splits; a video has one tube, from
  its first to its last frame.
- both: `mini.json`. All actors of a video have the same class, one of seven (`watch` does not occur).
"""

from __future__ import annotations

import argparse
import pickle
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from evad.data.mini.render import Scene, actor_boxes, render
from evad.data.mini.scene import GESTURES, IMAGE_SIZE, POSES, sample_scene
from evad.data.mini.store import ensure_generated, run_jobs

VERSION = 1  # part of the folder's name; increase it when the same parameters generate different files
TUBE_CLASSES = (*POSES, *GESTURES)  # class numbers 0 to 6
SHORTEST_TUBE = 16  # frames; linking usually drops tubes shorter than 15
RANDOM_STREAM = 2  # part of the seed; the splits of `evad.data.mini.ava` have 0 and 1


@dataclass(frozen=True)
class Layout:
    """Differences between the two layouts.

    Attributes:
        frames: Folder of the frame images.
        suffix: Image format, `.jpg` (lossy) or `.png`.
        num_splits: 1 or 3; every split tests on a different third of the videos.
        most_actors: Largest number of actors per video.
        partial: Whether half of the tubes cover only a part of the video.
        lengths: Smallest and largest number of frames of a video.
    """

    frames: str
    suffix: str
    pickle: str
    num_splits: int
    most_actors: int
    partial: bool
    lengths: tuple[int, int]


LAYOUTS = {
    "ucf24": Layout("rgb-images", ".jpg", "UCF101v2-GT.pkl", 1, 2, True, (20, 28)),
    "jhmdb": Layout("Frames", ".png", "JHMDB-GT.pkl", 3, 1, False, (16, 24)),
}


def mini_tubes_folder(root: Path | str, layout: str, num_videos: int = 420, seed: int = 0) -> Path:
    """Folder of the data set with these parameters, below `root`."""
    return Path(root) / f"{layout}-{num_videos}-seed{seed}-v{VERSION}"


def ensure_mini_tubes(
    root: Path | str, layout: str, num_videos: int = 420, seed: int = 0, workers: int | None = None
) -> Path:
    """Generate the data set unless it exists; returns its folder.

    Args:
        root: Parent folder of generated data sets; created if missing.
        num_videos: Total number of videos, evenly divided among the classes.
        workers: Number of rendering processes, which does not affect the result; None: one per processor.

    Raises:
        ValueError: The layout is unknown, or a class would have no test video or no training video.
        FileExistsError: The folder of the data set holds other files.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout is {layout!r}; it must be one of {', '.join(LAYOUTS)}")
    fewest = 3 * len(TUBE_CLASSES)
    if num_videos < fewest:
        raise ValueError(f"num_videos is {num_videos}; every class needs 3 videos: give {fewest} or more")
    folder = mini_tubes_folder(root, layout, num_videos, seed)
    parameters = {
        "layout": layout,
        "version": VERSION,
        "num_videos": num_videos,
        "seed": seed,
        "image_size": IMAGE_SIZE,
        "classes": list(TUBE_CLASSES),
    }
    generate = partial(generate_tubes, layout=layout, num_videos=num_videos, seed=seed, workers=workers)
    ensure_generated(folder, parameters, generate)
    return folder


def generate_tubes(root: Path, layout: str, num_videos: int, seed: int, workers: int | None) -> None:
    """Write frames and annotations into the empty folder `root`."""
    jobs = [TubeJob(seed, layout, index, root) for index in range(num_videos)]
    videos = run_jobs(make_video, jobs, f"Generating {layout} videos", workers)
    with (root / LAYOUTS[layout].pickle).open("wb") as file:
        pickle.dump(_annotations(videos, LAYOUTS[layout].num_splits), file, protocol=2)


@dataclass(frozen=True)
class TubeJob:
    """Everything that determines a video, and the folder of the data set."""

    seed: int
    layout: str
    index: int
    root: Path

    @property
    def action(self) -> str:
        return TUBE_CLASSES[self.index % len(TUBE_CLASSES)]


@dataclass(frozen=True)
class TubeVideo:
    """Annotation of one video.

    Attributes:
        action: Class number from 0.
        tubes: Each (frames, 5) float64: frame number from 1, x1, y1, x2, y2 in pixels, corner pixels included.
    """

    name: str
    action: int
    num_frames: int
    tubes: list[np.ndarray]


def video_scene(job: TubeJob) -> Scene:
    """The scene of a video; every video has an independent random generator."""
    layout = LAYOUTS[job.layout]
    rng = np.random.Generator(np.random.PCG64([job.seed, RANDOM_STREAM, job.index]))
    num_frames = int(rng.integers(layout.lengths[0], layout.lengths[1] + 1))
    num_actors = int(rng.integers(1, layout.most_actors + 1))
    visible = np.ones((num_actors, num_frames), dtype=bool)
    for row in visible:
        if layout.partial and rng.uniform() < 0.5:
            length = int(rng.integers(SHORTEST_TUBE, num_frames))
            start = int(rng.integers(num_frames - length + 1))
            row[:start] = row[start + length :] = False
    return sample_scene(rng, num_frames, num_actors, job.action, visible)


def make_video(job: TubeJob) -> TubeVideo:
    """Render a video into its frame folder and return its annotation."""
    layout, scene = LAYOUTS[job.layout], video_scene(job)
    name = f"{job.action}/{job.action}_{job.index:05d}"
    folder = job.root / layout.frames / name
    folder.mkdir(parents=True)
    frames = render(scene)
    for number, frame in enumerate(frames, start=1):
        # These options keep colours sharp in JPEG; PNG ignores them.
        Image.fromarray(frame).save(folder / f"{number:05d}{layout.suffix}", quality=95, subsampling=0)
    boxes = actor_boxes(scene) - np.array([0, 0, 1, 1])  # corner pixels are part of a box
    numbers = np.arange(1, len(frames) + 1)[:, None]
    tubes = []
    for index, actor in enumerate(scene.actors):
        track = np.concatenate([numbers, boxes[:, index]], axis=1)  # (T, 5)
        tubes.append(track[actor.visible])
    return TubeVideo(name, TUBE_CLASSES.index(job.action), len(frames), tubes)


def _annotations(videos: list[TubeVideo], num_splits: int) -> dict[str, Any]:
    """Contents of the pickle; split i tests on every third video of each class, starting with video i."""
    turns = [index // len(TUBE_CLASSES) % 3 for index in range(len(videos))]  # number of a video in its class, modulo 3
    return {
        "labels": list(TUBE_CLASSES),
        "train_videos": [[v.name for v, turn in zip(videos, turns) if turn != split] for split in range(num_splits)],
        "test_videos": [[v.name for v, turn in zip(videos, turns) if turn == split] for split in range(num_splits)],
        "nframes": {v.name: v.num_frames for v in videos},
        "resolution": {v.name: (IMAGE_SIZE, IMAGE_SIZE) for v in videos},
        # Converted here, because arrays from several processes do not share a dtype object: the bytes would differ.
        "gttubes": {v.name: {v.action: [tube.astype(np.float32) for tube in v.tubes]} for v in videos},
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m evad.data.mini.tubes", description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="parent folder of the data set")
    parser.add_argument("--layout", choices=sorted(LAYOUTS), required=True)
    parser.add_argument("--num-videos", type=int, default=420)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=None, help="processes (default: one per processor)")
    arguments = parser.parse_args()
    print(ensure_mini_tubes(arguments.root, arguments.layout, arguments.num_videos, arguments.seed, arguments.workers))


if __name__ == "__main__":
    main()
