"""AVA csv files without header, plain or gzipped: ground truth, detections and excluded frames.

Columns are `video, timestamp, x1, y1, x2, y2, action_id` followed by the person id (ground truth, optional) or
the score (detections); excluded frames have only the first two. Boxes are fractions of the frame.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from evad.files.csv_rows import BOX, Layout, read_rows

INSTANT = ["video", "timestamp"]
GROUND_TRUTH = [*INSTANT, *BOX, "action_id"]
DETECTIONS = [*GROUND_TRUTH, "score"]

NO_ACTION = -1
"""Action id of a row for a frame in which no action is annotated."""


def read_ground_truth(path: str | Path, fractional_timestamps: bool = False) -> pd.DataFrame:
    """Rows of annotated boxes, one per person and action.

    Args:
        path: .csv or .csv.gz without header; 7 columns, or 8 with the person id (not read).
        fractional_timestamps: The 2020 rules: timestamps may have decimals, and a row with only video and timestamp
            is a frame without actions (its action is `NO_ACTION`).

    Returns:
        Table with the columns `GROUND_TRUTH`.

    Raises:
        ValueError: If a row is malformed; the message names file and line.
    """
    return read_rows(path, _layout(GROUND_TRUTH, fractional_timestamps, ignored="person_id"))


def read_detections(path: str | Path, fractional_timestamps: bool = False) -> pd.DataFrame:
    """Rows of scored boxes, one per detected person and action; like `read_ground_truth`, with a score in column 8."""
    return read_rows(path, _layout(DETECTIONS, fractional_timestamps))


def read_excluded(path: str | Path, fractional_timestamps: bool = False) -> pd.DataFrame:
    """Frames that all protocols except the 2020 one leave out; like `read_ground_truth`, with two columns."""
    return read_rows(path, _layout(INSTANT, fractional_timestamps))


def _layout(names: list[str], fractional: bool, ignored: str | None = None) -> Layout:
    kinds = {"video": str, "timestamp": float if fractional else int, "action_id": int}
    nowhere = {name: NO_ACTION if name == "action_id" else 0.0 for name in names[2:]}
    hints = {} if fractional else {"timestamp": "fractional timestamps need the protocol activitynet_2020"}
    columns = {name: kinds.get(name, float) for name in names}
    return Layout(columns, ignored=ignored, short_row=nowhere if fractional else {}, hints=hints)
