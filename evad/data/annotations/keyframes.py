"""All annotations of a data set, good lines and bad: classes, splits and clock, and the keyframes they make."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from evad.data.annotations.findings import Finding, Severity
from evad.data.annotations.table import BOX, AnnotationTable, TimeUnit, read_table
from evad.data.video.clock import Timed, frame_at, second_at
from evad.files.label_map import read_label_map
from evad.structures import Keyframe

BoxUnit = Literal["pixels", "fractions"]

UNKNOWN = -1
"""`class_id` of a label that is no class, and of instants with nobody in them."""

_SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"}
_LABEL_FILES = ("labels.txt", "label_map.pbtxt", "label_map.txt")


@dataclass(frozen=True)
class VideoInfo:
    """What a video says about itself.

    Attributes:
        num_frames: Number of frames.
        fps: Frames per second, see `Timed`.
        height: Height of a frame in pixels, as displayed.
        width: Width of a frame in pixels, as displayed.
        times: When each frame is shown where the rate varies, see `Timed`.
    """

    num_frames: int
    fps: float
    height: int
    width: int
    times: np.ndarray | None = None


@dataclass(frozen=True)
class Clock:
    """How annotated times count.

    Attributes:
        unit: `seconds`, or `frames` of the video file.
        first: The time of a video's first frame.
        ticks_per_second: Rate of `Keyframe.position`; None: positions are frames of the file.
    """

    unit: TimeUnit
    first: float = 0.0
    ticks_per_second: float | None = None

    def frame(self, time: np.ndarray | float, video: Timed) -> np.ndarray:
        """Times in one video as frames of its file, from 0, with a fraction."""
        since = np.asarray(time, dtype=np.float64) - self.first
        return since if self.unit == "frames" else frame_at(video, since)

    def position(self, time: np.ndarray | float, video: Timed | None) -> np.ndarray:
        """Times in one video as `Keyframe.position`; without the video they must be seconds."""
        since = np.asarray(time, dtype=np.float64) - self.first
        if self.unit == "seconds" and self.ticks_per_second is not None:
            return since * self.ticks_per_second  # whatever the file's rate
        assert video is not None, "frames of the file need the file"
        if self.ticks_per_second is None:
            return self.frame(time, video)
        if video.times is None:
            return since * (self.ticks_per_second / video.fps)
        return second_at(video, since) * self.ticks_per_second

    def frames(self, rows: pd.DataFrame, videos: Mapping[str, Timed]) -> np.ndarray:
        """`frame` of rows with the columns `video` and `time`."""
        return _by_video(rows, lambda time, video: self.frame(time, videos[video]))

    def positions(self, rows: pd.DataFrame, videos: Mapping[str, Timed] | None) -> np.ndarray:
        """`position` of rows with the columns `video` and `time`."""
        if videos is None:
            return self.position(rows["time"].to_numpy(), None)
        return _by_video(rows, lambda time, video: self.position(time, videos[video]))


def _by_video(rows: pd.DataFrame, convert: Callable[[np.ndarray, str], np.ndarray]) -> np.ndarray:
    time, converted = rows["time"].to_numpy(dtype=np.float64), np.empty(len(rows))
    for video, index in rows.groupby("video", sort=False).indices.items():
        converted[index] = convert(time[index], str(video))
    return converted


@dataclass(frozen=True)
class Annotations:
    """Every line of a data set's annotations.

    Attributes:
        rows: As `AnnotationTable.rows`, with `split` (train or val, else as spelt) and `class_id` (or UNKNOWN).
        classes: Class names by id, ascending; ids are the columns of the model's output in this order.
        evaluated: Ids that the evaluation counts.
        boxes: Unit of the boxes.
        clock: How times count.
        given_classes: Whether a label file gives the classes (else they are those of the lines).
        overhang: Severity of a box that reaches over the frame's edge: `error` where the reader refuses it, `warning`
            where it is cut off.
        findings: What reading them brought up.
    """

    rows: pd.DataFrame
    classes: dict[int, str]
    evaluated: list[int]
    boxes: BoxUnit
    clock: Clock
    given_classes: bool
    overhang: Severity
    findings: list[Finding]

    def of(self, split: str) -> pd.DataFrame:
        """Rows of one split."""
        return self.rows[self.rows["split"] == split]

    @property
    def people(self) -> pd.DataFrame:
        """Rows that hold a box whose numbers can be read."""
        return self.rows[self.rows["valid"] & ~self.rows["nobody"]]


def find_label_file(folder: Path, given: str | None) -> Path | None:
    """The file that lists the classes; None if there is none and none was asked for.

    Args:
        folder: Where to look.
        given: Name of the file; None: labels.txt, label_map.pbtxt, label_map.txt, or the only .pbtxt file.

    Raises:
        FileNotFoundError: The given file is not there.
    """
    if given is not None:
        if not (folder / given).is_file():
            raise FileNotFoundError(f"{folder / given}: no such label file; correct data.labels, or leave it out")
        return folder / given
    for name in _LABEL_FILES:
        if (folder / name).is_file():
            return folder / name
    maps = sorted(folder.glob("*.pbtxt"))
    return maps[0] if len(maps) == 1 else None


def derive_classes(labels: pd.Series) -> dict[int, str]:
    """Classes by id from the labels that occur: whole numbers are ids, anything else is numbered from 1 by name."""
    texts = sorted({text for text in labels.unique() if text})
    numbers = {text: _whole(text) for text in texts}
    if texts and all(number is not None for number in numbers.values()):
        return {number: str(number) for number in sorted({n for n in numbers.values() if n is not None})}
    return dict(enumerate(texts, 1))


def read_classes(root: str | Path, labels: str | None, tables: Sequence[str]) -> tuple[dict[int, str], Path | None]:
    """Classes by id of a data set, from its label file, else from the labels that occur.

    Args:
        root: Folder of the data set.
        labels: See `find_label_file`; beside the first table.
        tables: Annotation files below `root`.

    Returns:
        {id: name}; the label file, or None.
    """
    path = find_label_file((Path(root) / tables[0]).parent, labels)
    if path is not None:
        return read_label_map(path), path
    occurring = [read_table(Path(root) / name).rows["label"] for name in tables]
    return derive_classes(pd.concat(occurring, ignore_index=True)), None


def count_labels(root: str, labels: str | None, *tables: str | None) -> int:
    """Number of classes of a data set, for `${num_labels:root,labels,table,...}` in YAML."""
    return len(read_classes(root, labels, [name for name in tables if name])[0])


def find_class_ids(labels: pd.Series, classes: Mapping[int, str]) -> pd.Series:
    """Class id of each label, by name or else by number; UNKNOWN where neither exists."""
    by_name = {name: number for number, name in classes.items()}
    ids = {}
    for text in labels.unique():
        number = _whole(text)
        ids[text] = by_name.get(text, number if number in classes else UNKNOWN)
    return labels.map(ids).astype(np.int64)


def _whole(text: str) -> int | None:
    """A text as whole number (`3`, `3.0`), or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return int(value) if value.is_integer() else None


