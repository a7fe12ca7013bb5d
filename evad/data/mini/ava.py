"""Generates the default data set, in the layout of AVA: video files, annotations and a label map.

    python -m evad.data.mini ROOT [--train-clips N] [--val-clips N] [--seed N] [--workers N] [--preview FILE]

writes `videos/<video>.mp4`, `annotations/{train.csv,val.csv,label_map.pbtxt}` and `mini.json` into a subfolder of ROOT,
see `mini_folder`. Every video has 16 frames of 64x64 pixels at 8 frames per second and one annotated keyframe: frame 8
(counted from 0), at second 1. This is long enough for a clip of 8 frames with stride 2, or of 16 frames.

`evad.data.mini.scene` chooses the content of a video, `evad.data.mini.render` draws it.
"""

from __future__ import annotations

import argparse
import csv
from collections import Counter
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from PIL import Image, ImageDraw

from evad.data.mini.render import Scene, actor_boxes, render
from evad.data.mini.scene import CLASSES, FPS, IMAGE_SIZE, sample_scene
from evad.data.mini.store import ensure_generated, run_jobs

VERSION = 1  # part of the folder's name; increase it when the same parameters generate different files
NUM_FRAMES = 16
KEYFRAME = NUM_FRAMES // 2
FIRST_SECOND = 0
SECOND = FIRST_SECOND + KEYFRAME // FPS
SPLITS = {"train": 0, "val": 1}
ACTION_IDS = {name: number for number, name in enumerate(CLASSES, start=1)}

# Low compression keeps thin limbs sharp. Without B frames and with a single keyframe, reading all frames is fast. The
# encoder uses one thread, because its output depends on the number of threads.
ENCODER_OPTIONS = {"crf": "14", "preset": "veryfast", "bf": "0", "g": str(NUM_FRAMES), "threads": "1"}


def mini_folder(root: Path | str, train_clips: int = 3000, val_clips: int = 200, seed: int = 0) -> Path:
    """Folder of the data set with these parameters, below `root`."""
    return Path(root) / f"ava-train{train_clips}-val{val_clips}-seed{seed}-v{VERSION}"


def ensure_mini(
    root: Path | str, train_clips: int = 3000, val_clips: int = 200, seed: int = 0, workers: int | None = None
) -> Path:
    """Generate the data set unless it exists; returns its folder. Video i is the same for any number of videos.

    Args:
        root: Parent folder of generated data sets; created if missing.
        workers: Number of rendering processes, which does not affect the result; None: one per processor.

    Raises:
        FileExistsError: The folder of the data set holds other files.
    """
    folder = mini_folder(root, train_clips, val_clips, seed)
    generate = partial(generate_ava, train_clips=train_clips, val_clips=val_clips, seed=seed, workers=workers)
    ensure_generated(folder, mini_parameters(train_clips, val_clips, seed), generate)
    return folder


