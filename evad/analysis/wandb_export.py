"""Read runs from the csv file that "Export CSV" of W&B writes, into the columns of `read_runs`."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from evad.analysis.read import CHOICE_OF_CLASS, MEASURES, PARTS, SETTINGS

COLUMNS = {
    "run": ("ID", "Name"),
    "name": ("name", "Name"),
    "status": ("State",),
    "seed": ("seed",),
    **{name: (f"model/{name}",) for name in SETTINGS if name != "image_size"},
    **{part: (f"model/{part}",) for part in PARTS},
    "image_size": ("data/image_size",),
    "max_epochs": ("max_epochs",),
    "mAP_last": ("val/mAP",),
    "mAP_best": ("val/mAP.max",),
    "person_AP_last": ("val/person_AP",),
    "person_AP_best": ("val/person_AP.max",),
    **{name: (f"cost/{name}",) for name in ("gflops", "train_clips_per_s", "peak_memory_mb")},
    "seconds": ("Runtime", "_runtime"),
}
"""Our column -> names of W&B's column; the first existing one is read. Keys may be joined by dots or slashes."""

STATES = {"crashed": "failed", "killed": "failed"}


def read_wandb_export(path: str | Path) -> pd.DataFrame:
    """Read the runs of a W&B project into the columns of `read_runs`.

    W&B exports the last value of each metric, so `mAP_best` is NaN unless the table has a `.max` column. A run is named
    by its id, or by its display name if the table has no ids.

    Args:
        path: The exported csv; show the columns of the configuration and the summary before exporting.

    Raises:
        ValueError: if the file has no column `State` or `val/mAP`.
    """
    table = pd.read_csv(path)
    given = {str(column): column for column in table.columns}
    nested = [name for name in given if name.startswith(("model.", "data."))]
    given |= {name.replace(".", "/"): given[name] for name in nested}
    if missing := [name for name in ("State", "val/mAP") if name not in given]:
        raise ValueError(
            f"{path} has no column {', '.join(missing)}, only {', '.join(map(str, table.columns))}: show it in the "
            "runs table of W&B, then export again"
        )
    frame = pd.DataFrame(index=table.index)
    for ours, theirs in COLUMNS.items():
        found = next((given[name] for name in theirs if name in given), None)
        if found is not None:
            frame[ours] = table[found]
        elif ours in MEASURES:
            frame[ours] = float("nan")
    frame["status"] = frame["status"].replace(STATES)
    parts = [part for part in PARTS if part in frame]
    frame[parts] = frame[parts].replace(CHOICE_OF_CLASS)
    if "roi_extension" in frame:
        frame["roi_extension"] = frame["roi_extension"].astype("string").str.strip("[]").astype(object)
    frame["problems"] = ["" if known else "no val/mAP" for known in frame["mAP_last"].notna()]
    return frame
