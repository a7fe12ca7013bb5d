"""Reads, writes and converts annotations as tubes, the format of UCF101-24, JHMDB and MultiSports.

    python -m evad.files.tubes SRC DST [--test-list F] [--resolution H W]

writes SRC as DST.json (with the layout of the pickles) or DST.parquet (one row per box). `read_tubes` reads both, and
the two kinds of pickles in use, without running code from a pickle (see `evad.files.safe_pickle`):

- `UCF101v2-GT.pkl`, `JHMDB-GT.pkl` and MultiSports': a dictionary of `labels`, `train_videos`, `test_videos`,
  `nframes`, `resolution` and `gttubes`;
- `pyannot.pkl` of UCF101-24: {video: {`numf`, `label`, `annotations`}}; a text file lists the test videos.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from evad.files.csv_rows import BOX
from evad.files.safe_pickle import load_plain
from evad.files.tube_packages import UCF101_RESOLUTION, Tube, TubeAnnotations, checked


def read_tubes(
    path: str | Path, test_list: str | Path | None = None, resolution: tuple[int, int] = UCF101_RESOLUTION
) -> TubeAnnotations:
    """Read and check the annotations of a data set.

    Args:
        path: .json or .parquet written by `write_tubes`, or a pickle.
        test_list: Text file with the name of a test video per line; needed only for `pyannot.pkl`.
        resolution: Height and width of the videos, used only for `pyannot.pkl`.

    Raises:
        ValueError: Truncated or refused pickle, missing key, unknown class, wrong shape, or frames outside the video;
            the text names the video.
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
        return checked(path, content, test_list, resolution)
    except (TypeError, AttributeError, KeyError, IndexError) as error:
        raise ValueError(f"{path} does not have the layout of tube annotations: {error}") from error


def write_tubes(annotations: TubeAnnotations, path: str | Path) -> None:
    """Write annotations as JSON or Parquet; `read_tubes` is the inverse.

    Args:
        path: .json (the dictionary layout, class numbers as text) or .parquet (a row per box: video, label, tube,
            frame, x1, y1, x2, y2; everything else as JSON in the schema's metadata under `evad`).

    Raises:
        ValueError: The file name has another suffix.
    """
    path = Path(path)
    keys = ("labels", "train_videos", "test_videos", "nframes", "resolution")
    about = {key: getattr(annotations, key) for key in keys}
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
    tubes = [(video, number, tube) for video, group in annotations.tubes.items() for number, tube in enumerate(group)]
    lengths = [len(tube.boxes) for _, _, tube in tubes]
    boxes = np.concatenate([np.zeros((0, 4)), *(tube.boxes for _, _, tube in tubes)])
    frames = np.concatenate([np.zeros(0, dtype=np.int64), *(tube.frames for _, _, tube in tubes)])
    columns = {
        "video": np.repeat(np.array([video for video, _, _ in tubes], dtype=object), lengths),
        "label": np.repeat(np.array([tube.label for _, _, tube in tubes], dtype=np.int64), lengths),
        "tube": np.repeat(np.array([number for _, number, _ in tubes], dtype=np.int64), lengths),
        "frame": frames,
        **{name: boxes[:, column] for column, name in enumerate(BOX)},
    }
    types = {"video": pa.string(), "label": pa.int64(), "tube": pa.int64(), "frame": pa.int64()}
    return pa.table({name: pa.array(values, types.get(name, pa.float64())) for name, values in columns.items()})


def _json_content(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is truncated or not JSON: {error}") from None


def _parquet_content(path: Path) -> Any:
    """Read Parquet as the dictionary layout."""
    try:
        table = parquet.read_table(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is truncated or not a Parquet file: {error}") from None
    about = (table.schema.metadata or {}).get(b"evad")
    if about is None:
        raise ValueError(f"{path} was not written by evad.files.tubes: its schema has no metadata `evad`")
    content = json.loads(about)
    gttubes: dict[str, dict[int, list[np.ndarray]]] = {}
    rows = table.to_pandas()
    values = rows[["frame", *BOX]].to_numpy(np.float64)
    for (video, _), places in rows.groupby(["video", "tube"], sort=False).indices.items():
        gttubes.setdefault(video, {}).setdefault(int(rows["label"].iat[places[0]]), []).append(values[places])
    return content | {"gttubes": gttubes}


def summary(annotations: TubeAnnotations) -> str:
    """Describe a data set: size, splits, videos without tubes, boxes outside the frame."""
    tubes = [(video, tube) for video, group in annotations.tubes.items() for tube in group]
    boxes = sum(len(tube.boxes) for _, tube in tubes)
    outside = [(video, count) for video, tube in tubes if (count := _num_outside(annotations.resolution[video], tube))]
    bare = [video for video, group in annotations.tubes.items() if not group]
    splits = zip(annotations.train_videos, annotations.test_videos)
    lines = [f"{len(annotations.nframes)} videos, {len(annotations.labels)} classes, {len(tubes)} tubes, {boxes} boxes"]
    lines += [f"split {i}: {len(a)} training and {len(b)} test videos" for i, (a, b) in enumerate(splits, 1)]
    lines.append(f"{len(bare)} videos without a tube" + (f" (first: {bare[0]})" if bare else ""))
    first = f" (first: video {outside[0][0]})" if outside else ""
    lines.append(f"{sum(count for _, count in outside)} boxes reach outside the frame{first}")
    return "\n".join(lines)


def _num_outside(resolution: tuple[int, int], tube: Tube) -> int:
    """Number of a tube's boxes with a corner outside the frame."""
    height, width = resolution
    return int(((tube.boxes < 0) | (tube.boxes > [width - 1, height - 1] * 2)).any(axis=1).sum())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m evad.files.tubes", description="Convert tube annotations.")
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
