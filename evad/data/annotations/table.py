"""Reads annotation tables in many dialects; malformed lines are kept and reported instead of raising an error.

To raise an error for them, call `evad.data.annotations.findings.require_sound` afterwards. The first line of a file
tells which of two layouts it has:

- with a header that names the columns, in any order: `video`, `time` (seconds) or `frame`, `x1`, `y1`, `x2`, `y2`,
  `label`, and optionally `actor` and `split`;
- AVA's, without a header: `video, second, x1, y1, x2, y2, label[, actor]`, or `video, second` alone.

Fields are separated by commas, tabs, semicolons or spaces, with or without quotes. A line with an empty box and label
(in AVA's layout, a line of two columns) is an instant with no person in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from evad.data.annotations.findings import MAX_EXAMPLES, Finding
from evad.data.video.sources import VIDEO_SUFFIXES
from evad.files.csv_rows import BOX, TextTable, read_text

TimeUnit = Literal["seconds", "frames"]

NUMBERS = ["time", *BOX]
AVA_COLUMNS = ("video", "time", *BOX, "label", "actor")
AVA_WIDTHS: tuple[int, ...] = (2, 7, 8)

_ALIASES = {
    "video": ("video_id", "video_name", "file", "filename"),
    "time": ("second", "seconds", "timestamp"),
    "frame": ("frame_id", "frame_number", "frame_index"),
    "x1": ("xmin", "x_min", "left"),
    "y1": ("ymin", "y_min", "top"),
    "x2": ("xmax", "x_max", "right"),
    "y2": ("ymax", "y_max", "bottom"),
    "label": ("class", "action", "action_id", "label_id", "class_id"),
    "actor": ("actor_id", "person", "person_id", "track_id"),
    "split": ("subset", "set"),
}
_COLUMN_OF = {alias: name for name, aliases in _ALIASES.items() for alias in (name, *aliases)}


@dataclass(frozen=True)
class AnnotationTable:
    """All lines of a file.

    Attributes:
        rows: One row per readable line: `file`, `line`, `video` (without file ending), `timestamp` (the time as text),
            `time` and BOX (float64, NaN if not a number), `label`, `actor`, `split` (text, empty if not given),
            `empty` (no box and no label) and `valid` (the time and any box are finite numbers).
        unit: Unit of `time`.
        findings: Malformed lines, and how the file was read.
    """

    rows: pd.DataFrame
    unit: TimeUnit
    findings: list[Finding]


def read_table(path: str | Path, ava_widths: tuple[int, ...] | None = None) -> AnnotationTable:
    """Read every line of an annotation file.

    Args:
        ava_widths: Allowed numbers of columns, if the file has AVA's layout; None: decide by the first line.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It has no lines, is not text, or its header lacks a column.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such annotation file; check the data root and the file's name")
    text = read_text(path)
    if not len(text.lines):
        raise ValueError(f"{path}: the file has no lines; check the path and whether the file is complete")
    header = text.record(0)
    is_data = np.ones(len(text.lines), dtype=bool)
    if ava_widths is not None or _is_ava(header):
        columns, widths = dict(zip(AVA_COLUMNS, range(8))), ava_widths or AVA_WIDTHS
        layout = "no header: AVA's columns"
    else:
        columns, renamed = _columns(path, header)
        widths, layout = (len(header),), f"header{renamed}"
        is_data[0] = False
    unit: TimeUnit = "frames" if "frame" in columns else "seconds"
    fits = np.isin(text.widths, widths)
    rows = _rows(path, text, is_data & fits, columns)
    message = f"{len(rows)} lines, fields separated by {text.dialect}, {layout}; times in {unit}"
    found = [
        Finding("layout", "info", message, examples=(str(path),)),
        *_wrong_widths(path, text, np.flatnonzero(is_data & ~fits), widths),
        *_not_numbers(rows),
    ]
    return AnnotationTable(rows, unit, found)


def row_finding(
    rows: pd.DataFrame, where: pd.Series | np.ndarray, kind: str, severity: str, message: str, remedy: str = ""
) -> list[Finding]:
    """A finding about the rows marked by `where`; an empty list if none is marked."""
    bad = rows[np.asarray(where, dtype=bool)]
    if bad.empty:
        return []
    examples = tuple(describe(row) for row in bad.head(MAX_EXAMPLES).itertuples())
    return [Finding(kind, severity, message, remedy, len(bad), examples)]  # type: ignore[arg-type]


