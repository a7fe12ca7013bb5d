"""Turns annotation tables into one table with splits and classes, and that table into keyframes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from evad.data.annotations.classes import UNKNOWN, whole_number
from evad.data.annotations.findings import Finding, Severity
from evad.data.annotations.table import AnnotationTable, TimeUnit
from evad.data.video.clock import Timed, frame_at, second_at
from evad.files.csv_rows import BOX
from evad.structures import Keyframe

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")

BoxUnit = Literal["pixels", "fractions"]

_SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"}


@dataclass(frozen=True)
class VideoInfo:
    """Length, rate and size of a video; the attributes are those that `VideoReader` describes."""

    num_frames: int
    fps: float
    height: int
    width: int
    times: np.ndarray | None = None


@dataclass(frozen=True)
class Clock:
    """Converts annotated times to frames of the video file and to `Keyframe.position`.

    Attributes:
        unit: Unit of the annotated times: `seconds`, or `frames` of the video file.
        first: Annotated time of a video's first frame.
        ticks_per_second: Rate of `Keyframe.position`; None: positions are frames of the file.
    """

    unit: TimeUnit
    first: float = 0.0
    ticks_per_second: float | None = None

    def frame(self, time: np.ndarray | float, video: Timed) -> np.ndarray:
        """Convert times in one video to frames of its file, from 0; may be fractional."""
        since = np.asarray(time, dtype=np.float64) - self.first
        return since if self.unit == "frames" else frame_at(video, since)

    def position(self, time: np.ndarray | float, video: Timed | None) -> np.ndarray:
        """Convert times in one video to `Keyframe.position`; `video` may be None if the times are seconds."""
        since = np.asarray(time, dtype=np.float64) - self.first
        if self.unit == "seconds" and self.ticks_per_second is not None:
            return since * self.ticks_per_second  # does not depend on the file's frame rate
        assert video is not None, "times in frames can be converted only with the video"
        if self.ticks_per_second is None:
            return self.frame(time, video)
        if video.times is None:
            return since * (self.ticks_per_second / video.fps)
        return second_at(video, since) * self.ticks_per_second

    def frames(self, rows: pd.DataFrame, videos: Mapping[str, Timed]) -> np.ndarray:
        """Apply `frame` to rows with the columns `video` and `time`."""
        return _by_video(rows, lambda time, video: self.frame(time, videos[video]))

    def positions(self, rows: pd.DataFrame, videos: Mapping[str, Timed] | None) -> np.ndarray:
        """Apply `position` to rows with the columns `video` and `time`."""
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
    """Every line of a data set's annotations, whether correct or not.

    Attributes:
        rows: `AnnotationTable.rows` with `split` (train, val, or the unknown text in the file) and `class_id`.
        classes: Class names by id, ascending; the columns of the model's output are in this order.
        clock: Meaning of the `time` column.
        given_classes: True if a label file lists the classes, False if they were collected from the annotated labels.
        overhang: Severity of a box that reaches over the frame's edge: `warning` if it is cut off, else `error`.
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
        return self.rows[self.rows["split"] == split]

    @property
    def people(self) -> pd.DataFrame:
        """Rows with a box whose numbers could be read."""
        return self.rows[self.rows["valid"] & ~self.rows["empty"]]


