"""Annotations as tubes: who does what, frame by frame, as UCF101-24, JHMDB and MultiSports come.

    python -m evad.data.tubes SRC DST [--test-list F] [--resolution H W]

writes SRC as DST.json (the layout of the pickles, as JSON) or DST.parquet (one row per box). `read_tubes` reads both
back, and the two pickles in use (without running what a pickle may contain, see `evad.data.safe_pickle`):

- `UCF101v2-GT.pkl`, `JHMDB-GT.pkl` and MultiSports': a dictionary of `labels`, `train_videos`, `test_videos`,
  `nframes`, `resolution` and `gttubes`;
- `pyannot.pkl` of UCF101-24: {video: {`numf`, `label`, `annotations`}}, whose split is a list of test videos.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from evad.data.safe_pickle import load_plain
from evad.structures import Keyframe

UCF101_RESOLUTION = (240, 320)
"""Height and width of every UCF101 video; `pyannot.pkl` does not say."""

_KEYS = ("labels", "train_videos", "test_videos", "nframes", "resolution", "gttubes")


@dataclass(frozen=True)
class Tube:
    """One actor performing one action over consecutive frames.

    Attributes:
        label: Class number from 0.
        first_frame: Number of the first frame, from 1.
        boxes: (n, 4) float64, xyxy in pixels from 0, one per frame, corner pixels included.
    """

    label: int
    first_frame: int
    boxes: np.ndarray

    @property
    def frames(self) -> np.ndarray:
        """(n,) int64, number of each box's frame, from 1."""
        return np.arange(self.first_frame, self.first_frame + len(self.boxes))


