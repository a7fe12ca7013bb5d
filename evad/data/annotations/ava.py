"""Annotation files of AVA v2.1 and v2.2 -> keyframes, and frame lists -> image paths; no pixels.

Annotation csv, one line per action of a person, no header:

    video,second,x1,y1,x2,y2,action id,person id

A line of two columns, `video,second`, names a keyframe that may have nobody in it. Boxes are fractions of width and
height. Excluded timestamps are lines of `video,second` too.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from evad.data.video.images import compact_paths
from evad.structures import Keyframe

logger = logging.getLogger(__name__)

BOX = ["x1", "y1", "x2", "y2"]
NUMBERS = ["second", *BOX, "action", "person"]
VALID_SECONDS = (902.0, 1798.0)


def read_ava_keyframes(
    paths: str | Path | Sequence[str | Path],
    class_ids: Sequence[int],
    *,
    first_second: float = 900.0,
    annotated_fps: float = 30.0,
    valid_seconds: tuple[float, float] | None = VALID_SECONDS,
    excluded: str | Path | None = None,
) -> list[Keyframe]:
    """Keyframes of one or more annotation files, ordered by video and second.

    Lines with the same box and person become one box with several actions, in order of first appearance. What is left
    out (seconds outside `valid_seconds`, excluded frames, repeated lines) is counted in the log.

    Args:
        paths: Annotation csv files.
        class_ids: Action ids in the order of the columns of `Keyframe.labels`; AVA: 1 to 80.
        first_second: The second at which the video files or extracted frames begin (AVA: 900; full movies: 0).
        annotated_fps: Frames per second of the clock `Keyframe.position` counts.
        valid_seconds: First and last second that count; None allows all.
        excluded: csv of frames to leave out.

    Raises:
        ValueError: A line with another number of columns, a value that is no number, a box that is inverted or outside
            [0, 1], or an action id that is not in `class_ids`; with file and line.
    """
    files = [paths] if isinstance(paths, (str, Path)) else list(paths)
    rows = pd.concat([_read_annotations(Path(path), class_ids) for path in files], ignore_index=True)
    names = ", ".join(str(path) for path in files)
    total = len(rows)
    if valid_seconds is not None:
        low, high = valid_seconds
        rows = rows[rows["second"].between(low, high)]
        _report(names, total - len(rows), f"lines outside seconds {low:g} to {high:g} are left out")
    if excluded is not None:
        before, unwanted = len(rows), _read_excluded(excluded)
        rows = rows[[frame not in unwanted for frame in zip(rows["video"], rows["second"])]]
        _report(names, before - len(rows), f"lines of frames in {excluded} are left out")
    if rows.empty:
        raise ValueError(f"{names}: none of the {total} lines is left; check valid_seconds {valid_seconds}")
    keyframes = _group(rows, class_ids, first_second, annotated_fps, names)
    people = sum(len(keyframe.boxes) for keyframe in keyframes)
    videos = rows["video"].nunique()
    logger.info("%s: %d keyframes of %d videos, %d boxes", names, len(keyframes), videos, people)
    return keyframes


def _report(names: str, count: int, what: str, level: int = logging.INFO) -> None:
    if count:
        logger.log(level, "%s: %d %s", names, count, what)


def _read_annotations(path: Path, class_ids: Sequence[int]) -> pd.DataFrame:
    """Checked lines of a file: video, timestamp (as spelt) and the columns NUMBERS, NaN in two-column lines."""
    lines, records = _read_lines(path, widths=(2, 8))
    values = _numbers(path, lines, [record[1:] if len(record) == 8 else (record[1], *_NOBODY) for record in records])
    rows = pd.DataFrame(values, columns=NUMBERS)
    rows.insert(0, "timestamp", [record[1].strip() for record in records])
    rows.insert(0, "video", [record[0].strip() for record in records])
    full = np.array([len(record) == 8 for record in records])
    finite = np.isfinite(values[:, 0]) & (np.isfinite(values).all(axis=1) | ~full)
    _require(finite, path, lines, records, "has a value that is not a finite number")
    box = rows[BOX].to_numpy()
    hint = "boxes are x1,y1,x2,y2 as fractions of width and height"
    _require(~full | ((box >= 0) & (box <= 1)).all(axis=1), path, lines, records, f"has a box outside [0, 1]; {hint}")
    ordered = (box[:, 0] <= box[:, 2]) & (box[:, 1] <= box[:, 3])
    _require(~full | ordered, path, lines, records, f"has an inverted box; {hint}, with x1 <= x2 and y1 <= y2")
    known = np.isin(values[:, 5], np.asarray(class_ids))
    limits = f"{min(class_ids)} to {max(class_ids)}"
    unknown = f"has an action id (7th column) that is not among the {len(class_ids)} known ones ({limits})"
    _require(~full | known, path, lines, records, f"{unknown}; check the label map and num_classes")
    whole = values[:, 6] == np.floor(values[:, 6])
    _require(~full | whole, path, lines, records, "has a person id (8th column) that is not an integer")
    return rows


_NOBODY = ("nan",) * 6


def _read_lines(path: Path, widths: tuple[int, ...]) -> tuple[list[int], list[tuple[str, ...]]]:
    """Line numbers and fields of the non-blank lines of a csv file."""
    lines, records = [], []
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        for record in reader:
            if not record:
                continue
            if len(record) not in widths:
                allowed = " or ".join(map(str, widths))
                raise ValueError(
                    f"{path}, line {reader.line_num}: {len(record)} columns, expected {allowed} "
                    f"(video,second[,x1,y1,x2,y2,action,person]); got {','.join(record)!r}"
                )
            lines.append(reader.line_num)
            records.append(tuple(record))
    if not records:
        raise ValueError(f"{path}: the file has no lines; check the path and whether the download is complete")
    return lines, records


def _numbers(path: Path, lines: list[int], records: list[tuple[str, ...]]) -> np.ndarray:
    """(lines, columns) float64."""
    try:
        return np.array(records, dtype=np.float64)
    except ValueError:
        for line, record in zip(lines, records):
            for column, field in enumerate(record, start=2):
                try:
                    float(field)
                except ValueError:
                    raise ValueError(
                        f"{path}, line {line}: column {column} is {field.strip()!r}, expected a number (no header)"
                    ) from None
        raise


def _require(holds: np.ndarray, path: Path, lines: list[int], records: list[tuple[str, ...]], problem: str) -> None:
    bad = np.flatnonzero(~holds)
    if len(bad):
        first = int(bad[0])
        others = f" ({len(bad) - 1} more lines like it)" if len(bad) > 1 else ""
        raise ValueError(f"{path}, line {lines[first]}: {','.join(records[first])} {problem}{others}")


def _read_excluded(path: str | Path) -> set[tuple[str, float]]:
    """Video and second of the frames to leave out."""
    path = Path(path)
    if path.stat().st_size == 0:  # nothing to leave out
        return set()
    lines, records = _read_lines(path, widths=(2,))
    seconds = _numbers(path, lines, [record[1:] for record in records])[:, 0]
    return set(zip((record[0].strip() for record in records), seconds.tolist()))


def _group(
    rows: pd.DataFrame, class_ids: Sequence[int], first_second: float, annotated_fps: float, names: str
) -> list[Keyframe]:
    """Lines -> keyframes; the arrays of all keyframes are slices of common ones."""
    rows = rows.sort_values(["video", "second"], kind="stable", ignore_index=True)
    rows["frame"] = rows.groupby(["video", "second"], sort=False).ngroup()
    frames = rows.drop_duplicates("frame")
    lines = rows[rows["action"].notna()]
    box_of_line = lines.groupby(["frame", *BOX, "person"], sort=False).ngroup().to_numpy()
    people = lines[~pd.Series(box_of_line).duplicated().to_numpy()]
    boxes = people[BOX].to_numpy(copy=True)
    actors = people["person"].to_numpy(dtype=np.int64, copy=True)
    column = {class_id: k for k, class_id in enumerate(class_ids)}
    labels = np.zeros((len(boxes), len(class_ids)), dtype=np.float32)
    labels[box_of_line, [column[action] for action in lines["action"].astype(int)]] = 1
    _report(names, len(lines) - int(labels.sum()), "lines repeat another line and count once", logging.WARNING)
    empty = int(((boxes[:, 0] == boxes[:, 2]) | (boxes[:, 1] == boxes[:, 3])).sum())
    _report(names, empty, "boxes have no area; they stay, and no detection can match them", logging.WARNING)
    ends = np.searchsorted(people["frame"].to_numpy(), np.arange(len(frames)), side="right")
    starts = np.concatenate(([0], ends[:-1]))
    instants = zip(frames["video"].tolist(), frames["timestamp"].tolist(), frames["second"].tolist(), starts, ends)
    return [
        Keyframe(
            video=video,
            timestamp=timestamp,
            position=(second - first_second) * annotated_fps,
            boxes=boxes[start:end],
            labels=labels[start:end],
            actors=actors[start:end],
        )
        for video, timestamp, second, start, end in instants
    ]


def read_frame_lists(path: str | Path, root: str | Path) -> dict[str, Sequence[str]]:
    """Image files of each video in order, from a frame list.

    The list is a table with the header `original_vido_id video_id frame_id path labels` (so spelt), separated by
    spaces, tabs or commas; `path` is relative to `root`, `frame_id` counts the frames of a video.

    Raises:
        ValueError: A column is missing, or the frame ids of a video are not consecutive.
    """
    path, root = Path(path), Path(root)
    with path.open(encoding="utf-8-sig") as file:
        header = file.readline()
    separator = next((mark for mark in (",", "\t") if mark in header), " ")
    columns = {"original_vido_id": str, "frame_id": np.int64, "path": str}
    try:
        table = pd.read_csv(path, sep=separator, usecols=list(columns), dtype=columns, keep_default_na=False)
    except ValueError as error:
        raise ValueError(f"{path}: not a frame list with the columns {', '.join(columns)} ({error})") from error
    lists: dict[str, Sequence[str]] = {}
    for video, frames in table.groupby("original_vido_id", sort=False):
        frames = frames.sort_values("frame_id")
        jumps = np.flatnonzero(np.diff(frames["frame_id"].to_numpy()) != 1)
        if len(jumps):
            before, after = frames["frame_id"].iloc[[jumps[0], jumps[0] + 1]]
            raise ValueError(f"{path}: frame ids of video {video} go from {before} to {after}; list every frame once")
        lists[str(video)] = compact_paths([f"{root}/{name}" for name in frames["path"]])
    return lists