def join_tables(train: AnnotationTable, val: AnnotationTable | None, val_fraction: float, seed: int) -> pd.DataFrame:
    """All rows with their split: by file, else by the `split` column, else whole videos drawn at random.

    Args:
        train: The annotations, of training alone if there is a second table.
        val: Annotations of validation.
        val_fraction: Share of the videos that validate, where they are drawn; at least one does and one does not.
        seed: Seed of the drawing.
    """
    if val is not None:
        if train.unit != val.unit:
            raise ValueError(
                f"the training annotations give times in {train.unit}, those of validation in {val.unit}; use one"
            )
        return pd.concat([train.rows.assign(split="train"), val.rows.assign(split="val")], ignore_index=True)
    rows = train.rows.copy()
    if (rows["split"] != "").any():
        rows["split"] = rows["split"].map(lambda text: _SPLITS.get(text.lower(), text))
        return rows
    videos = sorted(rows["video"].unique())
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction is {val_fraction}; it must be between 0 and 1")
    if len(videos) < 2:
        raise ValueError(
            f"{rows['file'].iloc[0] if len(rows) else 'the annotations'}: {len(videos)} videos cannot be divided into "
            "training and validation; annotate more, or say with a split column which lines are train and val"
        )
    count = min(max(round(val_fraction * len(videos)), 1), len(videos) - 1)
    drawn = np.random.default_rng(seed).permutation(len(videos))[:count]
    validation = {videos[index] for index in drawn}
    rows["split"] = ["val" if video in validation else "train" for video in rows["video"]]
    return rows


def make_keyframes(
    annotations: Annotations, split: str, infos: Mapping[str, VideoInfo] | None, class_columns: Sequence[int]
) -> list[Keyframe]:
    """Keyframes of a split, ordered by video and time; boxes as fractions, cut off at the frame's edges.

    Lines with the same box and actor become one box with several classes.

    Args:
        annotations: Their rows must be sound.
        split: train or val.
        infos: What the videos of the split say about themselves; None will do for boxes in fractions and times in
            seconds.
        class_columns: Class id of each column of `Keyframe.labels`.
    """
    rows = annotations.of(split).sort_values(["video", "time"], kind="stable", ignore_index=True)
    rows = rows.assign(actor=_actor_ids(rows["actor"]), frame=rows.groupby(["video", "time"], sort=False).ngroup())
    instants = rows.drop_duplicates("frame")
    videos = [infos[video] for video in instants["video"]] if infos is not None else []
    positions = annotations.clock.positions(instants, infos)
    lines = rows[~rows["nobody"]]
    box_of_line = lines.groupby(["frame", *BOX, "actor"], sort=False).ngroup().to_numpy()
    people = lines[~pd.Series(box_of_line).duplicated().to_numpy()]
    column = {class_id: place for place, class_id in enumerate(class_columns)}
    labels = np.zeros((len(people), len(class_columns)), dtype=np.float32)
    labels[box_of_line, [column[class_id] for class_id in lines["class_id"]]] = 1
    boxes, actors = people[BOX].to_numpy(np.float64), people["actor"].to_numpy(np.int64)
    if annotations.boxes == "pixels":
        sizes = np.array([(info.width, info.height) * 2 for info in videos], dtype=np.float64).reshape(-1, 4)
        boxes = boxes / sizes[people["frame"]]
    boxes = boxes.clip(0, 1)
    ends = np.searchsorted(people["frame"].to_numpy(), np.arange(len(instants)), side="right")
    starts = np.concatenate(([0], ends[:-1]))
    named = zip(instants["video"], instants["timestamp"], positions.tolist(), starts, ends)
    return [
        Keyframe(video, timestamp, position, boxes[start:end], labels[start:end], actors[start:end])
        for video, timestamp, position, start, end in named
    ]


def _actor_ids(texts: pd.Series) -> pd.Series:
    """Actors as numbers: as given where all are whole numbers, else in order of appearance; -1 where there is none."""
    named = [text for text in texts.unique() if text]
    numbers = {text: _whole(text) for text in named}
    if any(number is None for number in numbers.values()):
        numbers = {text: place for place, text in enumerate(named)}
    return texts.map({**numbers, "": -1}).astype(np.int64)