def generate_ava(root: Path, train_clips: int, val_clips: int, seed: int, workers: int | None) -> None:
    """Write videos and annotations into the empty folder `root`."""
    (root / "videos").mkdir()
    (root / "annotations").mkdir()
    for split, clips in (("train", train_clips), ("val", val_clips)):
        jobs = [ClipJob(seed, split, i, root / "videos" / f"{split}_{i:05d}.mp4") for i in range(clips)]
        rows = run_jobs(make_clip, jobs, f"Generating {split} videos", workers)
        with (root / "annotations" / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(chain.from_iterable(rows))
    (root / "annotations" / "label_map.pbtxt").write_text(label_map_text())


def mini_parameters(train_clips: int, val_clips: int, seed: int) -> dict[str, Any]:
    """Content of `mini.json`: everything that the generated files depend on."""
    for name, clips in (("train_clips", train_clips), ("val_clips", val_clips)):
        if clips < 1:
            raise ValueError(f"{name} is {clips}; it must be 1 or more")
    return {
        "layout": "ava",
        "version": VERSION,
        "train_clips": train_clips,
        "val_clips": val_clips,
        "seed": seed,
        "image_size": IMAGE_SIZE,
        "num_frames": NUM_FRAMES,
        "fps": FPS,
        "annotated_fps": FPS,
        "first_second": FIRST_SECOND,
        "second": SECOND,
        "classes": list(CLASSES),
    }


class Row(NamedTuple):
    """A line of an AVA csv file: one action of one person; the box is xyxy in fractions of the frame."""

    video: str
    second: int
    x1: float
    y1: float
    x2: float
    y2: float
    action: int
    person: int


@dataclass(frozen=True)
class ClipJob:
    """Everything that determines a clip, and the file to write."""

    seed: int
    split: str
    index: int
    path: Path


def clip_scene(seed: int, split: str, index: int) -> Scene:
    """The scene of a clip; every clip has an independent random generator."""
    rng = np.random.Generator(np.random.PCG64([seed, SPLITS[split], index]))
    return sample_scene(rng, NUM_FRAMES)


def make_clip(job: ClipJob) -> list[Row]:
    """Render a clip into its video file and return its annotations."""
    scene = clip_scene(job.seed, job.split, job.index)
    write_video(job.path, render(scene))
    height, width = scene.size
    boxes = actor_boxes(scene)[KEYFRAME] / (width, height, width, height)
    rows = []
    for person, (box, actor) in enumerate(zip(boxes.round(6).tolist(), scene.actors)):
        x1, y1, x2, y2 = box
        rows += [Row(job.path.stem, SECOND, x1, y1, x2, y2, ACTION_IDS[action], person) for action in actor.actions]
    return rows


def write_video(path: Path, frames: np.ndarray) -> None:
    """Encode (T, height, width, 3) uint8 RGB frames as H.264; equal frames give equal files."""
    _, height, width, _ = frames.shape
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options=ENCODER_OPTIONS)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def read_video(path: Path) -> np.ndarray:
    """All frames of a video as (T, height, width, 3) uint8 RGB."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def label_map_text() -> str:
    return "".join(f'item {{\n  name: "{name}"\n  id: {number}\n}}\n' for name, number in ACTION_IDS.items())


def class_counts(annotations: Path) -> dict[str, int]:
    """Number of lines of each class in a csv file of this data set."""
    counts = Counter(row.action for row in read_rows(annotations))
    return {name: counts[number] for name, number in ACTION_IDS.items()}


def read_rows(annotations: Path) -> list[Row]:
    from evad.files import csv_rows  # slow to import, and not needed for rendering

    box = dict.fromkeys(csv_rows.BOX, float)
    layout = csv_rows.Layout({"video": str, "second": int, **box, "action": int, "person": int})
    return [Row(*values) for values in csv_rows.read_rows(annotations, layout).itertuples(index=False)]


def preview(root: Path, out: Path, num_clips: int = 8, zoom: int = 3) -> None:
    """Draw the first validation clips, one per row: every second frame, and boxes on the keyframe.

    The caption of a row lists the actions of the persons from left to right.
    """
    videos: dict[str, dict[int, list[Row]]] = {}  # video -> person -> rows
    for row in read_rows(root / "annotations" / "val.csv"):
        videos.setdefault(row.video, {}).setdefault(row.person, []).append(row)
    size, shown = IMAGE_SIZE * zoom, range(0, NUM_FRAMES, 2)
    sheet = Image.new("RGB", (size * len(shown), size * min(num_clips, len(videos))))
    draw = ImageDraw.Draw(sheet)
    for line, (video, people) in enumerate(list(videos.items())[:num_clips]):
        frames = read_video(root / "videos" / f"{video}.mp4")
        for column, index in enumerate(shown):
            frame = Image.fromarray(frames[index]).resize((size, size), Image.Resampling.NEAREST)
            sheet.paste(frame, (column * size, line * size))
        corner = np.array([KEYFRAME // 2 * size, line * size] * 2)
        for rows in people.values():
            draw.rectangle((np.array(rows[0][2:6]) * size + corner).tolist(), outline="red")
        ordered = sorted(people.values(), key=lambda rows: rows[0].x1)
        captions = [" + ".join(CLASSES[row.action - 1] for row in rows) for rows in ordered]
        draw.text((2, line * size), f"{video}: {' | '.join(captions)}", fill="yellow")
    sheet.save(out)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m evad.data.mini", description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="parent folder of the data set")
    parser.add_argument("--train-clips", type=int, default=3000)
    parser.add_argument("--val-clips", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=None, help="processes (default: one per processor)")
    parser.add_argument("--preview", type=Path, default=None, metavar="FILE", help="also write a picture of some clips")
    arguments = parser.parse_args()
    root = ensure_mini(arguments.root, arguments.train_clips, arguments.val_clips, arguments.seed, arguments.workers)
    print(root)
    for split in SPLITS:
        print(split, class_counts(root / "annotations" / f"{split}.csv"))
    if arguments.preview is not None:
        preview(root, arguments.preview)
