"""All annotations of a data set, correct or not, with their clock and splits, and the keyframes made of them."""

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
    """Length, rate and size of a video.

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
        given_classes: Whether a label file gives the classes; else they are those of the lines.
        overhang: Severity of a box that reaches over the frame's edge: `error`, or `warning` where it is cut off.
        findings: What was found while reading.
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


def join_tables(train: AnnotationTable, val: AnnotationTable | None, val_fraction: float, seed: int) -> pd.DataFrame:
    """All rows with their split: by file, else by the `split` column, else whole videos drawn at random.

    Args:
        train: The annotations; only those of training if there is a second table.
        val: Annotations of validation.
        val_fraction: Share of the videos that are drawn for validation; at least one is drawn and one is not.
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

    Lines with the same box and actor become one box with several classes. The arrays of all keyframes are slices of
    common ones.

    Args:
        annotations: Their rows must be sound.
        split: train or val.
        infos: Length, rate and size of the videos of the split; may be None if boxes are fractions and times seconds.
        class_columns: Class id of each column of `Keyframe.labels`.
    """
    rows = annotations.of(split)
    rows = rows.assign(video=rows["video"].astype("category"), actor=_actor_ids(rows["actor"]))
    rows = rows.sort_values(["video", "time"], kind="stable", ignore_index=True)
    rows["frame"] = rows.groupby(["video", "time"], sort=False, observed=True).ngroup()
    instants = rows.drop_duplicates("frame")
    videos = [infos[video] for video in instants["video"]] if infos is not None else []
    positions = annotations.clock.positions(instants, infos)
    lines = rows[~rows["nobody"]]
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
    """The inverse of `make_keyframes`: a row per label of each box, and one per keyframe with nobody in it.

    `time` is the keyframe's position, `line` 0 and `file` empty, as the lines are not known.
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
    rows["nobody"] = numbers == UNKNOWN
    rows["class_id"] = numbers
    rows["label"] = np.where(rows["nobody"], "", numbers.astype(str))
    rows["actor"] = np.concatenate([actors[person], np.full(len(empty), -1)]).astype(str)
    rows["video"] = np.array([keyframe.video for keyframe in keyframes], dtype=object)[place]
    rows["timestamp"] = np.array([keyframe.timestamp for keyframe in keyframes], dtype=object)[place]
    rows["time"] = np.array([keyframe.position for keyframe in keyframes], dtype=np.float64)[place]
    return rows.assign(file="", line=0, valid=True)


def _actor_ids(texts: pd.Series) -> pd.Series:
    """Actors as numbers: as given where all are whole numbers, else in order of appearance; -1 where there is none."""
    named = [text for text in texts.unique() if text]
    numbers = {text: whole_number(text) for text in named}
    if None in numbers.values():
        numbers = {text: place for place, text in enumerate(named)}
    return texts.map({**numbers, "": -1}).astype(np.int64)
