"""Converts and checks the dictionaries in which UCF101-24, JHMDB and MultiSports are distributed."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

UCF101_RESOLUTION = (240, 320)
"""Height and width of all UCF101 videos, which `pyannot.pkl` does not contain."""

_KEYS = ("labels", "train_videos", "test_videos", "nframes", "resolution", "gttubes")


@dataclass(frozen=True)
class Tube:
    """One actor performing one action over consecutive frames.

    Attributes:
        label: Class number from 0.
        first_frame: Number of the first frame; frames are numbered from 1.
        boxes: (n, 4) float64, one box per frame, xyxy in pixels from 0; the box includes its corner pixels.
    """

    label: int
    first_frame: int
    boxes: np.ndarray

    @property
    def frames(self) -> np.ndarray:
        """(n,) int64, the frame number of each box, from 1."""
        return np.arange(self.first_frame, self.first_frame + len(self.boxes))


@dataclass(frozen=True)
class TubeAnnotations:
    """A data set of videos with tubes.

    Attributes:
        labels: Class names; the class number is the index in this list.
        train_videos, test_videos: Names of the videos of each split.
        nframes: {video: number of frames}.
        resolution: {video: (height, width) in pixels}.
        tubes: {video: its tubes}.
    """

    labels: list[str]
    train_videos: list[list[str]]
    test_videos: list[list[str]]
    nframes: dict[str, int]
    resolution: dict[str, tuple[int, int]]
    tubes: dict[str, list[Tube]]

    @property
    def num_splits(self) -> int:
        return len(self.test_videos)

    def videos(self, split: int, subset: Literal["train", "test"]) -> list[str]:
        """Names of the training or test videos of a split; splits are numbered from 1."""
        if not 1 <= split <= self.num_splits:
            raise ValueError(f"split {split} does not exist; choose one of 1 to {self.num_splits}")
        if subset not in ("train", "test"):
            raise ValueError(f"subset {subset!r} does not exist; choose train or test")
        return (self.train_videos if subset == "train" else self.test_videos)[split - 1]


def checked(
    path: Path, content: Mapping[str, Any], test_list: str | Path | None, resolution: tuple[int, int]
) -> TubeAnnotations:
    """Annotations from a dictionary in either of the two layouts.

    Raises:
        ValueError: The content is malformed, or `test_list` is missing or superfluous.
    """
    if "gttubes" not in content:
        if test_list is None:
            missing = ", ".join(key for key in _KEYS if key not in content)
            raise ValueError(f"{path} has no {missing}; if it is a pyannot.pkl, name the list of its test videos")
        return _from_pyannot(path, content, _listed_videos(Path(test_list)), resolution)
    if test_list is not None:
        raise ValueError(f"{path} contains splits; leave out the list of test videos {test_list}")
    return _from_content(path, content)


def _from_content(path: Path, content: Mapping[str, Any]) -> TubeAnnotations:
    if missing := [key for key in _KEYS if key not in content]:
        raise ValueError(f"{path} has no {', '.join(missing)}; expected {', '.join(_KEYS)}")
    labels = [str(label) for label in content["labels"]]
    train, test = ([[str(video) for video in part] for part in content[key]] for key in ("train_videos", "test_videos"))
    if len(train) != len(test):
        raise ValueError(f"{path} has {len(train)} lists of training videos but {len(test)} of test videos")
    nframes: dict[str, int] = {}
    resolutions: dict[str, tuple[int, int]] = {}
    tubes: dict[str, list[Tube]] = {}
    for video in dict.fromkeys([*(video for part in [*train, *test] for video in part), *content["gttubes"]]):
        where = f"{path}, video {video}"
        if video not in content["nframes"] or video not in content["resolution"]:
            raise ValueError(f"{where} has no {'nframes' if video not in content['nframes'] else 'resolution'}")
        nframes[video] = int(content["nframes"][video])
        resolutions[video] = _resolution(where, content["resolution"][video])
        tubes[video] = [
            _tube(where, _class_number(where, number, len(labels)), rows, nframes[video])
            for number, group in content["gttubes"].get(video, {}).items()
            for rows in group
        ]
    return TubeAnnotations(labels, train, test, nframes, resolutions, tubes)


def _resolution(where: str, size: Sequence[int]) -> tuple[int, int]:
    """Check and convert height and width."""
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"{where}: the resolution is {size}, expected (height, width) in pixels")
    return int(size[0]), int(size[1])


def _class_number(where: str, number: object, num_classes: int) -> int:
    """Check and convert a class number."""
    try:
        value = int(number)  # type: ignore[call-overload]
    except (TypeError, ValueError):
        value = -1
    if not 0 <= value < num_classes:
        raise ValueError(f"{where}: unknown class {number!r}; the file names {num_classes} classes, numbered from 0")
    return value


def _tube(where: str, label: int, rows: Any, nframes: int) -> Tube:
    """Check and convert a tube given as rows of frame, x1, y1, x2, y2."""
    try:
        values = np.asarray(rows, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: a tube must be an array of frame, x1, y1, x2, y2: {error}") from None
    if values.ndim != 2 or values.shape[1] != 5 or not len(values):
        raise ValueError(f"{where}: a tube has shape {values.shape}, expected (frames, 5) of frame, x1, y1, x2, y2")
    if not np.isfinite(values).all():
        raise ValueError(f"{where}: a tube has values that are not finite")
    frames = values[:, 0]
    if frames[0] != np.floor(frames[0]) or (np.diff(frames) != 1).any():
        raise ValueError(f"{where}: a tube's frame numbers must increase by one, got {frames[:5].tolist()} ...")
    if frames[0] < 1 or frames[-1] > nframes:
        raise ValueError(f"{where}: a tube spans frames {frames[0]:g} to {frames[-1]:g}, not within 1 to {nframes}")
    inverted = np.flatnonzero((values[:, 1:3] > values[:, 3:]).any(axis=1))
    if len(inverted):
        frame, *box = values[inverted[0]].tolist()
        raise ValueError(f"{where}, frame {frame:g}: the box {box} is inverted; expected x1, y1, x2, y2")
    return Tube(label, int(frames[0]), values[:, 1:])


def _listed_videos(path: Path) -> list[str]:
    """Read the names of test videos: the first word of each line, without `.avi`."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.split()[0].removesuffix(".avi") for line in lines if line.strip()]


