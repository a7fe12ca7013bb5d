"""Reads the annotation files of AVA v2.1 and v2.2, and the frame lists that name extracted images.

Annotation csv, one line per action of a person, no header:

    video,second,x1,y1,x2,y2,action id,person id

A line of two columns, `video,second`, names a keyframe that may have no person in it. Boxes are fractions of width and
height. The file of excluded timestamps has lines of `video,second` as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from evad.data.annotations.classes import find_class_ids, whole_number
from evad.data.annotations.findings import Finding
from evad.data.annotations.keyframes import Annotations, Clock
from evad.data.annotations.table import read_table, row_finding
from evad.data.video.images import compact_paths

VALID_SECONDS = (902.0, 1798.0)


def scan_ava(
    files: Mapping[str, Sequence[Path]],
    class_ids: Sequence[int],
    names: Mapping[int, str],
    *,
    first_second: float = 900.0,
    annotated_fps: float = 30.0,
    valid_seconds: tuple[float, float] | None = VALID_SECONDS,
    excluded: Path | None = None,
) -> Annotations:
    """Read all lines of AVA's annotation files; a finding counts the lines that the settings leave out.

    Args:
        class_ids: Allowed action ids; AVA: 1 to 80.
        names: Names of the evaluated classes by action id.
        first_second: The second at which the video files or extracted frames begin (AVA: 900; full movies: 0).
        annotated_fps: Ticks per second of `Keyframe.position`.
        valid_seconds: Lines before the first or after the second of these seconds are left out; None keeps all.
        excluded: csv of validation frames to leave out.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is empty or cannot be read.
    """
    tables = [(split, read_table(path, ava_widths=(2, 8))) for split, paths in files.items() for path in paths]
    rows = pd.concat([table.rows.assign(split=split) for split, table in tables], ignore_index=True)
    found = [finding for _, table in tables for finding in table.findings] + _person_ids(rows)
    if valid_seconds is not None:
        rows, finding = _inside(rows, *valid_seconds)
        found += finding
    if excluded is not None and "val" in files and excluded.stat().st_size:  # an empty file excludes nothing
        rows, finding = _without(rows, excluded)
        found += finding
    classes = {number: names.get(number, f"action {number}") for number in class_ids}
    return Annotations(
        rows=rows.reset_index(drop=True).assign(class_id=find_class_ids(rows["label"], classes).to_numpy()),
        classes=classes,
        evaluated=sorted(names),
        boxes="fractions",
        clock=Clock("seconds", first_second, annotated_fps),
        given_classes=True,
        overhang="error",
        findings=found,
    )


def _person_ids(rows: pd.DataFrame) -> list[Finding]:
    wrong = [text for text in rows["actor"].unique() if whole_number(text) is None]
    message, remedy = "the person id (8th column) is not a whole number", "number the persons of a video"
    return row_finding(rows, rows["actor"].isin(wrong) & ~rows["empty"], "person-id", "error", message, remedy)


def _inside(rows: pd.DataFrame, low: float, high: float) -> tuple[pd.DataFrame, list[Finding]]:
    """Leave out the rows outside the seconds `low` to `high`, with a finding that counts them."""
    inside = rows["time"].between(low, high) | ~rows["valid"]
    if inside.all():
        return rows, []
    count, share = int((~inside).sum()), 1 - inside.mean()
    message = f"{count} lines ({share:.0%}) are outside seconds {low:g} to {high:g} and left out"
    if share <= 0.5:
        return rows[inside], [Finding("seconds-left-out", "info", message, count=count)]
    remedy = "set +data.valid_seconds=null, and data.video_start_second to the second your videos begin at"
    return rows[inside], [Finding("seconds-left-out", "error", message, remedy, count)]


def _without(rows: pd.DataFrame, excluded: Path) -> tuple[pd.DataFrame, list[Finding]]:
    """Leave out the excluded validation frames, with findings about them and about malformed lines of `excluded`."""
    table = read_table(excluded, ava_widths=(2,))
    wrong = [finding for finding in table.findings if finding.severity == "error"]
    instants = pd.MultiIndex.from_frame(table.rows[["video", "time"]])
    out = (rows["split"] == "val") & pd.MultiIndex.from_frame(rows[["video", "time"]]).isin(instants)
    if not out.any():
        return rows, wrong
    message = f"{out.sum()} lines of frames in {excluded} are left out"
    return rows[~out], [*wrong, Finding("excluded", "info", message, count=int(out.sum()))]


@cache  # checks and training both ask for it, and the list of AVA has millions of lines
def read_frame_lists(path: str | Path, root: str | Path) -> dict[str, Sequence[str]]:
    """Read the image files of each video, in order, from a frame list.

    The list is a table with the header `original_vido_id video_id frame_id path labels` (with this spelling), separated
    by spaces, tabs or commas; `path` is relative to `root`; `frame_id` numbers the frames of a video.

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