def describe(row) -> str:  # type: ignore[no-untyped-def]  # a named tuple of pandas
    """Describe a row of an annotation table: file and line, then its content."""
    place = f"{row.file}, line {row.line}: " if row.line else ""
    box = "" if row.empty else f", box {' '.join(f'{value:g}' for value in (row.x1, row.y1, row.x2, row.y2))}"
    label = f", label {row.label!r}" if row.label else ""
    return f"{place}video {row.video}, {row.timestamp}{box}{label}"


def _not_numbers(rows: pd.DataFrame) -> list[Finding]:
    remedy = "write plain numbers with a decimal point; to annotate an instant without persons, leave them empty"
    return row_finding(rows, ~rows["valid"], "not-a-number", "error", "the time or the box is not a number", remedy)


def _is_ava(first: Sequence[str]) -> bool:
    """Whether the first line is data: its second field is a number, and no field is a column's name."""
    if len(first) < 2 or {name.strip().lower() for name in first} & {"video", "label"}:
        return False
    try:
        float(first[1])
    except ValueError:
        return False
    return True


def _columns(path: Path, header: Sequence[str]) -> tuple[dict[str, int], str]:
    """Place of each known column, and a text about renamed and ignored columns."""
    columns: dict[str, int] = {}
    renamed, unread = [], []
    for place, spelt in enumerate(header):
        name = _COLUMN_OF.get(spelt.strip().lower())
        if name is None:
            unread.append(spelt)
            continue
        if name in columns:
            raise ValueError(f"{path}, line 1: {header[columns[name]]!r} and {spelt!r} are both {name}; keep one")
        columns[name] = place
        if spelt.strip().lower() != name:
            renamed.append(f"{spelt} is {name}")
    missing = [name for name in ("video", *BOX, "label") if name not in columns]
    if not {"time", "frame"} & set(columns):
        missing.insert(1, "time or frame")
    if {"time", "frame"} <= set(columns):
        raise ValueError(f"{path}, line 1: the header has a time and a frame column; keep only one")
    if missing:
        raise ValueError(
            f"{path}, line 1: the header has no {', '.join(missing)}; it must name the columns video, time (seconds) "
            f"or frame, x1, y1, x2, y2, label, and may name actor and split; got {', '.join(header)!r}"
        )
    words = ", ".join(renamed + ([f"not read: {' '.join(unread)}"] if unread else []))
    return columns, f" ({words})" if words else ""


def _wrong_widths(path: Path, text: TextTable, bad: np.ndarray, widths: tuple[int, ...]) -> list[Finding]:
    if not len(bad):
        return []
    allowed = " or ".join(map(str, widths))
    examples = tuple(
        f"{path}, line {text.lines[index]}: {text.widths[index]} columns ({','.join(text.record(index))})"
        for index in bad[:MAX_EXAMPLES]
    )
    remedy = "put text that holds a separator in quotes"
    return [Finding("line-columns", "error", f"expected {allowed} columns", remedy, len(bad), examples)]


def _rows(path: Path, text: TextTable, kept: np.ndarray, columns: dict[str, int]) -> pd.DataFrame:

    def column(name: str) -> tuple[np.ndarray, np.ndarray]:
        texts, codes = text.column(columns.get(name, len(text.columns)))
        return texts, codes[kept]

    times, time_codes = column("frame" if "frame" in columns else "time")
    videos, video_codes = column("video")
    names = np.array([_video_name(video) for video in videos], dtype=object)
    rows = pd.DataFrame({"line": text.lines[kept]}).assign(file=str(path), video=names[video_codes])
    rows["timestamp"] = times[time_codes]
    rows["time"] = _numbers(times)[time_codes]
    for name in ("label", "actor", "split"):
        texts, codes = column(name)
        rows[name] = texts[codes]
    blank = rows["label"].to_numpy() == ""
    for name in BOX:
        texts, codes = column(name)
        rows[name] = _numbers(texts)[codes]
        blank = blank & (texts == "")[codes]
    rows["empty"] = blank
    finite = np.isfinite(rows[NUMBERS].to_numpy())
    rows["valid"] = finite[:, 0] & (finite.all(axis=1) | blank)
    return rows


def _numbers(texts: np.ndarray) -> np.ndarray:
    """Convert texts to float64, NaN if not a number."""
    return pd.to_numeric(pd.Series(texts, dtype=object), errors="coerce").to_numpy(np.float64)


def _video_name(text: str) -> str:
    """Remove the ending of a video file."""
    stem, dot, suffix = text.rpartition(".")
    return stem if dot and f".{suffix.lower()}" in VIDEO_SUFFIXES else text