def join_tables(train: AnnotationTable, val: AnnotationTable | None, val_fraction: float, seed: int) -> pd.DataFrame:
    """Divide annotations into training and validation.

    A second table is the validation set. Without it the `split` column decides, and without that column whole videos
    are drawn at random.

    Args:
        train: All annotations, or the training annotations if there is a second table.
        val_fraction: Share of the videos drawn for validation; each split gets at least one video.

    Raises:
        ValueError: The tables have different units of time, or the videos cannot be divided.
    """
    if val is not None:
        if train.unit != val.unit:
            raise ValueError(
                f"times are in {train.unit} in the training annotations, but in {val.unit} in the validation "
                "annotations; use the same unit in both"
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
            "training and validation; annotate more videos, or add a split column with train or val in each line"
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

    Lines with the same box and actor become one box with several classes. To save memory, the arrays of the keyframes
    are slices of a few large arrays.

    Args:
        infos: Facts about the videos of the split; may be None if boxes are fractions and times are seconds.
        class_columns: Class id of each column of `Keyframe.labels`.
    """
    rows = annotations.of(split)
    rows = rows.assign(video=rows["video"].astype("category"), actor=_actor_ids(rows["actor"]))
    rows = rows.sort_values(["video", "time"], kind="stable", ignore_index=True)
    rows["frame"] = rows.groupby(["video", "time"], sort=False, observed=True).ngroup()
    instants = rows.drop_duplicates("frame")
    videos = [infos[video] for video in instants["video"]] if infos is not None else []
    positions = annotations.clock.positions(instants, infos)
    lines = rows[~rows["empty"]]
    box_of_line = lines.groupby(["frame", *BOX, "actor"], sort=False).ngroup().to_numpy()
    people = lines[~pd.Series(box_of_line).duplicated().to_numpy()]
    column = {class_id: place for place, class_id in enumerate(class_columns)}
    labels = np.zeros((len(people), len(class_columns)), dtype=np.float32)
    labels[box_of_line, lines["class_id"].map(column)] = 1
    boxes, actors = people[BOX].to_numpy(np.float64), people["actor"].to_numpy(np.int64)
    if annotations.boxes == "pixels":
        sizes = np.array([(info.width, info.height) * 2 for info in videos], dtype=np.float64).reshape(-1, 4)
        boxes = boxes / sizes[people["frame"]]
    boxes = boxes.clip(0, 1)
    ends = np.searchsorted(people["frame"].to_numpy(), np.arange(len(instants)), side="right")
    starts = np.concatenate(([0], ends[:-1]))
    named = zip(instants["video"].tolist(), instants["timestamp"].tolist(), positions.tolist(), starts, ends)
    return [
        Keyframe(video, timestamp, position, boxes[start:end], labels[start:end], actors[start:end])
        for video, timestamp, position, start, end in named
    ]


def keyframe_rows(keyframes: Sequence[Keyframe], class_columns: Sequence[int]) -> pd.DataFrame:
    """The inverse of `make_keyframes`: a row per label of each box, and a row per keyframe without boxes.

    `time` is the keyframe's position. `line` is 0 and `file` is empty, because keyframes do not record them.
    """
    counts = np.array([len(keyframe.boxes) for keyframe in keyframes], dtype=np.int64)
    boxes = np.concatenate([np.zeros((0, 4)), *(keyframe.boxes for keyframe in keyframes)])
    actors = np.concatenate([np.zeros(0, np.int64), *(keyframe.actors for keyframe in keyframes)])
    no_labels = np.zeros((0, len(class_columns)), np.float32)
    person, column = np.nonzero(np.concatenate([no_labels, *(keyframe.labels for keyframe in keyframes)]))
    empty = np.flatnonzero(counts == 0)
    place = np.concatenate([np.repeat(np.arange(len(keyframes)), counts)[person], empty])
    numbers = np.concatenate([np.array(class_columns, dtype=np.int64)[column], np.full(len(empty), UNKNOWN)])
    rows = pd.DataFrame(np.concatenate([boxes[person], np.full((len(empty), 4), np.nan)]), columns=BOX)
    rows["empty"] = numbers == UNKNOWN
    rows["class_id"] = numbers
    rows["label"] = np.where(rows["empty"], "", numbers.astype(str))
    rows["actor"] = np.concatenate([actors[person], np.full(len(empty), -1)]).astype(str)
    rows["video"] = np.array([keyframe.video for keyframe in keyframes], dtype=object)[place]
    rows["timestamp"] = np.array([keyframe.timestamp for keyframe in keyframes], dtype=object)[place]
    rows["time"] = np.array([keyframe.position for keyframe in keyframes], dtype=np.float64)[place]
    return rows.assign(file="", line=0, valid=True)


def _actor_ids(texts: pd.Series) -> pd.Series:
    """Actors as numbers: as written if all are whole numbers, else in order of appearance; -1 if not given."""
    named = [text for text in texts.unique() if text]
    numbers = {text: whole_number(text) for text in named}
    if None in numbers.values():
        numbers = {text: place for place, text in enumerate(named)}
    return texts.map({**numbers, "": -1}).astype(np.int64)