@dataclass(frozen=True)
class TubeAnnotations:
    """A data set of videos with tubes.

    Attributes:
        labels: Class names; a class's number is its place.
        train_videos: Names of the training videos of each split.
        test_videos: Names of the test videos of each split.
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
        """Number of ways in which the videos are divided."""
        return len(self.test_videos)

    def videos(self, split: int, subset: Literal["train", "test"]) -> list[str]:
        """Names of the videos of a subset.

        Args:
            split: Number of the split, from 1.
            subset: Which part.
        """
        if not 1 <= split <= self.num_splits:
            raise ValueError(f"split {split} does not exist; choose one of 1 to {self.num_splits}")
        if subset not in ("train", "test"):
            raise ValueError(f"subset {subset!r} does not exist; choose train or test")
        return (self.train_videos if subset == "train" else self.test_videos)[split - 1]


def read_tubes(
    path: str | Path, test_list: str | Path | None = None, resolution: tuple[int, int] = UCF101_RESOLUTION
) -> TubeAnnotations:
    """Annotations of a data set.

    Args:
        path: .json or .parquet as `write_tubes` writes them, else a pickle.
        test_list: Text file with the name of a test video per line; needed for `pyannot.pkl` and only there.
        resolution: Height and width of the videos of a `pyannot.pkl`.

    Raises:
        ValueError: Truncated or refused pickle, missing key, unknown class, wrong shape, frames outside the video; with
            the name of the video.
    """
    path = Path(path)
    if path.suffix == ".parquet":
        content = _parquet_content(path)
    elif path.suffix == ".json":
        content = _json_content(path)
    else:
        content = load_plain(path)
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a dictionary of annotations")
    try:
        return _checked(path, content, test_list, resolution)
    except (TypeError, AttributeError, KeyError, IndexError) as error:
        raise ValueError(f"{path} is built differently from tube annotations: {error}") from error


def _checked(
    path: Path, content: Mapping[str, Any], test_list: str | Path | None, resolution: tuple[int, int]
) -> TubeAnnotations:
    """Annotations of either packaging."""
    if "gttubes" not in content:
        if test_list is None:
            missing = ", ".join(key for key in _KEYS if key not in content)
            raise ValueError(f"{path} has no {missing}; if it is a pyannot.pkl, name the list of its test videos")
        return _from_pyannot(path, content, _listed_videos(Path(test_list)), resolution)
    if test_list is not None:
        raise ValueError(f"{path} brings its own splits; leave out the list of test videos {test_list}")
    return _from_content(path, content)


def _from_content(path: Path, content: Mapping[str, Any]) -> TubeAnnotations:
    """Checked annotations of the dictionary layout."""
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
    """Height and width, both positive."""
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"{where}: the resolution is {size}, expected (height, width) in pixels")
    return int(size[0]), int(size[1])


def _class_number(where: str, number: object, num_classes: int) -> int:
    """A class number inside the list of names."""
    try:
        value = int(number)  # type: ignore[call-overload]
    except (TypeError, ValueError):
        value = -1
    if not 0 <= value < num_classes:
        raise ValueError(f"{where}: unknown class {number!r}; the file names {num_classes} classes, from 0")
    return value


def _tube(where: str, label: int, rows: Any, nframes: int) -> Tube:
    """A tube from rows of frame, x1, y1, x2, y2."""
    try:
        values = np.asarray(rows, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: a tube is no array of frame, x1, y1, x2, y2: {error}") from None
    if values.ndim != 2 or values.shape[1] != 5 or not len(values):
        raise ValueError(f"{where}: a tube has shape {values.shape}, expected (frames, 5) of frame, x1, y1, x2, y2")
    if not np.isfinite(values).all():
        raise ValueError(f"{where}: a tube has values that are not finite")
    frames = values[:, 0]
    if frames[0] != np.floor(frames[0]) or (np.diff(frames) != 1).any():
        raise ValueError(f"{where}: a tube's frame numbers do not count up by one: {frames[:5].tolist()} ...; split it")
    if frames[0] < 1 or frames[-1] > nframes:
        raise ValueError(f"{where}: a tube spans frames {frames[0]:g} to {frames[-1]:g}, the video has 1 to {nframes}")
    inverted = np.flatnonzero((values[:, 1:3] > values[:, 3:]).any(axis=1))
    if len(inverted):
        frame, *box = values[inverted[0]].tolist()
        raise ValueError(f"{where}, frame {frame:g}: the box {box} ends before it starts; expected x1, y1, x2, y2")
    return Tube(label, int(frames[0]), values[:, 1:])


def _listed_videos(path: Path) -> list[str]:
    """Video names of a split list: first word of each line, without `.avi`."""
    return [
        line.split()[0].removesuffix(".avi") for line in path.read_text(encoding="utf-8").splitlines() if line.strip()
    ]


def _from_pyannot(
    path: Path, content: Mapping[str, Any], listed: Sequence[str], resolution: tuple[int, int]
) -> TubeAnnotations:
    """Checked annotations of the packaging by video; boxes x, y, w, h cover the pixels x to x + w - 1."""
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
        raise ValueError(
            f"{path} has none of the {len(listed)} listed test videos; is it the list of another data set?"
        )
    if missing:
        warnings.warn(
            f"{path} has no annotations of {len(missing)} of {len(listed)} listed test videos (first: {missing[0]})",
            stacklevel=3,
        )
    test = [video for video in listed if video in known]
    train = sorted(known - set(test))
    return TubeAnnotations(labels, [train], [test], nframes, dict.fromkeys(content, resolution), tubes)


def _class_names(path: Path, content: Mapping[str, Any]) -> list[str]:
    """Names of the classes by number, from the folders in the video names."""
    names: dict[int, str] = {}
    for video, entry in content.items():
        if not isinstance(entry, dict) or "label" not in entry:
            raise ValueError(f"{path}, video {video}: expected a dictionary with numf, label and annotations")
        name = str(video).split("/")[0]
        if names.setdefault(int(entry["label"]), name) != name:
            raise ValueError(f"{path}, video {video}: class {entry['label']} is already {names[int(entry['label'])]}")
    if sorted(names) != list(range(len(names))):
        raise ValueError(f"{path}: class numbers {sorted(names)} do not count from 0 without a gap")
    return [names[number] for number in range(len(names))]


def _tube_of_span(where: str, tube: Any, num_classes: int, nframes: int) -> Tube:
    """A tube from its first frame and one past its last, both from 0, and boxes x, y, w, h."""
    if not isinstance(tube, dict) or not {"label", "sf", "ef", "boxes"} <= tube.keys():
        raise ValueError(f"{where}: expected annotations with label, sf, ef and boxes")
    # 8-bit corners plus 8-bit sizes would wrap around at 256.
    boxes = np.asarray(tube["boxes"], dtype=np.float64)
    if boxes.ndim != 2 or boxes.shape != (int(tube["ef"]) - int(tube["sf"]), 4):
        raise ValueError(
            f"{where}: boxes of shape {boxes.shape} for frames {tube['sf']} to {tube['ef']}, expected (ef - sf, 4)"
        )
    frames = np.arange(int(tube["sf"]), int(tube["ef"])) + 1
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:] - 1], axis=1)
    label = _class_number(where, tube["label"], num_classes)
    return _tube(where, label, np.column_stack([frames, corners]), nframes)


def keyframes(
    annotations: TubeAnnotations,
    split: int,
    subset: Literal["train", "test"] = "train",
    every_frame: bool = False,
) -> list[Keyframe]:
    """Every annotated frame of a subset as a keyframe.

    A box covers its corner pixels, so the whole frame, pixels 0 to width - 1, is 0 to 1. Boxes that reach outside the
    frame are clipped, boxes wholly outside are left out, and a warning counts both.

    Args:
        annotations: The data set.
        split: Number of the split, from 1.
        subset: Which part.
        every_frame: Frames without annotation too, as keyframes without boxes: the evaluation programs count what is
            detected there as false positives, and tubes are linked through them.

    Returns:
        Keyframes by video in the order of the split, by ascending frame. Timestamp is the frame number from 1,
        position that from 0, actor the number of the tube in its video, labels are one-hot.
    """
    result: list[Keyframe] = []
    clipped: list[str] = []
    outside: list[str] = []
    for video in annotations.videos(split, subset):
        result += _video_keyframes(annotations, video, every_frame, clipped, outside)
    for places, fate in ((clipped, "reach outside the frame and were clipped"), (outside, "lie outside: left out")):
        if places:
            warnings.warn(f"{len(places)} boxes {fate} (first: {places[0]})", stacklevel=2)
    return result


def _video_keyframes(
    annotations: TubeAnnotations, video: str, every_frame: bool, clipped: list[str], outside: list[str]
) -> Iterator[Keyframe]:
    """Keyframes of a video; notes where boxes were clipped or left out."""
    tubes = annotations.tubes[video]
    height, width = annotations.resolution[video]
    frames = np.concatenate([np.zeros(0, dtype=np.int64), *(tube.frames for tube in tubes)])
    corners = np.concatenate([np.zeros((0, 4)), *(tube.boxes for tube in tubes)])
    actors = np.repeat(np.arange(len(tubes)), np.array([len(tube.boxes) for tube in tubes], dtype=np.int64))
    classes = np.array([tube.label for tube in tubes], dtype=np.int64)[actors]
    edges = (corners + np.array([0, 0, 1, 1])) / [width, height, width, height]
    boxes = np.clip(edges, 0.0, 1.0)
    inside = (boxes[:, :2] < boxes[:, 2:]).all(axis=1)
    clipped += [f"video {video}, frame {frame}" for frame in frames[inside & (boxes != edges).any(axis=1)]]
    outside += [f"video {video}, frame {frame}" for frame in frames[~inside]]
    rows = np.flatnonzero(inside)
    rows = rows[np.argsort(frames[rows], kind="stable")]
    labels = np.eye(len(annotations.labels), dtype=np.float32)[classes]
    wanted = np.arange(1, annotations.nframes[video] + 1) if every_frame else np.unique(frames[rows])
    starts, ends = (np.searchsorted(frames[rows], wanted, side) for side in ("left", "right"))
    for frame, start, end in zip(wanted.tolist(), starts.tolist(), ends.tolist()):
        chosen = rows[start:end]
        yield Keyframe(video, str(frame), float(frame - 1), boxes[chosen], labels[chosen], actors[chosen])


def write_tubes(annotations: TubeAnnotations, path: str | Path) -> None:
    """Write annotations in a format that any language reads; `read_tubes` is the inverse.

    Args:
        annotations: The data set.
        path: .json (the dictionary layout, class numbers as text) or .parquet (a row per box: video, label, tube,
            frame, x1, y1, x2, y2; everything else as JSON in the schema's metadata under `evad`).

    Raises:
        ValueError: Another suffix.
    """
    path = Path(path)
    about = {
        "labels": annotations.labels,
        "train_videos": annotations.train_videos,
        "test_videos": annotations.test_videos,
        "nframes": annotations.nframes,
        "resolution": annotations.resolution,
    }
    if path.suffix == ".json":
        path.write_text(json.dumps(about | {"gttubes": _tubes_by_class(annotations)}), encoding="utf-8")
    elif path.suffix == ".parquet":
        parquet.write_table(_box_table(annotations).replace_schema_metadata({"evad": json.dumps(about)}), path)
    else:
        raise ValueError(f"{path}: annotations are written as .json or .parquet, not {path.suffix or 'without suffix'}")


def _tubes_by_class(annotations: TubeAnnotations) -> dict[str, dict[str, list[list[list[float]]]]]:
    """{video: {class number: tubes as rows of frame, x1, y1, x2, y2}}."""
    grouped: dict[str, dict[str, list[list[list[float]]]]] = {}
    for video, tubes in annotations.tubes.items():
        grouped[video] = {}
        for tube in tubes:
            rows = np.column_stack([tube.frames, tube.boxes]).tolist()
            grouped[video].setdefault(str(tube.label), []).append(rows)
    return grouped


def _box_table(annotations: TubeAnnotations) -> pa.Table:
    """One row per box."""
    tubes = [(video, number, tube) for video, group in annotations.tubes.items() for number, tube in enumerate(group)]
    lengths = [len(tube.boxes) for _, _, tube in tubes]
    boxes = np.concatenate([np.zeros((0, 4)), *(tube.boxes for _, _, tube in tubes)])
    frames = np.concatenate([np.zeros(0, dtype=np.int64), *(tube.frames for _, _, tube in tubes)])
    columns = {
        "video": np.repeat(np.array([video for video, _, _ in tubes], dtype=object), lengths),
        "label": np.repeat(np.array([tube.label for _, _, tube in tubes], dtype=np.int64), lengths),
        "tube": np.repeat(np.array([number for _, number, _ in tubes], dtype=np.int64), lengths),
        "frame": frames,
        **{name: boxes[:, column] for column, name in enumerate(("x1", "y1", "x2", "y2"))},
    }
    types = {"video": pa.string(), "label": pa.int64(), "tube": pa.int64(), "frame": pa.int64()}
    return pa.table({name: pa.array(values, types.get(name, pa.float64())) for name, values in columns.items()})


def _json_content(path: Path) -> Any:
    """The dictionary layout, from JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is truncated or no JSON: {error}") from None


def _parquet_content(path: Path) -> Any:
    """The dictionary layout, from Parquet."""
    try:
        table = parquet.read_table(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is truncated or no Parquet file: {error}") from None
    about = (table.schema.metadata or {}).get(b"evad")
    if about is None:
        raise ValueError(f"{path} was not written by evad.data.tubes: its schema has no metadata `evad`")
    content = json.loads(about)
    gttubes: dict[str, dict[int, list[np.ndarray]]] = {}
    rows = table.to_pandas()
    values = rows[["frame", "x1", "y1", "x2", "y2"]].to_numpy(np.float64)
    for (video, _), places in rows.groupby(["video", "tube"], sort=False).indices.items():
        gttubes.setdefault(video, {}).setdefault(int(rows["label"].iat[places[0]]), []).append(values[places])
    return content | {"gttubes": gttubes}


def summary(annotations: TubeAnnotations) -> str:
    """What a data set holds, in a line per fact: size, splits, videos without tubes, boxes outside the frame."""
    tubes = [(video, tube) for video, group in annotations.tubes.items() for tube in group]
    boxes = sum(len(tube.boxes) for _, tube in tubes)
    outside = [(video, count) for video, tube in tubes if (count := _num_outside(annotations.resolution[video], tube))]
    bare = [video for video, group in annotations.tubes.items() if not group]
    splits = zip(annotations.train_videos, annotations.test_videos)
    return "\n".join(
        [
            f"{len(annotations.nframes)} videos, {len(annotations.labels)} classes, {len(tubes)} tubes, {boxes} boxes",
            *(
                f"split {i}: {len(train)} training and {len(test)} test videos"
                for i, (train, test) in enumerate(splits, 1)
            ),
            f"{len(bare)} videos without a tube" + (f" (first: {bare[0]})" if bare else ""),
            f"{sum(count for _, count in outside)} boxes reach outside the frame"
            + (f" (first: video {outside[0][0]})" if outside else ""),
        ]
    )


def _num_outside(resolution: tuple[int, int], tube: Tube) -> int:
    """Number of a tube's boxes with a corner outside the frame."""
    height, width = resolution
    return int(((tube.boxes < 0) | (tube.boxes > [width - 1, height - 1] * 2)).any(axis=1).sum())


def main(arguments: Sequence[str] | None = None) -> None:
    """Convert tube annotations to JSON or Parquet and say what they hold."""
    parser = argparse.ArgumentParser(prog="python -m evad.data.tubes", description="Convert tube annotations.")
    parser.add_argument("source", metavar="SRC", help="pickle, .json or .parquet")
    parser.add_argument("destination", metavar="DST", help=".json or .parquet")
    parser.add_argument("--test-list", metavar="F", help="names of the test videos (pyannot.pkl only)")
    parser.add_argument(
        "--resolution", nargs=2, type=int, default=UCF101_RESOLUTION, metavar=("H", "W"), help="(pyannot.pkl only)"
    )
    options = parser.parse_args(arguments)
    try:
        annotations = read_tubes(options.source, options.test_list, tuple(options.resolution))
        write_tubes(annotations, options.destination)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(summary(annotations))


if __name__ == "__main__":
    main()