def _from_pyannot(
    path: Path, content: Mapping[str, Any], listed: Sequence[str], resolution: tuple[int, int]
) -> TubeAnnotations:
    """Annotations from `pyannot.pkl`, {video: annotations}."""
    labels = _class_names(path, content)
    nframes: dict[str, int] = {}
    tubes: dict[str, list[Tube]] = {}
    for video, entry in content.items():
        where = f"{path}, video {video}"
        if not isinstance(entry, dict) or not {"numf", "annotations"} <= entry.keys():
            raise ValueError(f"{where}: expected a dictionary with numf, label and annotations")
        nframes[video] = int(entry["numf"])
        tubes[video] = [_tube_of_span(where, tube, len(labels), nframes[video]) for tube in entry["annotations"]]
    known = set(content)
    missing = [video for video in listed if video not in known]
    if len(missing) == len(listed):
        raise ValueError(f"{path} has none of the {len(listed)} listed test videos; choose the list of this data set")
    if missing:
        warnings.warn(
            f"{path} has no annotations of {len(missing)} of {len(listed)} listed test videos (first: {missing[0]})",
            stacklevel=3,
        )
    test = [video for video in listed if video in known]
    train = sorted(known - set(test))
    return TubeAnnotations(labels, [train], [test], nframes, dict.fromkeys(content, resolution), tubes)


def _class_names(path: Path, content: Mapping[str, Any]) -> list[str]:
    """Class names in order of their numbers; the name is the folder part of a video's name."""
    names: dict[int, str] = {}
    for video, entry in content.items():
        if not isinstance(entry, dict) or "label" not in entry:
            raise ValueError(f"{path}, video {video}: expected a dictionary with numf, label and annotations")
        name = str(video).split("/")[0]
        if names.setdefault(int(entry["label"]), name) != name:
            raise ValueError(f"{path}, video {video}: class {entry['label']} is already {names[int(entry['label'])]}")
    if sorted(names) != list(range(len(names))):
        raise ValueError(f"{path}: class numbers must be 0, 1, 2, ... without a gap, got {sorted(names)}")
    return [names[number] for number in range(len(names))]


def _tube_of_span(where: str, tube: Any, num_classes: int, nframes: int) -> Tube:
    """Convert a tube of frames sf to ef - 1, counted from 0; a box x, y, w, h covers the pixels x to x + w - 1."""
    if not isinstance(tube, dict) or not {"label", "sf", "ef", "boxes"} <= tube.keys():
        raise ValueError(f"{where}: expected annotations with label, sf, ef and boxes")
    # Convert first: the sum of 8-bit corners and sizes would overflow at 256.
    boxes = np.asarray(tube["boxes"], dtype=np.float64)
    start, end = int(tube["sf"]), int(tube["ef"])
    if boxes.shape != (end - start, 4):
        raise ValueError(f"{where}: boxes of shape {boxes.shape} for frames {start} to {end}, expected (ef - sf, 4)")
    frames = np.arange(start, end) + 1
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:] - 1], axis=1)
    label = _class_number(where, tube["label"], num_classes)
    return _tube(where, label, np.column_stack([frames, corners]), nframes)
